"""Lesson 08: its exercises are solved, refuse what is wrong, and its words hold on the record."""

from __future__ import annotations

import itertools
import math
import re
import statistics

import jupytext
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lesson_scripts import blocks, cases, solved

from tutorkit import multitask_figures as figures
from tutorkit import studies
from tutorkit.checks import CheckFailed, lesson_08
from tutorkit.metrics import mean_interval
from tutorkit.multitask_figures import DOMAINS, LOOKS
from tutorkit.notebooks import NOTEBOOKS
from tutorkit.transfer import STRATEGIES

SCRIPT = NOTEBOOKS / "08_multitask.py"
CELLS = jupytext.read(SCRIPT).cells

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def names():
    """What the setup and the solutions of the exercises define."""
    return solved(CELLS)


def test_there_are_exercises_and_two_labs():
    assert len(blocks(CELLS, SCRIPT.stem)) == 7
    assert sum("spot the flaw" in block.text for block in blocks(CELLS, SCRIPT.stem)) == 2


def test_the_solutions_pass_their_checks(names, capsys):
    for block in blocks(CELLS, SCRIPT.stem):
        exec(block.check, names)
    assert capsys.readouterr().out.count("✓") == 7


def line(setting, seed, accuracy, n=32):
    return {"setting": setting, "n": n, "seed": seed, "accuracy": accuracy}


def test_the_solutions_by_hand(names):
    shares = names["turn_shares"]
    assert shares([16, 4], 2.0).tolist() == pytest.approx([4 / 6, 2 / 6])
    assert shares([16, 4], math.inf).tolist() == [0.5, 0.5]
    # Two rows of task 0, each log 2; one of task 1, log 3; none of task 2.
    outputs = [torch.zeros(3, 2), torch.zeros(3, 3), torch.zeros(3, 4)]
    found = names["joint_loss"](outputs, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]),
                                torch.tensor([1.0, 0.5, 9.0]))  # fmt: skip
    assert found.item() == pytest.approx((2 * math.log(2) + 0.5 * math.log(3)) / 3)
    loss, best = names["uncertainty"](torch.tensor([0.5, 8.0]), torch.zeros(2),
                                      ["classification", "regression"])  # fmt: skip
    assert (loss.item(), best.tolist()) == (4.5, pytest.approx([0, math.log(8)]))
    first = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    second = [torch.tensor([1.0]), torch.zeros(1, 2)]
    assert names["cosine"](first, second).item() == pytest.approx(0.6)
    lines = [line("joint", 1, 0.9), line("single", 0, 0.5), line("joint", 0, 0.6),
             line("single", 1, 0.7), line("joint", 2, 0.1)]  # fmt: skip
    half = 2 * math.sqrt(0.005) / math.sqrt(2)  # differences 0.1 and 0.2
    assert names["gains"](lines, 2.0)[32] == pytest.approx((0.15, 0.15 - half, 0.15 + half))
    scores = [(0.9, 0.1), (0.5, 0.7), (0.7, 0.5), (0.1, 0.8)]
    looks = [{"step": k, "validation": {"a": a, "b": b}, "test": {"a": a / 2, "b": b / 4}}
             for k, (a, b) in enumerate(scores)]  # fmt: skip
    assert names["scores_of_one_model"](looks) == {"a": 0.25, "b": 0.7 / 4}
    mean, worst, least = names["behind_the_mean"]({"x": [0.5, 0.7], "y": [0.9, 0.9]},
                                                  {"x": [0.8, 0.8], "y": [0.8, 0.9]})  # fmt: skip
    assert (worst, mean, least) == ("y", pytest.approx(0.075), pytest.approx(-0.05))


def shares_by_loop(sizes, temperature):
    powers = [size ** (1 / temperature) for size in sizes]
    return torch.tensor([p / sum(powers) for p in powers], dtype=torch.float64)


def loss_row_by_row(outputs, labels, task, weights):
    total = 0
    for row in range(len(task)):
        k = int(task[row])
        total = total + weights[k] * F.cross_entropy(outputs[k][row], labels[row])
    return total / len(task)


def loss_with_ignored_rows(outputs, labels, task, weights):
    sums = [F.cross_entropy(scores, labels.where(task == k, torch.tensor(-100)), reduction="sum")
            for k, scores in enumerate(outputs)]  # fmt: skip
    return (torch.stack(sums) * weights).sum() / task.numel()


def uncertainty_by_sigma(losses, log_variances, kinds):
    sigma = log_variances.exp().sqrt()
    total, best = torch.zeros((), dtype=torch.float64), []
    for loss, s, kind in zip(losses, sigma, kinds, strict=True):
        c = 0.5 if kind == "regression" else 1.0
        total = total + c * loss / s**2 + s.log()
        best.append((2 * c * loss).log())
    return total, torch.stack(best)


def cosine_by_sums(first, second):
    dot = sum((a * b).sum() for a, b in zip(first, second, strict=True))
    lengths = [sum((g**2).sum() for g in each).sqrt() for each in (first, second)]
    return dot / (lengths[0] * lengths[1])


def gains_by_numpy(lines, t):
    found = {}
    for n in {each["n"] for each in lines}:
        of = {
            name: {x["seed"]: x["accuracy"] for x in lines if x["n"] == n and x["setting"] == name}
            for name in ("joint", "single")
        }
        d = np.array([of["joint"][s] - of["single"][s] for s in of["joint"] if s in of["single"]])
        half = t * d.std(ddof=1) / np.sqrt(d.size)
        found[n] = (d.mean(), d.mean() - half, d.mean() + half)
    return found


def scores_by_sorting(looks):
    ranked = sorted(looks, key=lambda x: (-statistics.fmean(x["validation"].values()), x["step"]))
    return ranked[0]["test"]


def behind_by_numpy(alone, together):
    gain = {name: float(np.mean(together[name]) - np.mean(alone[name])) for name in alone}
    name, least = sorted(gain.items(), key=lambda pair: pair[1])[0]
    return float(np.mean(list(gain.values()))), name, least


@pytest.mark.parametrize(("name", "answer"), [
    ("turn_shares", shares_by_loop),
    ("joint_loss", loss_row_by_row),
    ("joint_loss", loss_with_ignored_rows),
    ("uncertainty", uncertainty_by_sigma),
    ("cosine", cosine_by_sums),
    ("gains", gains_by_numpy),
    ("scores_of_one_model", scores_by_sorting),
    ("behind_the_mean", behind_by_numpy),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name, answer, capsys):
    getattr(lesson_08, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("turn_shares", lambda sizes, temperature: shares_by_loop(sizes, temperature).float(),
     "expected dtype torch.float64"),
    ("turn_shares", lambda sizes, temperature: shares_by_loop(sizes, min(temperature, 4.0)),
     "wrong on"),
    ("turn_shares", lambda sizes, temperature: shares_by_loop(sizes, temperature).tolist(),
     "found a list"),
    ("joint_loss", lambda outputs, labels, task, weights: sum(
        (task == k).double().mean() * weights[k] * F.cross_entropy(o[task == k], labels[task == k])
        for k, o in enumerate(outputs)), "answer is nan"),
    ("joint_loss", lambda outputs, labels, task, weights: loss_row_by_row(
        outputs, labels * 0, task, weights), "The largest difference is"),
    ("uncertainty", lambda losses, log_variances, kinds: (
        uncertainty_by_sigma(losses, log_variances, kinds)[0],
        uncertainty_by_sigma(losses, log_variances, kinds)[1].exp().sqrt()), "The largest"),
    ("uncertainty", lambda losses, log_variances, kinds: uncertainty_by_sigma(
        losses, log_variances, kinds)[0], "answer: expected a tuple"),
    ("cosine", lambda first, second: (first[-1] * second[-1]).sum() / (
        first[-1].norm() * second[-1].norm()), "wrong on"),
    ("cosine", lambda first, second: cosine_by_sums(first, second).clamp(min=0), "wrong on"),
    ("cosine", lambda first, second: cosine_by_sums(first, second).item(), "Keep it a tensor"),
    ("gains", lambda lines, t: gains_by_numpy(lines, 2 * t), "wrong on"),
    ("gains", lambda lines, t: {n: (m, h, low) for n, (m, low, h) in
                                gains_by_numpy(lines, t).items()}, "wrong on"),
    ("scores_of_one_model", lambda looks: max(
        looks, key=lambda x: min(x["validation"].values()))["test"], "wrong on"),
    ("behind_the_mean", lambda alone, together: (0.0, *behind_by_numpy(alone, together)[1:]),
     "wrong on"),
])  # fmt: skip
def test_a_wrong_answer_that_is_listed_nowhere_is_refused(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_08, name).check(answer)


@pytest.mark.parametrize("name", ["turn_shares", "joint_loss", "uncertainty", "cosine", "gains",
                                  "scores_of_one_model", "behind_the_mean"])  # fmt: skip
def test_every_listed_mistake_is_told_by_its_own_words(name):
    exercise = getattr(lesson_08, name)
    for mistake in exercise.mistakes:
        mistake.wrong.__name__ = name
        with pytest.raises(CheckFailed, match=re.escape(mistake.says)):
            exercise.check(mistake.wrong)


def test_the_inputs_hold_what_answers_trip_over():
    assert math.inf in {temperature for _, temperature in cases(lesson_08.turn_shares)}
    absent = [2 not in task for _, _, task, _ in cases(lesson_08.joint_loss)]
    assert any(absent) and not all(absent)
    records = [lines for lines, _ in cases(lesson_08.gains)]
    assert any(len(lines) % 2 for lines in records)  # a run without its partner
    ties = [looks for (looks,) in cases(lesson_08.scores_of_one_model)
            if looks[-1]["validation"] in [look["validation"] for look in looks[:-1]]]  # fmt: skip
    assert ties


# --- the record and the lesson ------------------------------------------------------------------


@pytest.fixture(scope="module")
def record():
    return studies.stored("multitask-snippets")


@pytest.fixture(scope="module")
def scored(record):
    """(setting, domain, n, seed) to the line."""
    lines = [each for each in record.lines if "domain" in each]
    found = {(x["setting"], x["domain"], x["n"], x["seed"]): x for x in lines}
    assert len(found) == len(lines)
    return found


def test_the_record_is_whole(record, scored):
    budgets, seeds = ({key[place] for key in scored} for place in (2, 3))
    assert len(budgets) >= 3 and len(seeds) >= 3
    assert set(scored) == set(itertools.product(LOOKS, DOMAINS, budgets, seeds))
    conflict = {(x["n"], x["seed"]) for x in record.lines if x["setting"] == "conflict"}
    assert conflict == set(itertools.product(budgets, seeds))


def test_the_record_s_accuracies_are_those_of_its_predictions(record, scored):
    labels, n_test = (record.about["settings"][key] for key in ("test_labels", "n_test"))
    for (setting, domain, _, _), found in scored.items():
        assert len(labels[domain]) == n_test[domain]
        right = [p == y for p, y in zip(found["predictions"], labels[domain], strict=True)]
        assert found["accuracy"] == pytest.approx(np.mean(right)), (setting, domain)


def test_the_ways_differ_in_steps_as_the_lesson_says(scored):
    """Each sentence is read equally often; a second question about it doubles the steps."""
    for (setting, domain, n, seed), found in scored.items():
        steps = sum(scored["single", name, n, seed]["steps"] for name in DOMAINS)
        if setting in ("joint", "pooled"):
            assert found["steps"] == steps, (n, seed)
        if setting in ("joint+domain", "joint+rating"):
            assert found["steps"] == 2 * steps, (n, seed)
        if setting != "nb_trigrams":
            assert found["learning_rate"] == STRATEGIES["everything"].learning_rate, domain


def gaps(record, setting, rival, n):
    """Of each domain, the differences in points, a seed each."""
    return {name: [100 * gap for gap in
                   figures.differences(record.lines, setting, rival, name)[n]]
            for name in DOMAINS}  # fmt: skip


def verdicts(record, setting, rival, n):
    """Of each domain, what the seeds' paired tests say."""
    labels = record.about["settings"]["test_labels"]
    return {name: figures.verdicts(record.lines, labels[name], setting, rival, name)[n]
            for name in DOMAINS}  # fmt: skip


def over_domains(record, setting, rival, n):
    """Of each seed, the mean over the domains."""
    return np.mean(list(gaps(record, setting, rival, n).values()), axis=0)


def test_where_sharing_helps_and_where_it_hurts(record):
    few = [each for n in (32, 128) for each in
           sum(verdicts(record, "joint", "single", n).values(), [])]  # fmt: skip
    assert (len(few), few.count(1), few.count(-1)) == (24, 11, 1)
    assert all(np.mean(values) > 0 for n in (32, 128)
               for values in gaps(record, "joint", "single", n).values())  # fmt: skip
    films = gaps(record, "joint", "single", 512)["rt_snippets"]
    assert min(films) > -4.5 and max(films) < -2.5 and -4 < np.mean(films) < -3
    assert verdicts(record, "joint", "single", 512)["rt_snippets"] == [-1, -1, -1]
    assert 1 not in sum(verdicts(record, "joint", "single", 512).values(), [])


def test_what_the_gain_is_worth_in_labels(record):
    single = {n: 100 * np.mean([figures.by_budget(record.lines, "single", name)[n]
                                for name in DOMAINS]) for n in (32, 128, 512)}  # fmt: skip
    assert over_domains(record, "joint", "single", 128).mean() == pytest.approx(4, abs=0.5)
    assert all(6.5 <= single[more] - single[less] < 8 for less, more in ((32, 128), (128, 512)))


def test_what_the_mean_over_domains_hides(record):
    means = {name: np.mean(v) for name, v in gaps(record, "joint", "single", 128).items()}
    assert min(means, key=means.get) == "tweets" and means["tweets"] == pytest.approx(1, abs=0.5)
    assert max(means, key=means.get) == "nyt_snippets"
    assert means["nyt_snippets"] == pytest.approx(6, abs=0.5)
    low, high = mean_interval(over_domains(record, "joint", "single", 512))
    assert low < 0 < high
    assert mean_interval(gaps(record, "joint", "single", 512)["rt_snippets"])[1] < 0


def test_one_head_for_all(record):
    few = [sum(verdicts(record, way, "single", n).values(), []).count(1)
           for way in ("joint", "pooled") for n in (32, 128)]  # fmt: skip
    assert sum(few[2:]) >= sum(few[:2])
    assert set(sum(verdicts(record, "pooled", "single", 512).values(), [])) == {0}
    for values in gaps(record, "pooled", "single", 512).values():
        low, high = mean_interval(values)
        assert low < 0 < high
    uneven = sum(verdicts(record, "pooled", "joint", 32).values(), [])
    assert 1 in uneven and -1 in uneven
    ahead = [name for name, values in gaps(record, "pooled", "joint", 512).items()
             if mean_interval(values)[0] > 0]  # fmt: skip
    assert ahead == ["rt_snippets", "nyt_snippets"]


@pytest.mark.parametrize("setting", ["joint+domain", "joint+rating"])
def test_a_second_question_is_not_told_apart(record, setting):
    for n in (32, 128, 512):
        for name, values in gaps(record, setting, "pooled", n).items():
            low, high = mean_interval(values)
            assert low < 0 < high, (n, name)


def test_what_the_lesson_says_of_cosines(record):
    for n in (128, 512):
        _, cosines = figures.mean_cosines(record.lines, n)
        means = {pair: np.mean(values) for pair, values in cosines.items()}
        assert max(means, key=means.get) == "rt_snippets × nyt_snippets"
        assert min(means, key=means.get) == "nyt_snippets × tweets"
    gained = {name: np.mean(v) for name, v in gaps(record, "joint", "single", 128).items()}
    assert set(sorted(gained, key=gained.get)[-2:]) == {"rt_snippets", "nyt_snippets"}


def test_the_order_of_the_lesson():
    titles = [re.search(r"^## (\d+)\. ", cell.source, re.MULTILINE) for cell in CELLS]
    assert [int(title[1]) for title in titles if title] == list(range(1, 9))
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    assert [t for t in ("Summary", "Exercises", "Further reading") if f"## {t}" not in text] == []
