"""The figures of the data lesson that can be moved: the tokens of a text, and padding.

Their numbers are `text_data`'s. Tokens are shown as HTML, whose reader has a font for every script;
a picture would draw boxes for Chinese where no such font is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tutorkit import text_data
from tutorkit.plots import BLUE, GREY
from tutorkit.text_data import PADDINGS, Piece
from tutorkit.widgets import Control, Drawing

if TYPE_CHECKING:
    import ipywidgets

SAMPLES = {
    "plain English": "A slow start, but what an ending!",
    "rare words": "An unwatchable, overlong remake of Dr. Caligari.",
    "spelling": "sooooo GOOD!!! 10/10 - naïve café scenes 🎬",
    "Chinese, praise": "这部电影太精彩了，我看了两遍。",
    "Chinese, complaint": "剧本很糟糕，演员却很出色。",
}
# Neighbours differ in lightness too, and each token has a border: colour alone carries nothing.
TINTS = ("#CFE5F2", "#FBE3B5", "#CDEBDD", "#F3D3E3")
UNKNOWN, SPECIAL, PART = "#D55E00", "#E2E2E2", "#FFFFFF"


class TokenPicture:
    """The tokens of one text under several tokenizers, as HTML and as plain text."""

    def __init__(self, text: str, tokens: Mapping[str, list[Piece]]) -> None:
        self.text = text
        self.tokens = dict(tokens)

    def _repr_html_(self) -> str:
        rows = [_html_row(name, found) for name, found in self.tokens.items()]
        return f"<p><b>{escape(self.text)}</b></p>" + "".join(rows)

    def __repr__(self) -> str:
        lines = [self.text]
        for name, found in self.tokens.items():
            lines.append(f"{name}: {counted(found)}")
            lines.append("  " + " | ".join(piece.shown for piece in found))
        return "\n".join(lines)


def counted(found: list[Piece]) -> str:
    """How many tokens there are, and how many of each kind that a reader should notice."""
    words = {"special": "special", "bytes": "parts of a character", "unknown": "unknown"}
    numbers = {kind: sum(piece.kind == kind for piece in found) for kind in words}
    named = [f"{numbers[kind]} {word}" for kind, word in words.items() if numbers[kind]]
    plural = "" if len(found) == 1 else "s"
    return f"{len(found)} token{plural}" + (f" ({', '.join(named)})" if named else "")


def _html_row(name: str, found: list[Piece]) -> str:
    tokens = " ".join(_html_token(n, piece) for n, piece in enumerate(found))
    return f"<p>{escape(name)}: {escape(counted(found))}<br>{tokens}</p>"


def _html_token(number: int, piece: Piece) -> str:
    fill = {"unknown": UNKNOWN, "special": SPECIAL, "bytes": PART}.get(
        piece.kind, TINTS[number % len(TINTS)]
    )
    ink = "#FFFFFF" if piece.kind == "unknown" else "#222222"
    # <code> stays a box of its own where a code host strips the style.
    return (
        f'<code title="id {piece.id}" style="background:{fill};color:{ink};padding:1px 4px;'
        f'border:1px solid #999999;border-radius:3px;line-height:2">{escape(piece.shown)}</code>'
    )


class TokenView:
    """The tokens of a text that can be chosen or typed.

    Args:
        tokenizers: name to a fast `transformers` tokenizer.
        text: the text to begin with.

    Attributes:
        figure: the picture of the current text.
        values: the current text, under "text".
        controls: the texts that are offered, by name; any other text is taken as well.
    """

    description = "The tokens of one text under two tokenizers, one box for each token."

    def __init__(self, tokenizers: Mapping[str, Any], text: str = SAMPLES["plain English"]) -> None:
        self.tokenizers = dict(tokenizers)
        self.controls = {"text": SAMPLES}
        self.values: dict[str, str] = {}
        self.update(text=text)

    def update(self, text: str) -> None:
        """Show another text."""
        self.values = {"text": text}
        found = {name: text_data.pieces(t, text) for name, t in self.tokenizers.items()}
        self.figure = TokenPicture(text, found)


def explore_tokens(view: TokenView) -> ipywidgets.VBox:
    """A list of texts and a line to type in, above the view's picture.

    Made of plain widgets only, as `widgets.explore`: it works with ipywidgets 7 (Colab) and 8.
    """
    import ipywidgets

    named = {text: name for name, text in SAMPLES.items()}
    wide = {"description_width": "initial"}
    choice = ipywidgets.Dropdown(
        options=[*SAMPLES, "your own"], value=named.get(view.values["text"], "your own"),
        description="text", style=wide,
    )  # fmt: skip
    line = ipywidgets.Text(
        value=view.values["text"], description="or type", continuous_update=True, style=wide,
        layout={"width": "70%"},
    )  # fmt: skip
    picture = ipywidgets.HTML(value=view.figure._repr_html_())

    def typed(_change: object) -> None:
        view.update(text=line.value)
        picture.value = view.figure._repr_html_()
        choice.value = named.get(line.value, "your own")

    def chosen(_change: object) -> None:
        if choice.value in SAMPLES:
            line.value = SAMPLES[choice.value]

    line.observe(typed, names="value")
    choice.observe(chosen, names="value")

    class Explorer(ipywidgets.VBox):
        def __repr__(self) -> str:  # what stands there where no widget can be shown
            return "A list of texts and a line to type in: run this cell."

    return Explorer([choice, line, picture])


class PaddingWaste(Drawing):
    """Real tokens and padding of every row of an epoch, batch after batch.

    Args:
        lengths: (N,) tokens of each row, after truncation.
        max_length: the most tokens a row may have.
        seed: of the order of the rows.
    """

    controls = {
        "batch_size": Control("batch size", (1, 2, 4, 8, 16, 32, 64), 16),
        "padding": Control("padding", PADDINGS, "per batch", "{}"),
    }
    height = 3.4
    description = (
        "One line for each review, in the order of the batches and within a batch by length: its "
        "real tokens, then the padding that its batch adds. Buckets of similar length leave hardly "
        "any padding."
    )

    def __init__(self, lengths: np.ndarray, max_length: int, seed: int = 0) -> None:
        self.lengths = np.asarray(lengths)
        self.max_length = max_length
        self.seed = seed
        super().__init__()

    def _build(self, figure: Figure) -> None:
        axes = figure.subplots()
        rows = len(self.lengths)
        self._picture = axes.imshow(
            np.zeros((rows, self.max_length)), cmap=ListedColormap(["white", "#F2B38A", BLUE]),
            vmin=0, vmax=2, aspect="auto", interpolation="nearest", animated=True, zorder=1,
            extent=(0, self.max_length, rows, 0),
        )  # fmt: skip
        (self._edges,) = axes.plot([], [], color="white", linewidth=0.8, animated=True, zorder=2)
        axes.grid(visible=False)
        axes.set(xlabel="token place", ylabel="review, in the order of the batches")
        self._title = axes.set_title("", y=1)  # a given place: axes move only titles they draw
        self._title.set_animated(True)
        handles = [Patch(color=BLUE, label="real token"), Patch(color="#F2B38A", label="padding"),
                   Patch(facecolor="white", edgecolor=GREY, label="not computed")]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=3)

    def _move(self, batch_size: int, padding: str) -> None:
        batches = text_data.padded_batches(
            self.lengths, batch_size, padding, self.max_length, self.seed
        )
        self._picture.set_data(text_data.padding_picture(self.lengths, batches, self.max_length))
        ends = np.cumsum([len(batch.rows) for batch in batches])[:-1]
        # One line broken by NaN; batches of one row need none.
        x = np.tile([0, self.max_length, np.nan], len(ends))
        self._edges.set_data((x, np.repeat(ends, 3)) if batch_size > 1 else ([], []))
        cost = text_data.padding_cost(self.lengths, batches)
        self._title.set_text(
            f"{padding}, batches of {batch_size}: {cost.ratio:.2f} token places for a real token"
        )
