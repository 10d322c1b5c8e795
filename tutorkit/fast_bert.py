"""BERT's forward pass as a CPU likes it: the same weights and logits, two thirds of the time.

Three things differ from `transformers`:

- Attention takes a few texts at a time. Their attention weights, H × T × T numbers a text, stay in
  the processor's cache from one operation to the next; those of a whole batch would not.
- The head reads the first token alone, so the last layer computes nothing else for the other tokens
  but their keys and values.
- Without gradients a large batch is read in parts, whose numbers stay in the cache between layers.

On a GPU many small products are slower than a large one, so there a model is used as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

# Attention weights that are computed at once, as a number: of one text of 256 tokens with minilm's
# 12 heads, or of 85 texts of 32 tokens. In bf16 they take 2 MB.
AT_ONCE = 2**20

# Tokens that pass through the layers at once where no gradient is needed, padding included: a tenth
# faster than 64 texts of 256 at once. In training a step is one pass, which does as well.
TOKENS_AT_ONCE = 2**12


class FastBert(torch.nn.Module):
    """A BERT classifier that shares all its weights with `model` and gives the same logits.

    Args:
        model: a `BertForSequenceClassification`; its layers' own parts are called, so that a
            replaced linear layer (LoRA, say) is used here too.
    """

    def __init__(self, model: BertForSequenceClassification):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Logits (B, C) of a batch.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 on real tokens and 0 on padding.
        """
        few = len(input_ids)
        if not torch.is_grad_enabled():
            few = max(1, TOKENS_AT_ONCE // input_ids.shape[1])
        parts = zip(input_ids.split(few), attention_mask.split(few), strict=True)
        return SequenceClassifierOutput(logits=torch.cat([self._logits(*part) for part in parts]))

    def _logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        bert = self.model.bert
        x = bert.embeddings(input_ids=input_ids)  # (B, T, D)
        padding, hide = attention_mask[:, None, None] == 0, None  # (B, 1, 1, T)
        if padding.any():  # added to a score, -∞ makes its attention weight 0
            hide = _cast_once(torch.zeros(padding.shape).masked_fill(padding, -torch.inf))
        *lower, last = bert.encoder.layer
        for layer in lower:
            x = layer_output(layer, x, x, hide)
        first = layer_output(last, x, x[:, :1], hide)  # (B, 1, D)
        pooled = self.model.dropout(bert.pooler(first))
        return self.model.classifier(pooled)


def layer_output(
    layer: torch.nn.Module, x: Tensor, readers: Tensor, hide: Tensor | None
) -> Tensor:
    """One encoder layer: self-attention and a feed-forward part, each with its residual and norm.

    Args:
        layer: a `BertLayer`.
        x: (B, T, D) the tokens of each text.
        readers: (B, M, D) those among them whose output is wanted.
        hide: (B, 1, 1, T) 0 for a token and -∞ for padding; None where there is no padding.

    Returns:
        (B, M, D).
    """
    attention = layer.attention.self
    size = attention.attention_head_size
    x, asking = _cast_once(x), _cast_once(readers)
    query = attention.query(asking).unflatten(-1, (-1, size)) * size**-0.5  # (B, M, H, d)
    key = attention.key(x).unflatten(-1, (-1, size))  # (B, T, H, d)
    value = attention.value(x).unflatten(-1, (-1, size))
    few = max(1, AT_ONCE // (query.shape[2] * query.shape[1] * x.shape[1]))
    hides = [None] * len(x) if hide is None else hide.split(few)
    mixed = []
    for q, k, v, h in zip(query.split(few), key.split(few), value.split(few), hides, strict=False):
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)  # (few, H, M, T)
        weights = attention.dropout((scores if h is None else scores + h).softmax(dim=-1))
        mixed.append((weights @ v.transpose(1, 2)).transpose(1, 2).flatten(2))  # (few, M, D)
    attended = layer.attention.output(torch.cat(mixed), readers)
    return layer.output(layer.intermediate(attended), attended)


def faster(model: torch.nn.Module) -> torch.nn.Module:
    """`model` in its fast form where there is one and its first weight is on a CPU, else itself.

    Left as they are: other architectures, BERT as a decoder, and a model with hooks, which its own
    forward would call and this one not.
    """
    fits = type(model) is BertForSequenceClassification and not model.config.is_decoder
    if not fits or next(model.parameters()).device.type != "cpu":
        return model
    passed_over = [model, model.bert, model.bert.encoder]
    for layer in model.bert.encoder.layer:
        passed_over += [layer, layer.attention, layer.attention.self]
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in passed_over):
        return model
    return FastBert(model)


def _cast_once(x: Tensor) -> Tensor:
    """x in the format of autocast, which would cast it for query, key and value each."""
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
