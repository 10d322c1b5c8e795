"""One update of the weights, as a function: (θ, gradient, state) → (θ, state).

    θ ← θ - η ∇L - η λ θ

η is the learning rate. The last term is decoupled weight decay: it pulls each weight towards 0 by
the share ηλ and goes round the optimizer's direction. Under plain SGD that is the same update as
an L2 penalty λ/2 ‖θ‖² in the loss; under momentum, and above all under Adam, it is not.

Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithms 1 and 2,
propositions 1 and 2. There only the schedule's factor scales the decay; here, as in torch, all of
η does: their λ is our ηλ.

`tutorkit.optim` builds the optimizers that training uses; tests hold them equal to these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class AdamState(NamedTuple):
    """What Adam remembers of one tensor between steps."""

    first: Tensor  # m, the running mean of g
    second: Tensor  # v, the running mean of g²
    step: int  # t, the steps done


def sgd_step(
    theta: Tensor,
    grad: Tensor,
    velocity: Tensor | None = None,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """SGD with momentum μ and decoupled weight decay λ, in the form that costs one pass less.

        m ← μ m + g          θ ← (1 - η λ) θ - η m

    With μ = 0 and λ = 0 it is θ ← θ - η g.

    Args:
        theta: weights, any shape.
        grad: ∇L at theta, of the same shape.
        velocity: m of the step before; None at the first step, where m = g.
        learning_rate: η.
        weight_decay: λ.
        momentum: μ in [0, 1).

    Returns:
        The new weights and the new m; the arguments are left as they are.

    Raises:
        ValueError: shapes that differ, or a setting out of its range.

    Source: Loshchilov & Hutter 2019, algorithm 1 (SGDW).
    """
    _check(theta, grad, learning_rate, weight_decay, momentum=momentum)
    velocity = grad if velocity is None else momentum * velocity + grad
    return theta * (1 - learning_rate * weight_decay) - learning_rate * velocity, velocity


def sgd_step_naive(
    theta: Tensor,
    grad: Tensor,
    velocity: Tensor | None = None,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The update as the text writes it: θ ← θ - η m - η λ θ, with m the sum of μᵏ g_{t-k}."""
    _check(theta, grad, learning_rate, weight_decay, momentum=momentum)
    velocity = grad + (0 if velocity is None else momentum * velocity)
    return theta - learning_rate * velocity - learning_rate * weight_decay * theta, velocity


def adamw_step(
    theta: Tensor,
    grad: Tensor,
    state: AdamState | None = None,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Tensor, AdamState]:
    """AdamW with the two bias corrections folded into the step size, as optimizers run it.

        θ ← (1 - η λ) θ - η √(1 - β₂ᵗ)/(1 - β₁ᵗ) · m / (√v + ε √(1 - β₂ᵗ))

    which is `adamw_step_naive` with numerator and denominator multiplied by √(1 - β₂ᵗ): two
    scalars are corrected instead of two tensors.

    Args:
        theta: weights, any shape.
        grad: ∇L at theta, of the same shape.
        state: what the step before returned; None at the first.
        learning_rate: η.
        weight_decay: λ; with 0 this is Adam.
        betas: β₁ and β₂ in [0, 1).
        eps: ε, added to √v̂, in units of the gradient.

    Returns:
        The new weights and the new state; the arguments are left as they are.

    Raises:
        ValueError: shapes that differ, or a setting out of its range.

    Source: Kingma & Ba 2015, section 2 (the folded form); Loshchilov & Hutter 2019, algorithm 2.
    """
    _check(theta, grad, learning_rate, weight_decay, beta1=betas[0], beta2=betas[1])
    state = _moments(grad, state, betas)
    root = math.sqrt(1 - betas[1] ** state.step)
    size = learning_rate * root / (1 - betas[0] ** state.step)
    direction = state.first / (state.second.sqrt() + eps * root)
    return theta * (1 - learning_rate * weight_decay) - size * direction, state


def adamw_step_naive(
    theta: Tensor,
    grad: Tensor,
    state: AdamState | None = None,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Tensor, AdamState]:
    """AdamW line by line as in algorithm 2.

        m ← β₁ m + (1 - β₁) g          m̂ = m / (1 - β₁ᵗ)
        v ← β₂ v + (1 - β₂) g²         v̂ = v / (1 - β₂ᵗ)
        θ ← θ - η m̂ / (√v̂ + ε) - η λ θ

    m and v start at 0, so that E[m] = (1 - β₁ᵗ) E[g] while g keeps its distribution: the division
    takes that bias away.
    """
    _check(theta, grad, learning_rate, weight_decay, beta1=betas[0], beta2=betas[1])
    state = _moments(grad, state, betas)
    corrected_first = state.first / (1 - betas[0] ** state.step)
    corrected_second = state.second / (1 - betas[1] ** state.step)
    direction = corrected_first / (corrected_second.sqrt() + eps)
    return theta - learning_rate * direction - learning_rate * weight_decay * theta, state


def l2_penalty_step(
    theta: Tensor,
    grad: Tensor,
    state: Any = None,
    *,
    penalty: float,
    step: Callable[..., tuple[Tensor, Any]] = sgd_step,
    **settings: Any,
) -> tuple[Tensor, Any]:
    """A step on L(θ) + λ/2 ‖θ‖²: its gradient ∇L + λθ goes through the optimizer.

    With `step=sgd_step` and no momentum it equals decoupled decay with the same λ. With
    `step=adamw_step` (Adam with an L2 penalty) λθ is divided by √v̂ together with g, so weights
    with large gradients decay less: no λ gives the decoupled update.

    Args:
        theta: weights, any shape.
        grad: ∇L at theta, without the penalty's part.
        state: as `step` takes and returns it.
        penalty: λ.
        step: `sgd_step` or `adamw_step`, called without weight decay of its own.
        settings: passed to `step`.

    Raises:
        ValueError: a negative penalty, a weight decay beside it, or as `step`.

    Source: Loshchilov & Hutter 2019, propositions 1 (SGD) and 2 (adaptive methods).
    """
    if not 0 <= penalty < math.inf or "weight_decay" in settings:
        raise ValueError(
            f"expected penalty >= 0 and no weight_decay beside it, found penalty={penalty} and "
            f"weight_decay={settings.get('weight_decay')}: use one of the two kinds of decay"
        )
    return step(theta, grad + penalty * theta, state, **settings)


def global_norm(grads: Sequence[Tensor]) -> Tensor:
    """L2 norm of all gradients taken as one long vector: √(Σ_k ‖g_k‖²), a scalar."""
    if not grads:
        raise ValueError("expected at least one gradient, found an empty list")
    return torch.stack([grad.norm() for grad in grads]).norm()


def clip_by_global_norm(grads: Sequence[Tensor], max_norm: float) -> tuple[list[Tensor], Tensor]:
    """Scale all gradients by one factor so that their joint norm is at most c.

        g_k ← g_k · min(1, c / (‖g‖ + 10⁻⁶))

    One factor keeps the direction of the step, which clipping each tensor or each entry by itself
    does not. The 10⁻⁶ is torch's (`clip_grad_norm_`), against dividing by 0.

    Args:
        grads: gradients of any shapes.
        max_norm: c > 0, in units of the gradient; `float("inf")` clips nothing.

    Returns:
        New gradients, and the norm before clipping.

    Raises:
        ValueError: no gradients, max_norm not above 0, or a norm that is not finite.

    Source: Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural
    networks", algorithm 1.
    """
    norm = _norm_to_clip(grads, max_norm)
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return [grad * factor for grad in grads], norm


def clip_by_global_norm_naive(
    grads: Sequence[Tensor], max_norm: float
) -> tuple[list[Tensor], Tensor]:
    """As algorithm 1 reads: if ‖g‖ > c then g ← c g / ‖g‖. Args as in `clip_by_global_norm`."""
    norm = _norm_to_clip(grads, max_norm)
    return [grad * max_norm / norm if norm > max_norm else grad.clone() for grad in grads], norm


def _norm_to_clip(grads: Sequence[Tensor], max_norm: float) -> Tensor:
    norm = global_norm(grads)
    if not max_norm > 0 or not norm.isfinite():
        raise ValueError(
            f"expected max_norm > 0 and finite gradients, found max_norm={max_norm} and norm "
            f"{norm.item()}: a gradient with NaN or infinity can't be repaired by scaling"
        )
    return norm


def _moments(grad: Tensor, state: AdamState | None, betas: tuple[float, float]) -> AdamState:
    zero = torch.zeros_like(grad)
    first, second, step = state or AdamState(zero, zero, 0)
    return AdamState(
        betas[0] * first + (1 - betas[0]) * grad,
        betas[1] * second + (1 - betas[1]) * grad**2,
        step + 1,
    )


def _check(theta: Tensor, grad: Tensor, learning_rate: float, weight_decay: float, **shares: float):
    # A gradient of another shape would be spread over the weights without a word.
    if theta.shape != grad.shape:
        raise ValueError(
            f"expected a gradient of the weights' shape {tuple(theta.shape)}, found "
            f"{tuple(grad.shape)}"
        )
    for name, value in {"learning_rate": learning_rate, "weight_decay": weight_decay}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a number >= 0, found {value}")
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected a number in [0, 1), found {value}")
