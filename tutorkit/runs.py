"""The run record: what a report run leaves behind, and the table that is rendered from it.

python -m tutorkit.runs render README.md notebooks/reports
python -m tutorkit.runs check README.md notebooks/reports
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from tutorkit.metrics import compare_sentence, paired_test
from tutorkit.records import PREDICTION_COLUMNS, check_predictions, check_record, strict_json
from tutorkit.tables import between_marks, results_table

# All that a run writes into its folder; nothing else there is ever removed.
RUN_FILES = (
    "metrics.json",
    "history.json",
    "predictions.parquet",
    "report.ipynb",
    "report.html",
    "model",
    "checkpoints",
)


def new_run_dir(dataset: str, model: str, root: Path | str = "runs") -> Path:
    """A name for a new run: `runs/<dataset>-<model>-<YYYYmmdd-HHMMSS>`; nothing is created."""
    # A model can be a hub id ("owner/name") or a local folder: keep the last part.
    short = [re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.") for name in (dataset, model)]
    return Path(root) / f"{short[0]}-{short[1]}-{datetime.now():%Y%m%d-%H%M%S}"


def open_run_dir(run_dir: Path | str, overwrite: bool = False) -> Path:
    """Create `run_dir`, or take up the run in it that was cut short.

    Args:
        run_dir: Folder of one run.
        overwrite: Remove what an earlier run left in it and start anew. Files which a run does
            not write are left alone.

    Returns:
        The folder, which exists.

    Raises:
        FileExistsError: It holds a finished run (and `overwrite` is not set), or it is a file, or
            a folder with other things in it than a run's.
    """
    run_dir = Path(run_dir)
    if run_dir.exists() and not run_dir.is_dir():
        raise FileExistsError(f"run_dir {run_dir} is a file: expected a folder. Name another one.")
    found = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    if found and not _looks_like_run(run_dir, found, surely=overwrite):
        other = min(found - set(RUN_FILES))
        raise FileExistsError(
            f"run_dir {run_dir} does not look like a run's folder (it holds {other!r}): "
            "nothing was touched. Name a new folder, such as runs/my-run."
        )
    if "metrics.json" in found and not overwrite:
        raise FileExistsError(
            f"run_dir {run_dir} already holds a finished run (metrics.json): "
            "name another folder, or set overwrite=True to replace that run."
        )
    if overwrite:
        # metrics.json goes first: a folder without it counts as unfinished, never as finished.
        for name in RUN_FILES:
            path = run_dir / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def write_record(
    run_dir: Path | str, record: dict[str, Any], history: dict[str, Any], predictions: dict
) -> Path:
    """Write metrics.json, history.json and predictions.parquet, all or nothing of each.

    Each file is written beside its place and renamed, so that a crash or a full disk leaves no
    half file; metrics.json comes last, so that a folder which has it has the whole record.

    Args:
        run_dir: Folder of the run; created where needed.
        record: As `check_record` wants it.
        history: {"steps": [...], "evaluations": [...]}.
        predictions: Columns id, label, prediction, probability, one entry per test row.

    Returns:
        Path of metrics.json.

    Raises:
        ValueError: The record, the history or the predictions break the contract; nothing is
            written then.
        OSError: It could not be written (a full disk, say).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_record(record)
    check_predictions(predictions, record)
    metrics_text, history_text = strict_json(record), strict_json(history)
    table = pa.table({name: np.asarray(predictions[name]) for name in PREDICTION_COLUMNS})

    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    _replace(run_dir / "history.json", lambda part: part.write_text(history_text, "utf-8"))
    _replace(run_dir / "predictions.parquet", lambda part: pq.write_table(table, part))
    _replace(run_dir / "metrics.json", lambda part: part.write_text(metrics_text, "utf-8"))
    return run_dir / "metrics.json"


def read_record(run_dir: Path | str) -> dict[str, Any]:
    """Read and check the metrics.json of a run.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged or breaks the contract.
    """
    path = Path(run_dir) / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no finished run in {run_dir}: expected {path}. Run it to its end."
        )
    try:
        record = json.loads(path.read_text("utf-8"))
        check_record(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return record


def find_records(folder: Path | str) -> list[dict[str, Any]]:
    """All run records under `folder`, in the order of their paths.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A record is damaged.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {folder}: expected one with run folders in it.")
    return [read_record(path.parent) for path in sorted(Path(folder).rglob("metrics.json"))]


def compare_runs(run_dir_a: Path | str, run_dir_b: Path | str) -> dict[str, Any]:
    """Compare two runs on the test rows they share, which have to be all rows of both.

    Returns:
        What `paired_test` returns, with name_a, name_b and the sentence that says it in words.

    Raises:
        FileNotFoundError: A run is not finished.
        ValueError: The runs were not tested on the same rows.
    """
    import pyarrow.parquet as pq

    names, datasets, columns = [], [], []
    for run_dir in (Path(run_dir_a), Path(run_dir_b)):
        record = read_record(run_dir)
        names.append(f"{record['model']['name']} ({run_dir.name})")
        datasets.append(record["dataset"]["name"])
        rows = pq.read_table(run_dir / "predictions.parquet").sort_by("id").to_pydict()
        columns.append({name: np.asarray(values) for name, values in rows.items()})
    if datasets[0] != datasets[1]:
        raise ValueError(
            f"the runs were tested on two data sets: {datasets[0]} and {datasets[1]}. "
            "Compare runs of one."
        )
    a, b = columns
    only = set(a["id"].tolist()) ^ set(b["id"].tolist())
    if only:
        raise ValueError(
            f"expected the same test rows in both runs, found {len(only)} in only one of them "
            f"(such as {min(only)!r}): run both with the same dataset, test_size and seed."
        )
    if (a["label"] != b["label"]).any():
        raise ValueError(
            "the runs disagree on the labels of their test rows: "
            "the same ids come from two versions of the data. Run one of them again."
        )
    result = paired_test(a["prediction"] == a["label"], b["prediction"] == b["label"])
    return result | {
        "name_a": names[0],
        "name_b": names[1],
        "sentence": compare_sentence(names[0], names[1], result),
    }


def sweep(
    grid: Mapping[str, Any], folder: Path | str, fixed: Mapping[str, Any] | None = None,
    jobs: int = 1, notebook: Path | str | None = None,
) -> list[Any]:  # fmt: skip
    """Run the report over a grid of its parameters: see `tutorkit.sweeps.sweep`."""
    from tutorkit import sweeps  # it imports this file

    return sweeps.sweep(grid, folder, fixed, jobs, notebook or sweeps.REPORT)


def rendered_readme(readme_path: Path | str, records_folder: Path | str) -> str:
    """The README with the text between its two result marks made anew from the records.

    Raises:
        FileNotFoundError: The README or the folder is missing.
        ValueError: The README has not exactly one pair of marks, or a record is damaged.
    """
    table = results_table(find_records(records_folder))
    text = Path(readme_path).read_text("utf-8")
    return between_marks(text, "results", f"\n{table}", where=str(readme_path))


def render_readme(readme_path: Path | str, records_folder: Path | str) -> bool:
    """Write `rendered_readme` to the README; says whether that changed it."""
    text = rendered_readme(readme_path, records_folder)
    changed = text != Path(readme_path).read_text("utf-8")
    if changed:
        _replace(Path(readme_path), lambda part: part.write_text(text, "utf-8"))
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """`render` writes the results into the README; `check` exits 1 when they are out of date."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.runs", description=main.__doc__)
    parser.add_argument("command", choices=("render", "check"))
    parser.add_argument("readme", type=Path)
    parser.add_argument("records", type=Path, help="folder with run folders")
    chosen = parser.parse_args(arguments)
    if chosen.command == "render":
        changed = render_readme(chosen.readme, chosen.records)
        print(f"{chosen.readme}: {'rendered' if changed else 'already up to date'}")
        return 0
    if rendered_readme(chosen.readme, chosen.records) == chosen.readme.read_text("utf-8"):
        return 0
    print(
        f"{chosen.readme} does not show the records in {chosen.records}: "
        f"run python -m tutorkit.runs render {chosen.readme} {chosen.records}",
        file=sys.stderr,
    )
    return 1


def _looks_like_run(run_dir: Path, found: set[str], surely: bool) -> bool:
    """Whether a folder is a run's; `surely` before anything in it is removed."""
    # Editors and file managers leave hidden files; an interrupted write leaves a .part.
    visible = {name for name in found if not name.startswith(".") and not name.endswith(".part")}
    if visible <= set(RUN_FILES):
        return True
    try:
        return "schema_version" in json.loads((run_dir / "metrics.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return not surely and not visible.isdisjoint(RUN_FILES)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside `path`, then rename it there in one step."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
