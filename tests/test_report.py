"""The report command, with a small notebook in the report's place and with the report itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tutorkit import report
from tutorkit.sources import load_splits

PARAMETERS = """\
dataset: str = "auto"  # name of a data set
model: str = "minilm"  # name of a model
test_size = None  # rows; None = all
learning_rate: float = 2e-5  # step size
run_dir: str = "runs/stand-in"  # folder
overwrite: bool = False  # replace a finished run
"""
WORK = """\
import json, pathlib, sys
if learning_rate < 0:
    raise ValueError("learning_rate should be above 0")
print("epoch 1: loss 0.5", flush=True)
metrics = {
    "dataset": {"name": "reviews"}, "model": {"name": model},
    "baseline": {"TF-IDF": 0.79, "majority": 0.5},
    "test": {"n": 2000, "accuracy": 0.8579, "accuracy_ci95": [0.842, 0.873]},
    "python": sys.executable, "folder": run_dir, "size": test_size, "cwd": str(pathlib.Path.cwd()),
}
pathlib.Path(run_dir, "metrics.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook with a report's parameters that trains nothing, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# A report"),
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            new_markdown_cell("## 1. Choose the model\n\nThe loss is $L = -\\log p_y$."),
            new_code_cell("print('first')"),
            new_code_cell("print('second')"),
            new_markdown_cell("## 2. Train"),
            new_code_cell(WORK),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}},
    )
    path = tmp_path / "stand_in.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("12", 12),
        ("1e-4", 1e-4),
        ("[1, 2]", [1, 2]),
        ("'12'", "12"),
        ("imdb", "imdb"),
        ("head+tail", "head+tail"),
        ("gpt2/x", "gpt2/x"),
    ],
)
def test_values_are_read_as_python_or_as_text(text: str, value: object) -> None:
    assert report.parse_value(text) == value
    assert type(report.parse_value(text)) is type(value)


def test_a_run_leaves_record_notebook_and_page_and_one_line(
    stand_in: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = stand_in.parent / "out"
    arguments = ["-p", "model", "tiny", "-p", "test_size", "5", "-o", str(run_dir)]
    assert report.main(arguments, stand_in) == 0
    shown = capfd.readouterr()
    lines = shown.out.splitlines()
    assert [line[9:] for line in lines[:-1]] == [
        "1. Choose the model",
        "first",
        "second",
        "2. Train",
        "epoch 1: loss 0.5",
    ]
    assert lines[-1] == (
        "reviews · tiny: accuracy 0.858 (0.842–0.873) on 2,000 test rows, TF-IDF 0.790; "
        f"report: {Path('out', 'report.html')}"
    )
    assert shown.err == ""
    record = json.loads((run_dir / "metrics.json").read_text())
    assert Path(record["python"]).samefile(sys.executable)
    assert Path(record["cwd"]).samefile(stand_in.parent)
    assert (record["folder"], record["size"]) == ("out", 5)
    executed = nbformat.read(run_dir / "report.ipynb", 4)
    assert str(stand_in.parent) not in json.dumps(executed.metadata)


SLOW_LAST_ANSWER = """\
import time
kernel = get_ipython().kernel
answer = kernel.shell_handlers["kernel_info_request"]

async def slow(*message):
    await answer(*message)
    time.sleep(0.1)

kernel.shell_handlers["kernel_info_request"] = slow
"""


def test_the_interrupt_that_ends_a_kernel_waits_for_its_last_answer(
    stand_in: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notebook = nbformat.read(stand_in, 4)
    notebook.cells.append(new_code_cell(SLOW_LAST_ANSWER))
    nbformat.write(notebook, stand_in)
    assert report.main(["-o", "out"], stand_in) == 0
    assert capfd.readouterr().err == ""


def test_another_kernel_named_python3_is_not_taken(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = stand_in.parent / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    spec.joinpath("kernel.json").write_text(
        json.dumps({"argv": ["/no/such/python"], "display_name": "other", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(spec.parents[1]))
    assert report.main(["-o", "out"], stand_in) == 0


def test_an_error_in_the_notebook_is_said_plainly_and_the_notebook_kept(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["-p", "learning_rate", "-1", "-o", "out"], stand_in) == 1
    shown = capsys.readouterr().err
    assert "ValueError: learning_rate should be above 0" in shown
    assert "Traceback" not in shown
    assert str(Path("out", "report.ipynb")) in shown
    assert "first" in Path("out", "report.ipynb").read_text()


def test_an_unknown_parameter_fails_before_any_work(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["-p", "learningrate", "1", "-o", "out"], stand_in) == 1
    shown = capsys.readouterr().err
    assert "no parameter learningrate. Did you mean learning_rate?" in shown
    assert "Its parameters are: dataset, model, test_size, learning_rate" in shown
    assert not Path("out").exists()


def test_a_finished_run_is_kept_unless_told_to_overwrite(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = stand_in.parent / "out"
    run_dir.mkdir()
    (run_dir / "metrics.json").write_text("{}")
    assert report.main(["-o", "out"], stand_in) == 1
    assert "already holds a finished run" in capsys.readouterr().err
    assert report.main(["-p", "run_dir", "out"], stand_in) == 1
    assert (run_dir / "metrics.json").read_text() == "{}"
    assert report.main(["-o", "out", "--overwrite"], stand_in) == 0
    assert json.loads((run_dir / "metrics.json").read_text())["folder"] == "out"


def test_a_run_without_a_name_goes_to_a_new_folder_in_runs(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ROOT", stand_in.parent)
    assert report.main(["-p", "model", "org/tiny"], stand_in) == 0
    (made,) = (stand_in.parent / "runs").iterdir()
    assert made.name.startswith("auto-tiny-")
    assert {path.name for path in made.iterdir()} == {
        "metrics.json",
        "report.ipynb",
        "report.html",
    }


def test_a_dead_kernel_is_said_plainly(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = nbformat.read(stand_in, 4)
    notebook.cells.append(new_code_cell("import os\nos._exit(9)"))
    nbformat.write(notebook, stand_in)
    assert report.main(["-o", "out"], stand_in) == 1
    assert "process died" in capsys.readouterr().err


SMALL = {
    "dataset": "reviews",
    "model": "tiny",
    "epochs": "1",
    "train_size": "64",
}


def small_arguments(run_dir: Path) -> list[str]:
    pairs = {**SMALL, "run_dir": str(run_dir)}
    return [word for name, value in pairs.items() for word in ("-p", name, value)]


@pytest.mark.parametrize("shown", [True, False])
def test_the_report_runs_with_small_parameters(
    shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    hide = [] if shown else ["-p", "show_texts", "False"]
    assert report.main([*small_arguments(run_dir), *hide]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("reviews · tiny: accuracy ")
    for name in ("metrics.json", "history.json", "predictions.parquet", "report.ipynb"):
        assert (run_dir / name).stat().st_size > 0
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("data:image/png;base64,") >= 4
    # Up to the first apostrophe or the like, which the page spells in its own way.
    texts = load_splits("reviews")["test"]["text"]
    beginnings = [re.split("[^ A-Za-z,.]", text)[0][:60] for text in texts]
    assert any(len(b) > 30 and b in page for b in beginnings) == shown


def test_papermill_can_list_every_parameter() -> None:
    listed = papermill.inspect_notebook(str(report.REPORT))
    assert list(listed) == list(report.parameter_defaults(report.REPORT)), (
        "papermill passes over a parameter whose comment holds a `=`"
    )
    assert all(parameter["help"] for parameter in listed.values())


def test_plain_papermill_refuses_an_unknown_parameter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papermill", str(report.REPORT), str(tmp_path / "out.ipynb")]
    finished = subprocess.run(
        [*command, *small_arguments(tmp_path / "run"), "-p", "learningrate", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"},
        cwd=tmp_path,
    )
    assert finished.returncode != 0
    assert "learningrate" in finished.stderr.split("Exception encountered")[-1]
    assert not (tmp_path / "run" / "metrics.json").exists()
