"""The figures of the mathematics lesson that can be moved; their numbers are `math_data`'s.

Each is shown twice: `Figure().figure` needs no kernel, `widgets.explore(Figure())` has sliders.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from tutorkit import math_data
from tutorkit.plots import BLUE, GREEN, GREY, INK, ORANGE, SKY, VERMILLION
from tutorkit.widgets import Control, Drawing

# In front of axes and ticks, as in a redraw, so that the static figure is the same picture.
MOVING = {"animated": True, "zorder": 3}
FAR = 1e4  # beyond any frame: a loss above it diverges, and lines are cut to it before drawing


def _fixed_ticks(axis, ticks: list[float]) -> None:
    """Ticks that are written as they are: a log axis would write powers as formulas."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _signed(number: str) -> str:
    """A number with the minus sign that axes write."""
    return number.replace("-", "−")


def _moving_title(axes: Axes) -> Text:
    title = axes.set_title("", y=1)  # a given place: axes move only titles that they draw
    title.set_animated(True)
    return title


class LossSurface(Drawing):
    """Four update rules on the loss of a head with two weights, seen from above and over time."""

    controls = {
        "learning_rate": Control(
            "learning rate η", (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), 0.5
        ),
        "weight_decay": Control("weight decay λ", (0.0, 0.01, 0.03, 0.1, 0.3, 1.0), 0.1),
        "momentum": Control("momentum β", (0.0, 0.5, 0.7, 0.8, 0.9, 0.95), 0.8),
    }
    height = 3.4
    description = (
        "Left: contours of the loss over two weights, a long valley, with the paths of SGD, SGD "
        "with momentum, Adam with an L2 penalty and AdamW. Right: their loss at each step."
    )
    x_limits, y_limits = (-3.2, 6.0), (-2.1, 2.7)
    styles = {
        "SGD": {"color": BLUE, "linestyle": "-", "marker": "o"},
        "SGD, momentum": {"color": ORANGE, "linestyle": "--", "marker": "s"},
        "Adam, L2 penalty": {"color": VERMILLION, "linestyle": "-.", "marker": "^"},
        "AdamW": {"color": GREEN, "linestyle": ":", "marker": "D"},
    }

    def _build(self, figure: Figure) -> None:
        surface, over_time = figure.subplots(1, 2, width_ratios=[2.1, 1])
        self._contours(surface)
        lowest = math_data.head_loss(math_data.head_minimum()).item()
        over_time.axhline(lowest, color=GREY, linewidth=1)
        over_time.set(title="Loss at each step", xlabel="step", yscale="log", ylim=(0.28, 12))
        over_time.set_xlim(-1, math_data.STEPS + 1)
        _fixed_ticks(over_time.yaxis, [0.3, 0.5, 1, 2, 5, 10])
        self._paths, self._losses = [], []
        for style in self.styles.values():
            look = style | MOVING | {"markersize": 3, "linewidth": 1.2, "markevery": 5}
            self._paths += surface.plot([], [], **look)
            self._losses += over_time.plot([], [], **look | {"marker": ""})
        marks = [
            *surface.plot(*math_data.head_minimum().tolist(), "*", color=INK, markersize=9,
                          label="minimum of the loss", **MOVING | {"zorder": 4}),
            *surface.plot([], [], "P", color=INK, markerfacecolor="white", markersize=7,
                          label="minimum with λ/2 |θ|² added", **MOVING | {"zorder": 5}),
        ]  # fmt: skip
        self._penalised = marks[1]
        legend = figure.legend(
            handles=[*self._paths[:2], marks[0], *self._paths[2:], marks[1]],
            loc="outside lower left", ncols=2, handlelength=3,
        )  # fmt: skip
        legend.set_animated(True)
        words = legend.get_texts()
        self._words = [*words[:2], *words[3:5]]

    def _contours(self, axes: Axes) -> None:
        x, y = np.linspace(*self.x_limits, 120), np.linspace(*self.y_limits, 80)
        grid = torch.tensor(np.stack(np.meshgrid(x, y), axis=-1))  # (80, 120, 2)
        loss = math_data.head_loss(grid).numpy()
        levels = np.geomspace(1.03 * loss.min(), loss.max(), 14)
        axes.contour(x, y, loss, levels, colors="#BBBBBB", linewidths=0.7)
        axes.annotate("start", math_data.START, xytext=(0, 5), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
        axes.plot(*math_data.START, "o", color=INK, markersize=5, **MOVING | {"zorder": 4})
        axes.set(xlim=self.x_limits, ylim=self.y_limits, xlabel="θ₁", ylabel="θ₂", aspect="equal")
        axes.set_title(f"{math_data.STEPS} steps over the loss, a mark every 5")
        axes.grid(visible=False)

    def _move(self, learning_rate: float, weight_decay: float, momentum: float) -> None:
        paths = math_data.descent_paths(learning_rate, weight_decay, momentum)
        losses = math_data.head_loss(torch.stack(list(paths.values()))).numpy()
        self._penalised.set_data(*math_data.head_minimum(weight_decay)[:, None].numpy())
        for i, (name, path) in enumerate(paths.items()):
            self._paths[i].set_data(*np.clip(path.numpy().T, -FAR, FAR))
            self._losses[i].set_data(range(len(path)), np.clip(losses[i], None, FAR))
            self._words[i].set_text(f"{name}: {self._fate(path.numpy(), losses[i])}")

    def _fate(self, path: np.ndarray, loss: np.ndarray) -> str:
        """What became of a path, in the words of the legend."""
        if not loss[-1] < FAR:  # true for NaN as well
            return "diverges"
        low, high = np.transpose([self.x_limits, self.y_limits])
        inside = ((low <= path) & (path <= high)).all()
        remark = ", above start" if loss[-1] > loss[0] else "" if inside else ", leaves frame"
        return f"late loss {loss[-10:].mean():.3f}{remark}"  # one step of a zigzag tells little


class SoftmaxTemperature(Drawing):
    """What the temperature does to a softmax, and to the gradient that reaches the logits."""

    controls = {
        "temperature": Control(
            "temperature T",
            (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0),
            1.0,
        ),
        "label": Control("label y", tuple(range(len(math_data.LOGITS))), 1),
    }
    height = 3.0
    description = (
        "Left: probabilities of five classes at a temperature. Right: the gradient of the "
        "cross-entropy for each logit, negative for the label and positive for the others."
    )

    def _build(self, figure: Figure) -> None:
        self._left, self._right = figure.subplots(1, 2)
        classes = range(len(math_data.LOGITS))
        names = [_signed(f"{c}\nz = {z:g}") for c, z in enumerate(math_data.LOGITS)]
        self._bars, self._written = [], []
        for axes in (self._left, self._right):
            self._bars.append(axes.bar(classes, 1.0, edgecolor="white", linewidth=0, **MOVING))
            self._written.append([
                axes.annotate("", (c, 0), xytext=(0, 0), textcoords="offset points", ha="center",
                              fontsize=8, **MOVING) for c in classes
            ])  # fmt: skip
            axes.set_xticks(classes, names)
            axes.grid(visible=False, axis="x")
        self._left.set(ylabel="probability softmax(z/T)", ylim=(0, 1.12))
        self._right.set(ylabel="gradient (p − y)/T, log scale", ylim=(-40, 40))
        # A hundredfold between T = 0.1 and 10: on a linear axis the small half would be flat.
        self._right.set_yscale("symlog", linthresh=0.1)
        _fixed_ticks(self._right.yaxis, [-10, -1, -0.1, 0, 0.1, 1, 10])
        self._right.axhline(0, color=GREY, linewidth=1, **MOVING)
        self._titles = [_moving_title(axes) for axes in (self._left, self._right)]
        handles = [Patch(facecolor=VERMILLION, hatch="///", edgecolor="white", label="the label y"),
                   Patch(facecolor=SKY, label="the other classes")]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=2)

    def _move(self, temperature: float, label: int) -> None:
        softmax = math_data.softmax_at(temperature, label)
        numbers = (softmax.probabilities, softmax.gradient)
        for bars, written, values, form in zip(
            self._bars, self._written, numbers, ("{:.3f}", "{:+.2f}"), strict=True
        ):
            for c, value in enumerate(values.tolist()):
                bars[c].set(height=value, facecolor=VERMILLION if c == label else SKY)
                bars[c].set_hatch("///" if c == label else None)
                written[c].set_text(_signed(form.format(value)))
                written[c].xy = (c, value)
                written[c].set(y=3 if value >= 0 else -3, va="bottom" if value >= 0 else "top")
        most = math.log(len(math_data.LOGITS))
        self._titles[0].set_text(f"T = {temperature:g}: entropy {softmax.entropy:.2f} of "
                                 f"{most:.2f} nats")  # fmt: skip
        size = softmax.gradient.abs().sum().item()
        self._titles[1].set_text(f"Gradient for y = {label}, sizes sum to {size:.2f}")


class MaxLengthGradients(Drawing):
    """A loss without a minimum, its gradient, and the gradient that was published for it."""

    controls = {
        "n": Control("sentences n", tuple(range(2, 21)), 8),
        "delta": Control("δ", (0.1, 0.2, 0.5, 1.0, 1.5, 2.0), 1.0),
    }
    height = 3.0
    description = (
        "Left: the true gradient −1/H and the published one, a straight line, cross at one length. "
        "Right: the loss of one sentence falls without end as its length grows."
    )
    last, steps = 12.0, 40

    def _build(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        curves = math_data.max_length_curves(**self.values)
        self._opposite = left.axvspan(0, 1, color=VERMILLION, alpha=0.15, linewidth=0, **MOVING)
        left.axhline(0, color=GREY, linewidth=1, **MOVING)
        (true,) = left.plot(curves.lengths, curves.gradient, color=BLUE, linewidth=2, **MOVING)
        (self._published,) = left.plot([], [], "--", color=VERMILLION, linewidth=2, **MOVING)
        (self._agreed,) = left.plot([], [], "o", color=INK, markersize=7, markerfacecolor="white",
                                    **MOVING | {"zorder": 4})  # fmt: skip
        left.set(xlabel="length H of a sentence", ylabel="gradient for H", ylim=(-3, 1.4))
        self._title = _moving_title(left)
        figure.legend(
            [true, self._published, self._agreed, self._opposite],
            ["true: −1/H", "published: −(1/n)(δH − n)", "the two are equal", "opposite signs"],
            loc="outside lower center", ncols=4, handlelength=2.5,
        )  # fmt: skip

        (self._loss,) = right.plot([], [], color=BLUE, linewidth=2, **MOVING)
        self._walk = math_data.max_length_descent(self.steps)
        (self._dots,) = right.plot([], [], "o", color=INK, markersize=4, **MOVING)
        right.axhline(0, color=GREY, linewidth=1)
        right.text(0.97, 0.95, f"{self.steps} steps of descent, η = 1, a dot every 5:\n"
                   "minimising pushes H to infinity", fontsize=8, ha="right", va="top",
                   transform=right.transAxes)  # fmt: skip
        right.set(xlabel="length H of a sentence", ylim=(-2, 5.6))
        right.set_title("Loss of one sentence, −log(H/n)")
        for axes in (left, right):
            axes.set_xlim(0, self.last)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    def _move(self, n: int, delta: float) -> None:
        curves = math_data.max_length_curves(n, delta)
        self._published.set_data(curves.lengths, curves.published)
        self._loss.set_data(curves.lengths, curves.loss)
        dots = self._walk[::5]
        self._dots.set_data(dots, np.interp(dots, curves.lengths, curves.loss))
        equal = math_data.length_of_agreement(n, delta)
        self._agreed.set_data([equal], [-1 / equal])
        self._opposite.set_width(min(n / delta, self.last))
        beyond = "" if equal <= self.last else ", out of view"
        self._title.set_text(f"Equal only at H = {equal:.1f}{beyond}")


class Schedules(Drawing):
    """The factor on the learning rate over a run, for every schedule of `lr_schedule`."""

    controls = {
        "warmup_share": Control("warm-up share", (0.0, 0.05, 0.1, 0.2, 0.3, 0.5), 0.1, "{:.0%}"),
        "total": Control("steps T", (20, 50, 100, 150, 200), 200),
    }
    height = 2.8
    description = (
        "The learning rate's factor climbs to 1 during warm-up; then it stays (constant), falls "
        "along a line (linear, slanted triangular) or along a half wave (cosine)."
    )
    styles = {
        "constant": {"color": GREY, "linestyle": "-", "linewidth": 2},
        "linear": {"color": SKY, "linestyle": "-", "linewidth": 3},
        "cosine": {"color": GREEN, "linestyle": "-.", "linewidth": 2},
        "slanted_triangular": {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5},
    }

    def _build(self, figure: Figure) -> None:
        axes = figure.subplots()
        self._warmup = axes.axvspan(0, 1, color=GREY, alpha=0.15, linewidth=0, **MOVING)
        self._curves = {
            kind: axes.plot([], [], label=kind.replace("_", " "), **style, **MOVING)[0]
            for kind, style in self.styles.items()
        }
        axes.set(xlabel="optimizer step t", ylabel="factor on the learning rate", ylim=(0, 1.06))
        axes.set_xlim(0, max(self.controls["total"].values))
        self._title = _moving_title(axes)
        handles = [*self._curves.values(), Patch(color=GREY, alpha=0.15, label="warm-up")]
        figure.legend(handles=handles, loc="outside right center", handlelength=4)

    def _move(self, warmup_share: float, total: int) -> None:
        curves = math_data.schedule_curves(warmup_share, total)
        for kind, curve in self._curves.items():
            curve.set_data(range(total + 1), curves[kind])
        warmup = round(warmup_share * total)
        self._warmup.set_width(warmup)
        share = f"the first {warmup} of them warm-up" if warmup else "no warm-up"
        self._title.set_text(f"T = {total} steps, {share}")
