"""Lesson 00: its exercises are solved, and its words hold."""

from __future__ import annotations

import json
import math
import re

import jupytext
import nbformat
import pytest
import torch
from lesson_scripts import blocks, cases, solved

from tutorkit import data
from tutorkit.checks import CheckFailed, lesson_00
from tutorkit.concept_map import ConceptMap, lessons_in
from tutorkit.models import count_parameters, load_model
from tutorkit.notebooks import NOTEBOOKS
from tutorkit.optim import make_optimizer
from tutorkit.training import TrainConfig, steps_of_epoch

SCRIPT = NOTEBOOKS / "00_tour.py"
CELLS = jupytext.read(SCRIPT).cells

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def names():
    """What the setup and the solutions of the exercises define."""
    return solved(CELLS)


def test_there_are_short_exercises():
    assert len(blocks(CELLS, SCRIPT.stem)) == 5
    assert max(block.minutes for block in blocks(CELLS, SCRIPT.stem)) <= 3
    assert {block.points for block in blocks(CELLS, SCRIPT.stem)} == {1}


def test_the_solutions_pass_their_checks(names, capsys):
    for block in blocks(CELLS, SCRIPT.stem):
        exec(block.check, names)
    assert capsys.readouterr().out.count("✓") == 5


def test_the_solutions_by_hand(names):
    assert names["accuracy"]([1, 0, 1, 0], [1, 1, 1, 0]) == 0.75
    assert names["steps_in_run"](200, 16, 3) == 39  # 12 batches of 16 and one of 8, three times
    assert names["steps_in_run"](32, 16, 2) == 4
    assert names["higher"]([0.7, 0.8], [0.5, 0.6]) == "first"
    assert names["higher"]([0.5, 0.6], [0.7, 0.8]) == "second"
    assert names["higher"]([0.5, 0.7], [0.6, 0.8]) == "open"
    assert names["training_bytes"](10, 2, 4) == 64
    assert names["seconds_here"](40, 10, 0.2, 0.1) == 30


def test_the_steps_are_those_of_a_run(names):
    tokenizer = load_model("tiny").tokenizer
    for n, batch_size in ((200, 16), (64, 16), (65, 16), (7, 8)):
        config = TrainConfig(batch_size=batch_size, epochs=3)
        rows = data.SentimentDataset(["good"] * n, [1] * n, tokenizer, 8)
        steps = sum(len(steps_of_epoch(rows, config, epoch)) for epoch in range(3))
        assert names["steps_in_run"](n, batch_size, 3) == steps


def test_the_bytes_are_those_that_training_keeps(names):
    """Weights, gradients and the optimizer's tensors of a model after one step, counted."""
    loaded = load_model("tiny")
    model = loaded.model
    for name, weight in model.named_parameters():
        weight.requires_grad_("classifier" in name)
    optimizer = make_optimizer(model, "adamw", 1e-3, 0.01)
    batch = data.SentimentDataset(["good", "bad"], [1, 0], loaded.tokenizer, 8).batch([0, 1])
    model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum().backward()
    optimizer.step()
    kept = [*model.parameters()] + [w.grad for w in model.parameters()]
    kept += [t for state in optimizer.state.values() for t in state.values()]
    found = sum(t.numel() * t.element_size() for t in kept if t is not None and t.dim() > 0)
    assert found == names["training_bytes"](*count_parameters(model), 4)


def accuracy_by_loop(labels, predictions):
    wrong = 0
    for i in range(len(labels)):
        if labels[i] != predictions[i]:
            wrong += 1
    return 1 - wrong / len(labels)


def accuracy_by_tensor(labels, predictions):
    return (torch.tensor(labels) == torch.tensor(predictions)).double().mean().item()


def steps_by_range(rows, batch_size, epochs):
    return epochs * len(range(0, rows, batch_size))


def steps_by_divmod(rows, batch_size, epochs):
    full, rest = divmod(rows, batch_size)
    return (full + (rest > 0)) * epochs


def higher_by_sorting(first, second):
    low, top = sorted([(first, "first"), (second, "second")])
    return top[1] if top[0][0] > low[0][1] else "open"


def higher_by_overlap(first, second):
    if max(first[0], second[0]) <= min(first[1], second[1]):
        return "open"
    return "first" if sum(first) > sum(second) else "second"


def bytes_by_groups(parameters, trained, bytes_each):
    frozen = parameters - trained
    return frozen * bytes_each + trained * (4 * bytes_each)


def seconds_by_speed(training_s, rest_s, step_there, step_here):
    steps = training_s / step_there
    return rest_s + steps * step_here


@pytest.mark.parametrize(("name", "answer"), [
    ("accuracy", accuracy_by_loop),
    ("accuracy", accuracy_by_tensor),
    ("steps_in_run", steps_by_range),
    ("steps_in_run", steps_by_divmod),
    ("higher", higher_by_sorting),
    ("higher", higher_by_overlap),
    ("training_bytes", bytes_by_groups),
    ("seconds_here", seconds_by_speed),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name, answer, capsys):
    getattr(lesson_00, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("accuracy", lambda labels, predictions: round(accuracy_by_loop(labels, predictions), 2),
     "The largest difference is"),
    ("accuracy", lambda labels, predictions: labels == predictions, "expected dtype float"),
    ("accuracy", lambda labels, predictions: sum(predictions) / len(labels),
     "The largest difference is"),
    ("steps_in_run", lambda rows, batch_size, epochs: float(math.ceil(rows / batch_size) * epochs),
     "expected dtype int, found float"),
    ("steps_in_run", lambda rows, batch_size, epochs: round(rows / batch_size) * epochs,
     "The largest difference is"),
    ("higher", lambda first, second: first[0] > second[1], "found (True|False)"),
    ("higher", lambda first, second: higher_by_overlap(first, second).upper(), "expected '"),
    ("higher", lambda first, second: "open", "expected '(first|second)'"),
    ("higher", lambda first, second: "first" if first[0] > second[1]
     else "second" if second[0] > first[1] else None, "returned None"),
    ("training_bytes", lambda parameters, trained, bytes_each: parameters * bytes_each
     + 3 * trained, "The largest difference is"),
    ("training_bytes", lambda parameters, trained, bytes_each: 8 * (parameters + 3 * trained)
     * bytes_each, "The largest difference is"),
    ("seconds_here", lambda training_s, rest_s, step_there, step_here: training_s * step_here
     + rest_s, "The largest difference is"),
    ("seconds_here", lambda training_s, rest_s, step_there, step_here: training_s + rest_s
     + step_here - step_there, "The largest difference is"),
])  # fmt: skip
def test_a_wrong_answer_that_is_listed_nowhere_is_refused(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_00, name).check(answer)


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("steps_in_run", lambda rows, batch_size, epochs: rows // batch_size * epochs,
     "it is a step as well"),
    ("steps_in_run", lambda rows, batch_size, epochs: rows / batch_size * epochs,
     "no parts of a step"),
    ("higher", lambda first, second: "first" if sum(first) > sum(second) else "second",
     "every difference counts here"),
    ("training_bytes", lambda parameters, trained, bytes_each: 4 * parameters * bytes_each,
     "every parameter is counted as trained"),
    ("seconds_here", lambda training_s, rest_s, step_there, step_here:
     training_s * step_there / step_here + rest_s, "upside down"),
])  # fmt: skip
def test_the_likely_mistakes_are_named(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_00, name).check(answer)


def test_the_inputs_hold_what_answers_trip_over():
    runs = cases(lesson_00.steps_in_run)
    assert {rows % batch_size == 0 for rows, batch_size, _ in runs} == {True, False}
    answers = {lesson_00.higher.solution(*case) for case in cases(lesson_00.higher)}
    assert answers == {"first", "second", "open"}
    inside = [a for a, b in cases(lesson_00.higher) if a[0] < b[0] < b[1] < a[1]]
    inside += [b for a, b in cases(lesson_00.higher) if b[0] < a[0] < a[1] < b[1]]
    assert inside
    for labels, predictions in cases(lesson_00.accuracy):
        assert {0, 1} == set(labels) == set(predictions)
        assert lesson_00.accuracy.solution(labels, predictions) > 0.5
    ratios = [here / there for _, _, there, here in cases(lesson_00.seconds_here)]
    assert min(ratios) < 1 < max(ratios)


# --- the lesson -------------------------------------------------------------------------------


def test_the_order_of_the_lesson():
    titles = [re.match(r"## (\d+)\. ", cell.source) for cell in CELLS]
    assert [int(title[1]) for title in titles if title] == [1, 2, 3, 4]
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    assert [t for t in ("Summary", "Exercises", "Further reading") if f"## {t}" not in text] == []


def test_code_cells_are_short():
    for cell in CELLS:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and not tags & {"colab", "solution", "exercise-setup"}:
            lines = [line for line in cell.source.split("\n") if line.strip()]
            assert len(lines) <= 20, cell.source


def outputs(first_line):
    """What is stored of the code cell that begins with a line."""
    stored = nbformat.read(SCRIPT.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    (cell,) = [cell for cell in code if cell.source.split("\n")[0] == first_line]
    return cell.outputs


def test_the_stored_map_shows_the_lessons_that_are_there():
    (shown,) = outputs("concepts")
    current = ConceptMap(lessons_in(NOTEBOOKS))
    assert "".join(shown.data["text/html"]) == current._repr_html_(), "`make notebooks NAMES=00`"
    assert 'href="01_math.ipynb"' in current._repr_html_()


def test_the_map_is_stored_as_a_picture_as_well():
    (picture,) = outputs("concepts = ConceptMap(known, linked=bool(here))")
    assert len(picture.data["image/png"]) > 20_000


def test_what_the_text_says_of_the_reports_holds():
    """On all of IMDB a difference of less than a point is resolved."""
    folder = NOTEBOOKS / "reports" / "imdb-minilm-384"
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert record["dataset"]["n_train"] == 24_000 and record["test"]["n"] == 25_000
    assert 0 < record["test"]["accuracy"] - max(record["baseline"].values()) < 0.01
    assert record["paired"]["resolved"]
    text = " ".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    said = " ".join(text.split())
    assert "24,000 reviews, judged by 25,000" in said
    assert "differences of less than a point can be resolved" in said
