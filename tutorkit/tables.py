"""The table of results, rendered from run records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutorkit.metrics import accuracy_interval

COLUMNS = (
    "Model",
    "Data",
    "Train / test rows",
    "Settings",
    "Test accuracy (95 % interval)",
    "Macro F1",
    "ECE",
    "Expert edits",
    "Best baseline, same test rows",
    "Trained parameters",
    "Train time",
    "Peak memory",
    "Hardware",
    "Seed",
)
# The text this kit grew from states this figure for "GPT-3" with no data, code or interval.
CLAIM = ("GPT-3: claim, not a measurement", "reviews", "—", "—", "0.835") + ("—",) * 9


def results_table(records: Sequence[dict[str, Any]]) -> str:
    """A markdown table with a row per run and per baseline, best first within each data set.

    A baseline that several runs share (same data, rows and accuracy) is shown once. The last row
    is the one number that was not measured here, and says so.

    Args:
        records: Run records, as `runs.read_record` gives them.

    Returns:
        The table; it ends with a newline.
    """
    rows, baselines = [], {}
    for record in records:
        data = record["dataset"]["name"]
        rows.append((data, -record["test"]["accuracy"], _model_row(record)))
        for name, accuracy in record["baseline"].items():
            row = _baseline_row(record, name)
            # Time, hardware and seed differ between runs of one and the same baseline.
            baselines.setdefault(row[:5], (data, -accuracy, row))
    measured = [row for _, _, row in sorted([*rows, *baselines.values()])]
    return markdown_table([COLUMNS, *measured, CLAIM])


def between_marks(text: str, name: str, content: str, where: str = "README.md") -> str:
    """`text` with `content` between the lines `<!-- name:start -->` and `<!-- name:end -->`.

    Args:
        text: a document with one such pair of marks.
        name: which pair.
        content: takes the place of what stands there now.
        where: what an error calls the document.

    Raises:
        ValueError: the marks are not there, once each and in this order.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(
            f"{where}: expected one line {start} and after it one line {end}: "
            f"put them around the place of the {name} and render it again."
        )
    return f"{text.split(start)[0]}{start}\n{content}\n{end}{text.split(end)[1]}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of a markdown table, the first row as its head; it ends with a newline."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _model_row(record: dict[str, Any]) -> tuple[str, ...]:
    model, config, test, timing = (record[k] for k in ("model", "config", "test", "timing"))
    epochs = f"{config['epochs']:g} epoch" + ("" if config["epochs"] == 1 else "s")
    short = config.get("train_max_length")  # records of before have none
    trained_at = f", {short} in training" if short else ""
    return (
        model["name"],
        *_data_cells(record),
        f"{config['max_length']} tokens ({config['truncation']}){trained_at}, {epochs}, "
        f"{config['precision']}",
        _with_interval(test["accuracy"], test["accuracy_ci95"]),
        f"{test['macro_f1']:.3f}",
        f"{test['ece']:.3f}",
        _expert_edits(record, "accuracy"),
        _best_baseline(record),
        f"{_count(model['n_trainable'])} of {_count(model['n_parameters'])}",
        _duration(timing["train_s"]),
        f"{timing['peak_rss_mb'] / 1024:.1f} GiB",
        _hardware(record["environment"]),
        str(record["seed"]),
    )


def _baseline_row(record: dict[str, Any], name: str) -> tuple[str, ...]:
    accuracy, n = record["baseline"][name], record["test"]["n"]
    return (
        f"{name} (baseline)",
        *_data_cells(record),
        "—",
        _with_interval(accuracy, accuracy_interval(round(accuracy * n), n)),
        "—",
        "—",
        _expert_edits(record, name),
        "—",
        "—",
        _duration(record["baseline_seconds"][name]),
        "—",
        _hardware(record["environment"] | {"gpu": None}),
        str(record["seed"]),
    )


def _data_cells(record: dict[str, Any]) -> tuple[str, str]:
    dataset = record["dataset"]
    return (
        f"{dataset['name']} ({dataset['source']})",
        f"{dataset['n_train']:,} / {record['test']['n']:,}",
    )


def _expert_edits(record: dict[str, Any], key: str) -> str:
    """Accuracy on reviews that experts edited until the label flips, where it was measured."""
    contrast = record["test"].get("contrast") or {}
    return f"{contrast[key]:.2f} (n = {contrast['n']})" if key in contrast else "—"


def _with_interval(accuracy: float, interval: Sequence[float]) -> str:
    return f"{accuracy:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"


def _best_baseline(record: dict[str, Any]) -> str:
    if not record["baseline"]:
        return "—"
    name = max(record["baseline"], key=record["baseline"].get)
    paired = record["paired"]
    p_value = "p < 0.001" if paired["p_value"] < 0.001 else f"p = {paired['p_value']:.3f}"
    resolved = "" if paired["resolved"] else ", not resolved"
    return (
        f"{name} {record['baseline'][name]:.3f}; "
        f"difference {paired['difference']:+.3f} ({p_value}{resolved})"
    )


def _hardware(environment: dict[str, Any]) -> str:
    cores = f"{environment['cores']} core" + ("" if environment["cores"] == 1 else "s")
    return environment["gpu"] or f"{environment['cpu']}, {cores}"


def _count(n: int) -> str:
    return f"{n / 1e6:.1f}M" if n >= 1e5 else f"{n:,}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.0f} s"
