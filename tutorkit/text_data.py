"""The numbers behind the figures of the data lesson: tokens, padding, and near duplicates."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from tutorkit.data import training_batches

END_OF_TEXT = "<|endoftext|>"


class Piece(NamedTuple):
    """One token as it is shown."""

    shown: str  # the text, with ␣ for a space; hexadecimal for part of a character
    id: int
    kind: str  # "text", "bytes" (part of a character), "unknown" or "special"


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each of the 256 bytes in a byte-level vocabulary.

    Bytes with a printable character of their own keep it; the others take the next free ones from
    number 256 on, so that a space is Ġ. The assignment is GPT-2's (Radford et al. 2019), which all
    byte-level tokenizers have kept.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }


BYTES = byte_alphabet()


def bpe_tokenizer(name: str = "reviews", vocab_size: int = 4000) -> Any:
    """A byte-level BPE tokenizer: one trained here and offline, or that of a published model.

    Args:
        name: "reviews" trains on the built-in training reviews, in a fraction of a second.
            "smollm2", a hub id or a folder gives that model's; it may have to be downloaded.
        vocab_size: entries of the trained one at most, its 256 bytes included.

    Returns:
        A fast `transformers` tokenizer with a pad token.

    Raises:
        ValueError: a tokenizer that does not work on bytes, or an unknown name.
        ConnectionError: a download that can't be had.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if name == "reviews":
        from tutorkit.sources import load_splits

        trained = train_bpe(load_splits("reviews")["train"]["text"], vocab_size)
        return PreTrainedTokenizerFast(
            tokenizer_object=trained, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
        )
    from tutorkit.weights import locate, quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(locate(name)[0])
    if not is_byte_level(tokenizer):
        raise ValueError(
            f"bpe: expected a byte-level BPE tokenizer, found {name!r}, which is none: choose "
            "'reviews', 'smollm2' or a model of the GPT-2 kind"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_bpe(texts: Sequence[str], vocab_size: int) -> Any:
    """A `tokenizers.Tokenizer` whose merges are the commonest neighbours in these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes, also those that these texts lack: so that no text is ever unknown.
        initial_alphabet=sorted(BYTES),
        show_progress=False,
    )
    bpe.train_from_iterator(list(texts), trainer)
    return bpe


def is_byte_level(tokenizer: Any) -> bool:
    """Whether the tokens of a fast tokenizer are made of bytes."""
    from tokenizers import decoders

    return isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)


def pieces(tokenizer: Any, text: str) -> list[Piece]:
    """The tokens of a text, special ones included, as a reader should see them.

    Args:
        tokenizer: a fast `transformers` tokenizer.
        text: any text.

    Example:
        "你" of byte-level BPE without a merge for it: E4, BD, A0, each of kind "bytes".
    """
    byte_level = is_byte_level(tokenizer)
    ids = tokenizer(text, verbose=False)["input_ids"]
    return [
        _piece(tokenizer, i, token, byte_level)
        for i, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    ]


def _piece(tokenizer: Any, number: int, token: str, byte_level: bool) -> Piece:
    if number == tokenizer.unk_token_id and not byte_level:
        return Piece(token, number, "unknown")
    if number in tokenizer.all_special_ids:
        return Piece(token, number, "special")
    if not byte_level:
        return Piece(token, number, "text")
    raw = bytes(BYTES[character] for character in token)
    try:
        return Piece(raw.decode("utf-8").replace(" ", "␣"), number, "text")
    except UnicodeDecodeError:
        return Piece(raw.hex(" ").upper(), number, "bytes")


# How the rows of a batch come to one length: every row to max_length; to the longest row of its
# batch, rows in random order; the same, with rows of similar length in one batch.
PADDINGS = ("fixed", "per batch", "bucketed")


class Batch(NamedTuple):
    """Rows that are computed together."""

    rows: np.ndarray  # (B,) row numbers
    length: int  # token places of each row


class PaddingCost(NamedTuple):
    """What padding adds to the work of one pass over all rows."""

    real: int  # tokens
    padded: int  # token places, padding included
    real_work: int  # multiply-adds of the real tokens alone
    work: int  # multiply-adds of everything

    @property
    def ratio(self) -> float:
        """Token places for each real token; 1 is no padding."""
        return self.padded / self.real

    @property
    def wasted(self) -> float:
        """Share of all multiply-adds that padding costs."""
        return 1 - self.real_work / self.work


def padded_batches(
    lengths: np.ndarray,
    batch_size: int,
    padding: str,
    max_length: int,
    seed: int = 0,
    step: int = 1,
) -> list[Batch]:
    """The batches of one epoch and the length that each is padded to.

    Args:
        lengths: (N,) tokens of each row, none above `max_length`.
        batch_size: rows a batch; the last batch made may be short.
        padding: how their length is chosen, one of `PADDINGS`.
        max_length: the length of "fixed", and the most for the others.
        seed: of the order of the rows.
        step: lengths are rounded up to a multiple of it (`tutorkit.data` takes 32).

    Raises:
        ValueError: an unknown padding, or a row longer than `max_length`.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding: expected one of {PADDINGS}, found {padding!r}")
    if max(lengths) > max_length:
        raise ValueError(
            f"lengths: expected at most max_length = {max_length}, found {max(lengths)}: "
            "truncate first"
        )
    pool = 50 if padding == "bucketed" else 1
    batches = []
    for rows in training_batches(lengths, batch_size, seed, epoch=0, pool=pool):
        longest = int(lengths[rows].max())
        rounded = min(-(-longest // step) * step, max_length)
        batches.append(Batch(rows, max_length if padding == "fixed" else rounded))
    return batches


def multiply_adds(tokens: int, hidden: int, intermediate: int, layers: int) -> int:
    """Multiply-adds of a transformer encoder for one row of T tokens, heads left out.

    Each layer has four H × H matrices for queries, keys, values and output, and two of H × I in its
    feed-forward part, for each token; its attention multiplies T × T scores with H numbers twice:

        layers · (T (4 H² + 2 H I) + 2 T² H)

    Args:
        tokens: T, padding included: without a special kernel it is multiplied like the rest.
        hidden: H. intermediate: I. layers: number of layers.
    """
    matrices = tokens * (4 * hidden**2 + 2 * hidden * intermediate)
    attention = 2 * tokens**2 * hidden
    return layers * (matrices + attention)


def padding_cost(
    lengths: np.ndarray,
    batches: Sequence[Batch],
    hidden: int = 384,
    intermediate: int = 1536,
    layers: int = 6,
) -> PaddingCost:
    """What these batches cost, beside each row computed at its own length.

    Args:
        lengths: (N,) tokens of each row.
        batches: of `padded_batches`.
        hidden, intermediate, layers: the model's shape; the defaults are minilm's.
    """
    shape = (hidden, intermediate, layers)
    rows = np.concatenate([batch.rows for batch in batches])
    return PaddingCost(
        real=int(lengths[rows].sum()),
        padded=sum(len(batch.rows) * batch.length for batch in batches),
        real_work=sum(multiply_adds(int(n), *shape) for n in lengths[rows]),
        work=sum(len(batch.rows) * multiply_adds(batch.length, *shape) for batch in batches),
    )


def padding_picture(
    lengths: np.ndarray, batches: Sequence[Batch], max_length: int
) -> Int[np.ndarray, "rows max_length"]:
    """The token places of all rows in the order of their batches: 2 real, 1 padding, 0 nothing."""
    picture = np.zeros((sum(len(batch.rows) for batch in batches), max_length), dtype=np.int64)
    row = 0
    for batch in batches:
        for number in batch.rows:
            picture[row, : batch.length] = 1
            picture[row, : lengths[number]] = 2
            row += 1
    return picture


def shingles(text: str, words: int = 3) -> set[tuple[str, ...]]:
    """The runs of `words` neighbouring words of a text, in lower case and without punctuation.

    A shorter text is one run as it stands.
    """
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[i : i + words]) for i in range(max(1, len(found) - words + 1))}


def jaccard(first: set, second: set) -> float:
    """Shared elements as a share of all: |A ∩ B| / |A ∪ B|, and 1 for two empty sets."""
    either = first | second
    return len(first & second) / len(either) if either else 1.0


def near_duplicates(
    texts: Sequence[str], threshold: float = 0.3, words: int = 3, block: int = 1000
) -> list[tuple[int, int, float]]:
    """Pairs of texts that share many runs of words, the most similar first.

    The similarity is `jaccard` of the texts' `shingles`, for all pairs at once by a sparse product
    (Broder 1997, "On the resemblance and containment of documents").

    Args:
        texts: N texts.
        threshold: the least similarity of a pair, above 0.
        words: words a run.
        block: rows compared at a time; bounds the memory.

    Returns:
        (i, j, similarity) with i < j.

    Raises:
        ValueError: a threshold outside (0, 1].
    """
    from scipy.sparse import triu
    from sklearn.feature_extraction.text import CountVectorizer

    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a number above 0 and at most 1, found {threshold}")
    if len(texts) < 2:
        return []
    counter = CountVectorizer(analyzer=lambda text: shingles(text, words), dtype=np.int32)
    has = counter.fit_transform(texts)  # (N, runs), 0 and 1: sets hold each run once
    sizes = np.asarray(has.sum(axis=1)).ravel()
    found = []
    for start in range(0, len(texts), block):
        shared = triu(has[start : start + block] @ has.T, k=start + 1).tocoo()
        i, j = shared.row + start, shared.col
        similarity = shared.data / (sizes[i] + sizes[j] - shared.data)
        kept = similarity >= threshold
        found += zip(i[kept].tolist(), j[kept].tolist(), similarity[kept].tolist(), strict=True)
    return sorted(found, key=lambda pair: (-pair[2], pair[:2]))


def edit_positions(text: str, other: str) -> list[float]:
    """Where in `text` the words stand that `other` has not: 0 is its start, 1 its end.

    Word i of n stands at (i + 0.5) / n. A word that `other` has in addition is in no place of
    `text`, so of two texts that differ by one added word only the longer one has a position.
    """
    first, second = text.split(), other.split()
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return [
        (i + 0.5) / len(first)
        for operation, start, stop, _, _ in matcher.get_opcodes()
        if operation != "equal"
        for i in range(start, stop)
    ]
