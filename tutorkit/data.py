"""Texts to batches: check the rows, tokenize once, truncate, pad per batch, batch by length.

One review on its way through this file, with `minilm`'s tokenizer and `max_length=8`:

    text            "A slow start, but what an ending!"
    tokens          a slow start , but what an ending !            (9 tokens)
    head+tail       a slow start | an ending !                     (8 - 2 special ones = 6 kept)
    with specials   [CLS] a slow start an ending ! [SEP]           (8 tokens)
    input_ids       101 1037 4030 2707 2019 4566 999 102           (their numbers, 8 ids)
    attention_mask  1 1 1 1 1 1 1 1                                (0 where a batch adds padding)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from tutorkit.token_cache import token_ids

TRUNCATIONS = ("head", "tail", "head+tail")

# Padded lengths are rounded up to a multiple of this. Few distinct shapes keep the memory of a CPU
# process flat: with a new shape in every batch, the allocator keeps freed blocks of all of them.
LENGTH_STEP = 32


def check_rows(texts: Collection, labels: Collection, num_labels: int) -> None:
    """Refuse rows that would train or score nonsense.

    Args:
        texts: one text a row.
        labels: one whole number in `0 … num_labels - 1` a row.
        num_labels: number of classes.

    Raises:
        TypeError: a text is not a string.
        ValueError: no rows, unequal numbers of texts and labels, an empty text, or a label that is
            missing, fractional or out of range.
    """
    if len(texts) != len(labels):
        raise ValueError(
            f"expected one label for each text, found {len(texts)} texts and {len(labels)} labels"
        )
    if len(texts) == 0:
        raise ValueError("expected at least one row, found none: check the split and its size")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"row {row}: expected a text (str), found {type(text).__name__} ({text!r:.40}): "
                "drop the row or convert it before building the data set"
            )
        if not text.strip():
            raise ValueError(
                f"row {row}: expected a text, found an empty one ({text!r:.20}): drop such rows"
            )
    for row, label in enumerate(labels):
        number = _whole_number(label)
        if number is None:
            raise ValueError(
                f"row {row}: expected a whole number as label, found {label!r}: drop rows without "
                "a label, and map label names to 0, 1, … first"
            )
        if not 0 <= number < num_labels:
            raise ValueError(
                f"row {row}: expected a label in 0…{num_labels - 1}, found {label!r}: "
                f"set num_labels or mend the row"
            )


def _whole_number(label) -> int | None:
    """The label as an int, or None where it is something else: a text, None, NaN, 0.5, [1]."""
    if isinstance(label, (str, bytes)):
        return None
    try:
        number = float(label)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def check_classes(labels: Collection) -> None:
    """Refuse training labels of a single class: there is nothing to tell apart.

    Raises:
        ValueError: fewer than two distinct labels.
    """
    found = sorted({int(label) for label in labels})
    if len(found) < 2:
        raise ValueError(
            f"expected training rows of at least two classes, found only label {found}: "
            "take more rows, or shuffle before cutting (sorted files hold one class first)"
        )


def take_rows(split, size: int | None, seed: int, name: str = "split"):
    """At most `size` rows of a split, drawn with the seed; all of them where `size` is None.

    Args:
        split: a `datasets.Dataset`.
        size: upper bound on the rows; a smaller split is taken whole.
        seed: which rows are drawn.
        name: what the error message calls the split.

    Raises:
        ValueError: size below 2, or a split with fewer than 2 rows.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 2):
        raise ValueError(f"{name}_size: expected a whole number from 2, or None for all rows, "
                         f"found {size!r}")
    if len(split) < 2:
        raise ValueError(f"{name}: expected at least 2 rows, found {len(split)}: "
                         "this data set is too small for three splits")
    if size is None or size >= len(split):
        return split
    return split.select(np.random.default_rng(seed).permutation(len(split))[:size])


def truncate(ids: list[int], room: int, truncation: str) -> list[int]:
    """Keep `room` ids: the first ones, the last ones, or half from each end.

    Reviews often give their verdict at the end, so `head+tail` keeps it where `head` loses it.
    Sun et al. 2019 ("How to Fine-Tune BERT for Text Classification?", section 5.3.1) keep the
    first 128 tokens and the last 382; here it is half and half, of an odd `room` one more at the
    end.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation: expected one of {TRUNCATIONS}, found {truncation!r}")
    if len(ids) <= room:
        return ids
    if truncation == "head":
        return ids[:room]
    if truncation == "tail":
        return ids[len(ids) - room :]
    head = room // 2
    return ids[:head] + ids[len(ids) - (room - head) :]


def special_frame(tokenizer) -> tuple[list[int], list[int]]:
    """The special ids a tokenizer puts before and after a text, such as ([CLS], [SEP])."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


class SentimentDataset(torch.utils.data.Dataset):
    """Labelled texts as token ids: tokenized once, padded only when a batch is made.

    Args:
        texts: N texts, none of them empty.
        labels: N whole numbers in `0 … num_labels - 1`.
        tokenizer: a fast `transformers` tokenizer with a pad token.
        max_length: most token ids a row may have, special tokens included.
        truncation: which end of a longer text is kept: "head", "tail" or "head+tail".
        num_labels: number of classes.

    Attributes:
        lengths: (N,) token ids a row, after truncation.
        full_lengths: (N,) token ids a row would have without truncation.
        labels: (N,) the labels.

    Raises:
        TypeError, ValueError: see `check_rows`; also a `max_length` that leaves no room for a
            token, an unknown `truncation`, or a tokenizer without a pad token.
    """

    def __init__(
        self,
        texts: Collection,
        labels: Collection,
        tokenizer,
        max_length: int = 128,
        truncation: str = "head+tail",
        num_labels: int = 2,
    ):
        texts, labels = list(texts), list(labels)
        check_rows(texts, labels, num_labels)
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "expected a tokenizer with a pad token, found none: load it with "
                "tutorkit.models.load_model, or set tokenizer.pad_token = tokenizer.eos_token"
            )
        before, after = special_frame(tokenizer)
        room = max_length - len(before) - len(after)
        if room < 1:
            raise ValueError(
                f"max_length: expected at least {len(before) + len(after) + 1} (special tokens "
                f"and one more), found {max_length}"
            )
        ids, offsets = token_ids(tokenizer, texts)
        frame = len(before) + len(after)
        self.full_lengths = np.diff(offsets) + frame
        self.lengths = np.minimum(self.full_lengths, max_length)
        # All rows one after another in one array: a list of Python's ints takes 20 times as much.
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self._ids = np.empty(self._offsets[-1], ids.dtype)
        for row in range(len(texts)):
            kept = truncate(ids[offsets[row] : offsets[row + 1]].tolist(), room, truncation)
            self._ids[self._offsets[row] : self._offsets[row + 1]] = before + kept + after
        self.labels = np.asarray(labels, dtype=np.int64)
        self.pad_token_id = tokenizer.pad_token_id
        self.max_length = max_length
        self.num_labels = num_labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int | np.integer) -> dict[str, Tensor]:
        row = range(len(self))[row]  # negative numbers count from the end, others past it raise
        kept = self._ids[self._offsets[row] : self._offsets[row + 1]]
        ids = torch.from_numpy(kept.astype(np.int64))
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.tensor(int(self.labels[row])),
        }

    def padded_length(self, longest: int) -> int:
        """The length to which a batch is padded whose longest row has `longest` token ids."""
        return max(longest, min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.max_length))

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack items into one batch, padded on the right to a common length L.

        Returns:
            input_ids (B, L), attention_mask (B, L), labels (B,). L is the longest row rounded up
            to a multiple of `LENGTH_STEP`, but never above `max_length`.

        Raises:
            ValueError: no items.
        """
        if len(items) == 0:
            raise ValueError("expected at least one row in a batch, found none")
        longest = max(len(item["input_ids"]) for item in items)
        length = self.padded_length(longest)
        input_ids = torch.full((len(items), length), self.pad_token_id)  # (B, L)
        attention_mask = torch.zeros_like(input_ids)  # (B, L)
        for i, item in enumerate(items):
            n = len(item["input_ids"])
            input_ids[i, :n] = item["input_ids"]
            attention_mask[i, :n] = 1
        labels = torch.stack([item["labels"] for item in items])  # (B,)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """The rows with these numbers as one padded batch: see `collate`."""
        return self.collate([self[int(row)] for row in rows])


def training_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, pool: int = 50
) -> list[np.ndarray]:
    """Row numbers of each batch of one epoch: random, yet of similar length within a batch.

    The rows are shuffled, cut into pools of `pool` batches, sorted by length within a pool, cut
    into batches, and the batches shuffled. Every row appears once; the last batch made may be
    short. The order depends on (seed, epoch) alone, so that a resumed run meets the same batches.

    Args:
        lengths: (N,) token ids a row.
        batch_size: rows a batch.
        seed: the run's seed.
        epoch: number of the epoch, from 0.
        pool: batches a pool; 1 is plain shuffling, larger wastes less work on padding.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), pool * batch_size):
        rows = order[start : start + pool * batch_size]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row numbers of each batch, sorted by length, longest first (so memory peaks at once)."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
