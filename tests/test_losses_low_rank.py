"""LoRA and the bottleneck adapter: by hand, merged, autograd, differences, identity at first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import DTYPES, close, f64, sizes, tensors

from tutorkit.losses import (
    adapter_forward,
    adapter_grads,
    check_gradient,
    lora_forward,
    lora_forward_naive,
    lora_grads,
)
from tutorkit.losses.low_rank import _check_adapter, _check_lora

pytestmark = pytest.mark.usefixtures("one_thread")

LORA_FORMS = [lora_forward, lora_forward_naive]


@st.composite
def loras(draw, dtype=torch.float64):
    """x (N, d_in), W (d_out, d_in), A (r, d_in), B (d_out, r), alpha and G (N, d_out)."""
    rows, rank = draw(sizes(0, 3)), draw(sizes(1, 2))
    inputs, outputs = draw(sizes(1, 3)), draw(sizes(1, 3))
    shapes = (rows, inputs), (outputs, inputs), (rank, inputs), (outputs, rank), (rows, outputs)
    x, weight, a, b, grad = (draw(tensors(shape, dtype, -2, 2)) for shape in shapes)
    return x, weight, a, b, draw(st.floats(0.5, 8)), grad


@st.composite
def adapters(draw, dtype=torch.float64):
    """h (N, H), D (m, H), c (m,), U (H, m), d (H,) and G (N, H)."""
    rows, width, size = draw(sizes(0, 3)), draw(sizes(1, 3)), draw(sizes(1, 2))
    shapes = (rows, width), (size, width), (size,), (width, size), (width,), (rows, width)
    return tuple(draw(tensors(shape, dtype, -2, 2)) for shape in shapes)


# d_in = 2, d_out = 3, r = 2
X, W0 = f64([[1, 2]]), f64([[1, 0], [0, 1], [1, 1]])
A, B = f64([[1, 1], [0, 2]]), f64([[1, 0], [0, 1], [2, -1]])


@pytest.mark.parametrize("forward", LORA_FORMS)
def test_lora_in_numbers(forward):
    # W₀x = (1, 2, 3);  Ax = (3, 4), B(3, 4) = (3, 4, 2);  with α = 3: s = 3/2
    assert forward(X, W0, A, B, 3.0).tolist() == [[1 + 4.5, 2 + 6, 3 + 3]]


def test_lora_gradients_in_numbers():
    # G = (1, 0, 1), s = 3/2: GB = (3, -1)
    # ∂A = s (GB)ᵀ x = 3/2 [[3, 6], [-1, -2]];  ∂B = s Gᵀ (Ax) = 3/2 [[3, 4], [0, 0], [3, 4]]
    # ∂x = G W₀ + s (GB) A = (2, 1) + 3/2 (3, 3 - 2)
    grads = lora_grads(X, W0, A, B, 3.0, f64([[1, 0, 1]]))
    assert grads.a.tolist() == [[4.5, 9], [-1.5, -3]]
    assert grads.b.tolist() == [[4.5, 6], [0, 0], [4.5, 6]]
    assert grads.x.tolist() == [[6.5, 2.5]]


@given(st.data(), DTYPES)
def test_lora_unmerged_equals_merged_and_two_linear_layers(data, dtype):
    x, weight, a, b, alpha, _ = data.draw(loras(dtype))
    found = lora_forward(x, weight, a, b, alpha)
    torch.testing.assert_close(found, lora_forward_naive(x, weight, a, b, alpha), **close(dtype))
    linear = torch.nn.functional.linear
    expected = linear(x, weight) + alpha / len(a) * linear(linear(x, a), b)
    torch.testing.assert_close(found, expected, **close(dtype))
    assert found.dtype == dtype


@given(loras())
def test_lora_gradients_agree_with_autograd_and_differences(arguments):
    x, weight, a, b, alpha, grad = arguments
    for forward in LORA_FORMS:

        def loss(x, a, b, forward=forward):
            return (forward(x, weight, a, b, alpha) * grad).sum()

        def grads(x, a, b):
            found = lora_grads(x, weight, a, b, alpha, grad)
            return found.x, found.a, found.b

        assert check_gradient(loss, grads, x, a, b, verbose=False)


@given(loras())
def test_lora_is_the_frozen_layer_at_the_start_and_b_moves_first(arguments):
    x, weight, a, b, alpha, grad = arguments
    zero = torch.zeros_like(b)
    for forward in LORA_FORMS:
        assert torch.equal(forward(x, weight, a, zero, alpha), x @ weight.T)
    grads = lora_grads(x, weight, a, zero, alpha, grad)
    assert not grads.a.any()
    torch.testing.assert_close(grads.x, grad @ weight)
    torch.testing.assert_close(grads.b, alpha / len(a) * grad.T @ (x @ a.T))


@given(loras())
def test_lora_changes_the_weight_by_a_matrix_of_rank_r_scaled_by_alpha_over_r(arguments):
    _, weight, a, b, alpha, _ = arguments
    identity = torch.eye(weight.shape[1], dtype=torch.float64)
    update = (lora_forward(identity, weight, a, b, alpha) - identity @ weight.T).T
    torch.testing.assert_close(update, alpha / len(a) * b @ a)
    twice = (lora_forward(identity, weight, a, b, 2 * alpha) - identity @ weight.T).T
    torch.testing.assert_close(twice, 2 * update)


@pytest.mark.parametrize(("x", "weight", "a", "b"), [
    ((2, 3), (4, 5), (2, 3), (4, 2)), ((2, 3), (4, 3), (2, 4), (4, 2)),
    ((2, 3), (4, 3), (2, 3), (4, 1)), ((2, 3), (4, 3), (2, 3), (2, 4)),
    ((2, 3), (4, 3), (0, 3), (4, 0)), ((3,), (4, 3), (2, 3), (4, 2)),
])  # fmt: skip
def test_lora_shapes_that_do_not_fit(x, weight, a, b):
    match = r"x \(N, d_in\), weight \(d_out, d_in\), a \(r, d_in\) and b \(d_out, r\) with r >= 1"
    with pytest.raises(ValueError, match=match):
        _check_lora(*(torch.zeros(shape) for shape in (x, weight, a, b)), 1.0)


def test_lora_gradient_of_the_output_of_another_shape():
    grads = lora_grads.__wrapped__  # without the shape checker of the tests, which speaks first
    with pytest.raises(ValueError, match=r"grad_output \(N, d_out\) = \(1, 3\), found \(1, 2\)"):
        grads(X, W0, A, B, 1.0, f64([[1, 1]]))


def test_adapter_in_numbers():
    # h = (1, 2), D = (1, -1), c = 1: a = 0, φ(0) = 0: only h + d is left
    hidden, down, up, bias = f64([[1, 2]]), f64([[1, -1]]), f64([[3], [4]]), f64([0.5, 0])
    found = adapter_forward(hidden, down, f64([1]), up, bias)
    assert found.tolist() == [[1.5, 2]]
    # c = 2: a = 1, φ(1) = Φ(1)
    found = adapter_forward(hidden, down, f64([2]), up, bias)
    cdf = 0.8413447460685429
    assert found.tolist()[0] == pytest.approx([1.5 + 3 * cdf, 2 + 4 * cdf], abs=1e-14)


def test_adapter_gradients_in_numbers():
    # At a = 1: φ' = Φ(1) + exp(-1/2)/√(2π). G = (1, -1): G U = 3 - 4, S = -φ'.
    slope = 0.8413447460685429 + 0.24197072451914337
    grads = adapter_grads(
        f64([[1, 2]]), f64([[1, -1]]), f64([2]), f64([[3], [4]]), f64([0.5, 0]), f64([[1, -1]])
    )
    torch.testing.assert_close(grads.hidden, f64([[1 - slope, -1 + slope]]))  # G + S D
    torch.testing.assert_close(grads.down, f64([[-slope, -2 * slope]]))  # Sᵀ h
    torch.testing.assert_close(grads.down_bias, f64([-slope]))
    torch.testing.assert_close(grads.up, f64([[0.8413447460685429], [-0.8413447460685429]]))
    torch.testing.assert_close(grads.up_bias, f64([1, -1]))


@given(st.data(), DTYPES)
def test_adapter_equals_x_times_the_normal_distribution_function(data, dtype):
    hidden, down, down_bias, up, up_bias, _ = data.draw(adapters(dtype))
    found = adapter_forward(hidden, down, down_bias, up, up_bias)
    a = (hidden @ down.T + down_bias).double()
    gelu = (a * torch.distributions.Normal(0, 1).cdf(a)).to(dtype)
    torch.testing.assert_close(found, hidden + gelu @ up.T + up_bias, rtol=1e-5, atol=1e-5)
    assert found.dtype == dtype


@given(adapters())
def test_adapter_gradients_agree_with_autograd_and_differences(arguments):
    *inputs, grad = arguments

    def loss(hidden, down, down_bias, up, up_bias):
        return (adapter_forward(hidden, down, down_bias, up, up_bias) * grad).sum()

    assert check_gradient(loss, lambda *xs: adapter_grads(*xs, grad), *inputs, verbose=False)


@given(adapters())
def test_adapter_is_the_identity_at_the_start(arguments):
    hidden, down, down_bias, up, up_bias, grad = arguments
    rest = down, down_bias, torch.zeros_like(up), torch.zeros_like(up_bias)
    assert torch.equal(adapter_forward(hidden, *rest), hidden)
    # the skip connection hands the gradient on undamped; U moves first
    grads = adapter_grads(hidden, *rest, grad)
    assert torch.equal(grads.hidden, grad)
    assert not grads.down.any()
    assert not grads.down_bias.any()


@pytest.mark.parametrize("size", [1e4, 1e15])
def test_adapter_far_from_zero_is_a_relu(size):
    one = f64([1])
    for sign in (1, -1):
        grads = adapter_grads(f64([[sign * size]]), one[None], 0 * one, one[None], one, one[None])
        found = adapter_forward(f64([[sign * size]]), one[None], 0 * one, one[None], 0 * one)
        assert found.item() == sign * size + max(0, sign * size)
        assert grads.hidden.item() == 1 + (sign > 0)


@pytest.mark.parametrize("shapes", [
    [(3,), (2, 3), (2,), (3, 2), (3,)], [(4, 3), (2,), (2,), (3, 2), (3,)],
    [(4, 3), (2, 4), (2,), (3, 2), (3,)], [(4, 3), (2, 3), (3,), (3, 2), (3,)],
    [(4, 3), (2, 3), (2,), (2, 3), (3,)], [(4, 3), (2, 3), (2,), (3, 2), (2,)],
])  # fmt: skip
def test_adapter_shapes_that_do_not_fit(shapes):
    match = r"hidden \(N, H\), down \(m, H\), down_bias \(m,\), up \(H, m\) and up_bias \(H,\), fou"
    with pytest.raises(ValueError, match=match):
        _check_adapter(*map(torch.zeros, shapes))


def test_adapter_gradient_of_the_output_of_another_shape():
    grads = adapter_grads.__wrapped__
    tensors = [torch.zeros(s) for s in [(4, 3), (2, 3), (2,), (3, 2), (3,), (1, 3)]]
    with pytest.raises(ValueError, match=r"expected grad_output \(4, 3\), found \(1, 3\)"):
        grads(*tensors)


@given(st.data())
def test_bfloat16_keeps_its_type(data):
    x, weight, a, b, alpha, _ = data.draw(loras(torch.bfloat16))
    found = lora_forward(x, weight, a, b, alpha)
    assert found.dtype == torch.bfloat16
    exact = lora_forward(x.double(), weight.double(), a.double(), b.double(), alpha)
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=4)  # of terms up to 192
