"""Lesson 06: its exercises are solved, refuse what is wrong, and its words hold on the record."""

from __future__ import annotations

import math
import re

import jupytext
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lesson_scripts import blocks, cases, solved

from tutorkit import budgets, studies, transfer
from tutorkit.checks import CheckFailed, lesson_06
from tutorkit.notebooks import NOTEBOOKS

SCRIPT = NOTEBOOKS / "06_transfer.py"
CELLS = jupytext.read(SCRIPT).cells

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def names():
    """What the setup and the solutions of the exercises define."""
    return solved(CELLS)


def test_there_are_exercises_and_a_lab():
    assert len(blocks(CELLS, SCRIPT.stem)) == 6
    assert sum("spot the flaw" in block.text for block in blocks(CELLS, SCRIPT.stem)) == 1


def test_the_solutions_pass_their_checks(names, capsys):
    for block in blocks(CELLS, SCRIPT.stem):
        exec(block.check, names)
    assert capsys.readouterr().out.count("✓") == 6


def test_the_solutions_by_hand(names):
    assert names["layer_rates"](1.0, 2, 0.5).tolist() == [0.125, 0.25, 0.5, 1.0]
    first = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    second = torch.tensor([0.8, 0.6, 0.4], dtype=torch.float64)  # differences 0.1, 0.2, 0.3
    half = 2 * 0.1 / math.sqrt(3)
    assert names["paired_interval"](first, second, 2.0).tolist() == pytest.approx(
        [0.2 - half, 0.2 + half]
    )
    assert names["labels_for"]([10, 1000], [0.6, 0.8], 0.7) == pytest.approx(100)
    assert names["labels_for"]([10, 100, 1000], [0.6, 0.8, 0.7], 0.7) == pytest.approx(10**1.5)
    before, after = {"a": torch.zeros(2), "h": torch.zeros(1)}, {"a": torch.ones(2),
                                                                 "h": torch.ones(1)}  # fmt: skip
    mixed = names["mixed"](before, after, 0.25, ["h"])
    assert (mixed["a"].tolist(), mixed["h"].tolist()) == ([0.25, 0.25], [1.0])
    vectors = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [1.0, 2.0]])
    assert names["right_neighbours"](vectors, ["x", "x", "y", "x"]) == 0.5
    runs = [{"train": [1, 2], "validation": [2, 3, 4], "chosen": chosen} for chosen in ([], ["a"])]
    assert names["labels_read"](runs) == [2, 4]


def rates_by_loop(peak, layers, decay):
    found = [peak]
    for _ in range(layers + 1):
        found.insert(0, found[0] * decay)
    return torch.tensor(found, dtype=torch.float64)


def rates_by_logarithm(peak, layers, decay):
    top = math.log(peak)
    bottom = top + (layers + 1) * math.log(decay)
    return torch.linspace(bottom, top, layers + 2, dtype=torch.float64).exp()


def interval_by_numpy(first, second, t):
    d = (first - second).numpy()
    return torch.tensor(d.mean() + np.array([-1, 1]) * t * d.std(ddof=1) / len(d) ** 0.5)


def labels_by_interp(budgets, accuracies, accuracy):
    for i in range(len(budgets)):
        if accuracies[i] >= accuracy:
            low = max(i - 1, 0)
            x = np.interp(accuracy, accuracies[low : i + 1], np.log(budgets[low : i + 1]))
            return float(np.exp(x))


def mixed_by_lerp(before, after, alpha, head):
    found = {name: torch.lerp(before[name], after[name], alpha) for name in before}
    found.update({name: after[name] for name in head})
    return found


def neighbours_by_loop(vectors, kinds):
    right = 0
    for i in range(len(kinds)):
        others = [j for j in range(len(kinds)) if j != i]
        near = max(others, key=lambda j: F.cosine_similarity(vectors[i], vectors[j], dim=0).item())
        right += kinds[near] == kinds[i]
    return right / len(kinds)


def read_by_dict(runs):
    return [len(dict.fromkeys(run["train"] + (run["validation"] if run["chosen"] else [])))
            for run in runs]  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), [
    ("layer_rates", rates_by_loop),
    ("layer_rates", rates_by_logarithm),
    ("paired_interval", interval_by_numpy),
    ("labels_for", labels_by_interp),
    ("mixed", mixed_by_lerp),
    ("right_neighbours", neighbours_by_loop),
    ("labels_read", read_by_dict),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name, answer, capsys):
    getattr(lesson_06, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


def labels_of_the_nearest(budgets, accuracies, accuracy):
    return float(budgets[min(range(len(budgets)), key=lambda i: abs(accuracies[i] - accuracy))])


def mixed_in_place(before, after, alpha, head):
    for name in before:
        if name not in head:
            after[name] *= alpha
    return after


def mixed_biases_left(before, after, alpha, head):
    return {name: after[name] if name in head or after[name].ndim < 2
            else (1 - alpha) * before[name] + alpha * after[name] for name in after}  # fmt: skip


def neighbours_with_ones_out(vectors, kinds):
    """Every cosine above 0.999 is taken for a text's own."""
    unit = F.normalize(vectors, dim=1)
    near = unit @ unit.T
    near[near > 0.8] = -2
    found = near.argmax(dim=1).tolist()
    return sum(kinds[i] == kinds[j] for i, j in enumerate(found)) / len(kinds)


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("layer_rates", lambda peak, layers, decay: rates_by_loop(peak, layers - 1, decay),
     "expected a tensor of shape"),
    ("layer_rates", lambda peak, layers, decay: rates_by_loop(peak, layers, decay).float(),
     "expected dtype torch.float64"),
    ("paired_interval", lambda first, second, t: torch.stack([(first - second).min(),
                                                              (first - second).max()]),
     "The largest difference is"),
    ("paired_interval", lambda first, second, t: interval_by_numpy(first, second, t).flip(0),
     "The largest difference is"),
    ("labels_for", labels_of_the_nearest, "wrong on"),
    ("labels_for", lambda budgets, accuracies, accuracy: round(
        labels_by_interp(budgets, accuracies, accuracy)), "wrong on"),
    ("mixed", mixed_in_place, "changed its input"),
    ("mixed", mixed_biases_left, "The largest difference is"),
    ("right_neighbours", neighbours_with_ones_out, "wrong on"),
    ("labels_read", lambda runs: [len({*run["train"]} & {*run["validation"]}) for run in runs],
     "wrong on"),
])  # fmt: skip
def test_a_wrong_answer_that_is_listed_nowhere_is_refused(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_06, name).check(answer)


def test_the_inputs_hold_what_answers_trip_over():
    curves = cases(lesson_06.labels_for)
    firsts = [next(k for k, a in enumerate(c[1]) if a >= c[2]) for c in curves]
    assert 0 in firsts and max(firsts) > 0
    assert any(a > accuracy > b for _, accuracies, accuracy in curves
               for a, b in zip(accuracies, accuracies[1:], strict=False))  # fmt: skip
    for (runs,) in cases(lesson_06.labels_read):
        assert {bool(run["chosen"]) for run in runs} == {True, False}
        assert any({*run["train"]} & {*run["validation"]} for run in runs if run["chosen"])


# --- the record and the lesson ------------------------------------------------------------------


@pytest.fixture(scope="module")
def record():
    return studies.stored("transfer-rt_snippets-minilm")


def test_the_record_is_whole(record):
    found = {(line["strategy"], line["n"], line["seed"]) for line in record.lines}
    wanted = {(name, n, seed) for name in (*budgets.CHEAP, *transfer.STRATEGIES)
              for n in budgets.BUDGETS for seed in range(3)}  # fmt: skip
    assert wanted <= found and len(found) == len(record.lines)


def test_the_record_s_accuracies_are_those_of_its_predictions(record):
    labels = record.about["settings"]["test_labels"]
    assert len(labels) == record.about["settings"]["n_test"] and set(labels) == {"0", "1"}
    for line in record.lines:
        right = [p == y for p, y in zip(line["predictions"], labels, strict=True)]
        assert line["accuracy"] == pytest.approx(np.mean(right)), line["strategy"]


def test_the_record_was_made_with_the_settings_of_the_package(record):
    for line in record.lines:
        if line["strategy"] in transfer.STRATEGIES:
            way = transfer.STRATEGIES[line["strategy"]]
            assert line["learning_rate"] == way.learning_rate
            assert line["layer_decay"] == pytest.approx(way.layer_decay, abs=1e-4)


def test_the_settings_are_the_best_that_were_tried(record):
    """By validation loss, which is finer than the accuracy on 500 rows."""
    for name, way in transfer.STRATEGIES.items():
        tried = [line for line in record.rates if line["strategy"] == name]
        assert len(tried) == len(budgets.TRIED[name])
        best = min(tried, key=lambda line: line["loss"])
        for key in budgets.TRIED[name][0]:
            assert getattr(way, key) == pytest.approx(best[key]), name


def test_the_order_of_the_lesson():
    titles = [re.match(r"## (\d+)\. ", cell.source) for cell in CELLS]
    assert [int(title[1]) for title in titles if title] == list(range(1, 6))
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    assert [t for t in ("Summary", "Exercises", "Further reading") if f"## {t}" not in text] == []
