"""Records of studies on disk: `runs.jsonl`, one line a run, and `about.json`, how it was made."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tutorkit import machine


@dataclass(frozen=True)
class Record:
    """A finished study."""

    lines: list[dict]  # one a run; "predictions" has a digit for each test row
    rates: list[dict]  # what was tried on validation rows before
    about: dict  # settings, environment, commit, date


def stored(name: str) -> Record:
    """A record that comes with the package, such as "transfer-rt_snippets-minilm".

    Raises:
        FileNotFoundError: there is none of that name.
    """
    shelf = resources.files("tutorkit") / "measured"
    names = sorted(each.name for each in shelf.iterdir() if each.is_dir())
    if name not in names:
        raise FileNotFoundError(f"expected a stored record among {names}, found {name!r}")
    with resources.as_file(shelf / name) as folder:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return Record(read(folder), read(folder, "rates.jsonl"), about)


def read(folder: str | Path, name: str = "runs.jsonl") -> list[dict]:
    """The lines of a record; none where there is no file yet."""
    path = Path(folder) / name
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in _whole_lines(text).splitlines()]


def complete(
    path: Path, plan: Sequence[Mapping[str, Any]], run: Callable[[dict], dict | list[dict]],
    own_process: bool,
) -> list[dict]:
    """Make the runs of a plan that have no line in the file yet, one after another.

    Args:
        path: of the lines.
        plan: what tells each run from the others; a line holds it, and what `run` found.
        run: makes one and returns what goes into its line, or several lines' worth; at the top
            level of a module where it has a process of its own.
        own_process: start a fresh process for each run, so that a run's peak memory is its own.

    Returns:
        All lines of the file.
    """
    for number, key in enumerate(plan, start=1):
        key = dict(key)
        old = read(path.parent, path.name)  # anew: another process may be at the same plan
        if any(all(line.get(k) == value for k, value in key.items()) for line in old):
            continue
        found = _in_own_process(run, key) if own_process else run(key)
        lines = [key | one for one in (found if isinstance(found, list) else [found])]
        append(path, *lines)
        for line in lines:
            shown = {k: v for k, v in line.items() if isinstance(v, (int, float)) or k in key}
            print(f"{number} of {len(plan)}: {shown}", flush=True)
    return read(path.parent, path.name)


def append(path: Path, *lines: dict) -> None:
    """Add lines; half a line that a full disk left behind goes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if (whole := _whole_lines(text)) != text:
            path.write_text(whole, encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def open_folder(folder: str | Path, settings: dict) -> None:
    """Write `about.json` into a folder, or see that it belongs to the same settings.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    path = Path(folder) / "about.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        differing = [key for key, value in settings.items() if found.get(key) != value]
        if differing:
            key = differing[0]
            raise ValueError(f"{folder} holds results of other settings ({key}: expected "
                             f"{settings[key]!r:.60}, found {found.get(key)!r:.60}): name another "
                             "folder")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"settings": settings, "environment": machine.environment(),
             "git_commit": machine.git_commit(),
             "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def numbers(text: str) -> tuple[int, ...]:
    """Of a command's argument, such as "0,1,2"."""
    return tuple(int(number) for number in text.split(","))


def digits(labels: Any) -> str:
    """Class numbers below 10 as one string, a character a row."""
    return "".join(str(int(label)) for label in labels)


def _in_own_process(run: Callable[[dict], Any], key: dict) -> Any:
    # "spawn": a forked process would begin with the memory of this one.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, key).result()


def _whole_lines(text: str) -> str:
    """What a file holds up to its last line break: a full disk leaves half a line behind it."""
    return text[: text.rfind("\n") + 1]
