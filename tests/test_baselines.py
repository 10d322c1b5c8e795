"""Baselines on tiny texts whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from tutorkit.baselines import BASELINES, log_count_ratio, run_baselines
from tutorkit.metrics import accuracy_interval

GOOD = ["a good film", "good and warm", "truly good", "good, again", "how good it was"]
BAD = ["a bad film", "bad and cold", "truly bad", "bad, again", "how bad it was"]
TRAIN = {"text": GOOD + BAD, "label": [1] * 5 + [0] * 5}
TEST = {"text": ["good film", "bad film", "good", "bad"], "label": [1, 0, 1, 0]}


@pytest.mark.parametrize("name", list(BASELINES))
def test_gives_probabilities(name: str) -> None:
    found = BASELINES[name](TRAIN["text"], TRAIN["label"], TEST["text"], 0)
    assert found.shape == (4, 2)
    assert (found >= 0).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(4))


@pytest.mark.parametrize("name", list(BASELINES))
def test_same_seed_same_answer(name: str) -> None:
    first, second = (
        BASELINES[name](TRAIN["text"], TRAIN["label"], TEST["text"], 3) for _ in range(2)
    )
    assert (first == second).all()


@pytest.mark.parametrize("name", ["tfidf_unigrams", "tfidf_bigrams", "nb_trigrams"])
def test_learns_the_word_that_decides(name: str) -> None:
    found = BASELINES[name](TRAIN["text"], TRAIN["label"], TEST["text"], 0)
    assert found.argmax(axis=1).tolist() == TEST["label"]


def test_majority_answers_with_the_shares_of_the_training_set() -> None:
    found = BASELINES["majority"](["x"] * 4, [1, 1, 1, 0], ["good", "bad"], 0)
    assert found.tolist() == [[0.25, 0.75], [0.25, 0.75]]


def test_only_pairs_of_words_tell_order() -> None:
    # The same three words in each text: single words can't tell the classes apart.
    train = {"text": ["not good bad", "not bad good"] * 10, "label": [0, 1] * 10}
    arguments = train["text"], train["label"], train["text"], 0
    assert BASELINES["tfidf_unigrams"](*arguments)[:, 1] == pytest.approx(0.5)
    for name in ("tfidf_bigrams", "nb_trigrams"):
        assert BASELINES[name](*arguments).argmax(axis=1).tolist() == train["label"]


def test_log_count_ratio_by_hand() -> None:
    # Phrase 0 stands in both texts of the class and in 1 of the 2 others, phrase 1 in none and 2.
    f = csr_matrix(np.array([[1, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32))
    found = log_count_ratio(f, np.array([True, True, False, False]))
    # p = (1+2, 1+0), q = (1+1, 1+2)
    expected = [math.log((3 / 4) / (2 / 5)), math.log((1 / 4) / (3 / 5))]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", list(BASELINES))
def test_more_than_two_classes_with_one_that_training_never_shows(name: str) -> None:
    texts = [f"{word} {word} thing" for word in ("red", "green", "blue") for _ in range(6)]
    labels = [0] * 6 + [1] * 6 + [3] * 6
    found = BASELINES[name](texts, labels, ["red thing", "green thing", "blue thing"], 0)
    assert found.shape == (3, 4)
    assert found.sum(axis=1) == pytest.approx(np.ones(3))
    assert (found[:, 2] == 0).all()
    if name != "majority":
        assert found.argmax(axis=1).tolist() == [0, 1, 3]


def test_run_baselines_scores_each_on_the_test_rows() -> None:
    test = {"text": TEST["text"], "label": [1, 0, 1, 1]}
    found = run_baselines(TRAIN, test, names=["tfidf_bigrams", "majority"])
    assert list(found) == ["tfidf_bigrams", "majority"]
    result = found["tfidf_bigrams"]
    assert result["predictions"].tolist() == [1, 0, 1, 0]
    assert (result["accuracy"], result["n"], result["n_train"]) == (0.75, 4, 10)
    assert result["accuracy_ci95"] == pytest.approx(list(accuracy_interval(3, 4)))
    assert result["seconds"] > 0


def test_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown baseline 'svm'.*majority, tfidf_unigrams"):
        run_baselines(TRAIN, TEST, names=["svm"])


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least two classes"):
        run_baselines({"text": GOOD, "label": [1] * 5}, TEST)


def test_an_empty_test_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one test row"):
        run_baselines(TRAIN, {"text": [], "label": []})
