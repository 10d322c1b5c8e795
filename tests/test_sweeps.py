"""Sweeps: a small notebook in the report's place, killed and shared, and the report itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tutorkit import claims, report, runs, sweeps
from tutorkit.sweeps import run_name, sweep, sweep_progress, sweep_runs, sweep_table

RECORD = Path(__file__).parent / "assets/records/imdb-minilm/metrics.json"
PARAMETERS = """\
dataset = "reviews"  # name of a data set
model = "tiny"  # name of a model
learning_rate = 1e-4  # step size
epochs = 1  # passes
seed = 0  # of the random numbers
run_dir = None  # folder
overwrite = False  # replace a finished run
"""
# It hangs where a file "hang" stands, and fails at a high rate until a file "repaired" stands.
WORK = f"""\
import json, os, pathlib, shutil, time
folder, here = pathlib.Path(run_dir), pathlib.Path()
with open("begun.txt", "a") as file:
    file.write(folder.name + "\\n")
checkpoints = folder / "checkpoints"
resumed = checkpoints.exists()
checkpoints.mkdir(exist_ok=True)
if (here / "hang").exists():
    (here / "hangs").touch()
    time.sleep(500)
if learning_rate > 0.5 and not (here / "repaired").exists():
    raise ValueError("the loss is not a number")
record = json.loads(pathlib.Path({str(RECORD)!r}).read_text())
record["seed"] = seed
record["validation"]["accuracy"] = 0.9 + seed / 100
record["training"]["resumed_from_step"] = 10 if resumed else None
record["threads"] = os.environ["OMP_NUM_THREADS"]
(folder / "metrics.json").write_text(json.dumps(record))
shutil.rmtree(checkpoints)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook with a report's parameters that trains nothing, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sweeps, "POLL_S", 0.1)
    cells = [
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(WORK),
    ]
    kernel = {"name": "python3", "display_name": "P", "language": "python"}
    path = tmp_path / "stand_in.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def begun() -> list[str]:
    """The folder names of all runs that began, in order."""
    return Path("begun.txt").read_text().split() if Path("begun.txt").exists() else []


def states(folder: Path | str = "out") -> list[str]:
    return [run.state for run in sweep_runs(folder)]


def until(true: Callable[[], object], seconds: float = 60) -> None:
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, "it did not happen in time"
        time.sleep(0.1)


def command(stand_in: Path, *grid: str) -> list[str]:
    words = [sys.executable, "-m", "tutorkit.sweeps", "run", "out", "--notebook", str(stand_in)]
    return words + [word for values in grid for word in ("-g", *values.split())]


@contextlib.contextmanager
def hanging_caller(stand_in: Path) -> Iterator[tuple[psutil.Popen, psutil.Process, psutil.Process]]:
    """A process that sweeps over one run, which hangs; the run's process and the notebook's."""
    Path("hang").touch()
    Path("hangs").unlink(missing_ok=True)
    # Without the checks, which import torch: that would take most of the time here.
    program = """if True:
        import sys
        from tutorkit import sweeps
        sweeps._checked = lambda grid, fixed, notebook: (grid, fixed)
        sys.exit(sweeps.main())
    """
    words = [sys.executable, "-c", program, *command(stand_in, "seed 1")[3:]]
    with psutil.Popen(words, stdout=subprocess.PIPE, text=True) as caller:
        try:
            until(Path("hangs").exists)
            (run,) = caller.children()
            (kernel,) = run.children()
            yield caller, run, kernel
        finally:
            Path("hang").unlink()
            if caller.poll() is None:
                caller.kill()


def make_old(attempt: Path) -> None:
    """As if the process that holds this claim had been gone for ten minutes."""
    past = time.time() - 600
    os.utime(attempt, (past, past))


# --- names and values


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"learning_rate": 1e-4, "seed": 1}, "learning_rate=0.0001,seed=1"),
        ({"learning_rate": 2e-5}, "learning_rate=2e-05"),
        ({"truncation": "head+tail", "train_size": None}, "truncation=head+tail,train_size=None"),
        ({"model": "owner/My Model"}, "model=owner-My-Model-2d242057"),
        ({"model": "../../x"}, "model=..-..-x-fef8457e"),
        ({"freeze": "2"}, "freeze=2-19bc271a"),
        ({"freeze": 2}, "freeze=2"),
    ],
)
def test_run_names_are_readable_and_safe(parameters: dict, name: str) -> None:
    assert run_name(parameters) == name


def test_different_values_never_share_a_name() -> None:
    values = ["a", "A", "a/b", "a-b", "a:b", "1", 1, "None", None, "true", True]
    values += ["x" * 300, "x" * 301]
    names = [run_name({"model": value}).lower() for value in values]
    assert len(set(names)) == len(values)
    long = run_name({f"parameter_{i}": 0.123456789 for i in range(20)})
    assert len(long) < 200 and long != run_name({f"parameter_{i}": 0.12345678 for i in range(20)})


@pytest.mark.parametrize(
    ("grid", "fixed", "message"),
    [
        ({}, {}, "grid: expected at least one parameter with its values, found none"),
        ({"learningrate": [1e-4]}, {}, "no parameter learningrate. Did you mean learning_rate"),
        ({"seed": [0]}, {"epoch": 1}, "no parameter epoch. Did you mean epochs"),
        ({"learning_rate": [1e-4, 7]}, {}, r"learning_rate: .*found 7 \(in learning_rate=7\)"),
        ({"seed": [0]}, {"epochs": 0}, "epochs: expected a whole number from 1, found 0"),
        ({"seed": []}, {}, r"seed: expected a list of one or more values, found \[\]"),
        ({"seed": [0, 1, 0]}, {}, "seed: 0 stands in the grid twice"),
        ({"learning_rate": [1, 1.0]}, {}, "learning_rate: 1 stands in the grid twice"),
        ({"model": "tiny"}, {}, "model: expected a list of one or more values, found 'tiny'"),
        ({"seed": 3}, {}, "seed: expected a list of one or more values, found 3"),
        ({"seed": [[0, 1]]}, {}, r"seed: expected a number, a text, .*found \[0, 1\]"),
        ({"learning_rate": [float("nan")]}, {}, "learning_rate: expected a number.*found nan"),
        ({"run_dir": ["a"]}, {}, "run_dir is the sweep's own"),
        ({"seed": [0]}, {"overwrite": True}, "overwrite is the sweep's own"),
        ({"seed": [0]}, {"seed": 0}, "seed: expected in grid or in fixed, found in both"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_starts(
    grid: dict, fixed: dict, message: str, stand_in: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(grid, "out", fixed, notebook=stand_in)
    assert not Path("out").exists()


@pytest.mark.parametrize("jobs", [0, True])
def test_the_number_of_jobs_is_checked(jobs: int, stand_in: Path) -> None:
    with pytest.raises(ValueError, match="jobs: expected a whole number from 1, found"):
        sweep({"seed": [0]}, "out", jobs=jobs, notebook=stand_in)


def test_a_folder_with_other_things_is_refused_and_kept(stand_in: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.docx").write_text("years of work")
    with pytest.raises(FileExistsError, match="does not hold a sweep .*thesis.docx.*Name a new"):
        sweep({"seed": [0]}, "mine", notebook=stand_in)
    with pytest.raises(FileExistsError, match="is a file: expected a folder"):
        sweep({"seed": [0]}, stand_in, notebook=stand_in)
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.docx"]


def test_a_folder_without_a_sweep_and_a_damaged_one_are_said(stand_in: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no sweep in out: expected .*sweep.json"):
        sweep_table("out")
    Path("out").mkdir()
    Path("out/sweep.json").write_text('{"schema_version": 1, "grid": ')
    for call in (sweep_progress, lambda folder: sweep({"seed": [0]}, folder, notebook=stand_in)):
        with pytest.raises(ValueError, match="sweep.json is damaged .*expected schema_version 1"):
            call("out")
    assert [path.name for path in Path("out").iterdir()] == ["sweep.json"]


# --- a whole sweep


def test_a_sweep_runs_each_once_and_extends(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    grid = {"learning_rate": np.array([3e-4, 1e-4]), "seed": range(1)}
    found = runs.sweep(grid, "out", {"epochs": 2}, jobs=2, notebook=stand_in)
    names = ["learning_rate=0.0003,seed=0", "learning_rate=0.0001,seed=0"]
    assert [run.name for run in found] == names and sorted(begun()) == sorted(names)
    assert found[1].parameters == {"learning_rate": 1e-4, "seed": 0}
    for run in found:
        assert run.state == "done" and run.record == runs.read_record(Path("out", run.name))
        assert run.record["threads"] == "3"
        assert {path.name for path in run.run_dir.iterdir()} == {
            "metrics.json", "report.ipynb", "report.html"}  # fmt: skip
    ran = nbformat.read(Path("out", names[1], "report.ipynb"), 4).metadata.papermill.parameters
    assert ran == {"learning_rate": 1e-4, "seed": 0, "epochs": 2, "run_dir": f"out/{names[1]}"}
    shown = capsys.readouterr().out
    assert shown.count("done, validation accuracy 0.9") == 2
    assert shown.endswith("2 runs: 2 done, 0 running, 0 failed, 0 open\n")

    # The same grid does nothing, a larger one only what is new, another one nothing at all.
    assert sweep(grid, "out", {"epochs": 2}, notebook=stand_in) == found
    assert len(begun()) == 2
    larger = {"seed": [1, 0], "learning_rate": [1e-4, 3e-4]}
    more = sweep(larger, "out", {"epochs": 2}, jobs=2, notebook=stand_in)
    assert sorted(begun()[2:]) == ["learning_rate=0.0001,seed=1", "learning_rate=0.0003,seed=1"]
    assert [run.parameters["seed"] for run in more] == [0, 1, 0, 1]
    assert [run.record["seed"] for run in more] == [0, 1, 0, 1]
    for other, fixed, message in [
        ({"learning_rate": [1e-4], "seed": [0, 1, 2]}, {"epochs": 2},
         r"learning_rate in \[0.0003, 0.0001\], found \[0.0001\]"),
        ({"seed": [0, 1, 2]}, {"epochs": 2},
         r"a grid over \['learning_rate', 'seed'\], found \['seed'\]"),
        (grid, {"epochs": 3}, r"fixed \{'epochs': 2\}, found \{'epochs': 3\}"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="holds another sweep: expected " + message):
            sweep(other, "out", fixed, notebook=stand_in)
    copy = Path("another.ipynb")
    shutil.copy(stand_in, copy)
    with pytest.raises(ValueError, match="expected notebook stand_in.ipynb, found another.ipynb"):
        sweep(grid, "out", {"epochs": 2}, notebook=copy)
    assert states() == ["done"] * 4 and len(begun()) == 4

    table = sweep_table("out")
    assert list(table.index) == [run.name for run in more]
    assert list(table.columns) == [
        "learning_rate", "seed", "validation_accuracy", "test_accuracy", "test_low", "test_high",
        "test_n", "train_s", "peak_rss_mb", "dataset"]  # fmt: skip
    record = json.loads(RECORD.read_text())
    assert table["validation_accuracy"].tolist() == [0.9, 0.91, 0.9, 0.91]
    assert table.loc[names[0], "test_accuracy":"dataset"].tolist() == [
        record["test"]["accuracy"], *record["test"]["accuracy_ci95"], record["test"]["n"],
        record["timing"]["train_s"], record["timing"]["peak_rss_mb"], "imdb"]  # fmt: skip

    # Two were cut off after their record: one gets its page, the other's notebook is damaged.
    for run in (more[0], more[1]):
        (run.run_dir / "report.html").unlink()
        claim = Path(f"out/attempts/{run.name}.1.json")
        claim.write_text("")
        make_old(claim)
    (more[1].run_dir / "report.ipynb").write_text("{")
    assert states() == ["open", "open", "done", "done"]
    again = sweep(larger, "out", {"epochs": 2}, jobs=2, notebook=stand_in)
    assert [run.state for run in again] == ["done", "failed", "done", "done"] and len(begun()) == 4
    assert again[0].record == more[0].record and (again[0].run_dir / "report.html").exists()
    assert "delete that folder to run it again" in again[1].error


def test_a_failing_run_stops_no_other_and_the_next_call_tries_it_again(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["run", "out", "--notebook", str(stand_in)]
    assert sweeps.main([*start, "-g", "learning_rate", "0.9", "1e-4", "-p", "model", "tiny"]) == 1
    found = sweep_runs("out")
    assert [run.state for run in found] == ["failed", "done"]
    assert found[0].record is None and found[0].error == (
        "ValueError: the loss is not a number; "
        "the notebook up to there: learning_rate=0.9/report.ipynb"
    )
    assert "the loss is not a number" in Path("out/learning_rate=0.9/report.ipynb").read_text()
    shown = capsys.readouterr().out
    assert "2 runs: 1 done, 0 running, 1 failed, 0 open\nfailed: learning_rate=0.9: Val" in shown
    assert begun() == ["learning_rate=0.9", "learning_rate=0.0001"]
    assert list(sweep_table("out").index) == ["learning_rate=0.0001"]

    Path("repaired").touch()
    assert sweeps.main(start) == 0  # the grid is the stored one
    assert states() == ["done", "done"]
    assert begun() == ["learning_rate=0.9", "learning_rate=0.0001", "learning_rate=0.9"]
    capsys.readouterr()
    assert sweeps.main(["table", "out"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:2] == ["learning_rate", "validation_accuracy"]
    assert shown[-1] == "2 runs: 2 done, 0 running, 0 failed, 0 open"
    assert sweeps.main([*start, "-g", "seed", "1", "-g", "seed", "2"]) == 1
    assert "given twice" in capsys.readouterr().err
    assert sweeps.main(["table", "nowhere"]) == 1
    assert "no sweep in nowhere" in capsys.readouterr().err


# --- several callers on one folder


def test_two_callers_at_once_do_every_run_once(stand_in: Path) -> None:
    words = command(stand_in, "seed 1 2 3")
    callers = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    shown = [process.communicate(timeout=240)[0] for process in callers]
    assert [process.returncode for process in callers] == [0, 0], shown
    assert len(begun()) == len(set(begun())) == 3
    assert states() == ["done"] * 3
    for text in shown:  # both did some, and both stayed until all was done
        assert 1 <= text.count(": started;") <= 2, shown
        assert text.endswith("3 runs: 3 done, 0 running, 0 failed, 0 open\n")


def plan(grid: dict) -> dict:
    return {"schema_version": 1, "notebook": "stand_in.ipynb", "grid": grid, "fixed": {}}


def test_two_that_extend_a_sweep_at_once_lose_no_value(stand_in: Path) -> None:
    sweeps._store_plan(Path("out"), plan({"seed": [0]}))
    refused = []

    def extend(n: int) -> None:
        try:
            sweeps._store_plan(Path("out"), plan({"seed": [0, n]}))
        except ValueError as error:  # who comes later lacks the value of the first
            refused.append(str(error))

    threads = [threading.Thread(target=extend, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = json.loads(Path("out/sweep.json").read_text())["grid"]["seed"]
    assert stored[0] == 0 and len(stored) == 2
    assert len(refused) == 7 and all("expected seed in" in text for text in refused)


def test_another_machine_sees_the_same_state(stand_in: Path) -> None:
    grid = {"learning_rate": [1e-4, 0.9], "seed": [1, 2]}
    sweeps._store_plan(Path("out"), plan(grid))
    attempts = Path("out/attempts")
    Path("out/learning_rate=0.0001,seed=1").mkdir()
    shutil.copy(RECORD, "out/learning_rate=0.0001,seed=1")
    claims.finish(claims.take(attempts, "learning_rate=0.0001,seed=1", 1), "done")
    claims.finish(claims.take(attempts, "learning_rate=0.9,seed=1", 1), "failed", "ValueError: no")
    running = claims.take(attempts, "learning_rate=0.0001,seed=2", 1)
    here = sweep_runs("out")
    assert [run.state for run in here] == ["done", "running", "failed", "open"]
    shutil.copytree("out", "elsewhere/shared")  # times of files are kept
    there = sweep_runs("elsewhere/shared")
    for a, b in zip(here, there, strict=True):
        assert (a.name, a.state, a.record, a.error) == (b.name, b.state, b.record, b.error)
        assert b.run_dir == Path("elsewhere/shared", b.name)
    assert sweep_table("out").equals(sweep_table("elsewhere/shared"))
    line = "4 runs: 1 done, 1 running, 1 failed, 1 open"
    assert sweep_progress("out") == sweep_progress("elsewhere/shared") == line
    # What ended elsewhere a moment ago, and whose record the share does not show yet.
    claims.finish(running, "done")
    assert states()[1] == "running"
    make_old(running)
    assert states()[1] == "open"  # somebody removed the folder


# --- cut short


def test_whatever_is_killed_the_run_goes_on_from_its_checkpoint(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hanging_caller(stand_in) as (caller, run, kernel):  # the run's process dies
        run.kill()
        shown = caller.communicate(timeout=60)[0]
        assert caller.returncode == 1
        assert "seed=1: failed: the run's process died (exit status -9), most often for" in shown
    until(lambda: not kernel.is_running())
    assert states() == ["failed"]

    with hanging_caller(stand_in) as (caller, run, kernel):  # Ctrl-C
        caller.send_signal(signal.SIGINT)
        assert caller.wait(timeout=60) == 130
        assert not run.is_running() and not kernel.is_running()
    assert states() == ["open"] and sweep_progress("out").endswith("1 open")

    with hanging_caller(stand_in) as (caller, run, kernel):  # killed, and its run lives
        caller.kill()
        caller.wait()
        until(lambda: not run.is_running() and not kernel.is_running())
    assert states() == ["open"]

    with hanging_caller(stand_in) as (caller, run, kernel):  # the whole machine dies
        caller.suspend()  # so that it can't say that its run is dead
        run.kill()
        caller.kill()
        caller.wait()
        assert states() == ["running"]  # as far as anyone can tell
    until(lambda: not kernel.is_running())
    threading.Timer(1.5, make_old, [Path("out/attempts/seed=1.4.json")]).start()
    (found,) = sweep({"seed": [1]}, "out", notebook=stand_in)
    assert found.record["training"]["resumed_from_step"] == 10 and found.attempt == 5
    assert "waiting for 1 of another call" in capsys.readouterr().out


def test_a_machine_that_slept_stops_when_its_run_was_taken_over(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("hang").touch()

    def another_machine() -> None:
        until(Path("hangs").exists)
        # Tests before this one may have left a helper of `multiprocessing` among the children.
        (run,) = (child for child in psutil.Process().children()
                  if "tutorkit.sweeps" in child.cmdline())  # fmt: skip
        (kernel,) = run.children()
        claim = claims.take(Path("out/attempts"), "seed=1", 2)
        until(lambda: not kernel.is_running())
        Path("hang").unlink()
        claims.finish(claim, "stopped")

    other = threading.Thread(target=another_machine)
    other.start()
    (found,) = sweep({"seed": [1]}, "out", notebook=stand_in)
    other.join()
    assert "seed=1: taken over by another call" in capsys.readouterr().out
    assert found.attempt == 3 and found.record["training"]["resumed_from_step"] == 10


# --- the report itself


def test_two_reports_at_once_score_as_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fixed = {"dataset": "reviews", "model": "tiny", "epochs": 1, "train_size": 64,
             "validation_size": 40, "test_size": 40}  # fmt: skip
    found = sweep({"learning_rate": [1e-3, 1e-2]}, "out", fixed, jobs=2)
    assert [run.state for run in found] == ["done", "done"], [run.error for run in found]
    for run in found:
        names = {path.name for path in run.run_dir.iterdir()}
        assert names == set(runs.RUN_FILES) - {"checkpoints"}
        assert run.record["config"]["learning_rate"] == run.parameters["learning_rate"]
    alone = report.run(fixed | found[1].parameters, tmp_path / "alone")
    for score in ("accuracy", "accuracy_ci95", "macro_f1"):
        assert found[1].record["test"][score] == alone["test"][score]
    assert found[1].record["validation"]["accuracy"] == alone["validation"]["accuracy"]
    table = sweep_table("out")
    assert table["test_accuracy"].tolist() == [run.record["test"]["accuracy"] for run in found]
    assert (table["peak_rss_mb"] > 50).all() and table["dataset"].tolist() == ["reviews"] * 2
