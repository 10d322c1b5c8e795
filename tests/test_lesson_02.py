"""Lesson 02: what it builds by hand is the package's, and its exercises refuse what is wrong.

tests/test_checks.py holds every exercise's solution and listed mistakes; here are answers that are
listed nowhere.
"""

from __future__ import annotations

import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import jupytext
import numpy as np
import pytest
import torch
from lesson_scripts import cases

from tutorkit import data, sources, text_data
from tutorkit.checks import CheckFailed, lesson_02
from tutorkit.notebooks import NOTEBOOKS
from tutorkit.tiny import build_tokenizer

# The cells that build the data set, each known by what it defines.
DEFINED = ("def frame(", "def truncate(", "def collate(", "class SentimentDataset(", "def merged(",
           "def three_masks(")  # fmt: skip


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """The names that the lesson's own definitions make, from its script."""
    cells = [c.source for c in jupytext.read(NOTEBOOKS / "02_data.py").cells
             if c.cell_type == "code"]  # fmt: skip
    names: dict[str, Any] = {"torch": torch, "Counter": Counter, "itertools": itertools}
    for start in DEFINED:
        found = [source for source in cells if f"\n{start}" in f"\n{source}"]
        assert len(found) == 1, f"expected one cell with {start!r}, found {len(found)}"
        # Definitions alone: what else such a cell does needs the weights of minilm.
        source = "".join(_definitions(found[0]))
        exec(compile(source, f"02_data.py: {start}", "exec"), names)
    return names


def _definitions(source: str) -> list[str]:
    """The lines of a cell's functions and classes."""
    kept, inside = [], False
    for line in source.splitlines(keepends=True):
        if not line.startswith((" ", "\n")):
            inside = line.startswith(("def ", "class "))
        if inside:
            kept.append(line)
    return kept


@pytest.fixture(scope="module")
def reviews() -> tuple[list[str], list[int]]:
    splits = sources.load_splits("reviews")
    rows = [row for split in ("train", "validation", "test") for row in splits[split]]
    return [row["text"] for row in rows], [row["label"] for row in rows]


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    # Of the same kinds as minilm's and of ours: one with [CLS] and [SEP], one without a frame.
    return build_tokenizer() if request.param == "encoder" else text_data.bpe_tokenizer()


@pytest.mark.parametrize("truncation", data.TRUNCATIONS)
@pytest.mark.parametrize("max_length", [5, 50, 64, 400])
def test_the_hand_built_data_set_is_the_package_s(
    lesson, reviews, tokenizer, truncation, max_length
):
    texts, labels = reviews
    mine = lesson["SentimentDataset"](texts, labels, tokenizer, max_length, truncation)
    ours = data.SentimentDataset(texts, labels, tokenizer, max_length, truncation)
    assert len(mine) == len(ours) == len(texts)
    for i in range(0, len(ours), 7):
        assert mine[i].keys() == ours[i].keys()
        assert all(torch.equal(mine[i][name], ours[i][name]) for name in ours[i])
    for rows in np.array_split(np.arange(len(ours)), 9):
        by_hand, by_package = mine.collate([mine[i] for i in rows]), ours.batch(rows)
        assert by_hand.keys() == by_package.keys()
        for name in by_package:
            assert by_hand[name].dtype == by_package[name].dtype
            assert torch.equal(by_hand[name], by_package[name]), name


def test_the_hand_built_frame_and_truncation_are_the_package_s(lesson, tokenizer):
    assert lesson["frame"](tokenizer) == data.special_frame(tokenizer)
    for truncation in data.TRUNCATIONS:
        for length in range(1, 9):
            for room in range(1, 9):
                ids = list(range(length))
                expected = data.truncate(ids, room, truncation)
                assert lesson["truncate"](ids, room, truncation) == expected


def test_merges_by_hand(lesson):
    assert lesson["merged"](list("banana"), ("a", "n")) == ["b", "an", "an", "a"]
    assert lesson["merged"](["a", "a", "a"], ("a", "a")) == ["aa", "a"]
    # Counts: (a, b) 3, (b, c) 2; then (ab, c) 2.
    merges, spelled = lesson["learn_merges"]({"abc": 2, "ab": 1}, 2)
    assert merges == [("a", "b"), ("ab", "c")]
    assert spelled == {"abc": ["abc"], "ab": ["ab"]}


# Right answers in other styles.


def by_recursion(word, vocab):
    def rest(start):
        for stop in range(len(word), start, -1):
            piece = "##" * (start > 0) + word[start:stop]
            if piece in vocab:
                return [piece] if stop == len(word) else [piece, *rest(stop)]
        raise KeyError

    try:
        return rest(0)
    except KeyError:
        return ["[UNK]"]


def by_prefix(word, vocab):
    have, pieces, left = set(vocab), [], word
    while left:
        fits = [p for p in have if p and left.startswith(p)]
        if not fits or max(fits, key=len) == "##":
            return ["[UNK]"]
        best = max(fits, key=len)
        pieces.append(best)
        left = left[len(best) :] and "##" + left[len(best) :]
    return pieces


def by_negative_index(ids, room):
    if len(ids) > room:
        ids = torch.cat([ids[: room // 2], ids[room // 2 - room :]])
    return ids


def by_positions(ids, room):
    n, head = len(ids), room // 2
    return ids[[i for i in range(n) if n <= room or i < head or i >= n - room + head]]


def by_pad_sequence(rows, pad_id):
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, True, pad_id), pad([torch.ones_like(row) for row in rows], True)


def by_lists(rows, pad_id):
    width = max(map(len, rows))
    filled = [row.tolist() + [pad_id] * (width - len(row)) for row in rows]
    return torch.tensor(filled), torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    )


def by_numpy(lengths, batch_size):
    a = np.array(lengths)
    starts = range(0, len(a), batch_size)
    return 1 - a.sum() / sum(a[i : i + batch_size].max() * a[i : i + batch_size].size
                             for i in starts)  # fmt: skip


def by_split(lengths, batch_size):
    batches = torch.tensor(lengths).split(batch_size)
    return 1 - sum(lengths) / sum(batch.max().item() * len(batch) for batch in batches)


def by_rows(attention_mask, lengths):
    read = hidden = 0
    for row, n in zip(attention_mask.tolist(), lengths.tolist(), strict=True):
        read += sum(row[n:])
        hidden += n - sum(row[:n])
    return read, hidden


def by_difference(attention_mask, lengths):
    real = (torch.arange(attention_mask.size(1)) < lengths.unsqueeze(1)).long()
    off = attention_mask - real
    return int((off == 1).sum()), int((off == -1).sum())


def by_punctuation(train, test, right):
    bare = str.maketrans("", "", string.punctuation)
    seen = [text.casefold().translate(bare).split() for text in train]
    kept = [r for text, r in zip(test, right, strict=True)
            if text.casefold().translate(bare).split() not in seen]  # fmt: skip
    return len(test) - len(kept), sum(kept) / len(kept)


def by_array(train, test, right):
    def form(text):
        return tuple(re.sub(r"[^\w\s]", "", text.lower()).split())

    leaks = np.array([form(text) in set(map(form, train)) for text in test])
    return leaks.sum().item(), np.array(right)[~leaks].mean()


def by_trying_all(reported, rows, digits):
    return [any(round(k / n, digits) == reported for k in range(n + 1)) for n in rows]


def by_writing(reported, rows, digits):
    wanted = f"{reported:.{digits}f}"
    return [wanted in {f"{k / n:.{digits}f}" for k in range(n + 1)} for n in rows]


def by_interval(reported, rows, digits):
    half = 0.5 / 10**digits
    return [math.floor((reported + half) * n) >= math.ceil((reported - half) * n) for n in rows]


@pytest.mark.parametrize(("name", "answer"), [
    ("wordpiece", by_recursion),
    ("wordpiece", by_prefix),
    ("head_tail", by_negative_index),
    ("head_tail", by_positions),
    ("pad_batch", by_pad_sequence),
    ("pad_batch", by_lists),
    ("padding_share", by_numpy),
    ("padding_share", by_split),
    ("audit_mask", by_rows),
    ("audit_mask", by_difference),
    ("clean_score", by_punctuation),
    ("clean_score", by_array),
    ("possible_splits", by_trying_all),
    ("possible_splits", by_writing),
    ("possible_splits", by_interval),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name: str, answer: Callable, capsys) -> None:
    getattr(lesson_02, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


# Wrong answers that are listed nowhere.


def splittings(word, vocab, start=0):
    """All ways of cutting a word into pieces, the longest first piece first."""
    if start == len(word):
        yield []
    for stop in range(len(word), start, -1):
        piece = "##" * (start > 0) + word[start:stop]
        if piece in vocab:
            yield from ([piece, *rest] for rest in splittings(word, vocab, stop))


def backtracking(word, vocab):
    return next(splittings(word, vocab), ["[UNK]"])


def fewest_pieces(word, vocab):
    return min(splittings(word, vocab), key=len, default=["[UNK]"])


def longest_from_the_end(word, vocab):
    pieces, stop = [], len(word)
    while stop > 0:
        for start in range(stop):
            piece = "##" * (start > 0) + word[start:stop]
            if piece in vocab:
                break
        else:
            return ["[UNK]"]
        pieces.insert(0, piece)
        stop = start
    return pieces


def a_quarter_head(ids, room):
    return ids if len(ids) <= room else torch.cat([ids[: room // 4], ids[room // 4 - room :]])


def as_bool(rows, pad_id):
    ids, mask = by_lists(rows, pad_id)
    return ids, mask.bool()


def sorted_first(lengths, batch_size):
    return by_split(sorted(lengths), batch_size)


def sorted_in_place(lengths, batch_size):
    lengths.sort()
    return by_split(lengths, batch_size)


def as_tensors(attention_mask, lengths):
    return tuple(map(torch.tensor, by_rows(attention_mask, lengths)))


def as_numpy(attention_mask, lengths):
    return tuple(map(np.int64, by_rows(attention_mask, lengths)))


def leaks_by(form):
    def clean_score(train, test, right):
        seen = set(map(form, train))
        kept = [r for text, r in zip(test, right, strict=True) if form(text) not in seen]
        return len(test) - len(kept), sum(kept) / len(kept)

    return clean_score


first_letters = leaks_by(lambda text: text.lower()[:8])
bag_of_words = leaks_by(lambda text: frozenset(re.findall(r"\w+", text.lower())))


def training_rows_that_leak(train, test, right):
    def form(text):
        return " ".join(re.findall(r"\w+", text.lower()))

    _, score = by_punctuation(train, test, right)
    return sum(form(text) in set(map(form, test)) for text in train), score


def the_nearest_alone(reported, rows, digits):
    off = [abs(round(reported * n) / n - reported) for n in rows]
    return [each == min(off) for each in off]


def cut_off(reported, rows, digits):
    cut = [{int(k / n * 10**digits) for k in range(n + 1)} for n in rows]
    return [round(reported * 10**digits) in each for each in cut]


def as_numpy_bools(reported, rows, digits):
    return list(map(np.bool_, by_trying_all(reported, rows, digits)))


ITEM = r"Make it a Python number: `\.item\(\)`\."


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("wordpiece", backtracking, r"expected a list of 1 \('\[UNK\]'"),
    ("wordpiece", fewest_pieces, "expected a list of 3"),
    ("wordpiece", longest_from_the_end, "expected a list of"),
    ("head_tail", a_quarter_head, "The largest difference is"),
    ("pad_batch", as_bool, r"expected dtype torch.int64, found torch.bool. `.long\(\)` makes"),
    ("padding_share", sorted_first, r"lengths = a list of 7, \[6, 13, 74, 80, 64, 62, 18\], batch"),
    ("padding_share", sorted_in_place, r"Of a list: `sorted\(x\)`, not `x.sort\(\)`"),
    ("audit_mask", as_tensors, rf"found a tensor of shape \(\)\. {ITEM}"),
    ("audit_mask", as_numpy, rf"found an int64 of shape \(\)\. {ITEM}"),
    ("clean_score", first_letters, "The largest difference is"),
    ("clean_score", bag_of_words, r"at answer\[0\]: expected 4, found 5"),
    ("clean_score", training_rows_that_leak, r"at answer\[0\]: expected 4, found 5"),
    ("clean_score", leaks_by(lambda text: text.lower().rstrip(".!?")), "a comma more, or ! for ."),
    ("possible_splits", the_nearest_alone, "expected True, found False"),
    ("possible_splits", cut_off, "wrong on . of 6"),
    ("possible_splits", as_numpy_bools, ITEM),
])  # fmt: skip
def test_a_wrong_answer_that_is_listed_nowhere_is_refused(
    name: str, answer: Callable, message: str
) -> None:
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_02, name).check(answer)


def test_the_inputs_hold_what_answers_trip_over() -> None:
    for other in (backtracking, fewest_pieces, longest_from_the_end):
        words = cases(lesson_02.wordpiece)
        assert any(other(*case) != lesson_02.wordpiece.solution(*case) for case in words)
    for reported, rows, digits in cases(lesson_02.possible_splits):
        possible = lesson_02.possible_splits.solution(reported, rows, digits)
        assert sorted(possible) == [False, False, True, True]
        for n in rows:  # no tie, which two ways of rounding would settle differently
            off = abs(round(reported * n) / n - reported) * 10**digits
            assert abs(off - 0.5) > 0.01
    sizes = [(len(ids), room) for ids, room in cases(lesson_02.head_tail)]
    assert any(n < room for n, room in sizes) and any(n > room for n, room in sizes)


def test_the_exercises_hold_the_data_of_the_sections(lesson) -> None:
    cells = [c for c in jupytext.read(NOTEBOOKS / "02_data.py").cells if c.cell_type == "code"]
    setup = next(c for c in cells if "exercise-setup" in c.metadata.get("tags", []))
    given: dict[str, Any] = {}
    exec(setup.source, given)
    masks = lesson["three_masks"](given["row_lengths"].tolist(), 7, 6)
    assert given["read_by"].keys() == masks.keys()
    assert all(torch.equal(given["read_by"][name], masks[name]) for name in masks)
    section = next(c.source for c in cells if c.source.startswith("claimed = "))
    table: dict[str, Any] = {}
    exec(section.rsplit("\n", 1)[0], table)
    assert (given["claimed"], given["claimed_rows"]) == (table["claimed"], table["claimed_rows"])
