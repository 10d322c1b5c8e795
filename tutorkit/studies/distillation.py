"""A small model taught by a larger one against the same model alone: accuracy, size and latency.

    python -m tutorkit.studies.distillation runs/distillation --teacher FOLDER --rates
    python -m tutorkit.studies.distillation runs/distillation --teacher FOLDER
    python -m tutorkit.studies.distillation runs/distillation --teacher FOLDER --latency

The folder holds a fine-tuned `minilm`, such as a report's `model`. A student starts from its
embeddings and every third of its layers, whether it is taught or alone: only the objective differs.
It learns from texts cut short, and reads longer ones when it is tested. Latency is measured in a
call of its own, with nothing else at work on the machine.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutorkit import baselines, sources
from tutorkit.comparison import latency, one_by_one
from tutorkit.data import SentimentDataset, take_rows
from tutorkit.distillation import SoftTargets, teacher_logits
from tutorkit.matching import LayerMatching, MatchedStudent
from tutorkit.models import (
    LoadedModel,
    count_parameters,
    load_model,
    non_embedding_parameters,
)
from tutorkit.objectives import classification
from tutorkit.students import bag_student, transformer_student
from tutorkit.studies.runs import train_run
from tutorkit.studies.shelf import complete, digits, numbers, open_folder
from tutorkit.training import evaluate

STUDENTS = {
    "2 layers": functools.partial(transformer_student, layers=2),
    "bag of embeddings": bag_student,
}
TAUGHT = ("alone", "soft targets", "soft targets and layers")
PLAN = [("2 layers", way) for way in TAUGHT] + [("bag of embeddings", way) for way in TAUGHT[:2]]
# Of those tried, the ones with the highest accuracy on validation rows (`TRIED`).
RATES = {"2 layers": 3e-4, "bag of embeddings": 3e-3}
TEMPERATURE, ALPHA = 2.0, 0.9
TRIED = (
    [("2 layers", "alone", {"learning_rate": rate}) for rate in (1e-4, 3e-4)]
    + [("2 layers", "soft targets", {"temperature": t}) for t in (1.0, 2.0, 4.0)]
    + [("bag of embeddings", "alone", {"learning_rate": rate}) for rate in (1e-3, 3e-3)]
)
CHOICE_SEED = 1000  # of the runs that choose; results train on their rows too, but not validation
TIMED_TEXTS = 200


@dataclass(frozen=True)
class Lengths:
    """Tokens of a text, at most."""

    trained: int = 128  # of one that a student learns from
    read: int = 256  # of one that is answered, and that the teacher gives its logits for


def measure(
    folder: str | Path, teacher: str | Path, dataset: str = "imdb", n: int | None = None,
    seeds: Sequence[int] = (0, 1, 2), epochs: int = 2, test_size: int = 10_000,
    lengths: Lengths = Lengths(), own_process: bool = True,
) -> list[dict]:
    """Train every student in every way with every seed, and score each once on the test rows.

    Args:
        folder: where the record goes, and the teacher's logits; runs that are there are kept.
        teacher: a folder with a fine-tuned model.
        dataset: a name for `sources.load_splits`: what the teacher was fine-tuned on.
        n: training rows, drawn with seed 0: the same for all; None: all.
        seeds: of the runs.
        epochs: of each run.
        test_size: rows of the test split, at most.
        lengths: of the texts, in tokens.
        own_process: a fresh process a run.

    Returns:
        The lines of the record.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    splits = sources.load_splits(dataset)
    test = take_rows(splits["test"], test_size, 0, "test")
    n = len(splits["train"]) if n is None else n
    open_folder(folder, {"dataset": {"name": splits.name, "source": splits.source},
                         "n_test": len(test), "max_length": lengths.read,
                         "train_max_length": lengths.trained,
                         "test_labels": digits(test["label"])})  # fmt: skip
    plan: list[dict[str, Any]] = [{"student": "teacher", "seed": 0},
                                  {"student": "nb_trigrams", "n": n, "seed": 0}]  # fmt: skip
    plan += [_key(student, way, n, seed, epochs) for seed in seeds for student, way in PLAN]
    run = functools.partial(score, Path(folder), teacher, dataset, "test", test_size, lengths)
    return complete(Path(folder) / "runs.jsonl", plan, run, own_process)


def choose_rates(
    folder: str | Path, teacher: str | Path, dataset: str = "imdb", n: int = 6000,
    validation_size: int = 1000, lengths: Lengths = Lengths(), own_process: bool = True,
) -> list[dict]:
    """Try the values of `TRIED` on validation rows; one line of `rates.jsonl` each."""
    plan = [_key(student, way, n, CHOICE_SEED, 1) | change for student, way, change in TRIED]
    run = functools.partial(score, Path(folder), teacher, dataset, "validation", validation_size,
                            lengths)  # fmt: skip
    return complete(Path(folder) / "rates.jsonl", plan, run, own_process)


def time_each(
    folder: str | Path, teacher: str | Path, dataset: str = "imdb", lengths: Lengths = Lengths(),
) -> list[dict]:
    """Milliseconds a text of the teacher and of each student, on one core; lines of the record."""
    texts = take_rows(sources.load_splits(dataset)["test"], TIMED_TEXTS, 1, "test")["text"]

    def run(key: dict) -> dict:
        loaded = load_model(str(teacher))
        if key["student"] != "teacher":
            loaded = STUDENTS[key["student"]](loaded)
        found = latency(one_by_one(loaded, lengths.read), texts)
        return _size(loaded) | {"latency": {"median_ms": round(found.median_ms, 2),
                                            "p95_ms": round(found.p95_ms, 2), "n": found.n}}

    plan = [{"student": name, "taught": "timed"} for name in ("teacher", *STUDENTS)]
    return complete(Path(folder) / "runs.jsonl", plan, run, own_process=False)


def score(
    folder: Path, teacher: str | Path, dataset: str, split: str, size: int, lengths: Lengths,
    key: dict,
) -> dict:
    """Make one run of a plan.

    Args:
        folder: where the teacher's logits are kept.
        teacher: a folder with a fine-tuned model.
        dataset: a name for `sources.load_splits`.
        split: whose rows are answered.
        size: how many of them at most.
        lengths: of the texts, in tokens.
        key: what the run is: see `measure`.

    Returns:
        accuracy, agreement with the teacher, predictions, numbers of parameters, cost of training.
    """
    splits = sources.load_splits(dataset)
    answer = take_rows(splits[split], size, 0, split)
    loaded = load_model(str(teacher))
    said = teacher_logits(loaded, answer["text"], lengths.read, cache=folder / "teacher")
    expected = said.values.numpy().argmax(axis=1)
    if key["student"] == "teacher":
        return _size(loaded) | _result(expected, expected, answer)
    drawn_by = CHOICE_SEED if split == "validation" else 0
    rows = take_rows(splits["train"], key["n"], drawn_by, "train")
    if key["student"] in baselines.BASELINES:
        found = baselines.run_baselines(rows, answer, [key["student"]], key["seed"])
        return _result(found[key["student"]]["predictions"], expected, answer)
    student = STUDENTS[key["student"]](loaded, seed=key["seed"])
    line = _train(student, loaded, rows, folder, lengths, key)
    wanted = SentimentDataset(answer["text"], answer["label"], student.tokenizer, lengths.read)
    found = evaluate(student.model, wanted)
    return line | _size(student) | _result(found.probabilities.argmax(axis=1), expected, answer)


def _key(student: str, way: str, n: int, seed: int, epochs: int) -> dict:
    key = {"student": student, "taught": way, "n": n, "seed": seed, "epochs": epochs,
           "batch_size": 32, "learning_rate": RATES[student]}  # fmt: skip
    return key if way == "alone" else key | {"temperature": TEMPERATURE, "alpha": ALPHA}


def _train(
    student: LoadedModel, teacher: LoadedModel, rows: Any, folder: Path, lengths: Lengths,
    key: dict,
) -> dict:
    """Train a student in place; its teacher's logits are read from the folder where they are."""
    train = SentimentDataset(rows["text"], rows["label"], student.tokenizer, lengths.trained)
    model, objective = student.model, classification
    if key["taught"] != "alone":
        said = teacher_logits(teacher, rows["text"], lengths.read, cache=folder / "teacher")
        objective = SoftTargets(said, key["temperature"], key["alpha"])
    if key["taught"] == "soft targets and layers":
        model = MatchedStudent(student, teacher)
        objective = LayerMatching(model, targets=objective)
    return train_run(model, train, key, objective)


def _result(predictions: np.ndarray, expected: np.ndarray, answer: Any) -> dict:
    return {"accuracy": float((predictions == np.asarray(answer["label"])).mean()),
            "agreement": float((predictions == expected).mean()),
            "predictions": digits(predictions)}  # fmt: skip


def _size(loaded: LoadedModel) -> dict:
    return {"n_parameters": count_parameters(loaded.model)[0],
            "n_non_embedding": non_embedding_parameters(loaded.model)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.studies.distillation",
                                     description="Measure students of a fine-tuned model.")
    parser.add_argument("folder", help="where results go; those that are there are kept")
    parser.add_argument("--teacher", required=True, help="folder with a fine-tuned minilm")
    parser.add_argument("--rates", action="store_true", help="choose settings instead")
    parser.add_argument("--latency", action="store_true", help="measure milliseconds instead")
    parser.add_argument("--dataset", default="imdb", help="a name that sources knows")
    parser.add_argument("--n", type=int, help="training rows; all where left out")
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2), help="such as 0,1,2")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test-size", type=int, default=10_000, help="test rows at most")
    given = parser.parse_args(argv)
    if given.rates:
        choose_rates(given.folder, given.teacher, given.dataset, given.n or 6000)
    elif given.latency:
        time_each(given.folder, given.teacher, given.dataset)
    else:
        measure(given.folder, given.teacher, given.dataset, given.n, given.seeds, given.epochs,
                given.test_size)


if __name__ == "__main__":
    main()
