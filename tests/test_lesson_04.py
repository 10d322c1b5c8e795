"""Lesson 04: the loop that it builds is the package's, its exercises are solved, its words hold."""

from __future__ import annotations

import copy
import itertools
import math
import re
from dataclasses import replace

import jupytext
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lesson_scripts import blocks, cases, solved

from tutorkit import checks, data, training
from tutorkit.checks import CheckFailed, lesson_04
from tutorkit.fast_bert import faster
from tutorkit.models import load_model
from tutorkit.notebooks import NOTEBOOKS
from tutorkit.sources import load_splits
from tutorkit.training import TrainConfig

SCRIPT = NOTEBOOKS / "04_training.py"
CELLS = jupytext.read(SCRIPT).cells
# The cells that build the loop, each known by one of its definitions.
BUILT = ("def update(", "def forward(", "def evaluate(", "class Best:", "def steps_of_epoch(",
         "def train_step(", "def fit(")  # fmt: skip
CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=3e-3, precision="fp32", device="cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def definitions(source: str) -> str:
    """The imports, functions and classes of a cell, without what else it does."""
    kept, inside = [], False
    for line in source.splitlines(keepends=True):
        if not line.startswith((" ", "\n", ")")):
            inside = line.startswith(("def ", "class ", "@", "import ", "from "))
        if inside:
            kept.append(line)
    return "".join(kept)


@pytest.fixture(scope="module")
def lesson():
    """What the lesson's own definitions make, executed from its script."""
    code = [cell.source for cell in CELLS if cell.cell_type == "code"]
    names: dict = {}
    imports = next(source for source in code if source.startswith("import copy"))
    exec(definitions(imports), names)
    for start in BUILT:
        found = [source for source in code if f"\n{start}" in f"\n{source}"]
        assert len(found) == 1, f"expected one cell with {start!r}, found {len(found)}"
        exec(compile(definitions(found[0]), f"04_training.py: {start}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def names():
    """What the setup and the solutions of the exercises define."""
    return solved(CELLS)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def sets(tiny):
    def texts(split, count):
        table = load_splits("reviews")[split].to_pandas()
        rows = [row for label in (0, 1)
                for row in table[table.label == label].head(count // 2).itertuples()]  # fmt: skip
        return data.SentimentDataset(
            [row.text for row in rows], [row.label for row in rows], tiny.tokenizer, max_length=48
        )

    return texts("train", 26), texts("validation", 12)


# --- the loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, gradient_accumulation_steps=3, seed=5),  # steps of 12, 12 and 2 rows
        replace(CONFIG, schedule="cosine", warmup_ratio=0.3, max_grad_norm=0.1),
        replace(CONFIG, evaluations_per_epoch=4, patience=1, epochs=3, weight_decay=0.2),
        replace(CONFIG, evaluations_per_epoch=1, patience=None),
    ],
    ids=["plain", "accumulation", "cosine and clipping", "early stopping", "no patience"],
)
def test_the_loop_of_the_lesson_is_the_package_s(lesson, tiny, sets, config):
    mine, theirs = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in mine.modules())
    # In the form that the package calls on a CPU: the same numbers are drawn for dropout.
    history = lesson["fit"](faster(mine), *sets, config)
    state = training.fit(theirs, *sets, config)
    assert len(history["steps"]) == len(state.steps) > 0
    for a, b in zip(history["steps"], state.steps, strict=True):
        assert a["step"] == b["step"]
        for name in ("loss", "learning_rate", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    assert len(history["evaluations"]) == len(state.evaluations) > 0
    for a, b in zip(history["evaluations"], state.evaluations, strict=True):
        assert (a["step"], a["accuracy"]) == (b["step"], b["accuracy"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    assert not mine.training and not theirs.training


def test_early_stopping_was_among_them(lesson, tiny, sets):
    config = replace(CONFIG, evaluations_per_epoch=4, patience=1, epochs=3, weight_decay=0.2)
    history = lesson["fit"](copy.deepcopy(tiny.model), *sets, config)
    assert len(history["steps"]) < 3 * len(lesson["steps_of_epoch"](sets[0], config, 0))


def test_evaluate_is_the_package_s_and_keeps_each_module_s_mode(lesson, tiny, sets):
    network = copy.deepcopy(tiny.model).train()
    frozen = network.base_model.embeddings.eval()
    loss, accuracy = lesson["evaluate"](network, sets[1], batch_size=5)
    expected = training.evaluate(network, sets[1], precision="fp32", device="cpu")
    assert loss == pytest.approx(expected.loss, rel=1e-5)
    assert accuracy == expected.accuracy
    assert network.training and not frozen.training


def test_the_best_weights_are_a_copy_and_equal_scores_are_no_new_best(lesson):
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    best = lesson["Best"](patience=2)
    looks = [(0.5, 0.6), (0.4, 0.6), (0.4, 0.6), (0.3, 0.5)]  # loss, accuracy
    found = []
    for value, look in enumerate(looks, start=1):
        network.weight.data.fill_(float(value))
        found.append(best.look(network, *look))
    assert found == [False, False, False, True]
    assert best.weights["weight"].item() == 2.0  # of equal accuracies the lower loss


# --- the exercises ----------------------------------------------------------------------------


def test_there_are_exercises_and_labs():
    assert len(blocks(CELLS, SCRIPT.stem)) == 6
    assert sum("spot the flaw" in block.text for block in blocks(CELLS, SCRIPT.stem)) == 3


def test_the_solutions_pass_their_checks(names, capsys):
    for block in blocks(CELLS, SCRIPT.stem):
        exec(block.check, names)
    assert capsys.readouterr().out.count("✓") == 6


def test_the_solutions_by_hand(names):
    rates = names["learning_rates"](1.0, 6, 2)
    assert rates.tolist() == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert names["early_stop"]([0.6, 0.7, 0.7, 0.6, 0.9], 2) == (1, 4)
    assert names["early_stop"]([0.6, 0.7, 0.6, 0.8, 0.7], 2) == (3, 5)
    validation, test = torch.tensor([0.6, 0.8, 0.7]), torch.tensor([0.9, 0.7, 0.8])
    line, accuracy = names["stopping_lab"](validation, test)
    assert (line, accuracy) == (3, test[1])
    # 1 and 5 discordant rows: p = 2 · (1 + 6) / 64 = 0.22; 0 and 6: p = 2 / 64 = 0.03.
    first = torch.tensor([True] * 5 + [False] + [True] * 4)
    second = torch.tensor([False] * 5 + [True] + [True] * 4)
    third = torch.tensor([False] * 5 + [False] * 5)
    assert names["resolved_places"]([first, second]) == [False]
    assert names["resolved_places"]([first | True, torch.tensor([False] * 6 + [True] * 4)]) == [
        True
    ]
    assert names["resolved_places"]([second, third, third]) == [False, False]


def test_early_stopping_is_that_of_fit(names, tiny, sets):
    """The accuracies of a run that never stops say where a run with patience would."""
    config = replace(CONFIG, epochs=4, evaluations_per_epoch=3, patience=None)
    full = training.fit(copy.deepcopy(tiny.model), *sets, config)
    accuracies = [entry["accuracy"] for entry in full.evaluations]
    losses = [entry["loss"] for entry in full.evaluations]
    for patience in (1, 2, 3):
        stopped = training.fit(copy.deepcopy(tiny.model), *sets, replace(config, patience=patience))
        ranks = [a - 1e-9 * b for a, b in zip(accuracies, losses, strict=True)]
        best, made = names["early_stop"](ranks, patience)
        assert made == len(stopped.evaluations)
        assert stopped.best == {**stopped.evaluations[best]}


def test_the_table_of_the_lab_has_one_swap(names):
    printed, logs = names["printed"], names["logs"]
    assert names["swapped_rows"](printed, logs) == ["last layer", "all layers"]
    right = {name: round(max(log["accuracy"]), 3) for name, log in logs.items()}
    assert {name for name in printed if printed[name] != right[name]} == {
        "last layer",
        "all layers",
    }
    assert names["swapped_rows"](right, logs) == []


@pytest.mark.parametrize(
    ("exercise", "answer", "message"),
    [
        ("stopping_lab", lambda validation, test: (3, test.max()), "what the listing prints"),
        ("stopping_lab", lambda validation, test: (6, test[validation.argmax()]), "is not 6"),
        ("swapped_rows", lambda printed, logs: [], "round before comparing|a list of 2"),
        (
            "resolved_places",
            lambda leaderboard: [
                bool(a.sum() != b.sum()) for a, b in zip(leaderboard, leaderboard[1:], strict=False)
            ],
            "the flaw of the ranking",
        ),
    ],
)
def test_the_published_forms_are_refused_by_name(exercise, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_04, exercise).check(answer)


@pytest.mark.parametrize("seed", range(40))
def test_a_table_holds_no_swap_by_accident(seed):
    """Numbers of different rows differ, so that a swap can be seen, and there is one at most."""
    printed, logs = lesson_04.swapped_rows.inputs(torch.Generator().manual_seed(seed))
    best = [round(max(log["accuracy"]), 3) for log in logs.values()]
    assert len(set(best)) == len(best)
    wrong = [name for name, value in zip(printed, best, strict=True) if printed[name] != value]
    assert len(wrong) in (0, 1, 2, 3)
    assert len(lesson_04.swapped_rows.solution(printed, logs)) == (2 if len(wrong) >= 2 else 0)


def test_the_ranking_s_inputs_have_both_answers():
    exercise = lesson_04.resolved_places
    found = []
    for seed in checks.exercise.SEEDS:
        found += exercise.solution(*exercise.inputs(torch.Generator().manual_seed(seed)))
    assert 0.2 < np.mean(found) < 0.8


def rates_by_loop(peak, total, warmup):
    found = []
    for step in range(total):
        if step < warmup:
            found.append(peak * (step + 1) / warmup)
        else:
            found.append(peak * (total - step) / (total - warmup))
    return torch.tensor(found, dtype=torch.float64)


def rates_by_lines(peak, total, warmup):
    up = torch.linspace(0, peak, warmup + 1, dtype=torch.float64)[1:]
    return torch.cat([up, torch.linspace(peak, 0, total - warmup + 1, dtype=torch.float64)[:-1]])


def gradient_by_formula(states, weight, labels, sizes):
    found = torch.zeros_like(weight)
    for h, y in zip(states.split(sizes), labels.split(sizes), strict=True):
        p = torch.softmax(h @ weight.T, dim=1)
        found = found + (p - F.one_hot(y, len(weight))).T @ h
    return found / len(labels)


def gradient_of_weighted_means(states, weight, labels, sizes):
    leaf, start = weight.clone().requires_grad_(True), 0
    for size in sizes:
        end = start + size
        mean = F.cross_entropy(states[start:end] @ leaf.T, labels[start:end])
        (mean * size / sum(sizes)).backward()
        start = end
    return leaf.grad


def stop_by_counter(accuracies, patience):
    best, bad, made = 0, 0, 0
    highest = -1.0
    for number, accuracy in enumerate(accuracies):
        made += 1
        if accuracy > highest:
            best, highest, bad = number, accuracy, 0
        else:
            bad += 1
            if bad == patience:
                break
    return best, made


def lab_by_list(validation, test):
    values = validation.tolist()
    return 3, test[values.index(max(values))]


def swap_by_positions(printed, logs):
    best = {name: round(max(logs[name]["accuracy"]), 3) for name in printed}
    owner = {value: name for name, value in best.items()}
    for name, value in printed.items():
        other = owner.get(value, name)
        if other != name and owner.get(printed[other]) == name:
            return [name, other]
    return []


def places_by_both_tails(leaderboard):
    found = []
    for k in range(len(leaderboard) - 1):
        one, two = leaderboard[k].int(), leaderboard[k + 1].int()
        a, b = int((one > two).sum()), int((one < two).sum())
        weights = [math.comb(a + b, heads) for heads in range(a + b + 1)]
        p = sum(w for w in weights if w <= weights[a]) / 2 ** (a + b)
        found.append(p < 0.05)
    return found


@pytest.mark.parametrize(("name", "answer"), [
    ("learning_rates", rates_by_loop),
    ("learning_rates", rates_by_lines),
    ("accumulated_gradient", gradient_by_formula),
    ("accumulated_gradient", gradient_of_weighted_means),
    ("early_stop", stop_by_counter),
    ("stopping_lab", lab_by_list),
    ("swapped_rows", swap_by_positions),
    ("resolved_places", places_by_both_tails),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name, answer, capsys):
    getattr(lesson_04, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


def cosine_rates(peak, total, warmup):
    steps = torch.arange(total, dtype=torch.float64)
    down = (1 + torch.cos(math.pi * (steps - warmup) / (total - warmup))) / 2
    return peak * torch.where(steps < warmup, (steps + 1) / warmup, down)


def rates_in_float32(peak, total, warmup):
    return torch.tensor(rates_by_loop(peak, total, warmup).tolist())


def without_the_short_one(states, weight, labels, sizes):
    kept = sum(sizes[:-1])
    return gradient_by_formula(states[:kept], weight, labels[:kept], sizes[:-1])


def without_the_last_return(accuracies, patience):
    best = 0
    for number, accuracy in enumerate(accuracies):
        if accuracy > accuracies[best]:
            best = number
        if number - best >= patience:
            return best, number + 1


def patience_for_lower_scores(accuracies, patience):
    best, bad = 0, 0
    for number, accuracy in enumerate(accuracies):
        if accuracy > accuracies[best]:
            best, bad = number, 0
        bad += accuracy < accuracies[best]
        if bad >= patience:
            return best, number + 1
    return best, len(accuracies)


def either_row(printed, logs):
    best = {name: round(max(log["accuracy"]), 3) for name, log in logs.items()}
    pairs = itertools.combinations(printed, 2)
    return next(([a, b] for a, b in pairs if printed[a] == best[b] or printed[b] == best[a]), [])


def rows_with_a_number_of_another(printed, logs):
    best = {name: round(max(log["accuracy"]), 3) for name, log in logs.items()}
    return [n for n in printed if printed[n] != best[n] and printed[n] in best.values()]


def without_the_result_itself(leaderboard):
    found = []
    for one, two in itertools.pairwise(leaderboard):
        a, b = int((one & ~two).sum()), int((two & ~one).sum())
        tail = sum(math.comb(a + b, k) for k in range(min(a, b))) / 2 ** (a + b)
        found.append(a + b > 0 and 2 * tail < 0.05)
    return found


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("learning_rates", cosine_rates, "The largest difference is"),
    ("learning_rates", rates_in_float32, "expected dtype torch.float64"),
    ("accumulated_gradient", without_the_short_one, "The largest difference is"),
    ("early_stop", without_the_last_return, "returned None"),
    ("early_stop", patience_for_lower_scores, "The largest difference is"),
    ("stopping_lab", lambda validation, test: (4, test.mean()), "line 4 is not the flawed one"),
    ("stopping_lab", lambda validation, test: test[validation.argmax()], "expected two values"),
    ("stopping_lab", lambda validation, test: ("3", test.max()), "expected two values"),
    ("stopping_lab", lambda validation, test: (3, test.mean()), "The largest difference is"),
    ("swapped_rows", either_row, "expected a list of"),
    ("swapped_rows", rows_with_a_number_of_another, "expected a list of"),
    ("resolved_places", without_the_result_itself, "The largest difference is"),
])  # fmt: skip
def test_a_wrong_answer_that_is_listed_nowhere_is_refused(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_04, name).check(answer)


@pytest.mark.parametrize("line", [1, 2, 4, 5, 6, 7])
@pytest.mark.parametrize("second", [torch.argmax, torch.mean, lambda scores: 0.5])
def test_a_wrong_line_is_refused_without_the_right_one(line, second):
    with pytest.raises(CheckFailed) as caught:
        lesson_04.stopping_lab.check(lambda validation, test: (line, second(test)))
    assert "3" not in str(caught.value)


def test_the_inputs_hold_what_answers_trip_over():
    stops = [(*case, *lesson_04.early_stop.solution(*case)) for case in cases(lesson_04.early_stop)]
    assert any(best == made - 1 == len(scores) - 1 for scores, _, best, made in stops)
    assert any(made < len(scores) for scores, _, _, made in stops)
    assert 1 in {patience for _, patience, _, _ in stops}
    for validation, test in cases(lesson_04.stopping_lab):
        assert 0 < min(validation.min(), test.min()) <= max(validation.max(), test.max()) < 1
    tables = cases(lesson_04.swapped_rows)
    assert any(len(set(printed.values())) < len(printed) for printed, _ in tables)
    found = {bool(lesson_04.swapped_rows.solution(*table)) for table in tables}
    assert found == {True, False}
    pairs = [(int((one & ~two).sum()), int((two & ~one).sum()))
             for (board,) in cases(lesson_04.resolved_places)
             for one, two in itertools.pairwise(board)]  # fmt: skip
    assert set(pairs) <= {p for a, b in lesson_04.COUNTS for p in ((a, b), (b, a))}
    assert {tuple(sorted(pair)) for pair in pairs} >= {(0, 0), (5, 5), (4, 13)}
    assert any(a < b for a, b in pairs)


# --- the lesson -------------------------------------------------------------------------------


def test_the_order_of_the_lesson():
    titles = [re.match(r"## (\d+)\. ", cell.source) for cell in CELLS]
    assert [int(title[1]) for title in titles if title] == list(range(1, 14))
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    assert [t for t in ("Summary", "Exercises", "Further reading") if f"## {t}" not in text] == []


def test_code_cells_are_short():
    for cell in CELLS:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and not tags & {"colab", "solution", "exercise-setup"}:
            lines = [line for line in cell.source.split("\n") if line.strip()]
            assert len(lines) <= 25, cell.source
