"""Softmax cross-entropy, a linear head, label smoothing: by hand, torch, autograd, differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import (
    DTYPES,
    EXTREME,
    TOLERANCE,
    autograd,
    close,
    f64,
    label_tensors,
    labelled_rows,
    sizes,
    tensors,
)

from tutorkit.losses import (
    IGNORE_INDEX,
    REDUCTIONS,
    check_gradient,
    cross_entropy,
    cross_entropy_grad,
    cross_entropy_naive,
    label_smoothing_cross_entropy,
    label_smoothing_cross_entropy_grad,
    label_smoothing_cross_entropy_naive,
    linear_head_grads,
    linear_head_grads_naive,
)
from tutorkit.losses.cross_entropy import _check, _head_logits

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(1, 2), (7, 2), (3, 5), (16, 11)]


def some_rows(rows: int, classes: int, dtype=torch.float64, ignored: int = 0):
    logits = 3 * torch.randn(rows, classes, dtype=dtype)
    labels = torch.randint(classes, (rows,))
    labels[:ignored] = IGNORE_INDEX
    return logits, labels


def test_hand_computed_numbers():
    # softmax of (0, log 3) is (1/4, 3/4)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    losses = cross_entropy(logits, labels, reduction="none")
    assert losses.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])
    assert cross_entropy(logits, labels).item() == pytest.approx(math.log(16 / 3) / 2)
    grad = cross_entropy_grad(logits, labels)
    assert grad.flatten().tolist() == pytest.approx([-3 / 8, 3 / 8, 1 / 8, -1 / 8])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignored", [0, 1])
def test_stable_form_equals_the_formula_and_torch(dtype, shape, reduction, ignored):
    logits, labels = some_rows(*shape, dtype=dtype, ignored=min(ignored, shape[0] - 1))
    found = cross_entropy(logits, labels, reduction)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(found, cross_entropy_naive(logits, labels, reduction), **close)
    reference = torch.nn.functional.cross_entropy(logits, labels, reduction=reduction)
    torch.testing.assert_close(found, reference, **close)
    assert found.dtype == dtype


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", [cross_entropy, cross_entropy_naive])
def test_gradient_formula_equals_autograd(shape, loss):
    logits, labels = some_rows(*shape, ignored=shape[0] // 3)
    logits.requires_grad_(True)
    loss(logits, labels).backward()
    torch.testing.assert_close(cross_entropy_grad(logits.detach(), labels), logits.grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_formula_equals_finite_differences(shape):
    logits, labels = some_rows(*shape, ignored=shape[0] // 3)
    grad, h = torch.empty_like(logits), 1e-5
    for i in range(shape[0]):
        for c in range(shape[1]):
            step = torch.zeros_like(logits)
            step[i, c] = h
            up, down = cross_entropy(logits + step, labels), cross_entropy(logits - step, labels)
            grad[i, c] = (up - down) / (2 * h)
    torch.testing.assert_close(cross_entropy_grad(logits, labels), grad, rtol=0, atol=1e-9)


def test_ignored_rows_count_for_nothing():
    logits, labels = some_rows(6, 3)
    labels[[1, 4]] = IGNORE_INDEX
    kept = [0, 2, 3, 5]
    for reduction in ("mean", "sum"):
        torch.testing.assert_close(
            cross_entropy(logits, labels, reduction),
            cross_entropy(logits[kept], labels[kept], reduction),
        )
    assert cross_entropy(logits, labels, "none")[[1, 4]].tolist() == [0, 0]
    grad = cross_entropy_grad(logits, labels)
    assert grad[[1, 4]].abs().max() == 0
    torch.testing.assert_close(grad[kept], cross_entropy_grad(logits[kept], labels[kept]))


@pytest.mark.parametrize("loss", [cross_entropy, cross_entropy_naive])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_all_rows_ignored_gives_zero_and_a_zero_gradient(loss, reduction):
    logits, labels = some_rows(4, 3, ignored=4)
    logits.requires_grad_(True)
    value = loss(logits, labels, reduction)
    value.backward()
    assert value.item() == 0  # torch's own mean is NaN here
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert torch.equal(cross_entropy_grad(logits.detach(), labels), torch.zeros_like(logits))


def test_no_rows_at_all_give_zero():
    logits, labels = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    assert cross_entropy(logits, labels).item() == 0
    assert cross_entropy(logits, labels, "none").shape == (0,)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_extreme_logits(dtype):
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4], [-1e4, -1e4]], dtype=dtype)
    labels = torch.tensor([0, 1, 0])
    assert not cross_entropy_naive(logits, labels, "none").isfinite().any()
    logits.requires_grad_(True)
    losses = cross_entropy(logits, labels, "none")
    # ℓ is a difference of two numbers near 1e4, so it carries their rounding
    rounding = {"rtol": 0, "atol": 1e4 * torch.finfo(dtype).eps}
    expected = torch.tensor([0, 2e4, math.log(2)], dtype=dtype)
    torch.testing.assert_close(losses, expected, **rounding)
    losses.sum().backward()
    expected = torch.tensor([[0, 0], [1, -1], [-0.5, 0.5]], dtype=dtype)
    torch.testing.assert_close(logits.grad, expected, **rounding)
    torch.testing.assert_close(cross_entropy_grad(logits.detach(), labels), expected / 3)


def test_labels_of_another_whole_number_type():
    logits, labels = some_rows(5, 3)
    for function in (cross_entropy, cross_entropy_naive, cross_entropy_grad):
        assert torch.equal(function(logits, labels.int()), function(logits, labels))


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_naive, cross_entropy_grad])
@pytest.mark.parametrize("wrong", [2, -1, -101])
def test_label_out_of_range(function, wrong):
    labels = torch.tensor([0, IGNORE_INDEX, wrong])
    with pytest.raises(ValueError, match=rf"labels in 0…1 or -100 \(ignored\), found {wrong}"):
        function(torch.zeros(3, 2), labels)


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_naive])
def test_unknown_reduction(function):
    with pytest.raises(ValueError, match=r"reduction: expected one of .*'mean'.*found 'avg'"):
        function(torch.zeros(1, 2), torch.tensor([0]), "avg")


@pytest.mark.parametrize(("logits", "labels"), [((3, 2), (1,)), ((3, 2), (4,)), ((3,), (3,))])
def test_shapes_that_do_not_match(logits, labels):
    # Through the public functions the shape checker of the tests would speak first.
    with pytest.raises(ValueError, match=r"expected logits \(N, C\) and labels \(N,\), found"):
        _check(torch.zeros(logits), torch.zeros(labels, dtype=torch.long), "mean")


@given(st.data(), DTYPES)
def test_used_form_equals_naive_form_for_any_rows(data, dtype):
    logits, labels = data.draw(labelled_rows(dtype))
    for reduction in REDUCTIONS:
        torch.testing.assert_close(
            cross_entropy(logits, labels, reduction),
            cross_entropy_naive(logits, labels, reduction),
            **close(dtype),
        )


@given(labelled_rows())
def test_gradient_agrees_with_autograd_and_differences_for_any_rows(rows):
    assert check_gradient(cross_entropy, cross_entropy_grad, *rows, verbose=False)
    assert check_gradient(cross_entropy_naive, cross_entropy_grad, *rows, verbose=False)


@given(st.data(), DTYPES)
def test_any_extreme_logits_give_a_finite_loss_and_gradient(data, dtype):
    logits, labels = data.draw(labelled_rows(dtype, bound=EXTREME))
    loss = cross_entropy(logits, labels)
    assert loss.isfinite()
    assert loss >= -EXTREME * torch.finfo(dtype).eps  # not below 0, to rounding
    grad = autograd(lambda z: cross_entropy(z, labels), logits)
    # p = exp(z - logsumexp(z)) in autograd: an error of ε · max|z| in the exponent
    rounding = 2 * EXTREME * torch.finfo(dtype).eps
    torch.testing.assert_close(cross_entropy_grad(logits, labels), grad, rtol=0, atol=rounding)


@given(labelled_rows(), st.floats(-100, 100))
def test_a_shift_of_a_row_of_logits_changes_nothing(rows, shift):
    logits, labels = rows
    shifts = shift * torch.arange(1, len(logits) + 1, dtype=torch.float64)[:, None]
    for function in (cross_entropy, cross_entropy_grad):
        torch.testing.assert_close(
            function(logits + shifts, labels), function(logits, labels), rtol=0, atol=1e-11
        )


@given(labelled_rows(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows, random):
    logits, labels = rows
    order = list(range(len(labels)))
    random.shuffle(order)
    order = torch.tensor(order, dtype=torch.long)
    moved, still = cross_entropy(logits[order], labels[order]), cross_entropy(logits, labels)
    torch.testing.assert_close(moved, still)
    torch.testing.assert_close(
        cross_entropy_grad(logits[order], labels[order]), cross_entropy_grad(logits, labels)[order]
    )


@given(labelled_rows())
def test_every_row_of_the_gradient_sums_to_zero(rows):
    sums = cross_entropy_grad(*rows).sum(dim=1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-14)


def test_bfloat16_keeps_its_type_and_an_error_of_a_rounding_of_the_logits():
    logits, labels = some_rows(16, 5)
    low = logits.bfloat16()
    found, exact = cross_entropy(low, labels, "none"), cross_entropy(low.double(), labels, "none")
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() <= 2**-8 * 2 * logits.abs().max()
    grad = cross_entropy_grad(low, labels)
    assert grad.dtype == torch.bfloat16
    assert (grad.double() - cross_entropy_grad(low.double(), labels)).abs().max() <= 2**-8


def test_linear_head_gradients_in_numbers():
    # Row 1: h = (1, 2), z = (2 - 2, 0 + log 3), p = (1/4, 3/4), y = 0: G = (-3/8, 3/8), N = 2.
    # Row 2: h = (0, 0), z = (0, log 3), y = 1:                         G = (1/8, -1/8).
    hidden, weight = f64([[1, 2], [0, 0]]), f64([[2, -1], [0, 0]])
    grads = linear_head_grads(hidden, weight, f64([0, math.log(3)]), torch.tensor([0, 1]))
    # G^T h: only row 1 has h; the sum of the rows of G; G W: -3/8 (2, -1) and 1/8 (2, -1)
    torch.testing.assert_close(grads.weight, f64([[-3 / 8, -3 / 4], [3 / 8, 3 / 4]]))
    torch.testing.assert_close(grads.bias, f64([-1 / 4, 1 / 4]))
    torch.testing.assert_close(grads.hidden, f64([[-3 / 4, 3 / 8], [1 / 4, -1 / 8]]))


@st.composite
def heads(draw, dtype=torch.float64):
    rows, width, classes = draw(sizes()), draw(sizes(1, 3)), draw(sizes(1, 3))
    shapes = (rows, width), (classes, width), (classes,)
    return *(draw(tensors(s, dtype, -2, 2)) for s in shapes), draw(label_tensors((rows,), classes))


@given(st.data(), DTYPES)
def test_linear_head_gradients_equal_the_written_out_chain_rule(data, dtype):
    arguments = data.draw(heads(dtype))
    pairs = zip(linear_head_grads(*arguments), linear_head_grads_naive(*arguments), strict=True)
    for used, naive in pairs:
        torch.testing.assert_close(used, naive, **close(dtype))
        assert used.dtype == dtype


@given(heads())
def test_linear_head_gradients_agree_with_autograd_and_differences(arguments):
    def loss(hidden, weight, bias, labels):
        return cross_entropy(torch.nn.functional.linear(hidden, weight, bias), labels)

    assert check_gradient(loss, linear_head_grads, *arguments, verbose=False)


def test_linear_head_with_every_row_ignored_has_zero_gradients():
    hidden, labels = some_rows(4, 3, ignored=4)
    for grads in (linear_head_grads, linear_head_grads_naive):
        for grad in grads(hidden, torch.ones(2, 3).double(), torch.ones(2).double(), labels):
            assert not grad.any()


@pytest.mark.parametrize(("hidden", "weight", "bias"), [
    ((4, 3), (2, 5), (2,)),
    ((4, 3), (2, 3), (3,)),
    ((4, 3), (3,), (3,)),
    ((3,), (2, 3), (2,)),
])  # fmt: skip
def test_linear_head_shapes_that_do_not_match(hidden, weight, bias):
    match = r"expected hidden \(N, H\), weight \(C, H\) and bias \(C,\), found"
    with pytest.raises(ValueError, match=match):
        _head_logits(torch.zeros(hidden), torch.zeros(weight), torch.zeros(bias))


SMOOTHING = st.floats(0, 1)
SMOOTHED_FORMS = [label_smoothing_cross_entropy, label_smoothing_cross_entropy_naive]


@pytest.mark.parametrize("loss", SMOOTHED_FORMS)
def test_label_smoothing_in_numbers(loss):
    # p = (1/4, 3/4), ε = 0.2: q = (0.9, 0.1) for label 0 and (0.1, 0.9) for label 1
    logits, labels = f64([[0, math.log(3)], [0, math.log(3)]]), torch.tensor([0, 1])
    wrong, right = math.log(4), math.log(4 / 3)  # -log p of each class
    expected = [0.9 * wrong + 0.1 * right, 0.1 * wrong + 0.9 * right]
    assert loss(logits, labels, 0.2, "none").tolist() == pytest.approx(expected, abs=1e-15)
    assert loss(logits, labels, 0.2).item() == pytest.approx(sum(expected) / 2, abs=1e-15)
    assert loss(logits, labels, 0.2, "sum").item() == pytest.approx(sum(expected), abs=1e-15)
    # by default ε = 0.1: q = (0.95, 0.05)
    default = 0.95 * wrong + 0.05 * right
    assert loss(logits[:1], labels[:1]).item() == pytest.approx(default, abs=1e-15)


def test_label_smoothing_gradient_in_numbers():
    # (p - q) / 2 with the p and q above: (0.25 - 0.9) / 2 and (0.25 - 0.1) / 2
    logits, labels = f64([[0, math.log(3)], [0, math.log(3)]]), torch.tensor([0, 1])
    grad = label_smoothing_cross_entropy_grad(logits, labels, 0.2)
    torch.testing.assert_close(grad, f64([[-0.325, 0.325], [0.075, -0.075]]))
    default = label_smoothing_cross_entropy_grad(logits[:1], labels[:1])
    torch.testing.assert_close(default, f64([[-0.7, 0.7]]))


@given(st.data(), DTYPES, SMOOTHING)
def test_label_smoothing_equals_its_naive_form_and_torch(data, dtype, smoothing):
    logits, labels = data.draw(labelled_rows(dtype))
    for reduction in REDUCTIONS:
        found = label_smoothing_cross_entropy(logits, labels, smoothing, reduction)
        naive = label_smoothing_cross_entropy_naive(logits, labels, smoothing, reduction)
        torch.testing.assert_close(found, naive, **close(dtype))
        if reduction != "mean" or (labels != IGNORE_INDEX).any():  # torch's own mean is NaN there
            reference = torch.nn.functional.cross_entropy(
                logits, labels, label_smoothing=smoothing, reduction=reduction
            )
            torch.testing.assert_close(found, reference, **close(dtype))


@given(labelled_rows(), SMOOTHING)
def test_label_smoothing_gradient_agrees_with_autograd_and_differences(rows, smoothing):
    grad = label_smoothing_cross_entropy_grad
    for loss in SMOOTHED_FORMS:
        assert check_gradient(loss, grad, *rows, smoothing, verbose=False)


@given(labelled_rows(), SMOOTHING)
def test_label_smoothing_gradient_rows_sum_to_zero_and_ignored_rows_are_zero(rows, smoothing):
    logits, labels = rows
    grad = label_smoothing_cross_entropy_grad(logits, labels, smoothing)
    sums = grad.sum(dim=1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-14)
    assert not grad[labels == IGNORE_INDEX].any()
    # N counts the other rows only
    kept = labels != IGNORE_INDEX
    alone = label_smoothing_cross_entropy_grad(logits[kept], labels[kept], smoothing)
    torch.testing.assert_close(grad[kept], alone)


@given(labelled_rows(), st.floats(0.05, 0.95))
def test_label_smoothing_is_at_least_the_entropy_of_the_smoothed_label(rows, smoothing):
    logits, labels = rows
    rest = smoothing / logits.shape[1]
    q = f64([1 - smoothing + rest] + [rest] * (logits.shape[1] - 1))
    entropy = -(q * q.log()).sum()
    kept = labels[labels != IGNORE_INDEX]
    losses = label_smoothing_cross_entropy(logits, labels, smoothing, "none")
    assert (losses[labels != IGNORE_INDEX] >= entropy - 1e-14).all()
    # and reaches it at z = log q, where the gradient is 0
    best = torch.full((len(kept), logits.shape[1]), rest, dtype=torch.float64)
    best[torch.arange(len(kept)), kept] += 1 - smoothing
    at_best = label_smoothing_cross_entropy(best.log(), kept, smoothing, "none")
    torch.testing.assert_close(at_best, entropy.expand(len(kept)))
    grad = label_smoothing_cross_entropy_grad(best.log(), kept, smoothing)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-14)


@given(labelled_rows())
def test_smoothing_of_zero_is_cross_entropy_and_of_one_knows_no_label(rows):
    logits, labels = rows
    torch.testing.assert_close(
        label_smoothing_cross_entropy(logits, labels, 0), cross_entropy(logits, labels)
    )
    torch.testing.assert_close(
        label_smoothing_cross_entropy_grad(logits, labels, 0), cross_entropy_grad(logits, labels)
    )
    first = labels.where(labels == IGNORE_INDEX, 0)
    for function in (*SMOOTHED_FORMS, label_smoothing_cross_entropy_grad):
        torch.testing.assert_close(function(logits, labels, 1), function(logits, first, 1))


@given(st.data(), DTYPES, SMOOTHING)
def test_label_smoothing_of_extreme_logits_is_finite(data, dtype, smoothing):
    logits, labels = data.draw(labelled_rows(dtype, bound=EXTREME))
    assert label_smoothing_cross_entropy(logits, labels, smoothing).isfinite()
    grad = autograd(lambda z: label_smoothing_cross_entropy(z, labels, smoothing), logits)
    rounding = 2 * EXTREME * torch.finfo(dtype).eps
    found = label_smoothing_cross_entropy_grad(logits, labels, smoothing)
    torch.testing.assert_close(found, grad, rtol=0, atol=rounding)


@pytest.mark.parametrize("function", [*SMOOTHED_FORMS, label_smoothing_cross_entropy_grad])
@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_smoothing_out_of_range(function, smoothing):
    with pytest.raises(ValueError, match=rf"smoothing: .* number in \[0, 1\], found {smoothing}"):
        function(torch.zeros(1, 2), torch.tensor([0]), smoothing)


@pytest.mark.parametrize("function", [*SMOOTHED_FORMS, label_smoothing_cross_entropy_grad])
def test_label_smoothing_checks_its_labels(function):
    with pytest.raises(ValueError, match=r"labels in 0…1 or -100 \(ignored\), found 2"):
        function(torch.zeros(1, 2), torch.tensor([2]), 0.1)


@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
def test_an_ignored_row_does_no_harm_whatever_its_logits(broken):
    logits, labels = some_rows(4, 3)
    labels[1] = IGNORE_INDEX
    clean = logits.clone()
    logits[1, 0] = broken
    for loss in (cross_entropy, label_smoothing_cross_entropy):
        leaf = logits.clone().requires_grad_(True)
        value = loss(leaf, labels)
        value.backward()
        assert torch.equal(value, loss(clean, labels))
        assert leaf.grad.isfinite().all() and not leaf.grad[1].any()
    for grad in (cross_entropy_grad, label_smoothing_cross_entropy_grad):
        assert torch.equal(grad(logits, labels), grad(clean, labels))
