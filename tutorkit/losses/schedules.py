"""How the learning rate changes over a run: a factor on its peak for every step."""

from __future__ import annotations

import math

SCHEDULES = ("linear", "cosine", "constant", "slanted_triangular")


def lr_schedule(kind: str, step: int, total: int, warmup: int = 0, *, ratio: float = 32.0) -> float:
    """The factor on the learning rate at a step.

    With w warm-up steps of T in all, step t = 0 … T - 1, and s = (t - w) / (T - w) after warm-up:

        t < w                 (t + 1) / w
        "constant"            1
        "linear"              1 - s
        "cosine"              (1 + cos π s) / 2
        "slanted_triangular"  (1 + p (r - 1)) / r,  p = t / w while t < w, then 1 - s

    The slanted triangle rises and falls along lines between 1/r and 1. The factor is above 0 at
    every step of a run, so that none is lost: the others warm up from 1/w, and reach 0 at T only.

    Args:
        kind: one of `SCHEDULES`.
        step: t, counted from 0; T itself gives the value at the end.
        total: T >= 1.
        warmup: w in 0 … T; ULMFiT writes it as the share cut_frac = w / T, by default 0.1.
        ratio: r >= 1, how far below the peak the slanted triangle starts and ends.

    Raises:
        ValueError: an unknown kind, or a number out of its range.

    Sources: Loshchilov & Hutter 2017, "SGDR", equation 5 (cosine, one period); Howard & Ruder
    2018, "Universal Language Model Fine-tuning for Text Classification", equation 3 (slanted
    triangular learning rates; cut_frac = 0.1, ratio = 32).
    """
    if kind not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {SCHEDULES}, found {kind!r}")
    if not (0 <= step <= total and 0 <= warmup <= total and total >= 1):
        raise ValueError(
            f"expected 0 <= step <= total, 0 <= warmup <= total and total >= 1, found step={step}, "
            f"warmup={warmup}, total={total}"
        )
    if not 1 <= ratio < math.inf:
        raise ValueError(f"ratio: expected a number >= 1, found {ratio}")
    rising = step < warmup
    after = 0.0 if rising else (step - warmup) / max(1, total - warmup)  # s
    if kind == "slanted_triangular":
        height = step / warmup if rising else 1 - after  # p
        return (1 + height * (ratio - 1)) / ratio
    if rising:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    return 1 - after if kind == "linear" else (1 + math.cos(math.pi * after)) / 2


def lr_schedule_naive(
    kind: str, step: int, total: int, warmup: int = 0, *, ratio: float = 32.0
) -> float:
    """The slanted triangle with the names of equation 3; the others have one form only.

        cut = ⌊T · cut_frac⌋
        p = t / cut                                         if t < cut
        p = 1 - (t - cut) / (cut · (1/cut_frac - 1))        otherwise
        η_t = η_max (1 + p (ratio - 1)) / ratio

    Args as in `lr_schedule`, with cut = warmup = T · cut_frac a whole number; the result is
    η_t / η_max. Where the equation has to round, it falls too fast: T = 105, cut_frac = 0.1 gives
    cut = 10 and a last factor below 0.
    """
    if kind != "slanted_triangular" or warmup in (0, total):
        return lr_schedule(kind, step, total, warmup, ratio=ratio)
    cut_frac = warmup / total
    cut = warmup
    p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_frac - 1))
    return (1 + p * (ratio - 1)) / ratio
