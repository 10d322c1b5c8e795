"""Training a few added weights beside frozen ones: LoRA and the bottleneck adapter."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Inputs = Float[Tensor, "rows inputs"]
Outputs = Float[Tensor, "rows outputs"]
Weight = Float[Tensor, "outputs inputs"]
Down = Float[Tensor, "rank inputs"]
Up = Float[Tensor, "outputs rank"]


class LoraGrads(NamedTuple):
    """Gradients with respect to the layer's input and to LoRA's two matrices."""

    x: Inputs
    a: Down
    b: Up


def lora_forward(x: Inputs, weight: Weight, a: Down, b: Up, alpha: float) -> Outputs:
    """y = x W₀ᵀ + (α/r) (x Aᵀ) Bᵀ: a frozen layer plus a trained one of rank r.

    The product BA is never formed: through r numbers a row the two factors cost r (d_in + d_out)
    multiplications instead of d_in · d_out. With B = 0 at the start, y is the frozen layer's.

    Args:
        x: (N, d_in) inputs.
        weight: (d_out, d_in) W₀, frozen.
        a: (r, d_in) A, random at the start.
        b: (d_out, r) B, zero at the start.
        alpha: α; α/r scales the update, so that r can be changed without a new learning rate.

    Returns:
        (N, d_out).

    Raises:
        ValueError: shapes that do not fit together.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3 and
    section 4.1.
    """
    scale = _check_lora(x, weight, a, b, alpha)
    return x @ weight.T + scale * (x @ a.T) @ b.T


def lora_forward_naive(x: Inputs, weight: Weight, a: Down, b: Up, alpha: float) -> Outputs:
    """y = x (W₀ + (α/r) B A)ᵀ as equation 3 reads; also the merged form, used after training."""
    scale = _check_lora(x, weight, a, b, alpha)
    return x @ (weight + scale * b @ a).T


def lora_grads(
    x: Inputs, weight: Weight, a: Down, b: Up, alpha: float, grad_output: Outputs
) -> LoraGrads:
    """The chain rule through `lora_forward`, with s = α/r and G = ∂L/∂y.

        ∂L/∂A = s Bᵀ Gᵀ x  (r, d_in)
        ∂L/∂B = s Gᵀ x Aᵀ  (d_out, r)
        ∂L/∂x = G W₀ + s G B A  (N, d_in)

    At the start B = 0, so A gets no gradient in the first step and B moves first.

    Args:
        x, weight, a, b, alpha: as in `lora_forward`.
        grad_output: (N, d_out) G.

    Raises:
        ValueError: shapes that do not fit together.
    """
    scale = _check_lora(x, weight, a, b, alpha)
    if grad_output.shape != (len(x), len(weight)):
        raise ValueError(
            f"expected grad_output (N, d_out) = {(len(x), len(weight))}, found "
            f"{tuple(grad_output.shape)}"
        )
    through_b = grad_output @ b  # (N, r)
    return LoraGrads(
        x=grad_output @ weight + scale * through_b @ a,
        a=scale * through_b.T @ x,
        b=scale * grad_output.T @ (x @ a.T),
    )


class AdapterGrads(NamedTuple):
    """Gradients with respect to an adapter's input and its four tensors."""

    hidden: Tensor
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


def adapter_forward(
    hidden: Float[Tensor, "rows hidden"],
    down: Float[Tensor, "bottleneck hidden"],
    down_bias: Float[Tensor, " bottleneck"],
    up: Float[Tensor, "hidden bottleneck"],
    up_bias: Float[Tensor, " hidden"],
) -> Float[Tensor, "rows hidden"]:
    """y = h + U φ(D h + c) + d: a bottleneck with a skip connection, φ = GELU.

    With U and d at (almost) 0 it is the identity, so a pretrained model starts as it was.
    2 m H + H + m weights for a bottleneck of m.

    Args:
        hidden: (N, H) h.
        down: (m, H) D.
        down_bias: (m,) c.
        up: (H, m) U.
        up_bias: (H,) d.

    Returns:
        (N, H).

    Raises:
        ValueError: shapes that do not fit together.

    Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1 and
    figure 2; GELU x Φ(x): Hendrycks & Gimpel 2016, section 2.
    """
    _check_adapter(hidden, down, down_bias, up, up_bias)
    return hidden + torch.nn.functional.gelu(hidden @ down.T + down_bias) @ up.T + up_bias


def adapter_grads(
    hidden: Float[Tensor, "rows hidden"],
    down: Float[Tensor, "bottleneck hidden"],
    down_bias: Float[Tensor, " bottleneck"],
    up: Float[Tensor, "hidden bottleneck"],
    up_bias: Float[Tensor, " hidden"],
    grad_output: Float[Tensor, "rows hidden"],
) -> AdapterGrads:
    """The chain rule through `adapter_forward`, with G = ∂L/∂y and a = D h + c.

        S = (G U) φ'(a)  (N, m),   φ'(a) = Φ(a) + a exp(-a²/2) / √(2π)

        ∂L/∂h = G + S D        ∂L/∂D = Sᵀ h        ∂L/∂c = Σ S        ∂L/∂U = Gᵀ φ(a)
        ∂L/∂d = Σ G

    The G in ∂L/∂h is the skip connection's: the gradient reaches lower layers undamped.
    """
    _check_adapter(hidden, down, down_bias, up, up_bias)
    if grad_output.shape != hidden.shape:
        raise ValueError(
            f"expected grad_output {tuple(hidden.shape)}, found {tuple(grad_output.shape)}"
        )
    a = hidden @ down.T + down_bias  # (N, m)
    density = (-(a**2) / 2).exp() / math.sqrt(2 * math.pi)
    slope = (1 + torch.erf(a / math.sqrt(2))) / 2 + a * density
    inner = (grad_output @ up) * slope  # S
    return AdapterGrads(
        hidden=grad_output + inner @ down,
        down=inner.T @ hidden,
        down_bias=inner.sum(dim=0),
        up=grad_output.T @ torch.nn.functional.gelu(a),
        up_bias=grad_output.sum(dim=0),
    )


def _check_lora(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> float:
    """Check the shapes; return α/r."""
    shapes = [tuple(t.shape) for t in (x, weight, a, b)]
    fits = all(len(shape) == 2 for shape in shapes) and (
        x.shape[1] == weight.shape[1] == a.shape[1]
        and b.shape == (len(weight), len(a))
        and len(a) >= 1
    )
    if not fits:
        raise ValueError(
            "expected x (N, d_in), weight (d_out, d_in), a (r, d_in) and b (d_out, r) with "
            f"r >= 1, found {shapes}"
        )
    return alpha / len(a)


def _check_adapter(
    hidden: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor
) -> None:
    shapes = [tuple(t.shape) for t in (hidden, down, down_bias, up, up_bias)]
    if len(shapes[0]) != 2 or len(shapes[1]) != 2:
        expected = None
    else:
        (rows, width), (size, _) = shapes[:2]
        expected = [(rows, width), (size, width), (size,), (width, size), (width,)]
    if shapes != expected:
        raise ValueError(
            "expected hidden (N, H), down (m, H), down_bias (m,), up (H, m) and up_bias (H,), "
            f"found {shapes}"
        )
