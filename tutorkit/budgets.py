"""The learning curve of transfer: every strategy at every budget of labelled texts, over seeds.

    python -m tutorkit.budgets runs/transfer                 the curve, as lesson 06 shows it
    python -m tutorkit.budgets runs/transfer --rates --dataset imdb
                                                             before it: what its settings were
                                                             chosen by, rows of another data set

Each result is one line of `runs.jsonl`, written as soon as it is there: a run that was stopped goes
on where it was. `about.json` beside it says what it was made with.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tutorkit import baselines, machine, sources, transfer
from tutorkit.data import take_rows

BUDGETS = (32, 128, 512, 2048)
CHEAP = tuple(name for name in baselines.BASELINES if name != "majority")
# What is tried on validation rows: of a draw (seed) that no result uses.
CHOICE_SEED, CHOICE_BUDGET = 1000, 512
TRIED = {
    "scratch": [{"learning_rate": r} for r in (1e-4, 3e-4, 1e-3)],
    "features": [{"penalty": c} for c in (1.0, 10.0, 100.0)],
    "last_layers": [{"learning_rate": r} for r in (1e-4, 3e-4, 1e-3)],
    "everything": [{"learning_rate": r} for r in (5e-5, 1e-4, 2e-4)],
    "discriminative": [{"learning_rate": r, "layer_decay": d}
                       for d in (1 / 2.6, 0.7) for r in (2e-4, 5e-4)],
}  # fmt: skip


def measure(
    folder: str | Path, dataset: str = "rt_snippets", model: str = "minilm",
    budgets: Sequence[int] = BUDGETS, seeds: Sequence[int] = (0, 1, 2),
    strategies: Sequence[str] = tuple(transfer.STRATEGIES), test_size: int = 2000,
    max_length: int = 128,
) -> list[dict]:
    """Train every strategy at every budget with every seed, and score each once on the test rows.

    The seed draws the labelled rows too; strategies with the same seed share them. All share the
    test rows, which nothing is chosen by.

    Args:
        folder: where `runs.jsonl` and `about.json` go; results that are there are not made again.
        dataset: a name for `sources.load_splits`.
        model: a name for `models.load_model`.
        budgets: numbers of labelled texts.
        seeds: one whole curve each.
        strategies: names from `transfer.STRATEGIES`.
        test_size: rows of the test split, at most.
        max_length: tokens a text; the baselines read whole texts.

    Returns:
        All lines of `runs.jsonl`.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    splits = sources.load_splits(dataset)
    test = take_rows(splits["test"], test_size, 0, "test")
    folder = Path(folder)
    settings = {"dataset": {"name": splits.name, "source": splits.source},
                "model": model, "n_test": len(test), "max_length": max_length,
                "strategies": {name: asdict(way) for name, way in transfer.STRATEGIES.items()},
                "test_labels": "".join(str(label) for label in test["label"])}  # fmt: skip
    _write_about(folder, settings)
    memories = {"pairs": transfer.pairs_memory(), "domains": transfer.domains_memory()}
    wanted = [(seed, n, name) for seed in seeds for n in budgets for name in (*CHEAP, *strategies)]
    done = {(line["seed"], line["n"], line["strategy"]) for line in read(folder)}
    untouched = {}
    for number, (seed, n, name) in enumerate(wanted, start=1):
        if (seed, n, name) in done:
            continue
        rows = transfer.draw(splits["train"], n, seed)
        line = {"strategy": name, "n": n, "seed": seed}
        if name in CHEAP:
            found = baselines.run_baselines(rows, test, [name], seed)[name]
            predictions, line["train_s"] = found["predictions"], round(found["seconds"], 2)
        else:
            strategy = transfer.STRATEGIES[name]
            used = transfer.use(strategy, model, rows, test, seed, max_length)
            predictions = used.probabilities.argmax(axis=1)
            line |= {"n_trained": used.n_trained, "steps": used.steps,
                     "train_s": round(used.train_s, 1),
                     "learning_rate": strategy.learning_rate,
                     "layer_decay": round(strategy.layer_decay, 4)}  # fmt: skip
            if strategy.trained_layers == 0:  # nothing moves: once is enough
                untouched = untouched or _recall(used.loaded, memories)
                line["remembers"] = untouched
            else:
                line["remembers"] = _recall(used.loaded, memories)
        line["accuracy"] = float(np.mean(predictions == np.asarray(test["label"])))
        line["predictions"] = "".join(str(p) for p in predictions)
        _append(folder / "runs.jsonl", line)
        print(f"{number} of {len(wanted)}: seed {seed}, {n} labelled, {name}: "
              f"{line['accuracy']:.3f} in {line['train_s']:.0f} s", flush=True)  # fmt: skip
    return read(folder)


def choose_rates(
    folder: str | Path, dataset: str = "imdb", model: str = "minilm", validation_size: int = 500,
    max_length: int = 128,
) -> list[dict]:
    """Try the values of `TRIED` on validation rows; one line of `rates.jsonl` each."""
    splits = sources.load_splits(dataset)
    validation = take_rows(splits["validation"], validation_size, 0, "validation")
    rows = transfer.draw(splits["train"], CHOICE_BUDGET, CHOICE_SEED)
    path = Path(folder) / "rates.jsonl"
    lines = read(folder, path.name)
    for name, change in [(name, change) for name, tried in TRIED.items() for change in tried]:
        line = {"dataset": splits.name, "model": model, "strategy": name, **change}
        if any(all(old.get(k) == v for k, v in line.items()) for old in lines):
            continue
        strategy = replace(transfer.STRATEGIES[name], **change)
        used = transfer.use(strategy, model, rows, validation, CHOICE_SEED, max_length)
        own = used.probabilities[np.arange(len(validation)), validation["label"]]
        right = used.probabilities.argmax(axis=1) == np.asarray(validation["label"])
        line |= {"n": CHOICE_BUDGET, "n_validation": len(validation),
                 "accuracy": float(right.mean()), "loss": round(float(-np.log(own).mean()), 4)}
        _append(path, line)
        print(line, flush=True)
    return read(folder, path.name)


@dataclass(frozen=True)
class Record:
    """A finished measurement."""

    lines: list[dict]  # one a result: strategy, n, seed, accuracy, predictions, …
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


def _recall(loaded: Any, memories: dict[str, transfer.Memory]) -> dict[str, float]:
    found = {name: transfer.remembers(loaded, memory) for name, memory in memories.items()}
    return {name: round(share, 4) for name, share in found.items()}


def _whole_lines(text: str) -> str:
    """What a file holds up to its last line break: a full disk leaves half a line behind it."""
    return text[: text.rfind("\n") + 1]


def _append(path: Path, line: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if (whole := _whole_lines(text)) != text:
            path.write_text(whole, encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write_about(folder: Path, settings: dict) -> None:
    path = folder / "about.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        differing = [key for key, value in settings.items() if found.get(key) != value]
        if differing:
            key = differing[0]
            raise ValueError(f"{folder} holds results of other settings ({key}: expected "
                             f"{settings[key]!r:.60}, found {found.get(key)!r:.60}): name another "
                             "folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    about = {"settings": settings, "environment": machine.environment(),
             "git_commit": machine.git_commit(),
             "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.budgets",
                                     description="Measure the learning curve of transfer.")
    parser.add_argument("folder", help="where results go; those that are there are kept")
    parser.add_argument("--rates", action="store_true", help="choose learning rates instead")
    parser.add_argument("--dataset", default="rt_snippets", help="a name that sources knows")
    parser.add_argument("--model", default="minilm", help="a pretrained model")
    parser.add_argument("--budgets", type=_numbers, default=BUDGETS, help="such as 32,128")
    parser.add_argument("--seeds", type=_numbers, default=(0, 1, 2), help="such as 0,1,2,3,4")
    parser.add_argument("--test-size", type=int, default=2000, help="test rows at most")
    given = parser.parse_args(argv)
    if given.rates:
        choose_rates(given.folder, given.dataset, given.model)
    else:
        measure(given.folder, given.dataset, given.model, given.budgets, given.seeds,
                test_size=given.test_size)


if __name__ == "__main__":
    main()
