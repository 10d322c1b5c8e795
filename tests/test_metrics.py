"""Scores against hand-computed numbers, brute force and scipy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import binom

from tutorkit.metrics import (
    accuracy_by_length,
    accuracy_interval,
    classification_report,
    compare_sentence,
    confusion,
    expected_calibration_error,
    mean_interval,
    paired_test,
    reliability_bins,
    score,
)

NAMES = ["negative", "positive"]


@pytest.mark.parametrize(("n_correct", "n"), [(0, 10), (7, 10), (10, 10), (925, 1000)])
def test_wilson_interval_is_its_formula(n_correct: int, n: int) -> None:
    z, p = 1.959963984540054, n_correct / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert accuracy_interval(n_correct, n) == pytest.approx((center - half, center + half))


def test_wilson_interval_contains_the_truth_about_95_times_in_100() -> None:
    n, truth = 50, 0.9
    covered = [
        low <= truth <= high for low, high in (accuracy_interval(k, n) for k in range(n + 1))
    ]
    # The exact coverage: the probability of all outcomes whose interval holds the truth.
    coverage = binom.pmf(np.arange(n + 1), n, truth)[covered].sum()
    assert 0.93 <= coverage <= 0.99


def test_interval_grows_with_confidence() -> None:
    narrow, wide = accuracy_interval(80, 100, 0.9), accuracy_interval(80, 100, 0.99)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]


@pytest.mark.parametrize(("n_correct", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_interval_refuses_impossible_counts(n_correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= n_correct <= n and n >= 1"):
        accuracy_interval(n_correct, n)


def test_interval_refuses_impossible_confidence() -> None:
    with pytest.raises(ValueError, match="expected confidence between 0 and 1, found 95.0"):
        accuracy_interval(5, 10, 95.0)


def test_ece_by_hand() -> None:
    # Bins of width 0.5: {0.3: wrong} and {0.6: right, 0.8: wrong, 1.0: right}.
    # ECE = 1/4·|0 - 0.3| + 3/4·|2/3 - 0.8| = 0.075 + 0.1
    confidence, correct = np.array([0.3, 0.6, 0.8, 1.0]), np.array([0, 1, 0, 1])
    assert expected_calibration_error(confidence, correct, n_bins=2) == pytest.approx(0.175)


def test_ece_is_zero_for_a_calibrated_model_and_large_for_a_boaster() -> None:
    correct = np.array([1] * 8 + [0] * 2)
    assert expected_calibration_error(np.full(10, 0.8), correct) == pytest.approx(0)
    assert expected_calibration_error(np.ones(10), correct) == pytest.approx(0.2)


def test_reliability_bins_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    # Values on the edges too: (low, high] decides their bin.
    confidence = np.concatenate([rng.random(300), np.arange(11) / 10])
    correct = rng.random(311) < confidence
    bins = reliability_bins(confidence, correct, n_bins=10)
    assert sum(b["n"] for b in bins) == 311
    for m, found in enumerate(bins):
        rows = [
            i
            for i, c in enumerate(confidence)
            if found["low"] < c <= found["high"] or (m == 0 and c == 0)
        ]
        assert found["n"] == len(rows)
        assert found["confidence"] == pytest.approx(np.mean([confidence[i] for i in rows]))
        assert found["accuracy"] == pytest.approx(np.mean([correct[i] for i in rows]))


def test_an_empty_reliability_bin_has_no_accuracy() -> None:
    first = reliability_bins(np.array([0.9]), np.array([True]), n_bins=2)[0]
    assert first == {"low": 0.0, "high": 0.5, "n": 0, "confidence": None, "accuracy": None}


@pytest.mark.parametrize("value", [1.2, -0.1, float("nan")])
def test_calibration_refuses_what_is_no_probability(value: float) -> None:
    with pytest.raises(ValueError, match="pass softmax probabilities, not logits"):
        expected_calibration_error(np.array([0.5, value]), np.array([1, 0]))


def test_confusion_counts_rows_of_truth_and_columns_of_prediction() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 1, 1, 1])
    assert confusion(labels, predictions, 3).tolist() == [[1, 2, 0], [0, 2, 0], [0, 0, 0]]


def test_report_by_hand() -> None:
    report = classification_report(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 1, 1, 1]), NAMES)
    assert report["negative"] == {
        "precision": 1.0,
        "recall": pytest.approx(1 / 3),
        "f1-score": pytest.approx(0.5),
        "support": 3,
    }
    assert report["positive"]["f1-score"] == pytest.approx(2 / 3)
    assert report["accuracy"] == pytest.approx(0.6)


def test_report_of_a_class_never_met_is_zero_without_a_warning() -> None:
    report = classification_report(np.array([0, 0]), np.array([0, 0]), NAMES)
    assert report["positive"] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 0}


def test_score_by_hand_and_as_json() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    found = score(np.array([0, 0, 1, 1]), probabilities, NAMES)
    assert list(found) == ["n", "accuracy", "accuracy_ci95", "macro_f1", "ece", "report"]
    assert (found["n"], found["accuracy"]) == (4, 0.75)
    assert found["accuracy_ci95"] == pytest.approx(list(accuracy_interval(3, 4)))
    # F1 of negative: 2·1·0.5/1.5, of positive: 2·(2/3)·1/(5/3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    # Confidences 0.9 right, 0.6 wrong, 0.8 right, 0.7 right: each in a bin of its own.
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[0.5, 0.5]], r"expected probabilities of shape .* = \(2, 2\), found \(1, 2\)"),
        ([0, 2], [[0.5, 0.5]] * 2, r"expected labels in 0..1, found 2"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.6]], "found sums from 1 to 1.1"),
        ([0, 1], [[0.5, 0.5], [float("nan"), 1]], "look for NaN"),
        ([0, 1], [[0.5, 0.5], [-0.5, 1.5]], "expected each row of probabilities to be non-neg"),
        ([], np.zeros((0, 2)), "expected at least one row, found empty labels"),
        ([0, float("nan")], [[0.5, 0.5]] * 2, r"expected labels in 0..1, found nan"),
    ],
)
def test_score_refuses_bad_input(labels, probabilities, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(np.array(labels), np.array(probabilities), NAMES)


def test_paired_test_against_the_sum_of_binomial_terms() -> None:
    # 2 rows only A, 9 rows only B, 20 both, 5 none.
    correct_a = np.array([1] * 2 + [0] * 9 + [1] * 20 + [0] * 5)
    correct_b = np.array([0] * 2 + [1] * 9 + [1] * 20 + [0] * 5)
    found = paired_test(correct_a, correct_b)
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert found["p_value"] == pytest.approx(by_hand)
    assert (found["n"], found["only_a"], found["only_b"]) == (36, 2, 9)
    assert found["difference"] == pytest.approx(correct_a.mean() - correct_b.mean())
    assert found["resolved"] is False  # p = 0.065


def test_paired_interval_by_hand() -> None:
    found = paired_test(np.array([1] * 8 + [0] * 2), np.array([0] * 4 + [1] * 4 + [0] * 2))
    # Bonett & Price: (4 + 1)/12 and (0 + 1)/12
    share_a, share_b = 5 / 12, 1 / 12
    half = 1.959964 * math.sqrt((share_a + share_b - (share_a - share_b) ** 2) / 12)
    expected = [share_a - share_b - half, share_a - share_b + half]
    assert found["difference_ci95"] == pytest.approx(expected, abs=1e-6)


def test_a_large_difference_is_resolved_and_turns_with_the_names() -> None:
    right, wrong = np.ones(30, bool), np.zeros(30, bool)
    there, back = paired_test(right, wrong), paired_test(wrong, right)
    assert there["resolved"] and back["resolved"]
    assert there["difference"] == 1 == -back["difference"]
    assert there["difference_ci95"] == pytest.approx(
        [-end for end in back["difference_ci95"]][::-1]
    )


def test_models_that_agree_on_every_row_are_not_told_apart() -> None:
    same = np.array([True, False, True])
    found = paired_test(same, same)
    assert (found["p_value"], found["difference"], found["resolved"]) == (1.0, 0.0, False)


def test_sentence_names_the_better_model_only_when_resolved() -> None:
    n = 1000
    a = np.arange(n) >= 50
    b = np.arange(n) >= 100
    assert compare_sentence("minilm", "baseline", paired_test(a, b)) == (
        "On the same 1,000 rows minilm is more accurate than baseline: the difference minilm minus "
        "baseline is +5.0 points (95 % interval +3.6 to +6.4, McNemar exact p < 0.001)."
    )
    assert compare_sentence("baseline", "minilm", paired_test(b, a)).startswith(
        "On the same 1,000 rows minilm is more accurate than baseline"
    )
    c = np.arange(n) < 951
    unresolved = compare_sentence("a", "b", paired_test(a, c))
    assert unresolved.startswith("These 1,000 rows do not resolve whether a or b is more accurate")
    assert "-0.1 points" in unresolved and "p = 1.000" in unresolved


def test_accuracy_by_length_by_hand() -> None:
    lengths = np.array([5, 1, 2, 6, 3, 4])
    correct = np.array([1, 0, 1, 1, 1, 0])
    found = accuracy_by_length(lengths, correct, n_bins=3)
    assert [(b["low"], b["high"], b["n"], b["accuracy"]) for b in found] == [
        (1, 2, 2, 0.5),
        (3, 4, 2, 0.5),
        (5, 6, 2, 1.0),
    ]
    assert found[2]["accuracy_ci95"] == pytest.approx(list(accuracy_interval(2, 2)))


def test_accuracy_by_length_loses_no_row_and_keeps_equal_lengths_together() -> None:
    rng = np.random.default_rng(0)
    lengths, correct = rng.choice([7, 7, 7, 7, 9, 30], 500), rng.random(500) < 0.8
    found = accuracy_by_length(lengths, correct)
    assert sum(b["n"] for b in found) == 500
    assert sum(b["n"] * b["accuracy"] for b in found) == pytest.approx(correct.sum())
    assert all(low["high"] < high["low"] for low, high in zip(found, found[1:], strict=False))


def test_one_length_makes_one_bin() -> None:
    assert [b["n"] for b in accuracy_by_length(np.full(9, 4), np.ones(9))] == [9]


@pytest.mark.parametrize("function", [expected_calibration_error, paired_test, accuracy_by_length])
def test_rows_have_to_be_the_same_and_some(function) -> None:
    with pytest.raises(ValueError, match="expected arrays of one shape"):
        function(np.array([1, 0]), np.array([1]))
    with pytest.raises(ValueError, match="expected at least one row, found empty"):
        function(np.array([]), np.array([]))


def test_correct_is_true_or_false() -> None:
    with pytest.raises(ValueError, match="pass `predictions == labels`"):
        paired_test(np.array([0, 1]), np.array([0.5, 1]))


def test_lengths_are_numbers() -> None:
    with pytest.raises(ValueError, match="finite lengths"):
        accuracy_by_length(np.array([1.0, float("nan")]), np.array([1, 0]))


@pytest.mark.parametrize("function", [reliability_bins, accuracy_by_length])
def test_at_least_one_bin(function) -> None:
    with pytest.raises(ValueError, match="expected n_bins >= 1"):
        function(np.array([1, 1]), np.array([1, 0]), 0)


def test_confusion_refuses_labels_out_of_range() -> None:
    with pytest.raises(ValueError, match="expected predictions in 0..1, found 2"):
        confusion(np.array([0, 1]), np.array([0, 2]), 2)
    with pytest.raises(ValueError, match="expected arrays of one shape"):
        confusion(np.array([0, 1]), np.array([0]), 2)


# --- the mean over seeds ------------------------------------------------------------------------


def test_mean_interval_by_the_table():
    # k = 3: t of two degrees of freedom is 4.3027; the standard deviation of 1, 2, 3 is 1.
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    narrow = mean_interval([1.0, 2.0, 3.0], confidence=0.5)
    assert low < narrow[0] < 2 < narrow[1] < high


def test_mean_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(0.8, 0.03, size=3)) for _ in range(2000)]
    assert np.mean([low <= 0.8 <= high for low, high in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("values", [[], [0.8], [0.8, float("nan")], [[0.8, 0.9]]])
def test_mean_interval_of_too_little_is_refused(values):
    with pytest.raises(ValueError, match="two finite values or more"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_mean_interval_with_an_impossible_confidence(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([0.1, 0.2], confidence)
