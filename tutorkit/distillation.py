"""Teach a small model with a large one: what `fit` lowers, and the teacher's logits, kept on disk.

    SoftTargets     the teacher's softened probabilities beside the labels; the two models may read
                    texts by different tokenizers, for logits belong to texts

Hidden states and attention are matched in `tutorkit.matching`.

Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network".
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tutorkit.data import SentimentDataset, check_rows
from tutorkit.losses import distillation_loss
from tutorkit.models import LoadedModel, check_max_length, model_digest
from tutorkit.objectives import Backward
from tutorkit.precision import choose_device, choose_precision
from tutorkit.token_cache import content_key
from tutorkit.training import read_logits


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """What a teacher says about the training rows, and the names of its classes."""

    values: Float[Tensor, "rows classes"]  # in the order of the texts
    id2label: Mapping[int, str]

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.values.contiguous().numpy().tobytes()).hexdigest()[:12]
        return f"TeacherLogits({tuple(self.values.shape)}, sha256={digest})"


def teacher_logits(
    teacher: LoadedModel, texts: Sequence[str], max_length: int = 128,
    truncation: str = "head+tail", batch_size: int = 64, precision: str = "auto",
    device: str = "auto", cache: Path | str | None = None,
) -> TeacherLogits:
    """A teacher's logits for some texts, computed once.

    Args:
        teacher: the fine-tuned model with its own tokenizer.
        texts: N texts, those of the training set in its order.
        max_length: most token ids of the teacher's that a text may have.
        truncation: which end of a longer text is kept: "head", "tail" or "head+tail".
        batch_size: rows in one forward pass.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda" or "mps".
        cache: a folder. The logits are kept there under a name made from all that decides them
            (weights, tokenizer, texts, lengths, precision), and read the next time. It only saves
            time: where it can't be read or written, they are computed. None keeps nothing.

    Raises:
        TypeError: one text instead of a list, or a text that is not a string.
        ValueError: no texts, an empty one, a `max_length` above the teacher's.
    """
    if isinstance(texts, str):
        raise TypeError("texts: expected a list of texts, found a single str: put it in a list")
    texts, no_labels = list(texts), [0] * len(texts)
    check_rows(texts, no_labels, 2)
    check_max_length(teacher.model, max_length)
    numeric = choose_precision(precision, choose_device(device))
    rules = [model_digest(teacher.model), content_key(teacher.tokenizer, texts), max_length,
             truncation, numeric]  # fmt: skip
    name = hashlib.sha256(json.dumps(rules).encode()).hexdigest()
    path = Path(cache).expanduser() / f"{name}.npz" if cache is not None else None
    values = _load(path, len(texts)) if path is not None else None
    if values is None:
        rows = SentimentDataset(texts, no_labels, teacher.tokenizer, max_length, truncation)
        values = read_logits(teacher.model, rows, batch_size, precision=numeric, device=device)
        if path is not None:
            _save(path, values)
    return TeacherLogits(torch.from_numpy(values), label_names(teacher.model))


def check_same_labels(teacher: Mapping[int, str], student: Mapping[int, str]) -> None:
    """Refuse a student that has other classes than its teacher, or the same in another order.

    Args:
        teacher: its `id2label`.
        student: its `id2label`.

    Raises:
        ValueError: they differ.
    """
    teacher, student = dict(sorted(teacher.items())), dict(sorted(student.items()))
    if teacher != student:
        raise ValueError(f"student: expected the teacher's classes {teacher}, found {student}: "
                         "column c of its logits speaks of class c. Load the student with the "
                         "teacher's id2label, and number the labels of the rows alike")


@dataclass(frozen=True)
class SoftTargets:
    """The objective of Hinton et al.: labels and the teacher's softened probabilities.

        L = α · T² · KL(softmax(v / T) ‖ softmax(z / T)) + (1 - α) · cross-entropy(z, y)

    for the student's logits z and the teacher's v: `losses.distillation_loss`.

    Args:
        teacher: its logits for the rows of the training set.
        temperature: T > 0.
        alpha: α in [0, 1], the teacher's weight; 0 is plain classification.

    Raises:
        ValueError: T or α out of range; when called, a student of other classes or a row that the
            teacher has no logits for.
    """

    teacher: TeacherLogits
    temperature: float = 2.0
    alpha: float = 0.5

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected the teacher's weight in [0, 1], found {self.alpha}")
        none = self.teacher.values[:0]
        distillation_loss(none, none, None, self.temperature)  # refuses a wrong T

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward
    ) -> Tensor:
        """See `tutorkit.objectives`."""
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = self.loss(model, logits, batch)
        backward(loss)
        return loss.detach()

    def loss(self, model: torch.nn.Module, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """L summed over the batch, of the logits (B, C) that `model` gave it."""
        if (names := label_names(model)) is not None:
            check_same_labels(self.teacher.id2label, names)
        rows, known = batch["rows"].cpu(), len(self.teacher.values)
        if rows.max() >= known:
            raise ValueError(f"expected teacher logits for every training row, found {known} and "
                             f"row number {int(rows.max())}: compute them for the texts of this "
                             "training set, in its order")
        taught = self.teacher.values[rows].to(logits.device)
        mean = distillation_loss(logits.float(), taught, batch["labels"], self.temperature,
                                 self.alpha)  # fmt: skip
        return mean * len(rows)


def label_names(model: torch.nn.Module) -> dict[int, str] | None:
    """`id2label` of a model, also where `fit` has wrapped it; None where it has none."""
    model = getattr(model, "module", model)  # several processes
    if not hasattr(model, "config"):
        model = getattr(model, "model", None)  # FastBert
    config = getattr(model, "config", None)
    return None if config is None else {int(i): name for i, name in config.id2label.items()}


def _load(path: Path, count: int) -> np.ndarray | None:
    """What `_save` kept, or None where there is nothing whole: no file, or a damaged one."""
    try:
        # Given a path, numpy leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
            values = saved["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return values if values.ndim == 2 and len(values) == count else None


def _save(path: Path, values: np.ndarray) -> None:
    """Write beside and rename, so that a file is whole or not there; a full disk is no error."""
    beside = path.with_name(f"writing-{uuid.uuid4().hex}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(beside, logits=values)
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
