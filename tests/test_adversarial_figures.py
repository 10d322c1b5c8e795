"""The figures of lesson 09, and the numbers behind them, on made-up results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutorkit import adversarial_figures as figures
from tutorkit.metrics import accuracy_interval, paired_test
from tutorkit.widgets import redraw

NAMES = {"clean": 200, "typos 10%": 200, "under attack": 20, "contrast, both right": 40}
LEVELS = {"plain": 0.8, "fgm": 0.85, "plain_longer": 0.8, "nb_trigrams": 0.6}


def line(method, seed=0):
    rng = np.random.default_rng((seed, len(method)))
    correct = {name: "".join("01"[int(hit)] for hit in rng.random(n) < LEVELS[method])
               for name, n in NAMES.items()
               if (method, name) != ("nb_trigrams", "under attack")}  # fmt: skip
    measured = {name: {} for name in correct if name != "clean"}
    return {"method": method, "seed": seed, "accuracy": correct["clean"].count("1") / 200,
            "correct": correct, "measured": measured}  # fmt: skip


def results(seeds=(0,)):
    learned = [line(m, seed) for seed in seeds for m in ("plain", "fgm", "plain_longer")]
    return [*learned, line("nb_trigrams")]


def texts(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def legend(holder):
    return [text.get_text() for text in holder.get_texts()]


# --- the disc ------------------------------------------------------------------------------------


def test_the_slope_is_that_of_the_loss():
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    (expected,) = torch.autograd.grad(figures.curved_loss(x).sum(), x)
    x = x.detach()
    torch.testing.assert_close(figures.curved_slope(x), expected)
    scores = 3 * torch.tanh(figures.HIDDEN @ x[0] + figures.SHIFT)
    assert float(figures.curved_loss(x)[0]) == pytest.approx(float(-scores.log_softmax(0)[1]))


def test_the_ascent_stays_on_the_disc_and_tells_where_each_step_led():
    found = figures.ascent(1.0, 0.4, 6)
    assert found.places.shape == (7, 2) and found.before.shape == (6, 2)
    assert (np.linalg.norm(found.places, axis=1) <= 1 + 1e-9).all()
    steps = np.linalg.norm(found.before - found.places[:-1], axis=1)
    assert steps == pytest.approx([0.4] * 6)
    inside = np.linalg.norm(found.before, axis=1) < 1
    assert found.before[inside] == pytest.approx(found.places[1:][inside])
    for before, place in zip(found.before[~inside], found.places[1:][~inside], strict=True):
        assert place == pytest.approx(before / np.linalg.norm(before))
    assert found.losses[0] == pytest.approx(float(figures.curved_loss(torch.zeros(2).double())))


def test_several_steps_find_what_one_misses():
    """As the lesson says of the disc: alike for a small radius, far apart for a large one."""
    for radius, least in ((0.1, 0.97), (1.0, 0.99)):
        several = figures.ascent(radius, radius / 4, 12).losses[-1]
        assert least * figures.highest_on_disc(radius) <= several
        assert several <= figures.highest_on_disc(radius) * 1.001
    assert figures.ascent(0.1, 0.1, 1).losses[-1] > 0.97 * figures.highest_on_disc(0.1)
    assert figures.ascent(1.0, 1.0, 1).losses[-1] < 0.3 * figures.highest_on_disc(1.0)


def test_the_widget_draws_the_ascent():
    drawing = figures.WorstChange()
    first = drawing.png()
    assert redraw(drawing, epsilon=0.5, steps=3, share=0.5) != first
    found = figures.ascent(0.5, 0.25, 3)
    assert drawing._rise.get_ydata() == pytest.approx(found.losses)
    assert drawing._pgd.get_offsets()[:3] == pytest.approx(found.places[:-1])
    assert drawing._pgd.Umask.tolist() == [False] * 3 + [True] * 9
    disc = np.stack(drawing._disc.get_data())
    assert np.linalg.norm(disc, axis=0) == pytest.approx([0.5] * disc.shape[1])
    words = [text.get_text() for text in drawing._words]
    assert words[2] == f"PGD, 3 steps: {found.losses[-1]:.2f}"
    assert words[0] == f"highest on the disc: {figures.highest_on_disc(0.5):.2f}"
    with pytest.raises(ValueError, match="radius ε: expected one of"):
        drawing.update(epsilon=0.6)


# --- curves --------------------------------------------------------------------------------------


def test_the_directions_and_the_radius_are_drawn():
    axes = figures.direction_figure([-1, 0, 1], [0, 1, 4], [[1, 1, 1], [2, 1, 0]], 0.5).axes[0]
    drawn = [list(each.get_ydata()) for each in axes.lines if len(each.get_ydata()) == 3]
    assert drawn == [[1, 1, 1], [2, 1, 0], [0, 1, 4]]
    assert legend(axes.get_legend()) == ["2 random directions", "along the gradient"]
    assert sorted(each.get_xdata()[0] for each in axes.lines if len(each.get_xdata()) == 2) == [
        -0.5, 0.5,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="random directions: expected at least one"):
        figures.direction_figure([0], [0], [], 0.5)


def test_the_steps_begin_with_the_first():
    axes = figures.steps_figure({"a": [1, 2, 3], "b": [2, 3, 3]}, 0.5).axes[0]
    assert [list(each.get_xdata()) for each in axes.lines[:2]] == [[1, 2, 3]] * 2
    assert [list(each.get_ydata()) for each in axes.lines] == [[1, 2, 3], [2, 3, 3], [0.5, 0.5]]
    with pytest.raises(ValueError, match="curves: expected at least one"):
        figures.steps_figure({}, 0.5)
    with pytest.raises(ValueError, match="up to four curves, found 5"):
        figures.steps_figure(dict.fromkeys("abcde", [1.0]), 0.5)


def test_the_budget_s_bars_are_the_intervals():
    figure = figures.budget_figure({"plain": [18, 12], "FGM": [18, 15]}, 20)
    (axes,) = figure.axes
    assert [list(each.get_ydata()) for each in axes.lines] == [[0.9, 0.6], [0.9, 0.75]]
    ends = [segment[:, 1] for bars in axes.collections for segment in bars.get_segments()]
    assert ends == [pytest.approx(accuracy_interval(k, 20)) for k in (18, 12, 18, 15)]
    with pytest.raises(ValueError, match="curves: expected at least one"):
        figures.budget_figure({}, 20)
    with pytest.raises(ValueError, match="up to four curves, found 5"):
        figures.budget_figure(dict.fromkeys("abcde", [1]), 20)


# --- the record ----------------------------------------------------------------------------------


def test_runs_and_measurements():
    lines = results((2, 0, 1))
    assert [each["seed"] for each in figures.runs(lines, "fgm")] == [0, 1, 2]
    assert figures.measurements(lines) == list(NAMES)
    other = {"method": "vat", "correct": {"drawn": "1", "negation probes": "0", "clean": "1"}}
    assert figures.measurements([other]) == ["clean", "negation probes", "drawn"]
    assert figures.answers({"correct": {"clean": "011"}}, "clean").tolist() == [False, True, True]
    assert figures.answers({"correct": {}}, "clean") is None
    with pytest.raises(ValueError, match=r"runs of 'vat', found those of \['fgm'"):
        figures.runs(lines, "vat")
    with pytest.raises(ValueError, match="lines of a record: expected at least one"):
        figures.measurements([])


def test_the_accuracy_is_the_mean_over_seeds():
    lines = results((0, 1))
    expected = np.mean([each["accuracy"] for each in lines if each["method"] == "plain"])
    assert figures.accuracy(lines, "plain", "clean") == pytest.approx(expected)
    assert np.isnan(figures.accuracy(lines, "nb_trigrams", "under attack"))


def test_pairs_are_of_one_seed_and_a_single_run_meets_all():
    lines = results((0, 1, 2))
    found = figures.paired(lines, "fgm", "plain", "clean")
    mine = [figures.answers(each, "clean") for each in figures.runs(lines, "fgm")]
    others = [figures.answers(each, "clean") for each in figures.runs(lines, "plain")]
    assert found == [paired_test(a, b) for a, b in zip(mine, others, strict=True)]
    assert len(figures.paired(lines, "plain", "nb_trigrams", "clean")) == 3
    assert figures.paired(lines, "plain", "nb_trigrams", "under attack") == []
    apart = [line("plain", 0), line("plain", 1), line("fgm", 2), line("fgm", 3)]
    with pytest.raises(ValueError, match="'fgm' and 'plain' with the same seed, found none"):
        figures.paired(apart, "fgm", "plain", "clean")


def marks(axes, colour):
    return sorted((float(x), float(y)) for each in axes.lines if each.get_color() == colour
                  for x, y in zip(each.get_xdata(), each.get_ydata(), strict=True)
                  if each.get_marker() not in ("", "None"))  # fmt: skip


def test_the_record_s_marks_are_the_means_and_its_bars_the_intervals():
    lines = results((0, 1))
    figure = figures.record_figure(lines)
    (axes,) = figure.axes
    colour = figures.LOOKS["fgm"][1]
    means = [figures.accuracy(lines, "fgm", name) for name in NAMES]
    assert [x for x, _ in marks(axes, colour)] == pytest.approx(sorted(means))
    counting = marks(axes, figures.LOOKS["nb_trigrams"][1])
    assert len(counting) == 3  # it was not attacked
    bars = [segment[:, 0] for each in axes.collections for segment in each.get_segments()]
    right = round(means[0] * 200)
    assert any(bar == pytest.approx(accuracy_interval(right, 200)) for bar in bars)
    coins = [bar[0] for bar in bars if bar[0] == bar[1]]
    assert coins == [0.5, 0.5, 0.25]  # none under attack
    assert texts(axes)[2:] == ["under attack\nn = 20", "expert edits, both right\nn = 40"]
    assert legend(figure.legends[0]) == ["plain", "plain, twice the epochs", "FGM",
                                         "counting word triples", "a coin"]  # fmt: skip
    with pytest.raises(ValueError, match="methods with runs: expected at least one"):
        figures.record_figure(lines, ["freelb"])


def test_the_differences_have_a_bar_a_seed():
    lines = results((0, 1, 2))
    (axes,) = figures.difference_figure(lines, ["fgm", "plain_longer"], "plain").axes
    found = marks(axes, figures.LOOKS["fgm"][1])
    tests = [t for name in NAMES for t in figures.paired(lines, "fgm", "plain", name)]
    assert [x for x, _ in found] == pytest.approx(sorted(100 * t["difference"] for t in tests))
    bars = [segment[:, 0] for each in axes.collections for segment in each.get_segments()]
    assert bars[0] == pytest.approx(100 * np.array(tests[0]["difference_ci95"]))
    heights = [y for _, y in found]
    assert len(set(np.round(heights, 6))) == len(heights)  # none hides another
    with pytest.raises(ValueError, match="methods: expected at least one"):
        figures.difference_figure(lines, [], "plain")
