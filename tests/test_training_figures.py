"""The figures of the lesson on training draw the numbers that they are given."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tutorkit import training_figures as figures
from tutorkit.widgets import explore, redraw


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


def falling(steps: int = 40) -> list[float]:
    return [math.log(2) * (1 - t / steps) for t in range(steps)]


def test_smoothing_by_hand():
    # Fewer than 40 steps: the mean of two neighbours; the first stands alone.
    np.testing.assert_allclose(figures.smooth([1.0, 3.0, 5.0]), [1, 2, 4])
    overflowed = figures.smooth([1.0, math.inf, math.nan, 1.0])
    np.testing.assert_allclose(overflowed, [1, 5000.5, 10_000, 5000.5])


def test_runs_beside_each_other():
    figure = figures.loss_figure({"right": falling(), "wrong": [2.0] * 30}, "Two runs", top=3)
    (axes,) = figure.axes
    right, wrong, guessing = axes.lines
    np.testing.assert_allclose(right.get_ydata(), figures.smooth(falling()))
    assert list(wrong.get_xdata()) == list(range(1, 31))
    assert set(guessing.get_ydata()) == {math.log(2)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["right", "wrong"]
    assert axes.get_ylim() == (0, 3)
    assert axes.get_title(loc="left") == "Two runs"


def test_each_step_is_drawn_as_it_is_at_its_own_number():
    spike = [0.7, 50.0, math.inf, 0.6]
    figure = figures.loss_figure({"a": spike}, each_step=True, steps=[1, 2, 5, 6])
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [1, 2, 5, 6]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.7, 50, 10_000, 0.6])
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert 0 < low < 0.6 and high > 10_000
    figure.canvas.draw()
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert {"1", "100", "10,000"} <= set(labels)


def test_step_numbers_for_other_losses_are_refused():
    with pytest.raises(ValueError, match="found 3 numbers and 2 losses of 'b'"):
        figures.loss_figure({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0]}, steps=[1, 2, 3])


def test_a_panel_for_each_group():
    figure = figures.panels_figure({"a": [falling(), falling()], "b": [falling()]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 2]  # the runs and log 2


@pytest.mark.parametrize("runs", [{}, {"a": falling(), "b": []}])
def test_runs_without_steps_are_refused(runs):
    with pytest.raises(ValueError, match="expected runs with at least one step each"):
        figures.loss_figure(runs)
    with pytest.raises(ValueError, match="expected runs with at least one step each"):
        figures.panels_figure({name: [losses] for name, losses in runs.items()})


class Runs:
    """A stand-in for training that notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, learning_rate, warmup_ratio):
        self.asked.append((learning_rate, warmup_ratio))
        losses = [learning_rate * 100] * 20
        if learning_rate == 0.1:
            losses[5:] = [math.nan] * 15
        return [learning_rate] * 20, losses


def test_step_sizes_draw_the_run_of_the_choice_and_make_each_once():
    runs = Runs()
    drawing = figures.StepSizes(runs)
    assert set(runs.asked) == {(3e-3, 0.1)}
    drawing.update(learning_rate=1e-2)
    drawing.update(learning_rate=1e-2, warmup_ratio=0.1)
    assert runs.asked == [(3e-3, 0.1), (1e-2, 0.1)]
    rate, each, mean = drawing._rate, drawing._each, drawing._mean
    assert list(rate.get_ydata()) == [1e-2] * 20
    np.testing.assert_allclose(each.get_ydata(), [1.0] * 20)
    np.testing.assert_allclose(mean.get_ydata(), [1.0] * 20)


def test_step_sizes_can_be_moved_anywhere():
    drawing = figures.StepSizes(Runs())
    pictures = {redraw(drawing, learning_rate=rate) for rate in (1e-5, 1e-2, 0.1)}
    assert len(pictures) == 3
    assert np.isfinite(drawing._each.get_ydata()).all()  # an overflow is drawn at the edge
    with pytest.raises(ValueError, match="learning rate: expected one of"):
        drawing.update(learning_rate=0.5)
    assert "learning rate" in repr(explore(drawing))


def test_a_choice_by_score_by_hand():
    """Two candidates, each right on one of two rows: chosen by that row, wrong on the other."""
    correct = np.array([[True, False], [False, True]])
    chosen_by, fresh = figures.choice_by_score(correct, [1, 2], repeats=2000)
    assert (chosen_by[1], fresh[1]) == (pytest.approx(1), pytest.approx(0))
    # One candidate, drawn blindly: right on a row half of the time.
    assert chosen_by[0] == pytest.approx(0.5, abs=0.05)
    assert chosen_by[0] + fresh[0] == pytest.approx(1)


def test_choosing_helps_where_a_candidate_is_better():
    rng = np.random.default_rng(0)
    correct = rng.random((10, 400)) < np.array([[0.9]] + [[0.5]] * 9)
    chosen_by, fresh = figures.choice_by_score(correct, [1, 10])
    assert fresh[1] > fresh[0] + 0.2
    assert abs(chosen_by[1] - fresh[1]) < 0.03


def test_the_choice_is_reproducible():
    correct = np.random.default_rng(0).random((5, 30)) < 0.6
    once, again = (figures.choice_by_score(correct, [1, 5], seed=3) for _ in range(2))
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize(("shape", "counts"), [((3, 10), [4]), ((3, 10), [0]), ((3, 1), [1])])
def test_impossible_choices_are_refused(shape, counts):
    with pytest.raises(ValueError, match="expected at least 2 rows and counts in 1…3"):
        figures.choice_by_score(np.ones(shape), counts)


def test_the_choice_is_drawn():
    figure = figures.choice_figure([1, 10], np.array([0.6, 0.7]), np.array([0.6, 0.61]))
    chosen_by, fresh = figure.axes[0].lines
    assert list(chosen_by.get_ydata()) == [0.6, 0.7]
    assert list(fresh.get_ydata()) == [0.6, 0.61]
