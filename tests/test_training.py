"""The loop: what a step computes, what a run keeps, when it ends and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tutorkit import precision
from tutorkit.board import TrainingBoard, best_line
from tutorkit.data import SentimentDataset
from tutorkit.models import load_model, parameter_depths, set_trainable
from tutorkit.optim import make_optimizer, parameter_groups
from tutorkit.plots import learning_curves
from tutorkit.progress import Progress
from tutorkit.sources import load_splits
from tutorkit.training import (
    EVENTS,
    Evaluation,
    TrainConfig,
    TrainState,
    evaluate,
    fit,
    make_accelerator,
    steps_of_epoch,
    train_step,
)

REPOSITORY = Path(__file__).parents[1]
CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=3e-3, precision="fp32", device="cpu")
PUT = dataclasses.replace


@cache
def tiny(name: str = "tiny"):
    return load_model(name)


def fresh_model(name: str = "tiny", dropout: bool = True) -> torch.nn.Module:
    model = deepcopy(tiny(name).model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    return model


@cache
def reviews(split: str, count: int, flipped: bool = False) -> SentimentDataset:
    """`count` of the built-in reviews, half of them positive."""
    table = load_splits("reviews")[split].to_pandas()
    halves = [table[table.label == k].head(count - count // 2 if k else count // 2) for k in (0, 1)]
    texts = [text for half in halves for text in half.text]
    labels = [int(label) for half in halves for label in half.label]
    if flipped:
        labels = [1 - label for label in labels]
    return SentimentDataset(texts, labels, tiny().tokenizer, max_length=32)


def losses(state: TrainState) -> list[float]:
    return [entry["loss"] for entry in state.steps]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Recorder:
    """A callback that notes what it was told."""

    def __init__(self):
        self.events: list[tuple[str, int]] = []

    def __call__(self, event: str, state: TrainState) -> None:
        self.events.append((event, state.step))


class Flat(torch.nn.Module):
    """Logits that depend on no parameter, though all of them have a gradient: zero."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.full((3, 2), 2.0))
        self.bias = torch.nn.Parameter(torch.full((2,), 2.0))

    def forward(self, input_ids, attention_mask=None):
        nothing = (self.matrix.sum() + self.bias.sum()) * 0.0
        return SimpleNamespace(logits=torch.zeros(len(input_ids), 2) + nothing)


# --- learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_overfits_five_examples(name):
    texts = ["what a joy", "dull and long", "a fine cast", "no plot at all", "lovely songs"]
    five = SentimentDataset(texts, [1, 0, 1, 0, 1], tiny(name).tokenizer, max_length=16)
    config = PUT(CONFIG, epochs=60, batch_size=5, evaluations_per_epoch=1, patience=None)
    model = fresh_model(name)
    before = evaluate(model, five, precision="fp32")
    fit(model, five, five, config)
    after = evaluate(model, five, precision="fp32")
    assert before.loss > 0.5
    assert after.loss < 0.05
    assert after.accuracy == 1.0


def test_same_seed_same_run_and_another_seed_another():
    train, validation = reviews("train", 14), reviews("validation", 6)

    def run(seed, callback):
        model = fresh_model()
        state = fit(model, train, validation, PUT(CONFIG, seed=seed), callbacks=[callback])
        return state, weights(model)

    def use_up_random_numbers(event, state):
        torch.rand(3), np.random.rand(3), random.random()

    state, final = run(0, lambda event, state: None)
    again, final_again = run(0, use_up_random_numbers)
    other, _ = run(1, lambda event, state: None)
    assert losses(again) == losses(state)
    assert same(final_again, final)
    for name in ("loss", "accuracy"):
        assert [e[name] for e in again.evaluations] == [e[name] for e in state.evaluations]
    assert not set(losses(other)) & set(losses(state))


def test_a_callback_that_changes_the_mode_or_evaluates_changes_nothing():
    """A learner looks at the training accuracy after each step, in whatever precision."""
    train, validation = reviews("train", 10), reviews("validation", 6)
    plain = fit(fresh_model(), train, validation, CONFIG)
    model = fresh_model()

    def look(event, state):
        model.eval()
        evaluate(model, train, precision="bf16")

    looked_at = fit(model, train, validation, CONFIG, callbacks=[look])
    assert losses(looked_at) == losses(plain)
    assert [e["loss"] for e in looked_at.evaluations] == [e["loss"] for e in plain.evaluations]


# --- one step ---------------------------------------------------------------------------------


def one_step(model, config, train, batches) -> dict:
    accelerator = make_accelerator("fp32", "cpu")
    optimizer = make_optimizer(model, config.optimizer, config.learning_rate, config.weight_decay,
                               config.layer_decay)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    state = TrainState(config, total_steps=10)
    return train_step(wrapped, prepared, train, batches, state, accelerator)


def test_accumulated_micro_batches_equal_one_large_batch():
    """With a short last batch: 3 + 3 + 1 rows. Averaged means would weigh its row three times."""
    config = PUT(CONFIG, optimizer="sgd", learning_rate=0.1, warmup_ratio=0.0, max_grad_norm=1e9)
    train = reviews("train", 8)
    rows = np.array([0, 7, 2, 3, 4, 5, 6])
    large, small = fresh_model(dropout=False), fresh_model(dropout=False)
    a = one_step(large, config, train, [rows])
    b = one_step(small, config, train, [rows[:3], rows[3:6], rows[6:]])
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
    assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    assert (a["rows"], b["rows"]) == (7, 7)
    assert a["tokens"] == b["tokens"] == train.lengths[rows].sum()
    moved = 0.0
    before = fresh_model(dropout=False).state_dict()
    for name, tensor in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], tensor, rtol=0, atol=1e-6)
        moved = max(moved, (tensor - before[name]).abs().max().item())
    assert moved > 1e-3  # far above the tolerance


def test_a_run_of_accumulated_steps_equals_a_run_of_large_batches():
    """Every step sees all 10 rows, at once or as 4 + 4 + 2."""
    train, validation = reviews("train", 10), reviews("validation", 6)
    base = PUT(CONFIG, epochs=4, optimizer="sgd", learning_rate=0.05, patience=None)
    large = PUT(base, batch_size=10)
    small = PUT(base, batch_size=4, gradient_accumulation_steps=3)
    a, b = fresh_model(dropout=False), fresh_model(dropout=False)
    first, second = fit(a, train, validation, large), fit(b, train, validation, small)
    assert first.total_steps == second.total_steps == 4
    np.testing.assert_allclose(losses(second), losses(first), rtol=1e-5)
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], tensor, rtol=0, atol=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_rows():
    train, model = reviews("train", 8), fresh_model(dropout=False)
    rows = np.array([1, 6, 3])
    expected = [evaluate(model, take(train, [row]), precision="fp32").loss for row in rows]
    entry = one_step(model, CONFIG, train, [rows[:2], rows[2:]])
    assert entry["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def take(data: SentimentDataset, rows: list[int]) -> SentimentDataset:
    """Some rows of a data set as a data set of their own."""
    part = deepcopy(data)
    part._ids = torch.cat([data[row]["input_ids"] for row in rows]).numpy()
    part.labels, part.lengths = data.labels[rows], data.lengths[rows]
    part._offsets = np.concatenate([[0], np.cumsum(part.lengths)])
    return part


@pytest.mark.parametrize("limit", [0.01, math.inf])
def test_the_gradient_that_is_applied_is_clipped(limit):
    """The first SGD step without decay moves the weights by η times the clipped gradient."""
    config = PUT(CONFIG, optimizer="sgd", learning_rate=0.1, weight_decay=0.0, warmup_ratio=0.0,
                 max_grad_norm=limit)  # fmt: skip
    model = fresh_model()
    before = weights(model)
    entry = one_step(model, config, reviews("train", 8), [np.arange(8)])
    after = model.state_dict()
    moved = math.sqrt(sum((after[n] - before[n]).double().square().sum() for n in before))
    assert entry["grad_norm"] > 0.02
    assert moved == pytest.approx(0.1 * min(limit, entry["grad_norm"]), rel=1e-3)


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_a_layer_moves_by_its_share_of_the_learning_rate(name):
    """And so does its weight decay: θ ← θ - ηg - ηλθ, with the layer's own η."""
    base = PUT(CONFIG, optimizer="sgd", learning_rate=0.5, weight_decay=0.1, warmup_ratio=0.0,
               max_grad_norm=math.inf)  # fmt: skip
    before, moved, entries = weights(fresh_model(name)), {}, {}
    for decay in (1.0, 0.5):
        model = fresh_model(name)
        entries[decay] = one_step(model, PUT(base, layer_decay=decay), reviews("train", 8),
                                  [np.arange(8)])  # fmt: skip
        moved[decay] = {n: t - before[n] for n, t in model.state_dict().items()}
    assert entries[1.0] == entries[0.5]  # the learning rate of the history is the head's
    shares = parameter_depths(fresh_model(name))
    assert sorted(set(shares.values())) == [0, 1, 2, 3]
    for parameter, depth in shares.items():
        whole, part = moved[1.0][parameter], moved[0.5][parameter]
        torch.testing.assert_close(part, whole * 0.5**depth, rtol=1e-3, atol=1e-7)
    # far above the tolerance, in every layer
    for depth in range(4):
        assert max(moved[0.5][n].abs().max() for n, d in shares.items() if d == depth) > 1e-4


def test_shares_follow_the_schedule_in_every_step():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])

    config = PUT(CONFIG, warmup_ratio=0.2, learning_rate=8e-3, layer_decay=0.5)
    model, train, accelerator = fresh_model(), reviews("train", 8), make_accelerator("fp32", "cpu")
    optimizer = Watched(parameter_groups(model, 0.0, 0.5), lr=1.0)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    state = TrainState(config, total_steps=10)
    for _ in range(3):
        train_step(wrapped, prepared, train, [np.arange(4)], state, accelerator)
    shares = np.repeat([1, 0.5, 0.25, 0.125], 2)
    np.testing.assert_allclose(rates, [shares * rate for rate in (4e-3, 8e-3, 8e-3)], rtol=1e-12)


def test_learning_rates_of_a_run_by_hand():
    """10 steps, a warm-up of 2, then a straight line that would reach 0 at step 11."""
    train, validation = reviews("train", 10), reviews("validation", 6)
    config = PUT(CONFIG, epochs=1, batch_size=1, warmup_ratio=0.2, learning_rate=8e-3)
    state = fit(fresh_model(), train, validation, config)
    rates = [entry["learning_rate"] for entry in state.steps]
    np.testing.assert_allclose(rates, [4e-3, 8e-3, *(k * 1e-3 for k in range(8, 0, -1))])


def test_frozen_parameters_stay_and_have_no_optimizer_state(tmp_path):
    train, validation = reviews("train", 8), reviews("validation", 6)
    model = fresh_model()
    trained = set_trainable(model, "backbone")
    before = weights(model)
    fit(model, train, validation, CONFIG, checkpoint_dir=tmp_path)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == set(trained) == {"classifier.weight", "classifier.bias"}
    saved = load_file(next(tmp_path.glob("step-*")) / "optimizer.safetensors")
    assert {name.split(".")[0] for name in saved} == {"0", "1"}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_without_gradients_only_matrices_decay(optimizer):
    config = PUT(CONFIG, epochs=1, batch_size=4, optimizer=optimizer, learning_rate=0.1,
                 weight_decay=0.5, warmup_ratio=0.0, schedule="constant", evaluations_per_epoch=1)
    model = Flat()
    state = fit(model, reviews("train", 12), reviews("validation", 6), config)
    assert state.step == 3
    torch.testing.assert_close(model.matrix.data, torch.full((3, 2), 2.0 * 0.95**3))
    assert torch.equal(model.bias.data, torch.full((2,), 2.0))


def test_steps_of_an_epoch_hold_every_row_once():
    train = reviews("train", 11)
    steps = steps_of_epoch(train, PUT(CONFIG, gradient_accumulation_steps=2), epoch=3)
    assert [len(step) for step in steps] == [2, 1]
    assert sorted(np.concatenate([b for step in steps for b in step])) == list(range(11))


# --- what a run keeps and when it ends ----------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_best_weights_are_restored(tmp_path, on_disk):
    """Validation labels are the opposite of the training labels: learning makes it worse."""
    train, validation = reviews("train", 12), reviews("train", 12, flipped=True)
    config = PUT(CONFIG, epochs=10, learning_rate=1e-2, evaluations_per_epoch=1, patience=None)
    model = fresh_model(dropout=False)
    state = fit(model, train, validation, config, checkpoint_dir=tmp_path if on_disk else None)
    result, last = evaluate(model, validation, precision="fp32"), state.evaluations[-1]
    assert (result.loss, result.accuracy) == (state.best["loss"], state.best["accuracy"])
    assert last["loss"] > state.best["loss"] + 0.5
    ranks = [(e["accuracy"], -e["loss"]) for e in state.evaluations]
    assert (state.best["accuracy"], -state.best["loss"]) == max(ranks)
    assert not model.training


def test_of_equal_accuracies_the_lower_loss_is_best():
    state = fit(fresh_model(), reviews("train", 12), take(reviews("validation", 6), [0]),
                PUT(CONFIG, patience=None))  # fmt: skip
    top = max(e["accuracy"] for e in state.evaluations)
    assert state.best["loss"] == min(e["loss"] for e in state.evaluations if e["accuracy"] == top)


@pytest.mark.parametrize("patience", [1, 3])
def test_stops_after_patience_evaluations_without_a_new_best(patience):
    train, validation = reviews("train", 12), reviews("train", 12, flipped=True)
    config = PUT(CONFIG, epochs=20, learning_rate=1e-2, evaluations_per_epoch=1, patience=patience)
    state = fit(fresh_model(dropout=False), train, validation, config)
    best = state.evaluations.index(state.best)
    assert state.stopped_early
    assert len(state.evaluations) == best + 1 + patience
    assert state.step == state.evaluations[-1]["step"] < state.total_steps


def test_without_patience_a_run_goes_to_its_end():
    train, validation = reviews("train", 12), reviews("train", 12, flipped=True)
    config = PUT(CONFIG, epochs=8, learning_rate=1e-2, evaluations_per_epoch=1, patience=None)
    state = fit(fresh_model(), train, validation, config)
    assert (state.step, len(state.evaluations)) == (state.total_steps, 8)
    assert not state.stopped_early


def test_patience_that_ends_with_the_last_step_is_no_early_stop():
    """The fit to opposite labels: the last of two evaluations is worse, and nothing is left."""
    train, validation = reviews("train", 12), reviews("train", 12, flipped=True)
    config = PUT(CONFIG, learning_rate=1e-2, evaluations_per_epoch=1, patience=1, epochs=20)
    at = fit(fresh_model(dropout=False), train, validation, config).evaluations[-1]["epoch"]
    constant = PUT(config, schedule="constant", warmup_ratio=0.0)
    epochs = round(fit(fresh_model(dropout=False), train, validation, constant).epoch)
    assert at < 20 and epochs < 20
    whole = fit(fresh_model(dropout=False), train, validation, PUT(constant, epochs=epochs))
    assert whole.step == whole.total_steps
    assert whole.bad_evaluations == 1
    assert not whole.stopped_early


@pytest.mark.parametrize("event", ["step", "evaluation"])
def test_a_callback_can_stop_the_run_and_the_best_is_kept(event):
    train, validation = reviews("train", 12), reviews("validation", 6)
    model = fresh_model()

    def stop(name, state):
        if name == event and state.step >= 5:
            state.stop = True

    config = PUT(CONFIG, evaluations_per_epoch=3)
    state = fit(model, train, validation, config, callbacks=[stop])
    assert state.step == 5  # of 6
    assert len(state.evaluations) == 5
    assert evaluate(model, validation, precision="fp32").loss == state.best["loss"]


def test_stopped_before_the_first_evaluation_keeps_the_latest_weights():
    model, before = fresh_model(), weights(fresh_model())

    def stop(event, state):
        state.stop = event == "step"  # and False again at the end of the epoch, which is too late

    state = fit(model, reviews("train", 12), reviews("validation", 6),
                PUT(CONFIG, evaluations_per_epoch=1), callbacks=[stop])  # fmt: skip
    assert (state.step, state.best) == (1, None)
    assert not same(weights(model), before)


def test_events_in_the_order_that_the_module_describes(tmp_path):
    """3 steps an epoch, evaluated after steps 2 and 3, a checkpoint at every second step too."""
    config = PUT(CONFIG, checkpoint_every=2)
    recorder = Recorder()
    fit(fresh_model(), reviews("train", 12), reviews("validation", 6), config, tmp_path, [recorder])
    assert recorder.events == [
        ("train_start", 0),
        ("step", 1),
        ("step", 2), ("evaluation", 2), ("checkpoint", 2),
        ("step", 3), ("evaluation", 3), ("checkpoint", 3),
        ("epoch_end", 3),
        ("step", 4), ("checkpoint", 4),
        ("step", 5), ("evaluation", 5), ("checkpoint", 5),
        ("step", 6), ("evaluation", 6), ("checkpoint", 6),
        ("epoch_end", 6),
        ("train_end", 6),
    ]  # fmt: skip
    assert {event for event, _ in recorder.events} == set(EVENTS)


def test_events_without_a_folder_and_of_a_stopped_run():
    recorder = Recorder()

    def stop(event, state):
        state.stop = state.step == 2

    fit(fresh_model(), reviews("train", 12), reviews("validation", 6), CONFIG,
        callbacks=[recorder, stop])  # fmt: skip
    assert recorder.events == [
        ("train_start", 0), ("step", 1), ("step", 2), ("evaluation", 2), ("epoch_end", 2),
        ("train_end", 2),
    ]  # fmt: skip


def test_more_evaluations_than_steps_is_one_after_each_step():
    state = fit(fresh_model(), reviews("train", 12), reviews("validation", 6),
                PUT(CONFIG, evaluations_per_epoch=50, patience=None))  # fmt: skip
    assert [e["step"] for e in state.evaluations] == [1, 2, 3, 4, 5, 6]


def test_history_is_json_and_has_the_promised_entries():
    state = fit(fresh_model(), reviews("train", 12), reviews("validation", 6), CONFIG)
    history = json.loads(json.dumps(state.history, allow_nan=False))
    assert set(history["steps"][0]) == {"step", "epoch", "loss", "learning_rate", "grad_norm",
                                        "rows", "tokens", "seconds"}  # fmt: skip
    assert set(history["evaluations"][0]) == {"step", "epoch", "loss", "accuracy", "seconds"}
    assert [s["step"] for s in history["steps"]] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([s["epoch"] for s in history["steps"]], np.arange(1, 7) / 3)
    assert state.epoch == 2.0
    assert state.tokens == 2 * reviews("train", 12).lengths.sum()
    seconds = [s["seconds"] for s in history["steps"]]
    assert seconds == sorted(seconds) and seconds[-1] <= state.seconds


# --- without validation rows --------------------------------------------------------------------

# Learning these makes the opposite labels worse: with validation, the best is not the last.
OPPOSITE = PUT(CONFIG, epochs=8, learning_rate=1e-2, evaluations_per_epoch=1, patience=None)


def test_without_validation_rows_the_last_weights_stay():
    """The same run with validation rows gives the weights of its last step, and does not keep them.

    Patience of one evaluation would end it after its second epoch."""
    train, opposite, after_step = reviews("train", 12), reviews("train", 12, flipped=True), {}
    model = fresh_model()

    def note(event, state):
        if event == "step":
            after_step[state.step] = weights(model)

    with_rows = fit(model, train, opposite, OPPOSITE, callbacks=[note])
    assert with_rows.best is not with_rows.evaluations[-1]

    alone, recorder = fresh_model(), Recorder()
    config = PUT(OPPOSITE, patience=1, evaluations_per_epoch=3)
    state = fit(alone, train, None, config, callbacks=[recorder])
    assert losses(state) == losses(with_rows)
    assert same(weights(alone), after_step[24])
    assert not same(weights(model), after_step[24])
    assert not alone.training
    kinds = {event for event, _ in recorder.events}
    assert kinds == {"train_start", "step", "epoch_end", "train_end"}
    assert [step for event, step in recorder.events if event == "epoch_end"] == [*range(3, 25, 3)]
    assert (state.step, state.epoch, state.stopped_early) == (24, 8.0, False)


def test_without_validation_rows_the_history_has_no_evaluations():
    state = fit(fresh_model(), reviews("train", 12), None, CONFIG)
    assert (state.best, state.evaluations, state.bad_evaluations) == (None, [], 0)
    history = json.loads(json.dumps(state.history, allow_nan=False))
    assert (len(history["steps"]), history["evaluations"]) == (6, [])
    assert len(learning_curves(history).axes) == 3


def test_without_validation_rows_a_killed_run_goes_on(tmp_path):
    train, config = reviews("train", 12), PUT(CONFIG, checkpoint_every=2)
    straight, resumed, recorder = fresh_model(), fresh_model(), Recorder()

    def die(event, state):
        if (event, state.step) == ("step", 5):
            raise KeyboardInterrupt

    whole = fit(straight, train, None, config)
    with pytest.raises(KeyboardInterrupt):
        fit(fresh_model(), train, None, config, tmp_path, [recorder, die])
    assert [step for event, step in recorder.events if event == "checkpoint"] == [2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]  # and no best weights
    state = fit(resumed, train, None, config, tmp_path)
    assert (state.resumed_from_step, state.best) == (4, None)
    assert losses(state) == losses(whole)
    assert same(weights(resumed), weights(straight))


def test_without_validation_rows_a_checkpoint_of_a_run_with_them_chooses_nothing(tmp_path):
    train, opposite = reviews("train", 12), reviews("train", 12, flipped=True)

    def stop(event, state):
        state.stop = state.step == 9

    straight, resumed = fresh_model(), fresh_model()
    fit(straight, train, None, OPPOSITE)
    assert fit(fresh_model(), train, opposite, OPPOSITE, tmp_path, [stop]).best is not None
    assert fit(resumed, train, None, OPPOSITE, tmp_path).resumed_from_step == 9
    assert same(weights(resumed), weights(straight))


def test_without_validation_rows_a_callback_can_stop_the_run():
    def stop(event, state):
        state.stop = state.step == 2

    model, before = fresh_model(), weights(fresh_model())
    state = fit(model, reviews("train", 12), None, CONFIG, callbacks=[stop])
    assert (state.step, state.best) == (2, None)
    assert not same(weights(model), before)


def test_without_validation_rows_progress_is_lines_all_the_same(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr("tutorkit.board.Progress", lambda: Progress(0.0))
    for callback in (Progress(0.0), TrainingBoard()):
        state = fit(fresh_model(), reviews("train", 12), None, CONFIG, callbacks=[callback])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(",")[0] for line in lines[:-1]] == [f"step {k}/6" for k in range(1, 7)]
        assert lines[-1].startswith("training over: 6 steps in ")
        assert best_line(state).startswith("no evaluation")


# --- what a run refuses -------------------------------------------------------------------------


def test_one_class_is_refused():
    train = take(reviews("train", 12), [0, 1, 2])
    with pytest.raises(ValueError, match="at least two classes, found only label"):
        fit(fresh_model(), train, reviews("validation", 6), CONFIG)


def test_everything_frozen_is_refused():
    model = fresh_model().requires_grad_(False)
    with pytest.raises(ValueError, match="everything is frozen"):
        fit(model, reviews("train", 12), reviews("validation", 6), CONFIG)


def spoil(model, at_event, at_step, value):
    def callback(event, state):
        if (event, state.step) == (at_event, at_step):
            with torch.no_grad():
                model.classifier.weight.fill_(value)

    return callback


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path):
    train, validation = reviews("train", 12), reviews("validation", 6)
    model = fresh_model()
    with pytest.raises(
        FloatingPointError,
        match=r"step 4: expected a finite loss, found nan.*learning_rate \(now 0.003\).*"
        r"warm-up \(warmup_ratio, now 0.1\).*fp32",
    ):
        fit(model, train, validation, CONFIG, tmp_path, [spoil(model, "epoch_end", 3, math.inf)])
    resumed, straight = fresh_model(), fresh_model()
    state = fit(resumed, train, validation, CONFIG, tmp_path)
    assert state.resumed_from_step == 3
    assert losses(state) == losses(fit(straight, train, validation, CONFIG))
    assert same(weights(resumed), weights(straight))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights():
    """Clipping would make NaN of it, and the next checkpoint would be worthless."""
    model = fresh_model()
    before = weights(model)
    model.classifier.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match="step 1: expected a finite gradient norm"):
        fit(model, reviews("train", 12), reviews("validation", 6), CONFIG)
    assert same(weights(model), before)


def test_a_validation_loss_that_is_not_finite_is_never_the_best(tmp_path):
    """With accuracies equal, NaN compares as no worse: it would be kept as the best."""
    model = fresh_model()
    with pytest.raises(FloatingPointError, match="step 5: expected a finite validation loss"):
        fit(model, reviews("train", 12), reviews("validation", 6), CONFIG, tmp_path,
            [spoil(model, "step", 5, math.nan)])  # fmt: skip
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "best.safetensors").values())
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-000003"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("epochs", 0, "epochs: expected a whole number from 1, found 0"),
        ("epochs", 1.5, "epochs: expected a whole number from 1, found 1.5"),
        ("epochs", True, "epochs: expected a whole number"),
        ("batch_size", "32", "batch_size: expected a whole number from 1, found '32'"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps: expected a whole number"),
        ("learning_rate", -1e-4, "learning_rate: expected a number in 0…1, found -0.0001"),
        ("learning_rate", 5, "learning_rate: expected a number in 0…1, found 5"),
        ("learning_rate", math.nan, "learning_rate: expected a number in 0…1, found nan"),
        ("learning_rate", "1e-4", "learning_rate: expected a number"),
        ("layer_decay", 1.5, "layer_decay: expected a number in 0…1, found 1.5"),
        ("layer_decay", -0.5, "layer_decay: expected a number in 0…1, found -0.5"),
        ("layer_decay", math.nan, "layer_decay: expected a number in 0…1, found nan"),
        ("layer_decay", "1", "layer_decay: expected a number in 0…1, found '1'"),
        ("layer_decay", 0, "layer_decay: expected a number above 0.*the head alone; freeze the"),
        ("weight_decay", 1.1, "weight_decay: expected a number in 0…1, found 1.1"),
        ("warmup_ratio", 100, "warmup_ratio: expected a number in 0…1, found 100"),
        ("schedule", "step", r"schedule: expected one of .*'slanted_triangular'\), found 'step'"),
        ("optimizer", "adam", r"optimizer: expected one of \('adamw', 'sgd'\), found 'adam'"),
        ("max_grad_norm", -1, "max_grad_norm: expected a number in 0…inf, found -1"),
        ("max_grad_norm", 0, "max_grad_norm: expected a number above 0.*switches clipping off"),
        ("max_grad_norm", None, "max_grad_norm: expected a number"),
        ("evaluations_per_epoch", 0, "evaluations_per_epoch: expected a whole number from 1"),
        ("patience", 0, "patience: expected a whole number from 1, found 0"),
        ("precision", "fp8", "precision: expected one of .*'bf16'.*, found 'fp8'"),
        ("device", "gpu", "device: expected .*\"cuda\".*, found 'gpu'"),
        ("device", None, "device: expected .*, found None"),
        ("seed", -1, "seed: expected a whole number from 0, found -1"),
        ("seed", None, "seed: expected a whole number from 0, found None"),
        ("checkpoint_every", 0, "checkpoint_every: expected a whole number from 1, found 0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(monkeypatch, name, value, message):
    # The type checker of the tests would refuse a wrong type before the config sees it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{name: value})


def test_contradicting_settings_are_refused_at_once():
    with pytest.raises(ValueError, match="'fp16' needs a CUDA GPU"):
        TrainConfig(precision="fp16", device="cpu")


def test_an_unknown_setting_is_a_type_error_and_a_config_can_not_change():
    with pytest.raises(TypeError, match="learning_rat"):
        TrainConfig(learning_rat=1e-4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert len(fields) == 16  # a new field belongs into the table above


# --- evaluation ---------------------------------------------------------------------------------


def by_hand(model: torch.nn.Module, data: SentimentDataset) -> tuple[np.ndarray, list[float]]:
    """Probabilities and losses, one unpadded row at a time."""
    probabilities, row_losses = [], []
    for row in range(len(data)):
        item = {name: tensor[None] for name, tensor in data[row].items()}
        with torch.no_grad():
            z = model(item["input_ids"], attention_mask=item["attention_mask"]).logits[0]
        p = (z.double().exp() / z.double().exp().sum()).numpy()
        probabilities.append(p)
        row_losses.append(-math.log(p[item["labels"]]))
    return np.array(probabilities), row_losses


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_evaluation_equals_a_loop_over_single_rows(name, batch_size):
    words = load_splits("reviews")["test"]["text"][0].split()
    texts = [" ".join(words[i : i + n]) for i, n in enumerate((5, 2, 9, 1, 30, 7, 3, 20, 4))]
    data = SentimentDataset(texts, [0, 1, 1] * 3, tiny(name).tokenizer, max_length=64)
    assert len(set(data.lengths)) > 4  # padding and another order are at work
    model = fresh_model(name)
    for parameter in model.parameters():
        if parameter.ndim == 2:  # as initialised, it says 0.5 to everything; let rows differ
            parameter.data *= 8
    probabilities, row_losses = by_hand(model.eval(), data)
    result = evaluate(model, data, batch_size, precision="fp32", device="cpu")
    assert isinstance(result, Evaluation)
    np.testing.assert_allclose(result.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1.0, atol=1e-12)
    assert np.ptp(probabilities[:, 0]) > 0.05
    assert result.loss == pytest.approx(np.mean(row_losses), abs=1e-5)
    assert result.accuracy == np.mean(probabilities.argmax(axis=1) == data.labels)
    assert result.tokens == data.lengths.sum()


def test_evaluation_of_a_single_row():
    data = take(reviews("validation", 6), [2])
    result = evaluate(fresh_model(), data, precision="fp32")
    assert result.probabilities.shape == (1, 2)
    assert result.accuracy in (0.0, 1.0)


def test_evaluation_keeps_the_mode_of_every_module():
    model, data = fresh_model().train(), reviews("validation", 6)
    model.bert.embeddings.eval()  # as a learner does who freezes a part, dropout included
    before = {name: module.training for name, module in model.named_modules()}
    evaluate(model, data, precision="fp32")
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2
    broken = take(data, [0, 1, 2])
    broken._ids[-1] = 10**6  # an id that is not in the vocabulary
    with pytest.raises(IndexError):
        evaluate(model, broken, precision="fp32")
    assert {name: module.training for name, module in model.named_modules()} == before


def test_evaluation_has_no_dropout_and_no_gradient():
    model, data = fresh_model().train(), reviews("validation", 6)
    first, second = (evaluate(model, data, precision="fp32") for _ in range(2))
    assert first.loss == second.loss
    assert all(p.grad is None for p in model.parameters())


# --- precision, device, accelerate --------------------------------------------------------------


def test_bf16_on_the_cpu_is_close_to_fp32_and_the_next_run_may_use_another_precision():
    train, validation = reviews("train", 12), reviews("validation", 6)
    runs = {}
    for name in ("fp32", "bf16", "fp32 again"):
        model = fresh_model(dropout=False)
        config = PUT(CONFIG, precision=name.split()[0])
        runs[name] = losses(fit(model, train, validation, config))
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert runs["fp32 again"] == runs["fp32"]
    assert runs["bf16"] != runs["fp32"]
    np.testing.assert_allclose(runs["bf16"], runs["fp32"], atol=0.02)


@pytest.mark.parametrize("interrupt", [False, True])
def test_a_trained_model_is_a_plain_one_again(interrupt):
    """Also after "interrupt the kernel", and in mixed precision, which wraps `forward`."""
    model = fresh_model()

    def callback(event, state):
        if interrupt and event == "step":
            raise KeyboardInterrupt

    try:
        fit(model, reviews("train", 8), reviews("validation", 6), PUT(CONFIG, precision="bf16"),
            callbacks=[callback])  # fmt: skip
    except KeyboardInterrupt:
        assert interrupt
    ids = torch.ones(1, 4, dtype=torch.long)
    as_tuple = model(ids, return_dict=False)
    assert isinstance(as_tuple, tuple)
    with torch.no_grad():
        expected = type(model).forward(model, ids).logits
    assert torch.equal(model(ids).logits, expected)  # fp32 throughout, no autocast left
    assert not model.training


def test_make_accelerator_follows_each_call():
    assert make_accelerator("fp32", "cpu").mixed_precision == "no"
    accelerator = make_accelerator("bf16", "cpu")
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.device == torch.device("cpu")
    automatic = make_accelerator("auto", "cpu").mixed_precision
    assert automatic == ("bf16" if precision.cpu_has_fast_bf16() else "no")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 training needs a CUDA GPU")
def test_fp16_keeps_its_gradient_scale_over_a_resume(tmp_path):
    train, validation = reviews("train", 12), reviews("validation", 6)
    config = PUT(CONFIG, precision="fp16", device="cuda:0", checkpoint_every=1)

    def stop(event, state):
        state.stop = state.step == 4

    straight = fit(fresh_model(), train, validation, config)
    fit(fresh_model(), train, validation, config, tmp_path, [stop])
    scaler = json.loads((next(tmp_path.glob("step-*")) / "state.json").read_text())["scaler"]
    assert scaler["scale"] > 0
    resumed = fit(fresh_model(), train, validation, config, tmp_path)
    assert resumed.resumed_from_step == 4
    np.testing.assert_allclose(losses(resumed), losses(straight), rtol=1e-3)
    assert losses(straight)[-1] < losses(straight)[0] + 0.1
