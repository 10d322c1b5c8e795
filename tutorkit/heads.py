"""From hidden states to scores: the part of a model that fine-tuning adds.

A backbone turns token ids (B, T) into hidden states (B, T, H). What a head does with them is its
task:

    classification   one vector a row (pooling), C scores a row
    tagging          C scores a token
    spans            two scores a token: is it the answer's first one, is it the last
    generation       V scores a token, one for each word that may come next

The training code uses the heads that `transformers` ships, so that a saved model loads without this
package; the classes here are those heads in readable form, and tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Hidden = Float[Tensor, "batch tokens hidden"]
Mask = Int[Tensor, "batch tokens"]
Pooled = Float[Tensor, "batch hidden"]
PositionScores = Float[Tensor, "batch tokens"]
Positions = Int[Tensor, " batch"]

POOLINGS = ("cls", "mean", "last")
IGNORE_INDEX = -100  # that of the losses, which stand above this module: a test holds them equal


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
    _check_pooling(attention_mask, how)
    if how == "cls":
        return hidden[:, 0]
    if how == "mean":
        weights = attention_mask[:, :, None].to(hidden.dtype)  # (B, T, 1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    last = last_positions(attention_mask)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def last_positions(attention_mask: Mask) -> Positions:
    """Where the last real token of each row stands, whichever side the padding is on."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (positions * attention_mask).argmax(dim=1)


def pooling_weights(attention_mask: Mask, how: str) -> PositionScores:
    """The share a_t of each token in the pooled vector v = Σ_t a_t h_t: what a figure can show.

    Without a mask means: with a mask of ones, `torch.ones_like(attention_mask)`. Padding then gets
    its share of the mean, and the last position is the last token, padding or not.

    Args:
        attention_mask: (B, T), 1 on real tokens and 0 on padding.
        how: one of `POOLINGS`.

    Returns:
        (B, T) float32 weights that sum to 1 in each row.

    Raises:
        ValueError: as `pool`.
    """
    _check_pooling(attention_mask, how)
    if how == "mean":
        return attention_mask / attention_mask.sum(dim=1, keepdim=True)
    chosen = last_positions(attention_mask)
    if how == "cls":
        chosen = torch.zeros_like(chosen)
    return torch.nn.functional.one_hot(chosen, attention_mask.shape[1]).float()


def _check_pooling(attention_mask: Tensor, how: str) -> None:
    if how not in POOLINGS:
        raise ValueError(f"how: expected one of {POOLINGS}, found {how!r}")
    if (attention_mask.sum(dim=1) == 0).any():
        raise ValueError("expected a real token in every row, found a row that is all padding")


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


class TaggingHead(torch.nn.Module):
    """Scores z_t = W h_t + b for every token by itself: `BertForTokenClassification`'s head.

    Args:
        hidden_size: H, the width of the backbone.
        num_labels: C, the number of tags.
        dropout: share of h's entries set to zero in training.
    """

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = torch.nn.Dropout(dropout)
        self.classifier = torch.nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Hidden) -> Float[Tensor, "batch tokens tags"]:
        return self.classifier(self.dropout(hidden))  # (B, T, C)


class SpanHead(torch.nn.Module):
    """Two scores a token, is it an answer's first, its last: `BertForQuestionAnswering`'s head.

    Args:
        hidden_size: H, the width of the backbone.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.qa_outputs = torch.nn.Linear(hidden_size, 2)

    def forward(self, hidden: Hidden) -> tuple[PositionScores, PositionScores]:
        start, end = self.qa_outputs(hidden).unbind(dim=-1)  # (B, T, 2) -> (B, T), (B, T)
        return start, end


class GenerationHead(torch.nn.Module):
    """A score z_t = E h_t for each of V words at every token: `LlamaForCausalLM`'s head.

    Args:
        hidden_size: H, the width of the backbone.
        vocab_size: V, the number of token ids.
        tied_to: the backbone's word embeddings (V, H), to be E as well: one table for reading and
            for writing, so that the head adds no parameter. None: a table of its own.

    Raises:
        ValueError: embeddings of another shape.

    Source: Press & Wolf 2017, "Using the Output Embedding to Improve Language Models" (tying).
    """

    def __init__(
        self, hidden_size: int, vocab_size: int, tied_to: torch.nn.Embedding | None = None
    ):
        super().__init__()
        self.lm_head = torch.nn.Linear(hidden_size, vocab_size, bias=False)
        if tied_to is not None:
            if tied_to.weight.shape != self.lm_head.weight.shape:
                raise ValueError(
                    f"tied_to: expected embeddings (V, H) = {(vocab_size, hidden_size)}, found "
                    f"{tuple(tied_to.weight.shape)}: take those of the same backbone"
                )
            self.lm_head.weight = tied_to.weight

    def forward(self, hidden: Hidden) -> Float[Tensor, "batch tokens vocab"]:
        return self.lm_head(hidden)  # (B, T, V)


def first_piece_labels(word_ids: Sequence[int | None], word_tags: Sequence[int]) -> list[int]:
    """A label for each token: the word's tag on its first piece, `IGNORE_INDEX` elsewhere.

    Args:
        word_ids: for each token the number of its word, or None on special tokens and padding, as
            a fast tokenizer's `word_ids()` gives them.
        word_tags: a tag for each word.

    Raises:
        ValueError: a word without a tag.

    Source: Devlin et al. 2019, "BERT", section 5.3.
    """
    missing = [word for word in word_ids if word is not None and not 0 <= word < len(word_tags)]
    if missing:
        raise ValueError(
            f"expected a tag for each word, found {len(word_tags)} tags and word {missing[0]}"
        )
    before = [None, *word_ids]  # one longer: the last token has no follower
    return [
        IGNORE_INDEX if word is None or word == previous else word_tags[word]
        for word, previous in zip(word_ids, before, strict=False)
    ]


def next_token_labels(input_ids: Mask, attention_mask: Mask) -> Mask:
    """Labels for the generation head: the sequence itself, `IGNORE_INDEX` on padding.

    The mask decides, not the pad token's id: decoders often pad with their end-of-text token, and
    a real one at the end of a text has to be learned. The shift by one is the loss's.

    Args:
        input_ids: (B, T) token ids.
        attention_mask: (B, T), 1 on real tokens and 0 on padding.
    """
    return input_ids.masked_fill(attention_mask == 0, IGNORE_INDEX)


def best_span(
    start_scores: PositionScores, end_scores: PositionScores, attention_mask: Mask
) -> tuple[Positions, Positions]:
    """The span s ≤ e on real tokens with the largest start_s + end_e in each row.

    Args:
        start_scores: (B, T).
        end_scores: (B, T).
        attention_mask: (B, T), 1 on the tokens an answer may use.

    Raises:
        ValueError: a row without such a token.

    Source: Devlin et al. 2019, "BERT", section 4.2.
    """
    _check_pooling(attention_mask, "mean")
    tokens = attention_mask.shape[1]
    sums = start_scores[:, :, None] + end_scores[:, None, :]  # (B, T, T): start, end
    real = attention_mask == 1
    allowed = (real[:, :, None] & real[:, None, :]).triu()  # an end is not before its start
    flat = sums.masked_fill(~allowed, -torch.inf).flatten(1).argmax(dim=1)
    return flat // tokens, flat % tokens
