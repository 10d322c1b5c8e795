"""Losses over tokens: the next token, a tag for each token, a span of tokens.

All are the cross-entropy of lesson 01, taken at every position that counts; what differs is which
positions count and what N is. The mean is over all positions of the batch, not the mean of the
rows' means, in which a token of a short text would weigh more.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutorkit.losses.cross_entropy import (
    IGNORE_INDEX,
    cross_entropy,
    cross_entropy_grad,
    cross_entropy_naive,
)

TokenLogits = Float[Tensor, "batch tokens classes"]
TokenLabels = Int[Tensor, "batch tokens"]
PositionLogits = Float[Tensor, "batch tokens"]
Positions = Int[Tensor, " batch"]
Scalar = Float[Tensor, ""]


def token_cross_entropy(logits: TokenLogits, labels: TokenLabels) -> Scalar:
    """What language models and summarizers optimise, under teacher forcing.

        L = -1/N Σ_{b,t} log p(y_{b,t+1} | y_{b,≤t}, x_b)

    The logits at position t have read the true tokens up to t and are scored on token t + 1, hence
    the shift by one: logits[:, :-1] against labels[:, 1:].

    Args:
        logits: (B, T, V) scores of the next token at each position.
        labels: (B, T) token ids of the same sequence, not shifted; `IGNORE_INDEX` on the prompt
            and on padding.

    Returns:
        The loss in nats per token, a scalar; 0 where nothing is left to predict.

    Raises:
        ValueError: shapes that do not match, or an id out of range.

    Source: Williams & Zipser 1989, "A Learning Algorithm for Continually Running Fully Recurrent
    Neural Networks" (teacher forcing).
    """
    _check_tokens(logits, labels)
    return cross_entropy(*_shifted(logits, labels))


def token_cross_entropy_naive(logits: TokenLogits, labels: TokenLabels) -> Scalar:
    """The double sum as it reads, position by position. Args as in `token_cross_entropy`."""
    _check_tokens(logits, labels)
    terms = []
    for row, tokens in zip(logits, labels, strict=True):
        for t in range(len(tokens) - 1):
            if tokens[t + 1] != IGNORE_INDEX:
                terms.append(cross_entropy_naive(row[t : t + 1], tokens[t + 1 : t + 2]))
    return torch.stack(terms).mean() if terms else logits.sum() * 0


def token_cross_entropy_grad(logits: TokenLogits, labels: TokenLabels) -> TokenLogits:
    """∂L/∂logits_t = (p_t - onehot(y_{t+1})) / N; the last position of each row gets 0."""
    _check_tokens(logits, labels)
    grad = torch.zeros_like(logits)
    shifted = cross_entropy_grad(*_shifted(logits, labels))
    grad[:, :-1] = shifted.reshape(grad[:, :-1].shape)
    return grad


def tagging_loss(logits: TokenLogits, labels: TokenLabels) -> Scalar:
    """Mean cross-entropy over the tokens that carry a tag (BIO tagging).

        L = -1/N Σ_{(b,t) tagged} log p_{b,t}(y_{b,t})

    A word that the tokenizer cuts in pieces is tagged on its first piece; its other pieces,
    special tokens and padding are labelled `IGNORE_INDEX`.

    Args:
        logits: (B, T, C) scores of the C tags (B-, I- of each type, and O) at each token.
        labels: (B, T) tag numbers, or `IGNORE_INDEX`.

    Returns:
        The loss in nats per tagged token, a scalar; 0 where no token is tagged.

    Raises:
        ValueError: shapes that do not match, or a tag out of range.

    Sources: Ramshaw & Marcus 1995, "Text Chunking using Transformation-Based Learning" (the
    tags); Devlin et al. 2019, "BERT", section 5.3 (the first piece).
    """
    _check_tokens(logits, labels)
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def tagging_loss_naive(logits: TokenLogits, labels: TokenLabels) -> Scalar:
    """The sum as it reads, token by token. Args as in `tagging_loss`."""
    _check_tokens(logits, labels)
    terms = [
        cross_entropy_naive(logits[b, t : t + 1], labels[b, t : t + 1])
        for b, t in (labels != IGNORE_INDEX).nonzero().tolist()
    ]
    return torch.stack(terms).mean() if terms else logits.sum() * 0


def tagging_loss_grad(logits: TokenLogits, labels: TokenLabels) -> TokenLogits:
    """∂L/∂logits = (p - onehot(y)) / N at tagged tokens, 0 elsewhere."""
    _check_tokens(logits, labels)
    return cross_entropy_grad(logits.flatten(0, 1), labels.flatten()).reshape(logits.shape)


def span_loss(
    start_logits: PositionLogits,
    end_logits: PositionLogits,
    starts: Positions,
    ends: Positions,
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
) -> Scalar:
    """Where an answer starts and ends: two softmaxes over the positions of the text.

        L = -1/(2N) Σ_i (log p^start_i(s_i) + log p^end_i(e_i))

    Args:
        start_logits: (B, T) one score a position.
        end_logits: (B, T).
        starts: (B,) position of the first token of the answer, or `IGNORE_INDEX`.
        ends: (B,) position of its last token, or `IGNORE_INDEX` in the same rows.
        attention_mask: (B, T), 0 on padding, which gets probability 0; None: every position
            counts.

    Returns:
        The loss in nats, a scalar; 0 where every row is ignored.

    Raises:
        ValueError: shapes that do not match, a position out of range or on padding, an end before
            its start, or a row that ignores one of the two only.

    Source: Devlin et al. 2019, "BERT", section 4.2; the half is that of transformers.
    """
    start_logits, end_logits = _check_spans(start_logits, end_logits, starts, ends, attention_mask)
    return (cross_entropy(start_logits, starts) + cross_entropy(end_logits, ends)) / 2


def span_loss_naive(
    start_logits: PositionLogits,
    end_logits: PositionLogits,
    starts: Positions,
    ends: Positions,
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
) -> Scalar:
    """The sum as it reads, over the real positions of each row. Args as in `span_loss`."""
    _check_spans(start_logits, end_logits, starts, ends, attention_mask)
    mask = torch.ones_like(start_logits) if attention_mask is None else attention_mask
    terms = []
    for i in range(len(starts)):
        for logits, position in ((start_logits[i], starts[i]), (end_logits[i], ends[i])):
            if position != IGNORE_INDEX:
                p = logits.exp() / logits[mask[i] == 1].exp().sum()  # (T,)
                terms.append(-p[position].log())
    return torch.stack(terms).mean() if terms else (start_logits.sum() + end_logits.sum()) * 0


def span_loss_grad(
    start_logits: PositionLogits,
    end_logits: PositionLogits,
    starts: Positions,
    ends: Positions,
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
) -> tuple[PositionLogits, PositionLogits]:
    """(p - onehot) / (2N) for the start and for the end scores; 0 on padding."""
    start_logits, end_logits = _check_spans(start_logits, end_logits, starts, ends, attention_mask)
    return cross_entropy_grad(start_logits, starts) / 2, cross_entropy_grad(end_logits, ends) / 2


def _shifted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def _check_tokens(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"expected logits (B, T, C) and labels (B, T), found shapes {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )


def _check_spans(
    start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Check the spans; return the scores with padding at the lowest number there is."""
    shapes = [tuple(t.shape) for t in (start_logits, end_logits, starts, ends)]
    if start_logits.ndim != 2 or shapes != [shapes[0], shapes[0], shapes[0][:1], shapes[0][:1]]:
        raise ValueError(f"expected scores (B, T), (B, T) and positions (B,), (B,), found {shapes}")
    if mask is None:
        mask = torch.ones_like(start_logits)
    elif mask.shape != start_logits.shape:
        raise ValueError(f"expected attention_mask (B, T) = {shapes[0]}, found {tuple(mask.shape)}")
    kept = starts != IGNORE_INDEX
    if (kept != (ends != IGNORE_INDEX)).any() or (ends[kept] < starts[kept]).any():
        raise ValueError(
            "expected each row's end at or after its start, or both ignored, found starts "
            f"{starts.tolist()} and ends {ends.tolist()}"
        )
    for positions in (starts[kept], ends[kept]):
        inside = (positions >= 0) & (positions < start_logits.shape[1])
        if not inside.all() or (mask[kept].gather(1, positions[:, None].long()) == 0).any():
            raise ValueError(
                f"expected positions of real tokens in 0…{start_logits.shape[1] - 1}, found "
                f"{positions.tolist()}: a position out of range or on padding"
            )
    # Not -inf: an infinite score times a gradient of 0 is NaN.
    lowest = torch.finfo(start_logits.dtype).min
    return start_logits.where(mask == 1, lowest), end_logits.where(mask == 1, lowest)
