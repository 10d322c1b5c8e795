"""What `make test` does with the lessons: compare each, and look at its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lessons
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output


def notebook(folder: Path, shown: str) -> str:
    """A notebook that prints a variable of its environment, with `shown` stored as its output."""
    source = "import os\nprint(os.environ.get('TUTORKIT_DATA'), os.environ['HF_HUB_OFFLINE'])"
    outputs = [new_output("stream", name="stdout", text=shown)]
    cell = new_code_cell(source, execution_count=1, outputs=outputs)
    path = folder / "01_small.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)
    return str(path)


def test_equal_outputs_pass_and_time_and_memory_are_told(tmp_path: Path) -> None:
    # As a command: a child of this process would begin with its peak memory, see `yardsticks`.
    command = [sys.executable, lessons.__file__, notebook(tmp_path, "None 1\n")]
    environment = {**os.environ, "TUTORKIT_DATA": "somewhere"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    line = done.stdout.strip().split("\n")[-1]
    assert line.startswith("  01_small: ") and " GiB" in line
    peak = float(line.split("peak ")[1].split()[0])
    assert 0.02 < peak < 1  # a kernel without torch


@pytest.mark.parametrize(
    ("shown", "most", "word"), [("other\n", 1.8, "FAILED"), ("None 1\n", 0.01, "MORE THAN 0.01")]
)
def test_another_output_or_too_much_memory_fails(
    shown: str,
    most: float,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lessons, "MOST_GIB", most)
    assert lessons.main([notebook(tmp_path, shown)]) == 1
    assert word in capfd.readouterr().out.strip().split("\n")[-1]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where --record writes to; the yardsticks are made up: twice as slow on one thread."""
    path = tmp_path / "times.json"
    monkeypatch.setattr(lessons.lesson_times, "RECORD", path)
    monkeypatch.setattr(lessons.lesson_times, "hardware", lambda: {"cpu": "made up"})

    def yardsticks(changes: dict[str, str]) -> dict[str, float]:
        return {"step_s": 0.4 if changes else 0.2, "plain_s": 0.05}

    monkeypatch.setattr(lessons, "yardsticks", yardsticks)
    return path


def test_times_are_recorded_when_asked_for(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    took = iter([(0, 30.0, 0.5), (0, 42.0, 0.5)])
    threads = []

    def run(path: Path, runs: str, changes: dict[str, str] | None = None) -> tuple:
        threads.append((changes or {}).get("OMP_NUM_THREADS"))
        return next(took)

    monkeypatch.setattr(lessons, "run", run)
    assert lessons.main(["--record", "notebooks/01_small.ipynb"]) == 0
    assert threads == [None, "1"]
    assert capfd.readouterr().out.strip().split("\n")[-1] == "recorded: 01_small"
    record = json.loads(recorded.read_text(encoding="utf-8"))
    assert record["step_s"] == 0.2
    # 12 s longer where a step takes twice as long: 12 s of training.
    assert record["lessons"] == {
        "01_small": {"seconds": 30.0, "peak_gib": 0.5, "training_s": 12.0}
    }


def test_where_nothing_can_be_told_no_lesson_is_run(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lessons, "yardsticks", lambda changes: {"step_s": 0.2, "plain_s": 0.05})
    assert lessons.main(["--record", "notebooks/01_small.ipynb"]) == 1
    assert "record on a quiet machine" in capfd.readouterr().err
    assert not recorded.exists()


def test_a_failed_lesson_is_not_recorded(
    recorded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lessons.main(["--record", notebook(tmp_path, "other\n")]) == 1
    assert capfd.readouterr().out.strip().split("\n")[-1] == "nothing recorded"
    assert not recorded.exists()


def counting(folder: Path, shown: str) -> str:
    """A notebook that prints the threads it was given, with `shown` stored as its output."""
    folder.mkdir(exist_ok=True)
    path = notebook(folder, shown)
    stored = nbformat.read(path, as_version=4)
    stored.cells[0].source = "import os\nprint(os.environ.get('OMP_NUM_THREADS'))"
    nbformat.write(stored, path)
    return path


def test_a_lesson_runs_on_one_thread_when_told(tmp_path: Path) -> None:
    code, _, _ = lessons.run(Path(counting(tmp_path, "1\n")), str(tmp_path), lessons.threads(1))
    assert code == 0


def test_two_lessons_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lessons.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(lessons, "MOST_GIB", 100)  # what this process took counts in its children
    paths = [counting(tmp_path / name, shown) for name, shown in (("a", "3\n"), ("b", "6\n"))]
    assert lessons.main(paths) == 1
    head, right, wrong = capfd.readouterr().out.strip().split("\n")[-3:]
    assert head.endswith("2 at a time:")
    assert "FAILED" not in right and wrong.endswith("FAILED")
