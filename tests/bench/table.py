"""The README's tables on speed, rendered from their saved records.

    python tests/bench/table.py           writes them into README.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tutorkit.tables import between_marks, markdown_table

RECORDS = Path(__file__).parent / "records"
RECORD = RECORDS / "minilm.json"
README = Path(__file__).parents[2] / "README.md"
HEAD = (
    "", "Training: tokens/s", "of the peak", "this kit is", "Reading: tokens/s", "of the peak",
    "this kit is", "1,000 reviews, trained / read", "First step after", "Peak memory",
    "Accuracy (95 % interval)",
)  # fmt: skip


def bench_text(record: dict[str, Any]) -> str:
    """The table, and under it what was measured on what; it ends with a newline."""
    rows = [HEAD]
    for name, result in record["results"].items():
        train, predict = result["train"], result["predict"]
        rows.append((
            name,
            f"{train['tokens_per_s']:,.0f}", f"{train['share_of_peak']:.0%}", _times(train),
            f"{predict['tokens_per_s']:,.0f}", f"{predict['share_of_peak']:.0%}", _times(predict),
            f"{train['s_per_1000']:.0f} / {predict['s_per_1000']:.0f} s",
            f"{result['first_step_s']:.0f} s",
            f"{max(train['peak_rss_mb'], predict['peak_rss_mb']) / 1024:.1f} GiB",
            _accuracy(result),
        ))  # fmt: skip
    machine, tokens = record["environment"], record["tokens"]
    versions = machine["versions"]
    return markdown_table(rows) + (
        f"\n`{record['model']}` on {record['dataset']} ({record['source']}): "
        f"{record['n_train']:,} training reviews in {record['steps']} steps of "
        f"{record['batch_size']}, {record['n_test']:,} test reviews, up to "
        f"{record['max_length']} tokens each ({tokens['train']:,} and {tokens['predict']:,} real "
        f"tokens; padding is not counted). {record['rounds']} rounds in which all contenders took "
        f"turns; medians over rounds. {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['gpu'] or 'no GPU'}; its matrix products reach {record['peak_gflops']:,.0f} "
        f"GFLOP/s in {record['precision']}, which is the peak that the shares refer to, whatever "
        f"precision a contender used. torch {versions['torch']}, transformers "
        f"{versions['transformers']}, commit {record['git_commit']}.\n"
    )


def _accuracy(result: dict[str, Any]) -> str:
    if result["accuracy"] is None:
        return "not measured"
    low, high = result["accuracy_ci95"]
    return f"{result['accuracy']:.3f} ({low:.3f}–{high:.3f})"


def _times(part: dict[str, Any]) -> str:
    return "—" if part["ours_faster"] == 1 else f"{part['ours_faster']:.1f}× as fast"


def tricks_text(tricks: dict[str, Any], growth: dict[str, Any]) -> str:
    """The variants of the fast recipe, each with what it takes and what it reaches."""
    rows = [("", "Layers frozen", "Reviews", "Batch", "Learning rate", "Minutes of training",
             "Held-out accuracy (95 % interval)")]  # fmt: skip
    n = max(run["held_out"]["n"] for run in tricks["runs"].values())
    for name, run in tricks["runs"].items():
        args, held_out = run["args"], run["held_out"]
        low, high = held_out["accuracy_ci95"]
        fewer = f", n = {held_out['n']:,}" if held_out["n"] != n else ""
        frozen = str(args["freeze"])
        if args["freeze_first"] is not None:
            frozen = f"{args['freeze_first']}, then {frozen}"
        rows.append((
            name, frozen, f"{args['rows']:,}", str(args["batch_size"]),
            f"{args['learning_rate']:g}", f"{minutes(run, growth):.1f}",
            f"{held_out['accuracy']:.3f} ({low:.3f}–{high:.3f}{fewer})",
        ))  # fmt: skip
    return markdown_table(rows) + (
        f"\nOne epoch over training reviews cut to 128 tokens, seed 0; scored on the same {n:,} "
        "training reviews that no run trained on (fewer where a run took some of them), read at "
        "256 tokens. Minutes: the run's tokens at "
        "the speed measured for its frozen layers on the quiet machine (the runs themselves shared "
        "their cores with other work).\n"
    )


def minutes(run: dict[str, Any], growth: dict[str, Any]) -> float:
    """Minutes of training of a variant at the speeds of the growth record's frozen layers."""
    speed = {str(point["freeze"]): point["tokens_per_s"] for point in growth["points"].values()
             if point["series"] == "freeze"}  # fmt: skip
    args = run["args"]
    first = args["until"] if args["freeze_first"] is not None else 0.0
    seconds = (1 - first) * run["tokens"] / speed[str(args["freeze"])]
    if first:
        seconds += first * run["tokens"] / speed[str(args["freeze_first"])]
    return seconds / 60


def rendered_readme() -> str:
    """README.md with its tables made anew."""
    bench, tricks, growth = (json.loads((RECORDS / name).read_text(encoding="utf-8"))
                             for name in ("minilm.json", "tricks.json", "growth.json"))
    text = between_marks(README.read_text("utf-8"), "bench", f"\n{bench_text(bench)}")
    return between_marks(text, "tricks", f"\n{tricks_text(tricks, growth)}")


if __name__ == "__main__":
    README.write_text(rendered_readme(), encoding="utf-8")
