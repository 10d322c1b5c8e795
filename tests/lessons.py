"""Run strict nbval on notebooks, one process each, and say what each took in time and memory.

    python tests/lessons.py notebooks/*.ipynb
    python tests/lessons.py --record notebooks/*.ipynb

Exits with 1 if an output differs, or if a lesson's kernel came to use more memory than Binder has
for it. Times depend on what else the machine does and are only told. With --record they are kept,
as the ones that lesson 00 scales to a reader's machine: run that where nothing else runs. It runs
each lesson a second time on one thread, which tells how much of it is training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tutorkit import lesson_times
from tutorkit.notebooks import RUNS_PREFIX, reader_environment

MOST_GIB = 1.8  # Binder gives 2 GB, of which the server takes some
NBVAL = [
    *("-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=600", "-q"),
    *("-p", "no:cacheprovider"),
    # The project's own settings are for its tests.
    *("--override-ini", "addopts=", "--override-ini", "filterwarnings="),
    *("--override-ini", "timeout=0"),
]


TOGETHER = 2  # lessons at a time, where there are as many cores


def threads(number: int) -> dict[str, str]:
    """The environment that gives a process so many threads to compute with."""
    return {"OMP_NUM_THREADS": str(number), "MKL_NUM_THREADS": str(number)}


def run(
    notebook: Path, runs: str, changes: dict[str, str] | None = None
) -> tuple[int, float, float | None]:
    """Compare one notebook.

    Args:
        notebook: the `.ipynb` file.
        runs: folder for what a report writes.
        changes: environment variables of the kernel, beside a reader's.

    Returns:
        The exit status, seconds, and the peak memory in GiB of its largest process, which is the
        kernel; None where the system does not tell.
    """
    # The stored outputs are such a reader's.
    environment = reader_environment(runs) | (changes or {})
    start = time.perf_counter()
    command = [sys.executable, *NBVAL, str(notebook)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        peak = None
        if hasattr(os, "wait4"):  # not on Windows
            # The usage of a process counts in the children that it waited for.
            _, status, usage = os.wait4(process.pid, 0)
            unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB on Linux
            process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait again
            peak = usage.ru_maxrss / unit
        code, seconds = process.wait(), time.perf_counter() - start
        said.seek(0)
        print(said.read(), end="", flush=True)  # in one piece: two lessons may run
    return code, seconds, peak


def yardsticks(changes: dict[str, str]) -> dict[str, float]:
    """This machine's yardsticks, measured in a process of their own.

    Here PyTorch would stay loaded, and Linux counts a parent's memory as a child's.
    """
    command = [sys.executable, "-m", lesson_times.__name__]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **changes}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def record(found: dict[str, dict], one_thread: dict[str, float], before: dict, single: dict) -> str:
    """Write the record of the lessons; returns a line that says so.

    Args:
        found: lesson to `seconds` and `peak_gib`.
        one_thread: lesson to its seconds on one thread.
        before: the yardsticks, measured before the lessons ran.
        single: the same on one thread.

    Raises:
        ValueError: a training step is hardly slower on one thread.
    """
    after = yardsticks({})
    here = {name: min(before[name], after[name]) for name in before}
    for name, lesson in found.items():
        training = lesson_times.training_part(
            lesson["seconds"], one_thread[name], here["step_s"], single["step_s"]
        )
        lesson["training_s"] = round(training, 1)
    kept = lesson_times.write_record(here, found, lesson_times.RECORD)
    also = f"; recorded earlier: {', '.join(kept)}" if kept else ""
    return f"recorded: {', '.join(found)}{also}"


def main(arguments: list[str]) -> int:
    """Run all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the times for lesson 00")
    parser.add_argument("paths", nargs="+", type=Path)
    wanted = parser.parse_args(arguments)
    lines, failed, found, one_thread = [], False, {}, {}
    if wanted.record:
        before, single = yardsticks({}), yardsticks(threads(1))
        try:  # before the long part
            lesson_times.training_part(0.0, 0.0, before["step_s"], single["step_s"])
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
    with tempfile.TemporaryDirectory(prefix=RUNS_PREFIX) as runs:
        cores = os.cpu_count() or 1
        together = 1 if wanted.record or cores < TOGETHER else TOGETHER
        share = {} if together == 1 else threads(cores // together)
        # Leaving the block waits for all: what --record times next has the machine to itself.
        with ThreadPoolExecutor(together) as pool:
            results = pool.map(partial(run, runs=runs, changes=share), wanted.paths)
        for path, (code, seconds, peak) in zip(wanted.paths, results, strict=True):
            wrong = [] if code == 0 else ["FAILED"]
            if peak is not None and peak > MOST_GIB:
                wrong.append(f"MORE THAN {MOST_GIB} GiB")
            memory = "" if peak is None else f", peak {peak:.2f} GiB"
            found[path.stem] = {"seconds": round(seconds, 1), "peak_gib": peak and round(peak, 2)}
            if wanted.record:
                code, one_thread[path.stem], _ = run(path, runs, threads(1))
                wrong += ["FAILED ON ONE THREAD"] if code else []
            lines.append(f"  {path.stem}: {seconds:.0f} s{memory}{''.join(f' {w}' for w in wrong)}")
            failed |= bool(wrong)
    if wanted.record:
        lines.append("nothing recorded" if failed else record(found, one_thread, before, single))
    at_a_time = f", {together} at a time" if together > 1 else ""
    print("\n".join([f"lessons, each in a process of its own{at_a_time}:", *lines]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
