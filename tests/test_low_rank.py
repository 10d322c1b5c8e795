"""LoRA in readable form against peft's; AdaLoRA's budget, penalty and resumed runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tutorkit.adapters import prepare
from tutorkit.data import SentimentDataset
from tutorkit.losses import lora_forward_naive
from tutorkit.low_rank import (
    ADAPTER,
    AdaLoraBudget,
    AdaLoraObjective,
    LoRALinear,
    orthogonality,
    ranks,
    svd_layers,
)
from tutorkit.models import load_model
from tutorkit.objectives import classification
from tutorkit.training import TrainConfig, TrainState, fit

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["good", "a bad film", "fine fine fine", "dull", "great fun", "not good at all", "bad bad"]
LABELS = [1, 0, 1, 0, 1, 0, 0]
# 7 rows in batches of 2: 4 steps an epoch.
CONFIG = TrainConfig(epochs=4, batch_size=2, learning_rate=1e-2, precision="fp32", device="cpu",
                     checkpoint_every=1)  # fmt: skip
RANKS = {"init_r": 4, "target_r": 2}


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test catches it."""


def lora(dtype=torch.float32, trained=True) -> LoRALinear:
    layer = LoRALinear(torch.nn.Linear(6, 5).to(dtype), r=2, alpha=3.0)
    if trained:
        torch.nn.init.normal_(layer.b)
    return layer


# --- LoRA, readable -------------------------------------------------------------------------------


def test_lora_starts_as_the_identity_with_a_gaussian_a():
    layer, x = lora(trained=False), torch.randn(4, 3, 6)
    torch.testing.assert_close(layer(x), layer.linear(x), rtol=0, atol=1e-6)
    assert layer.b.eq(0).all() and layer.a.std() > 0.1
    wide = LoRALinear(torch.nn.Linear(4000, 2), r=4, alpha=1).a
    assert wide.std().item() == pytest.approx(1 / 4, rel=0.03)


def test_lora_is_the_formula_and_trains_its_two_matrices_alone():
    layer, x = lora(), torch.randn(7, 6)
    expected = lora_forward_naive(x, layer.linear.weight, layer.a, layer.b, 3.0) + layer.linear.bias
    torch.testing.assert_close(layer(x), expected)
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["a", "b"]
    assert layer(x[:0]).shape == (0, 5)


def test_lora_refuses_a_rank_of_zero():
    with pytest.raises(ValueError, match="r: expected a rank from 1, found 0"):
        LoRALinear(torch.nn.Linear(2, 2), r=0, alpha=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_merged_equals_unmerged(dtype, tolerance):
    layer, x = lora(dtype), torch.randn(8, 6).to(dtype)
    with torch.no_grad():
        apart, weight = layer(x), layer.linear.weight.clone()
        layer.merge()
        assert not torch.equal(layer.linear.weight, weight)
        once = layer.linear.weight.clone()
        layer.merge()  # a second time changes nothing
        assert torch.equal(layer.linear.weight, once)
        torch.testing.assert_close(layer(x), apart, rtol=tolerance, atol=tolerance)
        layer.unmerge()
        torch.testing.assert_close(layer.linear.weight, weight, rtol=tolerance, atol=tolerance)
        layer.unmerge()
        torch.testing.assert_close(layer(x), apart, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_lora_equals_pefts_forward_and_gradients(bias):
    from peft import LoraConfig, inject_adapter_in_model

    linear = torch.nn.Linear(6, 5, bias=bias)
    ours = LoRALinear(linear, r=2, alpha=3.0)
    torch.nn.init.normal_(ours.b)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0"])
    theirs = inject_adapter_in_model(config, torch.nn.Sequential(linear))[0]
    a, b = theirs.lora_A[ADAPTER].weight, theirs.lora_B[ADAPTER].weight
    with torch.no_grad():
        a.copy_(ours.a)
        b.copy_(ours.b)
    found = []
    for layer in (ours, theirs):
        x = torch.linspace(-1, 1, 4 * 3 * 6).view(4, 3, 6).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close((ours.a.grad, ours.b.grad), (a.grad, b.grad))


# --- AdaLoRA --------------------------------------------------------------------------------------


def adalora_run(folder=None, callbacks=(), config=CONFIG, objective=None, **budget):
    loaded = load_model("tiny", seed=0)
    prepare(loaded, "adalora", **RANKS)
    rows = SentimentDataset(TEXTS, LABELS, loaded.tokenizer, 16)
    callbacks = [AdaLoraBudget(loaded.model, **budget), *callbacks]
    state = fit(loaded.model, rows, None, config, folder, callbacks,
                objective or AdaLoraObjective())  # fmt: skip
    return loaded.model, state


def assert_same(one, other):
    expected = other.state_dict()
    assert expected.keys() == one.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("every", [1, 3])
def test_the_budget_falls_from_init_r_to_target_r(every):
    sums, values = [], []

    def watch(event, state):
        if event == "step":
            layers = svd_layers(budget.model).values()
            sums.append(sum(ranks(budget.model).values()))
            values.append(sum(int((m.lora_E[ADAPTER] != 0).sum()) for m in layers))

    loaded = load_model("tiny", seed=0)
    prepare(loaded, "adalora", **RANKS)
    rows = SentimentDataset(TEXTS, LABELS, loaded.tokenizer, 16)
    budget = AdaLoraBudget(loaded.model, every=every)
    fit(loaded.model, rows, None, CONFIG, None, [budget, watch], AdaLoraObjective())
    assert len(ranks(loaded.model)) == 4  # query and value of two layers
    # 16 steps: 2 of warm-up, 5 at the end, so that the last allocation comes after the 11th. By the
    # source's cubic curve with a start of 16 and an end of 8.
    curve = {t: int(8 * (1 - (t - 2) / 9) ** 3 + 8) for t in range(3, 12)}
    expected, now = [], 16
    for step in range(1, 17):
        if step in curve and (step % every == 0 or step == 11):
            now = curve[step]
        expected.append(now)
    assert sums == expected and sums[0] == 16 and sums[-1] == 8
    if every == 1:  # a singular value that was taken away is zero
        assert values == sums
    assert values[-1] == 8


@pytest.mark.parametrize("step", [1, 5, 11, 13])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, step):
    """In the warm-up, while ranks are taken away, at the last allocation, and after it."""
    def kill(event, state):
        if event == "checkpoint" and state.step == step:
            raise Killed

    expected, _ = adalora_run()
    with pytest.raises(Killed):
        adalora_run(tmp_path, [kill])
    model, state = adalora_run(tmp_path)
    assert state.resumed_from_step == step
    assert_same(model, expected)
    assert ranks(model) == ranks(expected)


def test_a_second_run_starts_with_all_ranks():
    model, _ = adalora_run()
    budget = AdaLoraBudget(model)
    budget("train_start", TrainState(CONFIG, total_steps=16))
    assert set(ranks(model).values()) == {4}


@pytest.mark.parametrize("change", [{"gradient_accumulation_steps": 2}, {"precision": "bf16"}])
def test_the_budget_is_met_with_accumulation_and_bf16(change):
    model, _ = adalora_run(config=dataclasses.replace(CONFIG, **change))
    assert sum(ranks(model).values()) == 8


def prepared() -> torch.nn.Module:
    model = load_model("tiny", seed=0).model
    prepare(model, "adalora", **RANKS)
    return model


def test_orthogonality_by_hand():
    model = prepared()
    for layer in svd_layers(model).values():
        with torch.no_grad():
            layer.lora_A[ADAPTER].copy_(torch.eye(4, 32))
            layer.lora_B[ADAPTER].copy_(torch.eye(32, 4))
    assert orthogonality(model).item() == 0
    with torch.no_grad():  # one of eight factors twice as long: ‖4I - I‖ = 3 √4
        next(iter(svd_layers(model).values())).lora_A[ADAPTER].mul_(2)
    assert orthogonality(model).item() == pytest.approx(3 * 2 / 8)


def test_orthogonality_is_pefts_penalty():
    from peft import AdaLoraConfig, AdaLoraModel

    config = AdaLoraConfig(**RANKS, target_modules=["query", "value"], total_step=10,
                           orth_reg_weight=0.5)  # fmt: skip
    model = load_model("tiny").model
    tuner = AdaLoraModel(model, config, ADAPTER)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    with torch.no_grad():
        penalty = tuner(**inputs).loss - model(**inputs).loss
    assert 0.5 * orthogonality(model).item() == pytest.approx(penalty.item(), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_objective_adds_the_penalty_once_a_row(rows):
    """So a step's mean loss has it once, however the rows are split."""
    model = prepared()
    batch = {"input_ids": torch.randint(5, 50, (rows, 4)), "labels": torch.arange(rows) % 2,
             "attention_mask": torch.ones(rows, 4, dtype=torch.long)}  # fmt: skip
    handed = []
    plain = classification(model, batch, lambda loss: None)
    found = AdaLoraObjective(0.3)(model, batch, handed.append)
    expected = plain + 0.3 * rows * orthogonality(model).detach()
    torch.testing.assert_close(found, expected)
    assert len(handed) == 1 and handed[0].requires_grad and not found.requires_grad
    torch.testing.assert_close(handed[0].detach(), expected)
    assert repr(AdaLoraObjective(0.3)) == "AdaLoraObjective(orth_reg_weight=0.3)"


def test_a_model_without_adaloras_layers_is_refused():
    model = load_model("tiny").model
    for use in (ranks, orthogonality, AdaLoraBudget):
        with pytest.raises(ValueError, match='found none: prepare it with .*"adalora"'):
            use(model)


def test_schedules_that_can_not_be_are_refused():
    model = prepared()
    for wrong in ({"warmup_ratio": 0.5, "final_ratio": 0.5}, {"final_ratio": -0.1}, {"every": 0}):
        with pytest.raises(ValueError, match="expected warmup_ratio and final_ratio from 0"):
            AdaLoraBudget(model, **wrong)
    with pytest.raises(ValueError, match="found 2 in all, 0 of them warm-up and 1 at the end"):
        AdaLoraBudget(model)("train_start", TrainState(CONFIG, total_steps=2))
