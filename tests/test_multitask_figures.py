"""The figures of lesson 08, and the numbers behind them, on made-up results."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tutorkit import multitask_figures as figures
from tutorkit.metrics import mean_interval
from tutorkit.multitask_data import rows_each
from tutorkit.widgets import redraw

LUCK = (0.05, -0.03, 0.0)  # of a draw, the same for all settings
LEVELS = {"single": 0.7, "joint": 0.72, "pooled": 0.74, "joint+domain": 0.73,
          "joint+rating": 0.75, "nb_trigrams": 0.6}  # fmt: skip
SIZES = {"large": 800, "small": 200}


def results():
    """Three seeds, two budgets and two domains; seeds out of order."""
    lines = [{"setting": name, "domain": domain, "n": n, "seed": seed,
              "accuracy": level + luck + 0.1 * (n > 32) + 0.01 * seed * (name == "joint")}
             for seed, luck in reversed(list(enumerate(LUCK))) for n in (128, 32)
             for domain in ("tweets", "rt_snippets") for name, level in LEVELS.items()]  # fmt: skip
    return lines + [{"setting": "conflict", "n": 32, "seed": seed, "steps": [8, 16, 24][: 3 - seed],
                     "cosines": {"a × b": [0.1, 0.2 + seed, 0.3][: 3 - seed]}}
                    for seed in (0, 1)]  # fmt: skip


def points(axes, colour, marker=None):
    """(x, y) of the lines of a colour, and of a marker where one is given."""
    return [np.column_stack(line.get_data()) for line in axes.lines if line.get_color() == colour
            and marker in (None, line.get_marker())]  # fmt: skip


# --- numbers -------------------------------------------------------------------------------------


def test_by_budget_sorts_and_says_what_is_missing():
    found = figures.by_budget(results(), "single", "tweets")
    assert list(found) == [32, 128] and found[32] == pytest.approx([0.75, 0.67, 0.7])
    with pytest.raises(ValueError, match=r"of 'lora' in 'tweets' with 'accuracy', found \['conf"):
        figures.by_budget(results(), "lora", "tweets")
    with pytest.raises(ValueError, match="of 'joint' in 'tweets' with 'mae'"):
        figures.by_budget(results(), "joint", "tweets", "mae")


def test_differences_pair_the_seeds_of_one_domain():
    found = figures.differences(results(), "joint", "single", "tweets")
    assert found[32] == pytest.approx([0.02, 0.03, 0.04])  # the luck of the draws cancels
    lines = [x for x in results() if (x["setting"], x["seed"]) != ("single", 1)]
    found = figures.differences(lines, "joint", "single", "tweets")
    assert found[32] == pytest.approx([0.02, 0.04])
    with pytest.raises(ValueError, match="'joint' and 'single' in 'songs' at the same budget"):
        figures.differences(lines, "joint", "single", "songs")


def test_a_verdict_a_seed():
    def run(setting, n, seed, predictions):
        return {"setting": setting, "domain": "a", "n": n, "seed": seed, "predictions": predictions}

    good, bad, half = "1" * 20, "0" * 20, "01" * 10
    lines = [run("single", 8, 1, half), run("single", 8, 0, bad), run("joint", 8, 0, good),
             run("joint", 8, 1, half), run("single", 32, 0, good), run("joint", 32, 0, bad),
             run("joint", 8, 2, bad)]  # fmt: skip
    assert figures.verdicts(lines, good, "joint", "single", "a") == {8: [1, 0], 32: [-1]}


def test_the_minutes_of_a_run_for_all_domains_count_once():
    lines = [{"setting": setting, "domain": domain, "n": 8, "seed": seed, "cpu_s": 30.0 + 60 * seed}
             for setting in ("single", "joint") for domain in ("a", "b")
             for seed in (0, 1)]  # fmt: skip
    assert figures.minutes(lines, "single", 8) == 2.0  # 1 and 3 minutes
    assert figures.minutes(lines, "joint", 8) == 1.0
    assert figures.minutes(lines, "joint", 16) is None


def test_domains_have_their_order():
    assert figures.domains_of(results()) == ["rt_snippets", "tweets"]
    assert figures.domains_of([{"domain": "songs"}, {"domain": "tweets"}]) == ["tweets", "songs"]
    with pytest.raises(ValueError, match="lines with a domain, found none"):
        figures.domains_of([{"setting": "conflict"}])


def test_cosines_are_averaged_as_far_as_all_runs_go():
    steps, found = figures.mean_cosines(results(), 32)
    assert steps == [8, 16] and found == {"a × b": pytest.approx([0.1, 0.7])}
    with pytest.raises(ValueError, match=r"'conflict' with n = 64, found \[32\]"):
        figures.mean_cosines(results(), 64)


def looks():
    """Best mean at step 20; task "a" is best at 10, "b" at 30."""
    scores = {10: (0.9, 0.4), 20: (0.8, 0.7), 30: (0.5, 0.8), 40: (0.5, 0.8)}
    tasks = {step: {"a": {"score": a, "loss": 0.5}, "b": {"score": b, "loss": step}}
             for step, (a, b) in scores.items()}  # fmt: skip
    return [(step, {"score": sum(scores[step]) / 2, "loss": 1.0, "tasks": each})
            for step, each in tasks.items()]  # fmt: skip


def test_the_best_step_of_the_mean_and_of_a_task():
    assert figures.best_step(looks()) == 20
    assert (figures.best_step(looks(), "a"), figures.best_step(looks(), "b")) == (10, 30)


# --- figures -------------------------------------------------------------------------------------


def test_a_column_a_domain_with_means_intervals_and_differences():
    figure = figures.domain_figure(results())
    grid = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title("left") for axes in grid[0]] == ["films", "tweets"]
    colour = figures.LOOKS["joint"][1]
    (means,) = points(grid[0, 0], colour, "s")
    assert means[:, 1] == pytest.approx([0.72 + 0.02 / 3 + 0.01, 0.82 + 0.02 / 3 + 0.01])
    bars = [bar for bar in points(grid[1, 1], colour, "None") if len(bar) == 2]
    assert [bar[:, 1] for bar in bars] == [pytest.approx(mean_interval([2.0, 3.0, 4.0]))] * 2
    (below,) = points(grid[1, 1], colour, "s")
    assert below[:, 1] == pytest.approx([3, 3])
    assert not points(grid[1, 0], figures.LOOKS["nb_trigrams"][1])
    assert "minus “a model for each domain”" in grid[1, 0].get_title("left")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        figures.LOOKS[name][0] for name in ("single", "joint", "nb_trigrams")]  # fmt: skip


def test_settings_stand_beside_each_other():
    axes = figures.domain_figure(results(), [*LEVELS]).axes[0]
    at = [points(axes, look[1], look[3] or "_")[0][0, 0] for look in figures.LOOKS.values()]
    assert len(set(np.round(at, 3))) == len(at)
    assert np.prod(at) ** (1 / len(at)) == pytest.approx(32)


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="two finite values"):
        figures.domain_figure([line for line in results() if line["seed"] == 0])


def test_boxes_say_what_is_shared():
    figure = figures.body_figure(1_000, {"mood": (2, 66), "topic": (5, 165)})
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "1,000 weights" in texts and "“topic”: (B, 5), 165 weights" in texts
    with pytest.raises(ValueError, match="one head or more, found none"):
        figures.body_figure(1_000, {})


def test_shares_are_those_of_the_formula():
    figure = figures.shares_figure(SIZES, (1, 2, math.inf))
    left, right = figure.axes
    for k, n in enumerate(SIZES.values()):
        drawn = [rows_each(np.array([800, 200]), t)[k] for t in (1, 2, math.inf)]
        assert left.lines[k].get_ydata() == pytest.approx(np.array(drawn) / 1000)
        assert right.lines[k].get_ydata() == pytest.approx(np.array(drawn) / n)
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2", "∞"]


def test_the_slider_moves_bars_and_their_labels():
    drawing = figures.TaskShares(SIZES)
    assert [bar.get_height() for bar in drawing._bars[0]] == pytest.approx([0.8, 0.2])
    before = redraw(drawing, temperature=1)
    after = redraw(drawing, temperature=math.inf)
    assert before != after and after[:4] == b"\x89PNG"
    assert [bar.get_height() for bar in drawing._bars[1]] == pytest.approx([500 / 800, 500 / 200])
    assert [text.get_text() for text in drawing._texts[0]] == ["50.0 %", "50.0 %"]
    assert drawing._texts[1][1].get_text() == "2.5 ×"
    top = drawing.figure.axes[1].get_ylim()[1]
    assert all(bar.get_height() < top for bar in drawing._bars[1])
    with pytest.raises(ValueError, match="sizes: expected one task or more"):
        figures.TaskShares({})


def test_turns_stack_the_rows_of_each_batch():
    table = np.array([[3, 1], [2, 2], [4, 0]])
    figure = figures.turns_figure({"proportional": table, "round robin": table}, list(SIZES))
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [3, 2, 4, 1, 2, 0]
    assert [bar.get_y() for bar in bars] == [0, 0, 0, 3, 2, 4]
    with pytest.raises(ValueError, match=r"a column for each of \['large', 'small'\], found.*3"):
        figures.turns_figure({"odd": np.zeros((2, 3))}, list(SIZES))


def test_the_dots_are_the_lowest_points():
    axes = figures.optimum_figure([0.5, 0.05]).axes[0]
    for curve, dot in (axes.lines[:2], axes.lines[2:]):
        assert dot.get_ydata()[0] == pytest.approx(curve.get_ydata().min(), abs=1e-3)


def test_weights_are_drawn_beside_their_optimum():
    losses, weights = {"a": [1.0, 0.1], "b": [2.0, 0.5]}, {"a": [1.0, 2.0], "b": [0.5, 0.6]}
    left, right = figures.weights_figure([1, 2], losses, weights).axes
    assert left.lines[1].get_ydata() == pytest.approx([2.0, 0.5])
    assert right.lines[0].get_ydata() == pytest.approx([1.0, 2.0])
    assert right.lines[1].get_ydata() == pytest.approx([0.5, 5.0])
    with pytest.raises(ValueError, match=r"of the same tasks, found 2 steps, \['a', 'b'\] and"):
        figures.weights_figure([1, 2], losses, {"a": [1.0, 2.0]})


def test_a_run_shows_the_best_mean_and_each_tasks_own_best():
    losses = [(1, {"a": 0.7, "b": 1.6}), (2, {"a": 0.5}), (3, {"a": 0.4, "b": 1.0})]
    grid = np.array(figures.run_figure(losses, looks()).axes).reshape(2, 2)
    assert list(grid[0, 1].lines[0].get_xdata()) == [1, 3]  # no row of it in step 2
    for column, own in enumerate((10, 30)):
        curve, ring, best = grid[1, column].lines
        assert list(curve.get_xdata()) == [10, 20, 30, 40]
        assert (ring.get_xdata()[0], best.get_xdata()[0]) == (own, 20)
    with pytest.raises(ValueError, match="validation: expected one look or more"):
        figures.run_figure(losses, [])


def test_conflict_is_drawn_about_zero():
    cosines = {"a × b": [0.0, 0.5], "rt_snippets × tweets": [0.1, -0.2]}
    figure = figures.conflict_figure([0, 6], cosines)
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a × b", "films × tweets"]
    low, high = axes.get_ylim()
    assert low == -high and high > 0.5
    assert axes.lines[2].get_ydata() == pytest.approx([0.1, -0.2])
    with pytest.raises(ValueError, match="expected steps and pairs of tasks, found 0"):
        figures.conflict_figure([], {})
