"""Ways to fine-tune the same model on the same rows, each as its users would write it.

Each is made in a process of its own. `train(rows)` goes once over the rows, as a run of its own
that goes on from the weights of the one before; `predict(rows)` returns how many it labels right.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from tutorkit.data import SentimentDataset
from tutorkit.models import ATTENTION_DROPOUTS, load_model
from tutorkit.precision import choose_device, choose_precision
from tutorkit.prediction import predict
from tutorkit.training import TrainConfig, fit
from tutorkit.weights import locate

LEARNING_RATE, WEIGHT_DECAY, WARMUP, BATCH = 1e-4, 0.01, 0.1, 32


@dataclass(frozen=True)
class Rows:
    """Texts and labels (0 or 1) of one round."""

    texts: list[str]
    labels: list[int]


def stock_model(name: str, attention_dropout: bool = True):
    """(model, tokenizer) as plain transformers loads them, with or without attention dropout."""
    location, _ = locate(name)
    config = AutoConfig.from_pretrained(location, num_labels=2)
    for key in () if attention_dropout else ATTENTION_DROPOUTS:
        if hasattr(config, key):
            setattr(config, key, 0.0)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        location, config=config, dtype=torch.float32
    )
    return model, AutoTokenizer.from_pretrained(location)


class Published:
    """The loop as tutorials print it: each item tokenized when asked for, padded to full length."""

    def __init__(self, name: str, max_length: int):
        self.model, self.tokenizer = stock_model(name)
        self.max_length = max_length
        self.device = choose_device()
        self.model.to(self.device)

    def loader(self, rows: Rows, shuffle: bool) -> DataLoader:
        tokenizer, max_length = self.tokenizer, self.max_length

        class Reviews(Dataset):
            def __len__(self):
                return len(rows.texts)

            def __getitem__(self, i):
                encoded = tokenizer(rows.texts[i], max_length=max_length, padding="max_length",
                                    truncation=True, return_tensors="pt")  # fmt: skip
                return {name: encoded[name][0] for name in ("input_ids", "attention_mask")} | {
                    "labels": torch.tensor(rows.labels[i])
                }

        return DataLoader(Reviews(), batch_size=BATCH, shuffle=shuffle)

    def train(self, rows: Rows) -> None:
        batches = self.loader(rows, shuffle=True)
        optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE,
                                      weight_decay=WEIGHT_DECAY)  # fmt: skip
        schedule = get_linear_schedule_with_warmup(
            optimizer, round(WARMUP * len(batches)), len(batches)
        )
        self.model.train()
        total = 0.0
        for batch in batches:
            optimizer.zero_grad()
            loss = self.model(**{k: v.to(self.device) for k, v in batch.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()

    @torch.no_grad()
    def predict(self, rows: Rows) -> int:
        self.model.eval()
        right = 0
        for batch in self.loader(rows, shuffle=False):
            batch = {k: v.to(self.device) for k, v in batch.items()}
            logits = self.model(batch["input_ids"], batch["attention_mask"]).logits
            right += (logits.argmax(dim=1) == batch["labels"]).sum().item()
        return right


class TrainerDefaults:
    """transformers' Trainer: rows tokenized beforehand, batches padded to their longest row."""

    settings: dict = {}
    attention_dropout = True

    def __init__(self, name: str, max_length: int):
        self.model, self.tokenizer = stock_model(name, self.attention_dropout)
        self.max_length = max_length
        self.folder = tempfile.TemporaryDirectory()  # goes with the process

    def tokenized(self, rows: Rows):
        from datasets import Dataset

        table = Dataset.from_dict({"text": rows.texts, "labels": rows.labels})
        cut = {"max_length": self.max_length, "truncation": True}
        return table.map(lambda batch: self.tokenizer(batch["text"], **cut), batched=True,
                         remove_columns="text")  # fmt: skip

    def trainer(self, rows=None) -> Trainer:
        arguments = TrainingArguments(
            output_dir=self.folder.name, num_train_epochs=1, save_strategy="no",
            per_device_train_batch_size=BATCH, per_device_eval_batch_size=2 * BATCH,
            learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, warmup_steps=WARMUP,
            disable_tqdm=True, logging_strategy="no", report_to="none",
            use_cpu=choose_device().type == "cpu", **self.settings,
        )  # fmt: skip
        return Trainer(self.model, arguments, train_dataset=rows, processing_class=self.tokenizer,
                       data_collator=DataCollatorWithPadding(self.tokenizer))  # fmt: skip

    def train(self, rows: Rows) -> None:
        self.trainer(self.tokenized(rows)).train()

    def predict(self, rows: Rows) -> int:
        # Where it groups by length, predictions come in another order than the rows, and labels too
        found = self.trainer().predict(self.tokenized(rows))
        return int((found.predictions.argmax(axis=1) == found.label_ids).sum())


class TrainerBest(TrainerDefaults):
    """Trainer with all that makes it faster: bf16, batches of similar length, fused AdamW."""

    settings = {
        "bf16": choose_precision("auto", choose_device()) == "bf16",
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch_fused",
    }


class TrainerBestOwnDropout(TrainerBest):
    """The same without attention dropout, as this kit: torch's fused attention kernel then runs."""

    attention_dropout = False


class Tutorkit:
    """This kit's `fit` and `predict`, with its defaults."""

    def __init__(self, name: str, max_length: int):
        self.loaded = load_model(name)
        self.max_length = max_length

    def tokenized(self, rows: Rows) -> SentimentDataset:
        return SentimentDataset(rows.texts, rows.labels, self.loaded.tokenizer, self.max_length,
                                truncation="head")  # fmt: skip

    def train(self, rows: Rows) -> None:
        config = TrainConfig(epochs=1, batch_size=BATCH, learning_rate=LEARNING_RATE,
                             weight_decay=WEIGHT_DECAY, warmup_ratio=WARMUP)  # fmt: skip
        fit(self.loaded.model, self.tokenized(rows), None, config)

    def predict(self, rows: Rows) -> int:
        result = predict(self.loaded.model, self.tokenized(rows), batch_size=2 * BATCH)
        return round(result.accuracy * len(rows.labels))


CONTENDERS = {
    "published loop": Published,
    "Trainer, defaults": TrainerDefaults,
    "Trainer at its best": TrainerBest,
    "Trainer at its best, no attention dropout": TrainerBestOwnDropout,
    "tutorkit": Tutorkit,
}
