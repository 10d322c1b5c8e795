"""Figures of the lesson on transfer: learning curves, paired differences, rates, what is forgotten.

The numbers behind them are plain functions of the lines that `budgets.measure` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tutorkit.metrics import mean_interval
from tutorkit.plots import BLUE, GREEN, GREY, INK, SKY, VERMILLION, styled_figure
from tutorkit.studies import compare
from tutorkit.transfer import STRATEGIES

# What a line is called, its colour, and the style of its line.
LOOKS = {
    "everything": (STRATEGIES["everything"].title, BLUE, "-", "o"),
    "discriminative": (STRATEGIES["discriminative"].title, SKY, "-", "s"),
    "last_layers": (STRATEGIES["last_layers"].title, GREEN, "-", "^"),
    "features": (STRATEGIES["features"].title, VERMILLION, "-", "D"),
    "scratch": (STRATEGIES["scratch"].title, INK, "-", "v"),
    "nb_trigrams": ("counting word triples", GREY, "--", ""),
    "tfidf_bigrams": ("counting word pairs", GREY, ":", ""),
    "tfidf_unigrams": ("counting words", GREY, "-.", ""),
}  # fmt: skip


def by_budget(lines: Sequence[Mapping], strategy: str, key: str = "accuracy") -> dict[int, list]:
    """The values of a strategy at every budget, seeds in order: {n: [value, …]}.

    Args:
        lines: as `studies.read` returns them.
        strategy: whose.
        key: of a line; "remembers.pairs" looks into its "remembers".

    Raises:
        ValueError: no line of that strategy has the key.
    """
    found: dict[int, list] = {}
    for line in sorted(lines, key=lambda line: (line["n"], line["seed"])):
        if line["strategy"] == strategy:
            value: Any = line
            for part in key.split("."):
                value = value.get(part, {}) if isinstance(value, Mapping) else {}
            if not isinstance(value, Mapping):
                found.setdefault(line["n"], []).append(value)
    if not found:
        raise ValueError(f"expected results of {strategy!r} with {key!r}, found "
                         f"{sorted({line['strategy'] for line in lines})}")
    return found


def differences(lines: Sequence[Mapping], strategy: str, rival: str) -> dict[int, list[float]]:
    """Accuracy of a strategy minus that of a rival, seed by seed: {n: [difference, …]}.

    Raises:
        ValueError: no budget and seed has both.
    """
    of = [[line for line in lines if line["strategy"] == name] for name in (strategy, rival)]
    found = compare.differences_by_budget(*of)
    if not found:
        raise ValueError(f"expected results of {strategy!r} and {rival!r} at the same budget and "
                         "seed, found none")
    return found


def curve_figure(lines: Sequence[Mapping], strategies: Sequence[str] = tuple(LOOKS)) -> Figure:
    """Test accuracy against the number of labelled texts: a dot a seed, a line through the means.

    Args:
        lines: as `studies.read` returns them.
        strategies: names from `LOOKS`, those of the baselines included.
    """
    with styled_figure(3.6) as figure:
        axes = figure.subplots()
        ends = {}
        for name in strategies:
            title, colour, style, marker = LOOKS[name]
            found = by_budget(lines, name)
            means = [np.mean(values) for values in found.values()]
            axes.plot(list(found), means, style, color=colour, linewidth=1.6)
            if marker:
                for n, values in found.items():
                    axes.plot([n] * len(values), values, marker, color=colour, markersize=4,
                              alpha=0.6, markeredgewidth=0)  # fmt: skip
            dashes = {"--": " (– –)", ":": " (· ·)", "-.": " (– ·)"}.get(style, "")
            ends[title + dashes] = (means[-1], colour)
        _budget_axis(axes, lines)
        axes.axhline(0.5, color=GREY, linewidth=0.8)
        axes.set(title="Test accuracy (marks: single seeds; lines: their means)",
                 ylabel="accuracy", ylim=(0.44, None))  # fmt: skip
        axes.text(1, 0.5, "guessing ", color=GREY, fontsize=8, va="bottom", ha="right",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        _label_ends(axes, ends)
        return figure


def difference_figure(lines: Sequence[Mapping], strategies: Sequence[str], rival: str) -> Figure:
    """Accuracy minus that of a rival with the same seed: the mean, and its interval over seeds.

    Args:
        lines: as `studies.read` returns them.
        strategies: names from `LOOKS`.
        rival: another one, which is the line at 0.

    Raises:
        ValueError: fewer than two seeds.
    """
    with styled_figure(3.0) as figure:
        axes = figure.subplots()
        axes.axhline(0, color=LOOKS[rival][1], linewidth=1.2, linestyle=LOOKS[rival][2])
        for place, name in enumerate(strategies):
            title, colour, _, marker = LOOKS[name]
            found = differences(lines, name, rival)
            shift = 1.09 ** (place - (len(strategies) - 1) / 2)  # side by side on a log axis
            for n, values in found.items():
                low, high = mean_interval(values)
                axes.plot([n * shift] * 2, [low, high], color=colour, linewidth=1.4)
                axes.plot([n * shift] * len(values), values, "_", color=colour, markersize=6)
            means = [np.mean(values) for values in found.values()]
            axes.plot([n * shift for n in found], means, marker or "o", color=colour, label=title)
        _budget_axis(axes, lines)
        axes.set(title=f"Accuracy minus that of “{LOOKS[rival][0]}” (bars: 95 % over seeds)",
                 ylabel="difference")
        axes.legend(loc="best", ncols=2)
        return figure


def forgetting_figure(lines: Sequence[Mapping], memory: str, untouched: float) -> Figure:
    """What is remembered against what was learned: a mark a run, larger for more labelled texts.

    Args:
        lines: as `studies.read` returns them.
        memory: a name in their "remembers", such as "domains".
        untouched: what the pretrained model remembers before any training.
    """
    budgets = sorted({line["n"] for line in lines})
    with styled_figure(3.4) as figure:
        axes = figure.subplots()
        axes.axhline(untouched, color=GREY, linewidth=1, linestyle=":")
        axes.text(0.01, untouched, "pretrained, untouched", color=GREY, fontsize=8, va="bottom",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        for name in ("everything", "discriminative", "last_layers", "features", "scratch"):
            title, colour, _, marker = LOOKS[name]
            learned = by_budget(lines, name)
            kept = by_budget(lines, name, f"remembers.{memory}")
            for n in learned:
                axes.plot(learned[n], kept[n], marker, color=colour, alpha=0.75,
                          markersize=4 + 2 * budgets.index(n), markeredgecolor="white",
                          label=title if n == budgets[len(budgets) // 2] else None)  # fmt: skip
        axes.set(title=f"Learned and remembered (larger: more labelled texts, {budgets[0]:,} to "
                 f"{budgets[-1]:,})", xlabel="test accuracy: the new task",
                 ylabel="nearest text is of its kind")  # fmt: skip
        axes.margins(y=0.12)
        figure.legend(loc="outside lower center", ncols=5, handletextpad=0.1, columnspacing=1)
        return figure


def rates_figure(rates: Mapping[str, Sequence[float]], parts: Sequence[str]) -> Figure:
    """The learning rate of every part of a model, on a logarithmic axis.

    Args:
        rates: a name of up to three lines, and one rate a part; 0 is drawn as frozen.
        parts: from the embeddings to the head.
    """
    with styled_figure(2.4) as figure:
        axes = figure.subplots()
        place = np.arange(len(parts))
        for (name, values), colour, marker in zip(
            rates.items(), (BLUE, SKY, GREEN), "os^", strict=False
        ):
            trained = np.array(values) > 0
            axes.plot(place[trained], np.array(values)[trained], marker + "-", color=colour,
                      label=name)  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.0e}"))
        axes.set_xticks(place, parts)
        axes.set(title="Learning rate of each part (frozen parts have no point)",
                 ylabel="learning rate")  # fmt: skip
        axes.legend()
        return figure


def trade_figure(
    alphas: Sequence[float], learned: Sequence[float], kept: Sequence[float]
) -> Figure:
    """Accuracy and what is remembered on the straight way between two sets of weights.

    Args:
        alphas: places on the way: 0 is the pretrained model, 1 the fine-tuned one.
        learned: accuracy on the new task at each.
        kept: share of texts whose nearest neighbour is of their kind.
    """
    with styled_figure(2.6) as figure:
        axes = figure.subplots()
        for values, colour, marker, text in ((learned, BLUE, "o", "the new task: accuracy"),
                                             (kept, VERMILLION, "D", "the old one: right aspect")):
            axes.plot(alphas, values, marker + "-", color=colour, label=text)
        axes.set(title="Between the pretrained model (0) and the fine-tuned one (1)",
                 xlabel="share α of the fine-tuned weights", ylabel="share of texts",
                 ylim=(0, 1.02))  # fmt: skip
        axes.legend(loc="best")
        return figure


def _budget_axis(axes: Axes, lines: Sequence[Mapping]) -> None:
    budgets = sorted({line["n"] for line in lines})
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.set_xlabel("labelled texts to learn from")


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Names at the right end of the curves, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    least = 0.062 * (high - low)
    ordered = sorted(ends.items(), key=lambda item: item[1][0])
    heights: list[float] = []
    for _, (height, _) in ordered:
        heights.append(max(height, heights[-1] + least) if heights else height)
    heights[-1] = min(heights[-1], high)
    for i in range(len(heights) - 2, -1, -1):  # from the top down, only where they would collide
        heights[i] = min(heights[i], heights[i + 1] - least)
    for (title, (height, colour)), y in zip(ordered, heights, strict=True):
        axes.annotate(title, (1, height), (1.02, y), xycoords=axes.get_yaxis_transform(),
                      textcoords=axes.get_yaxis_transform(), color=colour, fontsize=8,
                      va="center", annotation_clip=False)  # fmt: skip
