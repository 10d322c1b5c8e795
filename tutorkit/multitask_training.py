"""Training on several tasks: each task validated by itself, the best weights by their mean.

`fit_tasks` is `fit` with the joint loss as its objective and callbacks that write into each step's
line of the history, so that the curves are part of every checkpoint:

    "task_losses"    each task's training loss                      JointLoss.record
    "validation"     each task's score, and their mean              TaskValidation
    "conflict"       the cosine of the tasks' gradients             ConflictRecorder
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from torch import Tensor

from tutorkit.checkpoints import BEST, load_best, save_best
from tutorkit.multitask import JointLoss, MultiTaskModel, check_known, gradient_conflict
from tutorkit.multitask_data import MultiTaskDataset, TaskDataset, check_tasks
from tutorkit.training import (
    Callback,
    TrainConfig,
    TrainState,
    evaluate,
    fit,
    read_logits,
    steps_of_epoch,
)


def evaluate_task(
    model: MultiTaskModel, data: TaskDataset, batch_size: int = 64, precision: str = "auto",
    device: str = "auto",
) -> dict[str, float]:
    """A task's mean loss and its score; the model's mode is kept.

    Args:
        model: has the task.
        data: N rows.
        batch_size: rows in one forward pass.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        "loss", and "score": the accuracy, or of a regression Pearson's r between outputs and labels
        (0 where either does not vary). A regression also has "mae", its mean absolute error.

    Raises:
        ValueError: a task that the model does not have.
    """
    check_known(model, [data.task])
    one = model.for_task(data.task.name).model
    if data.task.kind == "classification":
        found = evaluate(one, data, batch_size, precision=precision, device=device)
        return {"loss": found.loss, "score": found.accuracy}
    found = read_logits(one, data, batch_size, precision=precision, device=device)
    values = found[:, 0].astype(np.float64)
    errors = values - data.labels
    a, b = values - values.mean(), data.labels - data.labels.mean()
    spread = math.sqrt((a @ a) * (b @ b))
    return {"loss": float((errors**2).mean()), "score": float(a @ b) / spread if spread else 0.0,
            "mae": float(np.abs(errors).mean())}  # fmt: skip


class TaskValidation:
    """A callback for `fit(…, validation=None, …)`: scores each task, keeps the best weights.

    Every so many steps, and after the last, it writes "validation" into the step's line of the
    history: "tasks" (see `evaluate_task`), "score", the mean of the tasks' scores, and "loss", the
    mean of their losses. The weights with the highest score, of equals the lowest loss, are the
    model's at `train_end`. `patience` of the `TrainConfig` looks without a better score end the
    run.

    Args:
        model: the one that `fit` trains.
        parts: validation rows of each task.
        every: steps between two looks.
        folder: where the best weights are kept; None: in memory. A run with checkpoints needs its
            `checkpoint_dir` here, to find the best weights again when it is resumed.
        keep_each: keep for each task also the weights that were best for it: `own_best`.
        batch_size: rows in one forward pass.

    Attributes:
        curve: what was written, with its "step".
        best: the entry whose weights are kept.
        own_best: task to a state dict of the whole model, with `keep_each`. After
            `model.load_state_dict(own_best[name])`, `model.for_task(name)` is that task's best.

    Raises:
        ValueError: rows of a task that the model does not have, `every` below 1, `keep_each` with
            a folder; during the run, checkpoints without a folder, or the best weights of a
            resumed run gone.
    """

    def __init__(
        self, model: MultiTaskModel, parts: Sequence[TaskDataset], every: int,
        folder: Path | None = None, keep_each: bool = False, batch_size: int = 64,
    ):  # fmt: skip
        check_tasks([part.task for part in parts])
        check_known(model, [part.task for part in parts])
        if every < 1:
            raise ValueError(f"every: expected a number of steps from 1, found {every!r}")
        if keep_each and folder is not None:
            raise ValueError("keep_each: expected no folder, found one: each task's own best is "
                             "kept in memory and would be gone when a run is resumed")
        self.model, self.parts, self.every, self.folder = model, list(parts), every, folder
        self.keep_each, self.batch_size = keep_each, batch_size
        self.curve: list[dict] = []
        self.best: dict | None = None
        self.own_best: dict[str, dict[str, Tensor]] = {}
        self._best_weights: dict[str, Tensor] = {}

    def __call__(self, event: str, state: TrainState) -> None:
        if event == "train_start":
            self._begin(state)
        elif event == "step" and (state.step % self.every == 0 or state.step == state.total_steps):
            self._look(state)
        elif event == "checkpoint" and self.folder is None:
            raise ValueError("expected TaskValidation to know the folder of this run's "
                             "checkpoints, found folder=None: pass it checkpoint_dir")
        elif event == "train_end" and self.best is not None:
            if self.folder is None:
                self.model.load_state_dict(self._best_weights)
            else:
                PartialState().wait_for_everyone()
                load_best(self.folder, self.model)

    def _begin(self, state: TrainState) -> None:
        self.curve = [step["validation"] for step in state.steps if "validation" in step]
        self.best = max(self.curve, key=_rank, default=None)
        self.own_best = {}
        if self.best is not None and (self.folder is None or not (self.folder / BEST).is_file()):
            raise ValueError(f"this run goes on from step {state.step}; expected its best weights "
                             f"in TaskValidation's folder, found none in {self.folder}: pass it "
                             "checkpoint_dir, or delete the checkpoints to start anew")

    def _look(self, state: TrainState) -> None:
        config = state.config
        found = {
            part.task.name: evaluate_task(self.model, part, self.batch_size, config.precision,
                                          config.device)
            for part in self.parts
        }  # fmt: skip
        means = {key: sum(one[key] for one in found.values()) / len(found)
                 for key in ("score", "loss")}  # fmt: skip
        entry = {"step": state.step, "epoch": state.epoch, **means, "tasks": found}
        for name, one in found.items() if self.keep_each else ():
            if all(_rank(one) > _rank(before["tasks"][name]) for before in self.curve):
                self.own_best[name] = self._weights()
        self.curve.append(entry)
        state.steps[-1]["validation"] = entry
        if self.best is None or _rank(entry) > _rank(self.best):
            self.best = entry
            if self.folder is None:
                self._best_weights = self._weights()
            elif PartialState().is_main_process:
                save_best(self.folder, self.model)
        since = sum(one["step"] > self.best["step"] for one in self.curve)
        if state.step < state.total_steps and config.patience is not None:
            state.stopped_early = since >= config.patience

    def _weights(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.model.state_dict().items()}


def _rank(entry: dict) -> tuple[float, float]:
    return entry["score"], -entry["loss"]


def fit_tasks(
    model: MultiTaskModel, train: MultiTaskDataset, validation: Sequence[TaskDataset],
    config: TrainConfig, checkpoint_dir: Path | None = None, callbacks: Sequence[Callback] = (),
) -> TrainState:
    """Train all tasks at once by `fit`; at the end the model holds the best weights by their mean.

    Args:
        model: trained in place.
        train: rows of the model's tasks, in the model's order.
        validation: rows of each task to choose the best weights by (see `TaskValidation`), as often
            as the config says; none: the last weights stay.
        config: as for `fit`.
        checkpoint_dir: as for `fit`.
        callbacks: as for `fit`; the steps of the history have "task_losses" and "validation" by
            then. There are no "evaluation" events.

    Returns:
        As `fit`. Its `best` is None: read "validation" of the steps, by `recorded`.

    Raises:
        ValueError: other tasks than the model's, or in another order; also as `fit`.
    """
    if train.tasks != model.tasks:
        check_known(model, train.tasks)
        raise ValueError("expected training rows of all the model's tasks in its order, "
                         f"{[t.name for t in model.tasks]}, found {[t.name for t in train.tasks]}")
    joint = JointLoss(model.tasks, f"{train.sampling} {train.temperature:g}")
    own: list[Callback] = [joint.record]
    if validation:
        steps = len(steps_of_epoch(train, config, epoch=0))
        every = max(1, round(steps / config.evaluations_per_epoch))
        rows = 2 * config.batch_size
        own.append(TaskValidation(model, validation, every, checkpoint_dir, batch_size=rows))
    return fit(model, train, None, config, checkpoint_dir, [*own, *callbacks], joint)


def recorded(state: TrainState, key: str) -> list[tuple[int, dict]]:
    """(step, value) of every step whose line of the history has the key: a curve to draw."""
    return [(line["step"], line[key]) for line in state.steps if key in line]


class ConflictRecorder:
    """A callback for `fit` that writes each pair's cosine into the history, as "conflict".

    Every so many steps, at the weights after the step, on the same rows each time. The keys are
    "a × b", in the order of the batches.

    Args:
        model: the one that `fit` trains.
        batches: as for `gradient_conflict`.
        every: steps between two looks.
    """

    def __init__(
        self, model: MultiTaskModel, batches: Mapping[str, dict[str, Tensor]], every: int = 10
    ):
        self.model, self.batches, self.every = model, batches, every

    def __call__(self, event: str, state: TrainState) -> None:
        if event == "step" and state.step % self.every == 0:
            tasks, cosines, _ = gradient_conflict(self.model, self.batches)
            state.steps[-1]["conflict"] = {
                f"{a} × {b}": float(cosines[i, j])
                for i, a in enumerate(tasks) for j, b in enumerate(tasks) if i < j
            }  # fmt: skip
