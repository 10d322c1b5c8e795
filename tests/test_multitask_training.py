"""Training on several tasks: scores, the best weights, patience, resume, what a history holds."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from multitask_examples import CONFIG, LABELS, MOOD, RATING, TEXTS, TOPIC, multi, rows, tiny
from safetensors.torch import load_file

from tutorkit.checkpoints import BEST
from tutorkit.data import SentimentDataset
from tutorkit.multitask import JointLoss, gradient_conflict
from tutorkit.multitask_data import MultiTaskDataset, Task, TaskDataset
from tutorkit.multitask_training import (
    ConflictRecorder,
    TaskValidation,
    evaluate_task,
    fit_tasks,
    recorded,
)
from tutorkit.training import evaluate, fit

pytestmark = pytest.mark.usefixtures("one_thread")

PUT = dataclasses.replace
TASKS = (MOOD, RATING)
RUN = PUT(CONFIG, epochs=6, batch_size=5, learning_rate=5e-3, evaluations_per_epoch=1,
          patience=None)  # fmt: skip


def train(**settings) -> MultiTaskDataset:
    return MultiTaskDataset([rows(task) for task in TASKS], **settings)


def parts() -> list[TaskDataset]:
    return [rows(task) for task in TASKS]


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_at(step: int):
    def callback(event, state):
        state.stop = state.step == step

    return callback


# --- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_scores_of_a_regression_are_pearsons_r_and_the_mean_errors(name):
    model, part = multi(RATING, name=name), rows(RATING, name=name)
    found = evaluate_task(model, part, batch_size=2, precision="fp32")
    batch = part.batch(range(5))
    outputs = model(batch["input_ids"], batch["attention_mask"], torch.zeros(5, dtype=torch.long))
    values = outputs.outputs[0][:, 0].detach().double().numpy()
    errors = values - np.array(LABELS["rating"])
    assert found["score"] == pytest.approx(np.corrcoef(values, LABELS["rating"])[0, 1], abs=1e-4)
    assert found["loss"] == pytest.approx((errors**2).mean(), rel=1e-5)
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    torch.nn.init.zeros_(model.heads[0].weight)
    assert evaluate_task(model, part, precision="fp32")["score"] == 0.0


def test_scores_of_classes_are_those_of_evaluate():
    model = multi(TOPIC, MOOD)
    plain = SentimentDataset(TEXTS, LABELS["topic"], tiny().tokenizer, 32, num_labels=3)
    expected = evaluate(model.for_task("topic").model, plain, precision="fp32")
    found = evaluate_task(model, rows(TOPIC), precision="fp32")
    assert found == {"loss": pytest.approx(expected.loss), "score": expected.accuracy}


# --- the history ---------------------------------------------------------------------------------


def test_a_step_records_each_tasks_mean_loss():
    model = multi(*TASKS)
    before = {part.task.name: evaluate_task(model, part, precision="fp32")["loss"]
              for part in parts()}  # fmt: skip
    state = fit_tasks(model, train(), [], PUT(RUN, epochs=1, batch_size=10))
    assert recorded(state, "task_losses") == [(1, pytest.approx(before, rel=1e-5))]
    assert state.steps[0]["loss"] == pytest.approx(sum(before.values()) / 2, rel=1e-5)
    one_each = fit_tasks(multi(*TASKS), train(sampling="round_robin"), [], PUT(RUN, epochs=1))
    curve = recorded(one_each, "task_losses")
    assert [list(losses) for _, losses in curve] == [["mood"], ["rating"]]


def test_a_step_done_again_for_want_of_memory_is_recorded_once():
    joint, tries = JointLoss(TASKS), []

    def short_of_memory(model, batch, backward):
        loss = joint(model, batch, backward)
        tries.append(len(batch["task"]))
        if len(batch["task"]) > 4 or len(tries) == 3:
            raise MemoryError("no room")
        return loss

    config = PUT(RUN, epochs=2, batch_size=10)
    plain = fit_tasks(multi(*TASKS), train(), [], config)
    again = fit(multi(*TASKS), train(), None, config, None, [joint.record], short_of_memory)
    assert tries[:4] == [10, 5, 2, 1]
    for (_, a), (_, b) in zip(recorded(plain, "task_losses"), recorded(again, "task_losses"),
                              strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_conflict_is_recorded_without_changing_the_run():
    batches = {part.task.name: part.batch(range(5)) for part in parts()}
    plain, watched = multi(*TASKS), multi(*TASKS)
    fit_tasks(plain, train(), [], RUN)
    recorder = ConflictRecorder(watched, batches, every=4)
    state = fit_tasks(watched, train(), [], RUN, callbacks=[recorder])
    curve = recorded(state, "conflict")
    assert [step for step, _ in curve] == [4, 8, 12]
    last = gradient_conflict(watched, batches).cosines[0, 1]
    assert curve[-1][1] == {"mood × rating": pytest.approx(last, abs=1e-5)}
    assert same(state_of(plain), state_of(watched))
    json.dumps(state.history)


# --- the best weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_model_ends_with_the_weights_of_the_best_mean(tmp_path, on_disk):
    model, seen = multi(*TASKS), {}

    def spy(event, state):
        if event == "step":
            seen[state.step] = state_of(model)

    state = fit_tasks(model, train(), parts(), RUN, tmp_path if on_disk else None, [spy])
    curve = recorded(state, "validation")
    assert [step for step, _ in curve] == [2, 4, 6, 8, 10, 12]
    for _, entry in curve:
        tasks = entry["tasks"].values()
        assert entry["score"] == pytest.approx(sum(one["score"] for one in tasks) / 2)
    best = max(curve, key=lambda at: (at[1]["score"], -at[1]["loss"]))[0]
    assert same(state_of(model), seen[best])
    scores = [evaluate_task(model, part, precision="fp32")["score"] for part in parts()]
    assert sum(scores) / 2 == pytest.approx(max(entry["score"] for _, entry in curve))
    json.dumps(state.history)


def test_patience_ends_a_run_that_gets_no_better():
    model = multi(*TASKS)
    config = PUT(RUN, learning_rate=0.0, patience=2)
    state = fit_tasks(model, train(), parts(), config)
    assert (state.step, state.stopped_early) == (6, True)  # the first look is the best


def test_each_task_may_keep_its_own_best():
    model, seen = multi(*TASKS), {}
    validation = TaskValidation(model, parts(), every=1, keep_each=True)

    def spy(event, state):
        if event == "step":
            seen[state.step] = state_of(model)

    fit(model, train(), None, RUN, None, [validation, spy], JointLoss(TASKS))
    for name in ("mood", "rating"):
        entries = [(e["tasks"][name]["score"], -e["tasks"][name]["loss"], -e["step"])
                   for e in validation.curve]  # fmt: skip
        assert same(validation.own_best[name], seen[-max(entries)[2]])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    config = PUT(RUN, checkpoint_every=1)
    whole, halves = multi(*TASKS), multi(*TASKS)
    expected = fit_tasks(whole, train(), parts(), config, tmp_path / "whole")
    fit_tasks(halves, train(), parts(), config, tmp_path / "halves", [stop_at(7)])
    state = fit_tasks(halves, train(), parts(), config, tmp_path / "halves")
    assert state.resumed_from_step == 7
    for key in ("validation", "task_losses"):
        assert recorded(state, key) == recorded(expected, key)
    assert same(state_of(whole), state_of(halves))
    assert same(load_file(tmp_path / "halves" / BEST), state_of(halves))
    other = train(sampling="temperature", temperature=2.0)
    with pytest.raises(ValueError, match="objective: .*temperature 2; 1 mood.*found .*propor"):
        fit_tasks(multi(*TASKS), other, [], config, tmp_path / "halves")


# --- what is refused -----------------------------------------------------------------------------


def test_checkpoints_that_would_lose_the_best_weights(tmp_path):
    config, joint = PUT(RUN, checkpoint_every=1), JointLoss(TASKS)
    model = multi(*TASKS)
    validation = TaskValidation(model, parts(), every=1)
    with pytest.raises(ValueError, match="know the folder of this run's checkpoints, found folder"):
        fit(model, train(), None, config, tmp_path / "a", [validation], joint)
    with pytest.raises(ValueError, match="goes on from step 1; expected its best weights"):
        fit(model, train(), None, config, tmp_path / "a", [validation], joint)
    with pytest.raises(ValueError, match="keep_each: expected no folder, found one"):
        TaskValidation(model, parts(), 1, tmp_path, keep_each=True)


def test_tasks_that_are_not_the_models():
    model = multi(*TASKS)
    other = TaskDataset(Task("mood", names=("bad", "good")), TEXTS, [1, 0, 1, 0, 1],
                        tiny().tokenizer, 32)  # fmt: skip
    with pytest.raises(ValueError, match=r"one of the model's tasks .*, found 'topic'"):
        fit_tasks(model, MultiTaskDataset([rows(TOPIC)]), [], RUN)
    with pytest.raises(ValueError, match=r"order, \['mood', 'rating'\], found \['rating', 'm"):
        fit_tasks(model, MultiTaskDataset(parts()[::-1]), [], RUN)
    with pytest.raises(ValueError, match="the model's task Task.*negative.*found Task.*bad"):
        TaskValidation(model, [other], every=1)
    with pytest.raises(ValueError, match="one of the model's tasks .*, found 'topic'"):
        evaluate_task(model, rows(TOPIC))
    with pytest.raises(ValueError, match="every: expected a number of steps from 1, found 0"):
        TaskValidation(model, parts(), every=0)
