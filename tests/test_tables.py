"""The results table, read as its reader does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tutorkit.runs import find_records
from tutorkit.tables import COLUMNS, between_marks, results_table

RECORDS = find_records(Path(__file__).parent / "assets/records")


def cells(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines()]


def test_table_by_hand() -> None:
    header, rule, *rows = cells(results_table(RECORDS))
    assert header == list(COLUMNS)
    assert rule == ["---"] * len(COLUMNS)
    assert rows[0] == [
        "minilm",
        "imdb (local mirror)",
        "22,500 / 1,000",
        "256 tokens (head+tail), 1 epoch, bf16",
        "0.925 (0.907–0.940)",
        "0.925",
        "0.031",
        "—",
        "nb_trigrams 0.900; difference +0.025 (p = 0.009)",
        "22.7M of 22.7M",
        "47 min",
        "1.5 GiB",
        "Example CPU, 2 cores",
        "0",
    ]
    # 900 of 1,000: Wilson interval 0.8799 to 0.9171.
    assert rows[1][:5] == [
        "nb_trigrams (baseline)",
        "imdb (local mirror)",
        "22,500 / 1,000",
        "—",
        "0.900 (0.880–0.917)",
    ]
    assert rows[2][0] == "majority (baseline)"
    smollm2 = rows[3]
    assert smollm2[8] == "nb_trigrams 0.790; difference +0.010 (p = 0.200, not resolved)"
    assert smollm2[9:11] == ["1,152 of 134.5M", "95 s"]
    assert smollm2[12:] == ["Example GPU", "7"]
    assert rows[4][0] == "nb_trigrams (baseline)"
    assert rows[5][:5] == ["GPT-3: claim, not a measurement", "reviews", "—", "—", "0.835"]
    assert len(rows) == 6
    assert all(len(row) == len(COLUMNS) for row in rows)


def test_a_shorter_length_in_training_is_said() -> None:
    record = copy.deepcopy(RECORDS[0])
    record["config"]["train_max_length"] = 128
    settings = cells(results_table([record]))[2][3]
    assert settings == "256 tokens (head+tail), 128 in training, 1 epoch, bf16"


def test_runs_that_differ_in_seed_only_share_their_baselines_but_stay_apart() -> None:
    again = copy.deepcopy(RECORDS[0])
    again["seed"], again["baseline_seconds"]["nb_trigrams"] = 1, 80.0
    rows = cells(results_table([RECORDS[0], again]))[2:]
    assert [row[0] for row in rows].count("minilm") == 2
    assert [row[0] for row in rows].count("nb_trigrams (baseline)") == 1


def test_best_first_within_a_data_set() -> None:
    weak = copy.deepcopy(RECORDS[0])
    weak["model"]["name"] = "weak"
    weak["test"] |= {"accuracy": 0.6, "accuracy_ci95": [0.57, 0.63]}
    rows = cells(results_table([weak, RECORDS[0]]))[2:]
    names = [row[0] for row in rows]
    assert names[:2] == ["minilm", "nb_trigrams (baseline)"] and names[2] == "weak"


def test_a_run_without_baselines_and_a_name_with_a_bar() -> None:
    alone = copy.deepcopy(RECORDS[0])
    alone |= {"baseline": {}, "baseline_seconds": {}, "paired": None}
    alone["model"]["name"] = "a|b"
    row = cells(results_table([alone]))[2]
    assert row[0] == "a/b" and row[7] == "—"


def test_no_records_leave_the_claim() -> None:
    assert [row[0] for row in cells(results_table([]))[2:]] == ["GPT-3: claim, not a measurement"]


def test_scores_on_expert_edits_stand_in_the_rows_of_model_and_baseline() -> None:
    record = copy.deepcopy(RECORDS[0])
    name = max(record["baseline"], key=record["baseline"].get)
    record["test"]["contrast"] = {"n": 100, "accuracy": 0.71, name: 0.33}
    rows = [line.split(" | ") for line in results_table([record]).splitlines()[2:]]
    place = COLUMNS.index("Expert edits")
    found = {row[0].removeprefix("| "): row[place] for row in rows}
    assert found[record["model"]["name"]] == "0.71 (n = 100)"
    assert found[f"{name} (baseline)"] == "0.33 (n = 100)"
    assert sorted(found.values()).count("—") == len(found) - 2


def test_only_the_text_between_the_marks_changes() -> None:
    text = "a\n<!-- badges:start -->\nold\n<!-- badges:end -->\nb\n"
    once = between_marks(text, "badges", "new")
    assert once == "a\n<!-- badges:start -->\nnew\n<!-- badges:end -->\nb\n"
    assert between_marks(once, "badges", "new") == once


@pytest.mark.parametrize(
    "text",
    [
        "no marks",
        "<!-- badges:start -->",
        "<!-- badges:end --><!-- badges:start -->",
        "<!-- badges:start --><!-- badges:start --><!-- badges:end -->",
    ],
)
def test_missing_marks_are_said(text: str) -> None:
    with pytest.raises(ValueError, match="expected one line <!-- badges:start --> and after it"):
        between_marks(text, "badges", "new")
