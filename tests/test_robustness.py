"""What is measured beside clean accuracy: changed texts, pairs, the table of it all."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom

from tutorkit import noise
from tutorkit.metrics import accuracy_interval, paired_test
from tutorkit.models import load_model
from tutorkit.noise import drop_words, neighbouring_keys, typos
from tutorkit.probes import NEGATIVE_FIRST, POSITIVE_FIRST, Pair, contrast_pairs, negation_probes
from tutorkit.robustness import Measured, both_right, predictor, robustness, robustness_table
from tutorkit.sources import load_splits
from tutorkit.substitution import Budget

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["It", "was", "been", "Film", "WONDERFUL", "isn't", "theatre", "42", "don't", "saw", "well"]
LONG = [w for w in WORDS if re.search("[A-Za-z]{4,}", w)]


def by_words(texts, good=("good", "great"), bad=("bad", "dull")):
    """Probabilities of a classifier that counts a few words."""
    scores = [sum(w in good for w in re.findall(r"\w+", t.lower()))
              - sum(w in bad for w in re.findall(r"\w+", t.lower())) for t in texts]  # fmt: skip
    p = 1 / (1 + np.exp(-np.array(scores, dtype=float)))
    return np.stack([1 - p, p], axis=1)


def within(count, n, rate):
    low, high = binom.ppf([1e-6, 1 - 1e-6], n, rate)
    return low <= count <= high


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_typos_come_at_their_rate_in_long_words_only(rate):
    text = " ".join(WORDS * 1000)
    changed = typos(text, rate, np.random.default_rng(0)).split()
    differs = [a != b for a, b in zip(text.split(), changed, strict=True)]
    assert within(sum(differs), len(LONG) * 1000, rate)
    assert all(w in LONG for w, d in zip(text.split(), differs, strict=True) if d)


def test_each_typo_is_one_of_the_four_kinds():
    rng, kinds = np.random.default_rng(0), Counter()
    for _ in range(2000):
        word = "theatre"
        new = typos(word, 1.0, rng)
        assert new[0] == word[0] and new[-1] == word[-1] and new != word
        if len(new) != len(word):
            longer, shorter = (new, word) if len(new) > len(word) else (word, new)
            places = [i for i in range(1, 8) if longer[:i] + longer[i + 1 :] == shorter]
            assert places
            doubled = any(longer[i] == longer[i - 1] for i in places)
            assert doubled or len(new) < len(word)
            kinds["double" if len(new) > len(word) else "drop"] += 1
        else:
            at = [i for i in range(7) if new[i] != word[i]]
            if len(at) == 2:
                assert at[1] == at[0] + 1 and new[at[0]] + new[at[1]] == word[at[1]] + word[at[0]]
            else:
                assert len(at) == 1 and new[at[0]] in neighbouring_keys(word[at[0]])
            kinds["swap" if len(at) == 2 else "neighbour"] += 1
    assert set(kinds) == set(noise.KINDS_OF_TYPO)
    assert all(within(count, 2000, 0.25) for count in kinds.values())


def test_a_word_whose_inner_letters_are_equal_is_changed_too():
    rng = np.random.default_rng(0)
    assert all(typos("been", 1.0, rng) != "been" for _ in range(200))


def test_keys():
    assert neighbouring_keys("q") == "w" and neighbouring_keys("S") == "AD"
    assert neighbouring_keys("m") == "n"


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_words_are_dropped_at_their_rate(rate):
    words = [str(i) for i in range(10_000)]
    kept = drop_words(" ".join(words), rate, np.random.default_rng(0)).split()
    assert within(10_000 - len(kept), 10_000, rate)
    assert kept == sorted(kept, key=int)


def test_one_word_stays():
    rng = np.random.default_rng(0)
    assert {drop_words("a b c", 1.0, rng) for _ in range(50)} == {"a", "b", "c"}


def test_changes_depend_on_the_seed_alone():
    text = " ".join(WORDS * 20)
    for change in (typos, drop_words):
        first, again, other = (change(text, 0.3, np.random.default_rng(s)) for s in (1, 1, 2))
        assert first == again != other
        assert change(text, 0.0, np.random.default_rng(0)) == text


def test_the_probes_are_40_minimal_pairs():
    probes = negation_probes()
    texts = [text for pair in probes for text in pair.texts]
    assert len(probes) == 40 == len(POSITIVE_FIRST + NEGATIVE_FIRST)
    assert len(set(texts)) == 80
    assert not any(mark in text for text in texts for mark in "[|]") and "  " not in "".join(texts)
    assert sum(pair.labels[0] for pair in probes) == 20
    negation = re.compile(r"\b(not|never|no|cannot|nothing|hardly)\b|n't\b", re.IGNORECASE)
    for pair in probes:
        assert not negation.search(pair.texts[0]) and negation.search(pair.texts[1])
    assert probes[0] == Pair(("I would watch this film again.", "I would not watch this film again."
                              ), (1, 0))  # fmt: skip


def test_a_model_blind_to_the_difference_has_no_pair():
    pairs = [Pair(("a good film", "a bad film"), (1, 0)), Pair(("good", "not good"), (1, 0)),
             Pair(("dull", "never dull"), (0, 1))]  # fmt: skip
    assert both_right(by_words, pairs).tolist() == [True, False, False]


def test_contrast_pairs_of_the_built_in_reviews():
    split = load_splits("reviews")["test"]
    pairs = contrast_pairs(split)
    assert len(pairs) == 50
    label_of = dict(zip(split["text"], split["label"], strict=True))
    assert all(label_of[text] == label for pair in pairs
               for text, label in zip(pair.texts, pair.labels, strict=True))  # fmt: skip


def test_contrast_pairs_of_edits():
    rows = [{"text": "bad", "label": 0, "original_text": "good", "original_label": 1}]
    assert contrast_pairs(rows) == [Pair(("bad", "good"), (0, 1))]


TEXTS = ["a good film", "great fun, really good", "bad and dull", "a dull wonderful thing", "good"]
LABELS = [1, 1, 0, 1, 0]


def measured(**settings):
    arguments = {"pairs": [Pair(("good", "bad"), (1, 0))], "candidates": {"good": ["fine"]}}
    return robustness(by_words, TEXTS, LABELS, **arguments | settings)


def test_robustness_measures_everything():
    found = measured(rate=1.0, budget=Budget(1, 10))
    assert list(found) == ["clean", "typos 100%", "dropped words 100%", "negation probes",
                           "contrast pairs", "under attack"]  # fmt: skip
    assert found["clean"].correct.tolist() == [True, True, True, False, False]
    # every "good" and "great" is misspelled; "bad" is too short and stays
    assert found["typos 100%"].correct.tolist()[2]
    assert len(found["dropped words 100%"].correct) == 5
    assert len(found["negation probes"].correct) == 40
    assert found["contrast pairs"].correct.tolist() == [True]
    # "good" was all that the first text had; the second keeps its "great"
    assert found["under attack"].correct.tolist() == [False, True, True, False, False]
    assert found["under attack"].clean.tolist() == found["clean"].correct.tolist()


def test_what_is_not_asked_for_is_left_out():
    found = measured(pairs=(), candidates=None)
    assert list(found) == ["clean", "typos 10%", "dropped words 10%", "negation probes"]


def test_the_changed_texts_do_not_depend_on_the_model_or_on_other_rows():
    seen = []

    def spy(texts):
        seen.append(texts)
        return by_words(texts)

    many = ["a rather good film about trains and their drivers"] * 6
    for texts in (many, many[:3]):
        robustness(spy, texts, [1] * len(texts), rate=0.5, seed=3)
    assert seen[1][:3] == seen[5] and seen[2][:3] == seen[6]
    assert len(set(seen[1])) > 1


def test_the_rows_to_attack_are_drawn_with_the_seed():
    sizes = {seed: measured(attacked=2, seed=seed)["under attack"].clean.tolist()
             for seed in range(8)}  # fmt: skip
    assert all(len(rows) == 2 for rows in sizes.values())
    assert len({tuple(rows) for rows in sizes.values()}) > 1


def test_the_table_has_intervals_and_paired_tests():
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.9, rng.random(200) < 0.7
    table = robustness_table({
        "plain": {"clean": Measured(a, a), "pairs": Measured(a[:40])},
        "FGM": {"clean": Measured(b, a), "pairs": Measured(b[:40])},
    })  # fmt: skip
    assert table["model"].tolist() == ["plain", "FGM"] * 2 and table["n"].tolist() == [200] * 2 + [
        40
    ] * 2
    line, test = table.iloc[1], paired_test(b, a)
    assert line["accuracy"] == b.mean() and line["clean"] == a.mean()
    assert (line["low"], line["high"]) == accuracy_interval(int(b.sum()), 200)
    assert (line["difference"], line["p_value"]) == (test["difference"], test["p_value"])
    assert bool(line["resolved"]) is test["resolved"] is True
    assert np.isnan(table["clean"][2]) and np.isnan(table["difference"][0])


def test_one_model_alone_has_no_test():
    assert "p_value" not in robustness_table({"plain": measured()})


def test_predictor_of_a_loaded_model():
    found = predictor(load_model("tiny"), max_length=16, precision="fp32", device="cpu")(TEXTS)
    assert found.shape == (5, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_errors():
    rng = np.random.default_rng(0)
    for change in (typos, drop_words):
        with pytest.raises(ValueError, match=r"rate: expected a share in 0…1, found 10"):
            change("a film", 10, rng)
    with pytest.raises(ValueError, match="expected two labels that differ, found .1, 1.: 'good'"):
        Pair(("good", "fine"), (1, 1))
    with pytest.raises(ValueError, match="pair 'p1': expected two rows, found 1: pass the whole"):
        contrast_pairs([{"text": "a", "label": 1, "pair": "p1"}])
    with pytest.raises(ValueError, match="expected rows with 'pair', .* no contrast pairs"):
        contrast_pairs([{"text": "a", "label": 1}])
    with pytest.raises(ValueError, match="each of at least one text, found 0 texts and 0 labels"):
        robustness(by_words, [], [])
    both = {"a": {"clean": Measured(np.ones(3, bool))}, "b": {"clean": Measured(np.ones(2, bool))}}
    with pytest.raises(ValueError, match="clean: expected 3 rows of 'b' as of 'a', found 2"):
        robustness_table(both)
    with pytest.raises(ValueError, match="clean: expected 3 rows of 'b' as of 'a', found none"):
        robustness_table(both | {"b": {}})
