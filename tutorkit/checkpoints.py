"""Save a run in the middle, and take it up again as if nothing had happened.

A checkpoint is a folder `step-000123` with three files: `model.safetensors`,
`optimizer.safetensors` and `state.json`. It is written under another name and renamed when it is
whole, and the one before it is removed only then: a full disk or a kill at any moment leaves a
checkpoint that loads. safetensors and JSON hold data only, so loading one never runs code.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

BEST = "best.safetensors"


def save_checkpoint(folder: Path, model, optimizer, state: dict) -> Path:
    """Write a checkpoint of `state["step"]` into `folder` and remove the ones before it.

    Args:
        folder: holds the checkpoints of one run.
        model: its parameters and buffers are saved.
        optimizer: its state tensors are saved, one for each parameter.
        state: all else that the run needs, as JSON types; `state["step"]` names the checkpoint.

    Raises:
        OSError: it could not be written (a full disk, say). Earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state['step']:06d}"
    beside = folder / f"writing-{target.name}"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        _save_tensors(_model_tensors(model), beside / "model.safetensors")
        _save_tensors(_optimizer_tensors(optimizer), beside / "optimizer.safetensors")
        (beside / "state.json").write_text(json.dumps(state), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(
            f"could not write checkpoint {target} ({error}): free some disk space and start the "
            "run again; it goes on from the checkpoint before"
        ) from error
    shutil.rmtree(target, ignore_errors=True)
    os.replace(beside, target)
    for old in _finished(folder):
        if old != target:
            shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path, model, optimizer) -> dict | None:
    """Load the newest checkpoint of `folder` into model and optimizer.

    Returns:
        The saved state, or None where there is no checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, or was made with another model.
    """
    found = _finished(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        weights = load_file(newest / "model.safetensors")
        moments = load_file(newest / "optimizer.safetensors")
        model.load_state_dict(weights)
        _load_optimizer(optimizer, moments)
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint {newest} can't be used: expected whole files of this very model, found "
            f"{type(error).__name__}: {str(error)[:200]}. Delete the folder to start anew"
        ) from error
    return state


def save_best(folder: Path, model) -> None:
    """Keep the model's weights as the best so far."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _save_tensors(_model_tensors(model), folder / f"writing-{BEST}")
    except (OSError, SafetensorError) as error:
        (folder / f"writing-{BEST}").unlink(missing_ok=True)
        raise OSError(f"could not write {folder / BEST} ({error}): free some disk space and start "
                      "the run again") from error
    os.replace(folder / f"writing-{BEST}", folder / BEST)


def load_best(folder: Path, model) -> None:
    """Load the weights that `save_best` kept.

    Raises:
        ValueError: they are damaged or gone.
    """
    try:
        model.load_state_dict(load_file(folder / BEST))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / BEST} can't be used ({error}): delete {folder} to start anew"
                         ) from error


def remove_checkpoints(folder: Path) -> None:
    """Remove what this module wrote into `folder`, once a run's results are saved."""
    if folder.is_dir():
        for path in [*_finished(folder), *folder.glob("writing-*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / BEST).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


class Keeper:
    """Keeps the best weights and the checkpoints of one run, on disk or (best only) in memory.

    `fit` tells it what happens; where a run is to be resumed, it fills `fit`'s state.
    """

    def __init__(self, model, optimizer, accelerator, folder: Path | None, fingerprint: dict):
        self.model, self.optimizer, self.accelerator = model, optimizer, accelerator
        self.folder = Path(folder) if folder is not None else None
        self.fingerprint = fingerprint
        self.best_weights: dict | None = None

    def resume(self, state) -> None:
        if self.folder is None:
            return
        saved = load_checkpoint(self.folder, self.model, self.optimizer)
        if saved is None:
            return
        differing = {k for k, v in self.fingerprint.items() if saved["fingerprint"].get(k) != v}
        if differing:
            raise ValueError(
                f"{self.folder} holds a checkpoint of another run: {sorted(differing)} differ. "
                "Use the settings it was made with, another folder, or delete it to start anew"
            )
        if self.accelerator.scaler is not None and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        for name in ("step", "epoch", "steps", "evaluations", "best", "bad_evaluations",
                     "seconds", "tokens", "stopped_early"):  # fmt: skip
            setattr(state, name, saved[name])
        state.resumed_from_step = state.step

    def compare(self, state, result) -> None:
        entry = {"step": state.step, "epoch": state.epoch, "loss": result.loss,
                 "accuracy": result.accuracy, "seconds": round(state.seconds, 3)}  # fmt: skip
        state.evaluations.append(entry)
        rank = (result.accuracy, -result.loss)
        if state.best is not None and rank <= (state.best["accuracy"], -state.best["loss"]):
            state.bad_evaluations += 1
            return
        state.best, state.bad_evaluations = entry, 0
        if self.folder is None:
            self.best_weights = {n: t.detach().clone() for n, t in self.model.state_dict().items()}
        elif self.accelerator.is_main_process:
            save_best(self.folder, self.model)

    def save(self, state) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        saved = {k: v for k, v in asdict(state).items() if k not in ("config", "resumed_from_step")}
        saved |= {"fingerprint": self.fingerprint, "scaler": scaler.state_dict() if scaler else {}}
        save_checkpoint(self.folder, self.model, self.optimizer, saved)

    def restore_best(self, state) -> None:
        self.accelerator.wait_for_everyone()
        if state.best is None:
            return  # stopped before the first evaluation
        if self.folder is None:
            self.model.load_state_dict(self.best_weights)
        else:
            load_best(self.folder, self.model)


def _finished(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)
    # The rename that follows must not reach the disk before the contents do.
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _model_tensors(model) -> dict[str, torch.Tensor]:
    # Tied weights share memory, which safetensors refuses: each name gets its own copy.
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}


def _optimizer_tensors(optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{key}": torch.as_tensor(value).detach().cpu()
        for number, entries in state.items()
        for key, value in entries.items()
        if value is not None
    }


def _load_optimizer(optimizer, tensors: dict[str, torch.Tensor]) -> None:
    whole = optimizer.state_dict()
    whole["state"] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        whole["state"].setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(whole)
