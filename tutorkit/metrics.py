"""Scores with their uncertainty: a number without an interval is half a result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tutorkit.audit import audit_report as audit_report

Array = np.ndarray | Sequence


def accuracy_interval(n_correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval for an accuracy of `n_correct / n`.

    It holds its promise for small `n` and near 0 and 1, where the textbook interval
    `p ± 1.96·sqrt(p(1-p)/n)` does not, and it never leaves [0, 1].

    Args:
        n_correct: Rows answered correctly.
        n: Rows scored.
        confidence: Share of such intervals that contain the true accuracy.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: `n` is not positive, `n_correct` not in 0..n, or `confidence` not in (0, 1).

    Source: Wilson 1927 (JASA 22:209-212); recommended by Brown, Cai, DasGupta 2001
    (Statistical Science 16:101-133, section 3.1.1).
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= n_correct <= n:
        raise ValueError(
            f"expected 0 <= n_correct <= n and n >= 1, found n_correct={n_correct} and n={n}: "
            "count the correct rows and all rows of one and the same set."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"expected confidence between 0 and 1, found {confidence}: try 0.95.")
    interval = binomtest(int(n_correct), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for the mean over runs that differ in their seed: Student's t.

        mean ± t · s / √k        with s the standard deviation (k - 1 in it), t of k - 1 degrees

    It speaks of what the seeds draw, and of that alone: scores on the same test rows share the luck
    of those rows. Of the same spread, two seeds give an interval 13 times as wide as ten do.

    Args:
        values: k scores, one a seed.
        confidence: Share of such intervals that contain the mean over all seeds.

    Returns:
        Lower and upper end; for an accuracy they may leave [0, 1].

    Raises:
        ValueError: fewer than two values, one that is not finite, or `confidence` not in (0, 1).

    Source: Student 1908 (Biometrika 6:1-25).
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"expected two finite values or more, found {values.tolist()}: one run "
                         "says nothing about how runs differ.")
    if not 0 < confidence < 1:
        raise ValueError(f"expected confidence between 0 and 1, found {confidence}: try 0.95.")
    quantile = t.ppf((1 + confidence) / 2, len(values) - 1)
    half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return mean - half, mean + half


def reliability_bins(
    confidence: Array, correct: Array, n_bins: int = 15
) -> list[dict[str, float | int | None]]:
    """Sort predictions into equal-width bins of confidence, as a reliability diagram draws them.

    Bin m holds the predictions with confidence in ((m-1)/n_bins, m/n_bins]; 0 joins the first.

    Args:
        confidence: (n,) probability which the model gave to its own prediction.
        correct: (n,) whether that prediction was right (bool or 0/1).
        n_bins: Number of bins between 0 and 1.

    Returns:
        One dict per bin: low, high, n, confidence (mean) and accuracy (both None when n is 0).

    Raises:
        ValueError: Lengths differ, no rows, confidence outside [0, 1] or not a number.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 2.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    correct = _as_correct(correct)
    _check_same_rows(confidence=confidence, correct=correct)
    if n_bins < 1:
        raise ValueError(f"expected n_bins >= 1, found {n_bins}: 15 is usual.")
    if not ((confidence >= 0) & (confidence <= 1)).all():  # false for NaN as well
        raise ValueError(
            "expected confidence between 0 and 1, found a value outside or NaN: "
            "pass softmax probabilities, not logits."
        )
    edges = np.linspace(0, 1, n_bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    bins = []
    for m in range(n_bins):
        inside = bin_of == m
        n = int(inside.sum())
        bins.append(
            {
                "low": float(edges[m]),
                "high": float(edges[m + 1]),
                "n": n,
                "confidence": float(confidence[inside].mean()) if n else None,
                "accuracy": float(correct[inside].mean()) if n else None,
            }
        )
    return bins


def expected_calibration_error(confidence: Array, correct: Array, n_bins: int = 15) -> float:
    """How far confidence and accuracy lie apart on average: ECE = Σ_m n_m/n · |acc_m - conf_m|.

    0 means that of the predictions made with probability 0.8, 80 % are right, and so on.

    Args:
        confidence: (n,) probability which the model gave to its own prediction.
        correct: (n,) whether that prediction was right.
        n_bins: Number of equal-width bins.

    Returns:
        ECE, between 0 and 1.

    Raises:
        ValueError: As `reliability_bins`.

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 3.
    """
    bins = [b for b in reliability_bins(confidence, correct, n_bins) if b["n"]]
    n = sum(b["n"] for b in bins)
    return float(sum(b["n"] / n * abs(b["accuracy"] - b["confidence"]) for b in bins))


def classification_report(
    labels: Array, predictions: Array, label_names: Sequence[str]
) -> dict[str, Any]:
    """Precision, recall, F1 and support per class, and their averages (scikit-learn's report).

    Raises:
        ValueError: Lengths differ, no rows, or a label outside 0..len(label_names)-1.
    """
    from sklearn.metrics import classification_report as sklearn_report

    labels = _as_labels(labels, len(label_names), "labels")
    predictions = _as_labels(predictions, len(label_names), "predictions")
    _check_same_rows(labels=labels, predictions=predictions)
    report = sklearn_report(
        labels,
        predictions,
        labels=list(range(len(label_names))),
        target_names=list(label_names),
        output_dict=True,
        zero_division=0,
    )
    return _plain(report)


def confusion(labels: Array, predictions: Array, num_labels: int) -> np.ndarray:
    """Confusion matrix: entry [i, j] counts the rows of class i that were predicted as j.

    Raises:
        ValueError: Lengths differ, no rows, or a label outside 0..num_labels-1.
    """
    from sklearn.metrics import confusion_matrix

    labels = _as_labels(labels, num_labels, "labels")
    predictions = _as_labels(predictions, num_labels, "predictions")
    _check_same_rows(labels=labels, predictions=predictions)
    return confusion_matrix(labels, predictions, labels=list(range(num_labels)))


def score(labels: Array, probabilities: Array, label_names: Sequence[str]) -> dict[str, Any]:
    """Everything a run record says about a test: the `test` block of metrics.json.

    Args:
        labels: (n,) true labels.
        probabilities: (n, num_labels) softmax output; each row sums to 1.
        label_names: Name of each label, in order.

    Returns:
        n, accuracy, accuracy_ci95 [low, high], macro_f1, ece, report.

    Raises:
        ValueError: Shapes do not fit, no rows, labels out of range, or rows that are no
            probabilities (NaN, negative, not summing to 1).
    """
    labels = _as_labels(labels, len(label_names), "labels")
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape != (len(labels), len(label_names)):
        raise ValueError(
            f"expected probabilities of shape (n, num_labels) = {(len(labels), len(label_names))}, "
            f"found {probabilities.shape}: one row per label, one column per label name."
        )
    sums = probabilities.sum(axis=1)
    if not ((probabilities >= 0).all() and np.allclose(sums, 1, rtol=0, atol=1e-3)):
        raise ValueError(
            "expected each row of probabilities to be non-negative and to sum to 1, "
            f"found sums from {sums.min():.4g} to {sums.max():.4g}: "
            "apply softmax in float32 to the logits first, and look for NaN in them."
        )
    predictions = probabilities.argmax(axis=1)
    correct = predictions == labels
    report = classification_report(labels, predictions, label_names)
    return {
        "n": len(labels),
        "accuracy": float(correct.mean()),
        "accuracy_ci95": list(accuracy_interval(int(correct.sum()), len(labels))),
        "macro_f1": report["macro avg"]["f1-score"],
        # Rounding in float32 can leave a probability a hair above 1.
        "ece": expected_calibration_error(np.minimum(probabilities.max(axis=1), 1), correct),
        "report": report,
    }


def paired_test(correct_a: Array, correct_b: Array) -> dict[str, float | int | bool]:
    """Is model A better than model B, judged on the same test rows?

    Rows which both get right or both get wrong say nothing about the difference. Among the
    others, if the models were equally good, each would win a toss of a fair coin: McNemar's
    exact test is the binomial test of that.

    Args:
        correct_a: (n,) whether A answered each row correctly.
        correct_b: (n,) the same for B, rows in the same order.

    Returns:
        n; only_a and only_b (rows which only that model gets right); difference (accuracy of A
        minus that of B); difference_ci95 [low, high]; p_value; resolved (p_value < 0.05).

    Raises:
        ValueError: Lengths differ, no rows, or values other than true/false.

    Source: McNemar 1947 (Psychometrika 12:153-157), exact form; the interval is the adjusted
    Wald interval for paired proportions of Bonett & Price 2012 (J. Educ. Behav. Stat.
    37:479-488), which adds one row to each of the two discordant counts.
    """
    from scipy.stats import binomtest, norm

    correct_a, correct_b = _as_correct(correct_a), _as_correct(correct_b)
    _check_same_rows(correct_a=correct_a, correct_b=correct_b)
    n = len(correct_a)
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0

    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    center = share_a - share_b
    half = norm.ppf(0.975) * math.sqrt((share_a + share_b - center**2) / (n + 2))
    return {
        "n": n,
        "only_a": only_a,
        "only_b": only_b,
        "difference": (only_a - only_b) / n,
        "difference_ci95": [float(max(-1, center - half)), float(min(1, center + half))],
        "p_value": float(p_value),
        "resolved": bool(p_value < 0.05),
    }


def compare_sentence(name_a: str, name_b: str, result: dict[str, Any]) -> str:
    """Say in one sentence what a `paired_test` does and does not show."""
    low, high = (100 * end for end in result["difference_ci95"])
    points = 100 * result["difference"]
    p_value = "p < 0.001" if result["p_value"] < 0.001 else f"p = {result['p_value']:.3f}"
    evidence = f"95 % interval {low:+.1f} to {high:+.1f}, McNemar exact {p_value}"
    if result["resolved"]:
        better, worse = (name_a, name_b) if points > 0 else (name_b, name_a)
        return (
            f"On the same {result['n']:,} rows {better} is more accurate than {worse}: "
            f"the difference {name_a} minus {name_b} is {points:+.1f} points ({evidence})."
        )
    return (
        f"These {result['n']:,} rows do not resolve whether {name_a} or {name_b} is more accurate: "
        f"the difference {name_a} minus {name_b} is {points:+.1f} points ({evidence})."
    )


def accuracy_by_length(lengths: Array, correct: Array, n_bins: int = 5) -> list[dict[str, Any]]:
    """Accuracy on short, middling and long texts, in bins of about equally many rows.

    Args:
        lengths: (n,) length of each text, in any unit.
        correct: (n,) whether the prediction was right.
        n_bins: Bins to aim for; rows of one length stay together, so fewer can come out.

    Returns:
        One dict per bin, shortest first: low and high (the lengths met in it), n, accuracy,
        accuracy_ci95 [low, high].

    Raises:
        ValueError: Lengths differ, no rows, or a length that is not a number.
    """
    lengths, correct = np.asarray(lengths), _as_correct(correct)
    _check_same_rows(lengths=lengths, correct=correct)
    if n_bins < 1 or not np.isfinite(lengths).all():
        raise ValueError(
            f"expected n_bins >= 1 and finite lengths, found n_bins={n_bins} and lengths from "
            f"{lengths.min()} to {lengths.max()}: count the tokens or words of each text."
        )
    inner_edges = np.unique(np.quantile(lengths, np.linspace(0, 1, n_bins + 1)[1:-1]))
    bin_of = np.searchsorted(inner_edges, lengths, side="left")
    bins = []
    for m in np.unique(bin_of):
        inside = bin_of == m
        n, n_correct = int(inside.sum()), int(correct[inside].sum())
        bins.append(
            {
                "low": lengths[inside].min().item(),
                "high": lengths[inside].max().item(),
                "n": n,
                "accuracy": n_correct / n,
                "accuracy_ci95": list(accuracy_interval(n_correct, n)),
            }
        )
    return bins


def _check_same_rows(**arrays: np.ndarray) -> None:
    """Raise unless all arrays are one-dimensional, of one length, and not empty."""
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"expected arrays of one shape (n,), found {shapes}: pass the same rows.")
    if shapes[next(iter(shapes))] == (0,):
        raise ValueError(f"expected at least one row, found empty {' and '.join(shapes)}.")


def _as_labels(values: Array, num_labels: int, name: str) -> np.ndarray:
    """`values` as integers, or ValueError when one is not in 0..num_labels-1."""
    values = np.asarray(values)
    if values.size == 0:
        raise ValueError(f"expected at least one row, found empty {name}.")
    if not np.isin(values, np.arange(num_labels)).all():
        wrong = values[~np.isin(values, np.arange(num_labels))].ravel()[0]
        raise ValueError(
            f"expected {name} in 0..{num_labels - 1}, found {wrong}: "
            "check the labels of the data and the number of label names."
        )
    return values.astype(np.int64)


def _as_correct(values: Array) -> np.ndarray:
    """`values` as booleans, or ValueError when one is neither true nor false."""
    values = np.asarray(values)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"expected true or false (1 or 0) for each row, "
            f"found {np.unique(values)[:5].tolist()}: pass `predictions == labels`."
        )
    return values.astype(bool)


def _plain(value: Any) -> Any:
    """`value` with numpy numbers turned into Python ones, so that JSON takes it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value
