"""Figures of the lesson on robustness: the worst small change, attacks, and the stored record.

The numbers behind them are plain functions of the lines of a record (`studies.stored`). A line has
"method", "seed", "accuracy" on clean texts, "measured" (for each measurement "accuracy" and "n"),
and "correct": for "clean" and each measurement a digit for every row or pair, 1 where it is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from tutorkit.losses import cross_entropy, cross_entropy_grad, fgm_perturbation, pgd_perturbation
from tutorkit.metrics import accuracy_interval
from tutorkit.plots import BLUE, GREEN, GREY, INK, ORANGE, SKY, VERMILLION, styled_figure
from tutorkit.studies import compare
from tutorkit.widgets import Control, Drawing

# What a method is called, its colour, and its mark.
LOOKS = {
    "plain": ("plain", INK, "o"),
    "plain_longer": ("plain, twice the epochs", GREY, "s"),
    "fgm": ("FGM", BLUE, "D"),
    "freelb": ("FreeLB", GREEN, "^"),
    "nb_trigrams": ("counting word triples", VERMILLION, "v"),
    "tfidf_unigrams": ("counting words", ORANGE, "P"),
}
# What a record's measurements are called, in the order of the figures.
TITLES = {
    "clean": "test reviews as they are",
    "typos 10%": "typos 10 %",
    "dropped words 10%": "dropped words 10 %",
    "under attack": "under attack",
    "contrast, edited texts": "expert edits",
    "contrast, both right": "expert edits, both right",
    "contrast pairs": "built-in pairs, both right",
    "negation probes": "negation probes, both right",
}

# --- a text of one word with an embedding of two numbers -----------------------------------------

HIDDEN = torch.tensor([[-2.0, 2.6], [0.7, 2.3]], dtype=torch.float64)
SHIFT = torch.tensor([0.5, 0.8], dtype=torch.float64)


def curved_loss(x: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """Loss of label 1 for the scores 3 tanh(Vx + b) of an embedding with two numbers."""
    scores = 3 * torch.tanh(x @ HIDDEN.T + SHIFT)
    flat = scores.reshape(-1, 2)
    labels = torch.ones(len(flat), dtype=torch.long)
    return cross_entropy(flat, labels, "none").reshape(scores.shape[:-1])


def curved_slope(x: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
    """The gradient of each row's `curved_loss` by its own x."""
    squashed = torch.tanh(x @ HIDDEN.T + SHIFT)
    labels = torch.ones(len(x), dtype=torch.long)
    by_scores = len(x) * cross_entropy_grad(3 * squashed, labels)  # of the sum, not the mean
    return (by_scores * 3 * (1 - squashed**2)) @ HIDDEN


class Ascent(NamedTuple):
    """PGD from the middle of a disc, step by step."""

    places: np.ndarray  # (K + 1, 2), each inside the disc
    before: np.ndarray  # (K, 2), where each step led before it was projected
    losses: np.ndarray  # (K + 1,)


def ascent(epsilon: float, step_size: float, steps: int) -> Ascent:
    """What PGD does on `curved_loss` around 0."""
    start = torch.zeros(1, 2, dtype=torch.float64)
    places = [start] + [pgd_perturbation(curved_slope, start, epsilon, step_size, k)
                        for k in range(1, steps + 1)]  # fmt: skip
    before = [at + fgm_perturbation(curved_slope(at), step_size) for at in places[:-1]]
    places, before = torch.cat(places), torch.cat(before)
    return Ascent(places.numpy(), before.numpy(), curved_loss(places).numpy())


def highest_on_disc(epsilon: float) -> float:
    """The largest `curved_loss` on a disc around 0, by a fine grid."""
    angle = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)
    radius = torch.linspace(0, epsilon, 41, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    return curved_loss(radius[:, None, None] * circle).max().item()


class WorstChange(Drawing):
    """FGM's one step and PGD's several ones on a loss over an embedding with two numbers."""

    controls = {
        "epsilon": Control("radius ε", (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5), 1.0),
        "steps": Control("PGD steps K", (1, 2, 3, 4, 6, 9, 12), 9),
        "share": Control("step size α / ε", (0.15, 0.25, 0.5, 1.0), 0.25),
    }
    height = 3.5
    description = (
        "Left: contours of the loss over two numbers of an embedding, the disc of radius ε around "
        "it, FGM's step to the disc's edge, and PGD's steps, those that left the disc with the way "
        "back. Right: the loss after each step of PGD, beside FGM's and the highest on the disc."
    )
    limit, top = 1.65, 7.9

    def _build(self, figure: Figure) -> None:
        surface, rise = figure.subplots(1, 2, width_ratios=[1, 1.15])
        line = np.linspace(-self.limit, self.limit, 111)
        grid = torch.tensor(np.stack(np.meshgrid(line, line), axis=-1))
        surface.contour(line, line, curved_loss(grid).numpy(), np.arange(0.25, 6.1, 0.5),
                        cmap="Greys", vmin=-3, vmax=8, linewidths=0.9)  # fmt: skip
        surface.set(xlim=(-self.limit, self.limit), ylim=(-self.limit, self.limit),
                    xlabel="δ₁", ylabel="δ₂", aspect="equal")  # fmt: skip
        surface.set_title("The loss around x (darker: higher)")
        surface.grid(visible=False)
        surface.plot(0, 0, "o", color=INK, markersize=4)
        moving = {"animated": True, "zorder": 3}
        (self._disc,) = surface.plot([], [], color=GREY, linewidth=1.2, linestyle="--", **moving)
        arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "minlength": 0, **moving}
        self._fgm = surface.quiver([0], [0], [1], [1], color=VERMILLION, width=0.013, headwidth=3.5,
                                   headlength=4, headaxislength=4, **arrows)  # fmt: skip
        most = max(self.controls["steps"].values)
        self._pgd = surface.quiver(*np.zeros((4, most)), color=BLUE, width=0.008, headwidth=4,
                                   headlength=4, headaxislength=4,
                                   **arrows | {"zorder": 5})  # fmt: skip
        self._back = LineCollection([], colors=SKY, linewidths=1.2, linestyles=":",
                                    **moving | {"zorder": 4})  # fmt: skip
        surface.add_collection(self._back)

        rise.set(title="Loss after each step", xlabel="step", xlim=(-0.3, most + 0.3),
                 ylim=(0, self.top))  # fmt: skip
        rise.set_xticks(range(0, most + 1, 3))
        (self._highest,) = rise.plot([], [], color=GREY, linestyle="--", **moving)
        (self._once,) = rise.plot([], [], color=VERMILLION, **moving)
        (self._rise,) = rise.plot([], [], "o-", color=BLUE, markersize=3.5, **moving)
        legend = rise.legend([self._highest, self._once, self._rise], ["", "", ""],
                             loc="upper left", handlelength=1.6)  # fmt: skip
        legend.set_animated(True)
        self._words = legend.get_texts()

    def _move(self, epsilon: float, steps: int, share: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 121)
        self._disc.set_data(epsilon * np.cos(angle), epsilon * np.sin(angle))
        once = ascent(epsilon, epsilon, 1)
        self._fgm.set_UVC([once.places[1, 0]], [once.places[1, 1]])
        found = ascent(epsilon, share * epsilon, steps)
        moves = np.ma.masked_all((len(self._pgd.get_offsets()), 2))
        moves[:steps] = found.before - found.places[:-1]
        starts = np.zeros(moves.shape)
        starts[:steps] = found.places[:-1]
        self._pgd.set_offsets(starts)
        self._pgd.set_UVC(moves[:, 0], moves[:, 1])
        self._back.set_segments(list(np.stack([found.before, found.places[1:]], axis=1)))
        highest, most = highest_on_disc(epsilon), max(self.controls["steps"].values)
        self._highest.set_data([0, most], [highest] * 2)
        self._once.set_data([0, most], [once.losses[1]] * 2)
        self._rise.set_data(range(steps + 1), found.losses)
        for text, words in zip(self._words, (
            f"highest on the disc: {highest:.2f}",
            f"FGM: {once.losses[1]:.2f}",
            f"PGD, {steps} step{'s' * (steps > 1)}: {found.losses[-1]:.2f}",
        ), strict=True):  # fmt: skip
            text.set_text(words)


# --- a model's loss around a text ----------------------------------------------------------------


def direction_figure(
    radii: Sequence[float],
    gradient: Sequence[float],
    random: Sequence[Sequence[float]],
    epsilon: float,
) -> Figure:
    """The loss of a text moved along its gradient, and along random directions.

    Args:
        radii: how far, as a share of a word's mean norm; negative: the other way.
        gradient: the loss at each.
        random: for each random direction the loss at each.
        epsilon: a radius to mark.

    Raises:
        ValueError: no random direction.
    """
    _check_any(random, "random directions")
    with styled_figure(2.7) as figure:
        axes = figure.subplots()
        for number, losses in enumerate(random):
            label = f"{len(random)} random directions" if number == 0 else None
            axes.plot(radii, losses, color=GREY, linewidth=0.8, label=label)
        axes.plot(radii, gradient, color=VERMILLION, linewidth=2, label="along the gradient")
        for edge in (-epsilon, epsilon):
            axes.axvline(edge, color=SKY, linewidth=1, linestyle="--")
        axes.text(epsilon, 0.97, f" ε = {epsilon:g}", color=BLUE, fontsize=8, va="top",
                  transform=axes.get_xaxis_transform())  # fmt: skip
        axes.set(title="The loss of one text, its embeddings moved",
                 xlabel="size of the change, as a share of a word's mean norm",
                 ylabel="loss")  # fmt: skip
        axes.legend(loc="upper left")
        return figure


def steps_figure(found: Mapping[str, Sequence[float]], clean: float) -> Figure:
    """The loss that an ascent finds within its radius, by the number of steps.

    Args:
        found: a name for up to four curves, and the loss after 1, 2, … steps.
        clean: the loss without any change.

    Raises:
        ValueError: no curve, or more than four.
    """
    _check_any(found, "curves")
    if len(found) > 4:
        raise ValueError(f"expected up to four curves, found {len(found)}: draw two figures")
    with styled_figure(2.6) as figure:
        axes = figure.subplots()
        for (name, losses), colour, mark in zip(found.items(), (BLUE, GREEN, VERMILLION, SKY),
                                                "oD^s", strict=False):  # fmt: skip
            axes.plot(range(1, len(losses) + 1), losses, mark + "-", color=colour, markersize=4,
                      label=name)  # fmt: skip
        axes.axhline(clean, color=GREY, linewidth=1, linestyle=":")
        axes.text(0.99, clean, "no change", color=GREY, fontsize=8, va="bottom", ha="right",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set(title="Mean loss at the change that was found", xlabel="steps K", ylabel="loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")
        return figure


def budget_figure(curves: Mapping[str, Sequence[int]], n: int) -> Figure:
    """Accuracy under attack against the number of words that may be replaced.

    Args:
        curves: for a model, how many of the rows stay right with 0, 1, … words.
        n: rows.

    Raises:
        ValueError: no curve, or more than four.
    """
    _check_any(curves, "curves")
    if len(curves) > 4:
        raise ValueError(f"expected up to four curves, found {len(curves)}: draw two figures")
    looks = ((INK, "o"), (BLUE, "D"), (GREEN, "^"), (VERMILLION, "v"))
    with styled_figure(2.7) as figure:
        axes = figure.subplots()
        for place, ((name, right), (colour, mark)) in enumerate(
            zip(curves.items(), looks, strict=False)
        ):
            words = np.arange(len(right)) + 0.06 * (place - (len(curves) - 1) / 2)
            ends = np.array([accuracy_interval(int(k), n) for k in right])
            axes.vlines(words, *ends.T, color=colour, linewidth=1, alpha=0.6)
            axes.plot(words, np.asarray(right) / n, mark + "-", color=colour, markersize=4,
                      label=name)  # fmt: skip
        axes.set(title=f"Accuracy under attack, n = {n}, with 95 % intervals",
                 xlabel="words that may be replaced (0: clean)", ylabel="accuracy",
                 ylim=(0, 1.02))  # fmt: skip
        axes.set_xticks(range(max(map(len, curves.values()))))
        axes.legend(loc="best")
        return figure


# --- the record ----------------------------------------------------------------------------------


def runs(lines: Sequence[Mapping], method: str) -> list[Mapping]:
    """The runs of a method, seeds in order.

    Raises:
        ValueError: none of that method.
    """
    found = sorted((line for line in lines if line["method"] == method),
                   key=lambda line: line["seed"])  # fmt: skip
    if not found:
        raise ValueError(
            f"expected runs of {method!r}, found those of "
            f"{sorted({line['method'] for line in lines})}"
        )
    return found


def measurements(lines: Sequence[Mapping]) -> list[str]:
    """What was measured, clean texts first; what `TITLES` does not know comes last."""
    _check_any(lines, "lines of a record")
    names = list(TITLES)
    found = dict.fromkeys(name for line in lines for name in line["correct"])
    return sorted(found, key=lambda name: names.index(name) if name in names else len(names))


def answers(line: Mapping, measurement: str) -> np.ndarray | None:
    """For each row or pair of a measurement whether it is right; None: not measured of this run."""
    digits = line["correct"].get(measurement)
    return None if digits is None else np.array([digit == "1" for digit in digits])


def accuracy(lines: Sequence[Mapping], method: str, measurement: str) -> float:
    """The mean over a method's seeds; NaN where it was not measured."""
    found = [answers(line, measurement) for line in runs(lines, method)]
    return float(np.mean([right.mean() for right in found])) if found[0] is not None else math.nan


def paired(
    lines: Sequence[Mapping], method: str, rival: str, measurement: str
) -> list[dict[str, float | int | bool]]:
    """`metrics.paired_test` of a method and its rival on the same rows, one for each seed.

    A method with one run only, such as a baseline without randomness, is compared with all runs of
    the other.

    Raises:
        ValueError: no runs of one of the two, or none with a common seed.
    """
    mine, others = runs(lines, method), runs(lines, rival)
    any_seed = 1 in (len(mine), len(others))
    if not compare.pairs(mine, others, any_seed):
        raise ValueError(
            f"expected runs of {method!r} and {rival!r} with the same seed, found none"
        )
    return compare.paired_tests(mine, others, lambda line: answers(line, measurement), any_seed)


def record_figure(lines: Sequence[Mapping], methods: Sequence[str] = tuple(LOOKS)) -> Figure:
    """What each method is worth on each measurement, with 95 % intervals of the rows.

    Args:
        lines: of a record. Marks are means over seeds; the interval is that of one run with the
            mean accuracy.
        methods: names from `LOOKS`; one without runs is left out.

    Raises:
        ValueError: no lines, or none of these methods.
    """
    names = measurements(lines)
    present = [m for m in methods if any(line["method"] == m for line in lines)]
    _check_any(present, "methods with runs")
    with styled_figure(1.0 + 0.52 * len(names)) as figure:
        axes = figure.subplots()
        for place, method in enumerate(present):
            title, colour, mark = LOOKS[method]
            for row, name in enumerate(names):
                right = answers(runs(lines, method)[0], name)
                if right is None:
                    continue
                mean, y = accuracy(lines, method, name), _beside(row, place, len(present))
                ends = accuracy_interval(round(mean * len(right)), len(right))
                axes.hlines(y, *ends, color=colour, linewidth=1.3)
                axes.plot(mean, y, mark, color=colour, markersize=4.5,
                          label=title if row == 0 else None)  # fmt: skip
        for row, name in enumerate(names):
            if (chance := _coin(name)) is not None:
                axes.vlines(chance, row - 0.42, row + 0.42, color="#999999", linewidth=1.2,
                            linestyle=":", label="a coin" if row == 0 else None)  # fmt: skip
        _rows_axis(axes, lines, names)
        axes.set(title="Share that is right (of pairs: both members)", xlabel="share right",
                 xlim=(0, 1))  # fmt: skip
        figure.legend(loc="outside lower center", ncols=4, handletextpad=0.3)
        return figure


def difference_figure(lines: Sequence[Mapping], methods: Sequence[str], rival: str) -> Figure:
    """Methods minus a rival on the same rows: a bar a seed, the 95 % interval of its paired test.

    Args:
        lines: of a record.
        methods: names from `LOOKS`.
        rival: another one, the line at 0.

    Raises:
        ValueError: no lines, no methods, or none with a seed of the rival's.
    """
    names = measurements(lines)
    _check_any(methods, "methods")
    with styled_figure(1.0 + 0.6 * len(names)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        for place, method in enumerate(methods):
            title, colour, mark = LOOKS[method]
            for row, name in enumerate(names):
                tests = paired(lines, method, rival, name)
                for number, test in enumerate(tests):
                    # Within a method's share of the row the seeds share once more.
                    y = _beside(row, place, len(methods))
                    y += 0.8 * _beside(0, number, len(tests)) / len(methods)
                    axes.hlines(y, *np.multiply(100, test["difference_ci95"]), color=colour,
                                linewidth=1.1)  # fmt: skip
                    axes.plot(100 * test["difference"], y, mark, color=colour, markersize=3.5,
                              label=title if row == number == 0 else None)  # fmt: skip
        _rows_axis(axes, lines, names)
        axes.set(title=f"Points above “{LOOKS[rival][0]}”, the same rows (bars: 95 %, one a seed)",
                 xlabel="difference in points")  # fmt: skip
        figure.legend(loc="outside lower center", ncols=4, handletextpad=0.3)
        return figure


def _beside(row: int, place: int, count: int) -> float:
    """The height of a mark: those of one row stand below each other."""
    return row + 0.72 * ((place + 0.5) / count - 0.5)


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _coin(name: str) -> float | None:
    """What a coin reaches. Under attack it would be asked many times, which has no such level."""
    if name == "under attack":
        return None
    return 0.25 if _title(name).endswith("both right") else 0.5


def _rows_axis(axes: Axes, lines: Sequence[Mapping], names: Sequence[str]) -> None:
    counts = [max(len(line["correct"].get(name, "")) for line in lines) for name in names]
    axes.set_yticks(range(len(names)), [f"{_title(name)}\nn = {n:,}" for name, n in
                                        zip(names, counts, strict=True)])  # fmt: skip
    axes.set_ylim(len(names) - 0.45, -0.55)  # the first on top
    axes.grid(visible=False, axis="y")
    for row in range(len(names) - 1):
        axes.axhline(row + 0.5, color="#E6E6E6", linewidth=0.8, zorder=0.5)


def _check_any(values, what: str) -> None:
    if not len(values):
        raise ValueError(f"{what}: expected at least one, found none")
