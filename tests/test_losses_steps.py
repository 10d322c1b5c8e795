"""One update of the weights: by hand, naive twins, torch's optimizers, ours, the paper's claims."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import DTYPES, close, f64, label_tensors, sizes, tensors

from tutorkit.losses import (
    IGNORE_INDEX,
    AdamState,
    adamw_step,
    adamw_step_naive,
    clip_by_global_norm,
    clip_by_global_norm_naive,
    cross_entropy,
    cross_entropy_grad,
    global_norm,
    l2_penalty_step,
    sgd_step,
    sgd_step_naive,
)
from tutorkit.optim import SGDW

pytestmark = pytest.mark.usefixtures("one_thread")

SGD_FORMS = [sgd_step, sgd_step_naive]
ADAM_FORMS = [adamw_step, adamw_step_naive]
BY_HAND = {"learning_rate": 0.1, "weight_decay": 0.5}


def walk(step, theta, grads, /, **settings):
    """The weights after a step for each gradient."""
    state = None
    for grad in grads:
        theta, state = step(theta, f64(grad), state, **settings)
    return theta


# --- by hand


@pytest.mark.parametrize("step", SGD_FORMS)
def test_sgd_in_numbers(step):
    theta, velocity = step(f64([1, -2]), f64([3, 1]), learning_rate=0.1)
    assert theta.tolist() == pytest.approx([1 - 0.3, -2 - 0.1], abs=1e-15)
    assert velocity.tolist() == [3, 1]
    # decay takes the share 0.1 · 0.5 of each weight
    theta, _ = step(f64([1, -2]), f64([3, 1]), **BY_HAND)
    assert theta.tolist() == pytest.approx([0.95 - 0.3, -1.9 - 0.1], abs=1e-15)


@pytest.mark.parametrize("step", SGD_FORMS)
def test_momentum_in_two_steps_by_hand(step):
    # m = 1, θ = 0.95 - 0.1 = 0.85; m = 0.9 + 1 = 1.9, θ = 0.95 · 0.85 - 0.19 = 0.6175
    found = walk(step, f64(1), [1, 1], **BY_HAND, momentum=0.9)
    assert found.item() == pytest.approx(0.6175, abs=1e-15)


@pytest.mark.parametrize("step", ADAM_FORMS)
def test_adamw_in_two_steps_by_hand(step):
    # g = 3, then 1; β = (0.5, 0.6), ε = 1:
    # m̂ = 3, v̂ = 9: direction 3 / (3 + 1);  θ = 0.95 - 0.1 · 0.75 = 0.875
    # m̂ = (0.5 · 1.5 + 0.5) / 0.75 = 5/3;  v̂ = (0.6 · 3.6 + 0.4) / 0.64 = 4: direction 5/3 / (2 + 1)
    # θ = 0.95 · 0.875 - 0.1 · 5/9
    settings = {**BY_HAND, "betas": (0.5, 0.6), "eps": 1.0}
    theta, state = step(f64(1), f64(3), **settings)
    assert theta.item() == pytest.approx(0.875, abs=1e-15)
    assert (state.first.item(), state.second.item()) == pytest.approx((1.5, 3.6), abs=1e-15)
    theta, state = step(theta, f64(1), state, **settings)
    assert theta.item() == pytest.approx(0.83125 - 0.5 / 9, abs=1e-15)
    assert state.step == 2


# --- naive twins and torch


@given(st.data(), DTYPES, st.floats(0, 0.9), st.floats(0, 1))
def test_used_forms_equal_naive_forms(data, dtype, beta, decay):
    shape = data.draw(st.sampled_from([(), (0,), (3,), (2, 2)]))
    theta, grad, first, second = (data.draw(tensors(shape, dtype)) for _ in range(4))
    common = {"learning_rate": 0.1, "weight_decay": decay}
    for velocity in (None, first):
        pair = [step(theta, grad, velocity, **common, momentum=beta) for step in SGD_FORMS]
        for used, naive in zip(*pair, strict=True):
            torch.testing.assert_close(used, naive, **close(dtype))
            assert used.dtype == dtype
    for state in (None, AdamState(first, second.abs(), 3)):
        settings = {**common, "betas": (beta, 0.99), "eps": 1e-3}
        (used, after), (naive, _) = (step(theta, grad, state, **settings) for step in ADAM_FORMS)
        torch.testing.assert_close(used, naive, **close(dtype))
        assert used.dtype == after.first.dtype == dtype


def hundred_steps(optimizer, step, settings):
    """The weights after 100 steps of a torch optimizer and of a step function."""
    generator = torch.Generator().manual_seed(0)
    start, *grads = torch.randn(101, 3, 2, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizer([parameter])
    theta, state = start, None
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
        theta, state = step(theta, grad, state, **settings)
    return parameter.detach(), theta


def torch_like(name, **fixed):
    return lambda parameters: getattr(torch.optim, name)(parameters, **fixed)


@pytest.mark.parametrize(("optimizer", "step", "settings"), [
    (torch_like("SGD", lr=0.01), sgd_step, {}),
    (torch_like("SGD", lr=0.01, momentum=0.9), sgd_step, {"momentum": 0.9}),
    (lambda p: SGDW(p, lr=0.01, momentum=0.9, weight_decay=0.1), sgd_step,
     {"momentum": 0.9, "weight_decay": 0.1}),
    (torch_like("SGD", lr=0.01, momentum=0.9, weight_decay=0.1), l2_penalty_step,
     {"momentum": 0.9, "penalty": 0.1}),
    (torch_like("Adam", lr=0.01), adamw_step, {}),
    (torch_like("Adam", lr=0.01, weight_decay=0.1), l2_penalty_step,
     {"step": adamw_step, "penalty": 0.1}),
    (torch_like("AdamW", lr=0.01, weight_decay=0.1), adamw_step, {"weight_decay": 0.1}),
    (torch_like("AdamW", lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=0.1), adamw_step,
     {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 0.1}),
])  # fmt: skip
def test_a_hundred_steps_are_those_of_the_optimizer(optimizer, step, settings):
    expected, found = hundred_steps(optimizer, step, {"learning_rate": 0.01, **settings})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [*SGD_FORMS, *ADAM_FORMS])
def test_a_step_leaves_its_arguments_alone(step):
    theta, grad = f64([1, 2]), f64([3, 4])
    _, state = step(theta, grad, **BY_HAND)
    memory = list(state[:2]) if isinstance(state, AdamState) else [state]
    before = [t.clone() for t in memory]
    step(theta, grad, state, **BY_HAND)
    assert (theta.tolist(), grad.tolist()) == ([1, 2], [3, 4])
    assert all(map(torch.equal, memory, before))


# --- what the papers claim


@pytest.mark.parametrize("step", ADAM_FORMS)
def test_adams_first_step_has_the_size_of_the_learning_rate(step):
    grad = f64([1e-3, -5, 1e4])
    theta, _ = step(f64([1, 2, 3]), grad, learning_rate=0.1, eps=0.0)
    torch.testing.assert_close(theta, f64([1, 2, 3]) - 0.1 * grad.sign())
    # with an ε above 0 a little less, and half of it where |g| = ε
    theta, _ = step(f64([0.0]), f64([1e-8]), learning_rate=0.1)
    assert theta.item() == pytest.approx(-0.05, abs=1e-12)


@pytest.mark.parametrize("step", ADAM_FORMS)
def test_adams_moments_forget_by_the_documented_shares(step):
    _, state = step(f64(0), f64(1), learning_rate=0.1)
    assert state.first.item() == pytest.approx(0.1, abs=1e-15)
    assert state.second.item() == pytest.approx(0.001, abs=1e-15)


@pytest.mark.parametrize("step", ADAM_FORMS)
def test_the_bias_correction_makes_a_constant_gradient_a_constant_direction(step):
    found = walk(step, f64(0), [0.25] * 5, learning_rate=0.1, eps=0.0)
    assert found.item() == pytest.approx(-0.5, abs=1e-12)


@given(st.data(), st.floats(0, 2))
def test_l2_penalty_equals_decoupled_decay_for_plain_sgd(data, decay):
    theta, grad = data.draw(tensors((3,))), data.draw(tensors((3,)))
    decoupled, _ = sgd_step(theta, grad, learning_rate=0.1, weight_decay=decay)
    penalised, _ = l2_penalty_step(theta, grad, learning_rate=0.1, penalty=decay)
    torch.testing.assert_close(penalised, decoupled)
    # in the paper's convention η does not scale the decay: θ (1 - λ') - η g with λ' = ηλ
    torch.testing.assert_close(decoupled, theta * (1 - 0.1 * decay) - 0.1 * grad)


def test_the_penalty_is_half_of_lambda_times_the_squared_norm():
    # its gradient by autograd, added to that of the loss: one step of plain SGD on the sum
    theta = f64([1, -2]).requires_grad_(True)
    (f64([3, 1]) @ theta + 0.5 / 2 * (theta**2).sum()).backward()
    found, _ = l2_penalty_step(theta.detach(), f64([3, 1]), penalty=0.5, learning_rate=0.1)
    torch.testing.assert_close(found, (theta - 0.1 * theta.grad).detach())


def test_l2_penalty_differs_from_decay_under_momentum_by_hand():
    # m = 1 + 0.5 = 1.5, θ = 0.85; m = 1.35 + 1 + 0.425 = 2.775, θ = 0.85 - 0.2775
    found = walk(l2_penalty_step, f64(1), [1, 1], penalty=0.5, learning_rate=0.1, momentum=0.9)
    assert found.item() == pytest.approx(0.5725, abs=1e-15)
    # decoupled it is 0.6175 (above): they differ by ημλθ = 0.1 · 0.9 · 0.5
    assert found.item() == pytest.approx(0.6175 - 0.045, abs=1e-15)


def test_l2_penalty_differs_from_decay_under_adam_by_hand():
    # g = 3 + 0.5, θ = 1 - 0.1 = 0.9;  g = 1 + 0.45: m̂ = (3.5 + 2 · 1.45) / 3 = 6.4 / 3,
    # v̂ = (0.6 · 3.5² + 1.45²) / 1.6 = 9.4525 / 1.6
    settings = {"learning_rate": 0.1, "betas": (0.5, 0.6), "eps": 0.0}
    found = walk(l2_penalty_step, f64(1), [3, 1], penalty=0.5, step=adamw_step, **settings)
    expected = 0.9 - 0.1 * (6.4 / 3) / math.sqrt(9.4525 / 1.6)
    assert found.item() == pytest.approx(expected, abs=1e-15)
    # decoupled: θ = 0.85, then 0.95 · 0.85 - 0.1 · (5/3) / 2
    decoupled = walk(adamw_step, f64(1), [3, 1], weight_decay=0.5, **settings)
    assert decoupled.item() == pytest.approx(0.8075 - 0.5 / 6, abs=1e-15)


def test_under_adam_a_penalty_decays_weights_with_large_gradients_less():
    # gradients ±g that cancel: what is left is the decay; decoupled it is one for both weights
    theta, scale = f64([1, 1]), f64([1, 100])
    grads = [(scale * sign).tolist() for sign in (1, -1) * 50]
    settings = {"learning_rate": 0.01, "betas": (0.0, 0.9)}
    small, large = walk(
        l2_penalty_step, theta, grads, penalty=0.1, step=adamw_step, **settings
    ).tolist()
    assert small < large - 0.01
    small, large = walk(adamw_step, theta, grads, weight_decay=0.1, **settings).tolist()
    assert small == pytest.approx(large, abs=1e-8)


def test_without_a_penalty_the_step_is_the_step():
    theta, grad = f64([1, 2]), f64([3, 4])
    for step in (sgd_step, adamw_step):
        found, _ = l2_penalty_step(theta, grad, penalty=0, step=step, learning_rate=0.1)
        assert torch.equal(found, step(theta, grad, learning_rate=0.1)[0])


@given(st.data(), sizes(1, 6), st.integers(1, 4))
def test_the_sums_of_micro_batches_make_the_step_of_the_large_batch(data, rows, size):
    logits, labels = data.draw(tensors((rows, 3))), data.draw(label_tensors((rows,), 3))
    counted = max(1, (labels != IGNORE_INDEX).sum().item())
    whole, _ = sgd_step(logits, cross_entropy_grad(logits, labels), learning_rate=0.1)
    leaf = logits.clone().requires_grad_(True)
    for start in range(0, rows, size):  # backward adds to leaf.grad
        batch = slice(start, start + size)
        (cross_entropy(leaf[batch], labels[batch], "sum") / counted).backward()
    accumulated, _ = sgd_step(logits, leaf.grad, learning_rate=0.1)
    torch.testing.assert_close(accumulated, whole)


# --- clipping


def test_global_norm_in_numbers():
    assert global_norm([f64([[2, 4]]), f64([4]), f64(0)]).item() == pytest.approx(6, abs=1e-15)


@pytest.mark.parametrize("clip", [clip_by_global_norm, clip_by_global_norm_naive])
def test_clipping_in_numbers(clip):
    # the norm of (3, 4) is 5: a limit of 1 takes a fifth of each
    (first, second), norm = clip([f64([3.0]), f64([[4.0]])], 1.0)
    assert norm.item() == pytest.approx(5, abs=1e-15)
    assert first.tolist() == pytest.approx([0.6], rel=1e-6)
    assert second.tolist()[0] == pytest.approx([0.8], rel=1e-6)


def test_clipping_adds_a_millionth_to_the_norm_as_torch_does():
    # c / (‖g‖ + 10⁻⁶) = 10⁻⁶ / (5 · 10⁻⁶ + 10⁻⁶)
    (found,), _ = clip_by_global_norm([f64([3e-6, 4e-6])], 1e-6)
    torch.testing.assert_close(found, f64([0.5e-6, 4e-6 / 6]), rtol=1e-12, atol=0)


@given(st.data(), st.floats(0.01, 100))
def test_clipping_is_torchs_keeps_the_direction_and_caps_the_norm(data, limit):
    grads = [data.draw(tensors(shape)) for shape in [(3,), (2, 2), ()]]
    clipped, norm = clip_by_global_norm(grads, limit)
    parameters = [torch.nn.Parameter(g.clone()) for g in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    reference = torch.nn.utils.clip_grad_norm_(parameters, limit)
    torch.testing.assert_close(norm, reference)
    for found, parameter in zip(clipped, parameters, strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-12, atol=1e-12)
    after = global_norm(clipped)
    assert after <= limit
    # one factor for all: parallel to what it was
    flat, was = (torch.cat([g.flatten() for g in gs]) for gs in (clipped, grads))
    torch.testing.assert_close(flat * norm, was * after)
    naive, _ = clip_by_global_norm_naive(grads, limit)
    for found, other in zip(clipped, naive, strict=True):
        torch.testing.assert_close(found, other, rtol=0, atol=1e-6)
    if norm + 1e-6 <= limit:
        assert torch.equal(flat, was)


@pytest.mark.parametrize("clip", [clip_by_global_norm, clip_by_global_norm_naive])
def test_an_infinite_limit_or_a_gradient_of_zero_clips_nothing(clip):
    (found,), _ = clip([f64([3, 4])], math.inf)
    assert found.tolist() == [3, 4]
    grad = f64([0, 0])
    (found,), norm = clip([grad], 1.0)
    assert (found.tolist(), norm.item()) == ([0, 0], 0)
    found.add_(1)
    assert grad.tolist() == [0, 0]  # a new tensor


# --- errors


@pytest.mark.parametrize("step", [*SGD_FORMS, *ADAM_FORMS])
def test_a_gradient_of_another_shape(step):
    match = r"gradient of the weights' shape \(2, 3\), found \(3,\)"
    with pytest.raises(ValueError, match=match):
        step(torch.zeros(2, 3), torch.zeros(3), learning_rate=0.1)


@pytest.mark.parametrize("step", [*SGD_FORMS, *ADAM_FORMS])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("wrong", [-0.1, math.inf, math.nan])
def test_a_rate_out_of_range(step, name, wrong):
    settings = {"learning_rate": 0.1, name: wrong}
    with pytest.raises(ValueError, match=rf"{name}: expected a number >= 0, found {wrong}"):
        step(f64([1]), f64([1]), **settings)


@pytest.mark.parametrize(("step", "name", "settings"), [
    *[(step, "momentum", {"momentum": 1.0}) for step in SGD_FORMS],
    *[(step, "momentum", {"momentum": -0.1}) for step in SGD_FORMS],
    *[(step, "beta1", {"betas": (1.0, 0.9)}) for step in ADAM_FORMS],
    *[(step, "beta2", {"betas": (0.9, -0.5)}) for step in ADAM_FORMS],
])  # fmt: skip
def test_a_share_out_of_range(step, name, settings):
    with pytest.raises(ValueError, match=rf"{name}: expected a number in \[0, 1\), found"):
        step(f64([1]), f64([1]), learning_rate=0.1, **settings)


@pytest.mark.parametrize("wrong", [
    {"penalty": -1.0}, {"penalty": math.nan}, {"penalty": math.inf},
    {"penalty": 0.1, "weight_decay": 0.1},
])  # fmt: skip
def test_a_penalty_below_zero_or_a_decay_beside_it(wrong):
    match = rf"found penalty={wrong['penalty']} and weight_decay=.*: use one of the two kinds"
    with pytest.raises(ValueError, match=match):
        l2_penalty_step(f64([1]), f64([1]), learning_rate=0.1, **wrong)


@pytest.mark.parametrize("clip", [clip_by_global_norm, clip_by_global_norm_naive])
@pytest.mark.parametrize(("entry", "limit"), [
    (1.0, 0.0), (1.0, -1.0), (1.0, math.nan), (math.nan, 1.0), (math.inf, 1.0),
])  # fmt: skip
def test_a_limit_or_a_norm_out_of_range(clip, entry, limit):
    match = rf"max_norm > 0 and finite gradients, found max_norm={limit} and norm"
    with pytest.raises(ValueError, match=match):
        clip([f64([entry])], limit)


def test_no_gradients_at_all():
    for function in (global_norm, lambda grads: clip_by_global_norm(grads, 1.0)):
        with pytest.raises(ValueError, match="at least one gradient, found an empty list"):
            function([])


@given(st.data())
def test_a_float32_step_stays_within_rounding_of_the_float64_step(data):
    theta, grad = data.draw(tensors((3,), torch.float32)), data.draw(tensors((3,), torch.float32))
    for step in (sgd_step, adamw_step):
        low, _ = step(theta, grad, **BY_HAND)
        high, _ = step(theta.double(), grad.double(), **BY_HAND)
        torch.testing.assert_close(low.double(), high, **close(torch.float32))
