"""The README's tables of the stored studies.

    python -m tutorkit.studies.tables README.md       writes them between their marks
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tutorkit.metrics import mean_interval
from tutorkit.multitask_figures import DOMAINS, LOOKS, minutes
from tutorkit.studies import compare
from tutorkit.studies.shelf import Record, stored
from tutorkit.tables import between_marks, markdown_table

METHODS = {
    "full": "everything", "lora": "LoRA, rank {r}", "adalora": "AdaLoRA, ranks {init_r} to "
    "{target_r} a layer", "adapter": "bottleneck adapters, width {bottleneck}", "bitfit": "BitFit",
    "head": "last layer alone", "plain": "plain", "plain_longer": "plain, twice the epochs",
    "fgm": "FGM, ε = {epsilon:g}", "freelb": "FreeLB, {steps} steps, ε = {epsilon:g}",
}  # fmt: skip
HEAD_OF_SCORES = "Test accuracy, mean of the seeds (lowest to highest)"


def peft_text(record: Record) -> str:
    """The table of methods that train few weights; it ends with a newline."""
    rows = [("Trained", "Weights that train", HEAD_OF_SCORES, "Minus everything, points",
             "Seconds of one core", "Peak memory")]  # fmt: skip
    everything = _lines(record, method="full")
    for method in [m for m in METHODS if _lines(record, method=m)]:
        lines = _lines(record, method=method)
        rows.append((
            METHODS[method].format(**lines[0]["settings"]),
            f"{lines[0]['n_trained']:,} "
            f"({100 * lines[0]['n_trained'] / lines[0]['n_parameters']:.3g} %)",
            scores(lines), differences(lines, everything) if method != "full" else "—",
            f"{np.median([line['cpu_s'] for line in lines]):.0f}",
            f"{max(line['peak_rss_mb'] for line in lines) / 1024:.2f} GiB",
        ))  # fmt: skip
    for line in _lines(record, method="baseline"):
        rows.append((f"{line['model']} (baseline)", "—", f"{line['accuracy']:.3f}",
                     differences([line], everything), f"{line['train_s']:.0f}", "—"))  # fmt: skip
    one = everything[0]
    return markdown_table(rows) + _foot(record, (
        f"`{one['model']}`, {one['n']:,} training reviews seen once in {one['steps']} steps of "
        f"{one['batch_size']}"
    ))  # fmt: skip


def adversarial_text(record: Record) -> str:
    """The table of adversarial training; it ends with a newline."""
    plain = _lines(record, method="plain")
    names = list(plain[0]["measured"])
    rows = [("Training", HEAD_OF_SCORES, "Minus plain, points",
             *(f"{name} (n = {plain[0]['measured'][name]['n']:,})" for name in names),
             "Seconds of one core")]  # fmt: skip
    for method in dict.fromkeys(line["method"] for line in record.lines):
        lines = _lines(record, method=method)
        known = METHODS.get(method)
        name = known.format(**lines[0]["settings"]) if known else f"{method} (baseline)"
        measured = [scores([line["measured"][what] for line in lines], 2) for what in names]
        seconds = f"{np.median([x['cpu_s'] for x in lines]):.0f}" if known else "—"
        rows.append((name, scores(lines), differences(lines, plain) if method != "plain" else "—",
                     *measured, seconds))  # fmt: skip
    one = plain[0]
    return markdown_table(rows) + _foot(record, (
        f"`{record.about['settings']['model']}`, {one['n']:,} training reviews, "
        f"learning rate {one['learning_rate']:g}, steps of {one['batch_size']}"
    ))  # fmt: skip


def distillation_text(record: Record) -> str:
    """The table of students; it ends with a newline."""
    teacher = _lines(record, student="teacher", seed=0)
    timed = {line["student"]: line["latency"] for line in record.lines if "latency" in line}
    rows = [("Model", "Learns from", HEAD_OF_SCORES, "Minus alone, points", "Of the teacher's",
             "Says as the teacher", "Weights without embeddings", "Milliseconds a review, median "
             "(95th percentile)", "As fast as the teacher, times")]  # fmt: skip
    kinds = dict.fromkeys((line["student"], line.get("taught")) for line in record.lines
                          if "accuracy" in line)  # fmt: skip
    for student, taught in kinds:
        lines = _lines(record, student=student, taught=taught)
        alone = _lines(record, student=student, taught="alone")
        speed = timed.get(student)
        rows.append((
            student if "n_parameters" in lines[0] else f"{student} (baseline)", taught or "labels",
            scores(lines), differences(lines, alone) if taught not in (None, "alone") else "—",
            f"{np.mean([x['accuracy'] for x in lines]) / teacher[0]['accuracy']:.1%}",
            scores([{"accuracy": x["agreement"]} for x in lines]),
            f"{lines[0]['n_non_embedding']:,}" if "n_parameters" in lines[0] else "—",
            f"{speed['median_ms']:.1f} ({speed['p95_ms']:.1f})" if speed else "—",
            f"{timed['teacher']['median_ms'] / speed['median_ms']:.1f}" if speed else "—",
        ))  # fmt: skip
    one = _lines(record, taught="alone")[0]
    return markdown_table(rows) + _foot(record, (
        f"{one['n']:,} training reviews, {one['epochs']} epochs; students learn from "
        f"{record.about['settings']['train_max_length']} tokens a review and read "
        f"{record.about['settings']['max_length']}; one review at a time on one core"
    ))  # fmt: skip


def multitask_text(record: Record) -> str:
    """The table of several domains in one model, by labels a domain; it ends with a newline."""
    domains = list(record.about["settings"]["n_test"])
    budgets = sorted({line["n"] for line in record.lines})
    rows = [("Labels a domain", "Model",
             *(f"{DOMAINS.get(d, d)} (n = {record.about['settings']['n_test'][d]:,})"
               for d in domains),
             f"Mean of the domains minus {LOOKS['single'][0]}, points", "Minutes of one core")]
    settings = [s for s in LOOKS if _lines(record, setting=s)]
    for n in budgets:
        single = _means(record, "single", n)
        for setting in settings:
            cells = [scores(_lines(record, setting=setting, n=n, domain=d)) for d in domains]
            less = _points(_means(record, setting, n) - single) if setting != "single" else "—"
            took = minutes(record.lines, setting, n)
            title = LOOKS[setting][0] if took is not None else f"{setting} (baseline)"
            rows.append((f"{n:,}", title, *cells, less, "—" if took is None else f"{took:.1f}"))
    return markdown_table(rows) + _foot(record, (
        f"`{record.about['settings']['model']}`; the middle columns are test accuracy, mean of the "
        "seeds (lowest to highest)"
    ))  # fmt: skip


def scores(lines: Sequence[Mapping], decimals: int = 3) -> str:
    """The mean accuracy of runs that differ in their seed, and the range; or the only one."""
    found = [line["accuracy"] for line in lines]
    if len(found) == 1:
        return f"{found[0]:.{decimals}f}"
    return (f"{np.mean(found):.{decimals}f} ({min(found):.{decimals}f}–"
            f"{max(found):.{decimals}f})")  # fmt: skip


def differences(lines: Sequence[Mapping], rivals: Sequence[Mapping]) -> str:
    """The mean difference in points, seed by seed, with its interval; a single run meets all."""
    return _points(np.array(compare.differences(lines, rivals, any_seed=len(lines) == 1)))


def render(path: str | Path) -> None:
    """Write the tables of the stored studies into a document, between those marks that it has.

    Raises:
        ValueError: it has none of them.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    marks = [mark for mark in TABLES if f"<!-- {mark}:start -->" in text]
    if not marks:
        raise ValueError(f"{path}: expected marks such as <!-- {next(iter(TABLES))}:start -->, "
                         "found none: write the pair of lines where a table is to stand")
    for mark in marks:
        name, make = TABLES[mark]
        text = between_marks(text, mark, f"\n{make(stored(name))}", str(path))
    path.write_text(text, encoding="utf-8")


TABLES: dict[str, tuple[str, Callable[[Record], str]]] = {
    "peft": ("peft-imdb-minilm", peft_text),
    "adversarial": ("adversarial-imdb-minilm", adversarial_text),
    "distillation": ("distillation-imdb", distillation_text),
    "multitask": ("multitask-snippets", multitask_text),
}


def _lines(record: Record, **fields) -> list[dict]:
    return [line for line in record.lines
            if "accuracy" in line and all(line.get(k) == v for k, v in fields.items())]  # fmt: skip


def _means(record: Record, setting: str, n: int) -> np.ndarray:
    """Accuracy over the domains, one mean a seed."""
    lines = _lines(record, setting=setting, n=n)
    seeds = sorted({line["seed"] for line in lines})
    return np.array([np.mean([x["accuracy"] for x in lines if x["seed"] == s]) for s in seeds])


def _points(values: np.ndarray) -> str:
    points = 100 * values
    if len(points) < 2:
        return f"{points.mean():+.1f}"
    low, high = mean_interval(points)
    return f"{points.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def _foot(record: Record, what: str) -> str:
    settings, machine = record.about["settings"], record.about["environment"]
    versions, seeds = machine["versions"], sorted({x["seed"] for x in record.lines if "seed" in x})
    data = ""
    if "dataset" in settings:
        data = (f" {settings['dataset']['name']} ({settings['dataset']['source']}), the same "
                f"{settings['n_test']:,} test reviews for all, up to {settings['max_length']} "
                "tokens each; the baselines read whole reviews.")  # fmt: skip
    return (f"\n{what[0].upper() + what[1:]}; {len(seeds)} seeds.{data} In brackets behind a "
            "difference: 95 % interval over the seeds (Student's t). "
            f"{machine['cpu']}, {machine['gpu'] or 'no GPU'}, torch {versions['torch']}, "
            f"commit {record.about['git_commit']}.\n")  # fmt: skip


if __name__ == "__main__":
    render(sys.argv[1])
