"""The figures draw the numbers they are given; every written share is computed by hand here."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tutorkit import plots


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No figure stays open and no setting changes, whatever a test does."""
    settings = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def texts(figure: Figure) -> list[str]:
    return [text.get_text().strip() for axes in figure.axes for text in axes.texts]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def points(axes) -> list[list[tuple[float, float]]]:
    """The data of every line of an axes, as (x, y) pairs."""
    return [
        [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
        for line in axes.lines
    ]


def history(n_steps: int, evaluations: list[tuple[int, float, float]]) -> dict:
    """Loss falls by 0.01 a step from 1, 20 steps an epoch, the rate climbs by 1e-5 a step."""
    steps = [
        {"step": i, "epoch": i / 20, "loss": 1 - 0.01 * i, "learning_rate": 1e-5 * i}
        for i in range(1, n_steps + 1)
    ]
    return {
        "steps": steps,
        "evaluations": [
            {"step": step, "epoch": step / 20, "loss": loss, "accuracy": accuracy}
            for step, loss, accuracy in evaluations
        ],
    }


def test_a_notebook_shows_a_returned_figure_exactly_once(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel would take it over
    code = (
        "from tutorkit import plots\n"
        "plots.score_comparison([dict(name='a', accuracy=0.5, ci95=None, kind='model')])"
    )
    cells = [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("1 + 1")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    root = Path(plots.__file__).parents[1]
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(root)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1


def test_ticks_keep_the_style_after_the_call():
    figure = plots.learning_curves(history(3, [(3, 0.9, 0.5)]))
    figure.draw_without_rendering()
    sizes = {label.get_fontsize() for label in figure.axes[0].get_xticklabels()}
    assert sizes == {plots.STYLE["xtick.labelsize"]} != {matplotlib.rcParams["font.size"]}


def test_a_failure_while_drawing_leaves_no_figure_open():
    with pytest.raises(KeyError, match="learning_rate"):
        plots.learning_curves({"steps": [{"step": 1, "loss": 1.0}], "evaluations": []})
    assert plt.get_fignums() == []


def test_running_mean_by_hand():
    np.testing.assert_allclose(plots.running_mean([4.0, 2.0, 0.0, 4.0, 8.0], 3), [4, 3, 2, 2, 4])
    np.testing.assert_allclose(plots.running_mean([4.0, 2.0], 5), [4, 3])


def test_learning_curves_draw_the_history():
    record = history(60, [(20, 0.9, 0.6), (40, 0.7, 0.8), (60, 0.75, 0.7)])
    figure = plots.learning_curves(record)
    loss, accuracy, rate = figure.axes
    each, mean, validation = points(loss)
    assert each == [(row["step"], row["loss"]) for row in record["steps"]]
    assert mean[0] == (1, pytest.approx(0.99))
    assert mean[-1] == (60, pytest.approx((0.42 + 0.41 + 0.40) / 3))  # window 60 // 20 = 3
    assert validation == [(20, 0.9), (40, 0.7), (60, 0.75)]
    assert loss.lines[0].get_linewidth() < loss.lines[1].get_linewidth()
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == ["training, mean of last 3 steps", "validation"]

    curve, best = points(accuracy)
    assert curve == [(20, 0.6), (40, 0.8), (60, 0.7)]
    assert best == [(40, 0.8)]
    assert texts(figure) == ["best 0.800, step 40"]

    assert points(rate) == [[(row["step"], row["learning_rate"]) for row in record["steps"]]]
    assert [label.get_text() for label in rate.get_yticklabels()] == ["0", "0.0006"]
    assert loss.get_xlabel() == rate.get_xlabel() == "optimizer step"


def test_learning_curves_name_the_epochs_above_the_steps():
    figure = plots.learning_curves(history(60, [(60, 0.7, 0.8)]))
    epochs = figure.axes[0].child_axes[0]
    assert epochs.get_xlabel() == "epoch"
    steps = np.array(figure.axes[0].get_xlim())
    np.testing.assert_allclose(epochs.get_xlim(), steps / 20)


@pytest.mark.parametrize("n_steps", [1, 3, 19, 39])
def test_learning_curves_of_few_steps_and_one_evaluation(n_steps):
    figure = plots.learning_curves(history(n_steps, [(n_steps, 0.5, 0.25)]))
    training, validation = points(figure.axes[0])
    assert len(training) == n_steps
    assert validation == [(n_steps, 0.5)]
    assert texts(figure) == [f"best 0.250, step {n_steps}"]


def test_learning_curves_say_when_nothing_was_evaluated():
    figure = plots.learning_curves(history(3, []))
    assert texts(figure) == ["no evaluation in this run"]
    assert len(figure.axes[0].lines) == 1


def test_learning_curves_of_a_zero_learning_rate():
    record = history(2, [])
    for row in record["steps"]:
        row["learning_rate"] = 0.0
    rate = plots.learning_curves(record).axes[2]
    assert [label.get_text() for label in rate.get_yticklabels()] == ["0"]


def test_learning_curves_need_a_step():
    with pytest.raises(ValueError, match=r"history\['steps'\]: expected at least one entry"):
        plots.learning_curves({"steps": [], "evaluations": []})


def test_length_distribution_writes_what_truncation_cuts():
    # train: 1 of 4 reviews is longer than 10; it loses 10 of the 40 tokens.
    # test: 2 of 3 are longer, by 1 and 5: 6 of 36 tokens.
    counts = {"train": [5, 5, 10, 20], "test": np.array([10, 11, 15])}
    figure = plots.length_distribution(counts, max_length=10)
    assert titles(figure) == [
        "train: 4 reviews, 25.0 % longer than 10, 25.0 % of tokens cut",
        "test: 3 reviews, 66.7 % longer than 10, 16.7 % of tokens cut",
    ]
    heights = {bar.get_x(): bar.get_height() for bar in figure.axes[0].patches}
    assert {x: h for x, h in heights.items() if h} == {5: 0.5, 10: 0.25, 19: 0.25}
    for axes in figure.axes:
        assert [x for x, _ in points(axes)[0]] == [10, 10]
    assert texts(figure) == ["max_length = 10"]


def test_length_distribution_gathers_the_longest_in_the_last_bar():
    figure = plots.length_distribution({"train": [10] * 999 + [5000]}, max_length=36)
    (axes,) = figure.axes
    last = axes.patches[-1]
    assert last.get_x() + last.get_width() == 40  # 1.1 * 36 rounded up to whole bars
    assert last.get_height() == pytest.approx(0.001)
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)
    assert axes.get_xlabel() == "tokens per review (the last bar holds all longer ones)"
    short = plots.length_distribution({"train": [1, 2]}, max_length=36)
    assert short.axes[0].get_xlabel() == "tokens per review"


def test_length_distribution_needs_reviews_in_every_split():
    with pytest.raises(ValueError, match=r"token_counts: expected at least one"):
        plots.length_distribution({}, 10)
    with pytest.raises(ValueError, match=r"token_counts\['test'\]: expected at least one"):
        plots.length_distribution({"train": [1], "test": []}, 10)


def test_class_balance_writes_counts_and_shares():
    labels = {"train": [0, 1, 1, 1], "test": np.array([1])}
    figure = plots.class_balance(labels, ["negative", "positive"])
    train, test = figure.axes
    assert [bar.get_width() for bar in train.patches] == [0.25, 0.75]
    assert [bar.get_width() for bar in test.patches] == [0, 1]
    assert texts(figure) == ["1 (25.0 %)", "3 (75.0 %)", "0 (0.0 %)", "1 (100.0 %)"]
    assert titles(figure) == ["train: 4 reviews", "test: 1 review"]
    assert [label.get_text() for label in train.get_yticklabels()] == ["negative", "positive"]


def test_class_balance_names_a_label_outside_the_range():
    with pytest.raises(ValueError, match=r"'train'.*expected labels from 0 to 1.*found \[2\]"):
        plots.class_balance({"train": [0, 2]}, ["negative", "positive"])
    with pytest.raises(ValueError, match="labels_by_split: expected at least one"):
        plots.class_balance({}, ["negative", "positive"])


def test_confusion_matrix_writes_counts_and_row_shares():
    figure = plots.confusion_matrix([[3, 1], [1500, 500]], ["negative", "positive"])
    (axes,) = figure.axes
    assert texts(figure) == ["3\n75.0 %", "1\n25.0 %", "1,500\n75.0 %", "500\n25.0 %"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0.75, 0.25]])
    assert axes.get_ylabel() == "true label"
    assert axes.get_xlabel() == "predicted label"
    assert titles(figure) == ["2,004 reviews; % = share of the row"]


def test_confusion_matrix_of_a_label_without_reviews():
    figure = plots.confusion_matrix(np.array([[2, 0], [0, 0]]), ["a", "b"])
    assert texts(figure) == ["2\n100.0 %", "0\n0.0 %", "0", "0"]


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio, 1 to 21."""
    dark, light = sorted([plots._luminance(first), plots._luminance(second)])
    return (light + 0.05) / (dark + 0.05)


def test_luminance_of_known_colours():
    assert plots._luminance("white") == pytest.approx(1)
    assert plots._luminance("black") == 0
    assert contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)  # the WCAG example


@pytest.mark.parametrize("right", range(0, 101, 5))
def test_confusion_matrix_text_is_readable_on_every_shade(right):
    figure = plots.confusion_matrix([[right, 100 - right], [0, 1]], ["a", "b"])
    (axes,) = figure.axes
    image = axes.images[0]
    cells = image.cmap(image.norm(image.get_array())).reshape(-1, 4)
    for text, background in zip(axes.texts, cells, strict=True):
        assert contrast(text.get_color(), to_hex(background)) > 3.9


def test_confusion_matrix_needs_a_row_for_each_name():
    with pytest.raises(ValueError, match=r"expected 3 rows and 3 columns.*found shape \(2, 2\)"):
        plots.confusion_matrix([[1, 2], [3, 4]], ["a", "b", "c"])


def reliability_bin(low: float, n: int, confidence: float | None, accuracy: float | None) -> dict:
    return {
        "low": low, "high": low + 0.25, "n": n, "confidence": confidence, "accuracy": accuracy
    }  # fmt: skip


def test_reliability_diagram_draws_gaps_and_counts():
    bins = [
        reliability_bin(0.0, 0, None, None),
        reliability_bin(0.25, 0, None, None),
        reliability_bin(0.5, 10, 0.6, 0.3),
        reliability_bin(0.75, 2000, 0.9, 1.0),
    ]
    figure = plots.reliability_diagram(bins, ece=0.1012)
    top, below = figure.axes
    diagonal, dots = points(top)
    assert diagonal == [(0.5, 0.5), (1, 1)]
    assert dots == [(0.6, 0.3), (0.9, 1.0)]
    gaps = [line.tolist() for line in top.collections[0].get_segments()]
    assert gaps == [[[0.6, 0.3], [0.6, 0.6]], [[0.9, 0.9], [0.9, 1.0]]]
    assert [bar.get_height() for bar in below.patches] == [10, 2000]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in below.patches]
    assert centres == pytest.approx([0.625, 0.875])
    assert [text.get_text() for text in below.texts] == ["10", "2,000"]
    assert titles(figure)[0] == "Accuracy by confidence (expected calibration error 0.101)"
    assert top.get_ylim()[0] < 0.3


def test_reliability_diagram_needs_a_bin_with_rows():
    with pytest.raises(ValueError, match="bins with rows: expected at least one"):
        plots.reliability_diagram([reliability_bin(0.5, 0, None, None)], ece=0.0)


def test_accuracy_by_length_draws_bins_intervals_and_the_mean():
    rows = [
        {"low": 1, "high": 9, "n": 30, "accuracy": 0.9, "accuracy_ci95": [0.8, 0.95]},
        {"low": 10, "high": 10, "n": 0, "accuracy": None, "accuracy_ci95": None},
        {"low": 11, "high": 11, "n": 9, "accuracy": 0.8, "accuracy_ci95": None},
        {"low": 12, "high": None, "n": 1000, "accuracy": 0.5, "accuracy_ci95": [0.47, 0.53]},
    ]
    figure = plots.accuracy_by_length(rows, unit="words")
    (axes,) = figure.axes
    mean, dots = points(axes)
    overall = (27 + 7.2 + 500) / 1039  # 0.514
    assert mean == [(0, pytest.approx(overall)), (1, pytest.approx(overall))]
    assert dots == [(0, 0.9), (1, 0.8), (2, 0.5)]
    intervals = [line.get_segments()[0].tolist() for line in axes.collections]
    assert intervals == [[[0, 0.8], [0, 0.95]], [[2, 0.47], [2, 0.53]]]
    assert texts(figure) == ["all 0.514", "0.900", "0.800", "0.500"]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["1–9\nn = 30", "11\nn = 9", "from 12\nn = 1,000"]
    assert axes.get_xlabel() == "review length (words)"


def test_accuracy_by_length_needs_a_bin_with_rows():
    with pytest.raises(ValueError, match="length bins with rows: expected at least one"):
        plots.accuracy_by_length([])


SCORES = [
    {"name": "TF-IDF", "accuracy": 0.88, "ci95": [0.87, 0.89], "kind": "baseline"},
    {"name": "stated elsewhere", "accuracy": 0.835, "ci95": None, "kind": "claim"},
    {"name": "minilm", "accuracy": 0.92, "ci95": [0.91, 0.93], "kind": "model"},
    {"name": "untrained head", "accuracy": 0.5, "ci95": None, "kind": "before"},
]


def test_score_comparison_sorts_and_writes_the_scores():
    figure = plots.score_comparison(SCORES)
    (axes,) = figure.axes
    assert points(axes) == [[(0.5, 0)], [(0.835, 1)], [(0.88, 2)], [(0.92, 3)]]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["untrained head", "stated elsewhere", "TF-IDF", "minilm"]
    intervals = [line.get_segments()[0].tolist() for line in axes.collections]
    assert intervals == [[[0.87, 2], [0.89, 2]], [[0.91, 3], [0.93, 3]]]
    assert texts(figure) == [
        "0.500  before fine-tuning",
        "0.835  claim, not measured",
        "0.880 [0.870, 0.890]  baseline",
        "0.920 [0.910, 0.930]  fine-tuned",
    ]


def test_score_comparison_draws_only_the_claim_hollow():
    (axes,) = plots.score_comparison(SCORES).axes
    hollow = [line.get_markerfacecolor() == "white" for line in axes.lines]
    assert hollow == [False, True, False, False]


def test_score_comparison_keeps_its_words_inside_the_figure():
    long_name = {**SCORES[0], "name": "TF-IDF unigrams and bigrams with logistic regression"}
    figure = plots.score_comparison([*SCORES, long_name])
    (axes,) = figure.axes
    for text in [*axes.texts, *axes.get_yticklabels(), axes.title]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_score_comparison_names_the_allowed_kinds():
    with pytest.raises(
        ValueError, match="'TF-IDF': expected kind to be one of baseline.+found 'cheap'"
    ):
        plots.score_comparison([{**SCORES[0], "kind": "cheap"}])
    with pytest.raises(ValueError, match="scores: expected at least one"):
        plots.score_comparison([])
