"""What each trick of the fast recipe gives: one short training run a call, scored without the test.

    python tests/bench/tricks.py --name "three layers frozen" --freeze 3 --rows 18500

Each run reads IMDB training reviews cut to 128 tokens once, in about six minutes on two cores. It
is scored on reviews read at 256 tokens that no run trains on: the validation rows, and the last
training rows of the seed's order. No test row is read. The record keeps all runs under their names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from growth import RECORDS
from time_to_score import add_run, freeze

HELD_OUT = 2990  # training rows that no run may train on


def run(args: argparse.Namespace, splits) -> dict[str, Any]:
    """Train and score one variant."""
    import numpy as np

    from tutorkit.data import SentimentDataset
    from tutorkit.machine import git_commit
    from tutorkit.metrics import accuracy_interval
    from tutorkit.models import load_model, set_trainable
    from tutorkit.training import TrainConfig, evaluate, fit

    loaded = load_model("minilm", seed=args.seed)
    train = splits["train"]
    order = np.random.default_rng(args.seed).permutation(len(train))
    free = order[:-HELD_OUT]
    if args.longest is not None:
        whole = SentimentDataset(train["text"], train["label"], loaded.tokenizer, 512)
        free = free[whole.full_lengths[free] <= args.longest]
    if args.rows > len(free):
        raise ValueError(f"--rows: expected at most {len(free):,}, found {args.rows:,}")

    def dataset(rows, max_length: int) -> SentimentDataset:
        return SentimentDataset(rows["text"], rows["label"], loaded.tokenizer, max_length)

    def unfreeze(event: str, state) -> None:
        """Gradual unfreezing in two stages (Howard & Ruder 2018, section 3.3)."""
        if args.freeze_first is not None:
            if event == "train_start":
                set_trainable(loaded.model, args.freeze_first)
            elif event == "step" and state.step == int(args.until * state.total_steps):
                set_trainable(loaded.model, args.freeze)

    set_trainable(loaded.model, args.freeze)
    config = TrainConfig(epochs=args.epochs, batch_size=args.batch_size, seed=args.seed,
                         learning_rate=args.learning_rate, patience=None)  # fmt: skip
    short = dataset(train.select(free[: args.rows].tolist()), args.train_max_length)
    state = fit(loaded.model, short, None, config, callbacks=[unfreeze])
    found = {"args": {k: v for k, v in vars(args).items() if k not in ("name", "output")},
             "tokens": state.tokens, "seconds": state.seconds, "git_commit": git_commit()}
    held_out = train.select(order[-HELD_OUT:].tolist())
    for name, rows in {"validation": splits["validation"], "held_out": held_out}.items():
        result = evaluate(loaded.model, dataset(rows, args.max_length))
        low, high = accuracy_interval(round(result.accuracy * len(rows)), len(rows))
        found[name] = {"n": len(rows), "accuracy": result.accuracy, "accuracy_ci95": [low, high]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--freeze", default="none", type=freeze,
                        help="none, embeddings or N layers")  # fmt: skip
    parser.add_argument("--freeze-first", type=int, help="more layers, frozen in the beginning")
    parser.add_argument("--until", type=float, default=0.35, help="share of steps of the beginning")
    parser.add_argument("--rows", type=int, required=True, help="training reviews")
    parser.add_argument("--longest", type=int, help="take only reviews of at most so many tokens")
    parser.add_argument("--train-max-length", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=256, help="of a review that is scored")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RECORDS / "tricks.json")
    args = parser.parse_args()

    from tutorkit.sources import load_splits

    found = add_run(args, load_splits("imdb"), run)
    print(f"{args.name}: held-out accuracy {found['held_out']['accuracy']:.4f}, "
          f"{found['tokens']:,} tokens in {found['seconds']:.0f} s; wrote {args.output}")


if __name__ == "__main__":
    main()
