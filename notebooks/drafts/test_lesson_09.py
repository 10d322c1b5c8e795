"""Lesson 09: its exercises are solved, refuse what is wrong, and its words hold on the record."""

from __future__ import annotations

import math
import re

import jupytext
import numpy as np
import pytest
import torch
from lesson_scripts import blocks, cases, solved

from tutorkit import adversarial_figures as figures
from tutorkit import noise
from tutorkit.checks import CheckFailed, lesson_09
from tutorkit.notebooks import NOTEBOOKS
from tutorkit.studies import adversarial, stored

SCRIPT = NOTEBOOKS / "09_adversarial.py"
CELLS = jupytext.read(SCRIPT).cells

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def names():
    """What the setup and the solutions of the exercises define."""
    return solved(CELLS)


def test_there_are_exercises_and_labs():
    found = blocks(CELLS, SCRIPT.stem)
    assert len(found) == 7
    assert sum("spot the flaw" in block.text for block in found) == 2


def test_the_solutions_pass_their_checks(names, capsys):
    for block in blocks(CELLS, SCRIPT.stem):
        exec(block.check, names)
    assert capsys.readouterr().out.count("✓") == 7


def test_the_solutions_by_hand(names):
    gradient = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [9.0, 9.0]]])
    mask, unit = torch.tensor([[1, 1], [1, 0]]), torch.tensor([1.0, 10.0])
    found = names["worst_change"](gradient, mask, unit, 0.5)
    expected = torch.tensor([[[0.3, 0.0], [0.0, 0.4]], [[0.0, 5.0], [0.0, 0.0]]])
    torch.testing.assert_close(found, expected)
    delta = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]], [[0.0, 0.0]]])
    assert torch.allclose(names["onto_ball"](delta, 1.0),
                          torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]], [[0.0, 0.0]]]))  # fmt: skip
    predictions = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    labels = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]])
    assert names["pair_scores"](predictions, labels).tolist() == [0.5, 0.25, 0.5]
    assert names["passes"]("PGD", 3) == (4, 1, 3) and names["passes"]("FGM", 9) == (2, 2, 0)
    found = names["expected_typos"](["A good film, isn't it?", "so it is"], 0.1)
    assert found.flatten().tolist() == pytest.approx([0.2, 0.81, 0.0, 1.0])
    before = torch.tensor([True, True, True, False, False])
    after = torch.tensor([True, False, False, True, False])
    assert names["attack_report"](before, after).tolist() == pytest.approx([0.6, 0.2, 2 / 3])
    # Word 1 stands in both rows: G is 3 for it and 4 for word 2; the length of G is 5.
    ids, mask = torch.tensor([[1, 1], [2, 1]]), torch.tensor([[1, 1], [1, 0]])
    gradient = torch.tensor([[[1.0], [2.0]], [[4.0], [0.0]]])
    sizes = names["row_sizes"](ids, mask, gradient, 1.0)
    assert sizes.tolist() == pytest.approx([math.sqrt(2) * 0.6, 0.8])


def test_the_expected_typos_are_those_of_the_package(names):
    texts = ["A wonderful film, isn't it?", "slow", "It wouldn't end."] * 400
    expected = names["expected_typos"](texts, 0.3)
    changed = [noise.typos(t, 0.3, np.random.default_rng(i)) for i, t in enumerate(texts)]
    same = np.mean([a == b for a, b in zip(changed, texts, strict=True)])
    assert same == pytest.approx(float(expected[:, 1].mean()), abs=0.05)


# --- other right ways, and wrong ones that no message names --------------------------------------


def change_by_loop(gradient, mask, unit, epsilon):
    found = torch.zeros_like(gradient)
    for b in range(len(gradient)):
        length = gradient[b][mask[b] == 1].norm()
        if length > 0:
            found[b] = epsilon * unit[b] * gradient[b] / length
            found[b][mask[b] == 0] = 0
    return found


def change_with_a_small_number(gradient, mask, unit, epsilon):
    g = gradient.masked_fill(mask[..., None] == 0, 0)
    flat = torch.linalg.vector_norm(g.flatten(1), dim=1)
    return torch.einsum("b,btd->btd", epsilon * unit / (flat + 1e-10), g)


def ball_by_where(delta, epsilon):
    length = delta.flatten(1).norm(dim=1)[:, None, None]
    return torch.where(length <= epsilon, delta, epsilon * delta / length)


def ball_by_renorm(delta, epsilon):
    return torch.renorm(delta, p=2, dim=0, maxnorm=epsilon)


def pairs_by_loop(predictions, labels):
    right = [[p == y for p, y in zip(*pair, strict=True)]
             for pair in zip(predictions.tolist(), labels.tolist(), strict=True)]  # fmt: skip
    n = len(right)
    one = sum(a == b for a, b in predictions.tolist())
    return torch.tensor([sum(map(sum, right)) / (2 * n), sum(map(all, right)) / n, one / n],
                        dtype=torch.float64)  # fmt: skip


def pairs_by_half(predictions, labels):
    """With labels that differ, a pair with one answer has one text right."""
    both = (predictions == labels).all(dim=1).double().mean()
    one = (predictions[:, 0] == predictions[:, 1]).double().mean()
    return torch.stack([both + one / 2, both, one])


def passes_by_if(method, steps):
    if method == "PGD":
        return steps + 1, 1, steps
    inner = steps if method == "VAT" else 0
    forward = {"FGM": 2, "FreeLB": steps}.get(method, steps + 2)
    return forward, 2 if method in ("FGM", "VAT") else steps, inner


def typos_by_split(texts, rate):
    counts = [sum(len(run) > 3 for run in re.split("[^A-Za-z]+", text)) for text in texts]
    n = torch.tensor(counts, dtype=torch.float64)
    return torch.stack([n * rate, torch.exp(n * math.log(1 - rate))], dim=1)


def report_by_counts(before, after):
    n, right = len(before), before.sum().item()
    held = sum(b and a for b, a in zip(before.tolist(), after.tolist(), strict=True))
    return torch.tensor([right / n, held / n, 1 - held / right], dtype=torch.float64)


def sizes_by_loop(input_ids, mask, gradient, epsilon):
    G = {}
    for ids, row in zip(input_ids.tolist(), gradient, strict=True):
        for word, g in zip(ids, row, strict=True):
            G[word] = G.get(word, 0) + g
    length = sum((g**2).sum() for g in G.values()) ** 0.5
    return torch.stack([sum(m * (G[w] ** 2).sum() for w, m in zip(ids, on, strict=True)) ** 0.5
                        for ids, on in zip(input_ids.tolist(), mask.tolist(), strict=True)
                        ]) * epsilon / length  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), [
    ("worst_change", change_by_loop),
    ("worst_change", change_with_a_small_number),
    ("onto_ball", ball_by_where),
    ("onto_ball", ball_by_renorm),
    ("pair_scores", pairs_by_loop),
    ("pair_scores", pairs_by_half),
    ("passes", passes_by_if),
    ("expected_typos", typos_by_split),
    ("attack_report", report_by_counts),
    ("row_sizes", sizes_by_loop),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name, answer, capsys):
    getattr(lesson_09, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("worst_change", lambda gradient, mask, unit, epsilon: change_by_loop(
        gradient, mask, unit, epsilon).float(), "expected dtype torch.float64"),
    ("worst_change", lambda gradient, mask, unit, epsilon: change_by_loop(
        gradient, mask, unit.mean().expand(len(unit)), epsilon), "wrong on"),
    ("worst_change", lambda gradient, mask, unit, epsilon: gradient.mul_(mask[..., None]),
     "changed its input `gradient`"),
    ("onto_ball", lambda delta, epsilon: delta * (epsilon / delta.flatten(1).norm(dim=1)).clamp(
        max=1)[:, None], "shape|stopped|wrong"),
    ("onto_ball", lambda delta, epsilon: ball_by_where(delta, 0.99 * epsilon), "wrong on"),
    ("pair_scores", lambda predictions, labels: pairs_by_loop(predictions, labels).tolist(),
     "expected a tensor"),
    ("pair_scores", lambda predictions, labels: pairs_by_loop(predictions, labels).float(),
     "expected dtype"),
    ("pair_scores", lambda predictions, labels: pairs_by_loop(predictions, labels).flip(0),
     "wrong on"),
    ("passes", lambda method, steps: list(passes_by_if(method, steps)), "expected a tuple"),
    ("passes", lambda method, steps: (steps, steps, 0), "wrong on"),
    ("expected_typos", lambda texts, rate: torch.tensor(
        [[rate * len(t) / 5, 0.9 ** len(t.split())] for t in texts], dtype=torch.float64),
     "wrong on"),
    ("expected_typos", lambda texts, rate: typos_by_split([t.lower().replace("'", "")
                                                           for t in texts], rate), "wrong on"),
    ("attack_report", lambda before, after: report_by_counts(after, before), "wrong on"),
    ("attack_report", lambda before, after: report_by_counts(before, after)[[0, 1, 1]],
     "wrong on"),
    ("row_sizes", lambda input_ids, mask, gradient, epsilon: sizes_by_loop(
        input_ids, mask, gradient, 1.0), "wrong on"),
    ("row_sizes", lambda input_ids, mask, gradient, epsilon: sizes_by_loop(
        input_ids, mask, gradient.sign(), epsilon), "wrong on"),
])  # fmt: skip
def test_a_wrong_answer_that_is_listed_nowhere_is_refused(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_09, name).check(answer)


def test_the_inputs_hold_what_answers_trip_over():
    for gradient, mask, unit, _ in cases(lesson_09.worst_change):
        assert (gradient.flatten(1).norm(dim=1) == 0).any() and (mask == 0).any()
        assert unit.std() > 0.01 and (gradient[mask == 0] != 0).any()
    for delta, epsilon in cases(lesson_09.onto_ball):
        lengths = delta.flatten(1).norm(dim=1)
        assert {bool(one > epsilon) for one in lengths} == {True, False} and (lengths == 0).any()
    assert {case[0] for case in cases(lesson_09.passes)} == set(lesson_09.METHODS)
    for before, after in cases(lesson_09.attack_report):
        assert len({(b, a) for b, a in zip(before.tolist(), after.tolist(), strict=True)}) == 4
    for ids, mask, _, _ in cases(lesson_09.row_sizes):
        assert any(len(row[on == 1].unique()) < on.sum() for row, on in zip(ids, mask, strict=True))


# --- the record and the lesson ------------------------------------------------------------------


@pytest.fixture(scope="module")
def record():
    return stored("adversarial-imdb-minilm")


def test_the_record_s_accuracies_are_those_of_its_answers(record):
    for line in record.lines:
        assert set("".join(line["correct"].values())) == {"0", "1"}
        assert line["accuracy"] == pytest.approx(figures.answers(line, "clean").mean())
        assert len(line["correct"]["clean"]) == record.about["settings"]["n_test"]
        for name, found in line["measured"].items():
            right = figures.answers(line, name)
            assert len(right) == found["n"] and right.mean() == pytest.approx(found["accuracy"])


def test_the_radii_are_the_largest_that_cost_little(record):
    for method, radius in adversarial.RADII.items():
        loss = {x["settings"]["epsilon"]: x["loss"] for x in record.rates if x["method"] == method}
        assert set(loss) == set(adversarial.TRIED)
        assert radius == max(e for e in loss if loss[e] <= min(loss.values()) + adversarial.CLOSE)
        used = {x["settings"]["epsilon"] for x in record.lines if x["method"] == method}
        assert used == {radius}
    last = [x for x in record.rates if x["settings"]["epsilon"] == 0.5]
    assert all(abs(x["accuracy"] - 0.5) < 0.03 for x in last)  # the constant answer


def test_the_order_of_the_lesson():
    titles = [re.match(r"## (\d+)\. ", cell.source) for cell in CELLS]
    assert [int(title[1]) for title in titles if title] == list(range(1, 9))
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    assert [t for t in ("Summary", "Exercises", "Further reading") if f"## {t}" not in text] == []
