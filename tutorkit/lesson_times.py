"""How long each lesson takes: measured on one machine, scaled to another.

`lesson_times.json` holds the seconds and the memory of each lesson on a reference machine, and two
short measurements of that machine, the yardsticks:

    step_s     one training step of `minilm`: matrix products, on a GPU where there is one
    plain_s    a loop in plain Python: what importing, drawing and preparing texts depend on

A lesson's seconds are split into training, which the first yardstick scales, and the rest, which
the second one does. `python tests/lessons.py --record notebooks/*.ipynb` writes the file;

    python -m tutorkit.lesson_times

prints this machine's yardsticks.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

RECORD = Path(__file__).with_name("lesson_times.json")
YARDSTICKS = ("step_s", "plain_s")
OF_A_LESSON = ("seconds", "training_s", "peak_gib")


def step_seconds(loaded: Any, steps: int = 8, batch_size: int = 16, max_length: int = 64) -> float:
    """Seconds of one training step: the median of some, after two that only warm up.

    Args:
        loaded: a `tutorkit.models.LoadedModel`; a copy of its model is trained.
        steps: how many are measured.
        batch_size: rows a step.
        max_length: tokens a row, all of them real ones.
    """
    from tutorkit.data import SentimentDataset
    from tutorkit.training import TrainConfig, fit

    rows = batch_size * (steps + 2)
    texts = ["good " * max_length, "bad " * max_length] * rows
    train = SentimentDataset(texts[:rows], ([1, 0] * rows)[:rows], loaded.tokenizer, max_length)
    config = TrainConfig(epochs=1, batch_size=batch_size)
    state = fit(copy.deepcopy(loaded.model), train, None, config)
    ends = [step["seconds"] for step in state.steps]
    return statistics.median(b - a for a, b in zip(ends[1:], ends[2:], strict=False))


def plain_seconds(repeats: int = 5) -> float:
    """Seconds of a fixed loop in plain Python on one core: the fastest of some."""

    def loop() -> float:
        start, counts = time.perf_counter(), {}
        for number in range(200_000):
            word = str(number % 1000)
            counts[word] = counts.get(word, 0) + 1
        return time.perf_counter() - start

    return min(loop() for _ in range(repeats))


def measure() -> dict[str, float]:
    """This machine's yardsticks, in seconds; takes a few seconds."""
    from tutorkit.models import load_model

    return {"step_s": round(step_seconds(load_model("minilm")), 4),
            "plain_s": round(plain_seconds(), 4)}  # fmt: skip


def training_part(
    seconds: float, one_thread_seconds: float, step_s: float, one_thread_step_s: float
) -> float:
    """The seconds of a lesson that go into training, from a second run on one thread.

    With r = one_thread_step_s / step_s, training takes r times as long there and the rest as long
    as before: one_thread_seconds - seconds = (r - 1) · training.

    Args:
        seconds: of the lesson.
        one_thread_seconds: of the lesson, where matrix products may use one core only.
        step_s: of a training step.
        one_thread_step_s: of a training step on one core.

    Returns:
        At least 0 and at most `seconds`.

    Raises:
        ValueError: a training step is hardly slower on one core, so that nothing can be told.
    """
    ratio = one_thread_step_s / step_s
    if ratio < 1.2:
        raise ValueError(
            f"expected a training step to take at least 1.2 times as long on one thread, found "
            f"{ratio:.2f} times: record on a quiet machine with two cores or more"
        )
    return min(max((one_thread_seconds - seconds) / (ratio - 1), 0.0), seconds)


def read_record(path: Path = RECORD) -> dict[str, Any]:
    """The record of the reference machine.

    Returns:
        hardware (cpu, cores, memory_gb, gpu, precision), step_s, plain_s, and lessons: name to
        seconds, training_s and peak_gib (GiB, None where unknown).

    Raises:
        ValueError: it is damaged.
    """
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    blocks = [("", record, ("hardware", *YARDSTICKS, "lessons"))]
    blocks += [(f"{name}: ", lesson, OF_A_LESSON) for name, lesson in
               record.get("lessons", {}).items()]  # fmt: skip
    for where, block, keys in blocks:
        if missing := [key for key in keys if key not in block]:
            raise ValueError(
                f"{Path(path).name}: {where}expected {missing[0]}, found {sorted(block)}; record "
                "the lessons again: python tests/lessons.py --record notebooks/*.ipynb"
            )
    return record


def write_record(
    yardsticks: Mapping[str, float], lessons: Mapping[str, Mapping[str, Any]],
    path: Path = RECORD,
) -> list[str]:
    """Write the record; lessons recorded earlier stay where the hardware is the same.

    Args:
        yardsticks: what `measure` returned here.
        lessons: name to seconds, training_s and peak_gib.
        path: the file.

    Returns:
        The names of the lessons that stayed.
    """
    found = {"hardware": hardware(), **yardsticks, "lessons": {}}
    if Path(path).exists() and (before := read_record(path))["hardware"] == found["hardware"]:
        found["lessons"] = before["lessons"]
    kept = sorted(set(found["lessons"]) - set(lessons))
    found["lessons"] = dict(sorted({**found["lessons"], **lessons}.items()))
    Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8", newline="\n")
    return kept


def hardware() -> dict[str, Any]:
    """What a lesson's time depends on: cpu, cores, memory_gb, gpu, and training's precision."""
    from tutorkit.machine import environment
    from tutorkit.precision import choose_device, choose_precision

    found = environment()
    kept = {key: found[key] for key in ("cpu", "cores", "memory_gb", "gpu")}
    return kept | {"precision": choose_precision("auto", choose_device())}


def estimate(
    record: Mapping[str, Any], yardsticks: Mapping[str, float], lessons: Sequence[str]
) -> list[dict[str, Any]]:
    """What each lesson takes on a machine with these yardsticks.

    Args:
        record: of the reference machine.
        yardsticks: of the machine to estimate for.
        lessons: names; those without a record come with None.

    Returns:
        A row a lesson: lesson, there_s (measured on the reference machine), here_s (estimated),
        here_training_s (the part of here_s that is training), peak_gib.
    """
    step, plain = (yardsticks[name] / record[name] for name in YARDSTICKS)
    rows = []
    for name in lessons:
        row = dict.fromkeys(("there_s", "here_s", "here_training_s", "peak_gib"))
        if (known := record["lessons"].get(name)) is not None:
            training = known["training_s"] * step
            rest = (known["seconds"] - known["training_s"]) * plain
            row = {"there_s": known["seconds"], "here_s": training + rest,
                   "here_training_s": training, "peak_gib": known["peak_gib"]}  # fmt: skip
        rows.append({"lesson": name, **row})
    return rows


def as_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of `estimate` as a table: whole seconds, and a word where there is no record."""
    import pandas as pd

    shown = []
    for row in rows:
        cells = {"reference, s": "no record yet", "here, s": "", "training here, s": "",
                 "peak memory, GiB": ""}  # fmt: skip
        if row["there_s"] is not None:
            seconds = [f"{row[name]:.0f}" for name in ("there_s", "here_s", "here_training_s")]
            peak = "not known" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
            cells = dict(zip(cells, [*seconds, peak], strict=True))
        shown.append({"lesson": row["lesson"], **cells})
    return pd.DataFrame(shown).set_index("lesson")


if __name__ == "__main__":
    print(json.dumps(measure()))
