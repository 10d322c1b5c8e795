"""A run that is killed anywhere goes on as if nothing had happened; a full disk loses nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tutorkit import checkpoints
from tutorkit.checkpoints import (
    Keeper,
    load_best,
    load_checkpoint,
    remove_checkpoints,
    save_best,
    save_checkpoint,
)
from tutorkit.data import SentimentDataset
from tutorkit.models import load_model, set_trainable
from tutorkit.optim import make_optimizer
from tutorkit.sources import load_splits
from tutorkit.training import TrainConfig, evaluate, fit

REPOSITORY = Path(__file__).parents[1]
# 11 rows in batches of 4 are 3 micro-batches, the last one short.
CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=3e-3, precision="fp32", device="cpu",
                     patience=None, checkpoint_every=1)  # fmt: skip
PUT = dataclasses.replace


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test catches it."""


@cache
def tiny():
    return load_model("tiny")


def fresh_model() -> torch.nn.Module:
    return deepcopy(tiny().model)


@cache
def rows(split: str, count: int, flipped: bool = False) -> SentimentDataset:
    table = load_splits("reviews")[split].to_pandas()
    halves = [table[table.label == k].head(count - count // 2 if k else count // 2) for k in (0, 1)]
    texts = [text for half in halves for text in half.text]
    labels = [int(label) != flipped for half in halves for label in half.label]
    return SentimentDataset(texts, [int(y) for y in labels], tiny().tokenizer, max_length=32)


def run(config, folder=None, callbacks=(), validation=None):
    model = fresh_model()
    state = fit(model, rows("train", 11), validation or rows("validation", 6), config, folder,
                callbacks)  # fmt: skip
    return model, state


@cache
def uninterrupted(config: TrainConfig):
    events: list[tuple[str, int]] = []
    model, state = run(PUT(config), None, [lambda event, state: events.append((event, state.step))])
    return model, state, events


def without_times(history: dict) -> dict:
    return {kind: [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]
            for kind, entries in history.items()}  # fmt: skip


def assert_same_run(config, model, state):
    """Weights, history and best evaluation, bit for bit."""
    expected_model, expected, _ = uninterrupted(config)
    for name, tensor in expected_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert without_times(state.history) == without_times(expected.history)
    for name in ("step", "epoch", "tokens", "bad_evaluations", "stopped_early"):
        assert getattr(state, name) == getattr(expected, name), name
    assert without_times({"best": [state.best]}) == without_times({"best": [expected.best]})


def kill_at(place: int):
    """A callback that dies at the event with this number."""
    seen = []

    def callback(event, state):
        seen.append(event)
        if len(seen) == place + 1:
            raise Killed

    return callback


# --- killed and resumed ---------------------------------------------------------------------------

RUNS = [
    CONFIG,
    PUT(CONFIG, optimizer="sgd", learning_rate=0.05, gradient_accumulation_steps=2),
    PUT(CONFIG, gradient_accumulation_steps=2, schedule="cosine", checkpoint_every=None),
]


@pytest.mark.parametrize("config", RUNS, ids=["adamw", "sgd accumulated", "only at evaluations"])
def test_killed_at_any_event_and_resumed_equals_uninterrupted(tmp_path, config):
    """In the middle of an epoch, between best weights and checkpoint, after the end, …"""
    _, expected, _ = uninterrupted(config)
    seen = []
    run(config, tmp_path / "whole", [lambda event, state: seen.append((event, state.step))])
    assert [event for event, _ in seen].count("evaluation") == 4
    assert len(seen) >= 16
    for place, (event, step) in enumerate(seen):
        folder = tmp_path / str(place)
        with pytest.raises(Killed):
            run(config, folder, [kill_at(place)])
        model, state = run(config, folder)
        assert_same_run(config, model, state)
        after = [k for e, k in seen[: place + (event == "checkpoint")] if e == "checkpoint"]
        assert state.resumed_from_step == (max(after) if after else None), (event, step)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_layers_keep_their_rates_over_a_resume(tmp_path, optimizer):
    """Each layer is two groups of the optimizer, whose tensors a checkpoint numbers."""
    config = PUT(CONFIG, layer_decay=0.5, optimizer=optimizer, learning_rate=2e-2)

    def die(event, state):
        if (event, state.step) == ("checkpoint", 3):
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path, [die])
    refused(tmp_path, r"another run \(layer_decay: expected 0.7, found 0.5\)",
            PUT(config, layer_decay=0.7))  # fmt: skip
    model, state = run(config, tmp_path)
    assert state.resumed_from_step == 3
    assert_same_run(config, model, state)
    one_rate, _, _ = uninterrupted(PUT(config, layer_decay=1.0))
    table = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(one_rate.state_dict()[table], model.state_dict()[table])


def test_killed_again_and_again(tmp_path):
    for place in (6, 4, 7):
        with pytest.raises(Killed):
            run(CONFIG, tmp_path, [kill_at(place)])
    assert_same_run(CONFIG, *run(CONFIG, tmp_path))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_rename(tmp_path, monkeypatch, moment):
    renames, replace = [], os.replace
    limit = -1

    def dying_replace(source, target):
        renames.append(target)
        if moment == "after" or len(renames) != limit:
            replace(source, target)
        if len(renames) == limit:
            raise Killed

    monkeypatch.setattr(checkpoints.os, "replace", dying_replace)
    run(CONFIG, tmp_path / "whole")
    count = len(renames)
    assert count >= 7  # 6 checkpoints and at least one best
    for number in range(1, count + 1):
        folder = tmp_path / str(number)
        renames.clear()
        limit = number
        with pytest.raises(Killed):
            run(CONFIG, folder)
        limit = -1
        assert_same_run(CONFIG, *run(CONFIG, folder))
        assert not list(folder.glob("writing-*"))


KILLED = """
    import json, os, signal, sys
    from pathlib import Path
    from tutorkit import checkpoints
    from tutorkit.data import SentimentDataset
    from tutorkit.models import load_model
    from tutorkit.training import TrainConfig, fit

    folder = Path(sys.argv[1])
    given = json.loads((folder / "rows.json").read_text())
    loaded = load_model("tiny")
    data = [SentimentDataset(*texts_and_labels, loaded.tokenizer, max_length=32)
            for texts_and_labels in given["rows"]]
    save_file, calls = checkpoints.save_file, []

    def dies_half_way(tensors, path):
        save_file(tensors, path)
        calls.append(path)
        if path.parent.name == "writing-step-000004":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_file = dies_half_way
    fit(loaded.model, *data, TrainConfig(**given["config"]), folder / "checkpoints")
"""


def test_a_killed_process_is_taken_up_by_another(tmp_path):
    """A real SIGKILL while a checkpoint is half written."""
    table = {name: load_splits("reviews")[name].to_pandas() for name in ("train", "validation")}
    given = []
    for name, count in (("train", 11), ("validation", 6)):
        halves = [table[name][table[name].label == k] for k in (0, 1)]
        texts = [*halves[0].text[: count // 2], *halves[1].text[: count - count // 2]]
        given.append((texts, [0] * (count // 2) + [1] * (count - count // 2)))
    (tmp_path / "rows.json").write_text(
        json.dumps({"rows": given, "config": dataclasses.asdict(CONFIG)})
    )
    (tmp_path / "run.py").write_text(textwrap.dedent(KILLED))
    done = subprocess.run(
        [sys.executable, "run.py", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["best.safetensors", "step-000003", "writing-step-000004"]
    model, state = run(CONFIG, tmp_path / "checkpoints")
    assert state.resumed_from_step == 3
    assert [entry["step"] for entry in state.steps] == [1, 2, 3, 4, 5, 6]
    assert_same_run(CONFIG, model, state)


def test_a_finished_run_returns_at_once(tmp_path):
    run(CONFIG, tmp_path)
    events = []
    model, state = run(CONFIG, tmp_path, [lambda event, state: events.append(event)])
    assert events == ["train_start", "train_end"]
    assert state.resumed_from_step == state.total_steps
    assert_same_run(CONFIG, model, state)


def test_the_time_of_earlier_attempts_counts(tmp_path):
    with pytest.raises(Killed):
        run(CONFIG, tmp_path, [kill_at(6)])
    saved = next(tmp_path.glob("step-*")) / "state.json"
    state = json.loads(saved.read_text())
    saved.write_text(json.dumps({**state, "seconds": 1000.0}))
    _, state = run(CONFIG, tmp_path)
    assert 1000 < state.seconds < 1500
    assert state.steps[-1]["seconds"] > 1000


OPPOSITE = PUT(CONFIG, epochs=20, learning_rate=1e-2, evaluations_per_epoch=1, patience=3)


def test_patience_is_carried_over_and_an_early_stop_is_final(tmp_path):
    """Validation labels are the opposite of the training labels: learning makes it worse."""
    flipped = rows("train", 11, flipped=True)
    _, expected = run(OPPOSITE, validation=flipped)
    assert expected.stopped_early and expected.bad_evaluations == 3

    before_the_last = expected.evaluations[-2]["step"]

    def die_after_two_bad_evaluations(event, state):
        if (event, state.step) == ("checkpoint", before_the_last):
            assert state.bad_evaluations == 2
            raise Killed

    with pytest.raises(Killed):
        run(OPPOSITE, tmp_path, [die_after_two_bad_evaluations], flipped)
    _, state = run(OPPOSITE, tmp_path, [], flipped)
    assert without_times(state.history) == without_times(expected.history)
    assert state.stopped_early

    events = []
    model, again = run(OPPOSITE, tmp_path, [lambda event, state: events.append(event)], flipped)
    assert events == ["train_start", "train_end"]
    assert again.stopped_early
    assert without_times(again.history) == without_times(expected.history)
    found = evaluate(model, flipped, OPPOSITE.batch_size * 2, precision="fp32")  # as in the run
    assert found.loss == expected.best["loss"]


def test_a_run_that_a_callback_stopped_goes_on_when_asked(tmp_path):
    def stop(event, state):
        state.stop = state.step == 4

    _, state = run(CONFIG, tmp_path, [stop])
    assert state.step == 4
    model, state = run(CONFIG, tmp_path)
    assert state.resumed_from_step == 4
    assert_same_run(CONFIG, model, state)


# --- saving ---------------------------------------------------------------------------------------


def full_disk(at_call: int, half_written: bool = False, calls: list | None = None):
    """A `save_file` that runs out of space at its n-th call."""
    real, calls = checkpoints.save_file, [] if calls is None else calls

    def save_file(tensors, path, **options):
        calls.append(path)
        if len(calls) != at_call:
            return real(tensors, path)
        if half_written:
            real(tensors, path)
            path.write_bytes(path.read_bytes()[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    return save_file


def test_a_disk_that_is_full_at_any_write_leaves_what_was_there(tmp_path, monkeypatch):
    calls: list[Path] = []
    monkeypatch.setattr(checkpoints, "save_file", full_disk(-1, calls=calls))
    run(CONFIG, tmp_path / "whole")
    monkeypatch.undo()
    names = [path.name for path in calls]
    assert len(names) >= 13  # two for each of six checkpoints, and at least one best
    for number in range(1, len(names) + 1):
        folder, done = tmp_path / str(number), names[: number - 1]
        monkeypatch.setattr(checkpoints, "save_file", full_disk(number, number % 4 < 2))
        with pytest.raises(OSError, match="could not write .*No space left.*free some disk space"):
            run(CONFIG, folder)
        monkeypatch.undo()
        best = ["best.safetensors"] * ("writing-best.safetensors" in done)
        step = done.count("optimizer.safetensors")
        left = sorted(path.name for path in folder.iterdir())
        assert left == [*best, *([f"step-{step:06d}"] if step else [])]
        assert_same_run(CONFIG, *run(CONFIG, folder))


@pytest.mark.parametrize("best", [False, True])
def test_a_state_that_can_not_be_written_leaves_nothing_half_done(tmp_path, monkeypatch, best):
    model = fresh_model()
    optimizer = make_optimizer(model, "adamw", 1e-3, 0.0)
    save_checkpoint(tmp_path, model, optimizer, {"step": 1})
    save_best(tmp_path, model)
    monkeypatch.setattr(Path, "write_text", full_disk(1))
    monkeypatch.setattr(checkpoints, "save_file", full_disk(1 if best else 3))
    with pytest.raises(OSError, match="free some disk space"):
        if best:
            save_best(tmp_path, model)
        else:
            save_checkpoint(tmp_path, model, optimizer, {"step": 2})
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "step-000001"]
    assert load_checkpoint(tmp_path, model, optimizer) == {"step": 1}
    load_best(tmp_path, model)


LIMITED = """
    import resource, sys
    from pathlib import Path
    import torch
    from tutorkit.checkpoints import load_checkpoint, save_best, save_checkpoint

    folder = Path(sys.argv[1])
    small, large = torch.nn.Linear(4, 4), torch.nn.Linear(400, 400)
    optimizer = torch.optim.AdamW(small.parameters())
    save_checkpoint(folder, small, optimizer, {"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    for save in (lambda: save_checkpoint(folder, large, optimizer, {"step": 2}),
                 lambda: save_best(folder, large)):
        try:
            save()
        except OSError as error:
            print(error)
    print(sorted(p.name for p in folder.iterdir()))
    print(load_checkpoint(folder, small, optimizer))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_real_write_that_fails_half_way(tmp_path):
    """The system refuses to let a file grow above 100 kB: as a full disk does, without one."""
    script = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path)]
    done = subprocess.run(script, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint, best, left, state = done.stdout.splitlines()
    assert "could not write checkpoint" in checkpoint and "free some disk space" in checkpoint
    assert "could not write" in best and "best.safetensors" in best
    assert left == "['step-000001']"
    assert state == "{'step': 1}"


def test_a_run_keeps_one_checkpoint_and_saving_sees_tied_weights(tmp_path):
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    assert model.lm_head.weight is model.transformer.wte.weight
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    for step in (999_999, 1_000_000):
        path = save_checkpoint(tmp_path, model, optimizer, {"step": step})
    save_best(tmp_path, model)
    assert path == tmp_path / "step-1000000"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "step-1000000"]

    other = transformers.GPT2LMHeadModel(config)
    other_optimizer = torch.optim.AdamW(other.parameters())
    assert load_checkpoint(tmp_path, other, other_optimizer) == {"step": 1_000_000}
    assert other.lm_head.weight is other.transformer.wte.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    mine, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert mine.keys() == theirs.keys() and len(mine) > 5
    for number, entries in mine.items():
        assert all(torch.equal(theirs[number][key], value) for key, value in entries.items())
    torch.nn.init.zeros_(other.lm_head.weight)
    load_best(tmp_path, other)
    assert torch.equal(other.transformer.wte.weight, model.lm_head.weight)


def test_the_newest_of_two_checkpoints_is_loaded(tmp_path):
    """A kill between the rename and the removal of the older one leaves two."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path / str(step), model, optimizer, {"step": step})
        path = next((tmp_path / str(step)).iterdir())
        path.rename(tmp_path / path.name)
    assert load_checkpoint(tmp_path, model, optimizer) == {"step": 1_000_000}


def test_tensors_that_are_not_contiguous_are_saved(tmp_path):
    model = torch.nn.Linear(3, 5)
    model.weight = torch.nn.Parameter(torch.arange(15.0).reshape(3, 5).T)
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, model, optimizer, {"step": 1})
    other = torch.nn.Linear(3, 5)
    load_checkpoint(tmp_path, other, torch.optim.AdamW(other.parameters()))
    assert torch.equal(other.weight, model.weight)


# --- loading --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """A run that was killed after its checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("interrupted")

    def die(event, state):
        if (event, state.step) == ("checkpoint", 4):
            raise Killed

    with pytest.raises(Killed):
        run(CONFIG, folder, [die])
    return folder


@pytest.fixture
def folder(interrupted, tmp_path) -> Path:
    """A copy of it."""
    import shutil

    return Path(shutil.copytree(interrupted, tmp_path / "copy"))


def refused(folder: Path, message: str, config=CONFIG, model=None, train=None) -> None:
    """`fit` raises this message and leaves the model as it was."""
    model = model if model is not None else fresh_model()
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        fit(model, train or rows("train", 11), rows("validation", 6), config, folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(folder, name, damage):
    file = folder / "step-000004" / name
    contents = file.read_bytes()
    file.write_bytes({"truncated": contents[: len(contents) // 2], "garbage": b"\xff\x00" * 500}
                     .get(damage, b""))  # fmt: skip
    if damage == "gone":
        file.unlink()
    refused(folder, r"checkpoint .*step-000004 is damaged: .*three whole files.*Delete .* anew")


@pytest.mark.parametrize("contents", ["null", "[1, 2]", "{}"])
def test_json_that_is_no_state_is_damage_too(folder, contents):
    (folder / "step-000004" / "state.json").write_text(contents)
    refused(folder, "step-000004 is damaged")


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_damaged_best_weights_are_found_before_hours_of_training(folder, damage):
    best = folder / "best.safetensors"
    contents = best.read_bytes()
    best.unlink()
    if damage == "truncated":
        best.write_bytes(contents[:-100])
    refused(folder, r"best.safetensors can't be used .*: delete .* to start anew")
    with pytest.raises(ValueError, match=r"best.safetensors can't be used"):
        load_best(folder, fresh_model())


def test_best_weights_of_another_model_are_refused(folder):
    with pytest.raises(ValueError, match="best.safetensors can't be used"):
        load_best(folder, torch.nn.Linear(2, 2))


def test_a_checkpoint_of_other_settings_is_refused(folder):
    config = PUT(CONFIG, learning_rate=1e-2, seed=5)
    refused(
        folder,
        r"holds a checkpoint of another run \(learning_rate: expected 0.01, found 0.003; "
        r"seed: expected 5, found 0\). Use the settings it was made with, another folder",
        config,
    )
    # How often to save decides nothing else, so it may change.
    assert_same_run(CONFIG, *run(PUT(CONFIG, checkpoint_every=2), folder))


def test_a_checkpoint_of_other_training_rows_is_refused(folder):
    refused(folder, r"another run \(training rows: expected", train=rows("train", 12))


def test_a_checkpoint_of_another_model_is_refused(folder):
    wider = transformers.BertConfig(**{**tiny().model.config.to_dict(), "vocab_size": 700})
    model = transformers.BertForSequenceClassification(wider)
    refused(folder, r"is of another model: 1 tensors differ, first 'bert.embeddings.word_embeddings"
                    r".weight': expected \(700, 32\), found \(\d+, 32\)", model=model)  # fmt: skip


def test_a_checkpoint_with_other_frozen_parameters_is_refused(folder, tmp_path):
    """Numbered by what trains, the moments of one parameter would be taken for another's."""
    model = fresh_model()
    set_trainable(model, "backbone")
    message = "was made with another optimizer or other frozen parameters"
    refused(folder, message, model=model)

    fit(model, rows("train", 11), rows("validation", 6), CONFIG, tmp_path / "head only")
    refused(tmp_path / "head only", message)


def test_a_folder_without_checkpoints_starts_anew(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    assert load_checkpoint(tmp_path / "nothing", model, optimizer) is None
    (tmp_path / "writing-step-000001").mkdir()
    assert load_checkpoint(tmp_path, model, optimizer) is None


def test_a_new_layout_of_the_checkpoint_would_break_runs_under_way(folder):
    """What a run started with an earlier release of this package wrote, its successor reads."""
    files = sorted(path.name for path in (folder / "step-000004").iterdir())
    assert files == ["model.safetensors", "optimizer.safetensors", "state.json"]
    state = json.loads((folder / "step-000004" / "state.json").read_text())
    assert set(state) == {
        "total_steps", "step", "epoch", "steps", "evaluations", "best", "bad_evaluations",
        "seconds", "tokens", "stop", "stopped_early", "micro_batch_size", "fingerprint",
        "scaler",
    }  # fmt: skip
    settings = {field.name for field in dataclasses.fields(TrainConfig)} - {"checkpoint_every"}
    assert set(state["fingerprint"]) == settings | {"training rows", "objective"}
    moments = load_file(folder / "step-000004" / "optimizer.safetensors")
    assert {key.split(".")[1] for key in moments} == {"step", "exp_avg", "exp_avg_sq"}


# --- clearing up ----------------------------------------------------------------------------------


def test_only_its_own_files_are_removed(folder):
    (folder / "writing-step-000005").mkdir()
    (folder / "writing-best.safetensors").touch()
    theirs = ["metrics.json", "step-by-step.md", "writing-tips.txt", "step-1.png"]
    for name in theirs:
        (folder / name).touch()
    (folder / "step-notes").mkdir()
    remove_checkpoints(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*theirs, "step-notes"])
    for name in theirs:
        (folder / name).unlink()
    (folder / "step-notes").rmdir()
    remove_checkpoints(folder)
    assert not folder.exists()
    remove_checkpoints(folder)  # nothing there is fine


def test_best_weights_in_memory_are_a_copy():
    """Kept as references, they would follow the training."""
    model = torch.nn.Linear(2, 2)
    keep = Keeper(model, None, None, None, {})
    state = type("State", (), {"step": 1, "epoch": 0.5, "seconds": 1.0, "best": None,
                               "evaluations": [], "bad_evaluations": 2})()  # fmt: skip
    result = type("Result", (), {"loss": 0.6, "accuracy": 0.5})()
    keep.compare(state, result)
    expected = model.weight.clone()
    torch.nn.init.zeros_(model.weight)
    assert torch.equal(keep.best_weights["weight"], expected)
    assert state.bad_evaluations == 0
    keep.compare(state, result)  # as good as the best is not better
    assert state.bad_evaluations == 1
