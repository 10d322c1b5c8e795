"""Save a run in the middle, and take it up again as if nothing had happened.

A checkpoint is a folder `step-000123` with three files: `model.safetensors`,
`optimizer.safetensors` and `state.json`. It is written under another name and renamed when it is
whole, and the one before it is removed only then: a full disk or a kill at any moment leaves a
checkpoint that loads. safetensors and JSON hold data only, so loading one never runs code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import broadcast, gather_object
from safetensors import SafetensorError, safe_open
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
        _to_disk(beside / "state.json")
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
            shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(folder: Path, model, optimizer, fingerprint: dict | None = None) -> dict | None:
    """Load the newest checkpoint of `folder` into model and optimizer.

    Everything is checked before anything is loaded: where it raises, the model is as it was.

    Args:
        folder: where `save_checkpoint` wrote.
        model: of the architecture that was saved.
        optimizer: of the kind that was saved, over the same parameters.
        fingerprint: what the saved state's "fingerprint" must be equal to.

    Returns:
        The saved state, or None where there is no checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, of another run, or of another model.
    """
    found = _finished(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        weights = load_file(newest / "model.safetensors")
        moments = load_file(newest / "optimizer.safetensors")
        saved = state["fingerprint"] if fingerprint is not None else {}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"checkpoint {newest} is damaged: expected three whole files, found "
            f"{type(error).__name__}: {str(error)[:200]}. Delete {folder} to start anew"
        ) from error
    differing = [k for k, v in (fingerprint or {}).items() if saved.get(k) != v]
    if differing:
        details = "; ".join(f"{k}: expected {fingerprint[k]!r:.80}, found {saved.get(k)!r:.80}"
                            for k in differing)  # fmt: skip
        raise ValueError(
            f"{folder} holds a checkpoint of another run ({details}). Use the settings it was "
            "made with, another folder, or delete it to start anew"
        )
    if state.get("best") is not None:
        _check_best(folder)  # now, not when the training is over
    _check_same_model(newest, model, optimizer, weights, moments)
    model.load_state_dict(weights)
    _load_optimizer(optimizer, moments)
    return state


def save_best(folder: Path, model) -> None:
    """Keep the model's weights as the best so far.

    Raises:
        OSError: they could not be written. The best weights kept before are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"writing-{BEST}"
    try:
        _save_tensors(_model_tensors(model), beside)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise OSError(
            f"could not write {folder / BEST} ({error}): free some disk space and start the run "
            "again; it goes on from the checkpoint before"
        ) from error
    os.replace(beside, folder / BEST)


def load_best(folder: Path, model) -> None:
    """Load the weights that `save_best` kept.

    Raises:
        ValueError: they are damaged, gone, or of another model.
    """
    try:
        model.load_state_dict(load_file(folder / BEST))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(_no_best(folder, error)) from error


def remove_checkpoints(folder: Path) -> None:
    """Remove what this module wrote into `folder`, once a run's results are saved.

    Other files there stay, and so does the folder if there are any.
    """
    if folder.is_dir():
        for path in [*_finished(folder), *_unfinished(folder), folder / BEST]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
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
        """Take up the newest checkpoint of the folder, if there is one."""
        if self.folder is None:
            return
        saved = load_checkpoint(self.folder, self.model, self.optimizer, self.fingerprint)
        steps = gather_object([saved["step"] if saved else 0])
        if len(set(steps)) > 1:
            raise ValueError(
                f"expected every process to resume from the same step, found steps {steps}: give "
                f"all of them one folder that they share, or delete {self.folder} on all machines "
                "to start anew"
            )
        if saved is None:
            return
        if self.accelerator.scaler is not None and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        for name in ("step", "epoch", "steps", "evaluations", "best", "bad_evaluations",
                     "seconds", "tokens", "stopped_early"):  # fmt: skip
            setattr(state, name, saved[name])
        state.micro_batch_size = saved.get("micro_batch_size")  # not in checkpoints made before it
        state.resumed_from_step = state.step

    def compare(self, state, result) -> None:
        """Note an evaluation, and keep the weights if it is the best so far."""
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
        """Write a checkpoint."""
        if self.folder is None or not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        saved = {k: v for k, v in asdict(state).items() if k not in ("config", "resumed_from_step")}
        saved |= {"fingerprint": self.fingerprint, "scaler": scaler.state_dict() if scaler else {}}
        save_checkpoint(self.folder, self.model, self.optimizer, saved)

    def restore_best(self, state) -> None:
        """Put the best weights back into the model."""
        if state.best is None:
            return  # stopped before the first evaluation
        if self.folder is None:
            self.model.load_state_dict(self.best_weights)
            return
        # The process that wrote them reads them, so it may remove them as soon as `fit` returns.
        if self.accelerator.is_main_process:
            load_best(self.folder, self.model)
        broadcast(list(self.model.state_dict().values()))


def _finished(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def _unfinished(folder: Path) -> list[Path]:
    """What a killed run left half-written."""
    ours = rf"writing-(step-\d{{6,}}|{re.escape(BEST)})"
    return [p for p in folder.glob("writing-*") if re.fullmatch(ours, p.name)]


def _no_best(folder: Path, error: Exception) -> str:
    return f"{folder / BEST} can't be used ({str(error)[:200]}): delete {folder} to start anew"


def _check_best(folder: Path) -> None:
    try:
        with safe_open(folder / BEST, "pt"):  # compares the header with the size of the file
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(_no_best(folder, error)) from error


def _check_same_model(checkpoint: Path, model, optimizer, weights: dict, moments: dict) -> None:
    """Refuse tensors that would not fit, or would fit into the wrong place."""
    own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    saved = {name: tuple(t.shape) for name, t in weights.items()}
    wrong = sorted(k for k in {*own, *saved} if own.get(k) != saved.get(k))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"checkpoint {checkpoint} is of another model: {len(wrong)} tensors differ, first "
            f"{name!r}: expected {own.get(name, 'none')}, found {saved.get(name, 'none')}. Use the "
            "model it was made with, another folder, or delete it to start anew"
        )
    trained = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    for name, moment in moments.items():
        number = int(name.split(".", 1)[0])
        # Counts of steps are scalars whatever the parameter's shape.
        if number >= len(trained) or (moment.ndim and tuple(moment.shape) != trained[number]):
            raise ValueError(
                f"checkpoint {checkpoint} was made with another optimizer or other frozen "
                f"parameters: its {name!r} of shape {tuple(moment.shape)} belongs to none of the "
                f"{len(trained)} that train now. Use the same ones, another folder, or delete it "
                "to start anew"
            )


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)
    _to_disk(path)


def _to_disk(path: Path) -> None:
    # The rename that follows must not reach the disk before the contents do.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _model_tensors(model) -> dict[str, torch.Tensor]:
    # Tied weights share memory, which safetensors refuses: each name gets its own copy.
    return {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}


def _optimizer_tensors(optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{key}": torch.as_tensor(value).detach().cpu().contiguous()
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
