"""The training loop: one config, one epoch, evaluation, and `fit`, which puts them together.

The loop knows nothing of the model but `model(input_ids, attention_mask).logits`. The order of
events in a run, as callbacks receive them:

    train_start, then for each optimizer step: step, and now and then: evaluation, checkpoint;
    after each epoch: epoch_end; at the end: train_end
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from tutorkit.checkpoints import Keeper
from tutorkit.data import SentimentDataset, check_classes, evaluation_batches, training_batches
from tutorkit.losses import cross_entropy
from tutorkit.optim import OPTIMIZERS, SCHEDULES, lr_factor, make_optimizer
from tutorkit.precision import PRECISIONS, autocast, choose_device, choose_precision

EVENTS = ("train_start", "step", "evaluation", "checkpoint", "epoch_end", "train_end")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run, besides model and data."""

    epochs: int = 2  # passes over the training rows
    batch_size: int = 32  # rows in one forward pass, over all processes
    gradient_accumulation_steps: int = 1  # forward passes that make one optimizer step
    learning_rate: float = 1e-4  # peak, reached after the warm-up
    weight_decay: float = 0.01  # λ of θ ← θ - ηg - ηλθ; not on biases and norms
    warmup_ratio: float = 0.1  # share of all steps in which the learning rate rises
    schedule: str = "linear"  # after the warm-up: "linear", "cosine" or "constant"
    optimizer: str = "adamw"  # or "sgd"
    max_grad_norm: float = 1.0  # gradients are scaled down to this L2 norm
    evaluations_per_epoch: int = 2  # looks at the validation rows in one epoch
    patience: int | None = 4  # evaluations without a new best before stopping; None: never stop
    precision: str = "auto"  # "fp32", "bf16", "fp16"
    device: str = "auto"  # "cpu", "cuda", "mps"
    seed: int = 0  # of the order of rows and of dropout
    checkpoint_every: int | None = None  # steps between checkpoints, besides one an evaluation

    def __post_init__(self):
        whole = {"epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1,
                 "evaluations_per_epoch": 1, "seed": 0}  # fmt: skip
        for name in ("patience", "checkpoint_every"):
            if getattr(self, name) is not None:
                whole[name] = 1
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number from {least}, found {value!r}")
        ranges = {"learning_rate": (0, 1), "weight_decay": (0, 1), "warmup_ratio": (0, 1),
                  "max_grad_norm": (0, math.inf)}  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise ValueError(f"{name}: expected a number in {low}…{high}, found {value!r}")
        choices = {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "precision": PRECISIONS}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")


@dataclass(frozen=True)
class Evaluation:
    """What a model says about a data set."""

    loss: float  # mean cross-entropy in nats
    accuracy: float  # share of rows whose largest probability is at the label
    probabilities: np.ndarray  # (N, C), in the order of the rows
    seconds: float
    tokens: int  # real tokens read, padding not counted


@dataclass
class TrainState:
    """Where a run is; callbacks receive it, and `fit` returns it."""

    config: TrainConfig
    total_steps: int
    step: int = 0  # optimizer steps done
    epoch: float = 0.0  # passes over the training rows done
    steps: list[dict] = field(default_factory=list)  # one entry a step
    evaluations: list[dict] = field(default_factory=list)  # one entry an evaluation
    best: dict | None = None  # the evaluation whose weights are kept
    bad_evaluations: int = 0  # since the best one
    seconds: float = 0.0  # spent in `fit`, earlier attempts at the same run counted in
    tokens: int = 0  # real training tokens read
    stop: bool = False  # a callback sets this to end the run after the current step
    stopped_early: bool = False
    resumed_from_step: int | None = None

    @property
    def history(self) -> dict:
        """The curves, as `history.json` keeps them."""
        return {"steps": self.steps, "evaluations": self.evaluations}


Callback = Callable[[str, TrainState], None]


def fit(
    model: torch.nn.Module,
    train: SentimentDataset,
    validation: SentimentDataset,
    config: TrainConfig,
    checkpoint_dir: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainState:
    """Fine-tune `model` in place; at the end it holds the weights of the best evaluation.

    The best evaluation is the one with the highest validation accuracy, and of equals the one with
    the lowest loss. All randomness is a function of (seed, step): the same seed on the same machine
    gives the same losses, and a run killed at any step and started again with the same
    `checkpoint_dir` ends with the weights it would have had.

    Args:
        model: maps `input_ids` (B, T) and `attention_mask` (B, T) to an output with `.logits`.
        train: rows to learn from, of at least two classes.
        validation: rows to choose the best weights by.
        config: see `TrainConfig`.
        checkpoint_dir: folder for checkpoints; without one, nothing is written to disk.
        callbacks: called as `callback(event, state)` with the events listed in `EVENTS`.

    Raises:
        ValueError: training rows of one class, nothing to train, a checkpoint of another run.
        FloatingPointError: a loss that is not finite, with what to try.
        OSError: a checkpoint that could not be written; the one before it is kept.
    """
    check_classes(train.labels)
    accelerator = make_accelerator(config.precision, config.device)
    optimizer = make_optimizer(model, config.optimizer, config.learning_rate, config.weight_decay)
    plan = steps_of_epoch(train, config, epoch=0)
    state = TrainState(config, total_steps=len(plan) * config.epochs)
    keep = Keeper(model, optimizer, accelerator, checkpoint_dir, _fingerprint(config, train))
    wrapped, prepared = accelerator.prepare(model, optimizer)
    keep.resume(state)
    begun = time.perf_counter() - state.seconds

    def emit(event: str) -> None:
        state.seconds = time.perf_counter() - begun
        for callback in callbacks:
            callback(event, state)

    emit("train_start")
    look_after = {
        round(len(plan) * (k + 1) / config.evaluations_per_epoch)
        for k in range(config.evaluations_per_epoch)
    }
    while state.step < state.total_steps and not (state.stop or state.stopped_early):
        epoch, first = divmod(state.step, len(plan))
        for number, batches in enumerate(steps_of_epoch(train, config, epoch), start=1):
            if number <= first:
                continue  # done before the run was interrupted
            entry = train_step(wrapped, prepared, train, batches, state, accelerator)
            state.epoch = epoch + number / len(plan)
            seconds = round(time.perf_counter() - begun, 3)
            state.steps.append({**entry, "epoch": state.epoch, "seconds": seconds})
            emit("step")
            if number in look_after:
                result = evaluate(wrapped, validation, config.batch_size * 2, accelerator)
                state.seconds = time.perf_counter() - begun
                keep.compare(state, result)
                emit("evaluation")
                state.stopped_early = config.patience is not None and (
                    state.bad_evaluations >= config.patience
                )
            every = config.checkpoint_every
            if number in look_after or (every and state.step % every == 0):
                keep.save(state)
                emit("checkpoint")
            if state.stop or state.stopped_early:
                break
        emit("epoch_end")
    keep.restore_best(state)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    model.eval()
    emit("train_end")
    return state


def train_step(
    model, optimizer, train: SentimentDataset, batches: list[np.ndarray], state: TrainState,
    accelerator: Accelerator,
) -> dict:
    """One optimizer step over one or more micro-batches; returns its line of the history.

    The loss is the mean over all rows of the step: each micro-batch adds its sum divided by the
    rows of the whole step. Averaging the micro-batches' means would weigh the rows of a short
    batch more than others.
    """
    config, rank, world = state.config, accelerator.process_index, accelerator.num_processes
    # The state of dropout depends on (seed, step, process) alone, hence resume is exact.
    torch.manual_seed((config.seed * 1_000_003 + state.step) * world + rank)
    factor = lr_factor(config.schedule, state.step, state.total_steps,
                       round(config.warmup_ratio * state.total_steps))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor
    rows = sum(len(batch) for batch in batches)
    total = torch.zeros((), device=accelerator.device)
    model.train()
    optimizer.zero_grad()
    for i, batch in enumerate(batches):
        mine = batch[rank::world]
        last = i + 1 == len(batches)  # processes exchange gradients once a step, after the last
        with nullcontext() if last else accelerator.no_sync(model):
            # A process without rows of a short batch runs one at weight 0: all must take part.
            inputs = _to(train.batch(mine if len(mine) else batch[:1]), accelerator.device)
            logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            loss = cross_entropy(logits.float(), inputs["labels"], reduction="sum") / rows
            loss = loss if len(mine) else loss * 0.0
            accelerator.backward(loss * world)  # `world` undoes the averaging over processes
        total += loss.detach()
    total = accelerator.reduce(total, "sum").item()
    if not math.isfinite(total):
        raise FloatingPointError(
            f"step {state.step + 1}: expected a finite loss, found {total}. Try a lower "
            f"learning_rate (now {config.learning_rate:g}), a longer warm-up (warmup_ratio), or "
            "precision='fp32'"
        )
    norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    state.step += 1
    tokens = int(sum(train.lengths[batch].sum() for batch in batches))
    state.tokens += tokens
    return {"step": state.step, "loss": total, "learning_rate": config.learning_rate * factor,
            "grad_norm": float(norm), "rows": rows, "tokens": tokens}  # fmt: skip


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, dataset: SentimentDataset, batch_size: int = 64,
    accelerator: Accelerator | None = None, precision: str = "auto", device: str = "auto",
) -> Evaluation:
    """Probabilities, mean loss and accuracy of a model on a data set; the model's mode is kept.

    Args:
        model: as for `fit`.
        dataset: N rows.
        batch_size: rows in one forward pass.
        accelerator: the one the model was prepared with, inside `fit`; by default one is made
            from `precision` and `device`.
    """
    if accelerator is None:
        accelerator = make_accelerator(precision, device)
        model.to(accelerator.device)
    started, was_training = time.perf_counter(), model.training
    numeric = choose_precision(
        accelerator.mixed_precision.replace("no", "fp32"), accelerator.device
    )
    model.eval()
    found = []
    batches = evaluation_batches(dataset.lengths, batch_size)
    for rows in batches[accelerator.process_index :: accelerator.num_processes]:
        inputs = _to(dataset.batch(rows), accelerator.device)
        with autocast(numeric, accelerator.device):
            logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        found.append((rows, logits.float().cpu().numpy()))
    logits = np.empty((len(dataset), found[0][1].shape[1]), dtype=np.float32)
    for rows, values in gather_object(found):
        logits[rows] = values
    model.train(was_training)
    loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(dataset.labels))
    return Evaluation(
        loss=float(loss), accuracy=float((logits.argmax(axis=1) == dataset.labels).mean()),
        probabilities=torch.from_numpy(logits).double().softmax(dim=1).numpy(),
        seconds=time.perf_counter() - started, tokens=int(dataset.lengths.sum()),
    )


def steps_of_epoch(
    train: SentimentDataset, config: TrainConfig, epoch: int
) -> list[list[np.ndarray]]:
    """The optimizer steps of an epoch: for each, its micro-batches as row numbers."""
    batches = training_batches(train.lengths, config.batch_size, config.seed, epoch)
    size = config.gradient_accumulation_steps
    return [batches[i : i + size] for i in range(0, len(batches), size)]


def make_accelerator(precision: str, device: str) -> Accelerator:
    """An `Accelerator` for the precision and device asked for."""
    chosen = choose_device(device)
    numeric = choose_precision(precision, chosen)
    mixed = "no" if numeric == "fp32" else numeric
    if AcceleratorState._shared_state and AcceleratorState().num_processes == 1:
        # accelerate keeps the first run's precision and device for the whole process, and refuses
        # another; in a notebook the next run may well ask for one
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision=mixed, cpu=chosen.type == "cpu")


def _fingerprint(config: TrainConfig, train: SentimentDataset) -> dict:
    """What must be equal for a checkpoint to belong to a run."""
    rows = hashlib.sha256(train.labels.tobytes() + train.lengths.tobytes()).hexdigest()
    settings = {k: v for k, v in asdict(config).items() if k != "checkpoint_every"}
    return json.loads(json.dumps({**settings, "training rows": rows}))


def _to(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
