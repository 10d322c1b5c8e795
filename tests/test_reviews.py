"""The built-in reviews: the promises that the data card makes."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter, defaultdict
from importlib.resources import files

import pytest

FIELDS = ["id", "text", "label", "aspects", "tags", "pair", "split"]
ASPECTS = {"acting", "plot", "visuals", "music", "pace"}
TAGS = {"negation", "contrast", "sarcasm", "comparison"}
ROWS_PER_SPLIT = {"train": 440, "validation": 100, "test": 200}
PAIRS_PER_SPLIT = {"train": 26, "validation": 14, "test": 50}

LINES = (
    files("tutorkit.datasets.reviews")
    .joinpath("reviews.jsonl")
    .read_text(encoding="utf-8")
    .removesuffix("\n")
    .split("\n")
)
ROWS = [json.loads(line) for line in LINES]
SINGLES = [row for row in ROWS if row["pair"] is None]
MEMBERS = [row for row in ROWS if row["pair"] is not None]


def pairs() -> dict[str, list[dict]]:
    by_name = defaultdict(list)
    for row in MEMBERS:
        by_name[row["pair"]].append(row)
    return by_name


def six_grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}


def bag_of_words():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))


def columns(rows: list[dict]) -> tuple[list[str], list[int]]:
    return [row["text"] for row in rows], [row["label"] for row in rows]


def test_every_line_has_the_documented_fields():
    for row in ROWS:
        assert list(row) == FIELDS
        assert type(row["label"]) is int and row["label"] in (0, 1)
        assert row["split"] in ROWS_PER_SPLIT
        for field, allowed in (("aspects", ASPECTS), ("tags", TAGS)):
            assert set(row[field]) <= allowed
            assert len(set(row[field])) == len(row[field])


def test_ids_number_the_lines():
    assert [row["id"] for row in ROWS] == [f"r{i:03d}" for i in range(1, 741)]


def test_texts_are_unique_plain_and_short():
    assert len({row["text"].lower() for row in ROWS}) == len(ROWS)
    for row in ROWS:
        text = row["text"]
        assert text == " ".join(text.split()), row["id"]
        assert 10 <= len(text.split()) <= 120, row["id"]
        assert not re.search(r"[<>\u2018-\u201f]", text), row["id"]


def test_lengths_are_spread():
    lengths = [len(row["text"].split()) for row in ROWS]
    bands = Counter("short" if n < 30 else "long" if n > 60 else "middle" for n in lengths)
    assert all(230 <= bands[name] <= 270 for name in ("short", "middle", "long"))


@pytest.mark.parametrize(("split", "n"), ROWS_PER_SPLIT.items())
def test_every_split_is_half_positive(split, n):
    labels = [row["label"] for row in ROWS if row["split"] == split]
    assert Counter(labels) == {0: n // 2, 1: n // 2}


def test_every_aspect_and_tag_occurs_with_both_labels():
    seen = {(value, row["label"]) for row in ROWS for value in row["aspects"] + row["tags"]}
    assert seen == {(value, label) for value in ASPECTS | TAGS for label in (0, 1)}


def test_pairs_have_opposite_labels_in_one_split():
    by_name = pairs()
    assert sorted(by_name) == [f"p{i:02d}" for i in range(1, 91)]
    for name, members in by_name.items():
        assert sorted(row["label"] for row in members) == [0, 1], name
        assert len({row["split"] for row in members}) == 1, name
    assert Counter(members[0]["split"] for members in by_name.values()) == PAIRS_PER_SPLIT


def test_pairs_differ_in_a_few_words():
    for name, (first, second) in pairs().items():
        a, b = first["text"].split(), second["text"].split()
        ratio = difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
        assert 0.7 <= ratio < 1, name


def test_no_phrase_of_six_words_returns_outside_its_pair():
    owners = defaultdict(set)
    for row in ROWS:
        for gram in six_grams(row["text"]):
            owners[gram].add(row["pair"] or row["id"])
    assert {gram: who for gram, who in owners.items() if len(who) > 1} == {}


def test_bag_of_words_does_not_solve_the_set():
    from sklearn.model_selection import GroupKFold, cross_val_score

    for rows in (SINGLES, ROWS):
        texts, labels = columns(rows)
        groups = [row["pair"] or row["id"] for row in rows]
        folds = GroupKFold(10)
        scores = cross_val_score(bag_of_words(), texts, labels, cv=folds, groups=groups)
        assert scores.mean() <= 0.90


def test_bag_of_words_guesses_on_the_pairs():
    model = bag_of_words().fit(*columns(SINGLES))
    assert model.score(*columns(MEMBERS)) < 0.60
