"""The loss: against its own formula, torch, autograd and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from tutorkit.losses import (
    IGNORE_INDEX,
    REDUCTIONS,
    _check,
    cross_entropy,
    cross_entropy_grad,
    cross_entropy_naive,
)

SHAPES = [(1, 2), (7, 2), (3, 5), (16, 11)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


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
