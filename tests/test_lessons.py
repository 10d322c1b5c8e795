"""What `make test` does with the lessons: compare each, and look at its memory."""

from __future__ import annotations

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


def test_equal_outputs_pass_and_time_and_memory_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUTORKIT_DATA", "somewhere")
    assert lessons.main([notebook(tmp_path, "None 1\n")]) == 0
    line = capfd.readouterr().out.strip().split("\n")[-1]
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
