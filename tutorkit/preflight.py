"""What a run will take, before it starts: minutes and memory.

A few rows go forward and backward. What they take, in seconds and in bytes kept for the backward
pass, is fitted with the cost of a batch of B rows of T tokens,

    cost(B, T) = a + b · BT + c · BT²

(a: per batch, such as the conversion of the weights; b: the layers' products; c: attention), and
the fit is added up over the batches that the run is going to read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from tutorkit.data import SentimentDataset, evaluation_batches
from tutorkit.fast_bert import faster
from tutorkit.losses import cross_entropy
from tutorkit.machine import free_memory_gb
from tutorkit.optim import make_optimizer
from tutorkit.precision import autocast, choose_device, choose_precision
from tutorkit.training import TrainConfig, eval_mode, steps_of_epoch

GB = 2**30
# An optimizer's time is measured on this many numbers: enough not to fit into a processor's cache.
SAMPLE = 4_000_000
# Batches of many shapes leave holes in the memory of a process, which it does not give back. Of
# what the largest batch keeps, runs on CPUs held 1.1 times as much after ten steps and 1.8 times
# after an epoch.
WITH_HOLES = {"cpu": 1.5}


@dataclass(frozen=True)
class Estimate:
    """What a run will take; `str()` of it is one line to print."""

    minutes_training: float  # steps of all epochs, if none is spared by early stopping
    minutes_evaluation: float  # all looks at the validation rows, and one at the test rows
    memory_gb: float  # most that the process holds at once, of the GPU's memory where it has one
    held_gb: float  # of these, what it holds already
    free_gb: float  # memory that it can still get
    advice: str = ""  # what to set where the memory will not do

    @property
    def fits(self) -> bool:
        """Whether what is free is enough."""
        return self.memory_gb - self.held_gb <= self.free_gb

    def __str__(self) -> str:
        line = (
            f"about {self.minutes_training:.1f} minutes of training, "
            f"{self.minutes_evaluation:.1f} of evaluation, {self.memory_gb:.1f} GB of memory, of "
            f"which {self.held_gb:.1f} are in use now; free: {self.free_gb:.1f} GB"
        )
        return f"{line}\n{self.advice}" if self.advice else line


@dataclass(frozen=True)
class Sample:
    """What one batch took."""

    rows: int
    length: int  # tokens of its longest row, padding included
    seconds: float  # forward and backward
    saved: float  # bytes that the forward pass kept for the backward pass
    forward_seconds: float  # a forward pass alone, as evaluation does it


def estimate(
    model: torch.nn.Module,
    train: SentimentDataset,
    validation: SentimentDataset | None,
    test: SentimentDataset | None,
    config: TrainConfig,
    checkpoint_dir: Path | None = None,
    seconds: float = 3.0,
) -> Estimate:
    """Minutes and memory of `fit` with these arguments, and of one `evaluate` on the test rows.

    It costs about as long as it is told. Weights, gradients, modes and the random state are as
    before, so a run after it is the run it would have been; the model is moved to the device.

    Time spent on writing checkpoints is not counted.

    Args:
        model: as for `fit`, like the arguments below that are not named.
        train: training rows.
        validation: validation rows, or None.
        test: rows for one evaluation at the end, or None.
        config: the run's; its precision and device are used.
        checkpoint_dir: with None the best weights are kept in memory.
        seconds: how long to measure, about. A large model's first two batches may take longer.

    Raises:
        ValueError: nothing trains.
    """
    device = choose_device(config.device)
    model.to(device)
    epochs = [steps_of_epoch(train, config, epoch) for epoch in range(config.epochs)]
    steps = [shapes(train, batches) for plan in epochs for batches in plan]
    shapes_read = [shape for step in steps for shape in step]
    looks = []
    if validation is not None:
        batches = evaluation_batches(validation.lengths, config.batch_size * 2)
        looks += shapes(validation, batches) * config.evaluations_per_epoch * config.epochs
    if test is not None:
        looks += shapes(test, evaluation_batches(test.lengths, config.batch_size * 2))

    longest = max(length for _, length in shapes_read)
    with unchanged(model):
        optimizer_seconds = _optimizer_seconds(model, config, device)
        # The first pass loads libraries and touches all weights, which then count as held.
        until = time.perf_counter() + seconds
        first = sample_batch(model, train, config, rows=1, length=longest)
        held, free = _held(device), _free(device)
        samples = measure(model, train, config, shapes_read, first, until, free)
    forward_backward = total(samples, "seconds", shapes_read)
    evaluation = total(samples, "forward_seconds", looks)

    rows, length = max(shapes_read, key=lambda shape: shape[0] * shape[1])
    accumulates = max(len(step) for step in steps) > 1
    kept = validation is not None and checkpoint_dir is None

    def memory(rows: int, accumulates: bool) -> float:
        saved = WITH_HOLES.get(device.type, 1.0) * total(samples, "saved", [(rows, length)])
        return held + memory_of_a_step(model, config.optimizer, saved, accumulates, kept)

    needed = memory(rows, accumulates)
    advice = ""
    if needed - held > free:
        fitting = rows // 2
        while fitting > 1 and memory(fitting, True) - held > free:
            fitting //= 2
        advice = _advice(needed, held + free, config, fitting, train.max_length,
                         enough=fitting >= 1 and memory(fitting, True) - held <= free)
    return Estimate(
        minutes_training=(forward_backward + len(steps) * optimizer_seconds) / 60,
        minutes_evaluation=evaluation / 60,
        memory_gb=needed / GB, held_gb=held / GB, free_gb=free / GB, advice=advice,
    )


def shapes(data: SentimentDataset, batches: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Rows and padded length of each batch, as `SentimentDataset.collate` makes them."""
    return [(len(rows), data.padded_length(int(data.lengths[rows].max()))) for rows in batches]


def measure(
    model: torch.nn.Module, train: SentimentDataset, config: TrainConfig,
    planned: Sequence[tuple[int, int]], first: Sample, until: float, room: float,
) -> list[Sample]:
    """Samples of batches of growing size at the greatest length, then of shorter ones.

    A large model's whole batch would take too long, a single row tells nothing of a batch (its
    products are too small), so the number of rows doubles while there is time and memory.

    Args:
        model: on the run's device.
        train: rows to read.
        config: the run's.
        planned: (rows, length) of each batch of the run.
        first: of one row at the greatest length; it counts only where there is no other.
        until: the time on `time.perf_counter` at which to be done, about.
        room: bytes that are free.
    """
    lengths = sorted({length for _, length in planned})
    most, longest = max(rows for rows, _ in planned), lengths[-1]
    samples, took = [first], 0.0
    while samples[-1].rows < most and 3 * samples[-1].saved < room:  # twice is sought, and a margin
        if samples[-1] is not first and time.perf_counter() + 1.5 * took > until:
            break
        started = time.perf_counter()
        rows = min(2 * samples[-1].rows, most)
        samples.append(sample_batch(model, train, config, rows, longest))
        took = time.perf_counter() - started
    samples = samples[1:] or samples
    largest = samples[-1].rows
    found = {}
    for length in {lengths[0], lengths[len(lengths) // 2]} - {longest}:
        for _ in range(2):  # the first batch of a shape is slower: the second takes its place
            if time.perf_counter() + took * length / longest < until:
                found[length] = sample_batch(model, train, config, largest, length)
    return [*samples, *found.values()]


def total(samples: Sequence[Sample], what: str, planned: Sequence[tuple[int, int]]) -> float:
    """The fitted cost of batches, added up.

    Args:
        samples: measured batches.
        what: the field of a sample that is the cost.
        planned: (rows, length) of each batch.

    Returns:
        The sum over the planned batches of a + b·BT + c·BT², where a, b, c ≥ 0 have the least
        relative squares over the samples.
    """
    if not planned:
        return 0.0
    cost = np.array([getattr(sample, what) for sample in samples], dtype=float)
    terms = _terms([(sample.rows, sample.length) for sample in samples])  # (S, 3)
    if len({sample.length for sample in samples}) == 1:
        terms[:, 2] = 0  # of one length, BT and BT² can't be told apart
    if len(samples) == 1:
        terms[:, 0] = 0
    scale = np.maximum(cost, 1e-12)
    size = np.maximum(terms.max(axis=0), 1e-12)  # columns of like size, for the solver
    weights = nnls(terms / size / scale[:, None], cost / scale)[0] / size
    return float((_terms(planned) @ weights).sum())


def memory_of_a_step(
    model: torch.nn.Module, optimizer: str, saved: float, accumulates: bool, keeps_best: bool
) -> float:
    """Bytes that training needs at its peak, besides weights and all else that is loaded.

    Args:
        model: its parameters that train have gradients and optimizer moments.
        optimizer: "adamw" has two moments a parameter, "sgd" one.
        saved: bytes that the largest micro-batch keeps for its backward pass.
        accumulates: several micro-batches make a step, so that gradients are there during the next
            forward pass.
        keeps_best: a copy of the best weights stays in memory.
    """
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    moments = gradients * {"adamw": 2, "sgd": 1}[optimizer]
    # Gradients grow while the backward pass gives back what was saved. A checkpoint, or taking the
    # best weights up again, needs another copy of the weights, while gradients are still there.
    step = max(saved + accumulates * gradients, gradients + weights)
    return moments + step + keeps_best * weights


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Buffers, modes and the random state are afterwards as they were."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    kinds = {p.device for p in model.parameters() if p.device.type != "cpu"}
    kind = next(iter(kinds)).type if kinds else "cuda"
    indices = [device.index or 0 for device in kinds]
    try:
        with torch.random.fork_rng(indices, device_type=kind):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def sample_batch(
    model: torch.nn.Module, train: SentimentDataset, config: TrainConfig, rows: int, length: int
) -> Sample:
    """One batch, forward and backward as in `train_step`, then forward as in `evaluate`.

    Its rows are real ones, those whose lengths are nearest to the one asked for.
    """
    device = choose_device(config.device)
    nearest = np.argsort(np.abs(train.lengths - length), kind="stable")
    batch = train.batch(np.resize(nearest, rows))
    found = batch["input_ids"].shape[1]  # the length may come out one step away from that asked for
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    precision, fast = choose_precision(config.precision, device), faster(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    of_the_model = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_the_model:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep the graph, and so itself, alive

    def forward() -> torch.Tensor:
        with autocast(precision, device):
            return fast(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()

    model.train()
    started = _now(device)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = cross_entropy(forward(), batch["labels"], reduction="sum") / rows
    # Unlike `backward`, it leaves the parameters' own gradients alone.
    torch.autograd.grad(loss, trained, allow_unused=True)
    trained_at = _now(device)
    with torch.no_grad(), eval_mode(model):
        forward()
    ended = _now(device)
    return Sample(rows, found, trained_at - started, sum(saved.values()), ended - trained_at)


def _optimizer_seconds(
    model: torch.nn.Module, config: TrainConfig, device: torch.device
) -> float:
    """Seconds of one optimizer step with its clipping, from a parameter that stands for all."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if count == 0:
        raise ValueError("expected at least one parameter with requires_grad, found none: "
                         "everything is frozen, so there is nothing to train")
    stand_in = torch.nn.Module()
    stand_in.weight = torch.nn.Parameter(torch.zeros(min(count, SAMPLE), device=device))
    optimizer = make_optimizer(stand_in, config.optimizer, 1e-4, 0.01)
    took = 0.0
    for _ in range(2):  # the first one allocates the moments
        stand_in.weight.grad = torch.ones_like(stand_in.weight)
        started = _now(device)
        torch.nn.utils.clip_grad_norm_(stand_in.parameters(), 1.0)
        optimizer.step()
        took = _now(device) - started
    return took * count / min(count, SAMPLE)


def _terms(planned: Sequence[tuple[int, int]]) -> np.ndarray:
    """(N, 3): the terms 1, BT and BT² of each batch."""
    rows, length = np.array(planned, dtype=float).T
    return np.stack([np.ones_like(rows), rows * length, rows * length**2], axis=1)


def _now(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def _held(device: torch.device) -> float:
    """Bytes that this process holds now, of a CUDA GPU's memory if it computes there."""
    import psutil

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def _free(device: torch.device) -> float:
    """Bytes that it could still get."""
    if device.type == "cuda":
        # What torch's allocator keeps in reserve counts as taken for others, not for this process.
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return free_memory_gb() * GB


def _advice(
    needed: float, there: float, config: TrainConfig, fitting: int, max_length: int, enough: bool
) -> str:
    line = (f"this run needs about {needed / GB:.1f} GB of memory and can have {there / GB:.1f}: ")
    if enough:
        times = -(-config.batch_size // fitting) * config.gradient_accumulation_steps
        return (f"{line}set batch_size={fitting} with gradient_accumulation_steps={times} (the "
                f"same rows a step), a max_length below {max_length}, or freeze lower layers")
    return (f"{line}even one row at a time is too much; freeze lower layers, set a max_length "
            f"below {max_length}, or take a smaller model")
