"""Fine-tune one model in several ways on the same rows, in turn, and save what each took.

    python tests/bench/bench.py                       (or: make bench)
    python tests/bench/bench.py --rows 64 --test 64 --max-length 32 --output bench.json

Every contender lives in a process of its own and only one of them works at a time: round by round,
each trains on that round's rows, then each reads that round's test rows. A busy moment of the
machine so meets all of them, and the ratio of two contenders is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

OURS = "tutorkit"


def work(name: str, model: str, max_length: int, rows, pipe) -> None:
    """The process of one contender: answers ("train" | "predict", rows): seconds, rows right.

    First it says how long it took from its start to the end of a first step on `rows`.
    """
    started = time.perf_counter()
    os.environ["HF_HUB_OFFLINE"] = "1"  # a contender that asks the hub would wait for it
    import datasets
    import transformers
    from contenders import CONTENDERS

    from tutorkit.machine import peak_rss_mb

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    contender = CONTENDERS[name](model, max_length)
    contender.train(rows)
    pipe.send(time.perf_counter() - started)
    while (order := pipe.recv()) is not None:
        task, rows = order
        started = time.perf_counter()
        found = contender.train(rows) if task == "train" else contender.predict(rows)
        pipe.send((time.perf_counter() - started, found, peak_rss_mb()))


def operations(lengths, model) -> int:
    """Additions and multiplications of one forward pass over the real tokens.

    2 a weight and token, and 4 T² D a layer for the attention of a text of T tokens.
    """
    from tutorkit.models import backbone_layers, non_embedding_parameters

    layers, width = len(backbone_layers(model)), model.config.hidden_size
    of_weights = 2 * non_embedding_parameters(model) * lengths.sum()
    return int(of_weights + 4 * layers * width * (lengths**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", default="auto", help="name of a data set")
    parser.add_argument("--rows", type=int, default=1152, help="training rows, over all rounds")
    parser.add_argument("--test", type=int, default=2000, help="test rows, over all rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"))
    args = parser.parse_args()

    import numpy as np
    from contenders import BATCH, CONTENDERS, Rows

    from tutorkit import machine
    from tutorkit.data import SentimentDataset, take_rows
    from tutorkit.metrics import accuracy_interval
    from tutorkit.models import load_model
    from tutorkit.precision import choose_device, choose_precision
    from tutorkit.sources import load_splits

    splits = load_splits(args.data)
    loaded = load_model(args.model)
    rounds, lengths = {}, {}
    for task, split, size in (("train", "train", args.rows), ("predict", "test", args.test)):
        table = take_rows(splits[split], size, seed=0, name=split)
        parts = [table.select(part) for part in np.array_split(np.arange(len(table)), args.rounds)]
        rounds[task] = [Rows(list(part["text"]), list(part["label"])) for part in parts]
        lengths[task] = [
            SentimentDataset(r.texts, r.labels, loaded.tokenizer, args.max_length).lengths
            for r in rounds[task]
        ]
    precision = choose_precision("auto", choose_device())
    context = multiprocessing.get_context("spawn")
    first = Rows(rounds["train"][0].texts[:BATCH], rounds["train"][0].labels[:BATCH])
    pipes, first_step = {}, {}
    for name in CONTENDERS:
        pipes[name], other = context.Pipe()
        context.Process(target=work, args=(name, args.model, args.max_length, first, other),
                        daemon=True).start()  # fmt: skip
        first_step[name] = pipes[name].recv()

    peaks = [machine.matmul_gflops(precision, 2048, 1.0)]
    seconds = {name: {"train": [], "predict": []} for name in CONTENDERS}
    right = dict.fromkeys(CONTENDERS, 0)
    memory = {}
    for task in ("train", "predict"):
        for number, rows in enumerate(rounds[task]):
            for name, pipe in pipes.items():
                pipe.send((task, rows))
                try:
                    took, found, memory[name, task] = pipe.recv()
                except EOFError:
                    raise SystemExit(f"{name} failed, see above: nothing was saved") from None
                seconds[name][task].append(took)
                if task == "predict":
                    right[name] += found
                print(f"{task} round {number + 1}: {name} {took:.1f} s", flush=True)
            peaks.append(machine.matmul_gflops(precision, 2048, 1.0))
    for pipe in pipes.values():
        pipe.send(None)

    n_test = sum(map(len, lengths["predict"]))
    work_of = {"train": [3 * operations(n, loaded.model) for n in lengths["train"]],
               "predict": [operations(n, loaded.model) for n in lengths["predict"]]}  # fmt: skip
    results = {}
    for name in CONTENDERS:
        result = {"accuracy": right[name] / n_test,
                  "accuracy_ci95": list(accuracy_interval(right[name], n_test)),
                  "first_step_s": first_step[name]}  # fmt: skip
        for task in ("train", "predict"):
            took = seconds[name][task]
            result[task] = {
                "seconds": took,
                "tokens_per_s": statistics.median(
                    n.sum() / s for n, s in zip(lengths[task], took, strict=True)
                ),
                "s_per_1000": statistics.median(
                    1000 * s / len(n) for n, s in zip(lengths[task], took, strict=True)
                ),
                "share_of_peak": statistics.median(
                    w / s / max(peaks) / 1e9 for w, s in zip(work_of[task], took, strict=True)
                ),
                "ours_faster": statistics.median(
                    s / ours for s, ours in zip(took, seconds[OURS][task], strict=True)
                ),
                "peak_rss_mb": memory[name, task],
            }
        results[name] = result
    record = {
        "model": args.model, "dataset": splits.name, "source": splits.source,
        "n_train": sum(map(len, lengths["train"])), "n_test": n_test,
        "rounds": args.rounds, "max_length": args.max_length, "batch_size": BATCH,
        "steps": sum(-(-len(n) // BATCH) for n in lengths["train"]),
        "tokens": {task: int(sum(n.sum() for n in found)) for task, found in lengths.items()},
        "precision": precision, "peak_gflops": max(peaks), "peak_gflops_each": peaks,
        "results": results, "environment": machine.environment(),
        "git_commit": machine.git_commit(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
