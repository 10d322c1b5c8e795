"""Runs of one method beside those of another: differences and paired tests, seed by seed.

Both of a pair learned from the same rows and answered the same test rows, so what made a draw lucky
for both cancels in their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tutorkit.metrics import paired_test

Lines = Sequence[Mapping]  # of a record, all of one method


def pairs(mine: Lines, rivals: Lines, any_seed: bool = False) -> list[tuple[Mapping, Mapping]]:
    """Runs of both with the same seed, seeds in order.

    Args:
        mine: one line a seed.
        rivals: as well.
        any_seed: each run meets each of the other's: for a baseline, which has no randomness and
            so a single run.
    """
    if any_seed:
        return [(line, rival) for line in mine for rival in rivals]
    of = {rival["seed"]: rival for rival in rivals}
    return [(line, of[line["seed"]]) for line in sorted(mine, key=lambda line: line["seed"])
            if line["seed"] in of]  # fmt: skip


def differences(
    mine: Lines, rivals: Lines, key: str = "accuracy", any_seed: bool = False
) -> list[float]:
    """A number of each run minus that of its rival; arguments as for `pairs`."""
    return [line[key] - rival[key] for line, rival in pairs(mine, rivals, any_seed)]


def differences_by_budget(
    mine: Lines, rivals: Lines, key: str = "accuracy"
) -> dict[int, list[float]]:
    """`differences` at each number of labelled rows n that both have: {n: [difference, …]}."""
    found = {}
    for n in sorted({line["n"] for line in mine}):
        at_n = [[line for line in lines if line["n"] == n] for lines in (mine, rivals)]
        if values := differences(*at_n, key):
            found[n] = values
    return found


def paired_tests(
    mine: Lines, rivals: Lines, right: Callable[[Mapping], np.ndarray | None],
    any_seed: bool = False,
) -> list[dict]:  # fmt: skip
    """`metrics.paired_test` of each pair of runs.

    Args:
        mine: one line a seed.
        rivals: as well.
        right: of a line, which of its answers are right, (n,) bool: see `answers_of`; None: it was
            not asked, and its pair is left out.
        any_seed: as for `pairs`.
    """
    asked = [(right(line), right(rival)) for line, rival in pairs(mine, rivals, any_seed)]
    return [paired_test(a, b) for a, b in asked if a is not None and b is not None]


def answers_of(test_labels: str) -> Callable[[Mapping], np.ndarray]:
    """Of a line with "predictions" which are right; labels and predictions: a digit a row."""
    labels = np.array(list(test_labels))
    return lambda line: np.array(list(line["predictions"])) == labels


def verdict(test: Mapping) -> int:
    """Of a paired test: 1 the first is better, -1 worse, 0 not resolved."""
    return int(np.sign(test["difference"])) if test["resolved"] else 0


def agreed(tests: Sequence[Mapping]) -> int:
    """The verdict of several paired tests, such as one a seed, where all say the same; or 0."""
    verdicts = {verdict(test) for test in tests}
    return verdicts.pop() if len(verdicts) == 1 else 0
