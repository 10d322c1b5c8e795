"""Run strict nbval on notebooks, one process each, and say what each took in time and memory.

    python tests/lessons.py notebooks/*.ipynb

Exits with 1 if an output differs, or if a lesson's kernel came to use more memory than Binder has
for it. Times depend on what else the machine does and are only told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tutorkit.notebooks import RUNS_PREFIX, reader_environment

MOST_GIB = 1.8  # Binder gives 2 GB, of which the server takes some
NBVAL = [
    *("-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=600", "-q"),
    *("-p", "no:cacheprovider"),
    # The project's own settings are for its tests.
    *("--override-ini", "addopts=", "--override-ini", "filterwarnings="),
    *("--override-ini", "timeout=0"),
]


def run(notebook: Path, runs: str) -> tuple[int, float, float | None]:
    """Compare one notebook.

    Args:
        notebook: the `.ipynb` file.
        runs: folder for what a report writes.

    Returns:
        The exit status, seconds, and the peak memory in GiB of its largest process, which is the
        kernel; None where the system does not tell.
    """
    environment = reader_environment(runs)  # the stored outputs are such a reader's
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *NBVAL, str(notebook)], env=environment)
    if not hasattr(os, "wait4"):  # Windows
        return process.wait(), time.perf_counter() - start, None
    # The usage of a process counts in the children that it waited for.
    _, status, usage = os.wait4(process.pid, 0)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB on Linux
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code  # or Popen would wait for it again
    return code, time.perf_counter() - start, usage.ru_maxrss / unit


def main(paths: list[str]) -> int:
    """Run all; returns the exit status."""
    lines, failed = [], False
    with tempfile.TemporaryDirectory(prefix=RUNS_PREFIX) as runs:
        for path in map(Path, paths):
            code, seconds, peak = run(path, runs)
            wrong = [] if code == 0 else ["FAILED"]
            if peak is not None and peak > MOST_GIB:
                wrong.append(f"MORE THAN {MOST_GIB} GiB")
            memory = "" if peak is None else f", peak {peak:.2f} GiB"
            lines.append(f"  {path.stem}: {seconds:.0f} s{memory}{''.join(f' {w}' for w in wrong)}")
            failed |= bool(wrong)
    print("\n".join(["lessons, each in a process of its own:", *lines]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
