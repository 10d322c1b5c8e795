"""The kept token ids: equal to the tokenizer's own, found by content, never in the way."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch

from tutorkit import data, tiny, token_cache
from tutorkit.data import SentimentDataset
from tutorkit.token_cache import content_key, token_ids

TEXTS = ["Good.", "A slow start, but what an ending!", "", "no no no " * 20, "Ünïcode 电影 \ud800"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache's folder of this test; sets of two texts are large enough for it."""
    monkeypatch.setenv("TUTORKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(token_cache, "CACHED_FROM", 2)
    return tmp_path / "tokens"


@pytest.fixture
def calls(monkeypatch):
    """How many texts were tokenized, call by call."""
    counted = []
    tokenize = token_cache._tokenize

    def counting(tokenizer, texts):
        counted.append(len(texts))
        return tokenize(tokenizer, texts)

    monkeypatch.setattr(token_cache, "_tokenize", counting)
    return counted


def rows(found: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    ids, offsets = found
    return [ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


@pytest.mark.parametrize("decoder", [False, True])
def test_first_and_second_time_give_the_tokenizers_own_ids(folder, calls, decoder):
    tokenizer = tiny.build_tokenizer(decoder)
    texts = [t.replace("\ud800", "") for t in TEXTS]
    own = tokenizer(texts, add_special_tokens=False)["input_ids"]
    first, second = token_ids(tokenizer, texts), token_ids(tokenizer, texts)
    assert rows(first) == rows(second) == own
    assert calls == [len(texts)]
    assert first[0].dtype == second[0].dtype == np.uint16
    assert [file.name for file in folder.iterdir()] == [f"{content_key(tokenizer, texts)}.npz"]


def test_texts_are_joined_in_order_over_several_calls_of_the_tokenizer(tokenizer, monkeypatch):
    own = tokenizer(TEXTS[:4], add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(token_cache, "TEXTS_AT_ONCE", 3)
    assert rows(token_ids(tokenizer, TEXTS[:4])) == own
    assert rows(token_ids(tokenizer, [])) == []


def test_a_large_vocabulary_gets_wider_numbers(folder):
    class Large:
        """One token, of an id that 16 bits can't hold; no backend, so it is not cached."""

        def get_vocab(self):
            return {"word": 2**16}

        def __call__(self, texts, **options):
            return {"input_ids": [[2**16] * len(text.split()) for text in texts]}

    found = token_ids(Large(), ["word word", "", "word"])
    assert rows(found) == [[2**16, 2**16], [], [2**16]]
    assert not folder.exists()


def test_the_key_is_the_content(tokenizer):
    key = content_key(tokenizer, TEXTS)
    assert key == content_key(tiny.build_tokenizer(), list(TEXTS))
    tokenizer(TEXTS[:1], truncation=True, max_length=4, padding=True)  # leaves settings behind
    assert key == content_key(tokenizer, TEXTS)
    changed = tiny.build_tokenizer()
    changed.add_tokens(["slow"])
    split = tiny.build_tokenizer()
    split.split_special_tokens = True  # "[SEP]" in a text is then text
    others = [
        content_key(tiny.build_tokenizer(decoder=True), TEXTS),
        content_key(changed, TEXTS),
        content_key(split, TEXTS),
        content_key(tokenizer, TEXTS[::-1]),
        content_key(tokenizer, TEXTS[:-1]),
        content_key(tokenizer, [TEXTS[0] + TEXTS[1], *TEXTS[2:]]),
        content_key(tokenizer, [TEXTS[0] + TEXTS[1][:1], TEXTS[1][1:], *TEXTS[2:]]),
    ]
    assert len({key, *others}) == 1 + len(others)


def test_small_sets_write_nothing(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTORKIT_CACHE", str(tmp_path / "cache"))
    token_ids(tokenizer, ["fine film"] * (token_cache.CACHED_FROM - 1))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other", "no array"])
def test_a_damaged_file_is_replaced(folder, calls, tokenizer, damage):
    texts = ["A slow start, but what an ending!"] * 50
    own = rows(token_ids(tokenizer, texts))
    path = folder / f"{content_key(tokenizer, texts)}.npz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1  # inside the ids
    if damage == "other":
        np.savez(path, ids=np.zeros(3, np.uint16), offsets=np.array([0, 1, 3]))
    elif damage == "no array":
        np.savez(path, offsets=np.array([0, 1, 3]))
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-30], "flipped": bytes(flipped),
                          "text": b"no archive"}[damage])  # fmt: skip
    assert rows(token_ids(tokenizer, texts)) == own
    assert rows(token_ids(tokenizer, texts)) == own
    assert calls == [50, 50]  # the third time the mended file served
    assert path.read_bytes()[:4] == whole[:4]
    assert len(list(folder.iterdir())) == 1


def test_a_full_disk_leaves_no_half_file(folder, calls, tokenizer, monkeypatch):
    def full(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    own = tokenizer(TEXTS[:2], add_special_tokens=False)["input_ids"]
    assert [rows(token_ids(tokenizer, TEXTS[:2])) for _ in range(2)] == [own, own]
    assert calls == [2, 2]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("place", ["cache", "tokens"])
def test_a_folder_that_cannot_be_made_is_no_error(folder, calls, tokenizer, place, monkeypatch):
    blocked = folder.parent / "file"
    blocked.write_text("a file where a folder should be")
    if place == "cache":
        monkeypatch.setenv("TUTORKIT_CACHE", str(blocked))
    else:
        folder.write_text("the same one level down")
    own = tokenizer(TEXTS[:2], add_special_tokens=False)["input_ids"]
    assert [rows(token_ids(tokenizer, TEXTS[:2])) for _ in range(2)] == [own, own]
    assert calls == [2, 2]


def test_the_folder_keeps_the_newest_files(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(token_cache, "FILES_KEPT", 3)
    folder.mkdir()
    (folder / "writing-of-a-killed-run.npz").write_bytes(b"half")
    os.utime(folder / "writing-of-a-killed-run.npz", (0, 0))
    pairs = [[word, "film"] for word in ("good", "bad", "long", "dull")]
    names = [f"{content_key(tokenizer, pair)}.npz" for pair in pairs]
    for age, pair in enumerate(pairs[:3]):
        token_ids(tokenizer, pair)
        os.utime(folder / names[age], (1000 + age, 1000 + age))
    assert {file.name for file in folder.iterdir()} == set(names[:3])
    token_ids(tokenizer, pairs[0])  # used again: no longer the oldest
    token_ids(tokenizer, pairs[3])
    assert {file.name for file in folder.iterdir()} == {names[0], names[2], names[3]}


@pytest.mark.parametrize("truncation", data.TRUNCATIONS)
def test_one_file_serves_every_length_and_truncation(folder, calls, tokenizer, truncation):
    texts = ["Good.", "A slow start, but what an ending!", "no no no " * 20]
    SentimentDataset(texts, [1, 1, 0], tokenizer)
    calls.clear()
    for max_length in (3, 8, 64):
        made = SentimentDataset(texts, [1, 1, 0], tokenizer, max_length, truncation)
        for row, bare in enumerate(tokenizer(texts, add_special_tokens=False)["input_ids"]):
            expected = [tokenizer.cls_token_id, *data.truncate(bare, max_length - 2, truncation),
                        tokenizer.sep_token_id]  # fmt: skip
            assert made[row]["input_ids"].tolist() == expected
            assert made[row]["input_ids"].dtype == torch.int64
            assert (made.lengths[row], made.full_lengths[row]) == (len(expected), len(bare) + 2)
    assert calls == []
