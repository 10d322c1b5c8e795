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
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutorkit import baselines, sources, transfer
from tutorkit.data import take_rows
from tutorkit.studies.shelf import complete, digits, numbers, open_folder

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
                "test_labels": digits(test["label"])}  # fmt: skip
    open_folder(folder, settings)
    memories = {"pairs": transfer.pairs_memory(), "domains": transfer.domains_memory()}
    untouched: dict[str, float] = {}

    def score(key: dict) -> dict:
        rows = transfer.draw(splits["train"], key["n"], key["seed"])
        name, line = key["strategy"], {}
        if name in CHEAP:
            found = baselines.run_baselines(rows, test, [name], key["seed"])[name]
            predictions, line["train_s"] = found["predictions"], round(found["seconds"], 2)
        else:
            strategy = transfer.STRATEGIES[name]
            used = transfer.use(strategy, model, rows, test, key["seed"], max_length)
            predictions = used.probabilities.argmax(axis=1)
            line = {"n_trained": used.n_trained, "steps": used.steps,
                    "train_s": round(used.train_s, 1),
                    "learning_rate": strategy.learning_rate,
                    "layer_decay": round(strategy.layer_decay, 4)}  # fmt: skip
            if strategy.trained_layers == 0:  # nothing moves: once is enough
                if not untouched:
                    untouched.update(_recall(used.loaded, memories))
                line["remembers"] = untouched
            else:
                line["remembers"] = _recall(used.loaded, memories)
        return line | {"accuracy": float(np.mean(predictions == np.asarray(test["label"]))),
                       "predictions": digits(predictions)}  # fmt: skip

    plan = [{"strategy": name, "n": n, "seed": seed}
            for seed in seeds for n in budgets for name in (*CHEAP, *strategies)]  # fmt: skip
    return complete(folder / "runs.jsonl", plan, score, own_process=False)


def choose_rates(
    folder: str | Path, dataset: str = "imdb", model: str = "minilm", validation_size: int = 500,
    max_length: int = 128,
) -> list[dict]:
    """Try the values of `TRIED` on validation rows; one line of `rates.jsonl` each."""
    splits = sources.load_splits(dataset)
    validation = take_rows(splits["validation"], validation_size, 0, "validation")
    rows = transfer.draw(splits["train"], CHOICE_BUDGET, CHOICE_SEED)

    def score(key: dict) -> dict:
        change = {name: key[name] for name in key.keys() - {"dataset", "model", "strategy"}}
        strategy = replace(transfer.STRATEGIES[key["strategy"]], **change)
        used = transfer.use(strategy, model, rows, validation, CHOICE_SEED, max_length)
        own = used.probabilities[np.arange(len(validation)), validation["label"]]
        right = used.probabilities.argmax(axis=1) == np.asarray(validation["label"])
        return {"n": CHOICE_BUDGET, "n_validation": len(validation),
                "accuracy": float(right.mean()), "loss": round(float(-np.log(own).mean()), 4)}

    plan = [{"dataset": splits.name, "model": model, "strategy": name, **change}
            for name, tried in TRIED.items() for change in tried]  # fmt: skip
    return complete(Path(folder) / "rates.jsonl", plan, score, own_process=False)


def _recall(loaded: Any, memories: dict[str, transfer.Memory]) -> dict[str, float]:
    found = {name: transfer.remembers(loaded, memory) for name, memory in memories.items()}
    return {name: round(share, 4) for name, share in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.budgets",
                                     description="Measure the learning curve of transfer.")
    parser.add_argument("folder", help="where results go; those that are there are kept")
    parser.add_argument("--rates", action="store_true", help="choose learning rates instead")
    parser.add_argument("--dataset", default="rt_snippets", help="a name that sources knows")
    parser.add_argument("--model", default="minilm", help="a pretrained model")
    parser.add_argument("--budgets", type=numbers, default=BUDGETS, help="such as 32,128")
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2), help="such as 0,1,2,3,4")
    parser.add_argument("--test-size", type=int, default=2000, help="test rows at most")
    given = parser.parse_args(argv)
    if given.rates:
        choose_rates(given.folder, given.dataset, given.model)
    else:
        measure(given.folder, given.dataset, given.model, given.budgets, given.seeds,
                test_size=given.test_size)


if __name__ == "__main__":
    main()
