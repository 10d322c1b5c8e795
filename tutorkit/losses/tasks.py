"""Several losses in one: fixed weights, or weights learned from each task's uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Losses = Float[Tensor, " tasks"]
Scalar = Float[Tensor, ""]
KINDS = ("classification", "regression")


def multitask_loss(losses: Losses, weights: Losses) -> Scalar:
    """L = Σ_k w_k L_k, as one inner product; ∂L/∂L_k = w_k.

    Args:
        losses: (K,) the tasks' mean losses.
        weights: (K,) w_k >= 0, not all 0. Only their ratios matter to the direction of a step;
            their sum scales the learning rate.

    Raises:
        ValueError: shapes that differ, no task, or weights below 0 or all 0.

    Source: Caruana 1997, "Multitask Learning" (one net, the sum of several losses).
    """
    _check_weights(losses, weights)
    return losses @ weights


def multitask_loss_naive(losses: Losses, weights: Losses) -> Scalar:
    """The sum as it reads, task by task. Args as in `multitask_loss`."""
    _check_weights(losses, weights)
    total = torch.zeros_like(losses[0])
    for loss, weight in zip(losses, weights, strict=True):
        total = total + weight * loss
    return total


class UncertaintyGrads(NamedTuple):
    """Gradients with respect to the tasks' losses and to their log variances."""

    losses: Losses
    log_variances: Losses


def uncertainty_weighted_loss(
    losses: Losses, log_variances: Losses, kinds: Sequence[str] | None = None
) -> Scalar:
    """L = Σ_k c_k e^{-s_k} L_k + s_k / 2, with s_k = log σ_k² learned beside the weights.

    c_k is 1 for cross-entropy and 1/2 for the squared error, as the likelihoods give it (a softmax
    with temperature σ², a Gaussian with variance σ²). A noisy task gets a large σ and little
    weight; the term s/2 keeps σ from growing without end. For fixed losses the optimum is
    σ_k² = 2 c_k L_k, where each task contributes a constant 1/2 to the first term.

    s is learned instead of σ: e^{-s} is above 0 for every s, and nothing is divided by.

    Args:
        losses: (K,) mean losses: cross-entropy in nats, or mean squared error (without a half).
        log_variances: (K,) s_k.
        kinds: "classification" or "regression" for each task; None: classification for all.

    Raises:
        ValueError: shapes that differ, no task, or an unknown kind.

    Source: Kendall, Gal & Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses",
    equations 7 (regression) and 10 (classification, by their approximation).
    """
    scale = _check_kinds(losses, log_variances, kinds)
    return (scale * (-log_variances).exp() * losses + log_variances / 2).sum()


def uncertainty_weighted_loss_naive(
    losses: Losses, log_variances: Losses, kinds: Sequence[str] | None = None
) -> Scalar:
    """In σ as the paper writes it: Σ_k c_k L_k / σ_k² + log σ_k. Args as in the other form."""
    scale = _check_kinds(losses, log_variances, kinds)
    sigma = log_variances.exp().sqrt()
    total = torch.zeros_like(losses[0])
    for k in range(len(losses)):
        total = total + scale[k] / sigma[k] ** 2 * losses[k] + sigma[k].log()
    return total


def uncertainty_weighted_loss_grad(
    losses: Losses, log_variances: Losses, kinds: Sequence[str] | None = None
) -> UncertaintyGrads:
    """∂L/∂L_k = c_k e^{-s_k}, the task's weight;  ∂L/∂s_k = 1/2 - c_k e^{-s_k} L_k."""
    weights = _check_kinds(losses, log_variances, kinds) * (-log_variances).exp()
    return UncertaintyGrads(weights, 0.5 - weights * losses)


def _check_weights(losses: Tensor, weights: Tensor) -> None:
    _check_tasks(losses, weights)
    if not (weights >= 0).all() or not weights.any():  # the first is true for NaN as well
        raise ValueError(f"expected weights >= 0, at least one above 0, found {weights.tolist()}")


def _check_kinds(losses: Tensor, s: Tensor, kinds: Sequence[str] | None) -> Tensor:
    """Check the arguments; return c_k for each task."""
    _check_tasks(losses, s)
    kinds = ["classification"] * len(losses) if kinds is None else kinds
    if len(kinds) != len(losses) or not set(kinds) <= set(KINDS):
        raise ValueError(
            f"kinds: expected one of {KINDS} for each of {len(losses)} losses, found {list(kinds)}"
        )
    return torch.tensor([1.0 if k == "classification" else 0.5 for k in kinds]).to(losses)


def _check_tasks(losses: Tensor, others: Tensor) -> None:
    if losses.ndim != 1 or not len(losses) or losses.shape != others.shape:
        raise ValueError(
            f"expected two tensors (K,) with K >= 1, found shapes {tuple(losses.shape)} and "
            f"{tuple(others.shape)}"
        )
