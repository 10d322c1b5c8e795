"""Run directories, run records on disk, and the README that is rendered from them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tutorkit import runs
from tutorkit.metrics import paired_test
from tutorkit.runs import (
    compare_runs,
    find_records,
    main,
    new_run_dir,
    open_run_dir,
    read_record,
    render_readme,
    rendered_readme,
    write_record,
)

ROOT = Path(__file__).parent.parent
RECORDS = Path(__file__).parent / "assets/records"
RECORD = read_record(RECORDS / "imdb-minilm")
HISTORY = {"steps": [{"step": 1, "loss": 0.7}], "evaluations": []}


def columns(right: np.ndarray | None = None) -> dict:
    """1,000 predictions, 925 of them right where nothing else is asked for."""
    right = np.arange(1000) < 925 if right is None else right
    return {
        "id": [f"test-{i:05d}" for i in range(1000)],
        "label": np.ones(1000, dtype=np.int64),
        "prediction": right.astype(np.int64),
        "probability": np.full(1000, 0.9),
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- run directories


def test_new_run_dir_is_named_and_not_made(tmp_path: Path) -> None:
    found = new_run_dir("imdb", "owner/My Model:1", root=tmp_path)
    assert re.fullmatch(r"imdb-My-Model-1-\d{8}-\d{6}", found.name)
    assert found.parent == tmp_path and not found.exists()


def test_open_makes_the_folder(tmp_path: Path) -> None:
    assert open_run_dir(tmp_path / "runs" / "a") == tmp_path / "runs" / "a"
    assert (tmp_path / "runs" / "a").is_dir()


def test_a_finished_run_is_refused_and_kept(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD, HISTORY, columns())
    before = names(tmp_path)
    with pytest.raises(FileExistsError, match="already holds a finished run.*set overwrite=True"):
        open_run_dir(tmp_path)
    assert names(tmp_path) == before


def test_an_unfinished_run_is_taken_up(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-000010" / "model.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    (tmp_path / "notes.txt").write_text("a reader's own")
    open_run_dir(tmp_path)
    assert checkpoint.read_text() == "weights"


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD, HISTORY, columns())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    open_run_dir(tmp_path, overwrite=True)
    assert names(tmp_path) == ["notes.txt"]


def test_overwrite_follows_no_link_out_of_the_run(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("keep")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "model").symlink_to(elsewhere, target_is_directory=True)
    open_run_dir(run_dir, overwrite=True)
    assert names(run_dir) == [] and (elsewhere / "weights").read_text() == "keep"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(FileExistsError, match="does not look like a run's folder.*thesis.docx"):
        open_run_dir(tmp_path, overwrite=overwrite)
    assert names(tmp_path) == ["thesis.docx"]


def test_overwrite_spares_a_project_that_has_a_folder_called_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "setup.py").write_text("code")
    (tmp_path / "metrics.json").write_text('{"of": "something else"}')
    with pytest.raises(FileExistsError, match="does not look like a run's folder.*setup.py"):
        open_run_dir(tmp_path, overwrite=True)
    assert names(tmp_path) == ["metrics.json", "model", "setup.py"]


def test_a_file_is_no_run_dir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file: expected a folder"):
        open_run_dir(tmp_path / "file")


# --- records on disk


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", RECORD, HISTORY, columns())
    assert path == tmp_path / "run" / "metrics.json"
    assert read_record(tmp_path / "run") == RECORD
    assert json.loads((tmp_path / "run" / "history.json").read_text("utf-8")) == HISTORY
    table = pq.read_table(tmp_path / "run" / "predictions.parquet")
    assert table.column_names == ["id", "label", "prediction", "probability"]
    assert table.to_pydict()["id"] == columns()["id"]
    assert names(tmp_path / "run") == ["history.json", "metrics.json", "predictions.parquet"]


@pytest.mark.parametrize("what", ["record", "history", "predictions"])
def test_nothing_is_written_when_a_part_is_wrong(tmp_path: Path, what: str) -> None:
    parts = {"record": RECORD, "history": HISTORY, "predictions": columns()}
    parts[what] = {
        "record": RECORD | {"seed": None},
        "history": {"steps": [{"loss": float("nan")}]},
        "predictions": columns(np.ones(1000, bool)),
    }[what]
    with pytest.raises(ValueError, match="seed: expected|finite number|their accuracy is 1.0"):
        write_record(tmp_path / "run", **parts)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_old_record_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path, RECORD, HISTORY, columns())
    kept = (tmp_path / "predictions.parquet").read_bytes()

    def full_disk(table: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_record(tmp_path, RECORD | {"seed": 1}, HISTORY, columns())
    assert names(tmp_path) == ["history.json", "metrics.json", "predictions.parquet"]
    assert (tmp_path / "predictions.parquet").read_bytes() == kept
    assert read_record(tmp_path)["seed"] == 0


def test_metrics_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    replace = os.replace

    def spy(part: Path, path: Path) -> None:
        written.append(Path(path).name)
        replace(part, path)

    monkeypatch.setattr(runs.os, "replace", spy)
    write_record(tmp_path, RECORD, HISTORY, columns())
    assert written == ["history.json", "predictions.parquet", "metrics.json"]


def test_a_missing_or_damaged_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        read_record(tmp_path)
    (tmp_path / "metrics.json").write_text('{"schema_version": 1, "data')
    with pytest.raises(ValueError, match=r"metrics\.json: Unterminated string"):
        read_record(tmp_path)
    (tmp_path / "metrics.json").write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match=r"metrics\.json: run record: dataset is missing"):
        read_record(tmp_path)


def test_find_records_looks_into_every_folder(tmp_path: Path) -> None:
    assert [r["model"]["name"] for r in find_records(RECORDS)] == ["minilm", "smollm2"]
    assert find_records(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="expected one with run folders in it"):
        find_records(tmp_path / "missing")


# --- comparison


def test_compare_joins_on_id_whatever_the_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(1000)
    right_b = np.arange(1000) >= 75  # 925 right as well, but others
    in_other_order = {name: np.asarray(c)[order] for name, c in columns(right_b).items()}
    write_record(tmp_path / "a", RECORD, HISTORY, columns())
    write_record(tmp_path / "b", RECORD, HISTORY, in_other_order)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    expected = paired_test(np.arange(1000) < 925, right_b)
    assert {key: found[key] for key in expected} == expected
    assert (found["only_a"], found["only_b"]) == (75, 75)
    assert found["sentence"].startswith(
        "These 1,000 rows do not resolve whether minilm (a) or minilm (b) is more accurate"
    )


def test_compare_refuses_other_rows_and_other_labels(tmp_path: Path) -> None:
    write_record(tmp_path / "a", RECORD, HISTORY, columns())
    other_rows = columns() | {"id": [f"test-{i:05d}" for i in range(1, 1001)]}
    write_record(tmp_path / "b", RECORD, HISTORY, other_rows)
    with pytest.raises(ValueError, match="found 2 in only one of them.*'test-00000'"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    turned = columns()
    turned["label"], turned["prediction"] = 1 - turned["label"], 1 - turned["prediction"]
    write_record(tmp_path / "c", RECORD, HISTORY, turned)
    with pytest.raises(ValueError, match="disagree on the labels"):
        compare_runs(tmp_path / "a", tmp_path / "c")
    other_data = RECORD | {"dataset": RECORD["dataset"] | {"name": "rt_snippets"}}
    write_record(tmp_path / "d", other_data, HISTORY, columns())
    with pytest.raises(ValueError, match="tested on two data sets: imdb and rt_snippets"):
        compare_runs(tmp_path / "a", tmp_path / "d")


# --- the README


START, END = "<!-- results:start -->", "<!-- results:end -->"


def readme(folder: Path, text: str = f"# Kit\n\n{START}\nold\n{END}\n\nMore.\n") -> Path:
    path = folder / "README.md"
    path.write_text(text, "utf-8")
    return path


def test_render_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    path = readme(tmp_path)
    assert render_readme(path, RECORDS) is True
    text = path.read_text("utf-8")
    assert text.startswith(f"# Kit\n\n{START}\n\n| Model |")
    assert text.endswith(f"|\n\n{END}\n\nMore.\n")
    assert "old" not in text and "0.925 (0.907–0.940)" in text
    assert render_readme(path, RECORDS) is False
    assert names(tmp_path) == ["README.md"]


@pytest.mark.parametrize(
    "text", ["no marks", f"{START} only", f"{END} before {START}", f"{START}{END}{START}{END}"]
)
def test_render_wants_one_pair_of_marks(tmp_path: Path, text: str) -> None:
    path = readme(tmp_path, text)
    with pytest.raises(ValueError, match="expected one line <!-- results:start -->"):
        render_readme(path, RECORDS)
    assert path.read_text("utf-8") == text


def test_check_fails_until_rendered_and_after_a_changed_record(tmp_path: Path, capsys) -> None:
    path, records = readme(tmp_path), tmp_path / "reports"
    shutil.copytree(RECORDS, records)
    arguments = [str(path), str(records)]
    assert main(["check", *arguments]) == 1
    assert "python -m tutorkit.runs render" in capsys.readouterr().err
    assert main(["render", *arguments]) == 0
    assert main(["check", *arguments]) == 0
    shutil.rmtree(records / "rt-smollm2")
    assert main(["check", *arguments]) == 1


def test_the_command_line_exits_with_its_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tutorkit.runs", "check", str(readme(tmp_path)), str(RECORDS)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1


def test_the_readme_of_the_repository_shows_the_committed_records() -> None:
    readme_path, reports = ROOT / "README.md", ROOT / "notebooks" / "reports"
    assert find_records(reports), "notebooks/reports holds no run record"
    assert readme_path.read_text("utf-8") == rendered_readme(readme_path, reports), (
        "run python -m tutorkit.runs render README.md notebooks/reports"
    )
