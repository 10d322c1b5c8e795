"""Learning from a teacher: by hand, naive twin, torch's divergence, the limit of a high T."""

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
    autograd,
    close,
    f64,
    label_tensors,
    sizes,
    tensors,
)

from tutorkit.losses import (
    IGNORE_INDEX,
    check_gradient,
    cross_entropy,
    cross_entropy_grad,
    distillation_grad,
    distillation_loss,
    distillation_loss_naive,
)
from tutorkit.losses.distillation import _check

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = [distillation_loss, distillation_loss_naive]
EVERY = [*FORMS, distillation_grad]
STUDENT, TEACHER = f64([[0, 0]]), f64([[0, 2 * math.log(3)]])
# At T = 2 the teacher's logits are (0, log 3), its probabilities p = (1/4, 3/4); the student's are
# q = (1/2, 1/2). Σ p log(p/q):
KL = math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4


@st.composite
def pairs(draw, dtype=torch.float64, bound=MODERATE):
    """Student and teacher logits (N, C), labels (N,) or None, a temperature and an alpha."""
    rows, classes = draw(sizes(0, 3)), draw(sizes(1, 3))
    student, teacher = (draw(tensors((rows, classes), dtype, -bound, bound)) for _ in range(2))
    labels = draw(st.none() | label_tensors((rows,), classes))
    alpha = draw(st.none() | (st.just(1.0) if labels is None else st.floats(0, 1)))
    return student, teacher, labels, draw(st.floats(0.5, 20)), alpha


@pytest.mark.parametrize("loss", FORMS)
def test_hand_computed_numbers(loss):
    # T² KL by default without labels; the student's cross-entropy with a label is log 2
    assert loss(STUDENT, TEACHER).item() == pytest.approx(4 * KL, abs=1e-15)
    labels = torch.tensor([1])
    both = loss(STUDENT, TEACHER, labels).item()
    assert both == pytest.approx(0.5 * 4 * KL + 0.5 * math.log(2), abs=1e-15)
    both = loss(STUDENT, TEACHER, labels, 2.0, 0.25).item()
    assert both == pytest.approx(0.25 * 4 * KL + 0.75 * math.log(2), abs=1e-15)
    # a second row on which both agree: the mean over two rows is half
    student, teacher = torch.cat([STUDENT, TEACHER]), torch.cat([TEACHER, TEACHER])
    assert loss(student, teacher).item() == pytest.approx(2 * KL, abs=1e-15)


def test_hand_computed_gradient():
    # α T (q - p) = 2 (1/2 - 1/4, 1/2 - 3/4)
    torch.testing.assert_close(distillation_grad(STUDENT, TEACHER), f64([[1 / 2, -1 / 2]]))
    # 1/4 of it, and 3/4 of (1/2, 1/2) - (0, 1)
    grad = distillation_grad(STUDENT, TEACHER, torch.tensor([1]), 2.0, 0.25)
    torch.testing.assert_close(grad, f64([[1 / 2, -1 / 2]]))
    grad = distillation_grad(STUDENT, TEACHER, torch.tensor([0]), 2.0, 0.25)
    torch.testing.assert_close(grad, f64([[1 / 8 - 3 / 8, -1 / 8 + 3 / 8]]))
    # by default 1/2 of each, and with a second row 1/2 of that
    grad = distillation_grad(STUDENT, TEACHER, torch.tensor([0]))
    torch.testing.assert_close(grad, f64([[1 / 4 - 1 / 4, -1 / 4 + 1 / 4]]))
    grad = distillation_grad(torch.cat([STUDENT, TEACHER]), torch.cat([TEACHER, TEACHER]))
    torch.testing.assert_close(grad, f64([[1 / 4, -1 / 4], [0, 0]]))


@given(st.data(), DTYPES)
def test_used_form_equals_naive_form_and_torchs_divergence(data, dtype):
    student, teacher, labels, t, alpha = data.draw(pairs(dtype))
    found = distillation_loss(student, teacher, labels, t, alpha)
    naive = distillation_loss_naive(student, teacher, labels, t, alpha)
    scale = {"rtol": close(dtype)["rtol"], "atol": 20 * max(1, t) ** 2 * close(dtype)["atol"]}
    torch.testing.assert_close(found, naive, **scale)
    assert found.dtype == dtype
    if labels is None and len(student):
        log_q = torch.log_softmax(student / t, dim=1)
        log_p = torch.log_softmax(teacher / t, dim=1)
        reference = torch.nn.functional.kl_div(
            log_q, log_p, reduction="batchmean", log_target=True
        )
        torch.testing.assert_close(found, t**2 * reference, **scale)


@given(pairs())
def test_gradient_agrees_with_autograd_and_differences(arguments):
    student, *rest = arguments
    for loss in FORMS:
        result = check_gradient(
            lambda z, loss=loss: loss(z, *rest),
            lambda z: distillation_grad(z, *rest),
            student,
            tol=1e-6,
            verbose=False,
        )
        assert result, result


def test_no_gradient_flows_into_the_teacher():
    teacher = TEACHER.clone().requires_grad_(True)
    for loss in FORMS:
        student = STUDENT.clone().requires_grad_(True)
        loss(student, teacher).backward()
        assert teacher.grad is None
        assert student.grad.any()


@given(pairs(), st.floats(-50, 50))
def test_divergence_is_not_negative_zero_at_equality_and_blind_to_shifts(arguments, shift):
    student, teacher, _, t, _ = arguments
    found = distillation_loss(student, teacher, None, t)
    assert found >= -1e-12 * t**2
    moved = distillation_loss(student + shift, teacher - shift, None, t)
    torch.testing.assert_close(moved, found, rtol=1e-9, atol=1e-11 * t**2)
    equal = distillation_loss(teacher + shift, teacher, None, t)
    assert equal == pytest.approx(0, abs=1e-11 * t**2)
    grad = distillation_grad(teacher + shift, teacher, None, t)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12 * t)
    sums = distillation_grad(student, teacher, None, t).sum(dim=1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12 * t)


def test_a_high_temperature_is_regression_of_centred_logits():
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = centred / 4 / 5  # over C, and over N of the mean
    error = [
        (distillation_grad(student, teacher, None, t) - expected).abs().max()
        for t in (1e2, 1e3, 1e4)
    ]
    # what is left falls as 1/T
    assert error[0] < 1e-2
    assert error[1] / error[0] == pytest.approx(0.1, rel=0.05)
    assert error[2] / error[1] == pytest.approx(0.1, rel=0.05)


def test_t_squared_keeps_the_size_of_the_gradient():
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    sizes = [distillation_grad(student, teacher, None, t).norm().item() for t in (20.0, 200.0)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


@given(pairs())
def test_alpha_of_zero_is_cross_entropy_and_of_one_the_teacher_alone(arguments):
    student, teacher, labels, t, _ = arguments
    if labels is None:
        labels = torch.zeros(len(student), dtype=torch.long)
    both = (distillation_loss, cross_entropy), (distillation_grad, cross_entropy_grad)
    for function, alone in both:
        torch.testing.assert_close(function(student, teacher, labels, t, 0), alone(student, labels))
        torch.testing.assert_close(
            function(student, teacher, labels, t, 1), function(student, teacher, None, t)
        )


def test_unknown_labels_leave_the_teacher_to_every_row():
    labels = torch.tensor([IGNORE_INDEX])
    for loss in FORMS:
        assert loss(STUDENT, TEACHER, labels).item() == pytest.approx(2 * KL, abs=1e-15)
    torch.testing.assert_close(
        distillation_grad(STUDENT, TEACHER, labels), f64([[1 / 4, -1 / 4]])
    )


@pytest.mark.parametrize("labels", [None, torch.zeros(0, dtype=torch.long)])
def test_no_rows_give_zero(labels):
    empty = torch.zeros(0, 3, dtype=torch.float64)
    for loss in FORMS:
        assert loss(empty, empty, labels).item() == 0
    assert distillation_grad(empty, empty, labels).shape == (0, 3)


@given(st.data(), DTYPES)
def test_extreme_logits_give_a_finite_loss_and_gradient(data, dtype):
    student, *rest = data.draw(pairs(dtype, EXTREME))
    assert distillation_loss(student, *rest).isfinite()
    grad = autograd(lambda z: distillation_loss(z, *rest), student)
    found = distillation_grad(student, *rest)
    rounding = 4 * EXTREME * torch.finfo(dtype).eps * max(1, rest[2])
    torch.testing.assert_close(found, grad, rtol=1e-5, atol=rounding)


def test_extreme_logits_break_the_naive_form():
    student, teacher = f64([[1e4, -1e4]]), f64([[-1e4, 1e4]])
    assert not distillation_loss_naive(student, teacher).isfinite()
    # T² (1 · (0 - (-2e4 / T))) = T · 2e4
    assert distillation_loss(student, teacher).item() == pytest.approx(4e4)


def test_bfloat16_keeps_its_type():
    student, teacher = torch.randn(2, 5, 4).bfloat16()
    for function in (distillation_loss, distillation_grad):
        found = function(student, teacher)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(
            found.double(), function(student.double(), teacher.double()), rtol=0.05, atol=0.05
        )


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_temperature_out_of_range(function, wrong):
    match = rf"temperature: expected a number above 0, found {wrong}"
    with pytest.raises(ValueError, match=match):
        function(STUDENT, TEACHER, None, wrong)


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_alpha_out_of_range(function, wrong):
    match = rf"alpha: expected a number in \[0, 1\], and 1 where there are no .*, found {wrong}$"
    with pytest.raises(ValueError, match=match):
        function(STUDENT, TEACHER, torch.tensor([0]), 2.0, wrong)


@pytest.mark.parametrize("function", EVERY)
def test_alpha_below_one_without_labels(function):
    with pytest.raises(ValueError, match=r"1 where there are no labels, found 0.5 without labels"):
        function(STUDENT, TEACHER, None, 2.0, 0.5)


@pytest.mark.parametrize("function", EVERY)
def test_labels_are_checked(function):
    with pytest.raises(ValueError, match=r"labels in 0…1 or -100 \(ignored\), found 2"):
        function(STUDENT, TEACHER, torch.tensor([2]))


@pytest.mark.parametrize(("student", "teacher"), [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,))])
def test_shapes_that_do_not_match(student, teacher):
    match = r"student and teacher logits of one shape \(N, C\), found .*: they must share their cl"
    with pytest.raises(ValueError, match=match):
        _check(torch.zeros(student), torch.zeros(teacher), None, 2.0, None)
