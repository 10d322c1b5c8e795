"""The word-substitution attack: a classifier whose minimal change is known, and its budget."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tutorkit.models import load_model
from tutorkit.substitution import (
    NEGATIVE,
    POSITIVE,
    WORD,
    Attack,
    Budget,
    substitution_attack,
    synonym_table,
)
from tutorkit.tiny import build_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = {"good": 1.0, "great": 2.0, "bad": -1.0, "decent": 0.5, "okay": 0.2}
CANDIDATES = {"good": ["decent", "okay"], "great": ["good", "decent", "okay"], "film": ["movie"],
              "bad": ["poor"]}  # fmt: skip


class Keywords:
    """A classifier that adds up the weights of words; counts what it is asked."""

    def __init__(self, bias=0.0):
        self.bias, self.calls = bias, []

    def __call__(self, texts):
        self.calls.append(list(texts))
        z = np.array([sum(WEIGHTS.get(w, 0) for w in re.findall(r"\w+", t.lower())) for t in texts])
        p = 1 / (1 + np.exp(-(z + self.bias)))
        return np.stack([1 - p, p], axis=1)


def attack(text, label=1, bias=0.0, **budget):
    model = Keywords(bias)
    found = substitution_attack(model, [text], [label], CANDIDATES, Budget(**budget))[0]
    assert found.queries == sum(map(len, model.calls))
    return found


def test_it_finds_the_known_minimal_change():
    # 1 + 2 - 2.5 > 0; "great" -> "okay" leaves -1.3, which flips: one change is enough
    found = attack("A good film with GREAT songs.", bias=-2.5)
    assert found == Attack("A good film with OKAY songs.", True, True, (("GREAT", "OKAY"),), 7)
    assert not found.correct


def test_several_changes_where_one_is_not_enough():
    found = attack("Good film, great songs, good end", bias=-1.0)
    assert found.text == "Okay film, okay songs, okay end" and found.flipped
    assert found.changes == (("great", "okay"), ("Good", "Okay"), ("good", "okay"))


def test_what_cannot_be_flipped_stays_right():
    found = attack("A great film")
    assert found.text == "A okay film" and found.correct
    assert found.changes == (("great", "okay"),)  # "movie" lowers nothing, so "film" stays


def test_a_wrong_text_is_not_attacked():
    found = attack("A bad film")
    assert found == Attack("A bad film", False, False, (), 1)
    assert not found.correct


@pytest.mark.parametrize("words", [1, 2, 3])
def test_the_budget_of_words_is_kept(words):
    found = attack("good good good good", words=words)
    assert len(found.changes) == words and found.correct


@pytest.mark.parametrize("queries", range(1, 12))
def test_the_budget_of_queries_is_kept(queries):
    found = attack("good great film good", bias=-0.5, queries=queries)
    assert found.queries <= queries
    assert found.correct_before and (queries < 3 or found.queries > 1)


def test_a_text_without_candidates_costs_one_query():
    assert attack("Nothing to replace here", bias=1.0).queries == 1


def test_texts_are_read_together_and_get_what_they_get_alone():
    texts = ["A good film with great songs.", "A bad film", "great", "a good film", "bad bad"]
    labels = [1, 1, 1, 1, 0]
    model = Keywords(-0.9)
    together = substitution_attack(model, texts, labels, CANDIDATES)
    alone = [substitution_attack(Keywords(-0.9), [t], [y], CANDIDATES)[0]
             for t, y in zip(texts, labels, strict=True)]  # fmt: skip
    assert together == alone
    assert model.calls[0] == texts and len(model.calls) <= 2 + Budget().words
    assert together == substitution_attack(Keywords(-0.9), texts, labels, CANDIDATES)


def test_what_changes_is_what_it_says():
    texts = ["Good, great: a film of GOOD men and great, great women"] * 2
    for found in substitution_attack(Keywords(-1.0), texts, [1, 1], CANDIDATES):
        before, after = WORD.findall(texts[0]), WORD.findall(found.text)
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert sorted(changed) == sorted(found.changes) and changed
        assert WORD.sub("_", texts[0]) == WORD.sub("_", found.text)


def table(vectors, texts, **settings):
    """A synonym table from vectors of some words of the tiny tokenizer; other tokens get noise."""
    tokenizer = build_tokenizer()
    embeddings = torch.zeros(len(tokenizer), 3)
    embeddings[:, 2] = -1.0
    vocabulary = tokenizer.get_vocab()
    for word, vector in vectors.items():
        embeddings[vocabulary[word]] = torch.tensor(vector)
    return synonym_table(texts, tokenizer, embeddings, **settings)


def test_neighbours_nearest_first_and_above_the_threshold():
    vectors = {"film": [1.0, 0.0, 0.0], "story": [4.0, 3.0, 0.0], "scene": [12.0, 5.0, 0.0],
               "ending": [0.0, 1.0, 0.0]}  # fmt: skip
    assert table(vectors, ["A Film"], threshold=0.75) == {"film": ["scene", "story"]}
    assert table(vectors, ["A film"], threshold=0.85) == {"film": ["scene"]}
    assert table(vectors, ["film"], threshold=0.75, most=1) == {"film": ["scene"]}


def test_opposites_and_words_of_another_polarity_are_guarded():
    """All lie in one place, as words of opposite meaning do."""
    words = ["good", "best", "bad", "film", "not", "every"]
    found = table(dict.fromkeys(words, [1.0, 0.0, 0.0]), [" ".join(words) + " don't"])
    assert found == {"good": ["best"], "best": ["good"]}


def test_the_lists_share_no_word():
    assert not POSITIVE & NEGATIVE
    assert all(WORD.fullmatch(word) and word.islower() for word in POSITIVE | NEGATIVE)


def test_words_with_an_apostrophe_are_no_words_to_replace():
    assert WORD.findall("It wasn't a film, it's 'art'; well-made") == ["film", "well", "made"]


def test_a_real_embedding_table():
    """Whole words of both kinds of tokenizer, and a model under attack in earnest."""
    loaded = load_model("tiny-decoder")
    weight = loaded.model.get_input_embeddings().weight
    found = synonym_table(["a good film"], loaded.tokenizer, weight, threshold=0.2)
    assert "film" in found and all(WORD.fullmatch(w) for near in found.values() for w in near)


@pytest.mark.parametrize("make, message", [
    (lambda: Budget(words=0), "words: expected a whole number from 1, found 0"),
    (lambda: substitution_attack(Keywords(), ["a"], [], {}), "found 1 texts and 0 labels"),
    (lambda: substitution_attack(lambda t: np.ones(3), ["a"], [1], {}),
     r"predict: expected probabilities of shape \(1, C\) for 1 texts, found \(3,\)"),
    (lambda: table({}, [], threshold=2.0), "threshold: expected a cosine in 0…1, found 2.0"),
    (lambda: synonym_table([], build_tokenizer(), torch.zeros(3, 2)),
     "expected an embedding for each of .* tokens, found 3"),
])  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
