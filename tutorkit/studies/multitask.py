"""Several tasks against one: sentiment in four domains, alone and together, by number of labels.

    python -m tutorkit.studies.multitask runs/multitask --budgets 32,128,512

    single          a model for each domain
    joint           one encoder, a head for each domain
    pooled          one encoder, one head for all domains
    joint+domain    pooled, and a head that tells the domain
    joint+rating    pooled, and a head that tells the mean human rating, a number

Each row is seen equally often in all settings: the joint runs take as many steps as the four single
ones together. Nothing is chosen on the way, and each test row is answered once.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from tutorkit import baselines, sources
from tutorkit.data import take_rows
from tutorkit.models import load_model
from tutorkit.multitask import MultiTaskModel
from tutorkit.multitask_data import MultiTaskDataset, Task, TaskDataset
from tutorkit.multitask_training import ConflictRecorder, evaluate_task, fit_tasks, recorded
from tutorkit.studies.shelf import complete, digits, numbers, open_folder
from tutorkit.training import Callback, TrainState, evaluate
from tutorkit.transfer import DOMAINS, STRATEGIES, draw, plan

NAMES = ("negative", "positive")
SETTINGS = ("single", "joint", "pooled", "joint+domain", "joint+rating")
RATING = Task("rating", kind="regression", weight=0.2)  # its squared error starts at 2.5 to 4


def measure(
    folder: str | Path, model: str = "minilm", budgets: Sequence[int] = (32, 128, 512),
    seeds: Sequence[int] = (0, 1, 2), test_size: int = 1000, max_length: int = 64,
    domains: Sequence[str] = DOMAINS, own_process: bool = True,
) -> list[dict]:
    """Train in every setting at every budget with every seed; score each domain once.

    The seed draws the labelled rows too; settings with the same seed share them. All share the test
    rows.

    Args:
        folder: where the record goes; runs that are there are not made again.
        model: a name for `models.load_model`.
        budgets: labelled rows a domain.
        seeds: one whole curve each.
        test_size: rows of each test split, at most.
        max_length: tokens a text.
        domains: names for `sources.load_splits`, with columns `label` and `rating`.
        own_process: a fresh process a run.

    Returns:
        The lines of the record: one a run and domain, and one a baseline and domain.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    loaded = {name: sources.load_splits(name) for name in domains}
    tests = {name: take_rows(splits["test"], test_size, 0, name)
             for name, splits in loaded.items()}  # fmt: skip
    open_folder(folder, {"datasets": {name: splits.source for name, splits in loaded.items()},
                         "model": model, "max_length": max_length,
                         "n_test": {name: len(test) for name, test in tests.items()},
                         "test_labels": {name: digits(t["label"]) for name, t in tests.items()},
                         "rating_weight": RATING.weight})  # fmt: skip
    wanted = [{"setting": setting, "n": n, "seed": seed}
              for seed in seeds for n in budgets
              for setting in ("nb_trigrams", *SETTINGS)]  # fmt: skip
    run = functools.partial(score, tuple(domains), model, test_size, max_length)
    return complete(Path(folder) / "runs.jsonl", wanted, run, own_process)


def score(
    domains: Sequence[str], model: str, test_size: int, max_length: int, key: dict
) -> list[dict]:
    """Make one run of a plan: a line for each domain, and one of the gradients' conflict.

    Args:
        domains: names for `sources.load_splits`.
        model: a name for `models.load_model`.
        test_size: rows of each test split, at most.
        max_length: tokens a text.
        key: what the run is: see `measure`.
    """
    splits = {name: sources.load_splits(name) for name in domains}
    rows = {name: draw(splits[name]["train"], key["n"], key["seed"]) for name in domains}
    tests = {name: take_rows(splits[name]["test"], test_size, 0, name) for name in domains}
    if key["setting"] == "nb_trigrams":
        return [_counted(rows[name], tests[name], key["seed"]) | {"domain": name}
                for name in domains]  # fmt: skip
    data = functools.partial(_dataset, load_model(model).tokenizer, max_length)
    if key["setting"] == "single":
        groups = [{Task(name, names=NAMES): rows[name]} for name in domains]
    elif key["setting"] == "joint":
        groups = [{Task(name, names=NAMES): rows[name] for name in domains}]
    else:
        groups = [_pooled(rows, key["setting"])]
    lines = []
    for tasks in groups:
        network, line, cosines = _train(model, tasks, data, splits, key)
        for name in [t.name for t in tasks] if key["setting"] == "single" else domains:
            own = name if key["setting"] in ("single", "joint") else "sentiment"
            wanted = data(Task(own, names=NAMES), tests[name])
            found = evaluate(network.for_task(own).model, wanted)
            predictions = found.probabilities.argmax(axis=1)
            result = {"domain": name, "accuracy": found.accuracy,
                      "predictions": digits(predictions)}  # fmt: skip
            if key["setting"] == "joint+rating":
                rated = evaluate_task(network, data(RATING, tests[name]))
                result |= {"pearson": round(rated["score"], 4), "mae": round(rated["mae"], 4)}
            lines.append(line | result)
        if cosines:
            lines.append({"setting": "conflict"} | cosines)
    return lines


def _pooled(rows: Mapping[str, Dataset], setting: str) -> dict[Task, Dataset]:
    """The domains' rows one after another, for one head, and for a second task on the same rows."""
    together = concatenate_datasets([each.select_columns(["text", "label", "rating"])
                                     for each in rows.values()])  # fmt: skip
    tasks = {Task("sentiment", names=NAMES): together}
    if setting == "joint+domain":
        numbers_of = np.repeat(np.arange(len(rows)), [len(each) for each in rows.values()])
        labels = together.remove_columns("label").add_column("label", numbers_of.tolist())
        tasks[Task("domain", names=tuple(rows))] = labels
    if setting == "joint+rating":
        tasks[RATING] = together
    return tasks


def _dataset(tokenizer, max_length: int, task: Task, rows: Dataset) -> TaskDataset:
    column = "rating" if task.kind == "regression" else "label"
    return TaskDataset(task, rows["text"], rows[column], tokenizer, max_length)


def _train(model: str, tasks: dict[Task, Dataset], data, splits, key: dict):
    """The trained network, what its run cost, and the conflict of a joint run's gradients."""
    network = MultiTaskModel(load_model(model, seed=key["seed"]), list(tasks), seed=key["seed"])
    parts = [data(task, rows) for task, rows in tasks.items()]
    # As many epochs as for one domain, so as many steps for four as those of four models together.
    one = plan(STRATEGIES["everything"], key["n"], key["seed"])
    callbacks = []
    if key["setting"] == "joint":
        looks = {t.name: data(t, take_rows(splits[t.name]["validation"], 64, 0, t.name))
                 for t in tasks}  # fmt: skip
        batches = {name: rows.batch(np.arange(len(rows))) for name, rows in looks.items()}
        callbacks = [ConflictRecorder(network, batches, every=8 * len(tasks))]
    looking = _Timed(callbacks)
    started, cpu = time.perf_counter(), time.process_time()
    state = fit_tasks(network, MultiTaskDataset(parts), [], one, callbacks=[looking])
    # What looking at the gradients costs is not part of what the training costs.
    seconds = time.perf_counter() - started - looking.seconds
    line = {"steps": state.step, "train_s": round(seconds, 1),
            "cpu_s": round(time.process_time() - cpu - looking.cpu_seconds, 1),
            "learning_rate": one.learning_rate, "epochs": one.epochs}  # fmt: skip
    curve = recorded(state, "conflict")
    cosines = {"steps": [step for step, _ in curve],
               "cosines": {pair: [round(found[pair], 4) for _, found in curve]
                           for pair in curve[0][1]}} if curve else {}  # fmt: skip
    return network, line, cosines


class _Timed:
    """Callbacks, and the time they took."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks, self.seconds, self.cpu_seconds = callbacks, 0.0, 0.0

    def __call__(self, event: str, state: TrainState) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        for callback in self.callbacks:
            callback(event, state)
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - cpu


def _counted(rows: Dataset, test: Dataset, seed: int) -> dict[str, Any]:
    found = baselines.run_baselines(rows, test, ["nb_trigrams"], seed)["nb_trigrams"]
    return {"accuracy": found["accuracy"], "predictions": digits(found["predictions"])}


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.studies.multitask",
                                     description="Measure one model for several domains.")
    parser.add_argument("folder", help="where results go; those that are there are kept")
    parser.add_argument("--model", default="minilm", help="a pretrained model")
    parser.add_argument("--budgets", type=numbers, default=(32, 128, 512), help="rows a domain")
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2), help="such as 0,1,2")
    parser.add_argument("--test-size", type=int, default=1000, help="test rows a domain, at most")
    given = parser.parse_args(argv)
    measure(given.folder, given.model, given.budgets, given.seeds, given.test_size)


if __name__ == "__main__":
    main()
