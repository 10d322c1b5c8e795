"""Figures of the lesson on heads: what a pooling weighs, what padding moves, what a token reaches.

The numbers behind them are plain functions: `encode_sentences`, `pooled_cosines`, `padding_drift`,
`sizes_by_token`, `reach`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tutorkit.heads import pool, pooling_weights
from tutorkit.plots import BLUE, GREY, INK, SKY, VERMILLION, styled_figure
from tutorkit.widgets import Control, Drawing

# In front of axes and ticks, as in a redraw, so that the static figure is the same picture.
MOVING = {"animated": True, "zorder": 3}

# What can be chosen in the figure: a name, the pooling, and whether it has a mask.
CHOICES = (
    ("CLS", "cls", True),
    ("mean", "mean", True),
    ("last real token", "last", True),
    ("mean, no mask", "mean", False),
    ("position −1, no mask", "last", False),
)
STYLES = {
    # These three lie on top of each other: the first is drawn broadest.
    "CLS": {"color": "#BBBBBB", "linestyle": "-", "linewidth": 7},
    "mean": {"color": SKY, "linestyle": "-", "linewidth": 3.5},
    "last real token": {"color": INK, "linestyle": ":", "linewidth": 1.5},
    "mean, no mask": {"color": VERMILLION, "linestyle": "-", "marker": "o"},
    "position −1, no mask": {"color": VERMILLION, "linestyle": "--", "marker": "s"},
}


class Choice(int):
    """A number that is written as a word, for a control that offers words."""

    def __new__(cls, number: int, word: str) -> Choice:
        choice = super().__new__(cls, number)
        choice.word = word
        return choice

    def __format__(self, _spec: str) -> str:
        return self.word


class Sentences(NamedTuple):
    """A right-padded batch of sentences and its hidden states."""

    tokens: list[list[str]]  # B rows of T tokens, padding included
    attention_mask: Int[Tensor, "batch tokens"]
    hidden: Float[Tensor, "batch tokens hidden"]

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence: the length of the batch without extra padding."""
        return int(self.attention_mask.sum(dim=1).max())


def encode_sentences(loaded: Any, texts: Sequence[str], padding: int) -> Sentences:
    """Run a model's backbone over sentences, padded on the right.

    Args:
        loaded: a `tutorkit.models.LoadedModel`.
        texts: B sentences.
        padding: pad tokens after the longest sentence. A real token's hidden state does not depend
            on them, nor does a pad token's on the ones after it, so a shorter batch is this one
            cut off.
    """
    longest = max(len(ids) for ids in loaded.tokenizer(list(texts))["input_ids"])
    batch = loaded.tokenizer(
        list(texts), padding="max_length", max_length=longest + padding, return_tensors="pt"
    )
    mask = batch["attention_mask"]
    with torch.no_grad():
        backbone = loaded.model.base_model
        hidden = backbone(batch["input_ids"], attention_mask=mask).last_hidden_state
    tokens = [loaded.tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"]]
    return Sentences(tokens, mask, hidden)


def _cut(sentences: Sentences, padding: int, masked: bool) -> tuple[Tensor, Tensor]:
    """Hidden states and mask of the batch with this much padding after the longest sentence."""
    length = sentences.longest + padding
    mask = sentences.attention_mask[:, :length]
    return sentences.hidden[:, :length], mask if masked else torch.ones_like(mask)


def pooled_cosines(
    sentences: Sentences, how: str, masked: bool, padding: int
) -> Float[Tensor, "batch batch"]:
    """Cosines between the pooled vectors of a batch.

    Args:
        sentences: B encoded sentences.
        how: one of `heads.POOLINGS`.
        masked: whether padding is left out.
        padding: pad tokens after the longest sentence, at most those that were encoded.
    """
    pooled = torch.nn.functional.normalize(pool(*_cut(sentences, padding, masked), how), dim=1)
    return pooled @ pooled.T


def padding_drift(
    sentences: Sentences, row: int, paddings: Sequence[int]
) -> dict[str, list[float]]:
    """How far padding turns a sentence's pooled vector: its cosine with the unpadded one.

    Args:
        sentences: encoded sentences.
        row: which of them.
        paddings: pad tokens after this sentence, at most those that were encoded.

    Returns:
        For each of `CHOICES` a cosine for each padding.
    """
    real = int(sentences.attention_mask[row].sum())
    hidden, mask = sentences.hidden[row : row + 1], sentences.attention_mask[row : row + 1]
    cosines = {}
    for name, how, masked in CHOICES:
        alone = pool(hidden[:, :real], mask[:, :real], how)
        cosines[name] = []
        for padding in paddings:
            seen = mask[:, : real + padding] if masked else torch.ones(1, real + padding).long()
            padded = pool(hidden[:, : real + padding], seen, how)
            cosines[name].append(torch.cosine_similarity(alone, padded).item())
    return cosines


def drift_figure(drift: Mapping[str, Sequence[float]], paddings: Sequence[int]) -> Figure:
    """Lines of `padding_drift` over the number of pad tokens."""
    with styled_figure(2.6) as figure:
        axes = figure.subplots()
        for name, cosines in drift.items():
            axes.plot(paddings, cosines, label=name, markersize=4, **STYLES[name])
        axes.set(xlabel="pad tokens after the text", ylabel="cosine")
        axes.set_title("The pooled vector of one review, padded, against the unpadded one")
        axes.set_ylim(min(0.0, min(map(min, drift.values()))), 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        figure.legend(loc="outside right center")
    return figure


def sizes_by_token(tensor: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens"]:
    """The length of each token's vector, relative to the longest one (all 0 stay 0)."""
    sizes = tensor.norm(dim=2)
    return sizes / sizes.max().clamp(min=torch.finfo(sizes.dtype).tiny)


def strips(
    panels: Mapping[
        str, tuple[Float[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]
    ],
    title: str,
) -> Figure:
    """One strip of cells a panel: darker where a token's number is larger, crossed on padding.

    Args:
        panels: a name, (B, T) numbers from 0 to 1 and their (B, T) attention mask. Panels may
            differ in B and T.
        title: of the whole figure.
    """
    rows = [len(mask) for _, mask in panels.values()]
    with styled_figure(0.8 + sum(0.35 + 0.16 * count for count in rows)) as figure:
        every = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        for axes, (name, (numbers, mask)) in zip(every, panels.items(), strict=True):
            axes.imshow(numbers.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            padded = np.argwhere(mask.numpy() == 0)
            axes.plot(padded[:, 1], padded[:, 0], "x", color=GREY, markersize=3)
            axes.set_title(name, fontsize=9)
            axes.set_yticks(range(len(mask)))
            axes.grid(visible=False)
        every[-1].set_xlabel("position t (× padding)")
        figure.supylabel("row of the batch", fontsize=9)
    return figure


def reach(
    backbone: torch.nn.Module, input_ids: Int[Tensor, " tokens"], other_id: int
) -> Bool[Tensor, "changed tokens"]:
    """Which hidden states move when one token is replaced.

    Args:
        backbone: a model whose answer has a `last_hidden_state`.
        input_ids: (T,) one text without padding.
        other_id: the id that replaces a token, one that the text does not have.

    Returns:
        (T, T): True at [k, t] where position t changes when token k is replaced, by more than
        rounding (1e-5 of its largest entry).

    Raises:
        ValueError: the text has that id.
    """
    if (input_ids == other_id).any():
        raise ValueError(f"other_id: expected an id that the text does not have, found {other_id}")
    # Row 0 is the text itself, row k + 1 the one with token k replaced.
    rows = input_ids.repeat(len(input_ids) + 1, 1)
    at = torch.arange(len(input_ids))
    rows[at + 1, at] = other_id
    with torch.no_grad():
        hidden = backbone(rows, attention_mask=torch.ones_like(rows)).last_hidden_state
    change = (hidden[1:] - hidden[0]).abs().amax(dim=2)  # (T, T)
    return change > 1e-5 * hidden[0].abs().amax(dim=1)


def reach_figure(
    panels: Mapping[str, tuple[Sequence[str], Bool[Tensor, "changed tokens"]]],
) -> Figure:
    """Squares of `reach`, side by side: row k is the replaced token, column t who notices.

    Args:
        panels: a name, and the tokens and what `reach` found.
    """
    with styled_figure(3.4) as figure:
        for axes, (name, (tokens, reached)) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            axes.imshow(reached.numpy(), cmap="Blues", vmin=0, vmax=1.4)
            axes.set_xticks(range(len(tokens)), tokens, rotation=90)
            axes.set_yticks(range(len(tokens)), tokens)
            axes.set(title=name, ylabel="replaced token", xlabel="hidden state that changes")
            axes.grid(visible=False)
    return figure


class Pooling(Drawing):
    """What each token weighs in the pooled vector, and how similar the vectors of sentences are.

    Args:
        sentences: up to six encoded sentences; the padding that can be added is what was encoded.
    """

    height = 3.3
    description = (
        "Left: a bar for each token of the chosen sentence, its weight in the pooled vector, on an "
        "axis that ends at the largest; padding is hatched. Right: the cosine of that vector with "
        "those of the other sentences."
    )
    names = "ABCDEF"

    def __init__(self, sentences: Sentences) -> None:
        self._sentences = sentences
        rows, most = len(sentences.tokens), len(sentences.tokens[0]) - sentences.longest
        self.controls = {
            "sentence": Control("sentence", tuple(map(Choice, range(rows), self.names)), 0, "{}"),
            "pooling": Control(
                "pooling", tuple(Choice(n, each[0]) for n, each in enumerate(CHOICES)), 1, "{}"
            ),
            "padding": Control("extra padding", tuple(range(most + 1)), min(3, most)),
        }
        super().__init__()

    def _build(self, figure: Figure) -> None:
        rows, tokens = self._sentences.attention_mask.shape
        self._left, self._right = figure.subplots(1, 2, width_ratios=[2.4, 1])
        self._bars = self._left.bar(range(tokens), 1.0, linewidth=0, edgecolor="white", **MOVING)
        words = [token for row in self._sentences.tokens for token in row]
        # Invisible labels keep the room that the moving ones need.
        self._left.set_xticks(range(tokens), [max(words, key=len)] * tokens, rotation=90,
                              color="none")  # fmt: skip
        self._words = [
            self._left.text(t, -0.03, "", rotation=90, ha="center", va="top", fontsize=8,
                            transform=self._left.get_xaxis_transform(), **MOVING)
            for t in range(tokens)
        ]  # fmt: skip
        for word in self._words:
            word.set_in_layout(False)
        # The axis follows the largest weight: bars are parts of it, and the ticks' words move.
        self._left.set_yticks([0, 0.5, 1], ["0.000"] * 3, color="none")
        self._scale = [
            self._left.text(-0.02, height, "", ha="right", va="center", fontsize=8, color=INK,
                            transform=self._left.get_yaxis_transform(), **MOVING)
            for height in (0, 0.5, 1)
        ]  # fmt: skip
        for word in self._scale:
            word.set_in_layout(False)
        self._left.set(ylim=(0, 1.1), xlim=(-0.6, tokens - 0.4), ylabel="weight of the token")
        self._left.grid(visible=False, axis="x")
        self._similar = self._right.barh(range(rows), 1.0, linewidth=0, **MOVING)
        self._written = [
            self._right.text(1.06, n, "", va="center", fontsize=8, **MOVING) for n in range(rows)
        ]
        self._right.set_yticks(range(rows), self.names[:rows])
        self._right.set(xlim=(-0.2, 1.42), ylim=(rows - 0.4, -0.6), xlabel="cosine")
        self._right.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        self._right.axvline(0, color=GREY, linewidth=1)
        self._right.grid(visible=False, axis="y")
        self._titles = [axes.set_title("", y=1) for axes in (self._left, self._right)]
        for title in self._titles:
            title.set_animated(True)

    def _move(self, sentence: int, pooling: int, padding: int) -> None:
        name, how, masked = CHOICES[pooling]
        hidden, mask = _cut(self._sentences, padding, masked)
        weights = pooling_weights(mask, how)[sentence].tolist()
        real = self._sentences.attention_mask[sentence].tolist()
        most, on_padding = max(weights), 0.0
        for share, word in zip((0, 0.5, 1), self._scale, strict=True):
            word.set_text(f"{share * most:.3f}" if share else "0")
        for t, (bar, word) in enumerate(zip(self._bars, self._words, strict=True)):
            there = t < hidden.shape[1]
            bar.set_height(weights[t] / most if there else 0.0)
            bar.set(facecolor=BLUE if real[t] else VERMILLION, hatch=None if real[t] else "////")
            word.set_text(self._sentences.tokens[sentence][t] if there else "")
            word.set_color(INK if real[t] else GREY)
            on_padding += weights[t] if there and not real[t] else 0.0
        cosines = pooled_cosines(self._sentences, how, masked, padding)[sentence].tolist()
        for n, (bar, written) in enumerate(zip(self._similar, self._written, strict=True)):
            bar.set_width(cosines[n])
            bar.set_facecolor(SKY if n == sentence else BLUE if masked else VERMILLION)
            written.set_text(f"{cosines[n]:.2f}".replace("-", "−"))
        self._titles[0].set_text(
            f"Sentence {self.names[sentence]}, {name}: {on_padding:.0%} on padding"
        )
        self._titles[1].set_text(f"Similarity to {self.names[sentence]}")
