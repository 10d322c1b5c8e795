"""Figures of the lesson on few trained weights: memory, low rank, budgets of ranks, the frontier.

The numbers behind them are plain functions: `energy`, and what reads a record's lines, `chosen`,
`values`, `differences` and `resolved`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from tutorkit.metrics import mean_interval
from tutorkit.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, styled_figure
from tutorkit.studies import compare
from tutorkit.widgets import Control, Drawing

# What a method is called, its colour and its mark.
LOOKS = {
    "full": ("all weights", INK, "s"),
    "head": ("last layer only", GREY, "v"),
    "bitfit": ("BitFit", PURPLE, "^"),
    "adapter": ("bottleneck adapters", GREEN, "D"),
    "lora": ("LoRA", BLUE, "o"),
    "adalora": ("AdaLoRA", VERMILLION, "P"),
}
CHEAP = {"tfidf_unigrams": "counting words", "tfidf_bigrams": "counting word pairs",
         "nb_trigrams": "counting word triples"}  # fmt: skip
USUAL_R = 8  # the rank of LoRA that stands for it where ranks are not compared
PARTS = (GREY, SKY, BLUE, ORANGE)  # of the memory, in the order of its parts


# --- numbers --------------------------------------------------------------------------------------


def energy(delta: Float[Tensor, "outputs inputs"]) -> np.ndarray:
    """Share of a matrix that its best approximation of rank 1, 2, … holds: (min(d_out, d_in),).

        E_k = Σ_{i ≤ k} σ_i² / Σ_i σ_i²        with the singular values σ_1 ≥ σ_2 ≥ …

    Raises:
        ValueError: no matrix, or one of zeros.

    Source: Eckart & Young 1936: what is cut off after k singular values is the squared distance to
    the nearest matrix of rank k.
    """
    if delta.ndim != 2 or not delta.any():
        raise ValueError(f"expected a matrix with an entry other than 0, found one of shape "
                         f"{tuple(delta.shape)}")
    squares = torch.linalg.svdvals(delta.detach().double()) ** 2
    return (squares.cumsum(0) / squares.sum()).numpy()


def chosen(lines: Sequence[Mapping], model: str, method: str, r: int = USUAL_R) -> list[Mapping]:
    """A method's runs, seeds in order; of LoRA's those of rank r.

    Raises:
        ValueError: there are none.
    """
    found = [line for line in lines if (line["model"], line["method"]) == (model, method)
             and (method != "lora" or line["settings"]["r"] == r)]  # fmt: skip
    if not found:
        there = sorted({(line["model"], line["method"]) for line in lines})
        raise ValueError(f"expected runs of {method!r} with {model!r}"
                         f"{f' and r = {r}' if method == 'lora' else ''}, found {there}")
    return sorted(found, key=lambda line: line["seed"])


def values(lines: Sequence[Mapping], model: str, method: str, key: str = "accuracy",
           r: int = USUAL_R) -> list[float]:  # fmt: skip
    """One number of each of a method's runs; `key` may be "share" or "memory_mb" besides.

    "share" is that of the parameters that train, "memory_mb" how much the peak memory of the
    process grew by training.
    """
    made = {"share": lambda line: line["n_trained"] / line["n_parameters"],
            "memory_mb": lambda line: line["peak_rss_mb"] - line["start_rss_mb"]}  # fmt: skip
    read = made.get(key, lambda line: line[key])
    return [read(line) for line in chosen(lines, model, method, r)]


def methods_of(lines: Sequence[Mapping], model: str) -> list[str]:
    """Which methods have runs with a model, in the order of `LOOKS`."""
    there = {line["method"] for line in lines if line["model"] == model}
    return [method for method in LOOKS if method in there]


def differences(
    lines: Sequence[Mapping], model: str, method: str, rival: str, r: int = USUAL_R,
    rival_r: int = USUAL_R,
) -> list[float]:  # fmt: skip
    """Accuracy of a method minus that of a rival, seed by seed.

    Raises:
        ValueError: no seed with both.
    """
    found = compare.differences(chosen(lines, model, method, r),
                                chosen(lines, model, rival, rival_r))
    if not found:
        raise ValueError(f"expected {method!r} and {rival!r} with the same seed, found none")
    return found


def resolved(
    lines: Sequence[Mapping], test_labels: str, model: str, method: str, rival: str,
    r: int = USUAL_R, rival_r: int = USUAL_R,
) -> list[int]:  # fmt: skip
    """What the paired test of each seed says: 1 the method is better, -1 worse, 0 not resolved."""
    tests = compare.paired_tests(chosen(lines, model, method, r),
                                 chosen(lines, model, rival, rival_r),
                                 compare.answers_of(test_labels))  # fmt: skip
    return [compare.verdict(test) for test in tests]


# --- memory, low rank, budgets --------------------------------------------------------------------


def memory_figure(parts: Mapping[str, Mapping[str, float]]) -> Figure:
    """Where the memory of a training step goes: a bar a method, cut into its parts.

    Args:
        parts: a name of `LOOKS`, or another, to bytes by part; the same parts in each.

    Raises:
        ValueError: no method.
    """
    if not parts:
        raise ValueError("expected the memory of at least one method, found none")
    with styled_figure(0.9 + 0.32 * len(parts)) as figure:
        axes = figure.subplots()
        names = list(parts)
        left = np.zeros(len(names))
        for part, colour in zip(parts[names[0]], PARTS, strict=False):
            width = np.array([parts[name][part] / 1e6 for name in names])
            axes.barh(range(len(names)), width, left=left, color=colour, label=part, height=0.7)
            left += width
        for place, total in enumerate(left):
            axes.text(total, place, f" {total:,.0f}", va="center", fontsize=8)
        axes.set_yticks(range(len(names)), [LOOKS.get(name, (name,))[0] for name in names])
        axes.invert_yaxis()
        axes.margins(x=0.08)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="MB (a million bytes)", title="Memory of one training step")
        figure.legend(loc="outside lower center", ncols=len(PARTS))
        return figure


def energy_figure(curves: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Shares of energy by rank, on a logarithmic axis of ranks; the last curve is grey.

    Args:
        curves: a name to what `energy` returns; up to six. The last one is what to compare with,
            such as that of a random matrix.
        title: what stands above.

    Raises:
        ValueError: no curve.
    """
    if not curves:
        raise ValueError("expected at least one curve, found none")
    with styled_figure(2.9) as figure:
        axes = figure.subplots()
        colours = [BLUE, VERMILLION, GREEN, SKY, ORANGE][: len(curves) - 1] + [GREY]
        for (name, shares), colour in zip(curves.items(), colours, strict=True):
            axes.plot(range(1, len(shares) + 1), shares, color=colour, label=name,
                      linestyle="--" if colour == GREY else "-")  # fmt: skip
        _rank_axis(axes, max(map(len, curves.values())))
        axes.set(title=title, ylabel="share of energy", ylim=(0, 1.03))
        axes.legend(loc="lower right")
        return figure


class Reconstruction(Drawing):
    """A matrix, its nearest one of rank k, and how much of it that holds.

    Args:
        delta: (d_out, d_in); its rows and columns are averaged into at most 96 blocks each, which
            are drawn. The share is that of the whole matrix.

    Raises:
        ValueError: no matrix, or one of zeros.
    """

    height = 2.9
    description = (
        "Left: a change of weights as a picture, blue below 0 and red above. Middle: the nearest "
        "matrix of the chosen rank, in the same colours. Right: the share of energy by rank, with "
        "a dot at the chosen one."
    )

    def __init__(self, delta: Float[Tensor, "outputs inputs"]) -> None:
        self._shares = energy(delta)
        left, sizes, right = torch.linalg.svd(delta.detach().double(), full_matrices=False)
        self._left, self._right = _blocks(left.T * sizes[:, None]), _blocks(right)  # (rank, ≤ 96)
        most = len(sizes)
        ranks = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        ranks = tuple(r for r in ranks if r < most) + (most,)
        self.controls = {"rank": Control("rank", ranks, min(8, most))}
        super().__init__()

    def _picture(self, rank: int) -> np.ndarray:
        return (self._left[:rank].T @ self._right[:rank]).numpy()

    def _build(self, figure: Figure) -> None:
        before, after, curve = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
        whole = self._picture(len(self._shares))
        most = np.quantile(np.abs(whole), 0.99)
        look = {"cmap": "RdBu_r", "vmin": -most, "vmax": most, "aspect": "auto"}
        before.imshow(whole, **look)
        self._image = after.imshow(whole, **look, animated=True)
        for axes in (before, after):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            axes.set_xlabel("inputs")
        before.set(title="The change", ylabel="outputs")
        self._title = after.set_title("", y=1)
        self._title.set_animated(True)
        curve.plot(range(1, len(self._shares) + 1), self._shares, color=BLUE)
        _rank_axis(curve, len(self._shares), every=4)
        curve.set(title="Share of energy", ylim=(0, 1.05))
        (self._dot,) = curve.plot([], [], "o", color=VERMILLION, animated=True, zorder=3)
        self._share = curve.text(0.97, 0.06, "", ha="right", transform=curve.transAxes,
                                 color=VERMILLION, animated=True)  # fmt: skip

    def _move(self, rank: int) -> None:
        share = self._shares[rank - 1]
        self._image.set_data(self._picture(rank))
        self._title.set_text(f"Its nearest of rank {rank}")
        self._dot.set_data([rank], [share])
        self._share.set_text(f"rank {rank}: {share:.0%}")


def budget_figure(planned: Sequence[float], counted: Sequence[float], layers: int) -> Figure:
    """AdaLoRA's budget of ranks over the steps of a run, as planned and as it was kept.

    Args:
        planned: the budget after each step.
        counted: the sum of ranks that were left after each step.
        layers: how many share the budget; a second axis tells the mean rank.

    Raises:
        ValueError: no step, or other numbers of steps.
    """
    if not len(planned) or len(planned) != len(counted):
        raise ValueError(f"expected a budget and a sum of ranks for each step, found {len(planned)}"
                         f" and {len(counted)}")
    steps = range(1, len(planned) + 1)
    with styled_figure(2.6) as figure:
        axes = figure.subplots()
        axes.plot(steps, planned, color=GREY, drawstyle="steps-mid", label="planned")
        axes.plot(steps, counted, "o", color=BLUE, markersize=3.5, label="ranks that are left")
        axes.set(title="A budget of ranks", xlabel="optimizer step", ylabel="ranks, all layers",
                 ylim=(0, None))  # fmt: skip
        mean = axes.secondary_yaxis("right", functions=(lambda b: b / layers, lambda m: m * layers))
        mean.set_ylabel("mean rank of a layer")
        axes.legend(loc="best")
        return figure


def rank_figure(ranks: Mapping[str, float], title: str) -> Figure:
    """Which layer has which rank: a row a projection, a column a layer.

    Args:
        ranks: a layer's full name, such as "bert.encoder.layer.0.attention.self.query", to its
            rank; means over seeds may be no whole numbers.
        title: what stands above.

    Raises:
        ValueError: no rank, or a name without the number of its layer.
    """
    table: dict[str, dict[int, float]] = {}
    for name, rank in ranks.items():
        number, kind = _numbered(name)
        table.setdefault(kind, {})[number] = rank
    if not table:
        raise ValueError("expected the rank of at least one layer, found none")
    columns = sorted({number for row in table.values() for number in row})
    grid = np.array([[row.get(number, np.nan) for number in columns] for row in table.values()])
    with styled_figure(1.1 + 0.3 * len(table)) as figure:
        axes = figure.subplots()
        axes.imshow(grid, cmap="Blues", vmin=0, vmax=max(1, 1.8 * np.nanmax(grid)), aspect="auto")
        for (row, column), rank in np.ndenumerate(grid):
            if not np.isnan(rank):
                axes.text(column, row, f"{rank:.1f}".removesuffix(".0"), ha="center", va="center",
                          fontsize=8)  # fmt: skip
        axes.set_yticks(range(len(table)), list(table))
        axes.set_xticks(range(len(columns)), columns)
        axes.grid(visible=False)
        axes.set(title=title, xlabel="layer, lowest first")
        return figure


# --- the record -----------------------------------------------------------------------------------


def frontier_figure(lines: Sequence[Mapping], models: Sequence[str]) -> Figure:
    """Accuracy against what trains, seconds of CPU time, and memory: a row of panels a model.

    A mark is the mean over the seeds, its bar the range of the seeds. LoRA's ranks are joined by a
    line, the usual one marked larger.

    Args:
        lines: of a record of `tutorkit.studies.peft`.
        models: a row each.

    Raises:
        ValueError: a model without runs.
    """
    for model in models:
        if not methods_of(lines, model):
            raise ValueError(f"expected runs with {model!r}, found those with "
                             f"{sorted({line['model'] for line in lines})}")  # fmt: skip
    kinds = {"share": "share of weights that train", "cpu_s": "CPU seconds of training",
             "memory_mb": "memory added by training, MB"}  # fmt: skip
    with styled_figure(0.7 + 2.1 * len(models)) as figure:
        panels = figure.subplots(len(models), 3, sharey="row", squeeze=False)
        for row, model in zip(panels, models, strict=True):
            for axes, (key, title) in zip(row, kinds.items(), strict=True):
                _frontier(axes, lines, model, key)
                axes.set_xlabel(title)
            row[0].set(ylabel=f"{model}: accuracy", xscale="log", xlim=(3e-6, 3))
            row[0].xaxis.set_major_locator(LogLocator(100, numticks=9))
            row[0].xaxis.set_minor_locator(NullLocator())
            row[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
            for axes in row[1:]:
                right = axes.get_xlim()[1]
                axes.set_xlim(-0.04 * right, right)  # a mark at 0 stays whole
                axes.xaxis.set_major_locator(MaxNLocator(4))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        panels[0, 0].set_title("Accuracy and its price (means; bars: range of the seeds)")
        used = [m for m in LOOKS if any(m in methods_of(lines, model) for model in models)]
        marks = [Line2D([], [], color=LOOKS[m][1], marker=LOOKS[m][2], linestyle="",
                        label=LOOKS[m][0]) for m in used]  # fmt: skip
        if any(line["method"] == "baseline" for line in lines):
            marks.append(Line2D([], [], color=GREY, linestyle=":", label="best by counting words"))
        figure.legend(handles=marks, loc="outside lower center", ncols=4, columnspacing=1.2)
        return figure


def rank_sweep_figure(lines: Sequence[Mapping], model: str) -> Figure:
    """LoRA's accuracy by rank: a mark a seed, a line through the means; beside it, all weights.

    Args:
        lines: of a record of `tutorkit.studies.peft`.
        model: whose.

    Raises:
        ValueError: no runs of LoRA, or none of all weights.
    """
    found = sorted({line["settings"]["r"] for line in lines
                    if (line["model"], line["method"]) == (model, "lora")})  # fmt: skip
    full = values(lines, model, "full")
    if not found:
        raise ValueError(f"expected runs of 'lora' with {model!r}, found none")
    with styled_figure(2.8) as figure:
        axes = figure.subplots()
        axes.axhspan(min(full), max(full), color=GREY, alpha=0.2, linewidth=0)
        axes.axhline(np.mean(full), color=GREY, linestyle="--", linewidth=1)
        axes.text(1.01, np.mean(full), "all weights\n(band: seeds)", color=GREY, fontsize=8,
                  va="center", transform=axes.get_yaxis_transform())  # fmt: skip
        by_rank = {r: values(lines, model, "lora", r=r) for r in found}
        for r, scores in by_rank.items():
            axes.plot([r] * len(scores), scores, "o", color=BLUE, alpha=0.5, markersize=4)
        axes.plot(found, [np.mean(scores) for scores in by_rank.values()], color=BLUE)
        axes.set_xscale("log", base=2)
        axes.set_xticks(found, found)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(title=f"LoRA with {model} (marks: single seeds; line: their means)",
                 xlabel="rank r", ylabel="accuracy")  # fmt: skip
        axes.margins(y=0.15)
        return figure


def gap_figure(lines: Sequence[Mapping], models: Sequence[str], rival: str = "full") -> Figure:
    """Accuracy minus that of a rival with the same seed, in points: the mean, its 95 % interval.

    Args:
        lines: of a record of `tutorkit.studies.peft`.
        models: a panel each.
        rival: a method; the line at 0.

    Raises:
        ValueError: a model without runs of the rival, or fewer than two seeds.
    """
    with styled_figure(2.5) as figure:
        panels = figure.subplots(1, len(models), sharex=True, squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            others = [m for m in methods_of(lines, model) if m != rival]
            for place, method in enumerate(others):
                _, colour, mark = LOOKS[method]
                found = [100 * d for d in differences(lines, model, method, rival)]
                axes.plot(mean_interval(found), [place] * 2, color=colour, linewidth=1.6)
                axes.plot(found, [place] * len(found), "|", color=colour, markersize=7)
                axes.plot(np.mean(found), place, mark, color=colour)
            axes.axvline(0, color=LOOKS[rival][1], linewidth=1)
            axes.set_yticks(range(len(others)), [LOOKS[m][0] for m in others])
            axes.set(title=model, ylim=(len(others) - 0.5, -0.5))
            axes.grid(visible=False, axis="y")
        figure.supxlabel(f"points of accuracy above “{LOOKS[rival][0]}” (bars: 95 % over seeds)",
                         fontsize=9)  # fmt: skip
        return figure


def _frontier(axes: Axes, lines: Sequence[Mapping], model: str, key: str) -> None:
    ranks = sorted({line["settings"]["r"] for line in lines if line["method"] == "lora"
                    and line["model"] == model})  # fmt: skip
    for method in methods_of(lines, model):
        _, colour, mark = LOOKS[method]
        points = []
        for r in ranks if method == "lora" else [USUAL_R]:
            scores = values(lines, model, method, r=r)
            x = np.mean(values(lines, model, method, key, r))
            points.append((x, np.mean(scores)))
            large = method != "lora" or r == USUAL_R or len(ranks) == 1
            axes.plot([x, x], [min(scores), max(scores)], color=colour, linewidth=1)
            axes.plot(*points[-1], mark, color=colour, markersize=6 if large else 3.5)
        for one, next_one in pairwise(points):
            axes.plot(*zip(one, next_one, strict=True), color=colour, linewidth=0.8)
    counted = [line["accuracy"] for line in lines if line["method"] == "baseline"]
    if counted:
        axes.axhline(max(counted), color=GREY, linestyle=":", linewidth=1.2)


def _rank_axis(axes: Axes, most: int, every: int = 2) -> None:
    axes.set_xscale("log", base=2)
    ticks = [r for r in (every**k for k in range(10)) if r <= most]
    axes.set_xticks(ticks, ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rank")


def _blocks(rows: Float[Tensor, "rank long"]) -> Float[Tensor, "rank short"]:
    """Each row averaged in at most 96 blocks of neighbours, so that a picture stays small."""
    size = -(-rows.shape[1] // 96)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % size), value=0.0)
    return padded.unflatten(1, (-1, size)).mean(dim=2)


def _numbered(name: str) -> tuple[int, str]:
    """The number in a layer's name, and what follows it."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None or at == len(parts) - 1:
        raise ValueError(f"expected names such as 'encoder.layer.0.attention.self.query', found "
                         f"{name!r}")
    return int(parts[at]), ".".join(parts[at + 1 :])
