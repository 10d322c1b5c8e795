"""A classification report as printed: every number with the values that it may stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

METRICS = ("precision", "recall", "f1-score")
# "samples avg" belongs to several labels a row: nothing in a table implies its values.
AVERAGES = ("micro avg", "macro avg", "weighted avg", "samples avg")
HAIR = 1e-9  # a value half-way between two printed ones may have been rounded either way


class Range(NamedTuple):
    """All values a number can have, and the one that the printed digits themselves give."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Table:
    """The rows of a report, each metric as the range that its printed digits allow."""

    classes: dict[str, dict[str, Range]]
    averages: dict[str, dict[str, Range]]
    accuracy: Range | None
    supports: dict[str, int]  # of every row that prints one
    decimals: int

    @property
    def counts(self) -> list[int] | None:
        """Rows of each class, or None unless every class prints them."""
        known = all(name in self.supports for name in self.classes)
        return [self.supports[name] for name in self.classes] if known else None

    def column(self, metric: str) -> list[Range]:
        """One metric of every class, in the order of the rows."""
        return [row[metric] for row in self.classes.values()]


def read_table(rows: Mapping[str, Any], decimals: int) -> Table:
    """Read a report of the shape that `audit.audit_report` takes.

    Raises:
        ValueError: a missing or impossible number, no class row, decimals < 1.
    """
    if decimals < 1:
        raise ValueError(f"expected decimals >= 1, found {decimals}: count them in the table.")
    accuracy = as_share(rows["accuracy"], "accuracy", decimals) if "accuracy" in rows else None
    table = Table({}, {}, accuracy, {}, decimals)
    for name, row in rows.items():
        if name == "accuracy":
            continue
        if not isinstance(row, Mapping):
            raise ValueError(f"expected row {name} as a mapping, found {row!r}: name its numbers.")
        row = {"f1-score" if key == "f1" else key: value for key, value in row.items()}
        missing = [metric for metric in METRICS if metric not in row]
        if missing:
            raise ValueError(
                f"expected {list(METRICS)} in row {name}, found no {', '.join(missing)}: "
                "copy all three numbers, or leave out the row."
            )
        values = {m: as_share(row[m], f"{short_name(m)} of {name}", decimals) for m in METRICS}
        (table.averages if name in AVERAGES else table.classes)[name] = values
        if row.get("support") is not None:
            table.supports[name] = as_count(row["support"], f"support of {name}")
    if not table.classes:
        raise ValueError(f"expected at least one class row, found {list(rows)}: add the classes.")
    if table.counts and not sum(table.counts):
        raise ValueError("expected a class with rows, found only supports of 0: check them.")
    return table


def as_share(value: Any, where: str, decimals: int) -> Range:
    """What a printed share in 0…1 may stand for; ValueError, naming `where`, for another value."""
    if not (isinstance(value, Real) and 0 <= value <= 1):  # false for NaN as well
        raise ValueError(
            f"expected {where} between 0 and 1, found {value!r}: divide percentages by 100."
        )
    value, half = round(float(value), decimals), 0.5 * 10**-decimals + HAIR
    return Range(max(0.0, value - half), value, min(1.0, value + half))


def as_count(value: Any, where: str) -> int:
    """A printed number of rows; ValueError, naming `where`, for what is none."""
    if not (isinstance(value, Real) and value >= 0 and float(value).is_integer()):
        raise ValueError(f"expected {where} as a count of rows, found {value!r}: count the rows.")
    return int(value)


def f1_range(precision: Range, recall: Range) -> Range:
    """2PR/(P+R) grows with both, so the corners of the intervals bound it."""
    ends = zip(precision, recall, strict=True)
    return Range(*(2 * p * r / (p + r) if p + r else 0.0 for p, r in ends))


def mean_range(values: Sequence[Range], weights: Sequence[int] | None = None) -> Range:
    """The mean, plain or weighted: it grows with every value, so the ends bound it."""
    weights = weights or [1] * len(values)
    columns = zip(*values, strict=True)  # all lows, all values, all highs
    # fsum: the same digits on every Python release.
    sums = (math.fsum(w * x for w, x in zip(weights, col, strict=True)) for col in columns)
    return Range(*(total / sum(weights) for total in sums))


def weighted_range(table: Table, metric: str, printed: Range) -> tuple[Range, str]:
    """The support-weighted mean and its name; without supports all that weights could make."""
    column = table.column(metric)
    if table.counts:
        return mean_range(column, table.counts), "the support-weighted mean of the classes"
    low, high = min(v.low for v in column), max(v.high for v in column)
    return Range(low, min(max(printed.value, low), high), high), "the nearest possible mean"


def divide(part: float, whole: float) -> float:
    """part / whole, and infinity for a whole of 0."""
    return part / whole if whole else math.inf


def accuracies(table: Table) -> dict[str, Range]:
    """The printed numbers that are all the accuracy when every row gets one label."""
    found = {} if table.accuracy is None else {"accuracy": table.accuracy}
    cells = [("micro avg", "recall"), ("micro avg", "precision"), ("micro avg", "f1-score")]
    cells.append(("weighted avg", "recall"))
    if table.counts and len(set(table.counts)) == 1:
        cells.append(("macro avg", "recall"))
    for name, metric in cells:
        if name in table.averages:
            found[f"{short_name(metric)} of {name}"] = table.averages[name][metric]
    return found


def short_name(metric: str) -> str:
    """A metric as people write it."""
    return "F1" if metric == "f1-score" else metric
