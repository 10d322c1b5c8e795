"""Figures of the lesson on training: runs beside each other, step sizes to try, a choice by score.

The numbers behind them are plain: curves of losses, `smooth`, and `choice_by_score`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tutorkit.plots import BLUE, GREY, INK, SKY, VERMILLION, running_mean, styled_figure
from tutorkit.widgets import Control, Drawing

COLOURS = (BLUE, VERMILLION, GREY, INK)
GUESSING = math.log(2)  # cross-entropy of a model that gives both classes one half
HIGHEST = 1e4  # where the curve of a run that overflowed is cut off


def smooth(losses: Sequence[float]) -> np.ndarray:
    """A curve of losses as its mean over the last twentieth of all steps, two steps at least.

    Losses above 10,000 and those that are no number count as 10,000.
    """
    return running_mean(cut_off(losses).tolist(), max(2, len(losses) // 20))


def cut_off(losses: Sequence[float]) -> np.ndarray:
    """Losses as they are drawn: those above 10,000 and those that are no number are 10,000."""
    finite = np.nan_to_num(losses, nan=HIGHEST, posinf=HIGHEST)
    return np.minimum(finite, HIGHEST)


def _check(curves: Mapping[str, Sized]) -> None:
    empty = [name for name, losses in curves.items() if len(losses) == 0]
    if empty or not curves:
        raise ValueError(
            f"expected runs with at least one step each, found {len(curves)} runs, without steps: "
            f"{empty}. Pass the losses that a run returned."
        )


def loss_figure(
    runs: Mapping[str, Sequence[float]],
    title: str = "Loss",
    top: float | None = None,
    each_step: bool = False,
    steps: Sequence[int] | None = None,
) -> Figure:
    """Training losses of some runs over their steps, the first one in blue.

    Args:
        runs: a name and the loss of each step; up to four runs.
        title: what stands above.
        top: where the loss axis ends; by default the largest loss drawn has room.
        each_step: draw every loss as it is, thin and on a logarithmic axis, cut at 10,000. In the
            running mean that is drawn otherwise, one spike becomes a plateau.
        steps: the numbers of the steps, where some were left out; by default 1, 2, 3, …

    Raises:
        ValueError: no run, one without steps, or another number of steps than of losses.
    """
    _check(runs)
    for name, losses in runs.items():
        if steps is not None and len(steps) != len(losses):
            raise ValueError(
                f"expected one step number for each loss, found {len(steps)} numbers and "
                f"{len(losses)} losses of {name!r}. Leave the same steps out of both."
            )
    with styled_figure(2.6) as figure:
        axes = figure.subplots()
        for (name, losses), colour in zip(runs.items(), COLOURS, strict=False):
            x = range(1, len(losses) + 1) if steps is None else steps
            y = cut_off(losses) if each_step else smooth(losses)
            axes.plot(x, y, color=colour, label=name, linewidth=0.9 if each_step else None)
        _guessing(axes)
        axes.set(title=title, xlabel="optimizer step", ylabel="training loss")
        if each_step:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:,g}"))
            axes.minorticks_off()
            axes.set_ylim(None, top)
        else:
            axes.set_ylim(0, top)
        axes.legend()
        return figure


def panels_figure(groups: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """A panel for each group of runs; each run a thin, smoothed line.

    Args:
        groups: what a panel is called, and the losses of its runs.

    Raises:
        ValueError: no group, or one without runs or with a run without steps.
    """
    _check(groups)
    with styled_figure(2.6) as figure:
        panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, runs), colour in zip(panels, groups.items(), COLOURS, strict=False):
            _check({str(number): losses for number, losses in enumerate(runs)})
            for losses in runs:
                axes.plot(range(1, len(losses) + 1), smooth(losses), color=colour, linewidth=0.9)
            _guessing(axes)
            axes.set(title=name, xlabel="optimizer step")
        panels[0].set(ylabel="training loss", ylim=(0, None))
        return figure


def _guessing(axes) -> None:
    axes.axhline(GUESSING, color=GREY, linewidth=1, linestyle=":")
    axes.text(1.01, GUESSING, "log 2", color=GREY, fontsize=8, va="center",
              transform=axes.get_yaxis_transform())  # fmt: skip


class StepSizes(Drawing):
    """The planned learning rates of a run, and its losses: a run is made for each choice.

    Args:
        run: (peak learning rate, share of warm-up steps) -> (learning rates, losses) of each step.
    """

    controls = {
        "learning_rate": Control(
            "learning rate", (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1), 3e-3
        ),
        "warmup_ratio": Control("warm-up", (0.0, 0.05, 0.1, 0.2, 0.5), 0.1, "{:.0%}"),
    }
    height = 2.6
    description = (
        "Two curves over the optimizer steps: the learning rate, and the training loss beside "
        "log 2, the loss of guessing."
    )

    def __init__(self, run: Callable[[float, float], tuple[Sequence[float], Sequence[float]]]):
        self._run = run
        self._made: dict[tuple[float, float], tuple[Sequence[float], Sequence[float]]] = {}
        super().__init__()

    def _build(self, figure: Figure) -> None:
        rate, loss = figure.subplots(1, 2)
        steps = len(self._curves(**self.values)[1])
        highest = max(self.controls["learning_rate"].values)
        rate.set(title="Learning rate", xlabel="optimizer step", yscale="log",
                 xlim=(0, steps), ylim=(1e-7, 2 * highest))  # fmt: skip
        rate.set_yticks([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1],
                        ["0.000001", "0.00001", "0.0001", "0.001", "0.01", "0.1"])  # fmt: skip
        rate.minorticks_off()
        loss.set(title="Training loss", xlabel="optimizer step", yscale="log",
                 xlim=(0, steps), ylim=(0.05, 20))  # fmt: skip
        loss.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        loss.minorticks_off()
        _guessing(loss)
        moving = {"animated": True, "zorder": 3}
        (self._rate,) = rate.plot([], [], color=INK, **moving)
        (self._each,) = loss.plot([], [], color=SKY, linewidth=0.6, **moving)
        (self._mean,) = loss.plot([], [], color=BLUE, **moving)

    def _curves(self, **values: float) -> tuple[Sequence[float], Sequence[float]]:
        key = (values["learning_rate"], values["warmup_ratio"])
        if key not in self._made:
            self._made[key] = self._run(*key)
        return self._made[key]

    def _move(self, **values: float) -> None:
        rates, losses = self._curves(**values)
        steps = range(1, len(losses) + 1)
        self._rate.set_data(steps, rates)
        self._each.set_data(steps, cut_off(losses))
        self._mean.set_data(steps, smooth(losses))


def choice_by_score(
    correct: np.ndarray, counts: Sequence[int], repeats: int = 500, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """What choosing the best of K candidates by a score does to that score.

    In each repeat the rows fall into two random halves and K candidates are drawn. The one with
    the most right answers on the first half is chosen.

    Args:
        correct: (candidates, rows), whether a candidate answers a row correctly.
        counts: the numbers K.
        repeats: random halvings for each K.
        seed: of the halvings and of the candidates drawn.

    Returns:
        Two arrays (len(counts),): the mean accuracy of the chosen candidate on the rows that it was
        chosen by, and on the other half.

    Raises:
        ValueError: K outside 1…candidates, or fewer than two rows.
    """
    correct = np.asarray(correct, dtype=float)
    candidates, rows = correct.shape
    if rows < 2 or any(not 1 <= count <= candidates for count in counts):
        raise ValueError(
            f"expected at least 2 rows and counts in 1…{candidates}, the candidates that there "
            f"are, found {rows} rows and counts {list(counts)}"
        )
    rng = np.random.default_rng(seed)
    chosen_by, fresh = np.zeros(len(counts)), np.zeros(len(counts))
    for k, count in enumerate(counts):
        for _ in range(repeats):
            order = rng.permutation(rows)
            first, second = order[: rows // 2], order[rows // 2 :]
            drawn = rng.permutation(candidates)[:count]
            best = drawn[correct[drawn][:, first].mean(axis=1).argmax()]
            chosen_by[k] += correct[best, first].mean() / repeats
            fresh[k] += correct[best, second].mean() / repeats
    return chosen_by, fresh


def choice_figure(counts: Sequence[int], chosen_by: np.ndarray, fresh: np.ndarray) -> Figure:
    """The result of `choice_by_score` over the number of candidates."""
    with styled_figure(2.6) as figure:
        axes = figure.subplots()
        axes.plot(counts, chosen_by, "o-", color=VERMILLION, label="rows it was chosen by")
        axes.plot(counts, fresh, "s-", color=BLUE, label="fresh rows")
        axes.set(title="Accuracy of the best of K candidates", xlabel="K", xscale="log")
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
        axes.margins(y=0.2)
        axes.legend(loc="upper left")
        return figure
