"""The figures of lesson 07, and the numbers behind them, on made-up results."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from tutorkit import peft_figures as figures
from tutorkit.metrics import mean_interval
from tutorkit.widgets import explore, redraw


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


LEVELS = {"full": 0.8, "head": 0.6, "adapter": 0.78, "lora": 0.79, "adalora": 0.77}
TRAINED = {"full": 1.0, "head": 1e-4, "adapter": 0.01, "adalora": 0.005}


def results(model="minilm", test="1101"):
    """Three seeds of five methods, seeds out of order; LoRA with three ranks."""
    lines = [{"model": "nb_trigrams", "method": "baseline", "settings": {}, "seed": 0,
              "accuracy": 0.7, "train_s": 1.0, "predictions": test}]  # fmt: skip
    for seed in (2, 0, 1):
        for method, level in LEVELS.items():
            for r in (1, 8, 32) if method == "lora" else (None,):
                share = r / 1000 if r else TRAINED[method]
                lines.append({
                    "model": model, "method": method, "settings": {"r": r} if r else {},
                    "seed": seed, "accuracy": level + 0.01 * seed * (method != "full"),
                    "n_trained": round(share * 10**6), "n_parameters": 10**6, "cpu_s": 10.0,
                    "start_rss_mb": 300, "peak_rss_mb": 300 + round(500 * share),
                    "predictions": "1111" if method == "head" else test,
                })  # fmt: skip
    return lines


# --- numbers --------------------------------------------------------------------------------------


def test_energy_by_hand():
    # Singular values 4, 3, 0: of 25, the first holds 16.
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    matrix = turn @ torch.diag(torch.tensor([3.0, 0.0, 4.0])) @ turn.T
    np.testing.assert_allclose(figures.energy(matrix), [0.64, 1, 1], atol=1e-6)
    with pytest.raises(ValueError, match="a matrix with an entry other than 0, found one of"):
        figures.energy(torch.zeros(2, 2))


def test_values_are_those_of_the_seeds_in_order():
    lines = results()
    assert figures.values(lines, "minilm", "head") == pytest.approx([0.6, 0.61, 0.62])
    assert figures.values(lines, "minilm", "lora", "share", 32) == [0.032] * 3
    assert figures.values(lines, "minilm", "full", "memory_mb") == [500] * 3
    assert figures.methods_of(lines, "minilm") == ["full", "head", "adapter", "lora", "adalora"]
    with pytest.raises(ValueError, match="runs of 'bitfit' with 'minilm', found .*'adalora'"):
        figures.values(lines, "minilm", "bitfit")
    with pytest.raises(ValueError, match="runs of 'lora' with 'minilm' and r = 4"):
        figures.values(lines, "minilm", "lora", r=4)


def test_differences_pair_the_seeds():
    lines = results()
    assert figures.differences(lines, "minilm", "lora", "full") == pytest.approx([-0.01, 0, 0.01])
    assert figures.differences(lines, "minilm", "lora", "lora", 1, 8) == [0, 0, 0]
    alone = [line for line in lines if line["method"] != "full" or line["seed"] == 7]
    alone.append(next(line for line in lines if line["method"] == "full") | {"seed": 7})
    with pytest.raises(ValueError, match="'head' and 'full' with the same seed, found none"):
        figures.differences(alone, "minilm", "head", "full")


def test_resolved_says_which_paired_tests_are():
    truth = "10" * 50
    lines = [line | {"predictions": "1" * 100 if line["method"] == "head" else truth}
             for line in results()]  # fmt: skip
    assert figures.resolved(lines, truth, "minilm", "head", "full") == [-1, -1, -1]
    assert figures.resolved(lines, truth, "minilm", "full", "head") == [1, 1, 1]
    assert figures.resolved(lines, truth, "minilm", "lora", "full") == [0, 0, 0]


# --- memory, low rank, budgets --------------------------------------------------------------------


def test_the_bars_of_the_memory_are_its_parts():
    parts = {"full": {"weights": 4e6, "gradients": 4e6}, "lora": {"weights": 4e6, "gradients": 0}}
    axes = figures.memory_figure(parts).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 4), (0, 4), (4, 4),
                                                                        (4, 0)]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == [" 8", " 4"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["all weights", "LoRA"]
    with pytest.raises(ValueError, match="at least one method, found none"):
        figures.memory_figure({})


def test_energy_by_rank_with_the_last_curve_to_compare_with():
    axes = figures.energy_figure({"a": [0.5, 1.0], "noise": [0.3, 0.6, 1.0]}, "Title").axes[0]
    first, last = axes.lines
    assert list(first.get_xdata()) == [1, 2] and list(last.get_ydata()) == [0.3, 0.6, 1.0]
    assert last.get_color() == figures.GREY and last.get_linestyle() == "--"
    assert axes.get_xscale() == "log" and axes.get_title(loc="left") == "Title"
    with pytest.raises(ValueError, match="at least one curve, found none"):
        figures.energy_figure({}, "Title")


def test_the_reconstruction_is_the_nearest_matrix_of_the_rank():
    delta = torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    drawing = figures.Reconstruction(delta)
    assert drawing.controls["rank"].values == (1, 2, 4, 8, 12)
    u, s, v = torch.linalg.svd(delta)
    for rank in (2, 12):
        drawing.update(rank=rank)
        near = u[:, :rank] * s[:rank] @ v[:rank]
        np.testing.assert_allclose(drawing._image.get_array(), near, atol=1e-5)
        ((x,), (y,)) = drawing._dot.get_data()
        assert (x, y) == (rank, pytest.approx(figures.energy(delta)[rank - 1]))
    assert drawing._share.get_text() == "rank 12: 100%"
    assert redraw(drawing, rank=1) != redraw(drawing, rank=4)
    assert "rank" in repr(explore(drawing))


def test_a_large_matrix_is_drawn_in_blocks():
    drawing = figures.Reconstruction(torch.ones(200, 100))
    assert drawing._image.get_array().shape == (67, 50)
    np.testing.assert_allclose(drawing._image.get_array()[:66], 1, atol=1e-9)


def test_the_budget_as_planned_and_as_counted():
    figure = figures.budget_figure([12, 8, 4], [12, 9, 4], layers=4)
    planned, counted = figure.axes[0].lines
    assert list(planned.get_ydata()) == [12, 8, 4] and list(counted.get_ydata()) == [12, 9, 4]
    for wrong in (([], []), ([1], [1, 2])):
        with pytest.raises(ValueError, match="a budget and a sum of ranks for each step"):
            figures.budget_figure(*wrong, layers=1)


def test_ranks_stand_at_their_layer_and_projection():
    ranks = {"bert.encoder.layer.0.attention.query": 3, "bert.encoder.layer.1.attention.query": 1,
             "bert.encoder.layer.1.output.dense": 2.5}  # fmt: skip
    axes = figures.rank_figure(ranks, "Ranks").axes[0]
    words = {(int(t.get_position()[0]), int(t.get_position()[1])): t.get_text() for t in axes.texts}
    assert words == {(0, 0): "3", (1, 0): "1", (1, 1): "2.5"}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["attention.query", "output.dense"]
    with pytest.raises(ValueError, match="at least one layer, found none"):
        figures.rank_figure({}, "Ranks")
    with pytest.raises(ValueError, match="expected names such as .*, found 'query'"):
        figures.rank_figure({"query": 1}, "Ranks")


# --- the record -----------------------------------------------------------------------------------


def test_the_frontier_has_a_row_a_model_and_a_mark_a_method():
    lines = results() + results("smollm2")[1:]
    panels = figures.frontier_figure(lines, ["minilm", "smollm2"]).axes
    scales = [axes.get_xscale() for axes in panels]
    assert scales == ["log", "linear", "linear"] * 2
    marks = {(round(float(x), 6), round(float(y), 4)) for line in panels[0].lines
             if line.get_marker() == figures.LOOKS["lora"][2]
             for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}  # fmt: skip
    assert marks == {(0.001, 0.8), (0.008, 0.8), (0.032, 0.8)}
    bars = [line.get_ydata() for line in panels[0].lines if len(line.get_ydata()) == 2
            and line.get_color() == figures.LOOKS["adapter"][1]]  # fmt: skip
    assert [tuple(bar) for bar in bars] == [pytest.approx((0.78, 0.8))]
    memory = [x for line in panels[2].lines if line.get_marker() == figures.LOOKS["full"][2]
              for x in line.get_xdata()]  # fmt: skip
    assert memory == [500]
    with pytest.raises(ValueError, match="runs with 'gpt2', found those with .*'minilm'"):
        figures.frontier_figure(lines, ["gpt2"])


def test_the_sweep_goes_through_the_means_of_each_rank():
    axes = figures.rank_sweep_figure(results(), "minilm").axes[0]
    (mean,) = [line for line in axes.lines if line.get_color() == figures.BLUE
               and line.get_marker() == "None"]  # fmt: skip
    assert list(mean.get_xdata()) == [1, 8, 32]
    np.testing.assert_allclose(mean.get_ydata(), [0.8] * 3)
    with pytest.raises(ValueError, match="runs of 'lora' with 'minilm', found none"):
        figures.rank_sweep_figure([x for x in results() if x["method"] != "lora"], "minilm")


def test_the_bars_of_the_gap_are_the_intervals():
    (axes,) = figures.gap_figure(results(), ["minilm"]).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        figures.LOOKS[m][0] for m in ("head", "adapter", "lora", "adalora")
    ]
    bars = [line.get_xdata() for line in axes.lines if line.get_color() == figures.BLUE
            and line.get_linestyle() == "-" and len(line.get_xdata()) == 2]  # fmt: skip
    assert tuple(bars[0]) == pytest.approx(mean_interval([-1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="two finite values"):
        figures.gap_figure([x for x in results() if x["seed"] == 0], ["minilm"])
