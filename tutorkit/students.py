"""Small models, to be taught by a large one.

    transformer_student   the teacher's embeddings under fewer layers: a plain BERT classifier
    bag_student           the mean of the embeddings and a linear layer, no word order at all

Both are `transformers` models: `fit`, `evaluate` and `predict_texts` run them, `save_model` writes
them as safetensors and JSON, and `load_model` opens the folder again (a bag where this module has
been imported). What a student is worth, `tutorkit.comparison` measures.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from tutorkit.dropout import quicken_dropout
from tutorkit.heads import pool
from tutorkit.models import LoadedModel, drawn_with

STARTS = ("teacher", "fresh")


def every_kth(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The teacher's layer n = g(m) for each student layer m, both counted from 1.

    Of L layers, M of a student answer to every L / M-th, rounded up: of 6, two answer to 3 and 6.

    Raises:
        ValueError: more student layers than the teacher has, or none.

    Source: Jiao et al. 2020, "TinyBERT", the mapping g of equation 6; this is their "uniform" one.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"layers: expected 1…{teacher_layers}, the teacher's number of layers, "
                         f"found {student_layers}")
    return tuple(-(-m * teacher_layers // student_layers) for m in range(1, student_layers + 1))


def transformer_student(
    teacher: LoadedModel, layers: int = 2, start: str = "teacher", seed: int = 0
) -> LoadedModel:
    """A BERT classifier with the teacher's embeddings and fewer layers of the same width.

    Args:
        teacher: a `BertForSequenceClassification`. Its weights are copied: give the fine-tuned
            teacher, or the pretrained model for a student that knows nothing of the task yet.
        layers: how many the student has.
        start: "teacher" copies every k-th layer (see `every_kth`), pooler and classifier; "fresh"
            draws them anew. The embeddings are copied either way.
        seed: fixes what is drawn.

    Raises:
        ValueError: another architecture, more layers than the teacher has, an unknown `start`.
    """
    check_bert(teacher, "teacher")
    _check_start(start)
    source = teacher.model.bert
    kept = every_kth(len(source.encoder.layer), layers)
    config = copy.deepcopy(teacher.model.config)
    config.num_hidden_layers = layers
    with drawn_with(seed):
        model = BertForSequenceClassification(config)
    model.bert.embeddings.load_state_dict(source.embeddings.state_dict())
    names = [name for name, _ in model.named_parameters() if ".embeddings." not in name]
    told = f"embeddings of {teacher.name} ({teacher.source}), layers drawn with seed {seed}"
    if start == "teacher":
        for layer, n in zip(model.bert.encoder.layer, kept, strict=True):
            layer.load_state_dict(source.encoder.layer[n - 1].state_dict())
        model.bert.pooler.load_state_dict(source.pooler.state_dict())
        model.classifier.load_state_dict(teacher.model.classifier.state_dict())
        names = [name for name in names if name in teacher.head]
        told = f"embeddings and layers {list(kept)} of {teacher.name} ({teacher.source})"
    quicken_dropout(model)
    name = f"{teacher.name}, {layers} layers"
    return LoadedModel(name, told, model.eval(), teacher.tokenizer, names, teacher.is_decoder)


class BagConfig(PreTrainedConfig):
    """The size of a `BagOfEmbeddings`: V token ids, vectors of D numbers."""

    model_type = "bag-of-embeddings"

    def __init__(self, vocab_size: int = 1000, hidden_size: int = 64, **others):
        super().__init__(**others)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size


class BagOfEmbeddings(PreTrainedModel):
    """Scores z = W · mean_t e(x_t) + b over the real tokens: fastText's classifier.

    It computes in fp32, also where the rest of a run does not: it is no work to speak of.

    Args:
        config: its `vocab_size`, `hidden_size` and labels.

    Source: Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification", section 2.
    """

    config_class = BagConfig

    def __init__(self, config: BagConfig):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, (torch.nn.Embedding, torch.nn.Linear)):
            # Vectors of length 1, about: the mean of many is short, and shorter ones learn slowly.
            torch.nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Logits (B, C) of a batch; ids and mask (B, T)."""
        with torch.autocast(input_ids.device.type, enabled=False):
            mean = pool(self.embeddings(input_ids), attention_mask, "mean")  # (B, D)
            return SequenceClassifierOutput(logits=self.classifier(mean))


# As for the library's own models: from here on a saved folder names its class by its `model_type`.
AutoConfig.register(BagConfig.model_type, BagConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BagConfig, BagOfEmbeddings, exist_ok=True)


def bag_student(
    teacher: LoadedModel, dim: int | None = None, start: str = "teacher", seed: int = 0
) -> LoadedModel:
    """A `BagOfEmbeddings` with the teacher's tokenizer and labels.

    Args:
        teacher: any classifier, encoder or decoder.
        dim: D; None: the width of the teacher's embeddings.
        start: "teacher" copies its token embeddings, "fresh" draws them.
        seed: fixes what is drawn.

    Raises:
        ValueError: an unknown `start`, or the teacher's embeddings with another `dim`.
    """
    _check_start(start)
    table = teacher.model.get_input_embeddings().weight.detach()  # (V, D)
    dim = table.shape[1] if dim is None else dim
    if start == "teacher" and dim != table.shape[1]:
        raise ValueError(f"dim: expected {table.shape[1]}, the width of the teacher's embeddings, "
                         f"found {dim}: leave it out, or take start='fresh'")
    labels = {int(i): label for i, label in teacher.model.config.id2label.items()}
    config = BagConfig(len(table), dim, id2label=labels,
                       label2id={label: i for i, label in labels.items()})  # fmt: skip
    with drawn_with(seed):
        model = BagOfEmbeddings(config)
    names, told = [name for name, _ in model.named_parameters()], f"drawn with seed {seed}"
    if start == "teacher":
        model.embeddings.load_state_dict({"weight": table})
        names.remove("embeddings.weight")
        told = f"embeddings of {teacher.name} ({teacher.source})"
    name = f"bag of embeddings, {dim} wide"
    return LoadedModel(name, told, model.eval(), teacher.tokenizer, names, teacher.is_decoder)


def check_bert(loaded: LoadedModel, role: str) -> None:
    """Refuse what is no `BertForSequenceClassification`.

    Raises:
        ValueError: another architecture, with what to do instead.
    """
    if type(loaded.model) is not BertForSequenceClassification:
        raise ValueError(f"{role}: expected a BertForSequenceClassification, such as 'minilm' is, "
                         f"found {type(loaded.model).__name__}: its layers can't be copied or "
                         "matched; a teacher of any kind teaches by its logits, SoftTargets")


def _check_start(start: str) -> None:
    if start not in STARTS:
        raise ValueError(f"start: expected one of {STARTS}, found {start!r}")


