"""Token ids of many texts, made once: kept on disk under a name made from what they depend on.

`$TUTORKIT_CACHE/tokens/<SHA-256 of tokenizer and texts>.npz` holds two arrays: the ids of all texts
one after another, and where each text begins. They are kept without special tokens and before
truncation, so every `max_length` and every truncation starts from the same file. The cache only
ever saves time: where it can't be read or written, the texts are tokenized as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import tokenizers

from tutorkit import downloads

# Smaller sets take about a second to tokenize. Left alone, lessons and tests write nothing and
# depend on nothing that an earlier run left behind.
CACHED_FROM = 5_000
# 25,000 reviews make a file of 15 MB.
FILES_KEPT = 20
# The tokenizer's own result takes 150 bytes a token until its ids are copied out of it.
TEXTS_AT_ONCE = 1_000


def token_ids(tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of each text, without special tokens and not truncated.

    From `CACHED_FROM` texts on they come from the cache folder if they are there, and are kept
    there if not.

    Args:
        tokenizer: a `transformers` tokenizer; one without a backend of the tokenizers library
            (a slow one) is never cached.
        texts: N texts.

    Returns:
        ids: (T,) of all texts, one after another; uint16 where the vocabulary allows, else uint32.
        offsets: (N + 1,) int64; text n has `ids[offsets[n]:offsets[n + 1]]`.
    """
    if len(texts) < CACHED_FROM or not hasattr(tokenizer, "backend_tokenizer"):
        return _tokenize(tokenizer, texts)
    try:
        folder = downloads.cache_dir() / "tokens"
    except OSError:
        return _tokenize(tokenizer, texts)
    path = folder / f"{content_key(tokenizer, texts)}.npz"
    found = _load(path, len(texts))
    if found is None:
        found = _tokenize(tokenizer, texts)
        _save(path, *found)
    return found


def content_key(tokenizer, texts: Sequence[str]) -> str:
    """SHA-256, in hexadecimal, over all that decides the ids of these texts."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # What an earlier call asked for stays set here; it does not touch the ids that are kept.
    del backend["truncation"], backend["padding"]
    rules = [tokenizers.__version__, type(tokenizer).__name__, tokenizer.split_special_tokens]
    digest = hashlib.sha256(json.dumps([*rules, backend], sort_keys=True).encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)  # ["ab", "c"] is not ["a", "bc"]
    return digest.hexdigest()


def _tokenize(tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    largest = max(tokenizer.get_vocab().values())
    dtype = np.uint16 if largest < 2**16 else np.uint32
    parts, lengths = [np.empty(0, dtype)], []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        # `verbose=False`: texts above the model's length are no surprise to who truncates later.
        rows = tokenizer(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False,
                         return_attention_mask=False, verbose=False)["input_ids"]  # fmt: skip
        lengths += [len(row) for row in rows]
        parts += [np.array(row, dtype) for row in rows]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return np.concatenate(parts), offsets


def _load(path: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What `_save` kept, or None where there is nothing whole: no file, or a damaged one."""
    try:
        # Each array's checksum is compared. Given a path, numpy leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
            ids, offsets = saved["ids"], saved["offsets"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if len(offsets) != count + 1 or offsets[-1] != len(ids):
        return None
    with suppress(OSError):
        os.utime(path)  # in use: among the newest again
    return ids, offsets


def _save(path: Path, ids: np.ndarray, offsets: np.ndarray) -> None:
    """Write beside and rename, then keep only the newest files; a full disk is no error."""
    beside = path.with_name(f"writing-{uuid.uuid4().hex}.npz")  # several processes may do this
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(beside, ids=ids, offsets=offsets)
        os.replace(beside, path)
        # Also what a killed process left half-written: it ends on .npz too.
        newest_first = sorted(path.parent.glob("*.npz"), key=os.path.getmtime, reverse=True)
        for old in newest_first[FILES_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
