"""What a cheap model already reaches: the bar that fine-tuning has to clear.

All four count words and short phrases and know nothing of their meaning. Their settings were
chosen on rows held out of the training sets of IMDB and `rt_snippets`, never on a test set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tutorkit.metrics import accuracy_interval

# Every word, of one letter too ("I"), and every punctuation mark: "!" and "?" carry feeling.
TOKEN = r"(?u)\b\w+\b|[^\w\s]"

Labels = Sequence | np.ndarray


def majority(
    train_texts: Sequence, train_labels: Labels, test_texts: Sequence, seed: int = 0
) -> np.ndarray:
    """Read nothing: answer every text with the shares of the classes in the training set.

    A model below this has learned nothing, whatever its accuracy sounds like.

    Returns:
        (n, num_labels) probabilities, all rows equal.
    """
    counts = np.bincount(np.asarray(train_labels, dtype=np.int64))
    return np.tile(counts / counts.sum(), (len(test_texts), 1))


def tfidf_unigrams(
    train_texts: Sequence, train_labels: Labels, test_texts: Sequence, seed: int = 0
) -> np.ndarray:
    """Weigh single words: TF-IDF and logistic regression.

    A text becomes one long vector with a place for each word of the training set: larger when
    the word is frequent here (TF), smaller when it is frequent everywhere (IDF). Logistic
    regression learns one weight a word and adds them up. Word order is lost: "not good, bad"
    and "not bad, good" are the same text to it.

    Returns:
        (n, num_labels) probabilities.
    """
    return _tfidf(train_texts, train_labels, test_texts, seed, longest=1)


def tfidf_bigrams(
    train_texts: Sequence, train_labels: Labels, test_texts: Sequence, seed: int = 0
) -> np.ndarray:
    """Weigh single words and pairs of neighbours: now "not good" has a weight of its own.

    As `tfidf_unigrams`, with a place for each pair of words as well.

    Returns:
        (n, num_labels) probabilities.
    """
    return _tfidf(train_texts, train_labels, test_texts, seed, longest=2)


def nb_trigrams(
    train_texts: Sequence, train_labels: Labels, test_texts: Sequence, seed: int = 0
) -> np.ndarray:
    """Phrases of 1 to 3 words, scaled by how strongly each one speaks for a class.

    1. Note for each text which phrases it contains: f = 1 or 0, not how often.
    2. Count p = 1 + texts of the class with the phrase, and q = 1 + the other texts with it.
    3. The log-count ratio r = log((p / Σp) / (q / Σq)) is the phrase's vote, as in naive Bayes:
       above 0 for the class, near 0 for phrases that say nothing.
    4. Logistic regression on f · r corrects the votes of phrases that come together.

    With more than two classes each class is told from the rest, and the answers are scaled to
    sum to 1.

    Returns:
        (n, num_labels) probabilities.

    Source: Wang & Manning 2012 (ACL, "Baselines and Bigrams", section 2), with logistic
    regression in place of the support vector machine as in Mesnil et al. 2014 (arXiv:1412.5335).
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = _as_classes(train_labels)
    vectorizer = CountVectorizer(
        ngram_range=(1, 3),
        binary=True,
        token_pattern=TOKEN,
        min_df=_rarest(train_texts),
        dtype=np.float32,
    )
    f_train = vectorizer.fit_transform(train_texts)
    f_test = vectorizer.transform(test_texts)

    def probability_of(is_class: np.ndarray) -> np.ndarray:
        r = log_count_ratio(f_train, is_class)
        model = LogisticRegression(C=0.3, max_iter=1000, random_state=seed)
        model.fit(f_train.multiply(r).tocsr(), is_class)
        return model.predict_proba(f_test.multiply(r).tocsr())[:, 1]

    classes = np.unique(labels)
    if len(classes) == 2:
        of_second = probability_of(labels == classes[1])
        of_each = np.column_stack([1 - of_second, of_second])
    else:
        of_each = np.column_stack([probability_of(labels == c) for c in classes])
    return _spread(of_each / of_each.sum(axis=1, keepdims=True), classes)


def log_count_ratio(f: Any, is_class: np.ndarray) -> np.ndarray:
    """The vote of each phrase, r = log((p / Σp) / (q / Σq)): Wang & Manning 2012, section 2.1.

    Args:
        f: (n, phrases) sparse matrix of 0 and 1: which text holds which phrase.
        is_class: (n,) bool: which texts belong to the class.

    Returns:
        (phrases,) float32.
    """
    p = 1 + np.asarray(f[is_class].sum(axis=0), dtype=np.float64).ravel()
    q = 1 + np.asarray(f[~is_class].sum(axis=0), dtype=np.float64).ravel()
    return np.log((p / p.sum()) / (q / q.sum())).astype(np.float32)


BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "majority": majority,
    "tfidf_unigrams": tfidf_unigrams,
    "tfidf_bigrams": tfidf_bigrams,
    "nb_trigrams": nb_trigrams,
}


def run_baselines(
    train: Any, test: Any, names: Sequence[str] = tuple(BASELINES), seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Train each baseline on `train` and score it once on `test`.

    Args:
        train: Columns `text` and `label` (a `datasets.Dataset`, a DataFrame or a dict of lists).
        test: The same columns.
        names: Which of `BASELINES` to run.
        seed: Seed of the solvers.

    Returns:
        For each name: accuracy, accuracy_ci95 [low, high], n, n_train, seconds, and
        predictions, an integer array in the order of the test rows.

    Raises:
        ValueError: An unknown name, no rows, or a single class in `train`.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ValueError(
            f"unknown baseline {unknown[0]!r}: expected some of {', '.join(BASELINES)}."
        )
    train_texts, train_labels = list(train["text"]), _as_classes(train["label"])
    test_texts, test_labels = list(test["text"]), np.asarray(test["label"])
    if not test_texts:
        raise ValueError("expected at least one test row, found none: give the baselines a test.")
    results = {}
    for name in names:
        start = time.perf_counter()
        probabilities = BASELINES[name](train_texts, train_labels, test_texts, seed)
        predictions = probabilities.argmax(axis=1)
        n_correct = int((predictions == test_labels).sum())
        results[name] = {
            "accuracy": n_correct / len(test_labels),
            "accuracy_ci95": list(accuracy_interval(n_correct, len(test_labels))),
            "n": len(test_labels),
            "n_train": len(train_labels),
            "seconds": time.perf_counter() - start,
            "predictions": predictions,
        }
    return results


def _tfidf(
    train_texts: Sequence, train_labels: Labels, test_texts: Sequence, seed: int, longest: int
) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(
        ngram_range=(1, longest),
        sublinear_tf=True,
        token_pattern=TOKEN,
        min_df=_rarest(train_texts) if longest > 1 else 1,
        dtype=np.float32,
    )
    model = LogisticRegression(C=10, max_iter=1000, random_state=seed)
    model.fit(vectorizer.fit_transform(train_texts), _as_classes(train_labels))
    return _spread(model.predict_proba(vectorizer.transform(test_texts)), model.classes_)


def _rarest(train_texts: Sequence) -> int:
    """In how many texts a phrase has to stand to be counted."""
    # Most phrases of a large set stand in one text: without them 25,000 reviews fit 2 GB.
    # On a small set there is room for them, and they help (held-out rt_snippets: 0.792 to 0.788).
    return 2 if len(train_texts) > 10_000 else 1


def _spread(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """One column per label 0..max, with zeros for labels that the training set never shows."""
    spread = np.zeros((len(probabilities), int(classes.max()) + 1))
    spread[:, classes] = probabilities
    return spread


def _as_classes(labels: Labels) -> np.ndarray:
    labels = np.asarray(labels, dtype=np.int64)
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"expected at least two classes in the training labels, found {np.unique(labels)}: "
            "there is nothing to tell apart. Take more rows, or shuffle before you cut."
        )
    return labels
