"""Figures of the lesson on distillation: softened answers, sizes, matched layers, what is gained.

The last of them, and the numbers behind them, are functions of lines: dicts, one a model and seed,
with `student`, `taught`, `seed`, `accuracy`, `agreement`, `n_parameters`, `n_non_embedding` and
`predictions`, and one a model with its `latency`. The stored record has them, and so has a run of
the lesson's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, NullLocator

from tutorkit.metrics import accuracy_interval, mean_interval
from tutorkit.plots import BLUE, GREEN, GREY, INK, SKY, VERMILLION, styled_figure
from tutorkit.studies import compare
from tutorkit.widgets import Control, Drawing

if TYPE_CHECKING:
    import pandas as pd

Logits = np.ndarray | torch.Tensor  # (N, C)
ALONE = "alone"
# By how a student was taught: colour and mark.
LOOKS = {
    ALONE: (VERMILLION, "o"),
    "soft targets": (BLUE, "s"),
    "soft targets and layers": (GREEN, "^"),
}
TEACHER = "teacher"
TEACHER_LOOK, OTHER_LOOK = (INK, "*"), (GREY, "X")
TITLES = {"nb_trigrams": "counting word triples"}  # of baselines
MOVING = {"animated": True, "zorder": 3}
BINS = np.linspace(0, 1, 21)


# --- softened answers ---------------------------------------------------------------------------


def softened(logits: Logits, temperature: float) -> np.ndarray:
    """softmax(logits / T), (N, C).

    Raises:
        ValueError: no rows, or T not above 0.
    """
    if len(logits) == 0 or not temperature > 0:
        raise ValueError(f"expected logits (N, C) and a temperature above 0, found {len(logits)} "
                         f"rows and T = {temperature}")
    return (torch.as_tensor(logits, dtype=torch.float64) / temperature).softmax(dim=1).numpy()


def mean_entropy(probabilities: np.ndarray) -> float:
    """The mean of -Σ_c p_c log p_c over the rows, in nats; 0 log 0 counts as 0."""
    return float(torch.special.entr(torch.as_tensor(probabilities)).sum(dim=1).mean())


def softened_figure(
    logits: Logits, labels: Sequence[int], temperatures: Sequence[float] = (1, 2, 5, 10)
) -> Figure:
    """How many texts get which probability of class 1, at each temperature, by their label.

    Args:
        logits: (N, 2) of a teacher.
        labels: (N,) the right classes.
        temperatures: one panel each.
    """
    labels = np.asarray(labels)
    with styled_figure(2.5) as figure:
        panels = figure.subplots(1, len(temperatures), sharey=True)
        for axes, temperature in zip(np.atleast_1d(panels), temperatures, strict=True):
            p = softened(logits, temperature)
            counts = [np.histogram(p[labels == c, 1], BINS)[0] for c in (0, 1)]
            axes.bar(BINS[:-1], counts[0], 0.05, align="edge", color=VERMILLION, hatch="///",
                     edgecolor="white", linewidth=0, label="label: negative")  # fmt: skip
            axes.bar(BINS[:-1], counts[1], 0.05, bottom=counts[0], align="edge", color=BLUE,
                     edgecolor="white", linewidth=0, label="label: positive")  # fmt: skip
            axes.set(title=f"T = {temperature:g}\nentropy {mean_entropy(p):.2f} nats",
                     xlabel="p(positive)", xlim=(0, 1), xticks=[0, 0.5, 1])  # fmt: skip
            axes.set_xticklabels(["0", "0.5", "1"])
            axes.grid(visible=False, axis="x")
        np.atleast_1d(panels)[0].set_ylabel("texts")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure


class SoftenedAnswers(Drawing):
    """A teacher's probabilities at a temperature, and how much is left open in them.

    Args:
        logits: (N, 2) of a teacher.
        labels: (N,) the right classes.
    """

    controls: ClassVar = {
        "temperature": Control("temperature T",
                               (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0), 1.0)
    }  # fmt: skip
    height = 2.6
    description = (
        "Left: how many texts get which probability of “positive”, stacked by their label: "
        "negative, hatched orange; positive, blue. Right: the mean entropy of the probabilities "
        "against the temperature, with log 2, that of a toss of a coin."
    )

    def __init__(self, logits: Logits, labels: Sequence[int]):
        self._logits, self._labels = np.asarray(logits), np.asarray(labels)
        super().__init__()

    def _build(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        self._bars = [left.bar(BINS[:-1], 1.0, 0.05, align="edge", color=colour, linewidth=0,
                               hatch=hatch, edgecolor="white", **MOVING)
                      for colour, hatch in ((VERMILLION, "///"), (BLUE, None))]  # fmt: skip
        values = self.controls["temperature"].values
        most = max(np.histogram(softened(self._logits, t)[:, 1], BINS)[0].max() for t in values)
        left.set(xlabel="p(positive), of the teacher", ylabel="texts", xlim=(0, 1),
                 ylim=(0, 1.04 * most))  # fmt: skip
        left.grid(visible=False, axis="x")
        curve = [mean_entropy(softened(self._logits, t)) for t in values]
        right.plot(values, curve, color=GREY)
        right.axhline(np.log(2), color=INK, linewidth=0.8, linestyle=":")
        right.text(values[0], np.log(2), "log 2: nothing known", fontsize=8, va="bottom")
        right.set(title="Mean entropy", xlabel="temperature T", ylabel="nats", xscale="log",
                  ylim=(0, 0.79))  # fmt: skip
        right.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
        right.xaxis.set_minor_locator(NullLocator())
        (self._dot,) = right.plot([], [], "o", color=BLUE, **MOVING)
        self._title = left.set_title("", y=1)  # a given place: axes move only titles they draw
        self._title.set_animated(True)

    def _move(self, temperature: float) -> None:
        p = softened(self._logits, temperature)
        below = np.zeros(len(BINS) - 1)
        for c, bars in enumerate(self._bars):
            counts = np.histogram(p[self._labels == c, 1], BINS)[0]
            for bar, low, count in zip(bars, below, counts, strict=True):
                bar.set(y=low, height=count)
            below = below + counts
        entropy = mean_entropy(p)
        self._dot.set_data([temperature], [entropy])
        self._title.set_text(f"T = {temperature:g}: entropy {entropy:.2f} of 0.69 nats")


# --- students -----------------------------------------------------------------------------------


def sizes_figure(sizes: Mapping[str, tuple[int, int]]) -> Figure:
    """The weights of some models: tables of embeddings, and the rest.

    Args:
        sizes: name -> (all weights, those outside the tables).

    Raises:
        ValueError: none.
    """
    if not sizes:
        raise ValueError("sizes: expected a model or more, found none")
    with styled_figure(0.9 + 0.34 * len(sizes)) as figure:
        axes = figure.subplots()
        _size_bars(axes, range(len(sizes)), list(sizes.values()))
        most = max(total for total, _ in sizes.values())
        for place, (total, rest) in enumerate(sizes.values()):
            axes.text(total + 0.01 * most, place, f"{_short(total - rest)} + {_short(rest)}",
                      va="center", fontsize=8)  # fmt: skip
        axes.set_yticks(range(len(sizes)), list(sizes))
        axes.invert_yaxis()
        axes.set(title="Weights: embeddings + the rest", xlim=(0, 1.22 * most))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1e6:g} M"))
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower right")
        return figure


def mapping_figure(teacher_layers: int, mapping: Sequence[int]) -> Figure:
    """Which layer of a student is matched with which of its teacher's.

    Args:
        teacher_layers: how many the teacher has.
        mapping: the teacher's layer, from 1, for each of the student's.

    Raises:
        ValueError: no layers, or one that the teacher lacks.
    """
    if not mapping or not all(1 <= n <= teacher_layers for n in mapping):
        raise ValueError(f"mapping: expected layers in 1…{teacher_layers}, one for each of the "
                         f"student's, found {list(mapping)}")
    with styled_figure(0.34 * (teacher_layers + 2) + 0.3) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 10), ylim=(-0.6, teacher_layers + 1.0))
        axes.axis("off")
        for n in range(teacher_layers + 1):
            used = n == 0 or n in mapping
            _box(axes, 1.2, n, "embeddings" if n == 0 else f"layer {n}", INK if used else "#AAAAAA")
        for m, n in enumerate([0, *mapping]):
            _box(axes, 7.6, n, "embeddings" if m == 0 else f"layer {m}", BLUE)
            axes.annotate("", (7.6, n), (3.3, n), arrowprops={"arrowstyle": "->", "color": BLUE})
            what = "vectors" if m == 0 else "hidden states, attention scores"
            axes.text(5.45, n + 0.06, what, ha="center", va="bottom", fontsize=8, color=BLUE)
        top = teacher_layers + 0.62
        axes.text(2.2, top, "teacher", ha="center", weight="bold")
        axes.text(8.6, top, "student", ha="center", weight="bold", color=BLUE)
        return figure


def errors_figure(steps: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Mean square errors of matched layers over training, each on an axis of its own from 0.

    Args:
        steps: the optimizer steps at which they were read.
        errors: name -> one value a step.

    Raises:
        ValueError: nothing to draw, or lengths that differ.
    """
    if not errors or not len(steps):
        raise ValueError(f"expected steps and errors to draw, found {len(steps)} and {len(errors)}")
    for name, values in errors.items():
        if len(values) != len(steps):
            raise ValueError(f"{name}: expected a value for each of the {len(steps)} steps, found "
                             f"{len(values)}")
    with styled_figure(2.4) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(errors)))
        for axes, (name, values) in zip(panels, errors.items(), strict=True):
            axes.plot(steps, values, "o-", color=BLUE, markersize=4)
            # A flat line at 0 would otherwise stand on an axis of its own invention.
            axes.set(title=name.capitalize(), xlabel="optimizer step",
                     ylim=(0, 1.08 * max(values) or 1))  # fmt: skip
        panels[0].set_ylabel("mean square error")
        return figure


# --- what is gained -----------------------------------------------------------------------------


def results(lines: Sequence[Mapping], student: str, taught: str | None) -> list[Mapping]:
    """The lines of a student that was taught in a way, seeds in order; `taught` None: any way.

    Raises:
        ValueError: there are none.
    """
    found = [line for line in lines if line["student"] == student and "accuracy" in line
             and (taught is None or line.get("taught") == taught)]  # fmt: skip
    if not found:
        known = sorted({f"{line['student']}, {line.get('taught')}" for line in lines
                        if "accuracy" in line})  # fmt: skip
        raise ValueError(f"expected results of {student!r}, taught {taught!r}, found {known}")
    return sorted(found, key=lambda line: line["seed"])


def ways(lines: Sequence[Mapping]) -> list[tuple[str, str]]:
    """The students and how they were taught, in the lines' order: those alone come first."""
    found = dict.fromkeys((line["student"], line["taught"]) for line in lines
                          if "accuracy" in line and line.get("taught"))  # fmt: skip
    students = list(dict.fromkeys(student for student, _ in found))
    return sorted(found, key=lambda way: (students.index(way[0]), list(LOOKS).index(way[1])))


def gains(
    lines: Sequence[Mapping], student: str, taught: str, key: str = "accuracy"
) -> list[float]:
    """What a taught student has more than the same student alone, seed by seed.

    Raises:
        ValueError: no seed has both.
    """
    mine, alone = results(lines, student, taught), results(lines, student, ALONE)
    found = compare.differences(mine, alone, key)
    if not found:
        seeds = [[line["seed"] for line in each] for each in (mine, alone)]
        raise ValueError(f"{student}: expected a seed with both {taught!r} and {ALONE!r}, found "
                         f"{seeds[0]} and {seeds[1]}")
    return found


def paired_tests(
    lines: Sequence[Mapping], test_labels: str, student: str, taught: str
) -> list[dict]:
    """A paired test of each seed on the test rows: the taught student against the one alone.

    Args:
        lines: see the top of this file.
        test_labels: the right classes, a digit a row.
        student: whose.
        taught: how.
    """
    return compare.paired_tests(results(lines, student, taught), results(lines, student, ALONE),
                                compare.answers_of(test_labels))


def gain_table(lines: Sequence[Mapping], test_labels: str) -> pd.DataFrame:
    """Points of accuracy that teaching adds: mean over the seeds, its interval, and what it shows.

    "resolved" asks the seeds where there are three or more: does their interval leave 0 out? Where
    there are fewer, the paired test of every single seed has to say the same.
    """
    import pandas as pd

    rows = []
    for student, taught in ways(lines):
        if taught == ALONE:
            continue
        values = 100 * np.array(gains(lines, student, taught))
        # Student's t of two runs is 12.7: an interval that says nothing.
        low, high = mean_interval(values) if len(values) > 2 else (np.nan, np.nan)
        single = paired_tests(lines, test_labels, student, taught)
        alike = compare.agreed(single) != 0
        resolved = not low <= 0 <= high if len(values) > 2 else alike
        same = np.mean(gains(lines, student, taught, "agreement"))
        rows.append({
            "student": student, "taught": taught, "seeds": len(values), "points": values.mean(),
            "95 % from": low, "to": high, "resolved": "yes" if resolved else "no",
            "agreement, points": 100 * same,
        })  # fmt: skip
    return pd.DataFrame(rows)


def gain_figure(lines: Sequence[Mapping], test_labels: str) -> Figure:
    """Accuracy of taught students minus that of the same student alone: a bar a seed.

    A bar is the 95 % interval over the test rows for these two models; the larger mark is the mean
    over the seeds.

    Raises:
        ValueError: no taught student.
    """
    taught_ways = [way for way in ways(lines) if way[1] != ALONE]
    if not taught_ways:
        raise ValueError("lines: expected a taught student beside the one alone, found none")
    with styled_figure(0.9 + 0.5 * len(taught_ways)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=LOOKS[ALONE][0], linewidth=1.2)
        for place, (student, taught) in enumerate(taught_ways):
            colour, mark = LOOKS[taught]
            found = paired_tests(lines, test_labels, student, taught)
            shifts = np.linspace(-0.22, 0.22, len(found)) if len(found) > 1 else [0.0]
            for shift, test in zip(shifts, found, strict=True):
                axes.plot([100 * end for end in test["difference_ci95"]], [place + shift] * 2,
                          color=colour, linewidth=1)  # fmt: skip
                axes.plot(100 * test["difference"], place + shift, "|", color=colour, markersize=6)
            mean = 100 * np.mean([test["difference"] for test in found])
            axes.plot(mean, place, mark, color=colour, markersize=8, markeredgecolor="white")
        names = [f"{student}: {taught}" for student, taught in taught_ways]
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set(title="Taught minus alone, the same seed (bars: 95 % over test rows)",
                 xlabel="points of accuracy")  # fmt: skip
        axes.grid(visible=False, axis="y")
        return figure


def worth_table(lines: Sequence[Mapping], max_length: int) -> pd.DataFrame:
    """Size, time, accuracy and agreement of every model: means over its seeds.

    Args:
        lines: see the top of this file; one of them is the teacher's.
        max_length: of the latencies, in tokens.

    Returns:
        A row a model, the teacher first. `speedup` is the teacher's median over the model's, and
        `of_teacher` the accuracy as a share of the teacher's. `low` and `high` are the Wilson
        interval of a model with this accuracy on so many test rows. What no line says is empty.

    Raises:
        ValueError: no teacher.
    """
    import pandas as pd

    (teacher,) = results(lines, TEACHER, None)
    times = {line["student"]: line["latency"] for line in lines
             if "latency" in line and line.get("max_length", max_length) == max_length}  # fmt: skip
    others = dict.fromkeys(line["student"] for line in lines if "accuracy" in line
                           and not line.get("taught") and line["student"] != TEACHER)  # fmt: skip
    rows = []
    for student, taught in [(TEACHER, None), *ways(lines), *((name, None) for name in others)]:
        mine = results(lines, student, taught)
        time, own = times.get(TEACHER, {}), times.get(student, {})
        accuracy = float(np.mean([line["accuracy"] for line in mine]))
        agrees = [line["agreement"] for line in mine if line.get("agreement") is not None]
        n = len(mine[0]["predictions"])
        low, high = accuracy_interval(round(accuracy * n), n)
        rows.append({
            "student": student, "taught": taught or "", "seeds": len(mine),
            "parameters": mine[0].get("n_parameters", np.nan),
            "non_embedding": mine[0].get("n_non_embedding", np.nan),
            "median_ms": own.get("median_ms", np.nan), "p95_ms": own.get("p95_ms", np.nan),
            "speedup": time.get("median_ms", np.nan) / own.get("median_ms", np.nan),
            "accuracy": accuracy, "low": low, "high": high,
            "of_teacher": accuracy / teacher["accuracy"],
            "agreement": 1.0 if student == TEACHER else float(np.mean(agrees)) if agrees else np.nan
        })  # fmt: skip
    # Whole numbers, also where a row has none.
    return pd.DataFrame(rows).astype({"parameters": "Int64", "non_embedding": "Int64"})


def worth_figure(
    lines: Sequence[Mapping], max_length: int, goal: tuple[float, float] = (0.97, 4.0)
) -> Figure:
    """Size, latency, accuracy and agreement of every model, side by side.

    Args:
        lines: see the top of this file.
        max_length: of the latencies, in tokens.
        goal: the share of the teacher's accuracy and of its speed that a student should reach, each
            drawn as a dashed line.
    """
    table = worth_table(lines, max_length)
    places = np.arange(len(table))
    with styled_figure(1.5 + 0.27 * len(table)) as figure:
        size, time, right, same = figure.subplots(1, 4, sharey=True)
        known = table["parameters"].notna()
        _size_bars(size, places[known].tolist(),
                   table.loc[known, ["parameters", "non_embedding"]].to_numpy().tolist())
        for place, row in table.iterrows():
            alone = TEACHER_LOOK if row["student"] == TEACHER else OTHER_LOOK
            colour, mark = LOOKS.get(row["taught"], alone)
            style = {"color": colour, "markeredgewidth": 0, "markersize": 9 if mark == "*" else 6}
            time.plot([row["median_ms"], row["p95_ms"]], [place] * 2, color=colour, linewidth=1.4)
            time.plot(row["median_ms"], place, mark, **style)
            time.plot(row["p95_ms"], place, "|", color=colour, markersize=7)
            right.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=1.4)
            mine = results(lines, row["student"], row["taught"] or None)
            for axes, key in ((right, "accuracy"), (same, "agreement")):
                axes.plot(row[key], place, mark, **style)
                if len(mine) > 1:
                    values = [line[key] for line in mine]
                    axes.plot(values, [place] * len(values), "|", color=colour, markersize=7)
        teacher = table.iloc[0]
        dashes = {"color": GREY, "linewidth": 1, "linestyle": "--"}
        time.axvline(teacher["median_ms"] / goal[1], **dashes)
        right.axvline(teacher["accuracy"] * goal[0], **dashes)
        time.set_xscale("log")
        time.xaxis.set_minor_locator(NullLocator())
        _ticks(time, table[["median_ms", "p95_ms"]].to_numpy())
        size.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1e6:g}"))
        size.set(title="Size", xlabel="million weights")
        time.set(title="Latency", xlabel="ms a review\nmedian — p95")
        right.set(title="Accuracy", xlabel="share right\n| a seed — 95 %")
        same.set(title="Agreement", xlabel="share as the teacher\n| a seed")
        for axes in (right, same):
            axes.margins(x=0.12)
        names = [f"{row.student}\n{row.taught}" if row.taught else
                 TITLES.get(row.student, row.student) for row in table.itertuples()]  # fmt: skip
        size.set_yticks(places, names)
        size.tick_params(axis="y", labelsize=7)
        size.set_ylim(len(table) - 0.5, -0.5)
        for axes in (size, time, right, same):
            axes.grid(visible=False, axis="y")
        words = f"{100 * goal[0]:g} % of the teacher's accuracy, {goal[1]:g} times its speed"
        figure.supxlabel(f"dashed: {words}", fontsize=8, color=GREY)
        return figure


# --- parts --------------------------------------------------------------------------------------


def _size_bars(axes, places: Sequence[int], sizes: Sequence[Sequence[float]]) -> None:
    for place, (total, rest) in zip(places, sizes, strict=True):
        first = place == places[0]
        axes.barh(place, total - rest, 0.62, color=SKY, label="embeddings" if first else None)
        axes.barh(place, rest, 0.62, left=total - rest, color=BLUE,
                  label="the rest" if first else None)  # fmt: skip


def _box(axes, left: float, height: float, text: str, colour: str) -> None:
    axes.add_patch(FancyBboxPatch((left, height - 0.28), 2.0, 0.56, boxstyle="round,pad=0.05",
                                  facecolor="white", edgecolor=colour))  # fmt: skip
    axes.text(left + 1.0, height, text, ha="center", va="center", fontsize=8, color=colour)


def _ticks(axes, values: np.ndarray) -> None:
    """Ticks at 1, 3, 10, 30, … for the values on a logarithmic axis."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = np.log10(values.min()), np.log10(values.max())
    ticks = [base * 10.0**k for k in range(int(np.floor(low)), int(np.ceil(high)) + 1)
             for base in (1, 3) if low - 0.3 <= np.log10(base * 10.0**k) <= high + 0.3]  # fmt: skip
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _short(count: int) -> str:
    """A number of weights as it is read: 11.8 M, 49 k, 770."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.0f}"
