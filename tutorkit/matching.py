"""A student that learns its teacher's hidden states and attention scores, layer by layer.

The teacher reads the same token ids in the same batch, so the two share a tokenizer.

Source: Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding"
(arXiv:1909.10351).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutorkit.distillation import SoftTargets, check_same_labels, label_names, model_digest
from tutorkit.fast_bert import faster, layer_output
from tutorkit.models import LoadedModel
from tutorkit.objectives import Backward
from tutorkit.students import check_bert, every_kth
from tutorkit.training import eval_mode


class Matched(NamedTuple):
    """What a student gives beside its teacher: each row's mean square errors, and its logits."""

    logits: Tensor  # (B, C)
    embeddings: Tensor  # (B,) eq. 9
    hidden: Tensor  # (B,) eq. 8, summed over the student's layers
    attention: Tensor | None  # (B,) eq. 7, summed over them; None where the heads differ in number


class MatchedStudent(torch.nn.Module):
    """A student with its teacher beside it, and the projections between their widths.

    Give this to `fit`: the projections are trained with the student. Save the student alone, which
    has become what `fit` made of it; they and the teacher are no part of it.

    Args:
        student: a BERT classifier.
        teacher: a BERT classifier that reads the same token ids; its weights stay as they are.
        layers: the teacher's layer, from 1, that each student layer is matched with; None:
            `students.every_kth`.

    Raises:
        ValueError: other architectures, tokenizers or classes; layers that the teacher lacks.
    """

    def __init__(
        self, student: LoadedModel, teacher: LoadedModel, layers: Sequence[int] | None = None
    ):
        super().__init__()
        check_bert(student, "student")
        check_bert(teacher, "teacher")
        if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
            raise ValueError(f"expected student {student.name!r} and teacher {teacher.name!r} to "
                             "share a tokenizer, for the teacher reads the student's token ids, "
                             "found two: teach by logits instead (SoftTargets)")
        check_same_labels(label_names(teacher.model), label_names(student.model))
        few, many = (len(m.model.bert.encoder.layer) for m in (student, teacher))
        self.layers = every_kth(many, few) if layers is None else tuple(layers)
        if len(self.layers) != few or not all(1 <= n <= many for n in self.layers):
            raise ValueError(f"layers: expected {few} numbers in 1…{many}, a layer of the teacher "
                             f"for each of the student's, found {self.layers}")
        self.student = student.model
        # In a tuple, where torch does not look for parameters to train and to save.
        self.beside = (teacher.model,)
        widths = student.model.config.hidden_size, teacher.model.config.hidden_size
        self.embedding_projection = _projection(*widths)
        self.hidden_projection = _projection(*widths)

    @property
    def config(self):
        """The student's."""
        return self.student.config

    @property
    def base_model(self) -> torch.nn.Module:
        """The student's."""
        return self.student.base_model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, match: bool = False):
        """The student's output, as `fit` and `evaluate` know it; `Matched` where `match` is set."""
        if not match:
            return faster(self.student)(input_ids, attention_mask=attention_mask)
        teacher, own = self.beside[0].to(input_ids.device), self.student
        with torch.no_grad(), eval_mode(teacher):
            taught = hidden_states(teacher.bert, input_ids, attention_mask)
        states = hidden_states(own.bert, input_ids, attention_mask)
        same_heads = own.config.num_attention_heads == teacher.config.num_attention_heads
        pairs = attention_mask[:, :, None] * attention_mask[:, None]  # (B, T, T)
        hidden = attention = 0
        for m, n in enumerate(self.layers, start=1):
            error = self.hidden_projection(states[m]) - taught[n]
            hidden = hidden + mean_square(error, attention_mask)
            if same_heads:
                with torch.no_grad():
                    expected = attention_scores(teacher.bert.encoder.layer[n - 1], taught[n - 1])
                scores = attention_scores(own.bert.encoder.layer[m - 1], states[m - 1])
                attention = attention + mean_square(scores - expected, pairs)
        embeddings = mean_square(self.embedding_projection(states[0]) - taught[0], attention_mask)
        logits = own.classifier(own.dropout(own.bert.pooler(states[-1])))
        return Matched(logits, embeddings, hidden, attention if same_heads else None)


class LayerMatching:
    """TinyBERT's objective: a weighted sum of what `Matched` holds, and of soft targets if given.

        L = λ_e L_embd + Σ_m (λ_h L_hidn + λ_a L_attn) + L_targets        m: the student's layers

    Without targets the logits are not trained: the first of the source's two stages, to be followed
    by a run with `SoftTargets` alone.

    Args:
        matched: the model that is given to `fit` as well.
        hidden: λ_h.
        attention: λ_a.
        embeddings: λ_e.
        targets: what the student's logits are to learn.

    Raises:
        ValueError: a negative weight, nothing to lower, attention of other numbers of heads; when
            called, another model than `matched`.

    Source: Jiao et al. 2020, equations 7 to 9, and 6 and 11 for the sum.
    """

    def __init__(
        self, matched: MatchedStudent, hidden: float = 1.0, attention: float = 1.0,
        embeddings: float = 1.0, targets: SoftTargets | None = None,
    ):
        self.weights = {"hidden": hidden, "attention": attention, "embeddings": embeddings}
        if not all(0 <= weight < math.inf for weight in self.weights.values()) or (
            targets is None and not any(self.weights.values())
        ):
            raise ValueError("expected weights from 0, and one above 0 where there are no targets, "
                             f"found {self.weights}")
        heads = [m.config.num_attention_heads for m in (matched.student, *matched.beside)]
        if attention and heads[0] != heads[1]:
            raise ValueError(f"attention: expected as many heads in the student as in the teacher, "
                             f"found {heads[0]} and {heads[1]}: set attention=0")
        self.matched, self.targets = matched, targets

    def __repr__(self) -> str:
        digest = model_digest(self.matched.beside[0])[:12]
        return (f"LayerMatching({self.weights}, layers={self.matched.layers}, "
                f"teacher sha256={digest}, targets={self.targets})")

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward
    ) -> Tensor:
        """See `tutorkit.objectives`."""
        if getattr(model, "module", model) is not self.matched:
            raise ValueError("model: expected the MatchedStudent that this objective was made "
                             f"with, found {type(model).__name__}: give that one to fit, since "
                             "its projections have to be trained")
        found = model(batch["input_ids"], attention_mask=batch["attention_mask"], match=True)
        loss = sum(weight * getattr(found, name).sum()
                   for name, weight in self.weights.items() if weight)  # fmt: skip
        if self.targets is not None:
            loss = loss + self.targets.loss(model, found.logits, batch)
        backward(loss)
        return loss.detach()


def hidden_states(
    bert: torch.nn.Module, input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"],
) -> list[Float[Tensor, "batch tokens hidden"]]:
    """The embeddings' output and that of each layer of a `BertModel`: L + 1 tensors (B, T, D).

    `output_hidden_states=True` gives the same, but leaves hooks on the layers for good.
    """
    states = [bert.embeddings(input_ids=input_ids)]
    hide = torch.zeros_like(attention_mask, dtype=states[0].dtype)
    hide = hide.masked_fill(attention_mask == 0, -torch.inf)[:, None, None]  # (B, 1, 1, T)
    for layer in bert.encoder.layer:
        states.append(layer_output(layer, states[-1], states[-1], hide))
    return states


def attention_scores(
    layer: torch.nn.Module, x: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch heads tokens tokens"]:
    """A = Q Kᵀ / √d of a `BertLayer` for its input: what the softmax makes weights of.

    Equation 7 compares these, not the weights: the source found them to learn faster.
    """
    attention = layer.attention.self
    query, key = (part(x).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
                  for part in (attention.query, attention.key))  # (B, H, T, d)  # fmt: skip
    return query @ key.transpose(2, 3) * attention.attention_head_size**-0.5


def mean_square(error: Tensor, real: Tensor) -> Float[Tensor, " batch"]:
    """Each row's mean square error, over what is no padding.

    Args:
        error: (B, T, D), or (B, H, T, T) of attention scores.
        real: (B, T), or (B, T, T): 1 on real tokens, or on pairs of them, and 0 on padding.
    """
    squares = error.float().square().mean(dim=-1 if error.ndim == 3 else 1)  # real's shape
    return (squares * real).flatten(1).sum(dim=1) / real.flatten(1).sum(dim=1)


def _projection(narrow: int, wide: int) -> torch.nn.Module:
    """W of equations 8 and 9; nothing where the widths are equal."""
    if narrow == wide:
        return torch.nn.Identity()
    projection = torch.nn.Linear(narrow, wide, bias=False)
    torch.nn.init.eye_(projection.weight)  # a start that draws no random numbers
    return projection
