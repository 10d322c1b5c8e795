"""Figures of the lesson on several tasks: heads, turns, weights of losses, conflict, the record.

The numbers behind the record's figures are plain functions of its lines: dicts with "setting",
"domain", "n" (labelled rows a domain), "seed" and "accuracy".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from tutorkit.metrics import mean_interval
from tutorkit.multitask_data import rows_each
from tutorkit.plots import BLUE, GREEN, GREY, INK, PURPLE, SKY, VERMILLION, styled_figure
from tutorkit.studies import compare
from tutorkit.widgets import Control, Drawing

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, INK)  # of tasks, in their order
MARKERS = "oDs^vP"
# What a setting of the record is called, its colour, line and marker.
LOOKS = {
    "single": ("a model for each domain", INK, "-", "o"),
    "joint": ("one encoder, a head for each", BLUE, "-", "s"),
    "pooled": ("one head for all domains", GREEN, "-", "^"),
    "joint+domain": ("one head, and one for the domain", PURPLE, "-", "v"),
    "joint+rating": ("one head, and one for the rating", VERMILLION, "-", "D"),
    "nb_trigrams": ("counting word triples", GREY, "--", ""),
}  # fmt: skip
DOMAINS = {"rt_snippets": "films", "amazon_snippets": "products", "nyt_snippets": "news",
           "tweets": "tweets"}  # fmt: skip


# --- the numbers of a record ----------------------------------------------------------------------


def by_budget(
    lines: Sequence[Mapping], setting: str, domain: str, key: str = "accuracy"
) -> dict[int, list[float]]:
    """The values of a setting in a domain at every budget, seeds in order: {n: [value, …]}.

    Raises:
        ValueError: no line of that setting and domain has the key.
    """
    found: dict[int, list[float]] = {}
    own = _of_domain(lines, setting, domain, key)
    for line in sorted(own, key=lambda line: (line["n"], line["seed"])):
        found.setdefault(line["n"], []).append(line[key])
    if not found:
        raise ValueError(f"expected results of {setting!r} in {domain!r} with {key!r}, found "
                         f"{_settings(lines)}")
    return found


def differences(
    lines: Sequence[Mapping], setting: str, rival: str, domain: str, key: str = "accuracy"
) -> dict[int, list[float]]:
    """A setting minus a rival in one domain, seed by seed: {n: [difference, …]}.

    Raises:
        ValueError: no budget and seed has both.
    """
    of = [_of_domain(lines, name, domain, key) for name in (setting, rival)]
    found = compare.differences_by_budget(*of, key)
    if not found:
        raise ValueError(f"expected results of {setting!r} and {rival!r} in {domain!r} at the same "
                         f"budget and seed, found {_settings(lines)}")
    return found


def verdicts(
    lines: Sequence[Mapping], test_labels: str, setting: str, rival: str, domain: str
) -> dict[int, list[int]]:
    """Paired tests of a setting and a rival in one domain, a seed each: {n: [verdict, …]}.

    Args:
        lines: with "predictions", a digit a test row.
        test_labels: of the domain, as well.
        setting: 1 says that it is better, -1 worse, 0 not resolved.
        rival: another setting.
        domain: where.
    """
    right = compare.answers_of(test_labels)
    mine, others = (_of_domain(lines, name, domain, "predictions") for name in (setting, rival))
    return {n: [compare.verdict(test) for test in compare.paired_tests(
                *([line for line in each if line["n"] == n] for each in (mine, others)), right)]
            for n in sorted({line["n"] for line in mine})}  # fmt: skip


def minutes(lines: Sequence[Mapping], setting: str, n: int) -> float | None:
    """Processor minutes of training for all domains, mean over the seeds; None: not measured."""
    # A run for all domains has a line for each of them, with the same seconds.
    runs = {(line["seed"], line["domain"] if setting == "single" else ""): line["cpu_s"]
            for line in lines if (line["setting"], line["n"]) == (setting, n) and "cpu_s" in line}
    return sum(runs.values()) / 60 / len({seed for seed, _ in runs}) if runs else None


def domains_of(lines: Sequence[Mapping]) -> list[str]:
    """The domains that occur, in the order of `DOMAINS`, others after them.

    Raises:
        ValueError: there is none.
    """
    found = {line["domain"] for line in lines if "domain" in line}
    if not found:
        raise ValueError("expected lines with a domain, found none")
    return sorted(found, key=lambda name: ([*DOMAINS, name].index(name), name))


def mean_cosines(lines: Sequence[Mapping], n: int) -> tuple[list[int], dict[str, list[float]]]:
    """The steps of the runs with n rows a domain, and the mean cosine of each pair over the seeds.

    Raises:
        ValueError: no line of the setting "conflict" with this n.
    """
    runs = [line for line in lines if line["setting"] == "conflict" and line["n"] == n]
    if not runs:
        raise ValueError(f"expected lines of the setting 'conflict' with n = {n}, found "
                         f"{sorted({x['n'] for x in lines if x['setting'] == 'conflict'})}")
    steps = min((run["steps"] for run in runs), key=len)  # as far as all of them go
    return list(steps), {
        pair: np.mean([run["cosines"][pair][: len(steps)] for run in runs], axis=0).tolist()
        for pair in runs[0]["cosines"]
    }


def _of_domain(lines: Sequence[Mapping], setting: str, domain: str, key: str) -> list[Mapping]:
    return [line for line in lines
            if (line["setting"], line.get("domain")) == (setting, domain) and key in line]


def _settings(lines: Sequence[Mapping]) -> list[str]:
    return sorted({line["setting"] for line in lines})


# --- the record, drawn ----------------------------------------------------------------------------


def domain_figure(
    lines: Sequence[Mapping], settings: Sequence[str] = ("single", "joint", "nb_trigrams"),
    rival: str = "single",
) -> Figure:  # fmt: skip
    """A column a domain: accuracy by labelled rows, and below it the differences to a rival.

    Above, marks are means over seeds with their 95 % interval. Below, the mean of the paired
    differences of every setting but the rival and the baseline, with its interval.

    Args:
        lines: of the record.
        settings: names from `LOOKS`.
        rival: one of them, the line at 0 below.

    Raises:
        ValueError: a setting without results, or fewer than two seeds.
    """
    names = domains_of(lines)
    with styled_figure(4.4) as figure:
        grid = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False,
                               height_ratios=[3, 2])  # fmt: skip
        compared = [name for name in settings if name not in (rival, "nb_trigrams")]
        for column, domain in enumerate(names):
            above, below = grid[:, column]
            for place, name in enumerate(settings):
                _with_bars(above, by_budget(lines, name, domain), name, place, len(settings))
            below.axhline(0, color=LOOKS[rival][1], linewidth=1)
            for place, name in enumerate(compared):
                found = differences(lines, name, rival, domain)
                found = {n: [100 * value for value in values] for n, values in found.items()}
                _with_bars(below, found, name, place, len(compared), line=False)
            above.set_title(DOMAINS.get(domain, domain))
            _budget_axis(below, by_budget(lines, settings[0], domain))
        grid[0, 0].set_ylabel("accuracy")
        grid[1, 0].set_ylabel("points")
        # Wider than its column, and without a say in how wide that is.
        title = grid[1, 0].set_title(f"minus “{LOOKS[rival][0]}”", fontsize=9)
        title.set_in_layout(False)
        figure.supxlabel("labelled rows of each domain", fontsize=9)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        columns = 2 if len(labels) == 4 else 3
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
        return figure


def _with_bars(
    axes: Axes, found: Mapping[int, Sequence[float]], name: str, place: int, of: int,
    line: bool = True,
) -> None:  # fmt: skip
    """Means with their intervals, settings side by side on the logarithmic axis."""
    title, colour, style, marker = LOOKS[name]
    x = np.array(list(found)) * 1.1 ** (place - (of - 1) / 2)
    for at, values in zip(x, found.values(), strict=True):
        axes.plot([at, at], mean_interval(values), color=colour, linewidth=1.2)
    axes.plot(x, [np.mean(values) for values in found.values()], marker or "_", color=colour,
              linestyle=style if line else "none", linewidth=1, markersize=4,
              label=title)  # fmt: skip


def _budget_axis(axes: Axes, budgets: Mapping[int, object]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(budgets))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.margins(x=0.18)


# --- model, turns, weights, a run -----------------------------------------------------------------


def body_figure(shared: int, heads: Mapping[str, tuple[int, int]]) -> Figure:
    """Boxes: the shared encoder, and a head for each task, with their numbers of weights.

    Args:
        shared: weights of the encoder.
        heads: task to (outputs, weights of its head).

    Raises:
        ValueError: no heads.
    """
    if not heads:
        raise ValueError("expected one head or more, found none")
    with styled_figure(0.8 + 0.55 * len(heads)) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 10.1), ylim=(0, len(heads)))
        axes.axis("off")
        middle = len(heads) / 2
        _box(axes, 0.9, middle, "texts\n(B, T)", GREY, 1.5)
        _box(axes, 4.0, middle, f"shared encoder\n{shared:,} weights", INK, 2.9)
        axes.annotate("", (2.5, middle), (1.7, middle), arrowprops={"arrowstyle": "->"})
        for k, (name, (outputs, weights)) in enumerate(heads.items()):
            height, colour = len(heads) - k - 0.5, COLOURS[k % len(COLOURS)]
            text = f"head “{name}”: (B, {outputs}), {weights:,} weights"
            _box(axes, 8.1, height, text, colour, 3.7)
            axes.annotate("", (6.2, height), (5.5, middle),
                          arrowprops={"arrowstyle": "->", "color": colour})  # fmt: skip
        return figure


def _box(axes: Axes, x: float, y: float, text: str, colour: str, width: float) -> None:
    axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.32), width, 0.64, facecolor="white",
                                  boxstyle="round,pad=0.05", edgecolor=colour, linewidth=1.5))
    axes.text(x, y, text, ha="center", va="center", fontsize=8)


def shares_figure(sizes: Mapping[str, int], temperatures: Sequence[float]) -> Figure:
    """By temperature: each task's share of the rows drawn, and how often one of its rows comes.

    Args:
        sizes: task to its rows.
        temperatures: τ, rising; `math.inf` is drawn at the right end.
    """
    n = np.array(list(sizes.values()))
    drawn = np.array([rows_each(n, temperature) for temperature in temperatures])
    place = np.arange(len(temperatures))
    with styled_figure(2.9) as figure:
        left, right = figure.subplots(1, 2)
        for k, (name, size) in enumerate(sizes.items()):
            look = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 4}
            left.plot(place, drawn[:, k] / n.sum(), **look, label=f"{name} ({size:,} rows)")
            right.plot(place, drawn[:, k] / size, **look)
        for axes in (left, right):
            axes.set_xticks(place, [_written(temperature) for temperature in temperatures])
            axes.set_xlabel("temperature τ")
        _share_axes(left, right)
        figure.legend(loc="outside lower center", ncols=len(sizes))
        return figure


def _share_axes(left: Axes, right: Axes) -> None:
    left.set(title="Share of the rows drawn", ylim=(0, 1))
    left.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    right.set(title="Times one of its rows comes in an epoch", yscale="log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda times, _: f"{times:g}"))
    right.yaxis.set_minor_locator(NullLocator())


def _written(temperature: float) -> str:
    return "∞" if math.isinf(temperature) else f"{temperature:g}"


class TaskShares(Drawing):
    """Who is drawn how often, with the temperature on a slider.

    Args:
        sizes: task to its rows.
    """

    controls = {
        "temperature": Control("temperature τ", (0.5, 1, 1.5, 2, 3, 5, 10, math.inf), 1)
    }
    height = 2.6
    description = (
        "Left, the share of an epoch's rows that each task gets; right, how often a single row of "
        "it comes. A high temperature makes the shares equal, and rows of the smallest task come "
        "many times."
    )

    def __init__(self, sizes: Mapping[str, int]) -> None:
        if not sizes:
            raise ValueError("sizes: expected one task or more, found none")
        self.sizes = dict(sizes)
        super().__init__()

    def _build(self, figure: Figure) -> None:
        n = np.array(list(self.sizes.values()))
        names = [f"{name}\n{size:,}" for name, size in self.sizes.items()]
        left, right = figure.subplots(1, 2)
        self._bars, self._texts = [], []
        for axes in (left, right):
            place = range(len(n))
            bars = axes.bar(place, np.ones(len(n)), color=COLOURS[: len(n)], animated=True,
                            width=0.6)  # fmt: skip
            self._bars.append(list(bars))
            self._texts.append([axes.text(k, 1, "", ha="center", va="bottom", fontsize=8,
                                          animated=True) for k in place])  # fmt: skip
            axes.set_xticks(list(place), names)
        _share_axes(left, right)
        left.set_ylim(0, 1.12)
        left.set_yticks(np.arange(0, 1.01, 0.25))
        lowest = min(rows_each(n, t)[k] / n[k] for t in self.controls["temperature"].values
                     for k in range(len(n)))  # fmt: skip
        right.set_ylim(max(lowest, 1e-3) / 2, 3 * n.sum() / n.min() / len(n))

    def _move(self, temperature: float) -> None:
        n = np.array(list(self.sizes.values()))
        drawn = rows_each(n, temperature)
        for values, bars, texts in zip((drawn / n.sum(), drawn / n), self._bars, self._texts,
                                       strict=True):  # fmt: skip
            for value, bar, text in zip(values, bars, texts, strict=True):
                bar.set_height(value)
                text.set_y(value)
        for text, share in zip(self._texts[0], drawn / n.sum(), strict=True):
            text.set_text(f"{100 * share:.1f} %")
        for text, times in zip(self._texts[1], drawn / n, strict=True):
            text.set_text(f"{times:.2g} ×")


def turns_figure(turns: Mapping[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """The batches of an epoch under several samplings, each a bar of its rows by task.

    Args:
        turns: sampling to (batches, K) rows of each task in each batch.
        tasks: K names.

    Raises:
        ValueError: no sampling, or a table of another number of tasks.
    """
    if not turns or any(np.shape(table)[1] != len(tasks) for table in turns.values()):
        raise ValueError(f"turns: expected tables with a column for each of {list(tasks)}, found "
                         f"{ {name: np.shape(table) for name, table in turns.items()} }")
    with styled_figure(0.8 + 1.05 * len(turns)) as figure:
        rows = figure.subplots(len(turns), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (sampling, table) in zip(rows, turns.items(), strict=True):
            floor = np.zeros(len(table))
            for k, name in enumerate(tasks):
                axes.bar(np.arange(1, len(table) + 1), table[:, k], bottom=floor, width=0.85,
                         color=COLOURS[k], label=name)  # fmt: skip
                floor = floor + table[:, k]
            axes.set_title(sampling)
            axes.set_ylabel("rows")
            axes.margins(x=0.01)
        rows[-1].set_xlabel("batch of the epoch")
        handles, labels = rows[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(tasks))
        return figure


def optimum_figure(losses: Sequence[float]) -> Figure:
    """A task's part of the uncertainty-weighted loss by its log variance, for several losses.

    Args:
        losses: cross-entropies L in nats; the dot is at s = log 2L.
    """
    s = np.linspace(-6, 2, 200)
    with styled_figure(2.7) as figure:
        axes = figure.subplots()
        for k, loss in enumerate(losses):
            axes.plot(s, np.exp(-s) * loss + s / 2, color=COLOURS[k], label=f"L = {loss:g}")
            axes.plot(math.log(2 * loss), 0.5 + math.log(2 * loss) / 2, "o", color=COLOURS[k])
        axes.set(title="A task's part of the loss by its log variance (dot: the lowest point)",
                 xlabel="log variance s", ylabel="exp(-s) L + s / 2", ylim=(-2.5, 3))  # fmt: skip
        axes.legend()
        return figure


def weights_figure(
    steps: Sequence[int], losses: Mapping[str, Sequence[float]],
    weights: Mapping[str, Sequence[float]],
) -> Figure:  # fmt: skip
    """Training losses of each task, and beside them its learned weight with the optimum 1/(2L).

    Args:
        steps: N optimizer steps.
        losses: task to N losses.
        weights: task to N weights, c e^{-s}.

    Raises:
        ValueError: no steps, or other tasks in the two.
    """
    if not len(steps) or list(losses) != list(weights):
        raise ValueError(f"expected steps, and losses and weights of the same tasks, found "
                         f"{len(steps)} steps, {list(losses)} and {list(weights)}")
    with styled_figure(2.9) as figure:
        left, right = figure.subplots(1, 2)
        for k, name in enumerate(losses):
            left.plot(steps, losses[name], color=COLOURS[k], label=name)
            right.plot(steps, weights[name], color=COLOURS[k])
            right.plot(steps, 1 / (2 * np.array(losses[name])), ":", color=COLOURS[k])
        left.set(title="Training loss", yscale="log", xlabel="optimizer step")
        right.set(title="Weight of the loss (dotted: 1 / 2L)", yscale="log",
                  xlabel="optimizer step")  # fmt: skip
        for axes in (left, right):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        figure.legend(loc="outside lower center", ncols=len(losses))
        return figure


def run_figure(
    losses: Sequence[tuple[int, Mapping]], validation: Sequence[tuple[int, Mapping]]
) -> Figure:
    """A joint run, a column a task: training loss above, validation score below.

    Args:
        losses: `recorded(state, "task_losses")`.
        validation: `recorded(state, "validation")`. The dotted line is at the best mean score, the
            ring at the best score of the task itself.

    Raises:
        ValueError: no looks at validation rows.
    """
    if not validation:
        raise ValueError("validation: expected one look or more, found none")
    names = list(validation[0][1]["tasks"])
    best = best_step(validation)
    with styled_figure(3.6) as figure:
        grid = figure.subplots(2, len(names), sharex=True, squeeze=False)
        for k, name in enumerate(names):
            above, below = grid[:, k]
            points = [(step, found[name]) for step, found in losses if name in found]
            above.plot(*zip(*points, strict=True), color=COLOURS[k], linewidth=1)
            below.plot([step for step, _ in validation],
                       [entry["tasks"][name]["score"] for _, entry in validation], "o-",
                       color=COLOURS[k], markersize=4)  # fmt: skip
            own = best_step(validation, name)
            score = dict(validation)[own]["tasks"][name]["score"]
            below.plot(own, score, "o", color=COLOURS[k], markersize=10, fillstyle="none")
            for axes in (above, below):
                axes.axvline(best, color=GREY, linestyle=":", linewidth=1)
            above.set_title(name)
            above.set_ylim(bottom=0)
            below.set_xlabel("optimizer step")
            below.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        grid[0, 0].set_ylabel("training loss")
        grid[1, 0].set_ylabel("validation score")
        return figure


def best_step(validation: Sequence[tuple[int, Mapping]], name: str | None = None) -> int:
    """The step with the best score, of equals the lowest loss: of one task, or of their mean.

    Args:
        validation: `recorded(state, "validation")`.
        name: of a task; None: the mean of the tasks.
    """
    def rank(entry: Mapping) -> tuple[float, float]:
        one = entry if name is None else entry["tasks"][name]
        return one["score"], -one["loss"]

    return max(validation, key=lambda look: rank(look[1]))[0]


def conflict_figure(steps: Sequence[int], cosines: Mapping[str, Sequence[float]]) -> Figure:
    """The cosine of each pair of tasks over training; below 0 the two pull against each other.

    Args:
        steps: N optimizer steps.
        cosines: "a × b" to N cosines.

    Raises:
        ValueError: no steps or no pairs.
    """
    if not len(steps) or not cosines:
        raise ValueError(f"expected steps and pairs of tasks, found {len(steps)} and "
                         f"{list(cosines)}")
    with styled_figure(2.9) as figure:
        axes = figure.subplots()
        axes.axhline(0, color=GREY, linewidth=1)
        for k, (pair, values) in enumerate(cosines.items()):
            title = " × ".join(DOMAINS.get(name, name) for name in pair.split(" × "))
            axes.plot(steps, values, marker=MARKERS[k], markersize=4, color=COLOURS[k],
                      label=title)  # fmt: skip
        largest = max(0.2, *(abs(value) for values in cosines.values() for value in values))
        axes.set(title="Cosine of the tasks' gradients of the shared weights",
                 xlabel="optimizer step", ylabel="cosine", ylim=(-1.1 * largest, 1.1 * largest))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower center", ncols=3)
        return figure
