"""The contract of metrics.json, broken one key at a time."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from tutorkit.records import CONTRACT, check_predictions, check_record, strict_json

RECORD = json.loads(
    (Path(__file__).parent / "assets/records/imdb-minilm/metrics.json").read_text("utf-8")
)


def broken(place: str, value: object) -> dict:
    """RECORD with another value at `place`, such as "test.accuracy"."""
    record = copy.deepcopy(RECORD)
    *blocks, key = place.split(".")
    block = record
    for name in blocks:
        block = block[name]
    block[key] = value
    return record


def test_a_whole_record_passes_with_more_keys_than_asked_for() -> None:
    check_record(RECORD)
    check_record(broken("timing.note", "measured twice"))


def places() -> list[str]:
    found = []
    for key, inner in CONTRACT.items():
        found.append(key)
        if isinstance(inner, dict):
            found += [f"{key}.{name}" for name in inner]
    return found


@pytest.mark.parametrize("place", [p for p in places() if p != "schema_version"])
def test_every_key_of_the_contract_is_missed(place: str) -> None:
    record = copy.deepcopy(RECORD)
    *blocks, key = place.split(".")
    block = record
    for name in blocks:
        block = block[name]
    del block[key]
    with pytest.raises(ValueError, match=rf"{place} is missing: expected"):
        check_record(record)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("schema_version", 2, "expected schema_version 1, found 2"),
        ("test", [0.9], r"test: expected dict, found list"),
        ("test.accuracy", "0.9", r"test.accuracy: expected int or float, found str '0.9'"),
        ("test.accuracy", np.float32(0.925), "expected int or float, found float32"),
        ("test.n", 1000.0, "test.n: expected int, found float"),
        ("test.n", True, "test.n: expected int, found bool"),
        ("test.accuracy_ci95", [0.9], r"test.accuracy_ci95: expected \[low, high\]"),
        ("test.accuracy_ci95", [0.93, 0.95], "lies outside test.accuracy_ci95"),
        ("test.ece", float("nan"), "test.ece: expected a finite number, found nan"),
        ("config.learning_rate", float("inf"), "config.learning_rate: expected a finite number"),
        ("before.accuracy", 49.0, "before.accuracy: expected 0 to 1, found 49.0"),
        ("before.zero_shot_accuracy", -0.1, "before.zero_shot_accuracy: expected 0 to 1"),
        ("baseline.nb_trigrams", 91.7, "baseline: expected 0 to 1, found 91.7"),
        ("baseline.nb_trigrams", "high", "baseline: expected int or float, found str"),
        ("baseline_seconds", {}, "same names in baseline and baseline_seconds"),
        ("paired", None, "paired: expected dict, found NoneType"),
        ("paired.resolved", 1, "paired.resolved: expected bool, found int"),
        ("environment.gpu", 0, "environment.gpu: expected str or None, found int"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(place: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_record(broken(place, value))


def test_without_baselines_there_is_no_paired_test() -> None:
    check_record(RECORD | {"baseline": {}, "baseline_seconds": {}, "paired": None})


def columns(n: int = 1000, right: int = 925) -> dict:
    return {
        "id": [f"test-{i:05d}" for i in range(n)],
        "label": np.ones(n, dtype=np.int64),
        "prediction": (np.arange(n) < right).astype(np.int64),
        "probability": np.full(n, 0.9, dtype=np.float32),
    }


def test_predictions_that_fit_the_record_pass() -> None:
    check_predictions(columns(), RECORD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ["x"] * 1000}, "expected the columns id, label, prediction, probability, found"),
        ({"label": np.ones(999)}, r"expected 1000 rows \(test.n\).*'label': 999"),
        ({"id": ["same"] * 1000}, "expected each id once"),
        ({"probability": np.full(1000, 1.5)}, "apply softmax"),
        ({"probability": np.full(1000, np.nan)}, "apply softmax"),
        ({"prediction": np.ones(1000)}, "their accuracy is 1.0, test.accuracy is 0.925"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_predictions(columns() | change, RECORD)


def test_strict_json_takes_no_nan_and_no_numpy() -> None:
    with pytest.raises(ValueError, match=r"steps\[1\].loss: expected a finite number, found nan"):
        strict_json({"steps": [{"loss": 0.1}, {"loss": float("nan")}]})
    with pytest.raises(ValueError, match="turn numpy and torch values into Python numbers"):
        strict_json({"n": np.int64(3)})
    assert json.loads(strict_json({"text": "é", "n": 1})) == {"text": "é", "n": 1}
