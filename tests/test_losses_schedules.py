"""The learning rate over a run: by hand, by formula, ULMFiT's equation 3, transformers."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tutorkit.losses import SCHEDULES, lr_schedule, lr_schedule_naive

FROM_ONE_OVER_W = [kind for kind in SCHEDULES if kind != "slanted_triangular"]


@pytest.mark.parametrize("schedule", FROM_ONE_OVER_W)
def test_warm_up_rises_in_equal_steps_to_one(schedule):
    found = [lr_schedule(schedule, step, total=20, warmup=4) for step in range(5)]
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_slanted_warm_up_rises_in_equal_steps_from_one_over_ratio_to_one():
    # (1 + p (5 - 1)) / 5 with p = 0, 1/4, 1/2, 3/4, 1
    found = [lr_schedule("slanted_triangular", step, 20, 4, ratio=5) for step in range(5)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-15)


@pytest.mark.parametrize(("schedule", "expected"), [
    ("linear", [1, 0.75, 0.5, 0.25, 0]),
    ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
    ("constant", [1, 1, 1, 1, 1]),
    # (1 + p · 31) / 32 with p = 1, 3/4, 1/2, 1/4, 0
    ("slanted_triangular", [1, 97 / 128, 66 / 128, 35 / 128, 4 / 128]),
])  # fmt: skip
@pytest.mark.parametrize("warmup", [0, 10])
def test_decay_after_the_warm_up(schedule, expected, warmup):
    steps = [warmup + quarter * 10 for quarter in range(5)]
    found = [lr_schedule(schedule, step, total=warmup + 40, warmup=warmup) for step in steps]
    assert found == pytest.approx(expected, abs=1e-12)


def test_cosine_formula_at_every_step():
    for step in range(5, 30):
        expected = 0.5 * (1 + math.cos(math.pi * (step - 5) / 25))
        assert lr_schedule("cosine", step, 30, 5) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (3, 3), (7, 2)])
def test_every_step_of_a_short_run_moves_and_none_overshoots(schedule, total, warmup):
    factors = [lr_schedule(schedule, step, total, warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    if schedule in FROM_ONE_OVER_W or warmup < total:
        assert max(factors) == 1
    else:  # the slanted triangle reaches its peak after w steps, here at the end of the run
        assert max(factors) < lr_schedule(schedule, total, total, warmup) == 1


def test_slanted_triangle_in_numbers_of_equation_3():
    # T = 40, cut_frac = 0.1, ratio = 32: cut = 4. p and the factor (1 + 31 p) / 32:
    # t = 1: p = 1/4;  t = 4: p = 1;  t = 22: p = 1 - 18 / (4 · 9) = 1/2;  t = 40: p = 0
    expected = {0: 1 / 32, 1: 8.75 / 32, 4: 1, 22: 16.5 / 32, 40: 1 / 32}
    for form in (lr_schedule, lr_schedule_naive):
        found = [form("slanted_triangular", step, 40, 4) for step in expected]
        assert found == pytest.approx(list(expected.values()), abs=1e-15)


@st.composite
def moments(draw):
    total = draw(st.integers(1, 50))
    return draw(st.integers(0, total)), total, draw(st.integers(0, total))


@given(st.sampled_from(SCHEDULES), moments(), st.floats(1, 100))
def test_used_form_equals_the_names_of_equation_3(kind, moment, ratio):
    used = lr_schedule(kind, *moment, ratio=ratio)
    assert used == pytest.approx(lr_schedule_naive(kind, *moment, ratio=ratio), abs=1e-12)


@given(st.sampled_from(SCHEDULES), moments())
def test_every_factor_lies_between_zero_and_one(kind, moment):
    assert 0 <= lr_schedule(kind, *moment) <= 1


@given(moments(), st.floats(1, 100))
def test_slanted_triangle_never_leaves_its_two_bounds(moment, ratio):
    factor = lr_schedule("slanted_triangular", *moment, ratio=ratio)
    assert 1 / ratio - 1e-12 <= factor <= 1 + 1e-12


@pytest.mark.parametrize(("kind", "reference"), [
    ("linear", transformers.get_linear_schedule_with_warmup),
    ("cosine", transformers.get_cosine_schedule_with_warmup),
])  # fmt: skip
def test_after_the_warm_up_it_is_the_schedule_of_transformers(kind, reference):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer, num_warmup_steps=4, num_training_steps=20)
    factors = []
    for _ in range(20):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    found = [lr_schedule(kind, step, 20, 4) for step in range(20)]
    assert found[4:] == pytest.approx(factors[4:], abs=1e-12)
    # theirs warms up from 0, and so loses the first step: they are one step behind
    assert found[:4] == pytest.approx(factors[1:5], abs=1e-12)


@pytest.mark.parametrize("form", [lr_schedule, lr_schedule_naive])
def test_unknown_schedule(form):
    with pytest.raises(ValueError, match=r"schedule: expected one of .*'cosine'.*found 'step'"):
        form("step", 0, 10, 2)


@pytest.mark.parametrize(("step", "total", "warmup"), [
    (-1, 5, 0), (6, 5, 0), (0, 5, -1), (0, 5, 6), (0, 0, 0),
])  # fmt: skip
def test_numbers_out_of_range(step, total, warmup):
    found = rf"found step={step}, warmup={warmup}, total={total}"
    with pytest.raises(ValueError, match=rf"expected 0 <= step <= total.*total >= 1, {found}"):
        lr_schedule("linear", step, total, warmup)


@pytest.mark.parametrize("ratio", [0.9, math.nan, math.inf])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=rf"ratio: expected a number >= 1, found {ratio}"):
        lr_schedule("slanted_triangular", 0, 10, 2, ratio=ratio)
