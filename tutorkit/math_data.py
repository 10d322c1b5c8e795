"""The numbers behind the figures of the mathematics lesson; nothing here draws.

Every rule, loss and schedule comes from `tutorkit.losses`: a figure shows what training uses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from tutorkit.losses import (
    SCHEDULES,
    adamw_step,
    cross_entropy_grad,
    l2_penalty_step,
    lr_schedule,
    max_length_loss,
    max_length_loss_grad,
    max_length_loss_grad_as_published,
    sgd_step,
)

START = (-2.4, 1.5)  # where every path begins: high on the valley's wall, far from its floor's end
STEPS = 40
LOGITS = (2.0, 1.0, 0.5, -0.5, -1.5)


@functools.cache
def head_points() -> tuple[Float[Tensor, "points 2"], Float[Tensor, " points"]]:
    """Forty points (40, 2) of two overlapping classes (40,), the second feature 6 times as wide.

    The scales make the loss a long valley: its curvature across is 25 times that along it at θ = 0,
    and 160 times at the minimum.
    The overlap keeps the minimum finite, for no line separates the classes.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40, dtype=torch.float64) % 2
    features = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    features = features + (2 * labels - 1)[:, None] * torch.tensor([0.8, 0.3], dtype=torch.float64)
    return features * torch.tensor([1.0, 6.0], dtype=torch.float64), labels


def head_loss(theta: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """Mean cross-entropy of the head p(y = 1 | x) = σ(θᵀx) at each θ, without any penalty.

        L(θ) = 1/N Σ_i [ log(1 + exp(θᵀx_i)) - y_i θᵀx_i ]
    """
    features, labels = head_points()
    z = theta @ features.T  # (*batch, N)
    return (softplus(z) - labels * z).mean(dim=-1)


def head_grad(theta: Float[Tensor, "2"]) -> Float[Tensor, "2"]:
    """∇L(θ) = 1/N Σ_i (σ(θᵀx_i) - y_i) x_i."""
    features, labels = head_points()
    return (torch.sigmoid(features @ theta) - labels) @ features / len(labels)


@functools.cache
def head_minimum(penalty: float = 0.0) -> Float[Tensor, "2"]:
    """Where L(θ) + penalty/2 |θ|² is smallest, by Newton's method.

        θ ← θ - H⁻¹ (∇L + penalty θ)          H = 1/N Σ_i p_i (1 - p_i) x_i x_iᵀ + penalty I
    """
    features, _labels = head_points()
    squares = features[:, :, None] * features[:, None, :]  # x xᵀ, (N, 2, 2)
    theta = torch.zeros(2, dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(features @ theta)
        # A sum, no matrix product: on busy cores that one's threads wait for each other for 30 ms.
        hessian = ((p * (1 - p))[:, None, None] * squares).mean(dim=0)
        hessian = hessian + penalty * torch.eye(2, dtype=torch.float64)
        theta = theta - torch.linalg.solve(hessian, head_grad(theta) + penalty * theta)
    return theta


def descent_paths(
    learning_rate: float, weight_decay: float, momentum: float, steps: int = STEPS
) -> dict[str, Float[Tensor, "points 2"]]:
    """The head's θ (steps + 1, 2) under four update rules, all from `START`.

    Args:
        learning_rate: η.
        weight_decay: λ: decoupled decay everywhere but under Adam, where it is the L2 penalty
            λ/2 |θ|².
        momentum: μ of SGD with momentum and β₁ of both Adams; β₂ = 0.999.
        steps: updates of each rule.
    """
    rate, betas = {"learning_rate": learning_rate}, (momentum, 0.999)
    decay = {**rate, "weight_decay": weight_decay}
    rules = {
        "SGD": functools.partial(sgd_step, **decay),
        "SGD, momentum": functools.partial(sgd_step, **decay, momentum=momentum),
        "Adam, L2 penalty": functools.partial(
            l2_penalty_step, penalty=weight_decay, step=adamw_step, **rate, betas=betas
        ),
        "AdamW": functools.partial(adamw_step, **decay, betas=betas),
    }
    return {name: _path(rule, steps) for name, rule in rules.items()}


def _path(rule: Callable[..., tuple[Tensor, Any]], steps: int) -> Float[Tensor, "points 2"]:
    theta, state = torch.tensor(START, dtype=torch.float64), None
    path = [theta]
    for _ in range(steps):
        theta, state = rule(theta, head_grad(theta), state)
        path.append(theta)
    return torch.stack(path)


class Softmax(NamedTuple):
    """A softmax at a temperature and the gradient of its cross-entropy."""

    probabilities: Float[Tensor, " classes"]
    gradient: Float[Tensor, " classes"]
    entropy: float  # nats


def softmax_at(temperature: float, label: int) -> Softmax:
    """Softmax of `LOGITS` z at temperature T, and the gradient with respect to z.

        p = softmax(z/T)          ∂(-log p_y)/∂z = (p - onehot(y)) / T

    The factor 1/T is the chain rule's, from z to z/T. The entropy is -Σ p log p.
    """
    scaled = torch.tensor([LOGITS], dtype=torch.float64) / temperature  # (1, C)
    p = torch.softmax(scaled[0], dim=0)
    gradient = cross_entropy_grad(scaled, torch.tensor([label]))[0] / temperature
    return Softmax(p, gradient, torch.special.entr(p).sum().item())


class MaxLengthCurves(NamedTuple):
    """Over the lengths (P,): the loss of one sentence, its gradient and the published one."""

    lengths: Float[np.ndarray, " lengths"]
    loss: Float[np.ndarray, " lengths"]
    gradient: Float[np.ndarray, " lengths"]
    published: Float[np.ndarray, " lengths"]


def max_length_curves(n: int, delta: float) -> MaxLengthCurves:
    """The "Max Length" loss -log(H/n) for H in (0, 12], -1/H, and the published (n - δH)/n."""
    lengths = torch.linspace(0.1, 12, 120, dtype=torch.float64)
    curves = (
        lengths,
        torch.stack([max_length_loss(length[None], n) for length in lengths]),
        max_length_loss_grad(lengths, n),
        max_length_loss_grad_as_published(lengths, n, delta),
    )
    return MaxLengthCurves(*(curve.numpy() for curve in curves))


def length_of_agreement(n: int, delta: float) -> float:
    """The one length at which the published gradient is right.

        (n - δH)/n = -1/H   ⇔   δH² - nH - n = 0   ⇔   H = (n + √(n² + 4δn)) / 2δ

    The other root is negative: the product of the two is -n/δ.
    """
    return (n + math.sqrt(n**2 + 4 * delta * n)) / (2 * delta)


def max_length_descent(steps: int, start: float = 1.0) -> Float[np.ndarray, " points"]:
    """The length H after 0 … `steps` steps of gradient descent with η = 1 on -log(H/n), any n."""
    length = torch.tensor([start], dtype=torch.float64)
    path = [length]
    for _ in range(steps):
        length, _velocity = sgd_step(length, max_length_loss_grad(length), learning_rate=1.0)
        path.append(length)
    return torch.cat(path).numpy()


def schedule_curves(warmup_share: float, total: int) -> dict[str, list[float]]:
    """For each schedule the factor on the learning rate at steps 0 … `total`."""
    warmup = round(warmup_share * total)
    return {
        kind: [lr_schedule(kind, step, total, warmup) for step in range(total + 1)]
        for kind in SCHEDULES
    }
