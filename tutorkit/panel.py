"""Try your own review: a label, a calibrated probability, and the words that moved it.

`answer` does the work and `answer_html` draws it; both are plain functions, and
`HTML(answer_html(answer(...)))` is the form for a reader without a kernel. `try_review` puts a text
box in front of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tutorkit.explain import Explanation, NoWords, WordScore, explain
from tutorkit.plots import BLUE, INK, VERMILLION

if TYPE_CHECKING:
    import ipywidgets

MOST_CHARACTERS = 100_000  # of a text; to tokenize far longer ones would take seconds
LONGEST_SHOWN = 40  # characters of a word in the table
ADDS_UP = 0.1  # of the change that the scores shall explain: what may be missing


def fit_temperature(logits: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """The temperature T that makes softmax(z / T) fit the labels best.

        NLL(T) = -1/N Σ_i log softmax(z_i / T)_{y_i}

    With β = 1/T the NLL is convex; its slope, mean over the rows of Σ_c p_c z_c - z_y, crosses zero
    once, and the crossing is found by bisection. T > 1: the model is too sure of itself. No
    prediction changes its class.

    Args:
        logits: (N, C) of validation rows; `np.log(evaluation.probabilities)` serves as well.
        labels: (N,) their classes.

    Returns:
        T, above 0.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, no wrong row (NLL falls for
            ever as T goes to 0), or logits that know nothing of the labels (for ever as T grows).

    Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2, eq. 9.
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if z.ndim != 2 or y.shape != z.shape[:1] or not len(y) or not np.isfinite(z).all():
        raise ValueError(
            f"expected finite logits (N, C) and labels (N,), found shapes {z.shape} and {y.shape}"
        )
    if not np.isin(y, np.arange(z.shape[1])).all():
        raise ValueError(f"labels: expected classes in 0…{z.shape[1] - 1}, found {set(y.tolist())}")
    z = z - z.max(axis=1, keepdims=True)
    own = z[np.arange(len(y)), y]

    def slope(beta: float) -> float:
        p = np.exp(beta * z)
        p /= p.sum(axis=1, keepdims=True)
        return float(((p * z).sum(axis=1) - own).mean())

    if (own == 0).all():
        raise ValueError(
            f"expected a wrong row among the {len(y)}, found none: every temperature towards 0 "
            "fits better than the one before. Use more validation rows, or no temperature"
        )
    if slope(0.0) >= 0:
        raise ValueError(
            "expected logits that favour the right class on average, found none better than a "
            "guess: every larger temperature fits better. Train first, and check the labels"
        )
    high = 1.0
    while slope(high) < 0:
        high *= 2
    low = 0.0
    for _ in range(80):  # halves the interval down to the last bits of a double
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


@dataclass(frozen=True)
class Answer:
    """What a model says of one text. Where it can't say anything, `label` is None."""

    text: str
    notes: tuple[str, ...]  # plain sentences: why there is no answer, or how far to trust it
    label: str | None = None
    probability: float | None = None  # of the label; calibrated where a temperature was given
    raw_probability: float | None = None  # as the model gives it
    temperature: float | None = None  # None: not calibrated
    explanation: Explanation | None = None

    @property
    def words(self) -> tuple[WordScore, ...]:
        """The words with their scores, in reading order."""
        return self.explanation.words if self.explanation else ()

    @property
    def verdict(self) -> str:
        """The answer in one line."""
        if self.label is None:
            return "No answer"
        kind = "calibrated" if self.temperature is not None else "not calibrated"
        return f"{self.label}, probability {self.probability:.2f} ({kind})"


def answer(
    text: str, model: torch.nn.Module, tokenizer: Any, temperature: float | None = None,
    max_length: int = 128, truncation: str = "head+tail", method: str = "integrated_gradients",
) -> Answer:
    """Classify a text and score its words. Any text gets an answer or a sentence that says why not.

    Args:
        text: what someone typed.
        model: a classifier, as for `explain`; class names are taken from `model.config.id2label`.
        tokenizer: its fast tokenizer.
        temperature: from `fit_temperature`; None: the probability is shown as not calibrated.
        max_length: most tokens the model reads, as in training.
        truncation: which part of a longer text it reads, as in training.
        method: how the words are scored, one of `explain.METHODS`.

    Raises:
        ValueError: a temperature that is not above 0, or a setting that `explain` refuses.
    """
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a number above 0, or None, found {temperature!r}")
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a character breaks tokenizers
    if not text.strip():
        return Answer(text, ("There is no text yet: type a review first.",))
    if model.training:
        return Answer(text, ("The model is being trained at the moment: ask again when the cell "
                             "that trains it is done.",))  # fmt: skip
    notes = []
    if len(text) > MOST_CHARACTERS:
        notes.append(f"Only the first {MOST_CHARACTERS:,} of {len(text):,} characters were taken.")
        text = text[:MOST_CHARACTERS]
    try:
        found = explain(model, tokenizer, text, method, max_length=max_length,
                        truncation=truncation)  # fmt: skip
    except NoWords:
        return Answer(text, ("The text holds nothing that the tokenizer can read.",))
    notes += _doubts(found, temperature)
    log_p = np.log(np.maximum(found.probabilities, 1e-300)) / (temperature or 1.0)
    p = np.exp(log_p - log_p.max())
    names = getattr(model.config, "id2label", {})
    return Answer(
        text, tuple(notes), label=str(names.get(found.label, found.label)),
        probability=float(p[found.label] / p.sum()), raw_probability=found.probability,
        temperature=temperature, explanation=found,
    )  # fmt: skip


def _doubts(found: Explanation, temperature: float | None) -> list[str]:
    notes = []
    if temperature is None:
        notes.append("The probability is not calibrated: no temperature was given, and fine-tuned "
                     "models are often surer than they are right.")  # fmt: skip
    unseen = sum(not word.seen for word in found.words)
    if unseen:
        notes.append(f"The model read {len(found.words) - unseen:,} of {len(found.words):,} words; "
                     "the others were cut away, as in training.")  # fmt: skip
    if found.unknown:
        notes.append(f"{found.unknown} of {found.tokens} tokens stand for characters that the "
                     "tokenizer does not know: the model can't tell what they say.")  # fmt: skip
    change = abs(found.log_odds - found.baseline_log_odds)
    if found.method == "integrated_gradients" and abs(found.unexplained) > ADDS_UP * change + 0.01:
        notes.append(f"The word scores miss {found.unexplained:+.2f} of a change of {change:.2f}: "
                     "take them as a hint only.")  # fmt: skip
    return notes


# --- how it looks -------------------------------------------------------------------------------


def answer_html(found: Answer, rows: int = 10) -> str:
    """An answer as HTML that needs no kernel; every character of the text is escaped.

    Colour is one of three signs: words for the label are underlined, words against it are
    underlined with dots, and the scores of the strongest stand in a table.

    Args:
        found: what `answer` returned.
        rows: words in the table.
    """
    verdict = f'<p style="margin:4px 0"><b>{escape(found.verdict)}</b></p>'
    notes = "".join(f'<p style="margin:4px 0">{escape(note)}</p>' for note in found.notes)
    if found.label is None:
        return _box(verdict + notes)
    largest = max((abs(word.score) for word in found.words), default=0.0) or 1.0
    parts, end, in_gap = [], 0, False
    for word in found.words:
        between = escape(found.text[end : word.start]).replace("\n", "<br>")
        if word.seen:
            parts += [between, _word_html(word, word.score / largest)]
        elif not in_gap:
            skipped = _unseen_after(found.words, word)
            many = f"{skipped:,} word{'' if skipped == 1 else 's'}"
            parts += [between, f'<span style="color:#6B6B6B">[{many} not read]</span>']
        end, in_gap = word.end, not word.seen
    parts.append(escape(found.text[end:]).replace("\n", "<br>"))
    label = escape(found.label)
    legend = (f'<p style="margin:4px 0;font-size:90%">{_span("for", BLUE, 0.35, "solid")} '
              f'{label}, {_span("against", VERMILLION, 0.35, "dotted")} it; stronger colour: moved '
              "the prediction more.</p>")  # fmt: skip
    words = f'<p style="margin:8px 0;line-height:1.9">{"".join(parts)}</p>'
    return _box(verdict + words + legend + notes + _table(found, rows))


def answer_text(found: Answer, rows: int = 10) -> str:
    """An answer as plain text: the verdict, the notes, the strongest words and their scores."""
    lines = [found.verdict, *found.notes]
    lines += [f"{word.score:+.2f}  {_short(word.text)}" for word in strongest(found, rows)]
    return "\n".join(lines)


def strongest(found: Answer, rows: int) -> list[WordScore]:
    """The words that moved the prediction most, in either direction."""
    return sorted((w for w in found.words if w.seen), key=lambda w: -abs(w.score))[:rows]


def _short(word: str) -> str:
    return word if len(word) <= LONGEST_SHOWN else word[: LONGEST_SHOWN - 1] + "…"


def _unseen_after(words: Sequence[WordScore], first: WordScore) -> int:
    start = next(i for i, word in enumerate(words) if word is first)
    stop = next((i for i in range(start, len(words)) if words[i].seen), len(words))
    return stop - start


def _word_html(word: WordScore, share: float) -> str:
    if abs(share) < 0.05:
        return escape(word.text)
    colour, line = (BLUE, "solid") if share > 0 else (VERMILLION, "dotted")
    return _span(word.text, colour, 0.5 * abs(share), line, f"{word.score:+.2f}")


def _span(text: str, colour: str, strength: float, line: str, title: str = "") -> str:
    # Mixed with white up to one half, so that dark text keeps its contrast.
    rgb = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    fill = "#" + "".join(f"{round(255 + strength * (c - 255)):02X}" for c in rgb)
    hint = f' title="{escape(title)}"' if title else ""
    return (f'<span{hint} style="background:{fill};border-bottom:2px {line} {colour};'
            f'padding:1px 2px">{escape(text)}</span>')  # fmt: skip


def _table(found: Answer, rows: int) -> str:
    cells = "".join(
        f"<tr><td>{escape(_short(word.text))}</td><td>{word.score:+.2f}</td></tr>"
        for word in strongest(found, rows)
    )
    return ("<details><summary>The strongest words in numbers (log-odds)</summary><table>"
            f"<tr><th>word</th><th>score</th></tr>{cells}</table></details>")  # fmt: skip


def _box(inner: str) -> str:
    # Its own ink and paper, whatever the theme of the notebook.
    style = f"color:{INK};background:#FFFFFF;padding:6px 10px;overflow-wrap:anywhere"
    return f'<div style="{style}">{inner}</div>'


def try_review(
    model: torch.nn.Module, tokenizer: Any, temperature: float | None = None, text: str = "",
    max_length: int = 128, truncation: str = "head+tail", method: str = "integrated_gradients",
) -> ipywidgets.VBox:
    """A box to type a review in, a button, and the model's answer beneath.

    Args:
        model: as for `answer`.
        tokenizer: as for `answer`.
        temperature: as for `answer`.
        text: what stands in the box at first; where it is not empty it is answered at once.
        max_length: as for `answer`.
        truncation: as for `answer`.
        method: as for `answer`.
    """
    import ipywidgets

    box = ipywidgets.Textarea(value=text, placeholder="Type a review", rows=5,
                              layout={"width": "98%"})  # fmt: skip
    button = ipywidgets.Button(description="Ask the model", button_style="primary")
    shown = ipywidgets.HTML()

    def ask(_button: object = None) -> None:
        button.disabled = True
        try:
            found = answer(
                box.value, model, tokenizer, temperature, max_length, truncation, method
            )
            shown.value = answer_html(found)
        except Exception as error:  # else it ends in a log that nobody in front of the box reads
            shown.value = _box(f"No answer: {escape(f'{type(error).__name__}: {error}')}")
        finally:
            button.disabled = False

    button.on_click(ask)
    if text:
        ask()
    return ipywidgets.VBox([box, button, shown])
