"""Prose made from a run record: the report's summary and the saved model's card.

Nothing here is typed by hand: each number is read from the record, so text and record agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tutorkit.metrics import accuracy_interval, compare_sentence
from tutorkit.parameters import ReportParameters

# What the material that this kit grew out of prints for IMDB. Nobody outside its maker can
# fine-tune that model, and the table it stands in contradicts itself: a claim, not a measurement.
CLAIM = {"name": "GPT-3, as claimed", "accuracy": 0.835, "ci95": None, "kind": "claim"}


def config_of(params: ReportParameters, precision: str, device: str) -> dict[str, Any]:
    """The `config` block of a record: the parameters, with what "auto" came to.

    The run's folder and `overwrite` are left out: they say where it ran, not what.
    """
    left_out = ("dataset", "model", "run_dir", "overwrite", "show_texts")
    config = {name: value for name, value in asdict(params).items() if name not in left_out}
    return config | {"precision": precision, "device": device}


def scores(
    dataset: str,
    model: str,
    test: Mapping[str, Any],
    before: Mapping[str, Any],
    baseline: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The rows of the comparison figure: `tutorkit.plots.score_comparison`.

    Args:
        dataset: the data set's name; the published claim is shown beside IMDB alone.
        model: the model's name.
        test: the `test` block of the record.
        before: the `before` block.
        baseline: as `tutorkit.baselines.run_baselines` returns it.
    """
    rows = [
        {"name": f"{model}, fine-tuned", "accuracy": test["accuracy"],
         "ci95": test["accuracy_ci95"], "kind": "model"},
        _before(f"{model}, untrained head", before["accuracy"], before["n"]),
    ]  # fmt: skip
    if before["zero_shot_accuracy"] is not None:
        rows.append(_before(f"{model}, zero-shot", before["zero_shot_accuracy"], before["n"]))
    rows += [
        {"name": name, "accuracy": score["accuracy"], "ci95": score["accuracy_ci95"],
         "kind": "baseline"}
        for name, score in baseline.items()
    ]  # fmt: skip
    return [*rows, dict(CLAIM)] if dataset == "imdb" else rows


def summary(record: Mapping[str, Any]) -> str:
    """The result of a run in a few sentences of Markdown.

    Args:
        record: the content of `metrics.json`.
    """
    test, dataset, config = record["test"], record["dataset"], record["config"]
    before, timing, environment = record["before"], record["timing"], record["environment"]
    best = max(record["baseline"], key=record["baseline"].get)
    contrast = test.get("contrast")
    lines = [
        f"`{record['model']['name']}` ({record['model']['n_trainable']:,} trained parameters), "
        f"fine-tuned on {dataset['n_train']:,} reviews of `{dataset['name']}` "
        f"({dataset['source']}), scores **{test['accuracy']:.4f}** "
        f"(95 % interval {test['accuracy_ci95'][0]:.4f} to {test['accuracy_ci95'][1]:.4f}) on "
        f"{test['n']:,} test reviews, macro F1 {test['macro_f1']:.4f}, ECE {test['ece']:.4f}.",
        f"Before fine-tuning it scored {before['accuracy']:.3f} on {before['n']:,} of them"
        + (f", and {before['zero_shot_accuracy']:.3f} by answering the question."
           if before["zero_shot_accuracy"] is not None else "."),
        compare_sentence(record["model"]["name"], best, record["paired"]),
        f"The best weights came at epoch {record['validation']['best_epoch']:.2f} "
        f"(validation accuracy {record['validation']['accuracy']:.4f}, "
        f"n = {dataset['n_validation']:,}).",
    ]  # fmt: skip
    if test.get("n_seen"):
        lines.append(
            f"{test['n_seen']:,} test reviews stand in the training rows too; without them the "
            f"accuracy is {test['accuracy_without_seen']:.4f}."
        )
    if contrast:
        words = ", ".join(
            f"`{name}` {value:.2f}" for name, value in contrast.items()
            if name not in ("n", "accuracy")
        )  # fmt: skip
        lines.append(
            f"On {contrast['n']} expert edits that flip the label it scores "
            f"{contrast['accuracy']:.2f} ({words})."
        )
    hardware = environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"
    lines.append(
        f"Training took {timing['train_s'] / 60:.1f} minutes ({timing['tokens_per_s']:,.0f} "
        f"tokens/s in {config['precision']}), the test {timing['eval_s'] / 60:.1f}; peak memory "
        f"{timing['peak_rss_mb'] / 1000:.1f} GB; seed {record['seed']}; on {hardware}."
    )
    return "\n\n".join(lines)


def model_card(record: Mapping[str, Any]) -> str:
    """The README of a saved model: what it is for, how it was made, what it scores."""
    dataset, model, config = record["dataset"], record["model"], record["config"]
    settings = "\n".join(f"| {name} | {value} |" for name, value in config.items())
    versions = ", ".join(
        f"{name} {version}" for name, version in record["environment"]["versions"].items()
    )
    return f"""---
pipeline_tag: text-classification
language: en
---
# {model["name"]}, fine-tuned on {dataset["name"]}

Tells positive film reviews (label 1) from negative ones (label 0).

```python
from transformers import pipeline
pipeline("text-classification", model="this/folder")("Not a dull minute.")
```

{summary(record)}

**Intended use**: learning and experiments. It has seen film reviews only; on other texts, on
sarcasm and on mixed verdicts expect it to err, and measure before you rely on it.

**Made from** {model["source"]}. **Data**: {dataset["source"]}; {dataset["n_train"]:,} training,
{dataset["n_validation"]:,} validation and {dataset["n_test"]:,} test reviews. Reviews are cut to
{config["max_length"]} tokens ({config["truncation"]}); the pipeline above cuts nothing by itself.

| setting | value |
|---|---|
{settings}

Made with {versions}; commit {record["git_commit"]}; started {record["started_at"]}.
"""


def _before(name: str, accuracy: float, n: int) -> dict[str, Any]:
    interval = accuracy_interval(round(accuracy * n), n)
    return {"name": name, "accuracy": accuracy, "ci95": list(interval), "kind": "before"}
