"""The estimate before a run: what it adds up, and that it leaves no trace."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

from tutorkit import preflight
from tutorkit.data import SentimentDataset, evaluation_batches
from tutorkit.models import load_model, set_trainable
from tutorkit.preflight import (
    GB,
    WITH_HOLES,
    Estimate,
    Sample,
    estimate,
    memory_of_a_step,
    sample_batch,
    shapes,
    total,
)
from tutorkit.sources import load_splits
from tutorkit.training import TrainConfig, evaluate, fit, steps_of_epoch

CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=3e-3, precision="fp32", device="cpu")
PUT = dataclasses.replace


@cache
def tiny(name: str = "tiny"):
    return load_model(name)


@cache
def reviews(split: str, count: int, max_length: int = 64) -> SentimentDataset:
    table = load_splits("reviews")[split].to_pandas()
    rows = [*table[table.label == 0].head(count // 2).itertuples(),
            *table[table.label == 1].head(count - count // 2).itertuples()]  # fmt: skip
    texts = [row.text for row in rows]
    return SentimentDataset(texts, [r.label for r in rows], tiny().tokenizer, max_length)


def timeless(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_a_run_after_the_estimate_is_the_run_without_it(name):
    train, validation = reviews("train", 14), reviews("validation", 6)

    def run(estimated):
        model = deepcopy(tiny(name).model)
        torch.manual_seed(7)
        if estimated:
            estimate(model, train, validation, validation, CONFIG, seconds=0.2)
        drawn = torch.rand(3)
        state = fit(model, train, validation, CONFIG)
        return drawn, state, model.state_dict()

    drawn, state, weights = run(estimated=True)
    expected_drawn, expected, expected_weights = run(estimated=False)
    assert torch.equal(drawn, expected_drawn)
    assert timeless(state.steps) == timeless(expected.steps)
    assert timeless(state.evaluations) == timeless(expected.evaluations)
    assert all(torch.equal(weights[key], expected_weights[key]) for key in expected_weights)


class Counting(torch.nn.Module):
    """A model with a buffer that changes with every training pass, as batch norm has one."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, input_ids, attention_mask):
        self.passes += 1
        return self.model(input_ids, attention_mask=attention_mask)


def test_weights_gradients_buffers_and_modes_stay():
    model = Counting(deepcopy(tiny().model))
    model.train()
    model.model.bert.encoder.eval()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = {key: module.training for key, module in model.named_modules()}
    random_state = torch.get_rng_state()
    estimate(model, reviews("train", 10), None, None, CONFIG, seconds=0.1)
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())
    assert all((p.grad == 2.0).all() for p in model.parameters())
    assert {key: module.training for key, module in model.named_modules()} == modes
    assert len(set(modes.values())) == 2
    assert torch.equal(torch.get_rng_state(), random_state)


def test_it_keeps_no_tensor_alive():
    import gc
    import weakref

    model = deepcopy(tiny().model)
    gone = weakref.ref(model)
    estimate(model, reviews("train", 10), None, None, CONFIG, seconds=0.1)
    gc.collect()
    before = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    for _ in range(3):
        estimate(model, reviews("train", 10), None, None, CONFIG, seconds=0.1)
    gc.collect()
    assert sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()) == before
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("max_length", [20, 64, 100])
def test_shapes_are_those_of_the_batches(max_length):
    data = reviews("train", 30, max_length)
    batches = evaluation_batches(data.lengths, 7)
    assert shapes(data, batches) == [tuple(data.batch(b)["input_ids"].shape) for b in batches]


def test_the_fit_finds_the_cost_it_was_made_of():
    def cost(rows, length):
        return 0.05 + 2e-5 * rows * length + 3e-8 * rows * length**2

    seen = [(2, 256), (4, 256), (8, 256), (8, 32), (8, 128)]
    samples = [Sample(r, n, cost(r, n), 0.0, 0.0) for r, n in seen]
    planned = [(32, 256), (32, 64), (5, 128)]
    expected = sum(cost(r, n) for r, n in planned)
    assert total(samples, "seconds", planned) == pytest.approx(expected, rel=1e-6)
    assert total(samples, "saved", planned) == pytest.approx(0.0, abs=1e-6)
    assert total(samples, "seconds", []) == 0.0


def test_of_one_length_or_one_sample_the_cost_goes_by_tokens():
    samples = [Sample(2, 128, 0.7, 0, 0.0), Sample(4, 128, 1.2, 0, 0.0)]
    assert total(samples, "seconds", [(8, 64)]) == pytest.approx(1.2)  # 0.2 + 2 times 0.5
    assert total(samples[1:], "seconds", [(8, 128), (1, 32)]) == pytest.approx(2.4 + 0.075)


@pytest.fixture
def fixed_costs(monkeypatch):
    """Batches that cost one second a row and pass of training, a quarter of it forward alone."""
    asked = []

    def sample(model, train, config, rows, length):
        asked.append((rows, length))
        return Sample(rows, length, 1e-4 * rows * length, 1e6 * rows * length,
                      1e-5 * rows * length)  # fmt: skip

    monkeypatch.setattr(preflight, "sample_batch", sample)
    monkeypatch.setattr(preflight, "_optimizer_seconds", lambda *_: 3.0)
    monkeypatch.setattr(preflight, "_held", lambda device: 1.0 * GB)
    monkeypatch.setattr(preflight, "_free", lambda device: 100.0 * GB)
    return asked


def test_the_estimate_adds_up_the_planned_batches(fixed_costs):
    train, validation, test = reviews("train", 30), reviews("validation", 9), reviews("test", 11)
    config = PUT(CONFIG, gradient_accumulation_steps=2, evaluations_per_epoch=3)
    found = estimate(tiny().model, train, validation, test, config)

    plans = [steps_of_epoch(train, config, epoch) for epoch in (0, 1)]
    padded = sum(train.batch(b)["input_ids"].numel() for p in plans for step in p for b in step)
    seconds = 1e-4 * padded + 3.0 * sum(len(plan) for plan in plans)
    assert found.minutes_training == pytest.approx(seconds / 60, rel=1e-6)

    def read(data):
        return sum(data.batch(b)["input_ids"].numel() for b in evaluation_batches(data.lengths, 8))

    looks = 1e-5 * (6 * read(validation) + read(test))
    assert found.minutes_evaluation == pytest.approx(looks / 60, rel=1e-6)
    alone = estimate(tiny().model, train, None, None, config)
    assert alone.minutes_evaluation == 0.0
    assert max(rows for rows, _ in fixed_costs) == 4
    assert {length for _, length in fixed_costs} == {n for _, n in shapes(train, plans[0][0])} | {
        length for plan in plans for step in plan for _, length in shapes(train, step)
    }


def test_the_memory_is_that_of_the_largest_batch(fixed_costs):
    train = reviews("train", 30)
    found = estimate(tiny().model, train, reviews("validation", 9), None, CONFIG)
    largest = max(r * n for plan in (0, 1) for step in steps_of_epoch(train, CONFIG, plan)
                  for r, n in shapes(train, step))  # fmt: skip
    kept = WITH_HOLES["cpu"] * 1e6 * largest
    state = memory_of_a_step(tiny().model, "adamw", kept, False, True)
    assert found.memory_gb == pytest.approx(1.0 + state / GB, rel=1e-6)
    assert (found.held_gb, found.free_gb, found.fits) == (1.0, 100.0, True)
    assert "\n" not in str(found)


def test_memory_of_a_step():
    model = deepcopy(tiny().model)
    size = 4 * sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.state_dict().values()) - size
    large = 100 * size
    assert memory_of_a_step(model, "adamw", large, False, False) == large + 2 * size
    assert memory_of_a_step(model, "sgd", large, False, False) == large + size
    assert memory_of_a_step(model, "adamw", large, True, False) == large + 3 * size
    assert memory_of_a_step(model, "adamw", large, True, True) == large + 4 * size + buffers
    # With few activations, saving a checkpoint is the peak.
    assert memory_of_a_step(model, "sgd", 0, False, False) == 3 * size + buffers
    set_trainable(model, "backbone")
    head = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < head < size / 10
    assert memory_of_a_step(model, "sgd", large, False, False) == large + head


def test_advice_where_the_memory_will_not_do(fixed_costs, monkeypatch):
    train, config = reviews("train", 30), PUT(CONFIG, batch_size=16)
    whole = estimate(tiny().model, train, None, None, config)
    needed = whole.memory_gb - whole.held_gb
    monkeypatch.setattr(preflight, "_free", lambda device: 0.3 * needed * GB)
    short = estimate(tiny().model, train, None, None, config)
    assert not short.fits
    assert short.advice == (
        f"this run needs about {short.memory_gb:.1f} GB of memory and can have "
        f"{1 + short.free_gb:.1f}: set batch_size=4 with gradient_accumulation_steps=4 (the same "
        "rows a step), a max_length below 64, or freeze lower layers"
    )
    assert str(short).splitlines()[1] == short.advice
    monkeypatch.setattr(preflight, "_free", lambda device: 1000)
    none = estimate(tiny().model, train, None, None, config)
    assert "even one row at a time is too much; freeze lower layers" in none.advice


def test_the_line():
    line = str(Estimate(3.21, 1.08, 2.34, 0.66, 21.4))
    assert line == ("about 3.2 minutes of training, 1.1 of evaluation, 2.3 GB of memory, of which "
                    "0.7 are in use now; free: 21.4 GB")  # fmt: skip


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_what_is_saved_grows_with_the_rows_and_less_is_saved_for_frozen_layers(name):
    train, model = reviews("train", 12), deepcopy(tiny(name).model)
    small, large = (sample_batch(model, train, CONFIG, rows, 64) for rows in (2, 6))
    assert (small.rows, large.rows, small.length) == (2, 6, 64)
    assert large.saved == pytest.approx(3 * small.saved, rel=0.2)
    # At least the inputs of two layers' feed-forward parts, (B, T, 32) and (B, T, 64) in fp32.
    assert small.saved > 2 * 4 * 2 * 64 * (32 + 64)
    set_trainable(model, "backbone")
    assert sample_batch(model, train, CONFIG, 6, 64).saved < large.saved / 10


def test_it_ends_in_time_and_on_a_small_set_at_once():
    import time

    train = reviews("train", 6)
    estimate(tiny().model, train, None, None, CONFIG, seconds=0.1)
    took, training, evaluation = [], [], []
    for _ in range(3):  # the least of each: what else the machine does can only slow one down
        begun = time.perf_counter()
        found = estimate(tiny().model, train, train, train, CONFIG)
        took.append(time.perf_counter() - begun)
        training.append(found.minutes_training)
        evaluation.append(found.minutes_evaluation)
    assert min(took) < 2.0
    assert 0 < min(evaluation) < min(training) < 1.0
    assert 0 < found.held_gb < found.memory_gb


def test_nothing_to_train_is_an_error():
    model = deepcopy(tiny().model).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        estimate(model, reviews("train", 6), None, None, CONFIG)
    assert evaluate(model, reviews("train", 6), precision="fp32").accuracy >= 0
    assert np.isfinite(model.config.hidden_size)
