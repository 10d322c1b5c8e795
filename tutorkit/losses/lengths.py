"""The "Max Length" loss of a published tutorial on summarization, and what could stand instead.

For a summary of n sentences with lengths H_1 … H_n > 0 (in tokens) the text writes

    ℓ(H, n) = -Σ_i log(H_i / n)          and states          ∂ℓ/∂H_i = -(1/n) (δ H_i - n)

and that training maximises ℓ. The true gradient is ∂ℓ/∂H_i = -1/H_i: n does not occur in it. It is
negative everywhere, so that minimising ℓ makes every H_i grow without end and maximising it sends
every H_i to 0; ℓ has no finite optimum either way, and no constant δ repairs the stated gradient.
`notebooks/01_math.ipynb` goes through it step by step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Lengths = Float[Tensor, " sentences"]
Scalar = Float[Tensor, ""]


def max_length_loss_naive(lengths: Lengths, n: float | None = None) -> Scalar:
    """ℓ = -Σ_i log(H_i / n) as the text writes it. Args and errors as in `max_length_loss`."""
    n = _check(lengths, n)
    return -(lengths / n).log().sum()


def max_length_loss(lengths: Lengths, n: float | None = None) -> Scalar:
    """ℓ = N log n - Σ_i log H_i: the same, with what depends on n taken out of the sum.

    Args:
        lengths: (N,) sentence lengths H_i > 0, in tokens.
        n: the divisor; None means N, the number of sentences, as in the text.

    Returns:
        The loss in nats, a scalar; it can have either sign.

    Raises:
        ValueError: no sentence, a length that is not above 0 (the logarithm has no value there),
            or n not above 0.
    """
    n = _check(lengths, n)
    return len(lengths) * torch.log(lengths.new_tensor(n)) - lengths.log().sum()


def max_length_loss_grad(lengths: Lengths, n: float | None = None) -> Lengths:
    """∂ℓ/∂H_i = -1/H_i, for every n, since log(H_i/n) = log H_i - log n. Args as in the loss."""
    _check(lengths, n)
    return -1 / lengths


def max_length_loss_grad_as_published(
    lengths: Lengths, n: float | None = None, delta: float = 1.0
) -> Lengths:
    """What the text states: -(1/n) (δ H_i - n). It is not the gradient of the loss.

    Setting it equal to -1/H gives δ H² - n H - n = 0, whose roots have the product -n/δ: for δ > 0
    the two agree at the one length H = (n + √(n² + 4 δ n)) / (2δ), for δ <= 0 nowhere.

    Args:
        lengths: (N,) sentence lengths H_i > 0, in tokens.
        n: as in the loss.
        delta: δ, which the text uses and does not define.
    """
    n = _check(lengths, n)
    return -(delta * lengths - n) / n


def length_balance_loss_naive(lengths: Lengths) -> Scalar:
    """ℓ = -Σ_i log h_i with h_i = n H_i / Σ_k H_k. Args and errors as in `length_balance_loss`."""
    _check(lengths, None)
    return -(len(lengths) * lengths / lengths.sum()).log().sum()


def length_balance_loss(lengths: Lengths) -> Scalar:
    """The smallest repair: the same sum over lengths that are first scaled to sum to n.

        ℓ = n log(Σ_k H_k / n) - Σ_i log H_i          h_i = n H_i / Σ_k H_k

    It is n times the divergence KL(uniform ‖ H/ΣH), so it is 0 where all lengths are equal and
    above 0 elsewhere. In other words: minimise -Σ log h_i subject to Σ h_i = n; the Lagrangian's
    -1/h_i + μ = 0 gives h_i = 1/μ, and the constraint μ = 1, h_i = 1. Being unchanged by a common
    factor on all lengths, it says nothing about how long a summary should be.

    Args:
        lengths: (n,) lengths H_i > 0, in tokens.

    Returns:
        The loss in nats, a scalar, at least 0 to rounding.

    Raises:
        ValueError: no sentence, or a length that is not above 0.
    """
    n = _check(lengths, None)
    return n * (lengths.sum() / n).log() - lengths.log().sum()


def length_balance_loss_grad(lengths: Lengths) -> Lengths:
    """∂ℓ/∂H_i = n / Σ_k H_k - 1 / H_i: below the mean length the loss pulls up, above it down."""
    n = _check(lengths, None)
    return n / lengths.sum() - 1 / lengths


def expected_length_naive(stop_logits: Float[Tensor, " steps"]) -> Scalar:
    """Σ_t t · P(length = t), written with the probability of each length. See `expected_length`."""
    stop = torch.sigmoid(stop_logits)  # q_t
    total, going = stop.new_zeros(()), stop.new_ones(())
    for t in range(len(stop)):
        total = total + (t + 1) * going * stop[t]
        going = going * (1 - stop[t])
    return total + len(stop) * going  # what has not stopped is cut at T


def expected_length(stop_logits: Float[Tensor, " steps"]) -> Scalar:
    """A length that has a gradient: the mean length under a model's probabilities of stopping.

        E = Σ_{t=0}^{T-1} S_t,   S_0 = 1,  S_t = Π_{k<t} (1 - q_k),   q_k = σ(z_k)

    A decoded length is a whole number, so its derivative with respect to the weights is 0 almost
    everywhere. The probability q_t of ending after token t is smooth, hence so is E. The repair
    "token cross-entropy + λ (E/τ - 1)²" for a wished length τ is built on it.

    Args:
        stop_logits: (T,) z_t, the log-odds of the end token at each step; cut at T tokens.

    Returns:
        The expected number of tokens, between 1 and T; 0 for T = 0.
    """
    # log(1 - σ(z)) = logsigmoid(-z): a product of many factors without underflow on the way.
    going = torch.nn.functional.logsigmoid(-stop_logits).cumsum(0)[:-1].exp()  # S_1 … S_{T-1}
    return going.sum() + (1.0 if len(stop_logits) else 0.0)


def expected_length_grad(stop_logits: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """∂E/∂z_k = -q_k Σ_{t>k} S_t: stopping sooner at k shortens all that comes after it."""
    going = torch.nn.functional.logsigmoid(-stop_logits).cumsum(0)[:-1].exp()  # S_1 … S_{T-1}
    after = torch.cat([going.flip(0).cumsum(0).flip(0), going.new_zeros(1)])[: len(stop_logits)]
    return -torch.sigmoid(stop_logits) * after


def _check(lengths: Tensor, n: float | None) -> float:
    """Check the domain; return the divisor."""
    if lengths.ndim != 1 or not len(lengths) or not (lengths > 0).all():  # false for NaN as well
        raise ValueError(
            f"expected one length above 0 for each sentence, found {lengths.tolist()}: the "
            "logarithm of a length is defined for lengths above 0 only; leave empty sentences out"
        )
    if n is not None and not n > 0:
        raise ValueError(f"n: expected a number above 0 (the number of sentences), found {n}")
    return float(len(lengths) if n is None else n)
