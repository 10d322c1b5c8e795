"""The figures of the tour: the map of the subject, and what each lesson takes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tutorkit.concept_map import ARROWS, BOXES, COLUMNS, ROWS, Arrow, Box, ConceptMap, box_of
from tutorkit.plots import BLUE, GREY, INK, SKY, WIDTH, styled_figure

# Inches: a box, and the room between boxes for an arrow and its verb.
BOX = np.array([1.74, 0.84])
GAP = np.array([(WIDTH - 0.1 - COLUMNS * BOX[0]) / (COLUMNS - 1), 0.38])


def concept_figure(concepts: ConceptMap) -> Figure:
    """The map as a picture: a box for each idea, an arrow with a verb for each connection.

    A planned box has a dashed outline and no fill.
    """
    height = ROWS * BOX[1] + (ROWS - 1) * GAP[1] + 0.1
    with styled_figure(height) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.axis("off")
        for arrow in ARROWS:
            _draw_arrow(axes, arrow)
        for box in BOXES:
            _draw_box(axes, box, concepts)
        return figure


def _centre(box: Box) -> np.ndarray:
    return 0.05 + BOX / 2 + (BOX + GAP) * (box.column, box.row)


def _draw_box(axes: Axes, box: Box, concepts: ConceptMap) -> None:
    x, y = _centre(box)
    there = bool(concepts.there(box))
    centre = box.name == "Fine-tuning"
    axes.add_patch(FancyBboxPatch(
        (x - BOX[0] / 2 + 0.06, y - BOX[1] / 2 + 0.06), BOX[0] - 0.12, BOX[1] - 0.12,
        boxstyle="round,pad=0.06", facecolor="#E3F1FA" if there else "white", edgecolor=BLUE,
        linestyle="-" if there else "--", linewidth=2.4 if centre else 1.2, zorder=3,
    ))  # fmt: skip
    words = {"ha": "center", "va": "center", "zorder": 4}
    axes.text(x, y - 0.26, box.name, fontsize=8.5, fontweight="bold", **words)
    axes.text(x, y + 0.02, textwrap.fill(box.meaning, 26), fontsize=7.5, linespacing=1.1, **words)
    axes.text(x, y + 0.29, concepts.note(box), fontsize=7, color=GREY, **words)


def _draw_arrow(axes: Axes, arrow: Arrow) -> None:
    source, target = box_of(arrow.source), box_of(arrow.target)
    ends = np.array([_centre(source), _centre(target)])
    steps = np.array([target.column - source.column, target.row - source.row])
    # From edge to edge: corners where it is diagonal.
    ends[0] += steps * BOX / 2
    ends[1] -= steps * BOX / 2
    axes.add_patch(FancyArrowPatch(
        *ends, arrowstyle="-|>", mutation_scale=11, color=INK, linewidth=1, shrinkA=1, shrinkB=1,
        zorder=2,
    ))  # fmt: skip
    x, y = ends.mean(axis=0)
    words = {"fontsize": 7.5, "va": "center", "ha": "center", "linespacing": 1.05, "zorder": 5}
    if steps[0] == 0:  # beside a vertical arrow
        axes.text(x + 0.07, y, arrow.verb, **words | {"ha": "left"})
    elif steps[1] == 0:  # above a horizontal one
        axes.text(x, y - 0.06, textwrap.fill(arrow.verb, 12), **words | {"va": "bottom"})
    else:  # above or below the outer box, off the line
        outer = ends[0][0] if target.column == 1 else ends[1][0]
        side, align = (0.05, "left") if outer > x else (-0.05, "right")
        axes.text(outer + side, y, arrow.verb, **words | {"ha": align})


def times_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What each lesson takes here, in training and in all else, beside the reference machine.

    Args:
        rows: what `lesson_times.estimate` returns; lessons without a record are named as such.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("expected at least one lesson to draw, found none")
    with styled_figure(0.9 + 0.27 * len(rows)) as figure:
        axes = figure.subplots()
        known = [y for y, row in enumerate(rows) if row["here_s"] is not None]
        there, here, training = (
            np.array([rows[y][name] for y in known])
            for name in ("there_s", "here_s", "here_training_s")
        )
        if known:
            axes.barh(known, training, color=BLUE, height=0.6, label="training, here")
            axes.barh(known, here - training, left=training, color=SKY, height=0.6,
                      label="all else, here")  # fmt: skip
            axes.plot(there, known, "|", color=INK, markersize=13, markeredgewidth=2,
                      label="reference machine")  # fmt: skip
            figure.legend(loc="outside lower center", ncols=3)
        for y in set(range(len(rows))) - set(known):
            axes.text(0.01, y, "no record yet", va="center", color=GREY, fontsize=8,
                      transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["lesson"] for row in rows])
        axes.set(xlabel="seconds", xlim=(0, None), title="Time of each lesson, all cells run")
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        return figure
