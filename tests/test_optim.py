"""Update rules by hand, parameter groups."""

from __future__ import annotations

import pytest
import torch

from tutorkit.models import load_model, parameter_depths, set_trainable
from tutorkit.optim import SGDW, make_optimizer, parameter_groups

LR, DECAY, MOMENTUM = 0.1, 0.5, 0.9
START, GRADS = [1.0, -2.0, 0.5], [[0.5, -1.0, 2.0], [1.0, 0.25, -0.5], [-3.0, 0.0, 1.0]]


def run(build, steps: int, decay: float = DECAY) -> torch.Tensor:
    """The parameter after some steps with the gradients above."""
    theta = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = build(theta, decay)
    for grad in GRADS[:steps]:
        theta.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
    return theta.detach()


def sgdw(momentum: float):
    return lambda theta, decay: SGDW([theta], lr=LR, momentum=momentum, weight_decay=decay)


def torch_sgd(momentum: float):
    return lambda theta, decay: torch.optim.SGD(
        [theta], lr=LR, momentum=momentum, weight_decay=decay
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_sgdw_by_hand(steps):
    theta, m = torch.tensor(START, dtype=torch.float64), 0.0
    for grad in GRADS[:steps]:
        m = MOMENTUM * m + torch.tensor(grad, dtype=torch.float64)
        theta = theta * (1 - LR * DECAY) - LR * m
    torch.testing.assert_close(run(sgdw(MOMENTUM), steps), theta)


def test_sgdw_first_step_in_numbers():
    # θ (1 - 0.1 · 0.5) - 0.1 g
    expected = [0.95 - 0.05, -1.9 + 0.1, 0.475 - 0.2]
    assert run(sgdw(MOMENTUM), 1).tolist() == pytest.approx(expected, abs=1e-15)


def test_sgdw_is_l2_without_momentum_and_in_the_first_step_only():
    torch.testing.assert_close(run(sgdw(0.0), 3), run(torch_sgd(0.0), 3))
    torch.testing.assert_close(run(sgdw(MOMENTUM), 1), run(torch_sgd(MOMENTUM), 1))
    # From the second step on, the L2 penalty is in the momentum: it differs by ημλθ.
    difference = run(sgdw(MOMENTUM), 2) - run(torch_sgd(MOMENTUM), 2)
    penalty = LR * MOMENTUM * DECAY * torch.tensor(START, dtype=torch.float64)
    torch.testing.assert_close(difference, penalty)


def test_sgdw_without_decay_is_sgd():
    found, expected = run(sgdw(MOMENTUM), 3, decay=0), run(torch_sgd(MOMENTUM), 3, decay=0)
    assert torch.equal(found, expected)


def test_sgdw_leaves_its_settings_and_frozen_parameters_alone():
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = SGDW([{"params": [used, unused]}], lr=LR, weight_decay=DECAY)
    used.grad = torch.zeros(2)
    optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == DECAY
    assert used.tolist() == pytest.approx([0.95, 0.95])
    assert unused.tolist() == [1, 1]  # no gradient, no decay


def test_adamw_two_steps_by_hand():
    theta = torch.tensor(START, dtype=torch.float64)
    m = v = torch.zeros(3, dtype=torch.float64)
    for t, grad in enumerate(GRADS[:2], start=1):
        g = torch.tensor(grad, dtype=torch.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        theta = theta * (1 - LR * DECAY) - LR * direction

    def build(parameter, decay):
        module = torch.nn.Module()
        module.weight = parameter
        optimizer = make_optimizer(module, "adamw", LR, decay)
        optimizer.param_groups[0]["weight_decay"] = decay  # a vector: left out by the groups
        return optimizer

    torch.testing.assert_close(run(build, 2), theta)


def test_make_optimizer_settings():
    model = torch.nn.Linear(3, 2)
    adamw = make_optimizer(model, "adamw", 2e-4, 0.01)
    assert type(adamw) is torch.optim.AdamW
    assert adamw.defaults["betas"] == (0.9, 0.999)
    assert adamw.defaults["eps"] == 1e-8
    sgd = make_optimizer(model, "sgd", 2e-4, 0.01)
    assert type(sgd) is SGDW
    for optimizer in (adamw, sgd):
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
        assert {g["lr"] for g in optimizer.param_groups} == {2e-4}
    assert {g["momentum"] for g in sgd.param_groups} == {0.9}


def test_make_optimizer_errors():
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"optimizer: expected one of .*'sgd'.*found 'adam'"):
        make_optimizer(model, "adam", 1e-3, 0.0)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="everything is frozen, so there is nothing to train"):
        make_optimizer(model, "adamw", 1e-3, 0.0)


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_parameter_groups_hold_every_trained_parameter_once(name):
    model = load_model(name).model
    set_trainable(model, 1)
    decayed, plain = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in g["params"]] for g in (decayed, plain))
    assert sorted(decayed + plain) == sorted(n for n, p in model.named_parameters()
                                             if p.requires_grad)
    assert all("bias" in n or "norm" in n.lower() for n in plain)
    assert not any("bias" in n or "norm" in n.lower() for n in decayed)
    assert "classifier.weight" in decayed or "score.weight" in decayed


def test_parameter_groups_leave_out_an_empty_group():
    assert [g["weight_decay"] for g in parameter_groups(torch.nn.LayerNorm(3), 0.1)] == [0.0]
    no_bias = torch.nn.Linear(3, 2, bias=False)
    assert [g["weight_decay"] for g in parameter_groups(no_bias, 0.1)] == [0.1]


# --- a rate of its own for each layer -----------------------------------------------------------


def names_of(model, group) -> list[str]:
    names = {id(p): n for n, p in model.named_parameters()}
    return [names[id(p)] for p in group["params"]]


@pytest.mark.parametrize("freeze", ["none", "embeddings", 1, "backbone"])
@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_groups_of_a_layer_decay_hold_every_trained_parameter_once(name, freeze):
    model = load_model(name).model
    trained = set_trainable(model, freeze)
    depths, parameters = parameter_depths(model), dict(model.named_parameters())
    groups = parameter_groups(model, 0.01, 0.25)
    found = [n for group in groups for n in names_of(model, group)]
    assert sorted(found) == sorted(trained)
    kinds = []
    for group in groups:
        names = names_of(model, group)
        (depth,) = {depths[n] for n in names}
        (matrices,) = {parameters[n].ndim >= 2 for n in names}
        assert group["lr_scale"] == 0.25**depth
        assert group["weight_decay"] == (0.01 if matrices else 0.0)
        kinds.append((depth, "matrices" if matrices else "vectors"))
    # From the top down, and with weight decay before without: checkpoints number by it.
    assert kinds == sorted(set(kinds))
    assert {depth for depth, _ in kinds} == {depths[n] for n in trained}


def test_groups_of_a_layer_decay_in_numbers():
    groups = parameter_groups(load_model("tiny").model, 0.01, 0.5)
    assert [group["lr_scale"] for group in groups] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0] * 4


def test_a_layer_decay_of_one_is_two_groups_in_the_order_of_before():
    model = load_model("tiny").model
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    for groups in (parameter_groups(model, 0.01), parameter_groups(model, 0.01, 1)):
        decayed, plain = groups
        assert names_of(model, decayed) == [n for n, p in trained if p.ndim >= 2]
        assert names_of(model, plain) == [n for n, p in trained if p.ndim < 2]
        assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
        assert (decayed["lr_scale"], plain["lr_scale"]) == (1.0, 1.0)


def test_one_rate_for_all_needs_no_layers():
    (group,) = parameter_groups(torch.nn.Linear(3, 2, bias=False), 0.1, 1.0)
    assert group["lr_scale"] == 1.0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_make_optimizer_keeps_the_share_of_each_layer(name):
    model = load_model("tiny").model
    shares = [group["lr_scale"] for group in make_optimizer(model, name, 1e-3, 0, 0.5).param_groups]
    assert shares == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert len(make_optimizer(model, name, 1e-3, 0).param_groups) == 2


def test_a_layer_decay_with_everything_frozen_is_refused():
    model = load_model("tiny").model.requires_grad_(False)
    with pytest.raises(ValueError, match="everything is frozen"):
        parameter_groups(model, 0.01, 0.5)
