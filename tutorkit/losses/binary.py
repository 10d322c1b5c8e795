"""Two classes with one score: the sigmoid and its cross-entropy.

σ(z) = 1 / (1 + e⁻ᶻ) is the softmax of the two logits (0, z), so a head with one score and a head
with two are the same model: only the difference z = z_1 - z_0 of two logits matters.

    ℓ = -y log σ(z) - (1 - y) log(1 - σ(z)) = softplus(z) - y z          ∂ℓ/∂z = σ(z) - y

Source: Goodfellow, Bengio & Courville 2016, "Deep Learning", section 6.2.2.2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutorkit.losses.cross_entropy import (
    IGNORE_INDEX,
    check_reduction,
    reduce_losses,
    without_ignored,
)


def binary_cross_entropy_naive(
    logits: Float[Tensor, " rows"], labels: Int[Tensor, " rows"], reduction: str = "mean"
) -> Float[Tensor, "..."]:
    """-y log σ(z) - (1 - y) log(1 - σ(z)): infinite where σ rounds to 0 or 1, and NaN where a
    term 0 · ∞ arises. Args, returns and raises as in `binary_cross_entropy`.
    """
    kept, y = _check(logits, labels, reduction)
    p = 1 / (1 + (-logits).exp())
    return reduce_losses(-y * p.log() - (1 - y) * (1 - p).log(), kept, reduction)


def binary_cross_entropy(
    logits: Float[Tensor, " rows"], labels: Int[Tensor, " rows"], reduction: str = "mean"
) -> Float[Tensor, "..."]:
    """Binary cross-entropy in the stable form  softplus(z) - y z,  in nats.

    Args:
        logits: (N,) scores; above 0 means that class 1 is more probable.
        labels: (N,) 0 or 1, or `IGNORE_INDEX` for rows to leave out.
        reduction: "mean" over the rows that count, "sum" over them, or "none" for (N,) losses.

    Returns:
        The loss, a scalar for "mean" and "sum"; 0 where every row is ignored.

    Raises:
        ValueError: a label other than these, shapes that differ, or an unknown reduction.
    """
    kept, y = _check(logits, labels, reduction)
    logits = without_ignored(logits, kept)
    # softplus(z) = log(e⁰ + eᶻ); torch's own softplus is cut off to z above 20
    softplus = torch.logaddexp(logits, torch.zeros_like(logits))
    return reduce_losses(softplus - y * logits, kept, reduction)


def binary_cross_entropy_grad(
    logits: Float[Tensor, " rows"], labels: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Gradient of the mean loss with respect to the scores: (σ(z) - y) / N; ignored rows give 0."""
    kept, y = _check(logits, labels, "mean")
    p = torch.sigmoid(without_ignored(logits, kept))
    return (p - y) * kept / kept.sum().clamp(min=1)


def _check(logits: Tensor, labels: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Check shapes, labels and reduction; return the rows that count, and y as numbers."""
    check_reduction(reduction)
    if logits.ndim != 1 or labels.shape != logits.shape:
        raise ValueError(
            f"expected logits (N,) and labels (N,), found shapes {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    kept = labels != IGNORE_INDEX
    wrong = kept & (labels != 0) & (labels != 1)
    if wrong.any():
        raise ValueError(
            f"expected labels 0, 1 or {IGNORE_INDEX} (ignored), found {labels[wrong][0].item()}"
        )
    return kept, labels.where(kept, 0).to(logits.dtype)
