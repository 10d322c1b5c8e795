"""What each of several processes does in tests/test_distributed.py; the scenarios are named there.

    torchrun --nproc-per-node 2 tests/assets/distributed_run.py FOLDER NAME SCENARIO …

Each process writes `FOLDER/NAME-RANK.json`: the results by scenario.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from tutorkit import checkpoints
from tutorkit.data import SentimentDataset
from tutorkit.models import load_model
from tutorkit.progress import Progress
from tutorkit.sources import load_splits
from tutorkit.training import TrainConfig, evaluate, fit, make_accelerator

# 11 rows, 4 a batch, 2 batches a step: the last batch of an epoch has 3 rows for two processes.
# 9 rows: the last batch has a single one, and the second process is idle.
CONFIG = TrainConfig(
    epochs=3, batch_size=4, gradient_accumulation_steps=2, learning_rate=3e-3, precision="fp32",
    device="cpu", patience=None, seed=3, checkpoint_every=1,
)  # fmt: skip
PLAIN = replace(CONFIG, gradient_accumulation_steps=1, batch_size=3, epochs=2)
STOP_AT = 3


def rows(count: int, tokenizer) -> SentimentDataset:
    """`count` built-in reviews, nearly half of them positive."""
    table = load_splits("reviews")["train"].to_pandas()
    halves = [table[table.label == k].head(count - count // 2 if k == 0 else count // 2)
              for k in (0, 1)]  # fmt: skip
    texts = [text for half in halves for text in half.text]
    return SentimentDataset(texts, [k for k in (0, 1) for _ in halves[k].text], tokenizer, 32)


def load():
    """`tiny` without dropout: its masks depend on the process, all else does not."""
    loaded = load_model("tiny")
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return loaded


def train(config, count=11, folder=None, callbacks=()) -> dict:
    """One run of `fit` in a form that JSON takes; 5 validation rows are a single batch."""
    loaded = load()
    validation = rows(5, loaded.tokenizer)
    state = fit(loaded.model, rows(count, loaded.tokenizer), validation, config, folder, callbacks)
    after = evaluate(loaded.model, validation, precision="fp32", device="cpu")
    return {
        "losses": [entry["loss"] for entry in state.steps],
        "grad_norms": [entry["grad_norm"] for entry in state.steps],
        "evaluations": [[e["step"], e["loss"], e["accuracy"]] for e in state.evaluations],
        "best": state.best["loss"] if state.best else None, "after": after.loss,
        "resumed": state.resumed_from_step,
        "sums": [p.double().sum().item() for p in loaded.model.parameters()],
    }  # fmt: skip


def evaluations(accelerator) -> dict:
    """Scores of row counts that two processes can't share evenly, at several batch sizes."""
    loaded, found = load(), {}
    for count in (2, 7, 13):
        for size in (1, 3, 4, 16):
            result = evaluate(loaded.model, rows(count, loaded.tokenizer), size, accelerator)
            found[f"{count} by {size}"] = [result.loss, result.accuracy, result.tokens,
                                           result.probabilities.tolist()]  # fmt: skip
    return found


class OneBadRow(torch.nn.Module):
    """`tiny`, but the logits of one row are not finite: only the process that reads it knows."""

    def __init__(self, model, row):
        super().__init__()
        self.model, self.row = model, row.clone()

    def forward(self, input_ids, attention_mask):
        output = self.model(input_ids, attention_mask=attention_mask)
        bad = (input_ids[:, : len(self.row)] == self.row).all(dim=1)
        output.logits = output.logits / (~bad[:, None]).float()
        return output


def stop_in_last(event, state):
    """Only the last process asks to stop; the others must hear of it."""
    if int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1:
        state.stop = state.stop or state.step == STOP_AT


def scenario(name: str, folder: Path, rank: int) -> dict:
    """Run one scenario in this process."""
    if name == "accumulation":
        return train(CONFIG)
    if name == "idle":
        return train(CONFIG, count=9)
    if name == "plain":
        return train(PLAIN)
    if name == "bf16":
        return train(replace(CONFIG, precision="bf16"))
    if name == "evaluations":
        return evaluations(make_accelerator("fp32", "cpu"))
    if name == "stop":  # leaves its checkpoint for a run of one process
        return train(CONFIG, folder=folder / "two-to-one", callbacks=[stop_in_last])
    if name == "resume":  # from the checkpoint of a run of one process
        return train(CONFIG, folder=folder / "one-to-two", callbacks=[Progress(1e9)])
    if name == "remove":  # at once, while another process may still be at its last line
        load_best = checkpoints.load_best

        def slowly(*given):
            time.sleep(rank)
            load_best(*given)

        checkpoints.load_best = slowly
        result = train(CONFIG, folder=folder / "removed")
        checkpoints.load_best = load_best
        return result
    if name == "apart":  # each process with a folder of its own, the second one's empty
        try:
            return train(CONFIG, folder=folder / ("two-to-one" if rank == 0 else "apart"))
        except ValueError as error:
            return {"error": str(error)}
    if name == "not finite":
        loaded = load()
        data = rows(8, loaded.tokenizer)
        model = OneBadRow(loaded.model, data[0]["input_ids"])
        try:
            fit(model, data, None, CONFIG)
        except FloatingPointError as error:
            return {"error": str(error)}
    if name == "error":
        return train(CONFIG, callbacks=[raise_in_first])
    raise ValueError(name)


def raise_in_first(event, state):
    """As a full disk would: only the main process writes, so only it fails."""
    if os.environ["RANK"] == "0" and state.step == 2:
        raise OSError("no space left, in one process")


def main(folder: str, name: str, *scenarios: str) -> None:
    """Run the scenarios in this process, note what it wrote, and keep the results."""
    rank = int(os.environ["RANK"])
    written, results = [], {}

    def note(event, given):
        if event in ("os.mkdir", "os.rename", "os.remove") or (
            event == "open" and (set(given[1] or "") & set("wax+") or (given[2] or 0) & 3)
        ):
            written.append(str(given[0]))

    sys.addaudithook(note)
    if rank != 0:
        checkpoints.save_file = None  # it writes unseen by Python's audit; calling it fails
    for each in scenarios:
        results[each] = scenario(each, Path(folder), rank)
        if each == "remove" and rank == 0:
            checkpoints.remove_checkpoints(Path(folder) / "removed")
        results["written"] = sorted({path for path in written if path.startswith(folder)})
        results["world"] = torch.distributed.get_world_size()
        text = json.dumps(results)
        own = len(written)
        Path(folder, f"{name}-{rank}.json").write_text(text)
        del written[own:]  # what the test itself wrote
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "notebook":
        from accelerate import notebook_launcher

        notebook_launcher(main, tuple(sys.argv[3:]), num_processes=2, use_port=sys.argv[2])
    else:
        main(*sys.argv[1:])
