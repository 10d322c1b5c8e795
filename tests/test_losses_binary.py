"""Two classes with one score: by hand, torch, autograd, differences, and two logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import (
    DTYPES,
    EXTREME,
    MODERATE,
    TOLERANCE,
    autograd,
    close,
    f64,
    label_tensors,
    sizes,
    tensors,
)

from tutorkit.losses import (
    IGNORE_INDEX,
    binary_cross_entropy,
    binary_cross_entropy_grad,
    binary_cross_entropy_naive,
    cross_entropy,
    cross_entropy_grad,
)
from tutorkit.losses.binary import _check
from tutorkit.losses.cross_entropy import REDUCTIONS
from tutorkit.losses.gradient_check import check_gradient

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = [binary_cross_entropy, binary_cross_entropy_naive]


@st.composite
def scores(draw, dtype=torch.float64, bound=MODERATE):
    """Scores (N,) with N from 0, and labels (N,)."""
    rows = draw(sizes(0, 6))
    return draw(tensors((rows,), dtype, -bound, bound)), draw(label_tensors((rows,), 2))


@pytest.mark.parametrize("loss", FORMS)
def test_hand_computed_numbers(loss):
    # σ(log 3) = 1 / (1 + 1/3) = 3/4: the loss is -log(1/4) for label 0 and -log(3/4) for label 1
    logits, labels = f64([math.log(3), math.log(3)]), torch.tensor([0, 1])
    expected = [math.log(4), math.log(4 / 3)]
    assert loss(logits, labels, "none").tolist() == pytest.approx(expected, abs=1e-15)
    assert loss(logits, labels).item() == pytest.approx(math.log(16 / 3) / 2, abs=1e-15)
    assert loss(logits, labels, "sum").item() == pytest.approx(math.log(16 / 3), abs=1e-15)


def test_hand_computed_gradient():
    # (3/4 - 0) / 2 and (3/4 - 1) / 2; an ignored row does not count in N
    logits, labels = f64([math.log(3)] * 3), torch.tensor([0, 1, IGNORE_INDEX])
    torch.testing.assert_close(
        binary_cross_entropy_grad(logits, labels), f64([3 / 8, -1 / 8, 0])
    )


@given(st.data(), DTYPES)
def test_used_form_equals_naive_form_and_torch(data, dtype):
    logits, labels = data.draw(scores(dtype))
    kept = labels != IGNORE_INDEX
    for reduction in REDUCTIONS:
        found = binary_cross_entropy(logits, labels, reduction)
        naive = binary_cross_entropy_naive(logits, labels, reduction)
        # 1 - σ(8) loses log2(e⁸) ≈ 12 bits
        torch.testing.assert_close(found, naive, rtol=0, atol=1e3 * TOLERANCE[dtype])
        assert found.dtype == dtype
        if reduction != "none" and kept.any():
            reference = torch.nn.functional.binary_cross_entropy_with_logits(
                logits[kept], labels[kept].to(dtype), reduction=reduction
            )
            torch.testing.assert_close(found, reference, **close(dtype))


@given(scores())
def test_gradient_agrees_with_autograd_and_differences(rows):
    for loss in FORMS:
        assert check_gradient(loss, binary_cross_entropy_grad, *rows, verbose=False)


@given(st.data(), DTYPES)
def test_extreme_scores_give_a_finite_loss_and_gradient(data, dtype):
    logits, labels = data.draw(scores(dtype, EXTREME))
    losses = binary_cross_entropy(logits, labels, "none")
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    grad = autograd(lambda z: binary_cross_entropy(z, labels), logits)
    found = binary_cross_entropy_grad(logits, labels)
    torch.testing.assert_close(found, grad, rtol=0, atol=2 * EXTREME * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_extreme_scores_break_the_naive_form_and_not_the_used_one(dtype):
    logits = torch.tensor([1e4, -1e4, -1e4, 1e4], dtype=dtype)
    labels = torch.tensor([0, 1, 0, 1])
    naive = binary_cross_entropy_naive(logits, labels, "none")
    assert naive[:2].isinf().all()  # -log 0
    assert naive[2:].isnan().all()  # 0 · log 0
    assert binary_cross_entropy(logits, labels, "none").tolist() == [1e4, 1e4, 0, 0]


def test_a_confident_right_score_keeps_its_small_loss():
    # softplus(25) - 25 = log(1 + e⁻²⁵) ≈ e⁻²⁵; torch's softplus returns 25 and would give 0
    found = binary_cross_entropy(f64([25.0]), torch.tensor([1]))
    assert found.item() == pytest.approx(math.exp(-25), abs=1e-14)


@given(scores())
def test_one_score_is_a_head_with_the_two_logits_zero_and_z(rows):
    logits, labels = rows
    two = torch.stack([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(binary_cross_entropy(logits, labels), cross_entropy(two, labels))
    torch.testing.assert_close(
        binary_cross_entropy_grad(logits, labels), cross_entropy_grad(two, labels)[:, 1]
    )
    # and so is any pair with the difference z, e.g. (-z/2, z/2)
    half = torch.stack([-logits / 2, logits / 2], dim=1)
    torch.testing.assert_close(binary_cross_entropy(logits, labels), cross_entropy(half, labels))


@given(scores())
def test_turning_score_and_label_round_changes_nothing_but_the_gradients_sign(rows):
    logits, labels = rows
    turned = (1 - labels).where(labels != IGNORE_INDEX, IGNORE_INDEX)
    torch.testing.assert_close(
        binary_cross_entropy(-logits, turned), binary_cross_entropy(logits, labels)
    )
    torch.testing.assert_close(
        binary_cross_entropy_grad(-logits, turned), -binary_cross_entropy_grad(logits, labels)
    )


@given(scores())
def test_ignored_rows_count_for_nothing(rows):
    logits, labels = rows
    kept = labels != IGNORE_INDEX
    for loss in FORMS:
        torch.testing.assert_close(loss(logits, labels), loss(logits[kept], labels[kept]))
        assert not loss(logits, labels, "none")[~kept].any()
    grad = binary_cross_entropy_grad(logits, labels)
    torch.testing.assert_close(grad[kept], binary_cross_entropy_grad(logits[kept], labels[kept]))
    assert not grad[~kept].any()


@pytest.mark.parametrize("labels", [[], [IGNORE_INDEX] * 3])
def test_nothing_to_learn_from_gives_zero(labels):
    logits, labels = f64([1.0] * len(labels)), torch.tensor(labels, dtype=torch.long)
    for loss in FORMS:
        assert loss(logits, labels).item() == 0
        assert not autograd(lambda z, loss=loss: loss(z, labels), logits).any()
    assert not binary_cross_entropy_grad(logits, labels).any()


def test_bfloat16_keeps_its_type():
    logits, labels = torch.randn(9).bfloat16(), torch.tensor([0, 1, IGNORE_INDEX] * 3)
    for function in (binary_cross_entropy, binary_cross_entropy_grad):
        found = function(logits, labels)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(
            found.double(), function(logits.double(), labels), rtol=0, atol=2**-6
        )


@pytest.mark.parametrize("function", [*FORMS, binary_cross_entropy_grad])
@pytest.mark.parametrize("wrong", [2, -1])
def test_label_out_of_range(function, wrong):
    with pytest.raises(ValueError, match=rf"labels 0, 1 or -100 \(ignored\), found {wrong}"):
        function(torch.zeros(2), torch.tensor([IGNORE_INDEX, wrong]))


@pytest.mark.parametrize("function", FORMS)
def test_unknown_reduction(function):
    with pytest.raises(ValueError, match=r"reduction: expected one of .*'mean'.*found 'avg'"):
        function(torch.zeros(1), torch.tensor([0]), "avg")


@pytest.mark.parametrize(("logits", "labels"), [((3,), (1,)), ((3, 1), (3, 1)), ((3, 1), (3,))])
def test_shapes_that_do_not_match(logits, labels):
    with pytest.raises(ValueError, match=r"expected logits \(N,\) and labels \(N,\), found shapes"):
        _check(torch.zeros(logits), torch.zeros(labels, dtype=torch.long), "mean")


def test_an_ignored_row_does_no_harm_whatever_its_score():
    scores, labels = torch.tensor([1.0, math.nan]), torch.tensor([1, IGNORE_INDEX])
    leaf = scores.clone().requires_grad_(True)
    binary_cross_entropy(leaf, labels).backward()
    assert leaf.grad.isfinite().all() and leaf.grad[1] == 0
    assert torch.equal(binary_cross_entropy_grad(scores, labels), leaf.grad)
