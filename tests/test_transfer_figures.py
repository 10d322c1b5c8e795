"""The figures of lesson 06, and the numbers behind them, on made-up results."""

from __future__ import annotations

import numpy as np
import pytest

from tutorkit import transfer_figures as figures
from tutorkit.metrics import mean_interval

LEVELS = {
    "everything": 0.7, "discriminative": 0.71, "last_layers": 0.69, "features": 0.68,
    "scratch": 0.5, "nb_trigrams": 0.6, "tfidf_bigrams": 0.61, "tfidf_unigrams": 0.62,
}  # fmt: skip
LUCK = {0: 0.05, 1: -0.03, 2: 0.0}  # of a draw, the same for all strategies


def results():
    """Three seeds at two budgets, seeds out of order."""
    return [
        {"strategy": name, "n": n, "seed": seed, "accuracy": level + luck + 0.05 * (n > 32),
         "remembers": {"domains": 0.8 - 0.1 * (name == "everything")}}
        for seed, luck in reversed(LUCK.items()) for n in (128, 32) for name, level in
        LEVELS.items()
    ]  # fmt: skip


def test_by_budget_sorts_budgets_and_seeds():
    found = figures.by_budget(results(), "scratch")
    assert list(found) == [32, 128]
    assert found[32] == pytest.approx([0.55, 0.47, 0.5])
    assert figures.by_budget(results(), "everything", "remembers.domains")[32] == pytest.approx(
        [0.7] * 3
    )


def test_by_budget_says_what_is_missing():
    with pytest.raises(ValueError, match="'lora'.*'accuracy'"):
        figures.by_budget(results(), "lora")
    with pytest.raises(ValueError, match="remembers.songs"):
        figures.by_budget(results(), "features", "remembers.songs")


def test_differences_pair_the_seeds():
    found = figures.differences(results(), "everything", "features")
    assert found.keys() == {32, 128}
    assert found[32] == pytest.approx([0.02] * 3)  # the luck of the draws cancels
    lines = [line for line in results() if (line["strategy"], line["seed"]) != ("features", 1)]
    assert len(figures.differences(lines, "everything", "features")[32]) == 2
    with pytest.raises(ValueError, match="'everything' and 'lora'"):
        figures.differences(lines, "everything", "lora")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_curve_goes_through_the_means_and_marks_every_seed():
    figure = figures.curve_figure(results())
    (axes,) = figure.axes
    lines = {tuple(line.get_xdata()): line for line in axes.lines if line.get_linestyle() != "None"}
    assert (32, 128) in lines
    colour = figures.LOOKS["scratch"][1]
    mine = [line for line in axes.lines if line.get_color() == colour]
    (mean,) = [line for line in mine if line.get_linestyle() == "-"]
    assert mean.get_ydata() == pytest.approx([np.mean([0.55, 0.47, 0.5]), 0.05 + 0.50667], abs=1e-4)
    marks = [y for line in mine if line.get_linestyle() == "None" for y in line.get_ydata()]
    assert sorted(marks) == pytest.approx([0.47, 0.5, 0.52, 0.55, 0.55, 0.6])
    names = [text.split(" (")[0] for text in texts(axes)]
    assert {title for title, *_ in figures.LOOKS.values()} <= set(names)


def test_the_names_at_the_curve_s_end_do_not_overlap():
    figure = figures.curve_figure(results())
    figure.canvas.draw()
    names = {title for title, *_ in figures.LOOKS.values()}
    labels = [t for t in figure.axes[0].texts if t.get_text().split(" (")[0] in names]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert len(boxes) == len(names)
    assert all(below.y1 <= above.y0 + 1 for below, above in zip(boxes, boxes[1:], strict=False))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_the_difference_s_bars_are_the_intervals():
    lines = results()
    for line in lines:
        line["accuracy"] += 0.01 * line["seed"] * (line["strategy"] == "everything")
    figure = figures.difference_figure(lines, ["everything"], "features")
    bars = [line.get_ydata() for line in figure.axes[0].lines
            if line.get_color() == figures.LOOKS["everything"][1] and len(line.get_ydata()) == 2
            and line.get_xdata()[0] == line.get_xdata()[1]]  # fmt: skip
    assert [tuple(bar) for bar in bars] == [pytest.approx(mean_interval([0.02, 0.03, 0.04]))] * 2


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="two finite values"):
        figures.difference_figure(
            [line for line in results() if line["seed"] == 0], ["everything"], "features"
        )


def test_forgetting_is_drawn_against_what_was_learned():
    figure = figures.forgetting_figure(results(), "domains", 0.85)
    (axes,) = figure.axes
    colour = figures.LOOKS["everything"][1]
    points = {(round(x, 3), round(y, 3)) for line in axes.lines if line.get_color() == colour
              for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}  # fmt: skip
    assert points == {(0.75, 0.7), (0.67, 0.7), (0.7, 0.7), (0.8, 0.7), (0.72, 0.7), (0.75, 0.7)}
    assert "pretrained, untouched" in texts(axes)
    sizes = {line.get_markersize() for line in axes.lines if line.get_color() == colour}
    assert len(sizes) == 2  # one a budget


def test_rates_leave_frozen_parts_out():
    rates = {"all": [1e-4] * 3, "slow": [1e-6, 1e-5, 1e-4], "two": [0, 1e-3, 1e-3]}
    axes = figures.rates_figure(rates, ["embeddings", "layer 1", "head"]).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 1, 2], [0, 1, 2], [1, 2]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["embeddings", "layer 1",
                                                                      "head"]  # fmt: skip
    assert "1e-04" in [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_yscale() == "log"


def test_the_trade_has_both_curves():
    axes = figures.trade_figure([0, 0.5, 1], [0.5, 0.7, 0.8], [0.9, 0.8, 0.6]).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.5, 0.7, 0.8], [0.9, 0.8, 0.6]]
