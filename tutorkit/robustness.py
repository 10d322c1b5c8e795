"""What a model is worth on texts unlike those it learned from, beside its clean accuracy.

    typos, dropped words    the same rows, changed at a fixed rate (`tutorkit.noise`)
    negation probes         short sentences in pairs: a negation turns the label round
    contrast pairs          texts in pairs: a small edit turns it round (`tutorkit.probes`, both)
    under attack            rows that stay right whichever words `tutorkit.substitution` replaces

A pair counts only where both members are right: a model that does not see the difference between
the two, and gives them one label, has half of the texts right and no pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tutorkit import prediction
from tutorkit.data import SentimentDataset
from tutorkit.metrics import accuracy_interval, paired_test
from tutorkit.models import LoadedModel
from tutorkit.noise import drop_words, typos
from tutorkit.probes import Pair, negation_probes
from tutorkit.substitution import Budget, substitution_attack

if TYPE_CHECKING:
    import pandas as pd

Predict = Callable[[list[str]], np.ndarray]  # texts to probabilities (N, C)

@dataclass(frozen=True)
class Measured:
    """Which rows (or pairs) of a measurement are right."""

    correct: np.ndarray  # (n,) bool
    clean: np.ndarray | None = None  # (n,) the same of the rows unchanged, where there is such


def predictor(
    loaded: LoadedModel, max_length: int = 128, truncation: str = "head+tail",
    batch_size: int = 64, precision: str = "auto", device: str = "auto",
) -> Predict:
    """A function from texts to probabilities (N, C), which is what all measurements here take."""

    def predict(texts: list[str]) -> np.ndarray:
        rows = SentimentDataset(texts, [0] * len(texts), loaded.tokenizer, max_length, truncation)
        return prediction.predict(loaded.model, rows, batch_size=batch_size, precision=precision,
                                  device=device).probabilities  # fmt: skip

    return predict


def both_right(predict: Predict, pairs: Sequence[Pair]) -> np.ndarray:
    """For each pair whether both members are right, (n,) bool.

    Source: Gardner et al. 2020, "Evaluating Models' Local Decision Boundaries via Contrast Sets",
    section 2.2 (contrast consistency).
    """
    texts = [text for pair in pairs for text in pair.texts]
    labels = np.array([label for pair in pairs for label in pair.labels])
    return _right(predict, texts, labels).reshape(-1, 2).all(axis=1)


def robustness(
    predict: Predict, texts: Sequence[str], labels: Sequence[int], pairs: Sequence[Pair] = (),
    candidates: Mapping[str, Sequence[str]] | None = None, budget: Budget | None = None,
    attacked: int = 100, rate: float = 0.1, seed: int = 0,
) -> dict[str, Measured]:
    """Measure a model on all of the above. The changed texts depend on the seed, not on the model.

    Args:
        predict: maps texts to probabilities (N, C): see `predictor`.
        texts: N texts of a test set.
        labels: their labels.
        pairs: contrast pairs; without any, they are left out.
        candidates: replacements for the attack: see `substitution.synonym_table`; None: no attack.
        budget: of the attack, for each text.
        attacked: rows to attack, drawn with the seed; all where there are fewer.
        rate: of typos (per word of four letters or more) and of dropped words.
        seed: draws the changes and the rows to attack.

    Raises:
        ValueError: unequal numbers of texts and labels, no texts, or a rate outside 0…1.
    """
    if len(texts) != len(labels) or len(texts) == 0:
        raise ValueError(f"expected one label for each of at least one text, found {len(texts)} "
                         f"texts and {len(labels)} labels")
    labels = np.asarray(labels)
    clean = _right(predict, texts, labels)
    found = {"clean": Measured(clean, clean)}
    for kind, (name, change) in enumerate((("typos", typos), ("dropped words", drop_words))):
        # A generator for each row: what becomes of it does not depend on the other rows.
        changed = [change(text, rate, np.random.default_rng((seed, kind, row)))
                   for row, text in enumerate(texts)]  # fmt: skip
        found[f"{name} {rate:.0%}"] = Measured(_right(predict, changed, labels), clean)
    found["negation probes"] = Measured(both_right(predict, negation_probes()))
    if pairs:
        found["contrast pairs"] = Measured(both_right(predict, pairs))
    if candidates is not None:
        rows = np.sort(np.random.default_rng(seed).permutation(len(texts))[:attacked])
        attacks = substitution_attack(predict, [texts[i] for i in rows], labels[rows].tolist(),
                                      candidates, budget)  # fmt: skip
        found["under attack"] = Measured(np.array([a.correct for a in attacks]),
                                         np.array([a.correct_before for a in attacks]))
    return found


def robustness_table(measured: Mapping[str, Mapping[str, Measured]]) -> pd.DataFrame:
    """One line a measurement and model: accuracy with its interval, the clean accuracy beside it.

    Args:
        measured: for each model what `robustness` found, on the same rows. The others are compared
            with the first, row by row.

    Returns:
        measurement, model, n, accuracy, low, high (95 %), clean (accuracy on the same rows as they
        were; NaN for pairs); with several models also difference (this one minus the first),
        p_value and resolved, empty for the first.

    Raises:
        ValueError: a measurement that one model lacks, or another number of rows.
    """
    import pandas as pd

    lines, (first, *others) = [], measured
    for name, reference in measured[first].items():
        for model in (first, *others):
            result = measured[model].get(name)
            if result is None or len(result.correct) != len(reference.correct):
                raise ValueError(
                    f"{name}: expected {len(reference.correct)} rows of {model!r} as of {first!r}, "
                    f"found {'none' if result is None else len(result.correct)}: measure all "
                    "models with the same arguments"
                )
            n, right = len(result.correct), int(result.correct.sum())
            low, high = accuracy_interval(right, n)
            clean = np.nan if result.clean is None else result.clean.mean()
            line = {"measurement": name, "model": model, "n": n, "accuracy": right / n, "low": low,
                    "high": high, "clean": clean}  # fmt: skip
            if model != first:
                test = paired_test(result.correct, reference.correct)
                line |= {key: test[key] for key in ("difference", "p_value", "resolved")}
            lines.append(line)
    return pd.DataFrame(lines)


def _right(predict: Predict, texts: Sequence[str], labels: np.ndarray) -> np.ndarray:
    return np.asarray(predict(list(texts))).argmax(axis=1) == labels
