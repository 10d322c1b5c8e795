"""The training loop: one config, one epoch, evaluation, and `fit`, which puts them together.

The loop knows nothing of the model but `model(input_ids, attention_mask).logits`. The order of
events in a run, as callbacks receive them:

    train_start
        step            after each optimizer step
        evaluation      after a step that evaluations_per_epoch asks for; the best weights are kept
        checkpoint      after each evaluation, and every `checkpoint_every` steps; only with a
                        checkpoint_dir
        epoch_end       after the last step of an epoch, also of one that was cut short
    train_end           the model holds the best weights
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from tutorkit.checkpoints import Keeper
from tutorkit.data import SentimentDataset, check_classes, evaluation_batches, training_batches
from tutorkit.fast_bert import faster
from tutorkit.losses import SCHEDULES, cross_entropy, lr_schedule
from tutorkit.micro_batches import halving, split
from tutorkit.objectives import Objective, classification
from tutorkit.optim import OPTIMIZERS, make_optimizer
from tutorkit.precision import PRECISIONS, autocast, choose_device, choose_precision

EVENTS = ("train_start", "step", "evaluation", "checkpoint", "epoch_end", "train_end")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run, besides model and data."""

    epochs: int = 2  # passes over the training rows
    batch_size: int = 32  # rows in one forward pass, over all processes
    gradient_accumulation_steps: int = 1  # forward passes that make one optimizer step
    learning_rate: float = 1e-4  # peak, reached after the warm-up
    layer_decay: float = 1.0  # a layer's learning rate as a share of the next higher layer's
    weight_decay: float = 0.01  # λ of θ ← θ - ηg - ηλθ; not on biases and norms
    warmup_ratio: float = 0.1  # share of all steps in which the learning rate rises
    schedule: str = "linear"  # or "cosine", "constant", "slanted_triangular"
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
        ranges = {"learning_rate": (0, 1), "layer_decay": (0, 1), "weight_decay": (0, 1),
                  "warmup_ratio": (0, 1), "max_grad_norm": (0, math.inf)}  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise ValueError(f"{name}: expected a number in {low}…{high}, found {value!r}")
        if self.max_grad_norm == 0:
            raise ValueError("max_grad_norm: expected a number above 0, found 0, which would set "
                             "every gradient to zero; float('inf') switches clipping off")
        if self.layer_decay == 0:
            raise ValueError("layer_decay: expected a number above 0, found 0, which would train "
                             "the head alone; freeze the layers with models.set_trainable instead")
        choices = {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "precision": PRECISIONS}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")
        if not isinstance(self.device, str):
            raise ValueError(f'device: expected "auto", "cpu", "cuda" or "mps", found '
                             f"{self.device!r}")
        # Refuses a device that is not here, and fp16 where it can't train, before any work.
        choose_precision(self.precision, choose_device(self.device))


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
    micro_batch_size: int | None = None  # most rows in one pass, once memory has run out
    resumed_from_step: int | None = None

    @property
    def history(self) -> dict:
        """The curves, as `history.json` keeps them."""
        return {"steps": self.steps, "evaluations": self.evaluations}


Callback = Callable[[str, TrainState], None]


def fit(
    model: torch.nn.Module,
    train: SentimentDataset,
    validation: SentimentDataset | None,
    config: TrainConfig,
    checkpoint_dir: Path | None = None,
    callbacks: Sequence[Callback] = (),
    objective: Objective = classification,
) -> TrainState:
    """Fine-tune `model` in place; at the end it holds the weights of the best evaluation.

    The best evaluation is the one with the highest validation accuracy, and of equals the one with
    the lowest loss. Without validation rows nothing is chosen: the last weights stay.

    All randomness is a function of (seed, step): the same seed on the same machine gives the same
    losses, and a run killed at any step and started again with the same `checkpoint_dir` ends with
    the weights it would have had.

    Args:
        model: maps `input_ids` (B, T) and `attention_mask` (B, T) to an output with `.logits`.
        train: rows to learn from, of at least two classes.
        validation: rows to choose the best weights by; None: no evaluation, no early stopping.
        config: see `TrainConfig`.
        checkpoint_dir: folder for checkpoints; without one, nothing is written to disk.
        callbacks: called as `callback(event, state)` with the events listed in `EVENTS`, in every
            process of a run over several.
        objective: what a step lowers: see `tutorkit.objectives`. One that is no function has a
            `repr` that says all its settings: a checkpoint belongs to one objective.

    Returns:
        The state at the end, with the history of the whole run, earlier attempts included.

    Raises:
        ValueError: training rows of one class, nothing to train, a checkpoint that is damaged or
            of another run (the model is then left as it was).
        FloatingPointError: a loss or gradient that is not finite, with what to try; checkpoints
            made before stay.
        OSError: a checkpoint that could not be written; the one before it is kept.
    """
    check_classes(train.labels.tolist())
    accelerator = make_accelerator(config.precision, config.device)
    optimizer = make_optimizer(model, config.optimizer, config.learning_rate, config.weight_decay,
                               config.layer_decay)
    epoch_steps = len(steps_of_epoch(train, config, epoch=0))
    state = TrainState(config, total_steps=epoch_steps * config.epochs)
    looks = range(1, config.evaluations_per_epoch + 1) if validation is not None else ()
    evaluate_after = {round(epoch_steps * k / config.evaluations_per_epoch) for k in looks}
    keep = Keeper(model, optimizer, accelerator, checkpoint_dir,
                  _fingerprint(config, train, objective))
    wrapped, prepared = accelerator.prepare(faster(model.to(accelerator.device)), optimizer)

    def emit(event: str) -> None:
        state.seconds = time.perf_counter() - begun
        for callback in callbacks:
            callback(event, state)

    def is_over() -> bool:
        # Processes go on or stop together, also where a callback stopped only one of them.
        asked = torch.tensor(float(state.stop), device=accelerator.device)
        state.stop = accelerator.reduce(asked, "sum").item() > 0
        return state.stop or state.stopped_early or state.step == state.total_steps

    try:
        keep.resume(state)
        begun = time.perf_counter() - state.seconds
        emit("train_start")
        over = False
        while not (over or is_over()):
            epoch, done = divmod(state.step, epoch_steps)  # `done` is above 0 after a resume only
            plan = steps_of_epoch(train, config, epoch)
            for number, batches in enumerate(plan[done:], start=done + 1):
                entry = train_step(wrapped, prepared, train, batches, state, accelerator, objective)
                state.epoch = epoch + number / epoch_steps
                seconds = round(time.perf_counter() - begun, 3)
                state.steps.append({**entry, "epoch": state.epoch, "seconds": seconds})
                emit("step")
                if number in evaluate_after:
                    rows = 2 * (state.micro_batch_size or config.batch_size)
                    result = evaluate(wrapped, validation, rows, accelerator)
                    _check_finite("validation loss", result.loss, state.step, config)
                    state.seconds = time.perf_counter() - begun
                    keep.compare(state, result)
                    emit("evaluation")
                    state.stopped_early = state.step < state.total_steps and (
                        config.patience is not None and state.bad_evaluations >= config.patience
                    )
                every = config.checkpoint_every
                due = number in evaluate_after or (every is not None and state.step % every == 0)
                if due and checkpoint_dir is not None:
                    keep.save(state)
                    emit("checkpoint")
                over = is_over()
                if over:
                    break
            emit("epoch_end")
        if validation is not None:
            keep.restore_best(state)
    finally:
        _unwrap(model)  # an interrupted run, too, leaves a plain model
        model.eval()
    emit("train_end")
    return state


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    train: SentimentDataset,
    batches: list[np.ndarray],
    state: TrainState,
    accelerator: Accelerator,
    objective: Objective = classification,
) -> dict:
    """One optimizer step over one or more micro-batches; returns its line of the history.

    The loss is the mean over all rows of the step: each micro-batch adds its sum divided by the
    rows of the whole step. Averaging the micro-batches' means would weigh the rows of a short
    batch more than others. Where memory runs out, the step is done again in smaller micro-batches.
    """
    config, rank, world = state.config, accelerator.process_index, accelerator.num_processes
    factor = lr_schedule(config.schedule, state.step, state.total_steps,
                         round(config.warmup_ratio * state.total_steps))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor * group["lr_scale"]
    rows = sum(len(batch) for batch in batches)
    model.train()

    def gradients(most: int) -> torch.Tensor:
        """The loss of the step; its gradients are added up on the parameters."""
        # The state of dropout depends on (seed, step, process) alone, hence resume is exact.
        torch.manual_seed((config.seed * 1_000_003 + state.step) * world + rank)
        total = torch.zeros((), device=accelerator.device)
        optimizer.zero_grad()
        parts = split(batches, most)
        for i, batch in enumerate(parts):
            mine = batch[rank::world]
            last = i + 1 == len(parts)  # processes exchange gradients once a step, after the last
            with nullcontext() if last else accelerator.no_sync(model):
                # A process without rows of a short batch runs one at weight 0: all must take part.
                read = mine if len(mine) else batch[:1]
                inputs = train.batch(read) | {"rows": torch.as_tensor(read)}
                counts = float(len(mine) > 0)

                def backward(loss: torch.Tensor, counts: float = counts) -> None:
                    # `world` undoes the averaging over processes
                    accelerator.backward(loss / rows * (counts * world))

                found = objective(model, _to(inputs, accelerator.device), backward)
                total += found / rows * counts
        return total

    largest = max(len(batch) for batch in batches)
    asked = min(largest, state.micro_batch_size or largest)
    total, fitting = halving(gradients, asked, can_halve=world == 1)
    if fitting < asked:
        state.micro_batch_size = fitting
    total = accelerator.reduce(total, "sum").item()
    _check_finite("loss", total, state.step + 1, config)
    norm = float(accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm))
    if accelerator.scaler is None:  # in fp16 the scaler passes over such steps, by design
        _check_finite("gradient norm", norm, state.step + 1, config)
    optimizer.step()
    state.step += 1
    tokens = int(sum(train.lengths[batch].sum() for batch in batches))
    state.tokens += tokens
    return {"step": state.step, "loss": total, "learning_rate": config.learning_rate * factor,
            "grad_norm": norm, "rows": rows, "tokens": tokens}  # fmt: skip


def evaluate(
    model: torch.nn.Module, dataset: SentimentDataset, batch_size: int = 64,
    accelerator: Accelerator | None = None, precision: str = "auto", device: str = "auto",
) -> Evaluation:
    """Probabilities, mean loss and accuracy of a model on a data set: see `read_logits`."""
    started = time.perf_counter()
    logits = read_logits(model, dataset, batch_size, accelerator, precision, device)
    loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(dataset.labels))
    return Evaluation(
        loss=float(loss), accuracy=float((logits.argmax(axis=1) == dataset.labels).mean()),
        probabilities=torch.from_numpy(logits).double().softmax(dim=1).numpy(),
        seconds=time.perf_counter() - started, tokens=int(dataset.lengths.sum()),
    )


@torch.no_grad()
def read_logits(
    model: torch.nn.Module, dataset: SentimentDataset, batch_size: int = 64,
    accelerator: Accelerator | None = None, precision: str = "auto", device: str = "auto",
) -> np.ndarray:
    """Logits (N, C) of a model on a data set, in fp32; the model's mode is kept.

    Args:
        model: as for `fit`; without an accelerator it is moved to the device.
        dataset: N rows.
        batch_size: rows in one forward pass.
        accelerator: its processes share the rows, its precision and device are used (as inside
            `fit`). Without one, this process reads all rows.
        precision: without an accelerator, "auto", "fp32", "bf16" or "fp16".
        device: without an accelerator, "auto", "cpu", "cuda" or "mps".
    """
    rank, world = 0, 1
    if accelerator is None:
        on = choose_device(device)
        numeric = choose_precision(precision, on)
        model.to(on)
    else:
        on, numeric = accelerator.device, accelerator.mixed_precision.replace("no", "fp32")
        rank, world = accelerator.process_index, accelerator.num_processes
        # The wrapper of several processes would wait for all of them at every forward pass, and
        # they may have unequal numbers of batches here.
        model = accelerator.unwrap_model(model)
    model = faster(model)
    batches = evaluation_batches(dataset.lengths, batch_size)[rank::world]

    def read(most: int) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for rows in split(batches, most):
            inputs = _to(dataset.batch(rows), on)
            with autocast(numeric, on):
                logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            found.append((rows, logits.float().cpu().numpy()))
        return found

    with eval_mode(model):  # the longest rows come first: where memory runs out, little is lost
        found, _ = halving(read, min(batch_size, len(dataset)))
    if world > 1:
        found = gather_object(found)
    logits = np.empty((len(dataset), found[0][1].shape[1]), dtype=np.float32)
    for rows, values in found:
        logits[rows] = values
    return logits


def steps_of_epoch(
    train: SentimentDataset, config: TrainConfig, epoch: int
) -> list[list[np.ndarray]]:
    """The optimizer steps of an epoch: for each, its micro-batches as row numbers.

    A data set that mixes several kinds of rows has a `batches_of_epoch` of its own.
    """
    plain = partial(training_batches, train.lengths)
    batches = getattr(train, "batches_of_epoch", plain)(config.batch_size, config.seed, epoch)
    size = config.gradient_accumulation_steps
    return [batches[i : i + size] for i in range(0, len(batches), size)]


def make_accelerator(precision: str, device: str) -> Accelerator:
    """An `Accelerator` for the precision and device asked for."""
    chosen = choose_device(device)
    numeric = choose_precision(precision, chosen)
    mixed = "no" if numeric == "fp32" else numeric
    if AcceleratorState._shared_state:
        # accelerate keeps the first run's precision and device for the whole process, and refuses
        # another; in a notebook the next run may well ask for one
        alone = AcceleratorState().num_processes == 1
        AcceleratorState._reset_state(reset_partial_state=alone)
    if chosen.index is not None and chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # accelerate takes the current GPU
    return Accelerator(mixed_precision=mixed, cpu=chosen.type == "cpu")


def _check_finite(what: str, value: float, step: int, config: TrainConfig) -> None:
    """Stop before weights, best weights or a checkpoint are spoilt by an overflow."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"step {step}: expected a finite {what}, found {value}. Try a lower learning_rate "
            f"(now {config.learning_rate:g}), a longer warm-up (warmup_ratio, now "
            f"{config.warmup_ratio:g}), or precision='fp32'"
        )


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _unwrap(model: torch.nn.Module) -> None:
    """Take off the mixed precision that `accelerator.prepare` put around the model's forward.

    accelerate's `unwrap_model(keep_fp32_wrapper=False)` goes too far: it also strips the decorators
    of transformers, and `model(..., return_dict=False)` fails from then on.
    """
    original = model.__dict__.pop("_original_forward", None)
    if original is not None:
        model.forward = original


def _fingerprint(config: TrainConfig, train: SentimentDataset, objective: Objective) -> dict:
    """What must be equal for a checkpoint to belong to a run."""
    rows = hashlib.sha256(train.labels.tobytes() + train.lengths.tobytes()).hexdigest()
    settings = {k: v for k, v in asdict(config).items() if k != "checkpoint_every"}
    return json.loads(json.dumps({
        **settings, "training rows": rows,
        "objective": getattr(objective, "__name__", repr(objective)),
    }))  # fmt: skip


def _to(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
