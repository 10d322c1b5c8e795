"""The gradient check: right gradients pass, wrong ones are named, the rest is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import f64, tensors

from tutorkit.losses import check_gradient, cross_entropy, cross_entropy_grad
from tutorkit.losses.gradient_check import GradientCheck

pytestmark = pytest.mark.usefixtures("one_thread")


def bowl(x, y):
    """½ Σ x² + Σ x y over tensors of one shape: its gradients are x + y and x."""
    return (x**2).sum() / 2 + (x * y).sum()


def bowl_grads(x, y):
    return x + y, x


X, Y = f64([[1, 2], [3, 4]]), f64([[0.5, -1], [0, 2]])


def quiet(f, grad, *inputs, **settings) -> GradientCheck:
    return check_gradient(f, grad, *inputs, verbose=False, **settings)


# --- right and wrong


@pytest.mark.parametrize(("f", "grad", "x"), [
    (lambda x: (x**3).sum(), lambda x: 3 * x**2, f64([1, -2, 0])),
    (lambda x: x.exp().prod(), lambda x: x.exp().prod().expand(2), f64([0.5, -1])),
    (lambda x: x.sin(), lambda x: x.cos(), f64(0.7)),  # a scalar
    (lambda x: x.sum(), lambda x: torch.ones_like(x), torch.zeros(2, 0, dtype=torch.float64)),
    (lambda x: (1e4 * x).sum(), lambda x: torch.full_like(x, 1e4), f64([1, 2])),
])  # fmt: skip
def test_accepts_right_gradients(f, grad, x):
    assert quiet(f, grad, x)
    assert quiet(f, grad(x), x)  # its value instead of the function
    assert quiet(f, [grad(x)], x)


@given(tensors((2, 2)), tensors((2, 2)))
def test_accepts_the_gradients_of_two_tensors_wherever_they_are(x, y):
    assert quiet(bowl, bowl_grads, x, y)
    assert quiet(bowl, tuple(bowl_grads(x, y)), x, y)


@pytest.mark.parametrize("wrong", [
    lambda x, y: (-x - y, x),  # sign
    lambda x, y: ((x + y) / 4, x),  # a factor 1/N
    lambda x, y: ((x + y).T, x),  # transposed
    lambda x, y: (x + y, x.flip(0)),
    lambda x, y: (x + y + 1e-6 * torch.eye(2), x),  # a little
    lambda x, y: (x, x + y),  # in the wrong order
    lambda x, y: (x + y + f64([[0, 0], [0, 1]]), x),  # one entry
])  # fmt: skip
def test_refuses_wrong_gradients(wrong):
    result = quiet(bowl, wrong, X, Y)
    assert not result
    assert not result.ok
    bad = [t for t in result.tensors if not t.ok]
    assert bad
    assert all(not t.autograd.ok and not t.differences.ok for t in bad)


def test_reports_the_worst_entry_and_both_values():
    # of the right (1.5, 1; 3, 6) the entry [1, 0] is stated as 4 and [0, 1] as 1.25
    result = quiet(bowl, (f64([[1.5, 1.25], [4, 6]]), X), X, Y)
    bad, good = result.tensors
    assert (bad.name, bad.shape, bad.ok) == ("x", (2, 2), False)
    assert (good.name, good.shape, good.ok) == ("y", (2, 2), True)
    for found in (bad.autograd, bad.differences):
        assert (found.worst, found.stated, found.ok) == ((1, 0), 4, False)
        assert found.found == pytest.approx(3, abs=1e-9)
        assert found.max_abs == pytest.approx(1, abs=1e-9)
        assert found.max_rel == pytest.approx(1 / 4, abs=1e-9)


def test_the_worst_entry_is_the_one_that_is_wrong_not_the_largest():
    # a rounding of 10⁻³ in 10⁶ is nothing, 5 · 10⁻⁴ in 1 is an error
    result = quiet(lambda x: (x * f64([1e6, 1])).sum(), f64([1e6 + 1e-3, 1.0005]), f64([1, 1]))
    found = result.tensors[0].autograd
    assert (found.worst, found.stated) == ((1,), 1.0005)
    assert found.max_abs == pytest.approx(1e-3)
    assert found.max_rel == pytest.approx(5e-4, rel=1e-3)


def test_errors_are_relative_to_large_values_and_absolute_below_one():
    scale = f64([1e5, 1e-5])
    for stated, ok in (([1e5 + 1e-3, 1e-5], True), ([1e5 + 0.1, 1e-5], False),
                       ([1e5, 1e-5 + 5e-8], True), ([1e5, 1e-5 + 2e-7], False)):  # fmt: skip
        found = quiet(lambda x: (x * scale).sum(), f64(stated), f64([1, 1])).tensors[0]
        assert found.autograd.ok is ok


def test_the_tolerance_is_a_setting():
    grad = f64([1.01])
    assert not quiet(torch.sum, grad, f64([3]), tol=0.005)
    assert quiet(torch.sum, grad, f64([3]), tol=0.02)


class _Cut(torch.autograd.Function):
    """The square, with a backward that forgets its 2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def test_autograd_and_differences_are_asked_separately():
    # the stated gradient 2x is right and autograd wrong; and the other way round
    right = quiet(_Cut.apply, lambda x: 2 * x, f64(3)).tensors[0]
    assert (right.autograd.ok, right.differences.ok, right.ok) == (False, True, False)
    wrong = quiet(_Cut.apply, lambda x: x, f64(3)).tensors[0]
    assert (wrong.autograd.ok, wrong.differences.ok, wrong.ok) == (True, False, False)


def test_central_differences_are_exact_to_about_the_second_third_of_the_digits():
    result = quiet(lambda x: x.sin().sum(), torch.cos, torch.linspace(-3, 3, 20))
    assert result.tensors[0].differences.max_abs < 1e-9
    assert result.tensors[0].autograd.max_abs == 0


def test_the_step_of_the_differences_grows_with_the_input():
    # x² = 10¹⁶ is rounded to 2: an error of 10⁵ in 2 · 10⁸ over a step of 6 · 10⁻⁶, 10⁻³ over 600
    assert quiet(lambda x: (x**2).sum(), lambda x: 2 * x, f64([1e8, -1e8]))


# --- what is printed


def test_prints_one_line_for_each_tensor(capsys):
    check_gradient(bowl, bowl_grads, X, Y)
    assert capsys.readouterr().out == (
        "✓ x (2, 2)  agrees with autograd and with finite differences: "
        "max abs and rel error < 1e-07\n"
        "✓ y (2, 2)  agrees with autograd and with finite differences: "
        "max abs and rel error < 1e-07\n"
    )


def test_prints_where_a_gradient_is_wrong(capsys):
    check_gradient(bowl, (f64([[1.5, 1.25], [4, 6]]), X), X, Y)
    assert capsys.readouterr().out == (
        "✗ x (2, 2)  autograd: at [1, 0] stated 4, found 3 (max abs error 1, max rel 0.25)\n"
        "    finite differences: at [1, 0] stated 4, found 3 (max abs error 1, max rel 0.25)\n"
        "✓ y (2, 2)  agrees with autograd and with finite differences: "
        "max abs and rel error < 1e-07\n"
    )


def test_prints_a_scalar_without_an_index_and_only_what_disagrees(capsys):
    check_gradient(_Cut.apply, lambda x: 2 * x, f64(3))
    assert capsys.readouterr().out == (
        "✗ x0 ()  autograd: stated 6, found 3 (max abs error 3, max rel 0.5)\n"
    )


def test_prints_no_absolute_bound_that_is_not_kept(capsys):
    check_gradient(lambda x: (1e9 * x).sum(), f64([1e9 + 1]), f64([1]), tol=1e-6)
    assert capsys.readouterr().out == (
        "✓ x (1,)  agrees with autograd and with finite differences: max rel error < 1e-06\n"
    )


def test_prints_nothing_when_not_verbose_and_the_same_text_as_its_result(capsys):
    result = quiet(bowl, bowl_grads, X, Y)
    assert capsys.readouterr().out == ""
    check_gradient(bowl, bowl_grads, X, Y)
    assert capsys.readouterr().out == f"{result}\n"


def test_inputs_of_a_function_that_does_not_tell_are_numbered():
    result = quiet(lambda *xs: bowl(*xs), bowl_grads, X, Y)
    assert [t.name for t in result.tensors] == ["x0", "x1"]
    result = quiet(lambda first, *rest: bowl(first, *rest), bowl_grads, X, Y)
    assert [t.name for t in result.tensors] == ["first", "x1"]


# --- what is passed in


def test_low_precision_inputs_are_taken_in_float64():
    seen = []

    def f(x, y):
        seen.extend([x.dtype, y.dtype])
        return bowl(x, y)

    x, y = X.float(), Y.bfloat16()
    assert quiet(f, bowl_grads, x, y)
    assert set(seen) == {torch.float64}
    assert (x.dtype, y.dtype) == (torch.float32, torch.bfloat16)


def test_inputs_are_left_as_they_are():
    x, y = X.clone().requires_grad_(True), Y.clone()
    assert quiet(bowl, bowl_grads, x, y)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert x.grad is None
    assert x.requires_grad


def test_whole_numbers_and_settings_are_passed_on_as_they_are():
    def f(logits, labels, power, sign="+"):
        assert labels.dtype == torch.long
        assert (power, sign) == (2, "-")
        return -(cross_entropy(logits, labels) ** power)

    def grad(logits, labels, power, sign):
        return -power * cross_entropy(logits, labels) * cross_entropy_grad(logits, labels)

    assert quiet(f, grad, X, torch.tensor([0, 1]), 2, "-")


def test_none_skips_a_tensor_but_not_all():
    result = quiet(bowl, (None, X), X, Y)
    assert [t.name for t in result.tensors] == ["y"]
    assert quiet(bowl, lambda x, y: (x + y, None), X, Y).ok
    with pytest.raises(ValueError, match="stated gradient for at least one .*, found only None"):
        quiet(bowl, (None, None), X, Y)


def test_a_tensor_that_f_does_not_use_has_the_gradient_zero():
    assert quiet(lambda x, y: x.sum(), (torch.ones(2), torch.zeros(3)), f64([1, 2]), f64([1, 2, 3]))
    assert quiet(lambda x: f64(5), torch.zeros(2), f64([1, 2]))
    assert not quiet(lambda x: f64(5), torch.ones(2), f64([1, 2]))


# --- what is refused


@pytest.mark.parametrize("inputs", [(), (1.0,), (torch.tensor([1, 2]),)])
def test_nothing_to_differentiate(inputs):
    with pytest.raises(ValueError, match="a tensor of real numbers among the inputs, found none"):
        quiet(lambda *xs: f64(1), f64([1]), *inputs)


def test_a_wrong_number_of_gradients():
    match = r"expected 2 stated gradients, one for each of \['x', 'y'\], found 1: pass None for"
    with pytest.raises(ValueError, match=match):
        quiet(bowl, lambda x, y: x + y, X, Y)
    with pytest.raises(ValueError, match=r"expected 1 stated gradients, .* found 2"):
        quiet(lambda x: x.sum(), (torch.ones(2), torch.ones(2)), f64([1, 2]))


def test_a_gradient_of_another_shape():
    match = r"x: expected a gradient of the input's shape \(2, 3\), found \(3, 2\)"
    with pytest.raises(ValueError, match=match):
        quiet(lambda x: x.sum(), torch.ones(3, 2), torch.ones(2, 3))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_stated_gradient_with_nan_or_infinity(wrong):
    with pytest.raises(ValueError, match="x: the stated gradient has NaN or infinity in it"):
        quiet(lambda x: x.sum(), f64([1, wrong]), f64([1, 2]))


@pytest.mark.parametrize(("f", "found"), [
    (lambda x: x, r"\(2,\)"), (lambda x: x.sum()[None], r"\(1,\)"), (lambda x: 3.0, "float"),
])  # fmt: skip
def test_f_that_is_no_scalar(f, found):
    match = rf"expected f to return a scalar tensor, found {found}: sum or average it"
    with pytest.raises(ValueError, match=match):
        quiet(f, f64([1, 1]), f64([1, 2]))


def test_a_point_outside_the_domain():
    match = "expected a finite value of f at the inputs, found nan: is an input outside the domain"
    with pytest.raises(ValueError, match=match):
        quiet(lambda x: x.log().sum(), lambda x: 1 / x, f64([1, -1]))

    def strict(x):
        if (x < 0).any():
            raise ValueError("x must not be negative")
        return x.sum()

    with pytest.raises(ValueError, match="f has no value at the inputs: x must not be negative"):
        quiet(strict, torch.ones_like, f64([1, -1]))
    # on the edge: one of the two points of the difference is outside
    match = r"f has no value at x\[1\] - 6e-06: x must not be negative"
    with pytest.raises(ValueError, match=match):
        quiet(strict, torch.ones_like, f64([1, 0]))


def test_a_point_on_the_edge_of_the_domain():
    match = r"expected a finite value of f at x\[1\] - 6e-06, found nan"
    with pytest.raises(ValueError, match=match):
        quiet(lambda x: (x**1.5).sum(), lambda x: 1.5 * x.sqrt(), f64([1, 0]))
    # where autograd itself has no value there
    match = "x: autograd's gradient has NaN or infinity in it: is an input on the edge"
    with pytest.raises(ValueError, match=match):
        quiet(lambda x: x.abs().sqrt().sum(), torch.zeros_like, f64([1, 0]))


def test_an_error_that_is_no_value_error_is_let_through():
    def broken(x):
        raise KeyError("x")

    with pytest.raises(KeyError):
        quiet(broken, torch.ones_like, f64([1]))


@given(st.integers(0, 3), st.sampled_from([1e-5, 0.1, -3.0]))
def test_one_wrong_entry_is_found_wherever_it_is(where, error):
    wrong = (X + Y).flatten()
    wrong[where] += error
    result = quiet(bowl, (wrong.reshape(2, 2), X), X, Y)
    assert result.tensors[0].autograd.worst == divmod(where, 2)
    assert not result
