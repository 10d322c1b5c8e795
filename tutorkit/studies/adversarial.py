"""Adversarial training against plain training: clean reviews, and what differs from them.

    python -m tutorkit.studies.adversarial runs/adversarial --radii
                                                        before it: what the radii were chosen by
    python -m tutorkit.studies.adversarial runs/adversarial --n 4000 --test-size 10000

All models learn from the same reviews. A step of FGM, and of FreeLB with K = 2, costs about two
plain ones, so plain training also runs with twice the epochs. The lesson's `robustness` is measured
on the side, on fewer rows, and the expert edits of `imdb_contrast` where a local mirror has them.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutorkit import baselines, sources
from tutorkit.adversarial import FGM, FreeLB
from tutorkit.data import SentimentDataset, take_rows
from tutorkit.models import LoadedModel, load_model
from tutorkit.objectives import Objective, classification
from tutorkit.probes import Pair, contrast_pairs
from tutorkit.robustness import Predict, both_right, predictor, robustness
from tutorkit.studies.runs import train_run
from tutorkit.studies.shelf import complete, digits, numbers, open_folder
from tutorkit.substitution import synonym_table
from tutorkit.training import evaluate

CHEAP = ("tfidf_unigrams", "nb_trigrams")
METHODS = ("plain", "plain_longer", "fgm", "freelb")
# Of those tried, the largest whose loss on validation rows is within `CLOSE` of the lowest: the
# lowest alone would favour radius 0, which is plain training.
CLOSE = 0.01  # nats
RADII = {"fgm": 0.1, "freelb": 0.1}
TRIED = (0.05, 0.1, 0.2, 0.5)
NOISY_ROWS, ATTACKED_ROWS = 1000, 100  # of the test rows, for what reads them again and again


def measure(
    folder: str | Path, dataset: str = "imdb", model: str = "minilm", n: int = 4000,
    seeds: Sequence[int] = (0, 1, 2), learning_rate: float = 1e-4, test_size: int = 10_000,
    max_length: int = 128, own_process: bool = True,
) -> list[dict]:
    """Train with every objective and seed, and score each model once.

    Args:
        folder: where the record goes; runs that are there are not made again.
        dataset: a name for `sources.load_splits`.
        model: a name for `models.load_model`.
        n: training rows, drawn with seed 0: the same for all.
        seeds: of the runs.
        learning_rate: of all runs.
        test_size: rows of the test split, at most.
        max_length: tokens a text; the baselines read whole texts.
        own_process: a fresh process a run.

    Returns:
        The lines of the record.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    splits = sources.load_splits(dataset)
    test = take_rows(splits["test"], test_size, 0, "test")
    open_folder(folder, {"dataset": {"name": splits.name, "source": splits.source},
                         "model": model, "n_test": len(test), "max_length": max_length,
                         "noisy_rows": NOISY_ROWS, "attacked_rows": ATTACKED_ROWS,
                         "test_labels": digits(test["label"])})  # fmt: skip
    plan: list[dict[str, Any]] = [{"method": name, "n": n, "seed": 0} for name in CHEAP]
    plan += [_key(method, RADII.get(method), n, seed, learning_rate)
             for seed in seeds for method in METHODS]  # fmt: skip
    run = functools.partial(score, dataset, model, test_size, max_length)
    return complete(Path(folder) / "runs.jsonl", plan, run, own_process)


def choose_radii(
    folder: str | Path, dataset: str = "imdb", model: str = "minilm", n: int = 4000,
    learning_rate: float = 1e-4, validation_size: int = 1000, max_length: int = 128,
    own_process: bool = True,
) -> list[dict]:
    """Try the radii of `TRIED` on validation rows, which no result uses, with seed 0.

    Arguments as for `measure`; returns the lines of `rates.jsonl`.
    """
    plan = [_key(method, radius, n, 0, learning_rate) for radius in TRIED for method in RADII]
    run = functools.partial(try_out, dataset, model, validation_size, max_length)
    return complete(Path(folder) / "rates.jsonl", plan, run, own_process)


def try_out(dataset: str, model: str, validation_size: int, max_length: int, key: dict) -> dict:
    """Make one run of `choose_radii`; arguments as for `score`."""
    splits = sources.load_splits(dataset)
    rows = take_rows(splits["train"], key["n"], 0, "train")
    validation = take_rows(splits["validation"], validation_size, 0, "validation")
    loaded = load_model(model, seed=key["seed"])
    line = _train(loaded, rows, max_length, key)
    found = evaluate(loaded.model, SentimentDataset(validation["text"], validation["label"],
                                                    loaded.tokenizer, max_length))  # fmt: skip
    return line | {"n_validation": len(validation), "accuracy": found.accuracy,
                   "loss": round(found.loss, 4)}  # fmt: skip


def score(dataset: str, model: str, test_size: int, max_length: int, key: dict) -> dict:
    """Make one run of a plan.

    Args:
        dataset: a name for `sources.load_splits`.
        model: a name for `models.load_model`.
        test_size: rows of the test split, at most.
        max_length: tokens a text.
        key: what the run is: see `measure`.

    Returns:
        `accuracy` on the test rows; `measured`, by the name of what was measured (n, accuracy, and
        the accuracy on the same rows unchanged where there is such); `correct`, of each of them
        and of the test rows ("clean"), a digit a row or pair.
    """
    splits = sources.load_splits(dataset)
    rows = take_rows(splits["train"], key["n"], 0, "train")
    test = take_rows(splits["test"], test_size, 0, "test")
    line: dict[str, Any] = {}
    if key["method"] in CHEAP:
        predict = functools.partial(_counted, key["method"], rows, key["seed"])
    else:
        loaded = load_model(model, seed=key["seed"])
        line = _train(loaded, rows, max_length, key)
        predict = _remembering(predictor(loaded, max_length))
    right = predict(list(test["text"])).argmax(axis=1) == np.asarray(test["label"])
    correct = {"clean": right}
    measured = _measured(predict, test.select(range(min(NOISY_ROWS, len(test)))), correct)
    return line | {"accuracy": float(right.mean()), "measured": measured,
                   "correct": {name: digits(found) for name, found in correct.items()}}  # fmt: skip


def _train(loaded: LoadedModel, rows: Any, max_length: int, key: dict) -> dict:
    train = SentimentDataset(rows["text"], rows["label"], loaded.tokenizer, max_length)
    return train_run(loaded.model, train, key, _objective(key["method"], key["settings"]))


def _measured(predict: Predict, rows: Any, correct: dict[str, np.ndarray]) -> dict[str, dict]:
    """What `robustness` finds, and the expert edits; fills `correct` as well."""
    tokenizer, embeddings = _vocabulary()
    candidates = synonym_table(rows["text"], tokenizer, embeddings)
    found = robustness(predict, rows["text"], rows["label"], _built_in_pairs(), candidates,
                       attacked=ATTACKED_ROWS)  # fmt: skip
    del found["clean"]
    results = {}
    for name, one in found.items():
        correct[name] = one.correct
        results[name] = {"n": len(one.correct), "accuracy": float(one.correct.mean())}
        if one.clean is not None:
            results[name]["clean"] = float(one.clean.mean())
    if "imdb_contrast" in sources.mirror_names():
        edits = sources.load_mirror_split("imdb_contrast", "validation")
        labels = np.asarray(edits["label"])
        correct["contrast, edited texts"] = predict(list(edits["text"])).argmax(axis=1) == labels
        correct["contrast, both right"] = both_right(predict, contrast_pairs(edits))
        for name in ("contrast, edited texts", "contrast, both right"):
            results[name] = {"n": len(correct[name]), "accuracy": float(correct[name].mean())}
    return results


def _built_in_pairs() -> list[Pair]:
    """All contrast pairs of the built-in reviews: none of them is trained on here."""
    return [pair for split in sources.load_splits("reviews").values()
            for pair in contrast_pairs(split)]  # fmt: skip


def _vocabulary() -> tuple[Any, Any]:
    """The same replacements for every model: neighbours in pretrained `minilm`."""
    loaded = load_model("minilm")
    return loaded.tokenizer, loaded.model.get_input_embeddings().weight


def _counted(name: str, rows: Any, seed: int, texts: list[str]) -> np.ndarray:
    """A baseline's probabilities (N, 2); it is quick enough to be trained again for each call."""
    return baselines.BASELINES[name](list(rows["text"]), np.asarray(rows["label"]), texts, seed)


def _remembering(predict: Predict) -> Predict:
    """The same, but a text that was asked before is not read again: rows and edits come twice."""
    known: dict[str, np.ndarray] = {}

    def answer(texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, predict(new), strict=True))
        return np.stack([known[text] for text in texts])

    return answer


def _key(method: str, radius: float | None, n: int, seed: int, learning_rate: float) -> dict:
    settings = {"fgm": {"epsilon": radius},
                "freelb": {"epsilon": radius, "step_size": radius, "steps": 2}}  # fmt: skip
    return {"method": method, "settings": settings.get(method, {}), "n": n, "seed": seed,
            "learning_rate": learning_rate, "batch_size": 16,
            "epochs": 2 if method == "plain_longer" else 1}  # fmt: skip


def _objective(method: str, settings: dict) -> Objective:
    kinds = {"fgm": FGM, "freelb": FreeLB}
    return kinds[method](**settings) if method in kinds else classification


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.studies.adversarial",
                                     description="Measure adversarial training.")
    parser.add_argument("folder", help="where results go; those that are there are kept")
    parser.add_argument("--dataset", default="imdb", help="a name that sources knows")
    parser.add_argument("--model", default="minilm", help="a pretrained model")
    parser.add_argument("--n", type=int, default=4000, help="training rows")
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2), help="such as 0,1,2")
    parser.add_argument("--learning-rate", type=float, default=1e-4,
                        help="of all runs; `studies.peft` chose 1e-4 for all weights of minilm")
    parser.add_argument("--test-size", type=int, default=10_000, help="test rows at most")
    parser.add_argument("--radii", action="store_true", help="choose the radii instead")
    given = parser.parse_args(argv)
    if given.radii:
        choose_radii(given.folder, given.dataset, given.model, given.n, given.learning_rate)
        return
    measure(given.folder, given.dataset, given.model, given.n, given.seeds, given.learning_rate,
            given.test_size)


if __name__ == "__main__":
    main()
