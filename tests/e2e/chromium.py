"""Find Chromium, and with --install get it from the system's packages where that is possible.

    python tests/e2e/chromium.py --install

Prints the program's path; where there is none, prints why and exits with 3.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-dejavu-core")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NOT_THERE = 3  # the exit status; another one than 0 is a mistake in this file
TIME_LIMIT = 300  # seconds for apt-get, which a network that hangs would otherwise hold for ever
NO_PLAYWRIGHT = 'the Python package playwright is missing: pip install ".[test]"'
WANTED = (
    f"no Chromium: none of {', '.join(NAMES)} runs; install one, on Debian with "
    f"`apt-get install {' '.join(PACKAGES)}`"
)


class NoChromium(Exception):
    """The browser tests can't run; the message says what is missing."""


@functools.cache
def works(program: str) -> bool:
    """Whether the program starts: Ubuntu's may be a script that only names a snap to install."""
    try:
        finished = subprocess.run([program, "--version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return finished.returncode == 0


def find() -> str:
    """The path of Chromium.

    Raises:
        NoChromium: if there is none, or Playwright, which drives it, is missing.
    """
    if importlib.util.find_spec("playwright") is None:
        raise NoChromium(NO_PLAYWRIGHT)
    for name in NAMES:
        program = shutil.which(name)
        if program and works(program):
            return program
    raise NoChromium(WANTED)


def install() -> None:
    """Install Chromium with apt-get.

    Raises:
        NoChromium: if that can't be done here, or fails.
    """
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NoChromium(f"{WANTED} (this command does so only as root and with apt-get)")
    print("Installing Chromium for the browser tests, once.", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    steps = [["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]]
    for step in steps:
        try:
            finished = subprocess.run(
                ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", *step],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
            )
        except subprocess.TimeoutExpired:
            raise NoChromium(
                f"no Chromium: apt-get {step[0]} had not ended after {TIME_LIMIT} s"
            ) from None
        if finished.returncode:
            lines = (finished.stderr or finished.stdout).strip().splitlines() or ["no message"]
            raise NoChromium(f"no Chromium: apt-get {step[0]} failed: {lines[-1]}")
    works.cache_clear()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", action="store_true", help="get it with apt-get if missing")
    wanted = parser.parse_args(arguments)
    try:
        try:
            print(find())
        except NoChromium:
            if not wanted.install or importlib.util.find_spec("playwright") is None:
                raise
            install()
            print(find())
    except NoChromium as reason:
        print(reason)
        return NOT_THERE
    return 0


if __name__ == "__main__":
    sys.exit(main())
