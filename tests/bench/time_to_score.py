"""How good a model gets in how much time: validation accuracy against seconds of training.

    python tests/bench/time_to_score.py --name "minilm, all layers"
    python tests/bench/time_to_score.py --name "minilm, two frozen" --freeze 2

Each call trains once and adds its curve, under its name, to one record. The clock stands still
while the validation rows are read: looking more often costs nothing. No test row is read.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from growth import RECORDS, here, open_record, save_record

LONGEST_NAME = 30  # characters: it stands at the end of a line in the figure


def label(name: str) -> str:
    """The name of a run, if it fits into a figure."""
    if not 1 <= len(name.strip()) <= LONGEST_NAME or not name.isprintable():
        raise argparse.ArgumentTypeError(
            f"expected a name of 1 to {LONGEST_NAME} printable characters in one line, found "
            f"{name!r}: it is written at the end of the run's line in the figure"
        )
    return name.strip()


def freeze(value: str) -> str | int:
    """What `models.set_trainable` takes: a number of layers, or a word."""
    return int(value) if value.isdecimal() else value


def add_run(args: argparse.Namespace, splits, run: Callable) -> dict[str, Any]:
    """Add what `run(args, splits)` returns to the record, under its name.

    It is not begun where the name is taken or the record is of another machine.
    """
    settings = {"dataset": splits.name, "source": splits.source}
    start = {"settings": settings, "hardware": here(), "runs": {}}
    try:
        record = open_record(args.output, start)
        if args.name in record["runs"]:
            raise ValueError(f"--name: expected a new name, found {args.name!r}, which is in "
                             f"{args.output} already and stays as it is: choose another one")
        found = run(args, splits)
        record = open_record(args.output, start)  # another run may have been added meanwhile
        record["runs"][args.name] = found
        save_record(args.output, record)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return found


def training_seconds(events: Sequence[tuple[str, float]]) -> list[float]:
    """Seconds of training before each evaluation, those of the evaluations before it taken off.

    An evaluation lasts from the event before it, which is a step's, to its own. `events` are the
    names of `fit`'s events, in order, each with the seconds since the start of the run.
    """
    evaluating, before, found = 0.0, 0.0, []
    for event, now in events:
        if event == "evaluation":
            found.append(before - evaluating)
            evaluating += now - before
        before = now
    return found


def curve(state, events: Sequence[tuple[str, float]], n_validation: int) -> list[dict[str, Any]]:
    """One entry a look: the seconds and tokens of training so far, and the accuracy by then."""
    from tutorkit.metrics import accuracy_interval

    tokens = list(itertools.accumulate(step["tokens"] for step in state.steps))
    return [
        {
            "step": look["step"], "seconds": seconds, "tokens": tokens[look["step"] - 1],
            "accuracy": look["accuracy"], "loss": look["loss"],
            "accuracy_ci95": accuracy_interval(round(look["accuracy"] * n_validation),
                                               n_validation),
        }
        for look, seconds in zip(state.evaluations, training_seconds(events), strict=True)
    ]  # fmt: skip


def train(args: argparse.Namespace, splits) -> dict[str, Any]:
    """One run as the record keeps it."""
    from tutorkit import machine, models
    from tutorkit.data import SentimentDataset, take_rows
    from tutorkit.training import TrainConfig, fit

    started = datetime.now(UTC).isoformat(timespec="seconds")
    loaded = models.load_model(args.model, seed=args.seed)
    models.check_max_length(loaded.model, max(args.max_length, args.train_max_length))
    models.set_trainable(loaded.model, args.freeze)
    tables = {"train": (take_rows(splits["train"], args.rows, args.seed), args.train_max_length),
              "validation": (splits["validation"], args.max_length)}  # fmt: skip
    rows = {split: SentimentDataset(table["text"], table["label"], loaded.tokenizer, length)
            for split, (table, length) in tables.items()}  # fmt: skip
    config = TrainConfig(
        epochs=args.epochs, batch_size=args.batch_size, learning_rate=args.learning_rate,
        evaluations_per_epoch=args.looks, patience=None, seed=args.seed,
    )  # fmt: skip
    events, memory = [], []

    def clock(event: str, state) -> None:
        events.append((event, state.seconds))
        if event == "evaluation":
            memory.append(machine.peak_rss_mb())  # so far: equal numbers are a flat process
            accuracy, seconds = state.evaluations[-1]["accuracy"], training_seconds(events)[-1]
            print(f"step {state.step} of {state.total_steps}: {accuracy:.3f} after "
                  f"{seconds / 60:.1f} minutes of training", flush=True)  # fmt: skip

    state = fit(loaded.model, rows["train"], rows["validation"], config, callbacks=[clock])
    looks = curve(state, events, len(rows["validation"]))
    everything, trained = models.count_parameters(loaded.model)
    return {
        "args": {key: value for key, value in vars(args).items() if key not in ("name", "output")},
        "n_train": len(rows["train"]), "n_validation": len(rows["validation"]),
        "parameters": everything, "trained_parameters": trained, "model_source": loaded.source,
        "curve": [look | {"peak_rss_mb": peak} for look, peak in zip(looks, memory, strict=True)],
        "tokens_per_s": looks[-1]["tokens"] / looks[-1]["seconds"],
        "peak_rss_mb": machine.peak_rss_mb(),
        "git_commit": machine.git_commit(), "started_at": started,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", type=label, required=True, help="of the run, for the figure")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", default="imdb", help="name of a data set; no test row is read")
    parser.add_argument("--freeze", default="none", type=freeze,
                        help="none, embeddings, backbone or N layers")  # fmt: skip
    parser.add_argument("--rows", type=int, default=16_000, help="training rows, drawn at random")
    parser.add_argument("--train-max-length", type=int, default=128, help="of a training row")
    parser.add_argument("--max-length", type=int, default=256, help="of a validation row")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--looks", type=int, default=8, help="at the validation rows, an epoch")
    parser.add_argument("--seed", type=int, default=0, help="of the rows drawn and of the run")
    parser.add_argument("--output", type=Path, default=RECORDS / "time_to_score.json")
    args = parser.parse_args()

    from tutorkit.sources import load_splits

    run = add_run(args, load_splits(args.data), train)
    print(f"{args.name}: {run['tokens_per_s']:,.0f} tokens/s, peak {run['peak_rss_mb']:,.0f} MiB; "
          f"wrote {args.output}")  # fmt: skip


if __name__ == "__main__":
    main()
