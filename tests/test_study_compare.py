"""Runs of one method beside those of another: who meets whom, and what the pairs give."""

from __future__ import annotations

import numpy as np
import pytest

from tutorkit.metrics import paired_test
from tutorkit.studies import compare


def lines(*accuracies: float, n: int = 32, seeds=(0, 1, 2)) -> list[dict]:
    """One for each accuracy; seeds that are left over have none."""
    return [{"seed": seed, "n": n, "accuracy": a}
            for seed, a in zip(seeds, accuracies, strict=False)]  # fmt: skip


def test_pairs_have_one_seed_in_order():
    mine, rivals = lines(0.7, 0.8, 0.9, seeds=(2, 0, 1)), lines(0.5, 0.6, seeds=(1, 2))
    assert [(a["seed"], b["seed"]) for a, b in compare.pairs(mine, rivals)] == [(1, 1), (2, 2)]
    assert compare.differences(mine, rivals) == pytest.approx([0.4, 0.1])
    assert compare.differences(rivals, mine, "seed") == [0, 0]
    assert compare.pairs(lines(0.1, seeds=(5,)), rivals) == []


def test_a_run_without_a_seed_of_its_own_meets_all():
    found = compare.differences(lines(0.8), lines(0.7, 0.9, seeds=(4, 5)), any_seed=True)
    assert found == pytest.approx([0.1, -0.1])


def test_budgets_are_kept_apart():
    mine = lines(0.7, 0.8) + lines(0.9, n=128) + lines(0.5, n=512)
    rivals = lines(0.6, seeds=(1,)) + lines(0.8, 0.9, n=128) + lines(0.4, n=512, seeds=(7,))
    found = compare.differences_by_budget(mine, rivals)
    assert found == {32: [pytest.approx(0.2)], 128: [pytest.approx(0.1)]}


def test_paired_tests_are_of_the_answers():
    right = compare.answers_of("1100" * 25)
    mine = {"seed": 0, "predictions": "1100" * 25}
    rival = {"seed": 0, "predictions": "1101" * 25}
    assert right(rival).tolist() == [True, True, True, False] * 25
    (found,) = compare.paired_tests([mine], [rival], right)
    assert found == paired_test(np.ones(100, bool), right(rival))
    assert compare.paired_tests([mine], [rival], lambda line: None) == []
    (turned,) = compare.paired_tests([rival], [mine], right)
    (same,) = compare.paired_tests([mine], [mine], right)
    assert [compare.verdict(test) for test in (found, turned, same)] == [1, -1, 0]


def test_agreed_where_all_tests_say_the_same():
    up, down = ({"difference": d, "resolved": True} for d in (0.1, -0.1))
    open_ = {"difference": 0.1, "resolved": False}
    assert [compare.agreed(tests) for tests in ([up, up], [down], [up, down], [up, open_],
                                                [open_], [])] == [1, -1, 0, 0, 0, 0]  # fmt: skip
