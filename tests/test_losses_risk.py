"""The empirical risk: by hand, by rows and by batches, as an expectation over batches."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import DTYPES, close, f64, sizes, tensors

from tutorkit.losses import (
    IGNORE_INDEX,
    check_gradient,
    cross_entropy,
    empirical_risk,
    empirical_risk_naive,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def squared(outputs, labels):
    return (outputs - labels) ** 2


def double(x):
    return 2 * x


INPUTS, LABELS = f64([1, 2, 4]), f64([1, 1, 1])  # losses (2x - 1)²: 1, 9, 49


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_hand_computed_numbers(batch_size):
    found = empirical_risk(double, squared, INPUTS, LABELS, batch_size)
    assert found.item() == pytest.approx(59 / 3, abs=1e-14)
    naive = empirical_risk_naive(double, squared, INPUTS, LABELS)
    assert naive.item() == pytest.approx(59 / 3, abs=1e-14)
    # the mean of the batches' means gives the last row of a short batch the weight of two
    batches = zip(INPUTS.split(2), LABELS.split(2), strict=True)
    means = [squared(double(x), y).mean() for x, y in batches]
    assert torch.stack(means).mean().item() == 27  # (5 + 49) / 2


def test_hand_computed_gradient():
    # d/dw 1/3 Σ (w x - 1)² = 2/3 Σ x (w x - 1) = 2/3 (1 + 6 + 28) at w = 2
    def risk(w):
        return empirical_risk(lambda x: w * x, squared, INPUTS, LABELS, 2)

    assert check_gradient(risk, f64(70 / 3), f64(2.0), verbose=False)


@given(st.data(), DTYPES, sizes(1, 7), st.integers(1, 9))
def test_batch_size_has_no_influence_and_rows_one_by_one_give_the_same(data, dtype, rows, size):
    inputs, weight = data.draw(tensors((rows, 2), dtype)), data.draw(tensors((2, 3), dtype, -1, 1))
    labels = torch.arange(rows) % 3
    calls = []

    def model(x):
        calls.append(len(x))
        return x @ weight

    def loss(logits, labels):
        return cross_entropy(logits, labels, "none")

    found = empirical_risk(model, loss, inputs, labels, size)
    assert calls == [size] * (rows // size) + [rows % size] * (rows % size > 0)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, empirical_risk_naive(model, loss, inputs, labels), **close(dtype)
    )
    torch.testing.assert_close(found, cross_entropy(model(inputs), labels), **close(dtype))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_mean_over_a_random_batch_is_unbiased_with_a_variance_that_falls_as_one_over_b(
    batch_size,
):
    # every batch that can be drawn, with replacement, is equally probable
    batches = itertools.product(range(3), repeat=batch_size)
    means = torch.stack(
        [empirical_risk(double, squared, INPUTS[list(b)], LABELS[list(b)]) for b in batches]
    )
    assert means.mean().item() == pytest.approx(59 / 3, abs=1e-12)
    # the variance of one row's loss: (1 + 81 + 2401) / 3 - (59 / 3)²
    one = 2483 / 3 - (59 / 3) ** 2
    assert means.var(correction=0).item() == pytest.approx(one / batch_size, rel=1e-12)


def test_labels_can_be_real_numbers_even_minus_one_hundred():
    labels = f64([-100.0])
    assert empirical_risk(double, squared, f64([0.0]), labels).item() == 100**2


FORMS = [empirical_risk, empirical_risk_naive]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "labels"), [(0, 0), (2, 3), (0, 1)])
def test_no_rows_or_unequal_numbers_of_them(form, rows, labels):
    with pytest.raises(ValueError, match=rf"as many labels.*{rows} rows, {labels} labels and"):
        form(double, squared, torch.zeros(rows), torch.zeros(labels))


def test_a_batch_size_below_one():
    with pytest.raises(ValueError, match=r"batch_size >= 1, found .* and batch_size=0"):
        empirical_risk(double, squared, INPUTS, LABELS, 0)


@pytest.mark.parametrize("form", FORMS)
def test_ignored_labels_are_refused(form):
    labels = torch.tensor([0, 1, IGNORE_INDEX])
    with pytest.raises(ValueError, match=r"a label for every row, found -100 \(ignored\): leave"):
        form(double, squared, INPUTS, labels)


def test_a_loss_that_is_reduced_already():
    with pytest.raises(ValueError, match=r"one loss for each of 2 rows, found shape \(\): pass a"):
        empirical_risk(double, lambda o, y: squared(o, y).mean(), INPUTS, LABELS, 2)
