"""The environment as a run record keeps it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tutorkit import machine
from tutorkit.machine import environment, git_commit

ROOT = Path(__file__).parent.parent


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_environment_is_json_and_says_what_it_ran_on() -> None:
    found = environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["scikit-learn"] == version("scikit-learn")
    assert found["versions"]["tutorkit"]
    assert found["cores"] >= 1 and found["memory_gb"] > 0.1 and found["cpu"]


def test_environment_does_not_name_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "grandmas-laptop")
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-grandmas-laptop")
    text = json.dumps(environment())
    assert "grandma" not in text
    assert "6.1.0" in text


def test_peak_memory_is_that_of_this_process_and_stays_when_memory_is_freed() -> None:
    held_here = np.ones(2**26)  # 512 MiB of the parent, none of the child's business
    code = (
        "import numpy as np; from tutorkit.machine import peak_rss_mb as peak; "
        "before = peak(); held = np.ones(2**24); del held; print(before, peak())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    before, after = (float(value) for value in done.stdout.split())
    assert held_here[-1] == 1
    assert 5 < before < 400
    assert 120 < after - before < 160  # 2**24 float64 are 128 MiB


def test_git_commit(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("1")
    assert git_commit(tmp_path) is None  # outside git
    git(tmp_path, "init")
    git(tmp_path, "add", "code.py")
    assert git_commit(tmp_path) is None  # no commit yet
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "notes.txt").write_text("untracked files are not the code")
    assert git_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("2")
    assert git_commit(tmp_path) == f"{commit}+changes"


def test_an_installed_copy_does_not_take_the_commit_around_it(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    installed = tmp_path / ".venv" / "tutorkit"
    installed.mkdir(parents=True)
    (installed / "machine.py").write_text("1")
    assert git_commit(installed) is None


def test_no_git_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_free_memory_is_part_of_all_memory() -> None:
    assert 0.01 < machine.free_memory_gb() < environment()["memory_gb"]


def test_the_speed_of_products_is_that_of_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    # Start and end of each product (the first only prepares), and the clock of the whole between.
    ticks = iter([0, 9, 10, 11, 13, 13, 14, 14.5, 14.5, 15, 17, 20])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    found = machine.matmul_gflops("fp32", size=100, seconds=8, device="cpu")
    assert found == pytest.approx(2 * 100**3 / 0.5 / 1e9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_speed_of_products_is_measured(precision: str) -> None:
    assert 0 < machine.matmul_gflops(precision, size=64, seconds=0.01) < 1e6


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision: expected one of \('fp32', .*found 'int8'"):
        machine.matmul_gflops("int8")
