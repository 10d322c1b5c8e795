"""Prose and card: every number in them comes from the record."""

import copy
import json
import re
from pathlib import Path

import pytest

from tutorkit import cards
from tutorkit.metrics import accuracy_interval
from tutorkit.parameters import ReportParameters

RECORD = Path(__file__).parent / "assets" / "records" / "imdb-minilm" / "metrics.json"


@pytest.fixture
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def test_the_summary_quotes_the_record(record):
    text = cards.summary(record)
    test = record["test"]
    low, high = test["accuracy_ci95"]
    assert f"**{test['accuracy']:.4f}**" in text
    assert f"{low:.4f} to {high:.4f}" in text
    assert f"{test['n']:,} test reviews" in text
    assert f"{record['model']['n_trainable']:,} trained parameters" in text
    assert f"seed {record['seed']}" in text


def test_another_record_gives_another_summary(record):
    other = copy.deepcopy(record)
    other["test"]["accuracy"] = 0.1234
    assert "**0.1234**" in cards.summary(other)
    assert "**0.1234**" not in cards.summary(record)


def test_what_a_run_did_not_measure_is_not_mentioned(record):
    record["before"]["zero_shot_accuracy"] = None
    record["test"].update(contrast=None, n_seen=0, accuracy_without_seen=0.5)
    text = cards.summary(record)
    assert "answering the question" not in text
    assert "expert edits" not in text
    assert "stand in the training rows" not in text


def test_extra_scores_are_mentioned_where_they_were_measured(record):
    record["before"]["zero_shot_accuracy"] = 0.612
    contrast = {"n": 100, "accuracy": 0.71, "nb_trigrams": 0.41}
    record["test"].update(contrast=contrast, n_seen=12, accuracy_without_seen=0.9111)
    text = cards.summary(record)
    assert "0.612 by answering the question" in text
    assert "On 100 expert edits that flip the label it scores 0.71 (`nb_trigrams` 0.41)" in text
    assert re.search(r"12 test reviews stand in the training rows too; .* 0\.9111", text)


def test_the_model_card_has_the_summary_the_settings_and_how_to_load_it(record):
    card = cards.model_card(record)
    assert card.startswith("---\npipeline_tag: text-classification\n")
    assert cards.summary(record) in card
    assert f"| max_length | {record['config']['max_length']} |" in card
    assert 'pipeline("text-classification"' in card
    assert record["model"]["source"] in card


def test_the_config_block_holds_what_auto_came_to_and_not_where_it_ran():
    config = cards.config_of(ReportParameters(run_dir="somewhere"), "bf16", "cpu")
    assert (config["precision"], config["device"]) == ("bf16", "cpu")
    assert not {"run_dir", "overwrite", "dataset", "model"} & set(config)
    assert config["learning_rate"] == 1e-4


def test_the_comparison_has_model_before_baselines_and_the_claim():
    test = {"accuracy": 0.9, "accuracy_ci95": [0.88, 0.92]}
    before = {"accuracy": 0.51, "n": 1000, "zero_shot_accuracy": 0.6}
    baseline = {"majority": {"accuracy": 0.5, "accuracy_ci95": [0.4, 0.6]}}
    rows = cards.scores("imdb", "minilm", test, before, baseline)
    assert [row["kind"] for row in rows] == ["model", "before", "before", "baseline", "claim"]
    assert rows[1]["ci95"] == list(accuracy_interval(510, 1000))
    assert rows[2]["accuracy"] == 0.6
    assert rows[-1]["accuracy"] == 0.835 and rows[-1]["ci95"] is None
    no_zero_shot = before | {"zero_shot_accuracy": None}
    rows = cards.scores("rt_snippets", "m", test, no_zero_shot, baseline)
    assert [row["kind"] for row in rows] == ["model", "before", "baseline"]
