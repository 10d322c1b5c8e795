"""Out of memory: smaller micro-batches, the same step, one line, and an end at one row."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

from tutorkit.data import SentimentDataset
from tutorkit.micro_batches import halving, is_out_of_memory, split
from tutorkit.models import load_model
from tutorkit.optim import make_optimizer
from tutorkit.sources import load_splits
from tutorkit.training import (
    TrainConfig,
    TrainState,
    evaluate,
    fit,
    make_accelerator,
    steps_of_epoch,
    train_step,
)

CONFIG = TrainConfig(epochs=1, batch_size=8, learning_rate=3e-3, precision="fp32", device="cpu")
CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."  # noqa: E501  # as torch writes it


@cache
def tiny():
    return load_model("tiny")


def fresh_model(dropout: bool) -> torch.nn.Module:
    model = deepcopy(tiny().model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    return model


@cache
def reviews(split_name: str, count: int) -> SentimentDataset:
    table = load_splits("reviews")[split_name].to_pandas()
    rows = [*table[table.label == 0].head(count // 2).itertuples(),
            *table[table.label == 1].head(count - count // 2).itertuples()]  # fmt: skip
    texts, labels = [row.text for row in rows], [row.label for row in rows]
    return SentimentDataset(texts, labels, tiny().tokenizer, max_length=32)


class Cramped(torch.nn.Module):
    """A model whose memory holds a few rows at a time; it notes the rows of each pass."""

    def __init__(self, model, training_rows: int, evaluation_rows: int, error: Exception):
        super().__init__()
        self.model, self.error, self.seen = model, error, []
        self.room = {True: training_rows, False: evaluation_rows}

    def forward(self, input_ids, attention_mask):
        self.seen.append((self.training, len(input_ids)))
        if len(input_ids) > self.room[self.training]:
            # What a failed pass leaves behind must not reach the step that follows.
            torch.rand(3)
            raise self.error
        return self.model(input_ids, attention_mask=attention_mask)


class Backward(Cramped):
    """The same, and the memory runs out in the backward pass, with some gradients there already."""

    def forward(self, input_ids, attention_mask):
        self.seen.append((self.training, len(input_ids)))
        output = self.model(input_ids, attention_mask=attention_mask)
        if self.training and len(input_ids) > self.room[True]:
            output.logits = Refusing.apply(output.logits, self.error, self.model)
        return output


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error, model):
        ctx.error, ctx.model = error, model
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        for parameter in ctx.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)
        raise ctx.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (RuntimeError(CPU_MESSAGE), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_batches_are_cut_into_nearly_equal_parts_in_order():
    batches = [np.arange(7), np.arange(7, 10), np.arange(10, 11)]
    parts = split(batches, 3)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4], [5, 6], [7, 8, 9], [10]]
    assert [part.tolist() for part in split(batches, 7)] == [b.tolist() for b in batches]
    assert [len(part) for part in split(batches, 1)] == [1] * 11


def test_halving_goes_down_until_it_fits(capsys):
    asked = []

    def work(rows):
        asked.append(rows)
        if rows > 3:
            raise MemoryError("full")
        return "done"

    assert halving(work, 13) == ("done", 3)
    assert asked == [13, 6, 3]
    assert capsys.readouterr().out.splitlines() == [
        "out of memory with 13 rows in one forward pass: went on with 3 at a time, which gives the "
        "same mean loss and takes longer"
    ]
    assert halving(work, 2) == ("done", 2)
    assert capsys.readouterr().out == ""


def test_halving_frees_what_the_failed_attempt_held():
    alive = []

    class Activations:
        def __init__(self):
            alive.append(1)

        def __del__(self):
            alive.pop()

    def work(rows):
        assert not alive
        held = Activations()
        if rows > 1:
            raise RuntimeError(CPU_MESSAGE)
        return held is not None

    assert halving(work, 8) == (True, 1)


def test_other_errors_pass_through():
    def work(rows):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        halving(work, 8)


@pytest.mark.parametrize("kind", [Cramped, Backward])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_MESSAGE)]
)
def test_a_run_in_smaller_micro_batches_is_the_same_run(kind, error, capsys):
    train, validation = reviews("train", 20), reviews("validation", 12)
    plain, model = fresh_model(dropout=False), fresh_model(dropout=False)
    expected = fit(plain, train, validation, CONFIG)
    cramped = kind(model, training_rows=3, evaluation_rows=12, error=error)
    state = fit(cramped, train, validation, CONFIG)

    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([e[name] for e in state.steps],
                                   [e[name] for e in expected.steps], rtol=1e-5)  # fmt: skip
    np.testing.assert_allclose([e["loss"] for e in state.steps],
                               [e["loss"] for e in expected.steps], atol=1e-6)  # fmt: skip
    assert [(e["rows"], e["tokens"]) for e in state.steps] == [
        (e["rows"], e["tokens"]) for e in expected.steps
    ]
    assert [e["accuracy"] for e in state.evaluations] == [
        e["accuracy"] for e in expected.evaluations
    ]
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-4)

    assert state.micro_batch_size == 2 and expected.micro_batch_size is None
    failed = [rows for training, rows in cramped.seen if training and rows > 3]
    assert failed == [len(first_batch(train)), len(first_batch(train)) // 2][: len(failed)]
    assert max(rows for training, rows in cramped.seen if not training) == 4  # twice the 2
    out = capsys.readouterr().out
    assert out.count("out of memory") == 1
    assert f"{len(first_batch(train))} rows in one forward pass: went on with 2 at a time" in out


def first_batch(train: SentimentDataset) -> np.ndarray:
    return steps_of_epoch(train, CONFIG, epoch=0)[0][0]


def test_one_step_equals_the_whole_batch_to_a_millionth():
    """With SGD, since Adam's first steps make a sign of each gradient, however small."""
    config = dataclasses.replace(CONFIG, optimizer="sgd", batch_size=7, warmup_ratio=0.0)
    train = reviews("train", 7)
    whole, parts = fresh_model(dropout=False), fresh_model(dropout=False)
    a = fit(whole, train, None, config)
    b = fit(Cramped(parts, 3, 99, MemoryError()), train, None, config)
    assert b.micro_batch_size == 3
    assert b.steps[0]["loss"] == pytest.approx(a.steps[0]["loss"], abs=1e-6)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_the_redone_step_starts_from_its_seed():
    """With dropout, a step that failed first equals one that was small from the start."""
    train, rows = reviews("train", 8), np.arange(8)

    def step(model, limit):
        accelerator = make_accelerator("fp32", "cpu")
        optimizer = make_optimizer(model, "adamw", 1e-3, 0.01)
        wrapped, prepared = accelerator.prepare(model, optimizer)
        state = TrainState(CONFIG, total_steps=10, micro_batch_size=limit)
        return train_step(wrapped, prepared, train, [rows], state, accelerator), state

    failing = Cramped(fresh_model(dropout=True), 4, 99, MemoryError())
    redone, state = step(failing, None)
    assert failing.seen == [(True, 8), (True, 4), (True, 4)]
    small = Cramped(fresh_model(dropout=True), 4, 99, MemoryError())
    expected, same = step(small, 4)
    assert small.seen == [(True, 4), (True, 4)]
    assert redone == expected
    assert state.micro_batch_size == same.micro_batch_size == 4


def test_a_row_too_large_ends_in_a_clear_error():
    train = reviews("train", 6)
    model = Cramped(fresh_model(dropout=False), 0, 0, torch.OutOfMemoryError("CUDA out of memory."))
    message = r"single row in a forward pass \(CUDA out of memory.\). Set a smaller max_length, freeze"  # noqa: E501
    with pytest.raises(MemoryError, match=message):
        fit(model, train, None, CONFIG)
    with pytest.raises(MemoryError, match=message):
        evaluate(model, train, precision="fp32")


def test_several_processes_are_told_what_to_set():
    def work(rows):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(MemoryError, match="over several processes .* smaller batch_size"):
        halving(work, 8, can_halve=False)


def test_evaluation_goes_on_with_fewer_rows(capsys):
    data = reviews("train", 20)
    model = fresh_model(dropout=False)
    expected = evaluate(model, data, batch_size=16, precision="fp32")
    cramped = Cramped(model, 99, 5, RuntimeError(CPU_MESSAGE))
    found = evaluate(cramped, data, batch_size=16, precision="fp32")
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    assert [rows for _, rows in cramped.seen] == [16, 8, 4, 4, 4, 4, 4]
    assert capsys.readouterr().out.startswith("out of memory with 16 rows in one forward pass: "
                                              "went on with 4 at a time")  # fmt: skip


LIMITED = """
    import copy, resource, sys
    import psutil
    import torch
    from tutorkit.data import SentimentDataset
    from tutorkit.models import load_model
    from tutorkit.training import TrainConfig, fit

    torch.set_num_threads(1)
    loaded = load_model("tiny")
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    texts = [f"{'good' if i % 2 else 'bad'} film number {i} " * 40 for i in range(256)]
    data = SentimentDataset(texts, [i % 2 for i in range(256)], loaded.tokenizer, max_length=256)
    config = TrainConfig(epochs=1, batch_size=int(sys.argv[1]), precision="fp32", device="cpu",
                         gradient_accumulation_steps=256 // int(sys.argv[1]), optimizer="sgd")
    # What a first step loads and makes for good must not count against the limit.
    few = SentimentDataset(texts[:4], [0, 1, 0, 1], loaded.tokenizer, max_length=256)
    fit(copy.deepcopy(loaded.model), few, None, config)
    if sys.argv[2] != "none":
        room = int(sys.argv[2]) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room,) * 2)
    state = fit(loaded.model, data, None, config)
    print("rows", state.micro_batch_size, "loss", f"{state.steps[0]['loss']:.9f}")
    print("rows", state.micro_batch_size, "norm", f"{state.steps[0]['grad_norm']:.9f}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process's memory are Linux's")
def test_a_real_limit_of_memory(tmp_path):
    """The CPU allocator itself fails, and the step is that of a run that had the memory."""
    (tmp_path / "run.py").write_text(textwrap.dedent(LIMITED))

    def run(*arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, str(tmp_path / "run.py"), *arguments],
                              env=environment, capture_output=True, text=True,
                              timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("rows")]
        return done.stdout, lines[0][1], [float(line[3]) for line in lines]

    free, rows, expected = run("256", "none")
    assert "out of memory" not in free and rows == "None"
    limited, rows, found = run("256", "300")
    assert limited.count("out of memory with 256 rows in one forward pass: went on with") == 1
    assert 1 <= int(rows) <= 128
    np.testing.assert_allclose(found, expected, rtol=1e-5)
