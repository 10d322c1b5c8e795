"""How the cost of training grows: with batch size, length, model, trained layers, and rows.

    python tests/bench/growth.py
    python tests/bench/growth.py --points rows batch-8      some series or points alone

Each point is measured in a process of its own, whose peak memory is that of the point, and saved at
once: run again, the script goes on with those missing. A training point is eight steps of `fit`,
the first two untimed, on reviews joined until they fill the length: no padding is read. A rows
point turns reviews into token ids twice, the second time from the cache (kept from 5,000 texts on).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
WARM_UP, TIMED = 2, 6  # optimizer steps
SAME = ("cpu", "cores", "threads", "gpu", "precision")  # what makes two machines one, for a time


def points(model: str) -> dict[str, dict[str, Any]]:
    """Every point by its name, in the order in which they are measured."""
    plain = {"model": model, "batch_size": 16, "max_length": 128, "freeze": "none"}
    series = {
        "batch": ("batch_size", (4, 8, 16, 32, 64), plain),
        "length": ("max_length", (32, 64, 128, 256, 512), plain),
        "model": ("model", ("tiny", "minilm", "smollm2"), plain | {"batch_size": 8}),
        "freeze": ("freeze", ("none", "embeddings", 2, 3, 4, "backbone"),
                   plain | {"batch_size": 32}),  # fmt: skip
        "rows": ("rows", (1_000, 5_000, 25_000), {"model": model, "max_length": 256}),
    }
    return {
        f"{name}-{value}": {"series": name, **settings, varied: value}
        for name, (varied, values, settings) in series.items()
        for value in values
    }


def filled(texts: Sequence[str], rows: int, words: int) -> list[str]:
    """`rows` texts of `words` words or more: reviews joined in order, over and over."""
    source, found = itertools.cycle(texts), []
    for _ in range(rows):
        text = next(source)
        while len(text.split()) < words:
            text += " " + next(source)
        found.append(text)
    return found


def medians(moments: Sequence[float], tokens: Sequence[int], warm_up: int) -> dict[str, Any]:
    """Medians over the steps after the warm-up.

    `moments` are S + 1 clock times: the start, then the end of each step; `tokens` are S counts.
    """
    seconds = [end - start for start, end in itertools.pairwise(moments)]
    timed = list(zip(seconds, tokens, strict=True))[warm_up:]
    return {
        "seconds": [s for s, _ in timed],
        "step_s": statistics.median(s for s, _ in timed),
        "tokens_per_s": statistics.median(n / s for s, n in timed),
    }


def train_point(point: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Times and peak memory of `fit` on these texts, in a process of its own."""
    from tutorkit import models
    from tutorkit.data import SentimentDataset
    from tutorkit.machine import peak_rss_mb
    from tutorkit.training import TrainConfig, fit

    loaded = models.load_model(point["model"])
    models.check_max_length(loaded.model, point["max_length"])
    models.set_trainable(loaded.model, point["freeze"])
    labels = [row % 2 for row in range(len(texts))]
    rows = SentimentDataset(texts, labels, loaded.tokenizer, point["max_length"])
    moments = []

    def clock(event: str, _state) -> None:
        if event in ("train_start", "step"):
            moments.append(time.perf_counter())

    config = TrainConfig(epochs=1, batch_size=point["batch_size"])
    state = fit(loaded.model, rows, None, config, callbacks=[clock])
    return medians(moments, [step["tokens"] for step in state.steps], WARM_UP) | {
        "peak_rss_mb": peak_rss_mb(),
        "trained_parameters": models.count_parameters(loaded.model)[1],
        "non_embedding_parameters": models.non_embedding_parameters(loaded.model),
        "micro_batch_size": state.micro_batch_size,  # None: the memory was enough
    }  # fmt: skip


def rows_point(point: dict[str, Any], texts: list[str], cache: str) -> dict[str, Any]:
    """Seconds and peak memory until the token ids are held, in a process of its own."""
    from tutorkit.data import SentimentDataset
    from tutorkit.machine import peak_rss_mb
    from tutorkit.models import load_model

    tokenizer = load_model(point["model"]).tokenizer
    os.environ["TUTORKIT_CACHE"] = cache  # only now: the weights come from the usual cache
    started = time.perf_counter()
    held = SentimentDataset(texts, [0] * len(texts), tokenizer, point["max_length"])
    seconds = [time.perf_counter() - started]
    tokens = int(held.full_lengths.sum())
    return {"seconds": seconds, "tokens": tokens, "peak_rss_mb": peak_rss_mb()}


def measured(point: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    def alone(work: Callable, *arguments: Any) -> dict[str, Any]:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(work, *arguments).result()

    if point["series"] == "rows":
        with tempfile.TemporaryDirectory() as cache:  # empty for the first, filled for the second
            return {how: alone(rows_point, point, texts[: point["rows"]], cache)
                    for how in ("tokenized", "cached")}  # fmt: skip
    rows = (WARM_UP + TIMED) * point["batch_size"]
    return alone(train_point, point, filled(texts, rows, words=point["max_length"]))


def here() -> dict[str, Any]:
    """This machine as a record keeps it, with the threads and number format torch computes in."""
    import torch

    from tutorkit import machine, precision

    numeric = precision.choose_precision("auto", precision.choose_device())
    return machine.environment() | {"threads": torch.get_num_threads(), "precision": numeric}


def open_record(path: Path, start: dict[str, Any]) -> dict[str, Any]:
    """The record at `path`, else `start`; ValueError where hardware or settings differ."""
    if not path.exists():
        return start
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, expected = _identity(start), _identity(record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a record that this script wrote, found something else "
                         f"({error!r}). It is left as it is: name another --output") from None
    details = "; ".join(f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}"
                        for key in expected | found if expected.get(key) != found.get(key))
    if details:
        raise ValueError(
            f"{path} was measured elsewhere or otherwise ({details}): the two do not compare. It "
            "is left as it is: name another --output, or remove it to measure all of it anew"
        )
    return record


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    machine, torch = record["hardware"], record["hardware"]["versions"]["torch"]
    return {key: machine[key] for key in SAME} | {"torch": torch} | record["settings"]


def save_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record as JSON; an interrupted write leaves the file as it was."""
    from tutorkit.notebooks import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", help="of all series but the one over models")
    parser.add_argument("--data", default="imdb", help="name of a data set; no test row is read")
    series = list(dict.fromkeys(point["series"] for point in points("").values()))
    parser.add_argument("--points", nargs="+", choices=[*series, *points("")], default=series,
                        metavar="POINT", help=f"of {', '.join(series)} or single ones, as batch-8")
    parser.add_argument("--output", type=Path, default=RECORDS / "growth.json")
    args = parser.parse_args()

    import numpy as np

    from tutorkit.machine import git_commit
    from tutorkit.sources import load_splits

    splits, commit = load_splits(args.data), git_commit()
    texts = [*splits["train"]["text"], *splits["validation"]["text"]]
    texts = [texts[row] for row in np.random.default_rng(0).permutation(len(texts))]
    settings = {"model": args.model, "dataset": splits.name, "source": splits.source}
    start = {"settings": settings, "hardware": here(), "points": {}}
    try:
        record = open_record(args.output, start)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    os.environ["HF_HUB_OFFLINE"] = "1"  # else every process would ask the hub first
    chosen = {n: p for n, p in points(args.model).items() if {n, p["series"]} & set(args.points)}
    for name, point in chosen.items():
        if name in record["points"]:
            print(f"{name}: measured before, at commit {record['points'][name]['git_commit']}")
            continue
        if point.get("rows", 0) > len(texts):
            print(f"{name}: left out, {splits.name} has {len(texts):,} rows to train on")
            continue
        try:
            found = measured(point, texts)
        except Exception as error:  # of its process, also when the system killed it
            raise SystemExit(f"{name} failed ({error!r}). The points before it are saved: mend "
                             "the cause and run again, or name other --points") from error
        record["points"][name] = point | found | {"git_commit": commit}
        save_record(args.output, record)
        for part in found.values() if point["series"] == "rows" else [found]:
            seconds, memory = sum(part["seconds"]), part["peak_rss_mb"]
            print(f"{name}: {seconds:.2f} s, {memory:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
