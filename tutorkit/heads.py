"""From hidden states to class scores: the part of a classifier that fine-tuning adds.

A backbone turns token ids (B, T) into hidden states (B, T, H). A head pools each row's T vectors
into one and maps it to C scores. The training code uses the heads that `transformers` ships, so
that a saved model loads without this package; the functions here are those heads in readable form,
and a test holds the two equal.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Hidden = Float[Tensor, "batch tokens hidden"]
Mask = Int[Tensor, "batch tokens"]
Pooled = Float[Tensor, "batch hidden"]

POOLINGS = ("cls", "mean", "last")


def pool(hidden: Hidden, attention_mask: Mask, how: str) -> Pooled:
    """One vector a row: the first token's, the mean over real tokens, or the last real token's.

    Args:
        hidden: (B, T, H) hidden states.
        attention_mask: (B, T), 1 on real tokens and 0 on padding.
        how: "cls" (encoders trained with a first special token), "mean", or "last" (decoders:
            only the last token has seen the whole text). `transformers` finds that last token by
            its id: an end-of-text token that a text itself ends with, and that also serves as
            padding, is skipped there; here the mask decides.

    Raises:
        ValueError: an unknown `how`, or a row without a real token.
    """
    if how not in POOLINGS:
        raise ValueError(f"how: expected one of {POOLINGS}, found {how!r}")
    if (attention_mask.sum(dim=1) == 0).any():
        raise ValueError("expected a real token in every row, found a row that is all padding")
    if how == "cls":
        return hidden[:, 0]
    if how == "mean":
        weights = attention_mask[:, :, None].to(hidden.dtype)  # (B, T, 1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (positions * attention_mask).argmax(dim=1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


class ClassificationHead(torch.nn.Module):
    """Scores z = W v + b for a pooled vector v; for encoders v first passes tanh(W' v + b').

    Args:
        hidden_size: H, the width of the backbone.
        num_labels: C, the number of classes.
        dense: whether the tanh layer is there (BERT's "pooler") or not (decoders).
        dropout: share of v's entries set to zero in training.
    """

    def __init__(self, hidden_size: int, num_labels: int, dense: bool = True, dropout: float = 0.1):
        super().__init__()
        self.dense = torch.nn.Linear(hidden_size, hidden_size) if dense else None
        self.dropout = torch.nn.Dropout(dropout)
        self.classifier = torch.nn.Linear(hidden_size, num_labels)

    def forward(self, pooled: Pooled) -> Float[Tensor, "batch classes"]:
        if self.dense is not None:
            pooled = torch.tanh(self.dense(pooled))
        return self.classifier(self.dropout(pooled))  # (B, C)
