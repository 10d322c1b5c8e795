"""Few trained weights against all of them: accuracy, seconds and memory of each method.

    python -m tutorkit.studies.peft runs/peft --rates        before it: learning rates, chosen by
                                                             validation rows that no result uses
    python -m tutorkit.studies.peft runs/peft --dataset imdb --n 4000 --test-size 10000
    python -m tutorkit.studies.peft runs/peft --models minilm,smollm2 --ranks 1,2,4,8,16,32

All runs of a study learn from the same rows, once through, and answer the same test rows once; the
seed fixes the new weights, the order of rows and dropout. Nothing is chosen on the way.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutorkit import adapters, baselines, machine, sources
from tutorkit.data import SentimentDataset, take_rows
from tutorkit.low_rank import AdaLoraBudget, AdaLoraObjective, ranks
from tutorkit.models import count_parameters, load_model
from tutorkit.objectives import classification
from tutorkit.studies.runs import train_run
from tutorkit.studies.shelf import complete, digits, numbers, open_folder
from tutorkit.training import evaluate

CHEAP = tuple(name for name in baselines.BASELINES if name != "majority")
# Learning rates: of those tried, the ones with the lowest loss on validation rows (`TRIED`).
RATES = {
    "minilm": {"full": 1e-4, "head": 3e-2, "bitfit": 1e-3, "adapter": 3e-3, "lora": 2e-3,
               "adalora": 2e-2},
    "smollm2": {"full": 2e-4, "head": 1e-2, "adapter": 3e-3, "lora": 3e-3, "adalora": 3e-2},
}  # fmt: skip
TRIED = {
    "minilm": {"full": (1e-4, 2e-4), "head": (1e-2, 3e-2), "bitfit": (1e-3, 3e-3, 1e-2),
               "adapter": (1e-3, 3e-3), "lora": (1e-3, 2e-3, 5e-3),
               "adalora": (2e-3, 5e-3, 2e-2)},
    "smollm2": {"full": (2e-5, 5e-5, 1e-4, 2e-4), "head": (1e-3, 3e-3, 1e-2, 3e-2),
                "adapter": (3e-4, 1e-3, 3e-3, 1e-2), "lora": (3e-4, 1e-3, 3e-3, 1e-2),
                "adalora": (1e-3, 3e-3, 1e-2, 3e-2)},
}  # fmt: skip
# Of the runs that choose and the rows they train on. Some of these may be training rows of a result
# too; the validation rows are not.
CHOICE_SEED = 1000


def measure(
    folder: str | Path, dataset: str = "rt_snippets", models: Sequence[str] = ("minilm",),
    n: int = 1000, seeds: Sequence[int] = (0, 1, 2), lora_ranks: Sequence[int] = (8,),
    test_size: int = 2000, max_length: int = 128, own_process: bool = True,
) -> list[dict]:
    """Train every method with every seed, and score each once on the test rows.

    Args:
        folder: where the record goes; runs that are there are not made again.
        dataset: a name for `sources.load_splits`.
        models: names with learning rates in `RATES`.
        n: training rows, drawn with seed 0: the same for all.
        seeds: of the runs.
        lora_ranks: LoRA is trained with each of these ranks r, and α = 2 r.
        test_size: rows of the test split, at most.
        max_length: tokens a text; the baselines read whole texts.
        own_process: a fresh process a run, which makes its peak memory its own.

    Returns:
        The lines of the record.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    splits = sources.load_splits(dataset)
    test = take_rows(splits["test"], test_size, 0, "test")
    open_folder(folder, {"dataset": {"name": splits.name, "source": splits.source},
                         "n_test": len(test), "max_length": max_length,
                         "test_labels": digits(test["label"])})  # fmt: skip
    plan: list[dict[str, Any]] = [
        {"model": name, "method": "baseline", "settings": {}, "n": n, "seed": 0} for name in CHEAP
    ]
    for seed in seeds:
        for model in models:
            for method, rate in RATES[model].items():
                # α/r stays at 2, as the rate was chosen with, or ranks would differ in step size.
                given = ([{"r": r, "lora_alpha": 2 * r} for r in lora_ranks]
                         if method == "lora" else [{}])  # fmt: skip
                plan += [{"model": model, "method": method,
                          "settings": adapters.METHODS[method] | each, "n": n, "seed": seed,
                          "learning_rate": rate, "batch_size": 16, "epochs": 1}
                         for each in given]  # fmt: skip
    run = functools.partial(score, dataset, "test", test_size, max_length)
    return complete(Path(folder) / "runs.jsonl", plan, run, own_process)


def choose_rates(
    folder: str | Path, dataset: str = "imdb", models: Sequence[str] = ("minilm",), n: int = 2000,
    validation_size: int = 500, max_length: int = 128, own_process: bool = True,
) -> list[dict]:
    """Try the learning rates of `TRIED` on validation rows; one line of `rates.jsonl` each."""
    plan = [{"model": model, "method": method, "settings": adapters.METHODS[method], "n": n,
             "seed": CHOICE_SEED, "learning_rate": rate, "batch_size": 16, "epochs": 1,
             "dataset": dataset}
            for model in models for method, rates in TRIED[model].items()
            for rate in rates]  # fmt: skip
    run = functools.partial(score, dataset, "validation", validation_size, max_length)
    return complete(Path(folder) / "rates.jsonl", plan, run, own_process)


def score(dataset: str, split: str, size: int, max_length: int, key: dict) -> dict:
    """Make one run of a plan.

    Args:
        dataset: a name for `sources.load_splits`.
        split: whose rows are answered.
        size: how many of them at most.
        max_length: tokens a text.
        key: what the run is: see `measure`.

    Returns:
        accuracy, mean loss and predictions; for a model also what it cost: `train_s` by the clock
        and `cpu_s` of all threads, in training alone; `start_rss_mb` and `peak_rss_mb`, the
        process's peak memory before training and after it.
    """
    splits = sources.load_splits(dataset)
    drawn_by = CHOICE_SEED if split == "validation" else 0
    rows = take_rows(splits["train"], key["n"], drawn_by, "train")
    answer = take_rows(splits[split], size, 0, split)
    if key["method"] == "baseline":
        found = baselines.run_baselines(rows, answer, [key["model"]], key["seed"])[key["model"]]
        return {"accuracy": found["accuracy"], "train_s": round(found["seconds"], 2),
                "predictions": digits(found["predictions"])}  # fmt: skip
    loaded = load_model(key["model"], seed=key["seed"])
    adapters.prepare(loaded, key["method"], key["seed"], **key["settings"])
    train, wanted = (SentimentDataset(part["text"], part["label"], loaded.tokenizer, max_length)
                     for part in (rows, answer))  # fmt: skip
    adaptive = key["method"] == "adalora"
    parameters, trained = count_parameters(loaded.model)
    before = machine.peak_rss_mb()
    line = train_run(loaded.model, train, key,
                     AdaLoraObjective() if adaptive else classification,
                     [AdaLoraBudget(loaded.model)] if adaptive else [])  # fmt: skip
    line |= {"start_rss_mb": round(before), "peak_rss_mb": round(machine.peak_rss_mb()),
             "n_parameters": parameters, "n_trained": trained}  # fmt: skip
    if adaptive:
        line["ranks"] = ranks(loaded.model)
    found = evaluate(loaded.model, wanted)
    predictions = found.probabilities.argmax(axis=1)
    right = predictions == np.asarray(answer["label"])
    return line | {"accuracy": float(right.mean()), "loss": round(found.loss, 4),
                   "predictions": digits(predictions)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.studies.peft",
                                     description="Measure methods that train few weights.")
    parser.add_argument("folder", help="where results go; those that are there are kept")
    parser.add_argument("--rates", action="store_true", help="choose learning rates instead")
    parser.add_argument("--dataset", default="rt_snippets", help="a name that sources knows")
    parser.add_argument("--models", default="minilm", help="such as minilm,smollm2")
    parser.add_argument("--n", type=int, default=1000, help="training rows")
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2), help="such as 0,1,2")
    parser.add_argument("--ranks", type=numbers, default=(8,), help="of LoRA, such as 1,2,4,8")
    parser.add_argument("--test-size", type=int, default=2000, help="test rows at most")
    given = parser.parse_args(argv)
    models = tuple(given.models.split(","))
    if given.rates:
        choose_rates(given.folder, given.dataset, models, given.n)
    else:
        measure(given.folder, given.dataset, models, given.n, given.seeds, given.ranks,
                given.test_size)


if __name__ == "__main__":
    main()
