"""Several losses in one: by hand, naive twins, the Gaussian's likelihood, the stated optimum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import DTYPES, close, f64, sizes, tensors

from tutorkit.losses import (
    check_gradient,
    multitask_loss,
    multitask_loss_naive,
    sgd_step,
    uncertainty_weighted_loss,
    uncertainty_weighted_loss_grad,
    uncertainty_weighted_loss_naive,
)
from tutorkit.losses.tasks import _check_kinds, _check_weights

pytestmark = pytest.mark.usefixtures("one_thread")

FIXED = [multitask_loss, multitask_loss_naive]
LEARNED = [uncertainty_weighted_loss, uncertainty_weighted_loss_naive]
KINDS = ["classification", "regression"]


@st.composite
def tasks(draw, dtype=torch.float64):
    """Losses (K,), log variances (K,) and a kind for each."""
    count = draw(sizes(1, 4))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=count, max_size=count))
    losses = draw(tensors((count,), dtype, 0, 8))
    return losses, draw(tensors((count,), dtype, -2, 2)), kinds


@pytest.mark.parametrize("loss", FIXED)
def test_fixed_weights_in_numbers(loss):
    assert loss(f64([2, 3, 5]), f64([1, 0.5, 0])).item() == 3.5


def test_the_gradient_of_a_fixed_sum_is_its_weights():
    losses, weights = f64([2, 3, 5]), f64([1, 0.5, 0.25])
    grads = weights, losses  # the sum is linear in both
    for loss in FIXED:
        assert check_gradient(loss, grads, losses, weights, verbose=False)


@given(st.data(), DTYPES)
def test_fixed_weights_used_form_equals_naive_form(data, dtype):
    losses, _, _ = data.draw(tasks(dtype))
    weights = data.draw(tensors(losses.shape, dtype, 0, 2))
    weights[0] += 1
    found = multitask_loss(losses, weights)
    torch.testing.assert_close(found, multitask_loss_naive(losses, weights), **close(dtype))
    torch.testing.assert_close(multitask_loss(losses, 3 * weights), 3 * found, **close(dtype))


@pytest.mark.parametrize("loss", LEARNED)
def test_learned_weights_in_numbers(loss):
    # cross-entropy 2 with σ² = 4: 2/4 + log 2;  squared error 3 with σ² = 1: 3/2 + 0
    found = loss(f64([2, 3]), f64([math.log(4), 0]), KINDS)
    assert found.item() == pytest.approx(2 + math.log(2), abs=1e-15)
    # without kinds both are cross-entropies: 2/4 + log 2 + 3
    found = loss(f64([2, 3]), f64([math.log(4), 0]))
    assert found.item() == pytest.approx(3.5 + math.log(2), abs=1e-15)


def test_learned_weights_gradient_in_numbers():
    # the weights c/σ² are 1/4 and 1/2; ∂/∂s: 1/2 - 2/4 and 1/2 - 3/2
    grads = uncertainty_weighted_loss_grad(f64([2, 3]), f64([math.log(4), 0]), KINDS)
    torch.testing.assert_close(grads.losses, f64([1 / 4, 1 / 2]))
    torch.testing.assert_close(grads.log_variances, f64([0, -1]))


@given(st.data(), DTYPES)
def test_learned_weights_used_form_equals_naive_form(data, dtype):
    arguments = data.draw(tasks(dtype))
    found = uncertainty_weighted_loss(*arguments)
    torch.testing.assert_close(
        found, uncertainty_weighted_loss_naive(*arguments), **close(dtype)
    )
    assert found.dtype == dtype


@given(tasks())
def test_learned_weights_gradient_agrees_with_autograd_and_differences(arguments):
    for loss in LEARNED:
        assert check_gradient(loss, uncertainty_weighted_loss_grad, *arguments, verbose=False)


@given(st.data(), st.floats(-2, 2))
def test_a_regression_task_counts_as_a_gaussians_negative_log_likelihood(data, s):
    targets, outputs = data.draw(tensors((5,))), data.draw(tensors((5,)))
    sigma = math.exp(s / 2)
    likelihood = torch.distributions.Normal(outputs, sigma).log_prob(targets).mean()
    error = ((targets - outputs) ** 2).mean()
    found = uncertainty_weighted_loss(error[None], f64([s]), ["regression"])
    # the constant log √(2π) is left out
    torch.testing.assert_close(found, -likelihood - math.log(2 * math.pi) / 2)


def test_descent_finds_the_stated_optimum():
    # σ² = 2 c L: 4 for the cross-entropy, 3 for the squared error; there each c L/σ² is 1/2
    losses, s = f64([2, 3]), f64([0, 0])
    for _ in range(200):
        grads = uncertainty_weighted_loss_grad(losses, s, KINDS)
        s, _ = sgd_step(s, grads.log_variances, learning_rate=0.5)
    torch.testing.assert_close(s.exp(), f64([4, 3]))
    best = uncertainty_weighted_loss(losses, s, KINDS)
    assert best.item() == pytest.approx(2 * 0.5 + math.log(4) / 2 + math.log(3) / 2, abs=1e-12)
    # and it is a minimum
    for move in ([0.1, 0], [-0.1, 0], [0, 0.1], [0, -0.1]):
        assert uncertainty_weighted_loss(losses, s + f64(move), KINDS) > best


def test_a_large_negative_or_positive_log_variance_divides_by_nothing():
    found = uncertainty_weighted_loss(f64([1, 0]), f64([1e4, -700]))
    assert found.item() == pytest.approx(5000 - 350)
    assert not uncertainty_weighted_loss_naive(f64([1, 0]), f64([1e4, -1600])).isfinite()


@pytest.mark.parametrize("weights", [[1.0, -0.1], [0.0, 0.0], [1.0, math.nan]])
@pytest.mark.parametrize("loss", FIXED)
def test_weights_out_of_range(loss, weights):
    with pytest.raises(ValueError, match=r"weights >= 0, at least one above 0, found \["):
        loss(f64([1, 2]), f64(weights))


@pytest.mark.parametrize("function", [*LEARNED, uncertainty_weighted_loss_grad])
@pytest.mark.parametrize("kinds", [["classification"], ["classification", "ranking"]])
def test_kinds_that_do_not_fit(function, kinds):
    match = r"kinds: expected one of \('classification', 'regression'\) for each of 2 losses, found"
    with pytest.raises(ValueError, match=match):
        function(f64([1, 2]), f64([0, 0]), kinds)


@pytest.mark.parametrize(("losses", "others"), [((2,), (3,)), ((0,), (0,)), ((2, 1), (2, 1))])
def test_shapes_that_do_not_match(losses, others):
    match = r"expected two tensors \(K,\) with K >= 1, found shapes"
    for check in (_check_weights, lambda a, b: _check_kinds(a, b, None)):
        with pytest.raises(ValueError, match=match):
            check(torch.ones(losses), torch.ones(others))
