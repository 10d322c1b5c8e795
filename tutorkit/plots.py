"""The figures of the report: plain data in, a matplotlib figure out.

Every function returns a finished `Figure` that pyplot has already let go of: as the last line of
a notebook cell it is shown exactly once, and nothing has to be closed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, SupportsInt

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

WIDTH = 7.0  # inches: the text width of a notebook

# Okabe & Ito (2008), "Color Universal Design": told apart with any kind of colour vision.
BLUE, SKY, VERMILLION = "#0072B2", "#56B4E9", "#D55E00"
GREEN, ORANGE, PURPLE = "#009E73", "#E69F00", "#CC79A7"
GREY, INK = "#6B6B6B", "#222222"

STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # a label name may hold a dollar sign
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#999999",
    "ytick.color": "#999999",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}

# What score_comparison says of each kind of score, and in which colour.
SCORE_KINDS = {
    "baseline": ("baseline", GREY),
    "before": ("before fine-tuning", VERMILLION),
    "model": ("fine-tuned", BLUE),
    "claim": ("claim, not measured", INK),
}


@contextmanager
def styled_figure(height: float) -> Iterator[Figure]:
    """A styled figure, drawn once inside the style and then forgotten by pyplot."""
    with matplotlib.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH, height), layout="constrained")
        try:
            yield figure
            # Ticks are made when first drawn and take the style of that moment.
            figure.draw_without_rendering()
        finally:
            plt.close(figure)  # else the notebook shows an open figure a second time


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _percent_tick(share: float, _position: int) -> str:
    return f"{100 * share:g} %"


def _rows(n: int) -> str:
    return f"{n:,} review" + ("" if n == 1 else "s")


def _check_not_empty(values: Sized, what: str) -> None:
    if not len(values):
        raise ValueError(f"{what}: expected at least one entry to draw, found none.")


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of the last `window` values at every position (of fewer at the start)."""
    sums = np.convolve(values, np.ones(window))[: len(values)]
    return sums / np.minimum(np.arange(1, len(values) + 1), window)


def learning_curves(history: Mapping[str, Any]) -> Figure:
    """Loss, validation accuracy and learning rate over the optimizer steps.

    The bold training curve is the mean over the last twentieth of all steps; below 20 steps
    only the steps themselves are drawn.

    Args:
        history: what `history.json` holds: `steps` (dicts with step, epoch, loss,
            learning_rate) and `evaluations` (dicts with step, loss, accuracy).

    Raises:
        ValueError: If `history` has no steps.
    """
    steps, evaluations = history["steps"], history["evaluations"]
    _check_not_empty(steps, "history['steps']")
    x = [row["step"] for row in steps]
    evaluated_at = [row["step"] for row in evaluations]
    with styled_figure(3.6) as figure:
        grid = figure.subplot_mosaic([["loss", "accuracy"], ["loss", "rate"]], height_ratios=[3, 1])
        _draw_loss(grid["loss"], x, [row["loss"] for row in steps])
        if evaluations:
            losses = [row["loss"] for row in evaluations]
            grid["loss"].plot(evaluated_at, losses, "o-", color=VERMILLION, label="validation")
            _draw_accuracy(grid["accuracy"], evaluated_at, [row["accuracy"] for row in evaluations])
        else:
            grid["accuracy"].text(0.5, 0.5, "no evaluation in this run", ha="center",
                                  transform=grid["accuracy"].transAxes)  # fmt: skip
        grid["loss"].legend(labelcolor="linecolor")
        grid["loss"].set(title="Loss (cross-entropy, nats)", xlabel="optimizer step")
        grid["accuracy"].set(title="Validation accuracy")

        rates = [row["learning_rate"] for row in steps]
        grid["rate"].plot(x, rates, "-" if len(x) > 1 else "o", color=GREY)
        peak = max(rates)
        grid["rate"].set(title="Learning rate", xlabel="optimizer step", ylim=(0, 1.15 * peak or 1))
        grid["rate"].set_yticks([0, peak] if peak else [0], ["0", f"{peak:.3g}"][: 1 + bool(peak)])

        last = max([*x, *evaluated_at])
        for axes in grid.values():
            axes.set_xlim(-0.03 * last, 1.03 * last)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if steps[-1]["epoch"] > 0:
            per_epoch = steps[-1]["step"] / steps[-1]["epoch"]
            for name in ("loss", "accuracy"):
                _add_epochs(grid[name], per_epoch)
        return figure


def _draw_loss(axes: Axes, x: Sequence[int], losses: Sequence[float]) -> None:
    window = len(losses) // 20
    if window < 2:
        axes.plot(x, losses, ".-", color=BLUE, linewidth=1, label="training, each step")
        return
    axes.plot(x, losses, color=SKY, linewidth=0.6, alpha=0.7)
    mean = running_mean(losses, window)
    axes.plot(x, mean, color=BLUE, linewidth=2, label=f"training, mean of last {window} steps")


def _draw_accuracy(axes: Axes, x: Sequence[int], accuracies: Sequence[float]) -> None:
    best = int(np.argmax(accuracies))
    axes.plot(x, accuracies, "o-", color=VERMILLION)
    axes.plot(x[best], accuracies[best], "o", markersize=11, markerfacecolor="none", color=INK)
    side = "left" if x[best] < max(x) / 3 else "right" if x[best] > max(x) * 2 / 3 else "center"
    axes.annotate(f"best {accuracies[best]:.3f}, step {x[best]:,}", (x[best], accuracies[best]),
                  xytext=(0, 9), textcoords="offset points", ha=side)  # fmt: skip
    axes.margins(y=0.35)  # room for the words above the highest point


def _add_epochs(axes: Axes, steps_per_epoch: float) -> None:
    epochs = axes.secondary_xaxis(
        "top", functions=(lambda step: step / steps_per_epoch, lambda e: e * steps_per_epoch)
    )
    epochs.set_xlabel("epoch", fontsize=8)
    epochs.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def length_distribution(
    token_counts: Mapping[str, Iterable[SupportsInt]], max_length: int
) -> Figure:
    """Histogram of the review lengths per split, and what truncation at `max_length` cuts.

    A review of c tokens loses max(0, c - max_length) of them. The last bar gathers the longest
    half per cent, so that a few very long reviews do not squeeze the rest.

    Args:
        token_counts: for each split, the tokens of every review before truncation, counted as
            `max_length` counts them (special tokens in both or in neither).
        max_length: tokens that the model sees of a review.

    Raises:
        ValueError: If there is no split, or a split without reviews.
    """
    counts = {split: np.asarray(list(values)) for split, values in token_counts.items()}
    _check_not_empty(counts, "token_counts")
    for split, values in counts.items():
        _check_not_empty(values, f"token_counts[{split!r}]")
    everything = np.concatenate(list(counts.values()))
    longest = max(np.quantile(everything, 0.995), 1.1 * max_length)
    width = math.ceil(longest / 40)  # whole tokens: every bar spans equally many lengths
    edges = np.arange(0, longest + width, width)
    with styled_figure(0.6 + 1.1 * len(counts)) as figure:
        rows = figure.subplots(len(counts), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (split, values) in zip(rows, counts.items(), strict=True):
            share = np.full(len(values), 1 / len(values))
            axes.hist(np.minimum(values, edges[-1]), bins=edges, weights=share, color=SKY)
            axes.axvline(max_length, color=VERMILLION, linewidth=1.5)
            cut = np.maximum(values - max_length, 0)
            axes.set_title(
                f"{split}: {_rows(len(values))}, {_percent(np.mean(cut > 0))} longer than "
                f"{max_length}, {_percent(cut.sum() / max(values.sum(), 1))} of tokens cut"
            )
            axes.yaxis.set_major_formatter(_percent_tick)
            axes.yaxis.set_major_locator(MaxNLocator(3))
        side = "left" if max_length < edges[-1] / 2 else "right"
        rows[0].text(max_length, 0.95, f" max_length = {max_length} ", color=VERMILLION, va="top",
                     ha=side, transform=rows[0].get_xaxis_transform())  # fmt: skip
        gathered = " (the last bar holds all longer ones)" if everything.max() > edges[-1] else ""
        rows[-1].set_xlabel(f"tokens per review{gathered}")
        rows[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        figure.supylabel("share of the split's reviews", fontsize=9)
        return figure


def class_balance(
    labels_by_split: Mapping[str, Iterable[SupportsInt]], label_names: Sequence[str]
) -> Figure:
    """How many reviews of each class every split holds, with the shares written in.

    Args:
        labels_by_split: for each split, the label of every review.
        label_names: the name of label 0, 1, …

    Raises:
        ValueError: If there is no split, or a label without a name.
    """
    splits = {split: np.asarray(list(labels)) for split, labels in labels_by_split.items()}
    _check_not_empty(splits, "labels_by_split")
    classes = np.arange(len(label_names))
    for split, labels in splits.items():
        unknown = sorted(set(labels.tolist()) - set(classes.tolist()))
        if unknown:
            raise ValueError(
                f"labels_by_split[{split!r}]: expected labels from 0 to {len(classes) - 1}, one "
                f"for each of {list(label_names)}, found {unknown}. Name every label."
            )
    with styled_figure(1.0 + 0.35 * len(classes)) as figure:
        columns = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (split, labels) in zip(columns, splits.items(), strict=True):
            counts = np.array([(labels == label).sum() for label in classes])
            shares = counts / max(len(labels), 1)
            axes.barh(classes, shares, color=SKY, height=0.7)
            for label, (n, share) in enumerate(zip(counts, shares, strict=True)):
                axes.text(0.01, label, f"{n:,} ({_percent(share)})", va="center", fontsize=8)
            axes.set_title(f"{split}: {_rows(len(labels))}")
            axes.xaxis.set_major_formatter(_percent_tick)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.grid(visible=False, axis="y")
        columns[0].set_yticks(classes, [textwrap.fill(name, 20) for name in label_names])
        columns[0].set_xlim(0, None)
        columns[0].invert_yaxis()
        figure.supxlabel("share of the split's reviews", fontsize=9)
        return figure


def confusion_matrix(matrix: Iterable[Iterable[SupportsInt]], label_names: Sequence[str]) -> Figure:
    """Counts of true against predicted labels, with each cell's share of its row.

    The share on the diagonal is the recall of that class.

    Args:
        matrix: counts; row = true label, column = predicted label.
        label_names: the name of label 0, 1, …

    Raises:
        ValueError: If the matrix is not square with one row for each label name.
    """
    counts = np.asarray([list(row) for row in matrix])
    size = len(label_names)
    if counts.shape != (size, size):
        raise ValueError(
            f"matrix: expected {size} rows and {size} columns, one for each of "
            f"{list(label_names)}, found shape {counts.shape}. Pass all labels to both."
        )
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    with styled_figure(1.2 + 0.7 * size) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), n in np.ndenumerate(counts):
            share = f"\n{_percent(shares[row, column])}" if totals[row] else ""
            axes.text(column, row, f"{n:,}{share}", ha="center", va="center",
                      color=_ink_on(image.cmap(shares[row, column])))  # fmt: skip
        axes.set_xticks(range(size), [textwrap.fill(name, 10) for name in label_names])
        axes.set_yticks(range(size), label_names)
        axes.set(xlabel="predicted label", ylabel="true label")
        axes.set_title(f"{_rows(int(counts.sum()))}; % = share of the row")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return figure


def _luminance(colour: Any) -> float:
    """Relative luminance of a colour, 0 to 1 (WCAG 2.1, definition "relative luminance")."""
    rgb = np.asarray(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _ink_on(background: Any) -> str:
    """Dark or white text, whichever contrasts more with the background."""
    light = _luminance(background) + 0.05
    return INK if light / (_luminance(INK) + 0.05) > 1.05 / light else "white"


def reliability_diagram(bins: Sequence[Mapping[str, Any]], ece: float) -> Figure:
    """Accuracy against the model's confidence, bin by bin, with the rows of each bin beneath.

    On the diagonal a confidence of 0.8 is right 8 times in 10. The thin line from each point to
    the diagonal is the bin's gap; their mean, weighted by rows, is the expected calibration
    error (Guo et al. 2017, equation 3).

    Args:
        bins: dicts with low, high, n, confidence (mean in the bin), accuracy; bins without rows
            are left out.
        ece: expected calibration error, as computed from the same bins.

    Raises:
        ValueError: If no bin has rows.
    """
    bins = [row for row in bins if row["n"] > 0]
    _check_not_empty(bins, "bins with rows")
    confidence = np.array([row["confidence"] for row in bins])
    accuracy = np.array([row["accuracy"] for row in bins])
    start = min(row["low"] for row in bins)
    with styled_figure(4.6) as figure:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.plot([start, 1], [start, 1], "--", color=GREY, linewidth=1)
        top.vlines(confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy),
                   color=VERMILLION, linewidth=1.5)  # fmt: skip
        top.plot(confidence, accuracy, "o", color=BLUE, clip_on=False)
        top.set(ylabel="accuracy", ylim=(max(0, min(start, accuracy.min() - 0.03)), 1))
        top.set_title(f"Accuracy by confidence (expected calibration error {ece:.3f})")
        above = "above the dashed line: right more often than its confidence"
        top.text(0.02, 0.96, above, va="top", color=GREY, transform=top.transAxes)
        under = "below: right less often than its confidence"
        top.text(0.98, 0.04, under, ha="right", color=GREY, transform=top.transAxes)

        centres = [(row["low"] + row["high"]) / 2 for row in bins]
        widths = [0.9 * (row["high"] - row["low"]) for row in bins]
        bars = below.bar(centres, [row["n"] for row in bins], width=widths, color=SKY)
        below.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=1)
        below.set(xlabel="confidence (probability of the predicted label)", ylabel="reviews")
        below.set_xlim(start, 1)
        below.margins(y=0.25)
        below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        return figure


def accuracy_by_length(rows: Sequence[Mapping[str, Any]], unit: str = "tokens") -> Figure:
    """Accuracy with its 95 % interval in bins of review length, and the accuracy of all.

    Args:
        rows: dicts with low and high (the shortest and longest review of the bin; high None:
            no upper end), n, accuracy and accuracy_ci95 ([low, high] or None); bins without
            rows are left out.
        unit: what the lengths count, for the axis label.

    Raises:
        ValueError: If no bin has rows.
    """
    rows = [row for row in rows if row["n"] > 0]
    _check_not_empty(rows, "length bins with rows")
    n = np.array([row["n"] for row in rows])
    accuracy = np.array([row["accuracy"] for row in rows])
    overall = float((n * accuracy).sum() / n.sum())
    with styled_figure(3.0) as figure:
        axes = figure.subplots()
        axes.axhline(overall, color=GREY, linestyle="--", linewidth=1)
        axes.text(1.01, overall, f"all {overall:.3f}", va="center", color=GREY,
                  transform=axes.get_yaxis_transform())  # fmt: skip
        for x, row in enumerate(rows):
            if row["accuracy_ci95"] is not None:
                axes.vlines(x, *row["accuracy_ci95"], color=BLUE, linewidth=1.5)
            axes.annotate(f"{row['accuracy']:.3f}", (x, row["accuracy"]), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=8,
                          bbox={"color": "white", "pad": 0.5})  # fmt: skip
        axes.plot(range(len(rows)), accuracy, "o", color=BLUE)
        axes.set_xticks(range(len(rows)), [f"{_span(row)}\nn = {row['n']:,}" for row in rows])
        axes.set(xlabel=f"review length ({unit})", ylabel="accuracy")
        axes.set_title("Accuracy by review length, with 95 % intervals")
        axes.set_xlim(-0.5, len(rows) - 0.3)
        axes.grid(visible=False, axis="x")
        return figure


def _span(row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    if high is None:
        return f"from {low:,}"
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def score_comparison(scores: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracies side by side with their 95 % intervals, the highest on top.

    A claim, a number that somebody states and that was not measured here, is drawn hollow and
    says so.

    Args:
        scores: dicts with name, accuracy, ci95 ([low, high] or None) and kind, one of
            "baseline", "before", "model", "claim".

    Raises:
        ValueError: If there is no score, or a kind is unknown.
    """
    _check_not_empty(scores, "scores")
    for score in scores:
        if score["kind"] not in SCORE_KINDS:
            raise ValueError(
                f"score {score['name']!r}: expected kind to be one of {', '.join(SCORE_KINDS)}, "
                f"found {score['kind']!r}. Choose the one that fits."
            )
    ordered = sorted(scores, key=lambda score: score["accuracy"])
    with styled_figure(0.9 + 0.32 * len(ordered)) as figure:
        axes = figure.subplots()
        for y, score in enumerate(ordered):
            words, colour = SCORE_KINDS[score["kind"]]
            written = f"{score['accuracy']:.3f}"
            if score["ci95"] is not None:
                low, high = score["ci95"]
                axes.hlines(y, low, high, color=colour, linewidth=2)
                written += f" [{low:.3f}, {high:.3f}]"
            fill = "white" if score["kind"] == "claim" else colour
            axes.plot(score["accuracy"], y, "o", color=colour, markerfacecolor=fill)
            axes.text(1.02, y, f"{written}  {words}", va="center", color=colour, fontsize=8,
                      transform=axes.get_yaxis_transform())  # fmt: skip
        names = [textwrap.fill(score["name"], 30) for score in ordered]
        axes.set_yticks(range(len(ordered)), names)
        axes.set(xlabel="accuracy", ylim=(-0.6, len(ordered) - 0.4))
        axes.set_title("Accuracy, with 95 % intervals where they were computed")
        axes.margins(x=0.08)
        return figure
