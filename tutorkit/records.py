"""The contract of a run record: which keys metrics.json has, and of which type."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
PREDICTION_COLUMNS = ("id", "label", "prediction", "probability")

NUMBER, TEXT = (int, float), (str,)
NONE = type(None)
INTERVAL = [NUMBER, NUMBER]

# A tuple lists the types a value may have; a dict lists the keys a block has at least (more are
# welcome); `dict` alone is a block whose keys the run chooses.
CONTRACT = {
    "schema_version": (int,),
    "dataset": {
        "name": TEXT,
        "source": TEXT,
        "n_train": (int,),
        "n_validation": (int,),
        "n_test": (int,),
    },
    "model": {"name": TEXT, "source": TEXT, "n_parameters": (int,), "n_trainable": (int,)},
    "config": {
        "max_length": (int,),
        "truncation": TEXT,
        "epochs": NUMBER,
        "precision": TEXT,
    },
    "baseline": dict,  # name: accuracy
    "baseline_seconds": dict,  # name: seconds
    "before": {"accuracy": NUMBER, "n": (int,), "zero_shot_accuracy": (*NUMBER, NONE)},
    "validation": {"accuracy": NUMBER, "loss": NUMBER, "best_epoch": NUMBER},
    "test": {
        "n": (int,),
        "accuracy": NUMBER,
        "accuracy_ci95": INTERVAL,
        "macro_f1": NUMBER,
        "ece": NUMBER,
        "report": dict,
    },
    "paired": {  # the model against the best baseline; None when no baseline ran
        "n": (int,),
        "only_a": (int,),
        "only_b": (int,),
        "difference": NUMBER,
        "difference_ci95": INTERVAL,
        "p_value": NUMBER,
        "resolved": (bool,),
    },
    "training": {
        "resumed_from_step": (int, NONE),
        "stopped_early": (bool,),
        "steps": (int,),
    },
    "timing": {
        "train_s": NUMBER,
        "eval_s": NUMBER,
        "tokens": (int,),
        "tokens_per_s": NUMBER,
        "peak_rss_mb": NUMBER,
    },
    "environment": {"cpu": TEXT, "cores": (int,), "gpu": (str, NONE), "versions": dict},
    "seed": (int,),
    "git_commit": (str, NONE),
    "started_at": TEXT,
}
SHARES = (
    "before.accuracy",
    "before.zero_shot_accuracy",
    "validation.accuracy",
    "test.accuracy",
    "test.accuracy_ci95",
    "test.macro_f1",
    "test.ece",
    "baseline",
    "paired.p_value",
)


def check_record(record: Mapping[str, Any]) -> None:
    """Hold a record against the contract of metrics.json.

    Raises:
        ValueError: A key is missing, a value has another type, a number is not finite or (for
            accuracies and other shares) not in [0, 1], or two values contradict each other. The
            message names the place, as in `test.accuracy`.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"run record: expected a dict, found {type(record).__name__}.")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"run record: expected schema_version {SCHEMA_VERSION}, found {version!r}: "
            "make the record anew with this version of tutorkit."
        )
    contract = dict(CONTRACT)
    if not record.get("baseline") and record.get("paired", "missing") is None:
        contract["paired"] = (NONE,)
    _check_value(record, contract, "")
    _check_finite(record, "")
    for place in SHARES:
        _check_share(record, place)
    if set(record["baseline"]) != set(record["baseline_seconds"]):
        raise ValueError("run record: expected the same names in baseline and baseline_seconds.")
    low, high = record["test"]["accuracy_ci95"]
    if not low <= record["test"]["accuracy"] <= high:
        raise ValueError(
            f"run record: test.accuracy {record['test']['accuracy']} lies outside "
            f"test.accuracy_ci95 [{low}, {high}]: take both from metrics.score."
        )


def check_predictions(predictions: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Hold the predictions of a run against its record.

    Raises:
        ValueError: Columns are missing or of other lengths than `test.n`, an id stands twice, a
            probability is not in [0, 1], or the accuracy is not the one of the record.
    """
    if set(predictions) != set(PREDICTION_COLUMNS):
        raise ValueError(
            f"predictions: expected the columns {', '.join(PREDICTION_COLUMNS)}, "
            f"found {', '.join(predictions)}."
        )
    column = {name: np.asarray(predictions[name]) for name in PREDICTION_COLUMNS}
    n = record["test"]["n"]
    wrong = {name: len(values) for name, values in column.items() if len(values) != n}
    if wrong:
        raise ValueError(
            f"predictions: expected {n} rows (test.n) in each column, found {wrong}: "
            "give one prediction for each row of the test."
        )
    if len(set(column["id"].tolist())) != n:
        raise ValueError(
            "predictions: expected each id once, found one twice: ids join runs for comparison."
        )
    if not ((column["probability"] >= 0) & (column["probability"] <= 1)).all():
        raise ValueError(
            "predictions: expected probabilities in [0, 1], found one outside or NaN: "
            "apply softmax to the logits first."
        )
    accuracy = float((column["prediction"] == column["label"]).mean())
    if not math.isclose(accuracy, record["test"]["accuracy"], abs_tol=1e-9):
        raise ValueError(
            f"predictions: their accuracy is {accuracy}, test.accuracy is "
            f"{record['test']['accuracy']}: take both from one and the same evaluation."
        )


def strict_json(value: Any) -> str:
    """`value` as JSON that every reader takes: no NaN, no Infinity.

    Raises:
        ValueError: A number is not finite, or a value is of no JSON type.
    """
    _check_finite(value, "")
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(
            f"run record: {error}: turn numpy and torch values into Python numbers (.item())."
        ) from error


def _check_value(value: Any, expected: Any, place: str) -> None:
    """Raise unless `value` has the shape that `expected` (a part of CONTRACT) describes."""
    if isinstance(expected, dict):
        _check_type(value, (dict,), place)
        for key, of_key in expected.items():
            inner = f"{place}.{key}" if place else key
            if key not in value:
                raise ValueError(f"run record: {inner} is missing: expected {_names(of_key)}.")
            _check_value(value[key], of_key, inner)
    elif isinstance(expected, list):
        _check_type(value, (list,), place)
        if len(value) != len(expected):
            raise ValueError(f"run record: {place}: expected [low, high], found {value}.")
        for index, (item, of_item) in enumerate(zip(value, expected, strict=True)):
            _check_value(item, of_item, f"{place}[{index}]")
    else:
        _check_type(value, expected if isinstance(expected, tuple) else (expected,), place)


def _check_type(value: Any, types: tuple, place: str) -> None:
    # True is an int to Python, but not where a record wants a number.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(
            f"run record: {place or 'record'}: expected {_names(types)}, "
            f"found {type(value).__name__} {value!r}."
        )


def _names(expected: Any) -> str:
    if isinstance(expected, tuple):
        return " or ".join("None" if t is NONE else t.__name__ for t in expected)
    return "[low, high]" if isinstance(expected, list) else "dict"


def _check_finite(value: Any, place: str) -> None:
    """Raise when a number in `value`, at any depth, is NaN or infinite."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_finite(item, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"run record: {place}: expected a finite number, found {value}: "
            "leave out what was not measured, or put None where the contract takes it."
        )


def _check_share(record: Mapping[str, Any], place: str) -> None:
    """Raise unless the number or numbers at `place` lie in [0, 1]; None passes."""
    value = record
    for key in place.split("."):
        value = value[key] if value is not None else None
    if isinstance(value, Mapping):
        values = list(value.values())
    else:
        values = value if isinstance(value, list) else [value]
    for number in values:
        if number is None:
            continue
        _check_type(number, NUMBER, place)
        if not 0 <= number <= 1:
            raise ValueError(f"run record: {place}: expected 0 to 1, found {number}.")
