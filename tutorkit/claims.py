"""Claims: which of several processes does a piece of work, on machines that share a folder.

A claim is a file `<name>.<number>.json`. To claim the work `name` is to create its next number,
which a file system lets one process do only. The holder touches the file every few seconds and
writes the outcome into it at the end. A claim without an outcome that nobody has touched for
STALE_S is abandoned: anybody may create the next number. Claims are never removed, so of two that
find the same claim abandoned one gets the next number, however late the other acts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tutorkit.notebooks import write_whole

# Seconds. Far more than the minute for which a network share may show an old time.
STALE_S = 300.0
BEAT_S = 2.0


@dataclass(frozen=True)
class Claim:
    """What the last claim of a name says."""

    number: int = 0  # 0: never claimed
    outcome: str | None = None  # None: the work goes on, or the claim is abandoned
    error: str | None = None
    fresh: bool = False  # created, touched or finished less than STALE_S ago

    @property
    def held(self) -> bool:
        """Whether somebody does the work now, as far as anyone can tell."""
        return self.fresh and self.outcome is None


def newest_claims(folder: Path) -> dict[str, Claim]:
    """Name → its last claim, for all names that were ever claimed in a folder."""
    numbers: dict[str, int] = {}
    for entry in os.listdir(folder) if folder.is_dir() else []:
        if found := re.fullmatch(r"(.+)\.(\d+)\.json", entry):
            numbers[found[1]] = max(numbers.get(found[1], 0), int(found[2]))
    now = _clock(folder)
    claims = {}
    for name, number in numbers.items():
        path = folder / f"{name}.{number}.json"
        fresh = now - path.stat().st_mtime < STALE_S
        claims[name] = Claim(number, **json.loads(path.read_text("utf-8") or "{}"), fresh=fresh)
    return claims


def take(folder: Path, name: str, number: int) -> Path | None:
    """Create a claim, where `number` is one more than the last one's.

    Returns:
        Its file, or None when another process was first.
    """
    path = folder / f"{name}.{number}.json"
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return None
    return path


def take_if_free(folder: Path, name: str) -> Path | None:
    """Claim a name that nobody holds; None when somebody does."""
    last = newest_claims(folder).get(name, Claim())
    return None if last.held else take(folder, name, last.number + 1)


@contextlib.contextmanager
def hold(folder: Path, name: str) -> Iterator[None]:
    """Wait for a name and hold it, for work that is over long before STALE_S."""
    while (path := take_if_free(folder, name)) is None:
        time.sleep(0.1)
    try:
        yield
    finally:
        finish(path, "done")


def touch(path: Path) -> bool:
    """Show that the holder of a claim lives; False when another process has taken it over."""
    name, number, _ = path.name.rsplit(".", 2)
    try:
        if path.with_name(f"{name}.{int(number) + 1}.json").exists():
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:  # the share is away; when it is for long, another one takes over
        pass
    return True


def finish(path: Path, outcome: str, error: str | None = None) -> None:
    """Write the outcome of a claim, where it has none yet: the first one stays."""
    if not path.read_text("utf-8"):
        write_whole(path, json.dumps({"outcome": outcome, "error": error}))


def _clock(folder: Path) -> float:
    """The time by the clock that stamps the folder's files, which may be another machine's."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # no folder yet, or a reader without the right to write
        return time.time()
