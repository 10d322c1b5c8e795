"""An adapter on disk: what trains as safetensors, and how the model was prepared as JSON.

A few hundred KB in place of the whole model; the same backbone is needed to use it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tutorkit.adapters import model_of, prepare
from tutorkit.models import LoadedModel

FILES = ("adapter.json", "adapter.safetensors")


def save_adapter(loaded: LoadedModel | torch.nn.Module, folder: str | Path) -> int:
    """Save what trains, and how the model was prepared; returns the bytes written.

    Both files are written beside first: a full disk leaves the adapter before it in place.

    Args:
        loaded: prepared by `prepare`.
        folder: where it goes; an earlier adapter there is replaced.

    Raises:
        ValueError: a model that was not prepared, or a folder with other files in it.
        OSError: it could not be written.
    """
    model = model_of(loaded)
    if not hasattr(model, "adaptation"):
        raise ValueError("expected a model prepared by tutorkit.adapters.prepare, found one that "
                         "was not: save all of it with models.save_model")
    target = Path(folder)
    others = [p.name for p in target.iterdir() if p.name not in FILES] if target.is_dir() else []
    if others:
        raise ValueError(f"folder: expected one of its own for the adapter, found {others[0]!r} in "
                         f"{target}: name a folder that is new or holds an adapter only")
    weights = save({n: t.detach().cpu().contiguous() for n, t in _adapter_tensors(model).items()})
    about = {**model.adaptation, "model": _architecture(model), "backbone": _backbone(model)}
    text = json.dumps({**about, "sha256": _digest(about, weights)}, indent=1)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"writing-{target.name}-", dir=target.parent) as at:
            beside = Path(at) / target.name
            beside.mkdir()
            (beside / FILES[0]).write_text(text, encoding="utf-8")
            (beside / FILES[1]).write_bytes(weights)
            if target.exists():
                os.replace(target, Path(at) / "before")
            os.replace(beside, target)
    except OSError as error:
        raise OSError(f"could not write the adapter to {target} ({error}): free some disk space, "
                      "or name a folder that you may write to, and save it again") from error
    return len(weights) + len(text.encode())


def load_adapter(loaded: LoadedModel | torch.nn.Module, folder: str | Path) -> list[str]:
    """Put a saved adapter onto the backbone it was trained on; returns what trains.

    All is checked first: where it raises, the model is as it was.

    Args:
        loaded: as loaded, or prepared with the same method and settings.
        folder: where `save_adapter` wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a damaged file, another architecture or backbone, or a model that was prepared
            in another way.
    """
    model = model_of(loaded)
    about, tensors = _read(Path(folder))
    how = {key: about[key] for key in ("method", "settings")}
    before = getattr(model, "adaptation", None)
    if before not in (None, how):
        raise ValueError(f"{folder} holds an adapter of another method: the model was prepared as "
                         f"{before}, the adapter as {how}: load it onto a fresh model")
    own = {"model": _architecture(model), "backbone": _backbone(model)}
    if about["model"] != own["model"]:
        raise ValueError(f"{folder} holds an adapter of another architecture: expected "
                         f"{own['model']}, found {about['model']}: load the model it was made for")
    if about["backbone"] is not None and about["backbone"] != own["backbone"]:
        raise ValueError(f"{folder} holds an adapter of another backbone: the word embeddings of "
                         "this model differ from those it was trained with: load the same "
                         "pretrained model")
    if before is None:
        prepare(model, how["method"], **how["settings"])
    into = _adapter_tensors(model)
    shapes = [{n: tuple(t.shape) for n, t in of.items()} for of in (into, tensors)]
    if shapes[0] != shapes[1]:  # other releases of peft or transformers may name weights otherwise
        differing = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise ValueError(f"{folder}: expected the weights that the method trains here, found "
                         f"others, first {differing[0]}: no weights were loaded; start again with "
                         "a fresh model and the library versions the adapter was made with")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(tensors[name])
    return [name for name, p in model.named_parameters() if p.requires_grad]


def _adapter_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """What trains, and which ranks AdaLoRA kept."""
    kept = {n: b for n, b in model.named_buffers() if n.endswith(".kept")}
    return {n: p for n, p in model.named_parameters() if p.requires_grad} | kept


def _architecture(model: torch.nn.Module) -> dict:
    config = model.config
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    return {**{key: getattr(config, key, None) for key in keys}, "num_labels": config.num_labels}


def _backbone(model: torch.nn.Module) -> str | None:
    """What tells a backbone from others of its shape: a hash of its embeddings, if frozen."""
    weight = model.get_input_embeddings().weight
    if getattr(model, "adaptation", {}).get("method") == "full":
        return None
    return hashlib.sha256(weight.detach().float().cpu().numpy().tobytes()).hexdigest()


def _digest(about: dict, weights: bytes) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode() + weights).hexdigest()


def _read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """A saved adapter's description and tensors, both checked against the hash."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"expected {' and '.join(FILES)} in {folder}, found no "
                                f"{missing[0]}: name a folder that save_adapter wrote")
    weights = (folder / FILES[1]).read_bytes()
    try:
        about = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        if about.pop("sha256") != _digest(about, weights):
            raise ValueError("the hash differs")
        return about, load(weights)
    except (ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise ValueError(f"the adapter in {folder} is damaged: expected two whole files that "
                         f"belong together, found {type(error).__name__}: {str(error)[:200]}: "
                         "save it again") from error
