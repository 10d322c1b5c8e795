"""The small change of an input that hurts most: adversarial training's inner step.

Around x the loss is ℓ(x + δ) ≈ ℓ(x) + ⟨g, δ⟩ with g = ∂ℓ/∂x. Over a ball of radius ε this linear
part is largest at

    ‖δ‖₂ ≤ ε:  δ = ε g / ‖g‖₂     since ⟨g, δ⟩ ≤ ‖g‖₂ ‖δ‖₂ (Cauchy–Schwarz), with value ε ‖g‖₂
    ‖δ‖∞ ≤ ε:  δ = ε sign(g)      since ⟨g, δ⟩ ≤ ‖g‖₁ ‖δ‖∞ (Hölder),         with value ε ‖g‖₁

Each row is perturbed by itself: norms are taken over all its entries, for token embeddings
(B, T, H) over T and H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NORMS = ("l2", "linf")


def fgm_perturbation(grad: Tensor, epsilon: float, norm: str = "l2") -> Tensor:
    """The maximiser of ⟨g, δ⟩ over ‖δ‖ ≤ ε, for each row. A row with g = 0 gets δ = 0.

    Args:
        grad: (B, …) g, the gradient of the loss with respect to the input (embeddings).
        epsilon: ε >= 0, the radius, in units of the input.
        norm: "l2" or "linf".

    Returns:
        δ of the shape of grad.

    Raises:
        ValueError: an unknown norm, a radius below 0, fewer than two dimensions, or a gradient
            that is not finite.

    Sources: Miyato, Dai & Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text
    Classification", equation 5 (l2); Goodfellow, Shlens & Szegedy 2015, "Explaining and Harnessing
    Adversarial Examples", section 3 (linf).
    """
    _check(grad, epsilon, norm)
    if norm == "linf":
        return epsilon * grad.sign()
    scaled, _ = _scaled(grad)
    length = _row_norm(scaled)
    return epsilon * scaled / length.where(length > 0, 1)


def fgm_perturbation_naive(grad: Tensor, epsilon: float, norm: str = "l2") -> Tensor:
    """ε g/‖g‖ or ε sign(g) as it reads: NaN for a row with g = 0. Args as in `fgm_perturbation`."""
    _check(grad, epsilon, norm)
    return epsilon * (grad / grad.abs() if norm == "linf" else grad / _row_norm(grad))


def pgd_perturbation(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: str = "l2",
) -> Tensor:
    """Several small steps of `fgm_perturbation`, each brought back into the ball.

        δ ← Π_ε(δ + α d(∂ℓ/∂x at x + δ)),     d the steepest direction of unit norm, from δ = 0

    Π_ε scales a row with ‖δ‖₂ > ε down to ε ("l2"), or cuts each entry to [-ε, ε] ("linf").

    Args:
        gradient: maps an input (B, …) to the gradient of the loss there, of the same shape.
        x: (B, …) the input.
        epsilon: ε >= 0, the radius.
        step_size: α > 0; steps · α below ε never reaches the boundary.
        steps: how many; with 1 and α >= ε it is `fgm_perturbation`.
        norm: "l2" or "linf".

    Returns:
        δ of the shape of x, with norm at most ε in every row.

    Raises:
        ValueError: as `fgm_perturbation`, a step size not above 0, no steps, or a gradient of
            another shape than x.

    Source: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    section 2.1.
    """
    if not step_size > 0 or steps < 1:
        raise ValueError(
            f"expected step_size > 0 and steps >= 1, found step_size={step_size}, steps={steps}"
        )
    delta = torch.zeros_like(x)
    for _ in range(steps):
        grad = gradient(x + delta)
        if grad.shape != x.shape:
            raise ValueError(
                f"expected a gradient of the input's shape {tuple(x.shape)}, found "
                f"{tuple(grad.shape)}"
            )
        delta = delta + fgm_perturbation(grad, step_size, norm)
        delta = project(delta, epsilon, norm)
    return delta


def project(delta: Tensor, epsilon: float, norm: str = "l2") -> Tensor:
    """Π_ε: the nearest point to δ in the ball of radius ε, for each row."""
    _check(delta, epsilon, norm)
    if norm == "linf":
        return delta.clamp(-epsilon, epsilon)
    scaled, largest = _scaled(delta)
    inside = _row_norm(scaled) <= epsilon / largest
    return delta.where(inside, fgm_perturbation(delta, epsilon))  # outside: ε δ / ‖δ‖₂


def _scaled(t: Tensor) -> tuple[Tensor, Tensor]:
    """Each row over its largest entry, and that entry: so no square under- or overflows."""
    largest = t.abs().amax(dim=tuple(range(1, t.ndim)), keepdim=True)
    return t / largest.where(largest > 0, 1), largest


def _row_norm(t: Tensor) -> Tensor:
    """L2 norm of each row, with dimensions of size 1 kept: (B, 1, …)."""
    return t.pow(2).sum(dim=tuple(range(1, t.ndim)), keepdim=True).sqrt()


def _check(t: Tensor, epsilon: float, norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {NORMS}, found {norm!r}")
    if t.ndim < 2:
        raise ValueError(f"expected one row for each example, (B, …), found shape {tuple(t.shape)}")
    if not 0 <= epsilon < float("inf"):
        raise ValueError(f"expected a radius >= 0, found {epsilon}")
    if not t.isfinite().all():
        raise ValueError("expected a finite gradient, found NaN or infinity in it")
