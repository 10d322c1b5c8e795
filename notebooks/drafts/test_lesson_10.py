"""Lesson 10: its exercises are solved, refuse what is wrong, and its words hold on the record."""

from __future__ import annotations

import math
import re

import jupytext
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lesson_scripts import blocks, cases, solved

from tutorkit import distillation_figures as figures
from tutorkit import losses, studies
from tutorkit.checks import CheckFailed, lesson_10
from tutorkit.notebooks import NOTEBOOKS

SCRIPT = NOTEBOOKS / "10_distillation.py"
CELLS = jupytext.read(SCRIPT).cells
RECORD = "distillation-imdb"

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


def double(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_solutions_by_hand(names):
    logits = double([[2 * math.log(3), 0], [0, 0], [5000, 0]])  # 3 to 1 at T = 2
    entropy = math.log(4) - 0.75 * math.log(3)
    assert names["softened_entropy"](logits, 2.0).tolist() == pytest.approx(
        [entropy, math.log(2), 0]
    )
    z, v, y = double([[0, 0]]), double([[2 * math.log(3), 0]]), torch.tensor([0])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    expected = 0.25 * 4 * divergence + 0.75 * math.log(2)
    assert names["taught_loss"](z, v, y, 2.0, 0.25).item() == pytest.approx(expected)
    assert names["matched_layers"](6, 2) == [3, 6]
    assert names["matched_layers"](6, 4) == [2, 3, 5, 6]
    # Sorted: 1, 2, …, 21 ms. p95 at the place 19, counted from 0.
    times = [0.5, 0.0001, *(k / 1000 for k in range(21, 0, -1))]
    assert names["median_and_p95"](times, 2) == pytest.approx([11, 20])
    classes = (torch.tensor(row) for row in ([0, 1, 2, 2], [0, 1, 2, 0], [0, 0, 0, 2]))
    assert names["same_or_as_good"](*classes) == pytest.approx([3 / 4, 1 / 2, 1])
    teachers = [{"train": [], "logits": {"a": [1.0, 0.0]}},
                {"train": ["a"], "logits": {"a": [9.0, -9.0]}},
                {"train": ["b"], "logits": {"a": [2.0, 1.0]}}]  # fmt: skip
    assert names["unseen_logits"](["a"], teachers) == [[1.5, 0.5]]


def entropy_by_categorical(logits, temperature):
    return torch.distributions.Categorical(logits=logits / temperature).entropy()


def entropy_by_masking(logits, temperature):
    p = F.softmax(logits / temperature, dim=-1)
    return torch.stack([-sum(x * x.log() for x in row if x > 0) for row in p])


def loss_by_kl_div(student_logits, teacher_logits, labels, temperature, alpha):
    soft = F.kl_div((student_logits / temperature).log_softmax(1),
                    (teacher_logits / temperature).softmax(1), reduction="batchmean")
    return F.cross_entropy(student_logits, labels) * (1 - alpha) + soft * temperature**2 * alpha


def loss_by_loop(student_logits, teacher_logits, labels, temperature, alpha):
    total = 0
    for z, v, y in zip(student_logits, teacher_logits, labels, strict=True):
        p, q = (v / temperature).softmax(0), (z / temperature).softmax(0)
        soft = sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))
        total = total + alpha * temperature**2 * soft - (1 - alpha) * z.log_softmax(0)[y]
    return total / len(labels)


def layers_by_ceil(teacher_layers, student_layers):
    return [math.ceil((m + 1) * teacher_layers / student_layers) for m in range(student_layers)]


def times_by_numpy(seconds, warm_up):
    return [float(q) for q in np.percentile(np.array(seconds[warm_up:]) * 1e3, [50, 95])]


def same_by_float32(teacher, student, labels):
    wrong = teacher != labels
    right = [(x == labels).float().mean().item() for x in (student, teacher)]
    return [(teacher == student).float().mean().item(), right[0] / right[1],
            (student == teacher)[wrong].float().mean().item()]  # fmt: skip


def unseen_by_torch(rows, teachers):
    return [torch.stack([double(t["logits"][row]) for t in teachers if row not in set(t["train"])])
            .mean(dim=0).tolist() for row in rows]  # fmt: skip


def unseen_by_float32(rows, teachers):
    return [torch.tensor([t["logits"][row] for t in teachers if row not in t["train"]])
            .mean(dim=0).tolist() for row in rows]  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), [
    ("unseen_logits", unseen_by_float32),
    ("softened_entropy", entropy_by_categorical), ("softened_entropy", entropy_by_masking),
    ("taught_loss", loss_by_kl_div), ("taught_loss", loss_by_loop),
    ("matched_layers", layers_by_ceil), ("median_and_p95", times_by_numpy),
    ("same_or_as_good", same_by_float32), ("unseen_logits", unseen_by_torch),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name, answer, capsys):
    getattr(lesson_10, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


def entropy_with_nan(logits, temperature):
    p = (logits / temperature).softmax(1)
    return -(p * p.log()).sum(1)


def unseen_by_position(rows, teachers):
    """As if the logits stood in the order of the rows."""
    return [[sum(c) / len(c) for c in zip(*found, strict=True)]
            for k, row in enumerate(rows)
            for found in [[list(t["logits"].values())[k] for t in teachers
                           if row not in t["train"]]]]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("softened_entropy", entropy_with_nan, "is nan, expected 0"),
    ("softened_entropy", lambda logits, temperature: entropy_by_masking(logits, temperature).mean(),
     "expected a tensor of shape"),
    ("softened_entropy", lambda logits, temperature: entropy_by_masking(
        logits, temperature**0.5), "The largest difference is"),
    ("taught_loss", lambda student_logits, teacher_logits, labels, temperature, alpha: F.mse_loss(
        student_logits, teacher_logits), "The largest difference is"),
    ("taught_loss", lambda student_logits, teacher_logits, labels, temperature, alpha:
     loss_by_kl_div(student_logits, teacher_logits, labels, temperature, alpha).item(),
     "Keep it a tensor"),
    ("matched_layers", lambda teacher_layers, student_layers: tuple(
        layers_by_ceil(teacher_layers, student_layers)), "expected a list"),
    ("matched_layers", lambda teacher_layers, student_layers: np.linspace(
        1, teacher_layers, student_layers).round().astype(int).tolist(), "wrong on"),
    ("median_and_p95", lambda seconds, warm_up: times_by_numpy(seconds, 1), "wrong on"),
    ("median_and_p95", lambda seconds, warm_up: times_by_numpy(seconds, warm_up)[::-1], "wrong on"),
    ("median_and_p95", lambda seconds, warm_up: [round(t) for t in times_by_numpy(
        seconds, warm_up)], "wrong on"),
    ("same_or_as_good", lambda teacher, student, labels: [
        round(x, 2) for x in same_by_float32(teacher, student, labels)], "wrong on"),
    ("same_or_as_good", lambda teacher, student, labels: same_by_float32(
        student, teacher, labels), "wrong on"),
    ("unseen_logits", unseen_by_position, "wrong on"),
    ("unseen_logits", lambda rows, teachers: unseen_by_torch(sorted(rows), teachers), "wrong on"),
])  # fmt: skip
def test_a_wrong_answer_that_is_listed_nowhere_is_refused(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_10, name).check(answer)


@pytest.mark.parametrize(("name", "answer", "says"), [
    ("taught_loss", lambda student_logits, teacher_logits, labels, temperature, alpha:
     alpha * F.kl_div((student_logits / temperature).log_softmax(1), (teacher_logits / temperature)
                      .softmax(1), reduction="batchmean") + (1 - alpha) * F.cross_entropy(
                          student_logits, labels), "T² is missing"),
    ("taught_loss", lambda student_logits, teacher_logits, labels, temperature, alpha:
     loss_by_kl_div(teacher_logits, student_logits, labels, temperature, 1.0) * alpha
     + (1 - alpha) * F.cross_entropy(student_logits, labels), "the wrong way round"),
    ("median_and_p95", lambda seconds, warm_up: times_by_numpy(sorted(seconds), warm_up),
     "sorted before"),
    ("unseen_logits", lambda rows, teachers: unseen_by_torch(
        rows, [t | {"train": []} for t in teachers]), "that is the flaw"),
])  # fmt: skip
def test_a_known_mistake_is_named(name, answer, says):
    with pytest.raises(CheckFailed, match=says):
        getattr(lesson_10, name).check(answer)


def test_the_inputs_hold_what_answers_trip_over():
    assert any(teacher % student for teacher, student in cases(lesson_10.matched_layers))
    assert {len(seconds) % 2 for seconds, _ in cases(lesson_10.median_and_p95)} == {0, 1}
    for teacher, student, labels in cases(lesson_10.same_or_as_good):
        wrong = teacher != labels
        assert 0 < (student[wrong] == teacher[wrong]).sum() < wrong.sum()
    for rows, teachers in cases(lesson_10.unseen_logits):
        unseen = [sum(row not in teacher["train"] for teacher in teachers) for row in rows]
        assert min(unseen) == 1 < max(unseen) < len(teachers)


# --- the words of the lesson, and the record ----------------------------------------------------


def test_what_section_2_says_of_the_balance():
    generator = torch.Generator().manual_seed(0)
    z, v = 2 * torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    labels = losses.cross_entropy_grad(z, v.argmax(dim=1)).norm()
    ratios = {T: losses.distillation_grad(z, v, temperature=T).norm() / labels
              for T in (1, 2, 5, 10, 100)}  # fmt: skip
    assert ratios[10] / 10**2 < 0.02 and all(0.3 < ratio < 3 for ratio in ratios.values())


@pytest.fixture(scope="module")
def record():
    return studies.stored(RECORD)


def test_the_record_has_a_teacher_pairs_and_latencies(record):
    teacher = figures.results(record.lines, "teacher", None)
    assert len(teacher) == 1
    ways = figures.ways(record.lines)
    assert {("2 layers", "alone"), ("2 layers", "soft targets")} <= set(ways)
    length = record.about["settings"]["max_length"]
    worth = figures.worth_table(record.lines, length)
    of_students = worth[worth["taught"] != ""]
    assert of_students[["median_ms", "p95_ms", "agreement", "accuracy"]].notna().all().all()
    assert "nb_trigrams" in worth["student"].tolist()
    assert (of_students["non_embedding"] <= 5e6).all()
    for student, taught in ways:
        mine, alone = ({line["seed"] for line in figures.results(record.lines, student, way)}
                       for way in (taught, "alone"))  # fmt: skip
        assert mine <= alone


def test_the_record_s_scores_are_those_of_its_predictions(record):
    labels = record.about["settings"]["test_labels"]
    teacher = next(line for line in record.lines if line["student"] == "teacher"
                   and "predictions" in line)["predictions"]  # fmt: skip
    assert len(labels) == record.about["settings"]["n_test"] and set(labels) == {"0", "1"}
    for line in record.lines:
        if "accuracy" in line:
            for key, other in (("accuracy", labels), ("agreement", teacher)):
                same = [p == y for p, y in zip(line["predictions"], other, strict=True)]
                assert line.get(key, np.mean(same)) == pytest.approx(np.mean(same), abs=1e-4)


def test_the_order_of_the_lesson():
    titles = [re.match(r"## (\d+)\. ", cell.source) for cell in CELLS]
    assert [int(title[1]) for title in titles if title] == list(range(1, 9))
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    assert [t for t in ("Summary", "Exercises", "Further reading") if f"## {t}" not in text] == []
