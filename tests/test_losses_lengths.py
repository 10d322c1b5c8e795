"""The "Max Length" loss and its repairs: by hand, autograd, differences, enumeration, chance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import DTYPES, EXTREME, autograd, close, f64, sizes, tensors

from tutorkit.losses import (
    check_gradient,
    expected_length,
    expected_length_grad,
    expected_length_naive,
    length_balance_loss,
    length_balance_loss_grad,
    length_balance_loss_naive,
    max_length_loss,
    max_length_loss_grad,
    max_length_loss_grad_as_published,
    max_length_loss_naive,
    sgd_step,
)
from tutorkit.losses.lengths import _check

pytestmark = pytest.mark.usefixtures("one_thread")

MAX_FORMS = [max_length_loss, max_length_loss_naive]
BALANCE_FORMS = [length_balance_loss, length_balance_loss_naive]
EXPECTED_FORMS = [expected_length, expected_length_naive]


@st.composite
def lengths(draw, dtype=torch.float64):
    """One to five lengths between a quarter of a token and a hundred."""
    return draw(tensors((draw(sizes(1, 5)),), dtype, 0.25, 100))


# --- the published loss


@pytest.mark.parametrize("loss", MAX_FORMS)
def test_max_length_loss_in_numbers(loss):
    # n = 2: -log(1/2) - log(8/2) = log 2 - log 4;  n = 4: log 4 - log 2
    assert loss(f64([1, 8])).item() == pytest.approx(-math.log(2), abs=1e-15)
    assert loss(f64([1, 8]), 4).item() == pytest.approx(math.log(2), abs=1e-15)


def test_max_length_gradient_in_numbers():
    assert max_length_loss_grad(f64([1, 8])).tolist() == [-1, -1 / 8]


def test_published_gradient_in_numbers():
    # -(δ H - n) / n with n = 2: (2 - H) / 2;  with n = 4 and δ = 0.5: (4 - H / 2) / 4
    published = max_length_loss_grad_as_published
    assert published(f64([1, 8])).tolist() == [0.5, -3]
    assert published(f64([1, 8]), 4, 0.5).tolist() == [0.875, 0]


@given(st.data(), DTYPES, st.none() | st.floats(0.5, 50))
def test_max_length_used_form_equals_naive_form(data, dtype, n):
    rows = data.draw(lengths(dtype))
    found, naive = max_length_loss(rows, n), max_length_loss_naive(rows, n)
    torch.testing.assert_close(found, naive, rtol=0, atol=20 * close(dtype)["atol"])
    assert found.dtype == dtype


@given(lengths(), st.none() | st.floats(0.5, 50))
def test_max_length_gradient_agrees_with_autograd_and_differences(rows, n):
    # at whole tokens: near 0 the third derivative 2/H³ is too large for differences
    for loss in MAX_FORMS:
        assert check_gradient(loss, max_length_loss_grad, rows + 1, n, verbose=False)


@given(lengths(), st.floats(0.5, 50))
def test_max_length_gradient_does_not_know_n(rows, n):
    assert torch.equal(max_length_loss_grad(rows, n), max_length_loss_grad(rows))
    for loss in MAX_FORMS:
        torch.testing.assert_close(autograd(lambda h, f=loss: f(h, n), rows), autograd(loss, rows))


def test_descent_grows_every_length_and_ascent_shrinks_it():
    descent, ascent = f64([1, 8]), f64([1, 8])
    for _ in range(50):
        before = descent, ascent
        descent, _ = sgd_step(descent, max_length_loss_grad(descent), learning_rate=0.1)
        ascent, _ = sgd_step(ascent, -max_length_loss_grad(ascent), learning_rate=0.001)
        assert (descent > before[0]).all()
        assert (ascent < before[1]).all()
    # without end either way: the loss has no bound
    assert max_length_loss(f64([1e300])).item() < -690
    assert max_length_loss(f64([1e-300])).item() > 690


@pytest.mark.parametrize(("n", "delta"), [(1, 1.0), (2, 0.5), (5, 2.0), (10, 0.1)])
def test_published_gradient_is_right_at_the_positive_root_and_nowhere_else(n, delta):
    # (n - δH) / n = -1/H  ⇔  δH² - nH - n = 0
    root = (n + math.sqrt(n**2 + 4 * delta * n)) / (2 * delta)
    assert delta * root**2 - n * root - n == pytest.approx(0, abs=1e-9)
    at_root = f64([root])
    torch.testing.assert_close(
        max_length_loss_grad_as_published(at_root, n, delta), max_length_loss_grad(at_root, n)
    )
    # the difference of the two changes its sign there, and there only
    others = torch.logspace(-3, 4, 1000, dtype=torch.float64)
    stated = max_length_loss_grad_as_published(others, n, delta)
    difference = stated - max_length_loss_grad(others, n)
    assert torch.equal(difference > 0, others < root)
    assert difference.all()


@pytest.mark.parametrize("delta", [0.0, -1.0])
def test_published_gradient_is_right_nowhere_unless_delta_is_above_zero(delta):
    others = torch.logspace(-3, 4, 1000, dtype=torch.float64)
    stated = max_length_loss_grad_as_published(others, 3, delta)
    assert (stated - max_length_loss_grad(others, 3) > 0).all()


def test_check_gradient_refuses_the_published_gradient():
    published = max_length_loss_grad_as_published
    assert not check_gradient(max_length_loss, published, f64([1, 8]), verbose=False)


# --- the lengths' balance


@pytest.mark.parametrize("loss", BALANCE_FORMS)
def test_length_balance_in_numbers(loss):
    # h = 2 (1, 3) / 4 = (1/2, 3/2): -log(1/2) - log(3/2) = log(4/3)
    assert loss(f64([1, 3])).item() == pytest.approx(math.log(4 / 3), abs=1e-15)


def test_length_balance_gradient_in_numbers():
    # 2/4 - 1/1 and 2/4 - 1/3
    torch.testing.assert_close(length_balance_loss_grad(f64([1, 3])), f64([-1 / 2, 1 / 6]))


@given(st.data(), DTYPES)
def test_length_balance_used_form_equals_naive_form(data, dtype):
    rows = data.draw(lengths(dtype))
    found, naive = length_balance_loss(rows), length_balance_loss_naive(rows)
    torch.testing.assert_close(found, naive, rtol=0, atol=20 * close(dtype)["atol"])
    assert found.dtype == dtype


@given(lengths())
def test_length_balance_gradient_agrees_with_autograd_and_differences(rows):
    for loss in BALANCE_FORMS:
        assert check_gradient(loss, length_balance_loss_grad, rows + 1, verbose=False)


@given(lengths())
def test_length_balance_is_n_times_the_divergence_from_uniform(rows):
    share, n = rows / rows.sum(), len(rows)
    divergence = torch.nn.functional.kl_div(
        share.log(), torch.full_like(share, 1 / n), reduction="sum"
    )
    torch.testing.assert_close(length_balance_loss(rows), n * divergence, rtol=1e-10, atol=1e-12)


@given(lengths(), st.floats(0.01, 100))
def test_length_balance_is_smallest_at_equal_lengths_and_blind_to_scale(rows, scale):
    loss = length_balance_loss(rows)
    assert loss >= -1e-12
    torch.testing.assert_close(length_balance_loss(scale * rows), loss, rtol=1e-9, atol=1e-11)
    # so the gradient is orthogonal to the lengths: Σ H_i (n/ΣH - 1/H_i) = n - n
    assert length_balance_loss_grad(rows) @ rows == pytest.approx(0, abs=1e-11)
    equal = torch.full_like(rows, scale)
    assert length_balance_loss(equal).item() == pytest.approx(0, abs=1e-13)
    torch.testing.assert_close(
        length_balance_loss_grad(equal), torch.zeros_like(equal), rtol=0, atol=1e-12
    )


def test_descent_on_the_balance_makes_lengths_equal():
    rows = f64([1, 4, 10])
    for _ in range(2000):
        rows, _ = sgd_step(rows, length_balance_loss_grad(rows), learning_rate=0.5)
    torch.testing.assert_close(rows, rows.mean().expand(3))


# --- the expected length


@pytest.mark.parametrize("form", EXPECTED_FORMS)
def test_expected_length_in_numbers(form):
    # q = σ(0) = 1/2 twice, cut at 2: 1 · 1/2 + 2 · 1/2 = 1.5, which is S_0 + S_1 = 1 + 1/2
    assert form(f64([0, 0])).item() == 1.5
    # q = (3/4, 1/4, 1/2): 1 + 1/4 + 1/4 · 3/4
    found = form(f64([math.log(3), -math.log(3), 0])).item()
    assert found == pytest.approx(1 + 1 / 4 + 3 / 16, abs=1e-15)
    assert form(f64([])).item() == 0
    assert form(f64([5])).item() == pytest.approx(1, abs=1e-15)


def test_expected_length_gradient_in_numbers():
    # S = (1, 1/4, 3/16): -3/4 (1/4 + 3/16), -1/4 · 3/16, and 0: nothing comes after the cut
    grad = expected_length_grad(f64([math.log(3), -math.log(3), 0]))
    torch.testing.assert_close(grad, f64([-21 / 64, -3 / 64, 0]))
    assert expected_length_grad(f64([])).shape == (0,)


@given(st.data(), DTYPES, sizes(0, 6))
def test_expected_length_used_form_equals_naive_form(data, dtype, steps):
    logits = data.draw(tensors((steps,), dtype))
    found = expected_length(logits)
    torch.testing.assert_close(found, expected_length_naive(logits), **close(dtype))
    assert found.dtype == expected_length_grad(logits).dtype == dtype


@given(st.data(), sizes(0, 6))
def test_expected_length_gradient_agrees_with_autograd_and_differences(data, steps):
    logits = data.draw(tensors((steps,)))
    for form in EXPECTED_FORMS:
        assert check_gradient(form, expected_length_grad, logits, verbose=False)


@given(st.data(), sizes(1, 4))
def test_expected_length_equals_enumeration_of_every_course(data, steps):
    logits = data.draw(tensors((steps,)))
    stop = torch.sigmoid(logits).tolist()
    total = 0.0
    for course in itertools.product([False, True], repeat=steps):  # stop here, or go on?
        probability = math.prod(q if s else 1 - q for q, s in zip(stop, course, strict=True))
        length = course.index(True) + 1 if any(course) else steps
        total += probability * length
    assert expected_length(logits).item() == pytest.approx(total, abs=1e-12)


def test_expected_length_equals_the_mean_of_sampled_lengths():
    logits = torch.linspace(-2, 1, 8, dtype=torch.float64)
    stops = torch.rand(200_000, 8, dtype=torch.float64) < torch.sigmoid(logits)
    stops[:, -1] = True  # cut
    lengths = stops.long().argmax(dim=1) + 1.0
    error = lengths.std() / math.sqrt(len(lengths))
    assert abs(expected_length(logits).item() - lengths.mean().item()) < 4 * error
    assert error < 0.01


@given(st.data(), DTYPES, sizes(0, 6))
def test_extreme_stop_logits_give_a_finite_length_and_gradient(data, dtype, steps):
    logits = data.draw(tensors((steps,), dtype, -EXTREME, EXTREME))
    found = expected_length(logits)
    assert min(steps, 1) <= found <= steps
    grad = autograd(expected_length, logits)
    torch.testing.assert_close(expected_length_grad(logits), grad, **close(dtype))
    assert (grad <= 0).all()


# --- errors

EVERY = [
    *MAX_FORMS, max_length_loss_grad, max_length_loss_grad_as_published,
    *BALANCE_FORMS, length_balance_loss_grad,
]  # fmt: skip


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("wrong", [[], [1.0, 0.0], [-1.0], [math.nan]])
def test_lengths_outside_the_domain(function, wrong):
    match = r"one length above 0 for each sentence, found \[.*\]: the logarithm of a length is def"
    with pytest.raises(ValueError, match=match):
        function(f64(wrong))


def test_lengths_of_another_shape():
    with pytest.raises(ValueError, match=r"one length above 0 for each .*, found \[\[1.0\]\]"):
        _check(torch.ones(1, 1), None)


@pytest.mark.parametrize("function", EVERY[:4])
@pytest.mark.parametrize("wrong", [0.0, -2.0, math.nan])
def test_a_divisor_outside_the_domain(function, wrong):
    match = rf"n: expected a number above 0 \(the number of sentences\), found {wrong}"
    with pytest.raises(ValueError, match=match):
        function(f64([1, 2]), wrong)
