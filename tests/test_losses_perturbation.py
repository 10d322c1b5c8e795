"""The small change that hurts most: by hand, against chance, nearest points, extreme sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import DTYPES, close, f64, sizes, tensors

from tutorkit.losses import fgm_perturbation, fgm_perturbation_naive, pgd_perturbation, project
from tutorkit.losses.perturbation import NORMS

pytestmark = pytest.mark.usefixtures("one_thread")

FGM_FORMS = [fgm_perturbation, fgm_perturbation_naive]
RADII = st.floats(0, 10)


def row_norm(rows, norm):
    """The norm of each row over all its entries; 'l1' is the dual of 'linf'."""
    order = {"l2": 2, "linf": math.inf, "l1": 1}[norm]
    return torch.linalg.vector_norm(rows.flatten(1), order, dim=1)


@st.composite
def rows(draw, dtype=torch.float64):
    """(B, H) or (B, T, H), some entries and rows 0."""
    shape = draw(st.sampled_from([(0, 2), (1, 1), (2, 3), (2, 2, 2)]))
    return draw(tensors(shape, dtype))


@pytest.mark.parametrize("form", FGM_FORMS)
def test_fgm_in_numbers(form):
    # (3, -4) has length 5; each row by itself
    found = form(f64([[3, -4], [0.6, 0.8]]), 10.0)
    torch.testing.assert_close(found, f64([[6, -8], [6, 8]]))
    assert form(f64([[3, -4], [-0.5, 2]]), 0.5, "linf").tolist() == [[0.5, -0.5], [-0.5, 0.5]]


@pytest.mark.parametrize("form", FGM_FORMS)
def test_the_norm_of_an_example_is_over_all_its_tokens(form):
    # two tokens of one text: √(3² + 4²) = 5 for both together
    found = form(f64([[[3, 0], [0, 4]]]), 1.0)
    torch.testing.assert_close(found, f64([[[0.6, 0], [0, 0.8]]]))


@given(st.data(), DTYPES, RADII, st.sampled_from(NORMS))
def test_used_form_equals_naive_form_where_no_gradient_is_zero(data, dtype, epsilon, norm):
    grad = data.draw(rows(dtype))
    grad = grad.where(grad.abs() > 1e-6, 1.0)
    found = fgm_perturbation(grad, epsilon, norm)
    naive = fgm_perturbation_naive(grad, epsilon, norm)
    torch.testing.assert_close(found, naive, rtol=0, atol=10 * close(dtype)["atol"])
    assert found.dtype == dtype


@given(rows(), RADII, st.sampled_from([("l2", "l2"), ("linf", "l1")]))
def test_fgm_stays_on_the_sphere_and_gains_epsilon_times_the_dual_norm(grad, epsilon, norms):
    norm, dual = norms
    found = fgm_perturbation(grad, epsilon, norm)
    reached = torch.where(row_norm(grad, "l2") > 0, epsilon, 0.0).double()
    torch.testing.assert_close(row_norm(found, norm), reached)
    gain = (grad * found).flatten(1).sum(dim=1)
    torch.testing.assert_close(gain, epsilon * row_norm(grad, dual))


@pytest.mark.parametrize("norm", NORMS)
def test_fgm_beats_a_thousand_random_changes_of_the_same_norm(norm):
    grad = torch.randn(1, 2, 3, dtype=torch.float64)
    others = torch.randn(1000, 2, 3, dtype=torch.float64)
    others = 0.3 * others / row_norm(others, norm)[:, None, None]
    gains = (grad * others).flatten(1).sum(dim=1)
    assert (grad * fgm_perturbation(grad, 0.3, norm)).sum() > gains.max()


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_of_zero_changes_nothing(norm):
    grad = f64([[0, 0], [0, 1]])
    found = fgm_perturbation(grad, 2.0, norm)
    assert found.tolist() == [[0, 0], [0, 2]]
    assert fgm_perturbation_naive(grad, 2.0, norm)[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 1e38])
def test_tiny_and_huge_gradients_have_a_direction_all_the_same(dtype, size):
    grad = torch.tensor([[3.0, -4.0], [1.0, 1.0]], dtype=dtype) / 4 * size
    half = math.sqrt(0.5)
    expected = torch.tensor([[0.6, -0.8], [half, half]], dtype=dtype)
    found = fgm_perturbation(grad, 1.0)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    assert found.dtype == dtype
    if dtype is torch.float32:  # their squares are 0 or infinite
        naive = fgm_perturbation_naive(grad, 1.0)
        assert not torch.allclose(naive, expected, equal_nan=True)


# --- the ball


def test_projection_in_numbers():
    delta = f64([[3, -4], [0.3, 0.4], [0, 0]])
    torch.testing.assert_close(project(delta, 1.0), f64([[0.6, -0.8], [0.3, 0.4], [0, 0]]))
    assert project(delta, 1.0, "linf").tolist() == [[1, -1], [0.3, 0.4], [0, 0]]
    assert not project(delta, 0.0).any()


@given(rows(), RADII, st.sampled_from(NORMS))
def test_projection_stays_in_the_ball_and_leaves_what_is_inside(delta, epsilon, norm):
    found = project(delta, epsilon, norm)
    assert (row_norm(found, norm) <= epsilon * (1 + 1e-15) + 1e-300).all()
    inside = row_norm(delta, norm) <= epsilon * (1 - 1e-15)
    assert torch.equal(found[inside], delta[inside])
    torch.testing.assert_close(project(found, epsilon, norm), found)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point_of_the_ball(norm):
    delta = 3 * torch.randn(20, 2, dtype=torch.float64)
    distance = row_norm(delta - project(delta, 1.0, norm), "l2")
    side = torch.linspace(-1, 1, 101, dtype=torch.float64)
    ball = torch.cartesian_prod(side, side)
    ball = ball[row_norm(ball, norm) <= 1]
    others = torch.cdist(delta, ball).min(dim=1).values
    assert (distance <= others + 1e-12).all()
    torch.testing.assert_close(distance, others, rtol=0, atol=0.03)  # as fine as the grid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_of_tiny_and_huge_changes(dtype):
    delta = torch.tensor([[3e-30, 4e-30], [3e30, -4e30]], dtype=dtype)
    found = project(delta, 0.5)
    assert torch.equal(found[0], delta[0])  # inside: as it is
    torch.testing.assert_close(found[1], torch.tensor([0.3, -0.4], dtype=dtype))


# --- several steps


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_in_numbers(norm):
    # a loss with the constant gradient (3, 4): two steps of length 0.4 go 0.8 along it
    found = pgd_perturbation(lambda x: f64([[3, 4]]), f64([[1, 1]]), 1.0, 0.4, 2, norm)
    expected = {"l2": [[0.48, 0.64]], "linf": [[0.8, 0.8]]}
    torch.testing.assert_close(found, f64(expected[norm]))
    # and the third would leave the ball
    found = pgd_perturbation(lambda x: f64([[3, 4]]), f64([[1, 1]]), 1.0, 0.4, 3, norm)
    torch.testing.assert_close(found, f64({"l2": [[0.6, 0.8]], "linf": [[1, 1]]}[norm]))


def test_pgd_asks_for_the_gradient_where_it_stands():
    asked = []

    def gradient(x):
        asked.append(x.tolist())
        return torch.ones_like(x)

    pgd_perturbation(gradient, f64([[5]]), 1.0, 0.25, 3)
    assert asked == [[[5]], [[5.25]], [[5.5]]]


@given(st.data(), RADII, st.floats(0.01, 5), st.integers(1, 5), st.sampled_from(NORMS))
def test_pgd_never_leaves_the_ball(data, epsilon, step_size, steps, norm):
    x = data.draw(rows())
    before = x.clone()
    found = pgd_perturbation(lambda x: x.sin() - 0.3, x, epsilon, step_size, steps, norm)
    assert (row_norm(found, norm) <= epsilon * (1 + 1e-15) + 1e-300).all()
    assert found.shape == x.shape
    assert torch.equal(x, before)


@given(rows(), RADII, st.floats(0.01, 5), st.sampled_from(NORMS))
def test_one_step_at_least_as_long_as_the_radius_is_fgm(x, epsilon, more, norm):
    found = pgd_perturbation(torch.sin, x, epsilon, epsilon + more, 1, norm)
    torch.testing.assert_close(found, fgm_perturbation(torch.sin(x), epsilon, norm))


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_convex_quadratic_pgd_finds_a_larger_loss_than_fgm(norm):
    # ½ xᵀQx. l2: from (1, 0.1) the gradient (1, 1) does not show that the second axis is steeper.
    # linf: from (1, 2.1) the gradient (1.6, 0.2) points to the corner (+, +), but half a step on it
    # is (4.6, -0.8), and the corner (+, -) is higher.
    q = f64({"l2": [[1, 0], [0, 10]], "linf": [[10, -4], [-4, 2]]}[norm])
    x = f64({"l2": [[1, 0.1]], "linf": [[1, 2.1]]}[norm])

    def loss(x):
        return ((x @ q) * x).sum() / 2

    fgm = fgm_perturbation(x @ q, 2.0, norm)
    pgd = pgd_perturbation(lambda x: x @ q, x, 2.0, 0.5, 50, norm)
    assert loss(x + pgd) > loss(x + fgm) * 1.01 > 1.01 * loss(x)
    # by brute force nothing in the ball is larger
    side = torch.linspace(-2, 2, 201, dtype=torch.float64)
    ball = torch.cartesian_prod(side, side)
    ball = x + ball[row_norm(ball, norm) <= 2]
    assert (((ball @ q) * ball).sum(dim=1) / 2).max() <= loss(x + pgd) + 1e-9


# --- errors


@pytest.mark.parametrize("function", [*FGM_FORMS, project])
def test_arguments_out_of_range(function):
    grad = f64([[1, 2]])
    with pytest.raises(ValueError, match=r"norm: expected one of \('l2', 'linf'\), found 'l1'"):
        function(grad, 1.0, "l1")
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"expected a radius >= 0, found {wrong}"):
            function(grad, wrong)
    with pytest.raises(ValueError, match=r"one row for each example, \(B, …\), found shape \(2,\)"):
        function(grad[0], 1.0)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite gradient, found NaN or infinity in it"):
            function(f64([[1, wrong]]), 1.0)


@pytest.mark.parametrize(("step_size", "steps"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (1.0, 0)])
def test_steps_out_of_range(step_size, steps):
    match = rf"step_size > 0 and steps >= 1, found step_size={step_size}, steps={steps}"
    with pytest.raises(ValueError, match=match):
        pgd_perturbation(torch.sin, f64([[1]]), 1.0, step_size, steps)


def test_pgd_checks_the_gradient_and_the_radius():
    with pytest.raises(ValueError, match="finite gradient, found NaN or infinity in it"):
        pgd_perturbation(torch.log, f64([[-1]]), 1.0, 0.5, 1)
    with pytest.raises(ValueError, match="expected a radius >= 0, found -1"):
        pgd_perturbation(torch.sin, f64([[1]]), -1.0, 0.5, 1)


@given(sizes(1, 3))
def test_no_examples_give_no_changes(width):
    empty = torch.zeros(0, width)
    for norm in NORMS:
        assert fgm_perturbation(empty, 1.0, norm).shape == (0, width)
        assert pgd_perturbation(torch.sin, empty, 1.0, 0.5, 2, norm).shape == (0, width)


def test_pgd_refuses_a_gradient_of_another_shape():
    with pytest.raises(ValueError, match=r"gradient of the input's shape \(2, 3\), found \(1, 3\)"):
        pgd_perturbation(lambda x: x[:1], torch.ones(2, 3), 1.0, 0.5, 2)
