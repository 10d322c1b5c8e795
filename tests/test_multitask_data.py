"""Rows of several tasks: what a batch holds, how often each task is drawn, what is refused."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest
from multitask_examples import LABELS, MOOD, RATING, TEXTS, TOPIC, rows, tiny

from tutorkit.data import SentimentDataset, training_batches
from tutorkit.multitask_data import (
    MultiTaskDataset,
    Task,
    TaskDataset,
    rows_each,
    rows_in_turn,
    stack_domains,
    task_datasets,
)


def test_a_mixed_batch_holds_each_rows_own_labels():
    parts = [rows(MOOD), rows(RATING), rows(TOPIC)]
    batch = MultiTaskDataset(parts).batch([14, 7, 1, 5])
    assert batch["task"].tolist() == [2, 1, 0, 1]
    assert batch["labels"].tolist() == [2.0, 0.5, 0.0, 2.5]
    assert batch["input_ids"].equal(parts[0].batch([4, 2, 1, 0])["input_ids"])


def test_with_proportional_sampling_one_task_is_trained_as_without_this_module():
    plain = SentimentDataset(TEXTS * 5, LABELS["topic"] * 5, tiny().tokenizer, 32, num_labels=3)
    single = MultiTaskDataset([rows(TOPIC, 5)])
    for epoch in range(2):
        found = single.batches_of_epoch(4, 1, epoch)
        expected = training_batches(plain.lengths, 4, 1, epoch)
        assert [b.tolist() for b in found] == [b.tolist() for b in expected]
    several = MultiTaskDataset([rows(TOPIC, 5), rows(MOOD)]).batches_of_epoch(4, 0, 0)
    assert sorted(np.concatenate(several)) == list(range(30))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0, math.inf])
def test_temperature_sampling_draws_by_the_formula(temperature):
    sizes = np.array([800, 150, 50])
    weights = [n ** (1 / temperature) for n in sizes.tolist()]
    wanted = np.array([1000 * w / sum(weights) for w in weights])
    counts = rows_each(sizes, temperature)
    assert counts.sum() == 1000
    assert np.abs(counts - wanted).max() < 1
    if temperature in (1.0, math.inf):
        assert counts.tolist() == ([800, 150, 50] if temperature == 1 else [334, 333, 333])
    data = MultiTaskDataset([rows(TOPIC, 16), rows(MOOD, 3), rows(RATING)], "temperature",
                            temperature)  # fmt: skip
    drawn = np.concatenate(data.batches_of_epoch(8, 0, 0))
    found = [((drawn >= a) & (drawn < b)).sum() for a, b in ((0, 80), (80, 95), (95, 100))]
    assert found == rows_each(data.sizes, temperature).tolist()


def test_rows_take_turns_over_the_epochs():
    epochs = [rows_in_turn(size=5, count=3, epoch=e, seed=(0, 1)) for e in range(10)]
    assert np.bincount(np.concatenate(epochs)).tolist() == [6] * 5
    assert rows_in_turn(5, 12, 0, (0,)).tolist() != rows_in_turn(5, 12, 0, (1,)).tolist()
    assert rows_in_turn(5, 0, 3, (0,)).tolist() == []


def test_round_robin_gives_each_task_its_turn():
    data = MultiTaskDataset([rows(TOPIC, 7), rows(MOOD), rows(RATING, 2)], "round_robin")
    batches = data.batches_of_epoch(4, 0, 0)  # 50 rows: 5 rounds of 3 batches of 4
    assert [data.batch(b)["task"].unique().tolist() for b in batches] == [[0], [1], [2]] * 5
    assert {len(b) for b in batches} == {4}


@pytest.mark.parametrize("sampling", ["proportional", "temperature", "round_robin"])
def test_epochs_are_equally_long_and_a_function_of_seed_and_epoch(sampling):
    data = MultiTaskDataset([rows(TOPIC, 7), rows(MOOD)], sampling,
                            3.0 if sampling == "temperature" else 1.0)  # fmt: skip
    orders = [[b.tolist() for b in data.batches_of_epoch(4, s, e)] for s, e in
              ((0, 0), (0, 1), (1, 0), (0, 0))]  # fmt: skip
    assert orders[0] == orders[3] and orders[0] != orders[1] and orders[0] != orders[2]
    assert len({len(order) for order in orders}) == 1


def test_stacked_domains_hold_sentiment_and_domain():
    def table(name, n):
        return datasets.Dataset.from_dict({
            "text": [f"{name} {i}" for i in range(n)], "label": [i % 2 for i in range(n)],
            "id": [f"all-{i}" for i in range(n)], "rating": [i - 0.5 for i in range(n)],
        })  # fmt: skip

    splits = {name: datasets.DatasetDict({s: table(name, n) for s in ("train", "validation",
              "test")}) for name, n in (("film", 9), ("shop", 5))}  # fmt: skip
    stacked = stack_domains(splits, {"train": 4}, seed=0)
    assert {split: len(stacked[split]) for split in stacked} == {
        "train": 8, "validation": 14, "test": 14}  # fmt: skip
    assert stacked["train"]["domain"] == [0] * 4 + [1] * 4
    for row in stacked["test"]:
        name, number = row["text"].split()
        assert row["id"] == f"{name}/all-{number}" and row["domain"] == ["film", "shop"].index(name)
        assert (row["sentiment"], row["rating"]) == (int(number) % 2, int(number) - 0.5)
    asked = [Task("sentiment", names=("no", "yes")), Task("domain", names=tuple(splits)), RATING]
    parts = task_datasets(asked, stacked["test"], tiny().tokenizer)
    assert parts[1].labels.tolist() == stacked["test"]["domain"]
    with pytest.raises(ValueError, match=r"a column for each task, found none for \['mood'\]"):
        task_datasets([MOOD], stacked["test"], tiny().tokenizer)
    with pytest.raises(ValueError, match=r"sizes: expected splits among .*, found \['film'\]"):
        stack_domains(splits, {"film": 3})
    with pytest.raises(ValueError, match=r"expected two domains or more, found \['film'\]"):
        stack_domains({"film": splits["film"]})


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "match"), [
    ({"name": ""}, "name: expected a task's name, found ''"),
    ({"kind": "ranking"}, "task 'x': expected one of .* as kind, found 'ranking'"),
    ({"kind": "regression"}, r"no names of classes for a regression, found \('a', 'b'\)"),
    ({"names": ["a", "a"]}, r"two or more different names of classes, found \('a', 'a'\)"),
    ({"names": ()}, r"two or more different names of classes, found \(\); numbers are kind="),
    ({"weight": 0}, "task 'x': expected a weight above 0, found 0; leave a task out"),
    ({"weight": -0.5}, "task 'x': expected a weight above 0, found -0.5"),
    ({"weight": math.nan}, "task 'x': expected a weight above 0, found nan"),
])  # fmt: skip
def test_tasks_that_make_no_sense(settings, match):
    with pytest.raises(ValueError, match=match):
        Task(**{"name": "x", "names": ("a", "b")} | settings)


@pytest.mark.parametrize(("task", "labels", "match"), [
    (MOOD, [], r"task 'mood' \(classification\): expected at least one row, found none"),
    (MOOD, [0, 0.5], "task 'mood' .* row 1: expected a whole number as label, found 0.5"),
    (MOOD, ["negative", 1], "task 'mood' .*whole number as label, found 'negative'"),
    (MOOD, [1, 2], r"task 'mood' \(classification\): row 1: expected a label in 0…1, found 2"),
    (RATING, [], r"task 'rating' \(regression\): expected at least one row, found none"),
    (RATING, [1.5, "good"], "task 'rating' .* row 1: expected a finite number as label, found 'g"),
    (RATING, [math.nan, 1.5], "row 0: expected a finite number as label, found nan"),
    (RATING, [1.5, None], "expected a finite number as label, found None: drop the row, or"),
    (RATING, [True, False], "expected a finite number as label, found True.*classification'"),
])  # fmt: skip
def test_labels_of_another_task_are_refused_with_the_tasks_name(task, labels, match):
    with pytest.raises(ValueError, match=match):
        TaskDataset(task, TEXTS[: len(labels)], labels, tiny().tokenizer)


@pytest.mark.parametrize(("settings", "match"), [
    ({"parts": [rows(MOOD), rows(MOOD)]}, r"tasks of different names, found \['mood', 'mood'\]"),
    ({"parts": []}, r"one or more tasks of different names, found \[\]"),
    ({"sampling": "random"}, "sampling: expected one of .* found 'random'"),
    ({"sampling": "temperature", "temperature": 0.0}, "temperature: expected a number above 0"),
    ({"temperature": 2.0}, "1 unless sampling is 'temperature', found 2.0 with 'proportional'"),
    ({"parts": [rows(MOOD), TaskDataset(TOPIC, TEXTS, LABELS["topic"], tiny().tokenizer, 16)]},
     r"one max_length and tokenizer, found .*\[\(16, 0\), \(32, 0\)\]"),
    ({"parts": [TaskDataset(MOOD, TEXTS, [1] * 5, tiny().tokenizer)]},
     "task 'mood': expected training rows of at least two classes"),
    ({"parts": [TaskDataset(RATING, TEXTS, [1.5] * 5, tiny().tokenizer)]},
     "task 'rating': expected labels that differ, found only 1.5"),
])  # fmt: skip
def test_training_rows_that_can_not_be_joined(settings, match):
    with pytest.raises(ValueError, match=match):
        MultiTaskDataset(**{"parts": [rows(MOOD)]} | settings)
