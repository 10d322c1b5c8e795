"""What a run ran on: the environment, the commit, the peak memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tutorkit import __version__

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy", "scikit-learn")
# Names by which Linux lists the CPU's bfloat16 instructions (x86, then ARM).
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def environment() -> dict[str, Any]:
    """The hardware and software of this process, as a run record keeps them.

    Nothing in it names the machine or its owner.

    Returns:
        python, platform, cpu (model), cores (which this process may use), memory_gb, gpu (name
        or None), cpu_bf16 (list of the CPU's bfloat16 instruction sets), gpu_bf16 (bool),
        versions {package: version or None}, load_average (1, 5, 15 minutes; None where unknown).
    """
    import psutil

    gpu, gpu_bf16 = _gpu()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {_leading_number(platform.release())} "
        f"{platform.machine()}",
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
        "cpu_bf16": [flag for flag in BF16_FLAGS if flag in _cpu_flags()],
        "gpu_bf16": gpu_bf16,
        "versions": {"tutorkit": __version__} | {name: _version(name) for name in PACKAGES},
        "load_average": [round(x, 2) for x in os.getloadavg()]
        if hasattr(os, "getloadavg")
        else None,
    }


def git_commit(folder: Path | str | None = None) -> str | None:
    """Short hash of the commit this code is at, with "+changes" when tracked files differ.

    Args:
        folder: A folder of the repository; the package's own when None.

    Returns:
        Such as "1a2b3c4" or "1a2b3c4+changes"; None where the folder is not under git's care
        (an installed copy, a downloaded archive) or has no commit yet.
    """
    folder = Path(__file__).parent if folder is None else Path(folder)
    # A virtual environment inside somebody's repository is not that repository's code.
    if not _git(folder, "ls-files", "."):
        return None
    commit = _git(folder, "rev-parse", "--short", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit + ("+changes" if changed else "")


def peak_rss_mb() -> float:
    """The most main memory this process has held at once since it started, in MiB."""
    # Linux's own high-water mark; getrusage counts a parent's memory too, from before the exec.
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text() if status.exists() else "", re.M)
    if found:
        return int(found.group(1)) / 2**10
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, the other systems in KiB.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def free_memory_gb() -> float:
    """Main memory that a program could take now without pushing another one out, in GiB."""
    import psutil

    return psutil.virtual_memory().available / 2**30


def matmul_gflops(
    precision: str = "fp32", size: int = 1024, seconds: float = 0.3, device: str = "auto"
) -> float:
    """How fast this machine multiplies matrices, in 10⁹ additions and multiplications a second.

    The fastest of several products counts: what else the machine does can only slow one down.

    Args:
        precision: number format, one of "fp32", "bf16", "fp16".
        size: rows and columns of both matrices; their product takes 2·size³ operations.
        seconds: how long to go on.
        device: where, as for `precision.choose_device`.

    Raises:
        ValueError: an unknown precision or a device that is not here.
    """
    import torch

    from tutorkit.precision import DTYPES, choose_device

    if precision not in DTYPES:
        raise ValueError(f"precision: expected one of {tuple(DTYPES)}, found {precision!r}")
    on = choose_device(device)
    a, b = (torch.ones(size, size, dtype=DTYPES[precision], device=on) for _ in range(2))

    def product() -> float:
        start = time.perf_counter()
        found = a @ b
        found[0, 0].item()  # a GPU answers before it is done; to read a number is to wait for it
        return time.perf_counter() - start

    product()  # the first one prepares
    begun, fastest = time.perf_counter(), product()
    while time.perf_counter() - begun < seconds:
        fastest = min(fastest, product())
    return 2 * size**3 / fastest / 1e9


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None when it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _gpu() -> tuple[str | None, bool]:
    """Name of the first GPU (with their number when there are several), and whether it has bf16."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        name = torch.cuda.get_device_name(0)
        return (f"{count} x {name}" if count > 1 else name), torch.cuda.is_bf16_supported()
    if torch.backends.mps.is_available():
        return "Apple GPU (MPS)", False
    return None, False


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _cpu_model() -> str:
    if sys.platform == "darwin":
        named = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        )
        return named.stdout.strip() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def _cores() -> int:
    """Cores this process may use; a container or a job limit can allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _leading_number(release: str) -> str:
    """`6.1.0` of `6.1.0-18-amd64`: what follows can name the machine's owner."""
    found = re.match(r"[\d.]+", release)
    return found.group(0) if found else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
