"""Lesson 07: its exercises are solved, refuse what is wrong, and its words hold on the records."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction

import jupytext
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lesson_scripts import blocks, solved

from tutorkit import peft_figures as figures
from tutorkit import studies
from tutorkit.checks import CheckFailed, lesson_07
from tutorkit.low_rank import LoRALinear
from tutorkit.metrics import mean_interval
from tutorkit.notebooks import NOTEBOOKS
from tutorkit.studies.peft import RATES

SCRIPT = NOTEBOOKS / "07_peft.py"
CELLS = jupytext.read(SCRIPT).cells

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def names():
    """What the setup and the solutions of the exercises define."""
    return solved(CELLS)


def cell(start: str) -> str:
    """The source of the one code cell that begins so."""
    (found,) = [c.source for c in CELLS if c.cell_type == "code" and c.source.startswith(start)]
    return found


def test_there_are_exercises_and_labs():
    assert len(blocks(CELLS, SCRIPT.stem)) == 7
    assert sum("spot the flaw" in block.text for block in blocks(CELLS, SCRIPT.stem)) == 2


def test_the_solutions_pass_their_checks(names, capsys):
    for block in blocks(CELLS, SCRIPT.stem):
        exec(block.check, names)
    assert capsys.readouterr().out.count("✓") == 7


def test_the_solutions_by_hand(names):
    x, weight, bias = torch.ones(1, 1, 2), torch.eye(2), torch.tensor([10.0, 20.0])
    a, b = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    # x Aᵀ = (3, 1), through B (3, 5), times 4/2; the frozen layer gives (11, 21).
    assert names["lora_layer"](x, weight, bias, a, b, 4.0).tolist() == [[[17.0, 31.0]]]
    shapes = {"l.0.query": (4, 6), "l.0.out.dense": (6, 2), "l.0.rekey": (9, 9)}
    assert names["trained_weights"](shapes, ["query", "out.dense", "key"], 3) == 3 * 10 + 3 * 8
    assert names["merged"](weight, [(a, b, 2.0), (a, b, 4.0)]).tolist() == [[4, 6], [0, 16]]
    assert names["budgets"](6, 1, 2, 20, 4) == [20, 8, 4, 4, 4, 4]  # 4 + 16 · (2/3)³ = 8.7
    assert names["kept_energy"](torch.diag(torch.tensor([3.0, 4.0, 0.0])), 1) == pytest.approx(0.64)
    assert names["memory_share"](100, 10, 400.0, 200.0) == (400 + 120 + 200) / 2000
    before = {"w": torch.zeros(2), "a": torch.zeros(1), "b": torch.ones(1)}
    after = {"w": torch.tensor([0.0, 1e-30]), "a": torch.zeros(1), "b": torch.zeros(1)}
    assert names["audit"](before, after, ["a", "b"]) == (["w"], ["a"])


def lora_by_functions(x, weight, bias, a, b, alpha):
    return F.linear(x, weight, bias) + F.linear(F.linear(x, a), b) * (alpha / b.shape[1])


def count_by_split(shapes, targets, r):
    ends = [target.split(".") for target in targets]
    return sum(r * sum(shape) for name, shape in shapes.items()
               if any(name.split(".")[-len(end):] == end for end in ends))  # fmt: skip


def merged_by_stacking(weight, updates):
    a = torch.cat([a for a, _, _ in updates])
    b = torch.cat([alpha / b.shape[1] * b for _, b, alpha in updates], dim=1)
    return torch.addmm(weight, b, a)


def budgets_by_fractions(total, warmup, final, start, end):
    fall = total - warmup - final
    curve = [math.floor(end + (start - end) * Fraction(fall - k, fall) ** 3)
             for k in range(1, fall + 1)]  # fmt: skip
    return [start] * warmup + curve + [end] * final


def energy_by_numpy(delta, k):
    u, s, v = np.linalg.svd(delta.numpy())
    near = u[:, :k] * s[:k] @ v[:k]
    return float(1 - np.sum((delta.numpy() - near) ** 2) / np.sum(delta.numpy() ** 2))


def energy_by_eigenvalues(delta, k):
    return (torch.linalg.eigvalsh(delta @ delta.T)[-k:].sum() / delta.square().sum()).item()


def share_by_lists(total, trained, full_kept, own_kept):
    own = [4 * (total - trained), 16 * trained, own_kept]
    return sum(own) / sum([16 * total, full_kept])


def audit_by_loop(before, after, trains):
    leaked, stuck = [], []
    for name in sorted(after):
        moved = bool((before[name] != after[name]).any())
        if moved and name not in trains:
            leaked.append(name)
        if not moved and name in trains:
            stuck.append(name)
    return leaked, stuck


@pytest.mark.parametrize("answer", [
    lora_by_functions, count_by_split, merged_by_stacking, budgets_by_fractions,
    energy_by_numpy, energy_by_eigenvalues, share_by_lists, audit_by_loop,
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(answer, capsys):
    name = {"lora": "lora_layer", "count": "trained_weights", "energy": "kept_energy",
            "share": "memory_share"}.get(answer.__name__.split("_")[0],
                                         answer.__name__.split("_")[0])  # fmt: skip
    getattr(lesson_07, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("lora_layer", lambda x, weight, bias, a, b, alpha: x @ (weight + b @ a).T + bias,
     "is not scaled"),
    ("lora_layer", lambda x, weight, bias, a, b, alpha: lora_by_functions(
        x.flatten(0, 1), weight, bias, a, b, alpha), "expected a tensor of shape"),
    ("lora_layer", lambda x, weight, bias, a, b, alpha: x @ weight + bias, "stopped with Runtime"),
    ("trained_weights", lambda shapes, targets, r: sum(
        r * sum(s) for n, s in shapes.items() if n.endswith(tuple(targets))), "middle of a word"),
    ("trained_weights", lambda shapes, targets, r: count_by_split(shapes, targets[:1], r),
     "wrong on"),
    ("trained_weights", lambda shapes, targets, r: count_by_split(
        {n: (s[0], s[0]) for n, s in shapes.items()}, targets, r), "wrong on"),
    ("merged", lambda weight, updates: weight.add_(1), "changed its input"),
    ("merged", lambda weight, updates: weight + sum(
        s / len(a) * (b @ a).T for a, b, s in updates), "The largest difference"),
    ("budgets", lambda total, warmup, final, start, end: budgets_by_fractions(
        total, warmup, final, start, end)[:-1], "expected a list of"),
    ("budgets", lambda total, warmup, final, start, end: [
        int(end + (start - end) * (1 - (t - warmup) / (total - warmup - final)) ** 3)
        for t in range(1, total + 1)], "wrong on"),
    ("kept_energy", lambda delta, k: float(torch.linalg.matrix_norm(delta[:k]) ** 2
                                           / torch.linalg.matrix_norm(delta) ** 2), "wrong on"),
    ("kept_energy", lambda delta, k: torch.tensor(energy_by_numpy(delta, k)), "a Python number"),
    ("memory_share", lambda total, trained, full_kept, own_kept:
     (4 * total + 4 * trained + own_kept) / (8 * total + full_kept), "moving averages are missing"),
    ("audit", lambda before, after, trains: list(audit_by_loop(before, after, trains)),
     "expected a tuple"),
    ("audit", lambda before, after, trains: tuple(x[::-1] for x in audit_by_loop(
        before, after, trains)), "wrong on"),
    ("audit", lambda before, after, trains: audit_by_loop(
        *({n: t.half() for n, t in part.items()} for part in (before, after)), trains),
     "taken for none"),
])  # fmt: skip
def test_a_wrong_answer_is_refused(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_07, name).check(answer)


@pytest.mark.parametrize("name", ["lora_layer", "trained_weights", "merged", "budgets",
                                  "kept_energy", "memory_share", "audit"])  # fmt: skip
def test_each_known_mistake_is_told_by_its_own_name(name):
    exercise = getattr(lesson_07, name)
    for mistake in exercise.mistakes:
        with pytest.raises(CheckFailed, match=re.escape(mistake.says[:40])):
            exercise.check(mistake.wrong)


# --- the records and the lesson -------------------------------------------------------------------


@pytest.fixture(scope="module", params=["imdb-minilm", "rt_snippets"])
def record(request):
    return studies.stored(f"peft-{request.param}")


def test_the_records_are_whole(record):
    found = [(x["model"], x["method"], x["settings"].get("r"), x["seed"]) for x in record.lines]
    assert len(set(found)) == len(found)
    for model in {x["model"] for x in record.lines} & set(RATES):
        ranks = {r for m, method, r, _ in found if (m, method) == (model, "lora")}
        wanted = {(model, method, r, seed) for method in RATES[model] for seed in range(3)
                  for r in (ranks if method == "lora" else {None})}  # fmt: skip
        assert 8 in ranks and wanted <= set(found)


def test_the_records_accuracies_are_those_of_their_predictions(record):
    labels = record.about["settings"]["test_labels"]
    assert len(labels) == record.about["settings"]["n_test"] and set(labels) == {"0", "1"}
    for line in record.lines:
        right = [p == y for p, y in zip(line["predictions"], labels, strict=True)]
        assert line["accuracy"] == pytest.approx(np.mean(right)), line["method"]


def test_the_rates_are_the_best_that_were_tried(record):
    for line in record.lines:
        if line["method"] != "baseline":
            assert line["learning_rate"] == RATES[line["model"]][line["method"]]
            assert (line["epochs"], line["batch_size"]) == (1, 16)
    for model, method in {(rate["model"], rate["method"]) for rate in record.rates}:
        tried = [r for r in record.rates if (r["model"], r["method"]) == (model, method)]
        best = min(tried, key=lambda rate: rate["loss"])
        assert best["learning_rate"] == RATES[model][method], (model, method)


@pytest.fixture(scope="module")
def imdb():
    return studies.stored("peft-imdb-minilm")


def test_what_the_lesson_says_of_imdb(imdb):
    lines, labels = imdb.lines, imdb.about["settings"]["test_labels"]
    rivals = [method for method in RATES["minilm"] if method != "full"]
    gaps = {m: 100 * np.array(figures.differences(lines, "minilm", m, "full")) for m in rivals}
    for method in rivals:
        assert figures.resolved(lines, labels, "minilm", method, "full") == [-1, -1, -1]
    assert all(max(gaps[method]) < -5 for method in ("bitfit", "head"))
    few = ("adapter", "lora", "adalora")
    assert all(-3 < gaps[method].mean() < -2 for method in few)
    assert all(max(figures.values(lines, "minilm", method, "share")) < 0.01 for method in few)
    for method, rival in itertools.combinations(few, 2):
        low, high = mean_interval(figures.differences(lines, "minilm", method, rival))
        assert low < 0 < high
    counting = next(x["accuracy"] for x in lines if x["model"] == "nb_trigrams")
    assert counting > max(x["accuracy"] for x in lines if x["method"] != "baseline")


def test_what_the_lesson_says_of_two_models():
    found = studies.stored("peft-rt_snippets")
    lines, labels = found.lines, found.about["settings"]["test_labels"]

    def of(model, method, key="accuracy"):
        return np.array(figures.values(lines, model, method, key))

    assert of("smollm2", "head").mean() > of("minilm", "full").mean()
    assert of("smollm2", "full").mean() > of("smollm2", "head").mean() + 0.05
    for method in ("adapter", "lora"):
        low, high = mean_interval(figures.differences(lines, "smollm2", method, "full"))
        assert low < 0 < high
    assert figures.resolved(lines, labels, "minilm", "lora", "full") == [-1, -1, -1]
    constant = max(labels.count(label) for label in "01") / len(labels)
    assert sorted(of("smollm2", "adalora") < constant + 0.02) == [False, False, True]
    assert (of("minilm", "bitfit") < constant + 0.02).all()
    assert {line["steps"] for line in lines if "steps" in line} == {63}
    for model in ("minilm", "smollm2"):
        for method in ("adapter", "lora", "adalora"):
            cost = [of(model, method, key).mean() / of(model, "full", key).mean()
                    for key in ("memory_mb", "cpu_s")]  # fmt: skip
            assert 0.4 < cost[0] < 0.6 and 0.6 < cost[1] < 0.8, (model, method)


def test_what_the_lesson_says_of_ranks():
    lines = studies.stored("peft-rt_snippets").lines
    means = [np.mean(figures.values(lines, "minilm", "lora", r=r)) for r in (1, 2, 4, 8, 16, 32)]
    assert means[0] == min(means) and means[-1] == max(means)
    for r in (1, 2, 4, 16, 32):
        gaps = figures.differences(lines, "minilm", "lora", "lora", r=r)
        low, high = mean_interval(gaps)
        assert low < 0 < high
    assert {line["settings"]["lora_alpha"] / line["settings"]["r"] for line in lines
            if line["method"] == "lora"} == {2}  # fmt: skip


def test_what_the_lesson_says_of_adalora_s_ranks(imdb):
    found = {kind: np.array([[rank for name, rank in line["ranks"].items() if kind in name]
                             for line in figures.chosen(imdb.lines, "minilm", "adalora")])
             for kind in ("query", "value")}  # fmt: skip
    assert (found["query"].mean(axis=0) < found["value"].mean(axis=0)).all()
    assert (found["query"][:, -1] == np.hstack(list(found.values())).min(axis=1)).all()


def test_what_the_text_counts_by_hand_is_what_was_counted():
    H = 384
    lines = studies.stored("peft-imdb-minilm").lines
    counts = {line["method"]: line["n_trained"] for line in lines if "n_trained" in line}
    assert counts["bitfit"] == 6 * 11 * H + 2 * H + 2 * H + 2 == 70 * H + 2 == 26_882
    assert counts["head"] == 2 * H + 2 and counts["lora"] == 6 * 2 * 8 * 2 * H + 2 * H + 2


def test_the_lessons_lora_is_the_packages():
    made = {"torch": torch}
    exec(cell("class LoRALinear"), made)
    torch.manual_seed(0)
    ours = made["LoRALinear"](torch.nn.Linear(6, 5), r=2, alpha=3)
    theirs = LoRALinear(torch.nn.Linear(6, 5), r=2, alpha=3)
    x = torch.randn(4, 3, 6)
    with torch.no_grad():
        theirs.linear.load_state_dict(ours.linear.state_dict())
        torch.nn.init.normal_(ours.B)
        theirs.a.copy_(ours.A)
        theirs.b.copy_(ours.B)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.merge()(x), theirs(x))


def test_the_three_loops_do_what_the_text_says(names):
    made = {"torch": torch, **names}
    exec(cell("class LoRALinear"), made)
    exec(cell("def loop("), made)
    found = {kind: names["audit"](*made["loop"](kind), ["A", "B"])
             for kind in ("right", "both start at 0", "frozen too late")}  # fmt: skip
    assert found == {"right": ([], []), "both start at 0": ([], ["A", "B"]),
                     "frozen too late": (["linear.bias", "linear.weight"], [])}  # fmt: skip


def test_the_order_of_the_lesson():
    titles = [re.match(r"## (\d+)\. ", cell.source) for cell in CELLS]
    assert [int(title[1]) for title in titles if title] == list(range(1, 9))
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    assert [t for t in ("Summary", "Exercises", "Further reading") if f"## {t}" not in text] == []
