"""Run the report over a grid of its parameters, on one machine or on several that share a folder.

    python -m tutorkit.sweeps run runs/rates -g learning_rate 1e-4 3e-4 -g seed 0 1 -p epochs 1 -j 2
    python -m tutorkit.sweeps run runs/rates         go on, or lend a hand from another machine
    python -m tutorkit.sweeps table runs/rates

All state is in files: `sweep.json` holds the grid, `attempts/` a claim (`tutorkit.claims`) and a
log for each try at a run, and each run has a folder with what the report leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tutorkit import claims, report
from tutorkit.notebooks import OF_A_SESSION, write_whole
from tutorkit.report import REPORT
from tutorkit.runs import open_run_dir, read_record

POLL_S = 0.5  # between two looks at the runs
GRID, ATTEMPTS = "sweep.json", "attempts"
STATES = ("done", "running", "failed", "open")
TOO_LARGE = "most often for lack of memory: try a smaller batch_size or max_length"


@dataclass(frozen=True)
class SweepRun:
    """One point of the grid and how it stands."""

    name: str  # of its folder
    parameters: dict[str, Any]  # those that vary
    run_dir: Path
    state: str  # one of STATES; open: not begun, or cut short
    error: str | None = None  # of the last try, when it failed
    attempt: int = 0  # number of the last try; 0: none

    @property
    def record(self) -> dict[str, Any] | None:
        """The content of metrics.json, when the run is done."""
        return read_record(self.run_dir) if self.state == "done" else None


def sweep(
    grid: Mapping[str, Any], folder: Path | str, fixed: Mapping[str, Any] | None = None,
    jobs: int = 1, notebook: Path | str = REPORT,
) -> list[SweepRun]:  # fmt: skip
    """Run the report once for each combination of the grid's values, and resume what was cut short.

    Call it again to go on: finished runs are skipped, one that was cut short continues from its
    checkpoint, a failed one is tried again. A failing run doesn't stop the others. Several
    machines may call it at once on one shared folder: each run is done by one of them, and the
    calls return when none is left. A grid with more values for the same parameters extends the
    sweep. Choose among the runs by their validation score (see `sweep_table`).

    Args:
        grid: Parameter of the report → list of its values.
        folder: Receives `sweep.json`, `attempts/` and a folder for each run.
        fixed: Values of parameters that all runs share.
        jobs: Runs at a time; on one GPU, 1. Where OMP_NUM_THREADS is not set, they share the cores.
        notebook: The report notebook.

    Returns:
        One entry for each combination, the last parameter varying fastest.

    Raises:
        ValueError: A name, a value or the grid is not allowed, or not the one of the sweep that
            the folder holds; nothing has started then.
        FileExistsError: The folder holds other things than a sweep.

    Example:
        >>> sweep({"learning_rate": [1e-4, 3e-4], "seed": [0, 1]}, "runs/rates", jobs=2)
    """
    folder, notebook = Path(folder), Path(notebook)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs: expected a whole number from 1, found {jobs!r}")
    grid, fixed = _checked(grid, fixed or {}, notebook)
    _store_plan(
        folder, {"schema_version": 1, "notebook": notebook.name, "grid": grid, "fixed": fixed}
    )
    _run_all(folder, fixed, jobs, notebook)
    print(sweep_progress(folder))
    found = sweep_runs(folder)
    for run in found:
        if run.state == "failed":
            print(f"failed: {run.name}: {run.error}")
    return found


def sweep_runs(folder: Path | str) -> list[SweepRun]:
    """How each run of a sweep stands, in the order of the grid.

    Raises:
        FileNotFoundError: The folder holds no sweep.
        ValueError: sweep.json is damaged.
    """
    folder, found = Path(folder), []
    grid, newest = _read_plan(folder)["grid"], claims.newest_claims(folder / ATTEMPTS)
    for point in _points(grid):
        name = run_name(point)
        run_dir, claim = folder / name, newest.get(name, claims.Claim())
        if claim.outcome == "done" and (run_dir / "metrics.json").is_file():
            state = "done"
        elif claim.outcome == "failed":
            state = "failed"
        # A network share can show that a run is done before it shows the record.
        elif claim.held or (claim.fresh and claim.outcome == "done"):
            state = "running"
        else:
            state = "open"
        found.append(SweepRun(name, point, run_dir, state, claim.error, claim.number))
    return found


def sweep_progress(folder: Path | str) -> str:
    """A line such as "4 runs: 2 done, 1 running, 0 failed, 1 open"."""
    states = [run.state for run in sweep_runs(folder)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES)
    return f"{len(states)} run{'s' * (len(states) != 1)}: {counts}"


def sweep_table(folder: Path | str) -> Any:
    """The finished runs of a sweep as a pandas table, in the order of the grid.

    Choose by the validation column. To choose by the test column is to fit the test rows: the
    score that comes out is too good, and no rows are left to show by how much.

    Returns:
        Indexed by run folder: the parameters that vary, validation_accuracy, test_accuracy with
        its 95 % interval test_low … test_high on test_n rows, train_s (seconds), peak_rss_mb
        (MiB), and the dataset where it does not vary.

    Raises:
        FileNotFoundError: The folder holds no sweep.
        ValueError: sweep.json or a run record is damaged.
    """
    import pandas as pd

    rows = {}
    for run in sweep_runs(folder):
        if record := run.record:
            test = record["test"]
            low, high = test["accuracy_ci95"]
            scores = {"validation_accuracy": record["validation"]["accuracy"],
                      "test_accuracy": test["accuracy"], "test_low": low, "test_high": high,
                      "test_n": test["n"]}  # fmt: skip
            cost = {name: record["timing"][name] for name in ("train_s", "peak_rss_mb")}
            # "auto" may have found one data set here and another on the next machine.
            rows[run.name] = {**run.parameters, **scores, **cost}
            rows[run.name].setdefault("dataset", record["dataset"]["name"])
    return pd.DataFrame(list(rows.values()), pd.Index(list(rows), name="run"))


def run_name(parameters: Mapping[str, Any]) -> str:
    """The folder name of a combination, such as `learning_rate=0.0001,seed=1`.

    It depends on the names and values alone. A name that can't be a file's as it is, or would look
    like another one there, is shortened and gets some digits of its hash.
    """
    texts = []
    for value in parameters.values():
        # Some file systems take "A" and "a" for one name; the text "1" is not the number 1.
        plain = isinstance(value, str) and re.fullmatch(r"[a-z0-9._+-]*[a-z0-9]", value)
        texts.append(value if plain and report.parse_value(value) == value else repr(value))
    exact = ",".join(f"{name}={text}" for name, text in zip(parameters, texts, strict=True))
    safe = re.sub(r"[^a-zA-Z0-9_=,.+-]+", "-", exact)[:150]
    digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
    return exact if safe == exact else f"{safe}-{digest}".replace("=-", "=").replace("--", "-")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 1 when a run failed or the grid was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tutorkit.sweeps", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("-g", nargs="+", action="append", default=[], dest="grid",
                        metavar=("NAME", "VALUE"), help="a parameter and its values")  # fmt: skip
    parser.add_argument("-p", nargs=2, action="append", default=[], dest="fixed",
                        metavar=("NAME", "VALUE"), help="a value for all runs")  # fmt: skip
    parser.add_argument("-j", type=int, default=1, dest="jobs", help="runs at a time")
    parser.add_argument("--notebook", type=Path, default=REPORT, help="default: lesson 05")
    chosen = parser.parse_args(arguments)
    grid = {name: [report.parse_value(text) for text in texts] for name, *texts in chosen.grid}
    fixed = {name: report.parse_value(text) for name, text in chosen.fixed}
    try:
        if chosen.command == "table":
            print(sweep_table(chosen.folder).to_string(), sweep_progress(chosen.folder), sep="\n")
            return 0
        if len(grid) < len(chosen.grid) or len(fixed) < len(chosen.fixed):
            raise ValueError("a parameter is given twice: give each once, with all its values")
        if not grid and not fixed:
            plan = _read_plan(chosen.folder)
            grid, fixed = plan["grid"], plan["fixed"]
        found = sweep(grid, chosen.folder, fixed, chosen.jobs, chosen.notebook)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return int(any(run.state == "failed" for run in found))


def _checked(
    grid: Mapping[str, Any], fixed: Mapping[str, Any], notebook: Path
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Grid and fixed values as plain Python has them, after every combination was looked at."""
    from tutorkit.parameters import ReportParameters  # brings torch, which one run can do without

    if not grid:
        raise ValueError("grid: expected at least one parameter with its values, found none")
    defaults = report.parameter_defaults(notebook)
    report.check_names([*grid, *fixed], list(defaults))
    for name in [*grid, *fixed]:
        if name in ("run_dir", "overwrite"):
            raise ValueError(f"{name} is the sweep's own: each run gets a new folder. Leave it out")
        if name in grid and name in fixed:
            raise ValueError(f"{name}: expected in grid or in fixed, found in both")
    lists = {}
    for name, values in grid.items():
        if isinstance(values, str) or not hasattr(values, "__len__") or not len(values):
            raise ValueError(f"{name}: expected a list of one or more values, found {values!r}")
        lists[name] = [_plain(name, value) for value in values]
        for value in lists[name]:
            if lists[name].count(value) > 1:
                raise ValueError(f"{name}: {value!r} stands in the grid twice: name it once")
    fixed = {name: _plain(name, value) for name, value in fixed.items()}
    known = {field.name for field in fields(ReportParameters)} & set(defaults)
    for point in _points(lists):
        values = defaults | fixed | point
        try:
            ReportParameters(**{name: values[name] for name in known})
        except ValueError as error:
            raise ValueError(f"{error} (in {run_name(point)})") from error
    return lists, fixed


def _plain(name: str, value: Any) -> Any:
    """A value as JSON and papermill take it."""
    value = value.item() if isinstance(value, np.generic) else value
    number = isinstance(value, int | float)  # True and False are numbers to Python
    if not (value is None or isinstance(value, str) or (number and math.isfinite(value))):
        raise ValueError(f"{name}: expected a number, a text, True, False or None, found {value!r}")
    return value


def _points(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _store_plan(folder: Path, wanted: dict[str, Any]) -> None:
    """Write sweep.json, or hold the wanted plan against it and extend it."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: expected a folder. Name another one.")
    visible = [path.name for path in folder.glob("[!.]*") if path.name != ATTEMPTS]
    if visible and GRID not in visible:
        raise FileExistsError(
            f"{folder} does not hold a sweep ({GRID}) but {min(visible)!r}: nothing was touched. "
            "Name a new folder, such as runs/my-sweep."
        )
    if visible and _extended(folder, wanted) == _read_plan(folder):
        return
    (folder / ATTEMPTS).mkdir(parents=True, exist_ok=True)
    with claims.hold(folder / ATTEMPTS, "sweep"):  # another machine may be about the same
        plan = _extended(folder, wanted) if (folder / GRID).exists() else wanted
        write_whole(folder / GRID, json.dumps(plan, indent=1))


def _extended(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The stored plan with the values that the wanted one adds to it."""
    stored = _read_plan(folder)
    old, new = stored["grid"], wanted["grid"]
    pairs = [(what, stored[what], wanted[what]) for what in ("notebook", "fixed")]
    pairs.append(("a grid over", sorted(old), sorted(new)))
    pairs += [(f"{n} in", old[n], [v for v in old[n] if v in new.get(n, [])]) for n in old]
    for what, expected, found in pairs:
        if expected != found:
            raise ValueError(
                f"{folder} holds another sweep: expected {what} {expected}, found {found}. Give "
                f"what stands in {GRID}, with new values for the same parameters if you like, or "
                "name another folder; nothing was changed"
            )
    return stored | {"grid": {n: old[n] + [v for v in new[n] if v not in old[n]] for n in old}}


def _read_plan(folder: Path) -> dict[str, Any]:
    path = folder / GRID
    if not path.is_file():
        raise FileNotFoundError(f"no sweep in {folder}: expected {path}, which `sweep` writes.")
    try:
        plan = json.loads(path.read_text("utf-8"))
        if plan["schema_version"] == 1 and plan["notebook"] and all(plan["grid"].values()):
            return plan | {"fixed": dict(plan["fixed"])}
        found = "another version or an empty list"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"{path} is damaged ({found}): expected schema_version 1, notebook, grid and fixed. "
        "Restore it, or call sweep with a new folder."
    )


def _run_all(folder: Path, fixed: dict[str, Any], jobs: int, notebook: Path) -> None:
    """Claim and run what is open, `jobs` at a time, until every run is done or has failed."""
    before = {run.name: run.attempt for run in sweep_runs(folder)}
    active: dict[Path, tuple[SweepRun, psutil.Popen]] = {}  # by claim
    told = False
    try:
        while True:
            for claim in [claim for claim in active if active[claim][1].poll() is not None]:
                _say_end(claim, *active.pop(claim))
            found = sweep_runs(folder) if len(active) < jobs else []
            # One that failed since the call began is not tried again in this call.
            ready = [run for run in found if run.state == "open" or (
                run.state == "failed" and run.attempt == before.get(run.name))]  # fmt: skip
            for run in ready[: jobs - len(active)]:
                if claim := claims.take(folder / ATTEMPTS, run.name, run.attempt + 1):
                    active[claim] = run, _start(run, claim, fixed, jobs, notebook)
            if not active and not ready:
                waiting = sum(run.state == "running" for run in found)
                if not waiting:
                    return
                if not told:
                    print(f"waiting for {waiting} of another call; Ctrl-C leaves them alone")
                told = True
            time.sleep(POLL_S)
    finally:
        for claim, (run, process) in active.items():
            _kill(process, itself=True)
            claims.finish(claim, "stopped")
            print(f"{run.name}: stopped; call sweep again to go on")


def _start(
    run: SweepRun, claim: Path, fixed: dict[str, Any], jobs: int, notebook: Path
) -> psutil.Popen:
    """Start a process that does a run (`_one_run`)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_SESSION}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // jobs)))
    order = {"claim": str(claim), "run_dir": str(run.run_dir), "notebook": str(notebook),
             "parameters": fixed | run.parameters, "caller": os.getpid()}  # fmt: skip
    with open(claim.with_suffix(".log"), "wb") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "tutorkit.sweeps", "--one-run", json.dumps(order)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,  # the terminal's Ctrl-C is for the calling process
        )  # fmt: skip
    print(f"{run.name}: started; its progress: {report.relative(Path(log.name))}", flush=True)
    return process


def _say_end(claim: Path, run: SweepRun, process: psutil.Popen) -> None:
    """Print how a run of this call ended; a process that died could not write that itself."""
    claims.finish(claim, "failed", f"the run's process died (exit status {process.returncode}), "
                  f"{TOO_LARGE}; its last words: {ATTEMPTS}/{claim.stem}.log")  # fmt: skip
    last = claims.newest_claims(claim.parent)[run.name]
    said = f"{last.outcome}: {last.error}" if last.error else last.outcome
    if last.number > run.attempt + 1:
        said = "taken over by another call"
    elif last.outcome == "done":
        said += f", validation accuracy {read_record(run.run_dir)['validation']['accuracy']:.3f}"
    print(f"{run.name}: {said}", flush=True)


def _kill(process: psutil.Process, itself: bool) -> None:
    """Kill what a run has started and wait: nobody writes into its folder after this."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = process.children(recursive=True)
        # The run's own process first, or it would say that the notebook's has died.
        doomed = [process, *below] if itself else below
        for one in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(doomed, timeout=20)


def _one_run(order: dict[str, Any]) -> None:
    """Do one run, and write into its claim how it went."""
    claim, ending = Path(order["claim"]), threading.Lock()
    threading.Thread(target=_watch, args=(claim, order["caller"], ending), daemon=True).start()
    error = _execute(order["parameters"], Path(order["run_dir"]), Path(order["notebook"]))
    ending.acquire()  # and never given back: the thread must not end the run a second time
    claims.finish(claim, "failed" if error else "done", error)


def _watch(claim: Path, caller: int, ending: threading.Lock) -> None:
    """Touch the claim; end the run when the caller is gone or another process took it over."""
    # Windows keeps the number of a parent that is gone: there the run goes on to its end.
    while os.getppid() == caller and claims.touch(claim):
        time.sleep(claims.BEAT_S)
    ending.acquire()
    try:
        _kill(psutil.Process(), itself=False)
        claims.finish(claim, "stopped")
    finally:
        os._exit(1)


def _execute(parameters: dict[str, Any], run_dir: Path, notebook: Path) -> str | None:
    """Run the report, or only make its page where the record is whole; returns what failed."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    from tutorkit.html import write_html

    executed = run_dir / "report.ipynb"
    # As seen from the sweep's folder, which another machine may have in another place.
    partial = f"the notebook up to there: {run_dir.name}/{executed.name}"
    recorded = (run_dir / "metrics.json").is_file()
    try:
        if recorded:
            write_html(executed, executed.with_suffix(".html"))
        else:
            report.run(parameters, open_run_dir(run_dir), notebook)
        read_record(run_dir)
    except papermill.PapermillExecutionError as failure:
        return f"{failure.ename}: {failure.evalue}; {partial}"
    except DeadKernelError:
        return f"the notebook's process died, {TOO_LARGE}; {partial}"
    except Exception as failure:
        hint = f"; {run_dir.name} is damaged: delete that folder to run it again" * recorded
        return f"{type(failure).__name__}: {failure}{hint}"
    return None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-run"]:
        _one_run(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
