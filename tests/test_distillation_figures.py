"""The figures of lesson 10, and the numbers behind them, on made-up results."""

from __future__ import annotations

import numpy as np
import pytest

from tutorkit import distillation_figures as figures
from tutorkit.metrics import accuracy_interval, mean_interval, paired_test
from tutorkit.widgets import explore, redraw

LOGITS = np.array([[4.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.0, 3.0]])
LABELS = [0, 0, 1, 1]
RIGHT = "0101" * 50
WAYS = ("alone", "soft targets", "soft targets and layers")


def said(mistakes: int) -> str:
    """Predictions with that many mistakes, at the first rows."""
    flipped = RIGHT[:mistakes].translate(str.maketrans("01", "10"))
    return flipped + RIGHT[mistakes:]


def result(student, taught, seed, mistakes):
    return {"student": student, "taught": taught, "seed": seed, "accuracy": 1 - mistakes / 200,
            "agreement": 1 - abs(mistakes - 20) / 200, "n_parameters": 100, "n_non_embedding": 30,
            "predictions": said(mistakes)}  # fmt: skip


def lines(seeds=(2, 0, 1)):
    """A teacher with 20 mistakes, a student at every way and seed, a baseline, latencies."""
    made = [result("2 layers", taught, seed, 40 - 6 * way + seed * (way == 1))
            for way, taught in reversed(list(enumerate(WAYS))) for seed in seeds]  # fmt: skip
    made += [result("bag of embeddings", taught, 0, 50) for taught in WAYS[:2]]
    plain = {"student": "nb_trigrams", "seed": 0, "accuracy": 0.8, "predictions": said(40)}
    times = [{"student": name, "max_length": length,
              "latency": {"median_ms": ms * length / 256, "p95_ms": 2 * ms, "n": 5}}
             for name, ms in (("teacher", 80.0), ("2 layers", 16.0)) for length in (128, 256)]
    return [result("teacher", None, 0, 20), *made, plain, *times]


# Softened answers -------------------------------------------------------------------------------


def test_softened_by_hand():
    p = figures.softened(np.log([[0.9, 0.1]]), 2.0)
    assert p[0] == pytest.approx([0.75, 0.25])  # the roots, 3 to 1
    assert figures.mean_entropy(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(np.log(2) / 2)
    for wrong in ((LOGITS[:0], 1.0), (LOGITS, 0.0)):
        with pytest.raises(ValueError, match="expected logits .* a temperature above 0, found"):
            figures.softened(*wrong)


def test_each_temperature_has_a_panel_with_every_text():
    figure = figures.softened_figure(LOGITS, LABELS, (1, 10))
    assert len(figure.axes) == 2
    for axes, temperature in zip(figure.axes, (1, 10), strict=True):
        p = figures.softened(LOGITS, temperature)[:, 1]
        for c, bars in enumerate(axes.containers):
            heights = [bar.get_height() for bar in bars]
            expected = np.histogram(p[np.array(LABELS) == c], figures.BINS)[0]
            assert heights == expected.tolist() and sum(heights) == 2
        entropy = figures.mean_entropy(figures.softened(LOGITS, temperature))
        assert axes.get_title(loc="left") == f"T = {temperature}\nentropy {entropy:.2f} nats"


def test_the_slider_moves_bars_dot_and_title():
    drawing = figures.SoftenedAnswers(LOGITS, LABELS)
    for temperature in (1.0, 5.0, 50.0):
        drawing.update(temperature=temperature)
        p = figures.softened(LOGITS, temperature)
        tops = np.array([[bar.get_y() + bar.get_height() for bar in bars]
                         for bars in drawing._bars])  # fmt: skip
        assert tops[1].tolist() == np.histogram(p[:, 1], figures.BINS)[0].tolist()  # stacked
        assert tops.max() <= drawing.figure.axes[0].get_ylim()[1]
        assert drawing._dot.get_ydata() == pytest.approx([figures.mean_entropy(p)])
        assert drawing._title.get_text().startswith(f"T = {temperature:g}: entropy ")
    title = drawing._title.get_window_extent()
    assert drawing.figure.bbox.y1 >= title.y1 and title.y0 > drawing.figure.axes[0].bbox.y1 - 1
    assert redraw(drawing, temperature=1.0) != redraw(drawing, temperature=2.0)
    assert "temperature T" in repr(explore(drawing))


# Students ---------------------------------------------------------------------------------------


def test_sizes_are_stacked_from_embeddings_and_the_rest():
    axes = figures.sizes_figure({"large": (3_000_000, 1_000_000), "bag": (1_500, 500)}).axes[0]
    ends = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert ends == [(0, 2e6), (2e6, 1e6), (0, 1000), (1000, 500)]
    assert [text.get_text() for text in axes.texts] == ["2 M + 1 M", "1 k + 500"]
    with pytest.raises(ValueError, match="expected a model or more, found none"):
        figures.sizes_figure({})


def test_an_arrow_goes_from_each_matched_layer():
    axes = figures.mapping_figure(6, (3, 6)).axes[0]
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None)]
    assert [(arrow.xyann[1], arrow.xy[1]) for arrow in arrows] == [(0, 0), (3, 3), (6, 6)]
    words = [text.get_text() for text in axes.texts]
    assert words.count("layer 2") == 2 and words.count("layer 6") == 1
    for wrong in ((), (0, 6), (3, 7)):
        with pytest.raises(ValueError, match="mapping: expected layers in 1…6"):
            figures.mapping_figure(6, wrong)


def test_each_error_has_an_axis_from_0():
    figure = figures.errors_figure([0, 8], {"hidden states": [2.0, 1.0], "embeddings": [0.0, 0.0]})
    first, second = figure.axes
    assert [list(axes.lines[0].get_ydata()) for axes in (first, second)] == [[2, 1], [0, 0]]
    assert first.get_title(loc="left") == "Hidden states"
    assert first.get_ylim() == (0, pytest.approx(2.16)) and second.get_ylim() == (0, 1)
    for steps, errors, match in (([0, 8], {}, "found 2 and 0"), ([], {"a": []}, "found 0 and 1"),
                                 ([0, 8], {"a": [1.0]}, "each of the 2 steps, found 1")):
        with pytest.raises(ValueError, match=match):
            figures.errors_figure(steps, errors)


# What is gained ---------------------------------------------------------------------------------


def test_results_and_ways_are_in_order():
    assert [x["seed"] for x in figures.results(lines(), "2 layers", "alone")] == [0, 1, 2]
    assert figures.ways(lines()) == [
        *(("2 layers", taught) for taught in WAYS), ("bag of embeddings", "alone"),
        ("bag of embeddings", "soft targets")]  # fmt: skip
    with pytest.raises(ValueError, match="'1 layer', taught 'alone', found .*2 layers, alone"):
        figures.results(lines(), "1 layer", "alone")


def test_gains_pair_the_seeds():
    found = figures.gains(lines(), "2 layers", "soft targets")
    assert found == pytest.approx([(6 - seed) / 200 for seed in range(3)])
    fewer = [line for line in lines() if (line.get("taught"), line.get("seed")) != ("alone", 1)]
    assert figures.gains(fewer, "2 layers", "soft targets") == [found[0], found[2]]
    lonely = [line for line in lines() if line.get("taught") != "alone"]
    with pytest.raises(ValueError, match="'2 layers', taught 'alone'"):
        figures.gains(lonely, "2 layers", "soft targets")


def test_the_table_of_gains_says_what_is_resolved():
    table = figures.gain_table(lines(), RIGHT).set_index(["student", "taught"])
    soft = table.loc[("2 layers", "soft targets")]
    points = [100 * (6 - seed) / 200 for seed in range(3)]
    assert (soft["seeds"], soft["points"]) == (3, pytest.approx(2.5))
    assert [soft["95 % from"], soft["to"]] == pytest.approx(mean_interval(points))
    assert soft["resolved"] == "yes"
    equal = table.loc[("bag of embeddings", "soft targets")]
    assert equal["points"] == 0 and np.isnan(equal["to"]) and equal["resolved"] == "no"
    two = figures.gain_table(lines(seeds=(0, 1)), RIGHT)
    # 6 and 5 rows that only the taught one gets right: p = 0.03 and 0.06.
    assert two["resolved"].tolist() == ["no", "yes", "no"]


def test_a_bar_is_the_paired_interval_of_a_seed():
    figure = figures.gain_figure(lines(), RIGHT)
    colour = figures.LOOKS["soft targets and layers"][0]
    bars = [line.get_xdata() for line in figure.axes[0].lines
            if line.get_color() == colour and len(line.get_xdata()) == 2]  # fmt: skip
    right = [[p == y for p, y in zip(said(k), RIGHT, strict=True)] for k in (28, 40)]
    low, high = paired_test(*right)["difference_ci95"]
    assert [list(bar) for bar in bars] == [pytest.approx([100 * low, 100 * high])] * 3
    with pytest.raises(ValueError, match="expected a taught student"):
        figures.gain_figure([line for line in lines() if line.get("taught") == "alone"], RIGHT)


def test_the_table_of_worth_by_hand():
    table = figures.worth_table(lines(), 256)
    assert table["student"].tolist() == ["teacher", *["2 layers"] * 3, *["bag of embeddings"] * 2,
                                         "nb_trigrams"]  # fmt: skip
    teacher, soft, plain = table.iloc[0], table.iloc[2], table.iloc[-1]
    assert (teacher["speedup"], teacher["of_teacher"], teacher["agreement"]) == (1, 1, 1)
    assert (soft["speedup"], soft["accuracy"]) == (5, pytest.approx(1 - 35 / 200))
    assert soft["of_teacher"] == pytest.approx((1 - 35 / 200) / 0.9)
    assert [soft["low"], soft["high"]] == pytest.approx(accuracy_interval(165, 200))
    assert plain["accuracy"] == 0.8 and np.isnan([plain["median_ms"], plain["agreement"]]).all()
    assert figures.worth_table(lines(), 128)["median_ms"][0] == 40
    with pytest.raises(ValueError, match="'teacher'"):
        figures.worth_table(lines()[1:], 256)


def test_the_figure_of_worth_draws_all_four_and_the_goal():
    figure = figures.worth_figure(lines(), 256)
    size, time, right, same = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Size", "Latency", "Accuracy", "Agreement"]  # fmt: skip
    names = [label.get_text() for label in size.get_yticklabels()]
    assert names[0] == "teacher" and names[2] == "2 layers\nsoft targets"
    assert names[-1] == "counting word triples"
    dashed = [axes.lines[-1] for axes in (time, right)]
    assert [line.get_xdata()[0] for line in dashed] == pytest.approx([80 / 4, 0.9 * 0.97])

    def drawn(axes, place):
        return [list(line.get_xdata()) for line in axes.lines if set(line.get_ydata()) == {place}]

    assert [16, 32] in drawn(time, 2) and [16] in drawn(time, 2)
    seeds = [pytest.approx(1 - (34 + k) / 200) for k in range(3)]
    assert seeds in drawn(right, 2) and [pytest.approx(1 - 35 / 200)] in drawn(right, 2)
    assert [pytest.approx(1 - 15 / 200)] in drawn(same, 2)
    assert len(size.patches) == 2 * 6  # the baseline has no weights to count
