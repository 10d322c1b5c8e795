"""The bench runs, its figures follow from its times, and the README shows its record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tutorkit.data import SentimentDataset
from tutorkit.models import load_model, save_model
from tutorkit.sources import load_splits

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))
import bench  # noqa: E402
import table  # noqa: E402


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    save_model(load_model("tiny"), folder / "model", "a card")
    command = [sys.executable, BENCH / "bench.py", "--model", folder / "model", "--data", "reviews",
               "--rows", "70", "--test", "50", "--rounds", "2", "--max-length", "24",
               "--output", folder / "bench.json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"TUTORKIT_DATA": ""})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "bench.json").read_text())


def test_every_contender_did_the_same_work(record):
    assert list(record["results"])[-1] == "tutorkit" and len(record["results"]) == 5
    assert (record["n_train"], record["n_test"], record["steps"]) == (70, 50, 4)
    for result in record["results"].values():
        assert 0 <= result["accuracy"] <= 1 and result["first_step_s"] > 0
        low, high = result["accuracy_ci95"]
        assert low <= result["accuracy"] <= high
        assert round(result["accuracy"] * 50, 6) % 1 == 0
        for task in ("train", "predict"):
            assert len(result[task]["seconds"]) == 2 and min(result[task]["seconds"]) > 0
            assert result[task]["peak_rss_mb"] > 100


def test_figures_follow_from_the_times(record):
    ours = record["results"]["tutorkit"]
    for result in record["results"].values():
        for task, rows in (("train", 35), ("predict", 25)):
            seconds = np.array(result[task]["seconds"])
            ratio = np.median(seconds / np.array(ours[task]["seconds"]))
            assert result[task]["ours_faster"] == pytest.approx(ratio)
            assert result[task]["s_per_1000"] == pytest.approx(np.median(1000 * seconds / rows))
            # with two rounds the median is the mean
            assert min(seconds) < record["tokens"][task] / 2 / result[task]["tokens_per_s"] * 1.3


def test_operations_by_hand():
    loaded = load_model("tiny")
    h, i = 32, 64  # hidden size, inner size of a layer
    layer = 4 * (h * h + h) + 2 * h + (h * i + i) + (i * h + h) + 2 * h
    weights = 2 * layer + (h * h + h) + (2 * h + 2)  # two layers, pooler, classifier
    by_hand = sum(2 * weights * n + 2 * 2 * (2 * n * n * h) for n in (3, 10))
    assert bench.operations(np.array([3, 10]), loaded.model) == by_hand


def test_rows_are_cut_at_the_same_length_by_all():
    """Ours cuts at the head, as the tokenizer does for the others: the same token ids."""
    loaded = load_model("tiny")
    texts = list(load_splits("reviews")["train"]["text"])[:20]
    ours = SentimentDataset(texts, [0, 1] * 10, loaded.tokenizer, 12, truncation="head")
    theirs = loaded.tokenizer(texts, max_length=12, truncation=True)["input_ids"]
    assert [ours[i]["input_ids"].tolist() for i in range(20)] == theirs


def test_table_says_who_is_how_much_faster(record):
    text = table.bench_text(record)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert lines[-1].startswith("| tutorkit |") and lines[-1].count("—") == 2
    assert f"{record['results']['published loop']['train']['ours_faster']:.1f}× as fast" in lines[2]


def test_readme_shows_the_record():
    assert table.rendered_readme() == table.README.read_text("utf-8"), (
        "run python tests/bench/table.py"
    )
