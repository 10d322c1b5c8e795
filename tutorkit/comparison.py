"""What a student is worth: its size, its time for one text, and how often it says as its teacher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tutorkit.data import special_frame, truncate
from tutorkit.fast_bert import faster
from tutorkit.losses import distillation_loss
from tutorkit.metrics import accuracy_interval
from tutorkit.models import LoadedModel, check_max_length
from tutorkit.precision import autocast, choose_precision

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Latency:
    """How long a model takes for one text."""

    median_ms: float  # half of the texts take no longer
    p95_ms: float  # 19 of 20 texts take no longer
    n: int  # texts


def one_by_one(
    loaded: LoadedModel, max_length: int = 128, truncation: str = "head+tail",
    precision: str = "fp32",
) -> Callable[[str], np.ndarray]:
    """A function from one text to its probabilities (C,), tokenizing included: for `latency`.

    The model is moved to the CPU and out of training mode. Nothing is padded, so the time is that
    of the text's own length.

    Raises:
        ValueError: a `max_length` above the model's positions.
    """
    check_max_length(loaded.model, max_length)
    cpu, tokenizer = torch.device("cpu"), loaded.tokenizer
    numeric, model = choose_precision(precision, cpu), faster(loaded.model.to(cpu).eval())
    before, after = special_frame(tokenizer)
    room = max_length - len(before) - len(after)

    @torch.inference_mode()
    def predict_one(text: str) -> np.ndarray:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        row = torch.tensor([before + truncate(ids, room, truncation) + after])  # (1, T)
        with autocast(numeric, cpu):
            logits = model(row, attention_mask=torch.ones_like(row)).logits
        return logits[0].double().softmax(dim=0).numpy()

    return predict_one


def latency(
    predict_one: Callable[[str], object], texts: Sequence[str], repeats: int = 5
) -> Latency:
    """Milliseconds for one text at a time on one core: median and 95th percentile over the texts.

    Other work on the machine can only add time, so each text counts with the shortest of its
    `repeats` times. They lie a whole round apart: one disturbance does not meet them all.

    Args:
        predict_one: what is measured, such as `one_by_one` returns.
        texts: N texts, best drawn from the test set, for times depend on lengths.
        repeats: rounds over the texts, after one that is not counted.

    Raises:
        ValueError: no texts, or fewer than one round.
    """
    if len(texts) == 0 or repeats < 1:
        raise ValueError(f"expected at least one text and one repeat, found {len(texts)} texts and "
                         f"repeats={repeats}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [[_milliseconds(predict_one, t) for t in texts] for _ in range(repeats + 1)]
    finally:
        torch.set_num_threads(threads)
    least = np.min(rounds[1:], axis=0)  # (N,)
    return Latency(float(np.median(least)), float(np.percentile(least, 95)), len(texts))


def agreement(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> dict:
    """How often two models say the same, right or wrong.

    Args:
        a: (N,) the classes that one predicts.
        b: (N,) those of the other, for the same rows.

    Returns:
        n; share of equal predictions; ci95 [low, high], its Wilson interval.

    Raises:
        ValueError: unequal numbers of rows, or none.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"expected predictions (N,) of two models for the same rows, found shapes "
                         f"{a.shape} and {b.shape}: of probabilities take argmax(axis=1)")
    equal, n = int((a == b).sum()), len(a)
    return {"n": n, "share": equal / n, "ci95": list(accuracy_interval(equal, n))}


def fidelity(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean KL(teacher ‖ student) in nats: 0 where both give every row the same probabilities.

    Args:
        teacher: (N, C) probabilities.
        student: (N, C) probabilities for the same rows.

    Raises:
        ValueError: shapes that differ, or no rows.
    """
    if teacher.shape != student.shape or teacher.ndim != 2 or len(teacher) == 0:
        raise ValueError(f"expected probabilities (N, C) of two models for the same rows, found "
                         f"shapes {teacher.shape} and {student.shape}")
    # log p are logits of p. A probability that was rounded to 0 counts as the smallest number.
    p, q = (torch.from_numpy(np.log(np.maximum(x, np.finfo(np.float64).tiny)))
            for x in (teacher.astype(np.float64), student.astype(np.float64)))  # fmt: skip
    return float(distillation_loss(q, p, temperature=1.0))


@dataclass(frozen=True)
class Contender:
    """One model of a comparison, measured on the same test rows as the others."""

    name: str
    parameters: int  # all of them: what has to be stored
    non_embedding_parameters: int  # what every token passes through
    latency: Latency
    probabilities: np.ndarray  # (N, C) on the test rows


def compare(rows: Sequence[Contender], labels: Sequence[int] | np.ndarray) -> pd.DataFrame:
    """Size, time, accuracy and agreement of some models, each beside the first: the teacher.

    Args:
        rows: the teacher, then its students and what else they are to be compared with.
        labels: (N,) the right classes of the test rows.

    Returns:
        A row for each, in the order given. `speedup` is the teacher's median time over the model's,
        `of_teacher` its accuracy as a share of the teacher's, `kl` what `fidelity` says.

    Raises:
        ValueError: no rows, or other numbers of test rows than labels.
    """
    import pandas as pd

    if len(rows) == 0:
        raise ValueError("rows: expected the teacher and its students, found none")
    labels, teacher = np.asarray(labels), rows[0]
    predictions = [row.probabilities.argmax(axis=1) for row in rows]
    table = []
    for row, predicted in zip(rows, predictions, strict=True):
        if len(predicted) != len(labels):
            raise ValueError(f"{row.name}: expected probabilities for the {len(labels)} labelled "
                             f"rows, found {len(predicted)}: measure all models on the same ones")
        right, same = agreement(predicted, labels), agreement(predicted, predictions[0])
        table.append({
            "model": row.name, "parameters": row.parameters,
            "non_embedding": row.non_embedding_parameters, "median_ms": row.latency.median_ms,
            "p95_ms": row.latency.p95_ms,
            "speedup": teacher.latency.median_ms / row.latency.median_ms,
            "accuracy": right["share"], "accuracy_low": right["ci95"][0],
            "accuracy_high": right["ci95"][1], "agreement": same["share"],
            "agreement_low": same["ci95"][0], "agreement_high": same["ci95"][1],
            "kl": fidelity(teacher.probabilities, row.probabilities),
        })  # fmt: skip
    found = pd.DataFrame(table)
    found.insert(7, "of_teacher", found["accuracy"] / found["accuracy"][0])
    return found


def _milliseconds(predict_one: Callable[[str], object], text: str) -> float:
    started = time.perf_counter()
    predict_one(text)
    return 1000 * (time.perf_counter() - started)
