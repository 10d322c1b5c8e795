"""The numbers and the pictures of the data lesson."""

from __future__ import annotations

import io
import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from tutorkit import text_data
from tutorkit.text_data import Batch, Piece
from tutorkit.text_figures import SAMPLES, PaddingWaste, TokenView, counted, explore_tokens
from tutorkit.tiny import build_tokenizer
from tutorkit.widgets import explore, redraw


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


@pytest.fixture(scope="module")
def bpe():
    return text_data.bpe_tokenizer()


@pytest.fixture(scope="module")
def wordpiece():
    return build_tokenizer()


# Tokens


def test_the_byte_alphabet_is_that_of_the_library():
    from tokenizers import pre_tokenizers

    alphabet = text_data.byte_alphabet()
    assert sorted(alphabet) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    assert (alphabet["A"], alphabet["Ġ"]) == (65, 32)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("é 影\n")
    shown = "".join(token for token, _ in split)
    assert bytes(alphabet[c] for c in shown) == "é 影\n".encode()


def test_nothing_is_unknown_to_bytes(bpe):
    for text in [*SAMPLES.values(), "\x00\t\n", "ﷺ 𓂀"]:
        ids = bpe(text)["input_ids"]
        assert bpe.decode(ids, clean_up_tokenization_spaces=False) == text
        assert {piece.kind for piece in text_data.pieces(bpe, text)} <= {"text", "bytes"}


def test_training_is_the_same_each_time(bpe):
    again = text_data.bpe_tokenizer()
    assert again.backend_tokenizer.to_str() == bpe.backend_tokenizer.to_str()
    assert bpe.pad_token == bpe.eos_token == text_data.END_OF_TEXT
    assert len(bpe) <= 4000


def test_the_first_merge_is_the_commonest_pair():
    trained = text_data.train_bpe(["aab aab ab"], 259)
    # Pairs in " aab", " aab" and " ab" without the first space: (a, b) three times, (a, a) twice.
    vocab = trained.get_vocab()
    assert max(vocab, key=vocab.get) in {"ab", "aab"}
    assert "ab" in vocab and len(vocab) == 259


def test_pieces_of_a_byte_level_tokenizer(bpe):
    assert text_data.pieces(bpe, "影")[0].shown == "E5"
    assert [p.shown for p in text_data.pieces(bpe, "影")] == "E5 BD B1".split()  # noqa: SIM905
    assert "".join(p.shown for p in text_data.pieces(bpe, "a slow end")) == "a␣slow␣end"
    end = text_data.pieces(bpe, f"a{text_data.END_OF_TEXT}")[-1]
    assert end == Piece(text_data.END_OF_TEXT, bpe.eos_token_id, "special")


def test_pieces_of_a_wordpiece_tokenizer(wordpiece):
    found = text_data.pieces(wordpiece, "A 影")
    assert [(p.shown, p.kind) for p in found] == [
        ("[CLS]", "special"), ("a", "text"), ("[UNK]", "unknown"), ("[SEP]", "special"),
    ]  # fmt: skip
    assert [p.id for p in found] == wordpiece("A 影")["input_ids"]


def test_a_tokenizer_that_is_not_byte_level_is_refused(wordpiece, tmp_path, monkeypatch):
    monkeypatch.setattr("tutorkit.weights.locate", lambda name: (str(tmp_path), "here"))
    wordpiece.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a byte-level BPE tokenizer, found 'mine'"):
        text_data.bpe_tokenizer("mine")


def test_a_saved_byte_level_tokenizer_is_read(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr("tutorkit.weights.locate", lambda name: (str(tmp_path), "here"))
    bpe.save_pretrained(tmp_path)
    again = text_data.bpe_tokenizer("mine")
    assert again("a slow end")["input_ids"] == bpe("a slow end")["input_ids"]
    assert again.pad_token == text_data.END_OF_TEXT


def test_counts_in_words():
    assert counted([Piece("a", 1, "text")]) == "1 token"
    mixed = [Piece("x", 1, kind) for kind in ("special", "bytes", "bytes", "unknown")]
    assert counted(mixed) == "4 tokens (1 special, 2 parts of a character, 1 unknown)"


def test_the_token_picture_has_a_box_for_each_token(bpe, wordpiece):
    view = TokenView({"one": wordpiece, "two": bpe}, "slow <b>end</b> 影 & more")
    html = view.figure._repr_html_()
    wanted = sum(len(each("slow <b>end</b> 影 & more")["input_ids"]) for each in (bpe, wordpiece))
    assert html.count("<code") == wanted
    assert "<b>end</b>" not in html and "&lt;b&gt;end" in html
    assert "0x" not in repr(view.figure)
    assert repr(view.figure).splitlines()[1].startswith("one: ")
    assert "E5 | BD | B1" in repr(view.figure)


def test_a_typed_script_stays_text(bpe):
    html = TokenView({"two": bpe}, "<script>alert(1)</script>").figure._repr_html_()
    assert "<script" not in html


def test_update_shows_another_text(bpe):
    view = TokenView({"two": bpe})
    assert view.values == {"text": SAMPLES["plain English"]}
    before = repr(view.figure)
    view.update(text="")
    assert view.figure.tokens == {"two": []}
    view.update(text=SAMPLES["rare words"])
    assert repr(view.figure) != before


def test_choosing_and_typing_move_the_picture(bpe):
    view = TokenView({"two": bpe})
    box = explore_tokens(view)
    assert repr(box) == "A list of texts and a line to type in: run this cell."
    choice, line, picture = box.children
    assert choice.value == "plain English"
    assert picture.value == view.figure._repr_html_()
    choice.value = "Chinese, praise"
    assert line.value == view.values["text"] == SAMPLES["Chinese, praise"]
    assert picture.value == view.figure._repr_html_()
    line.value = "my own words"
    assert choice.value == "your own"
    assert view.values["text"] == "my own words" and "␣own" in picture.value
    line.value = SAMPLES["spelling"]
    assert choice.value == "spelling"


# Padding

LENGTHS = np.array([3, 9, 4, 8, 2, 10, 5])  # 41 tokens


def test_fixed_padding_fills_every_row():
    batches = text_data.padded_batches(LENGTHS, 2, "fixed", 12)
    assert [batch.length for batch in batches] == [12] * 4
    assert sorted(np.concatenate([b.rows for b in batches])) == list(range(7))
    assert text_data.padding_cost(LENGTHS, batches).padded == 7 * 12


@pytest.mark.parametrize("padding", ["per batch", "bucketed"])
def test_a_batch_is_as_long_as_its_longest_row(padding):
    for batch in text_data.padded_batches(LENGTHS, 3, padding, 12, seed=4):
        assert batch.length == LENGTHS[batch.rows].max()
    for batch in text_data.padded_batches(LENGTHS, 3, padding, 10, step=4):
        assert batch.length in (4, 8, 10)
        assert batch.length >= LENGTHS[batch.rows].max()


def test_buckets_hold_rows_of_like_length():
    batches = text_data.padded_batches(LENGTHS, 2, "bucketed", 12)
    # Sorted: 2 3 | 4 5 | 8 9 | 10, so 2·3 + 2·5 + 2·9 + 10 places.
    assert text_data.padding_cost(LENGTHS, batches).padded == 44
    assert {tuple(sorted(LENGTHS[batch.rows])) for batch in batches} == {
        (2, 3), (4, 5), (8, 9), (10,),
    }  # fmt: skip


def test_a_batch_of_one_row_has_no_padding():
    for padding in ("per batch", "bucketed"):
        cost = text_data.padding_cost(LENGTHS, text_data.padded_batches(LENGTHS, 1, padding, 12))
        assert (cost.real, cost.padded, cost.ratio, cost.wasted) == (41, 41, 1, 0)


def test_rows_longer_than_max_length_are_refused():
    with pytest.raises(ValueError, match="at most max_length = 9, found 10: truncate first"):
        text_data.padded_batches(LENGTHS, 2, "fixed", 9)


def test_work_by_hand():
    # H = 2, I = 4: a token costs 4·4 + 2·2·4 = 32; T = 3: 96 and 2·9·2 = 36.
    assert text_data.multiply_adds(3, hidden=2, intermediate=4, layers=1) == 132
    assert text_data.multiply_adds(3, hidden=2, intermediate=4, layers=5) == 660
    cost = text_data.padding_cost(
        np.array([1, 3]), [Batch(np.array([0, 1]), 3)], hidden=2, intermediate=4, layers=1
    )
    # One token alone: 32 + 2·1·2 = 36.
    assert (cost.real, cost.padded, cost.real_work, cost.work) == (4, 6, 168, 264)
    assert cost.ratio == 1.5
    assert cost.wasted == pytest.approx(96 / 264)


def test_work_is_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=40, attn_implementation="eager")  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.ones(2, 7, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, attention_mask=ids)
    # A multiply-add is two operations.
    assert counter.get_total_flops() == 2 * 2 * text_data.multiply_adds(7, 16, 40, 3)


def test_the_picture_shows_every_place():
    batches = [Batch(np.array([1, 0]), 3), Batch(np.array([2]), 1)]
    picture = text_data.padding_picture(np.array([1, 3, 1]), batches, max_length=4)
    assert picture.tolist() == [[2, 2, 2, 0], [2, 1, 1, 0], [2, 0, 0, 0]]


def test_an_unknown_padding_is_refused():
    with pytest.raises(ValueError, match=r"padding: expected one of \('fixed', .*found 'longest'"):
        text_data.padded_batches(LENGTHS, 2, "longest", 12)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_padding_figure_draws_the_numbers():
    drawing = PaddingWaste(LENGTHS, 12, seed=1)
    choices = itertools.product(*(c.values for c in PaddingWaste.controls.values()))
    for batch_size, padding in choices:
        drawing.update(batch_size=batch_size, padding=padding)
        batches = text_data.padded_batches(LENGTHS, batch_size, padding, 12, seed=1)
        shown = np.asarray(drawing._picture.get_array())
        assert (shown == text_data.padding_picture(LENGTHS, batches, 12)).all()
        assert (shown == 2).sum() == 41
        ratio = float(re.search(r"([\d.]+) token places", drawing._title.get_text())[1])
        assert ratio == pytest.approx(text_data.padding_cost(LENGTHS, batches).ratio, abs=0.0051)


def test_a_moved_slider_is_a_fresh_drawing():
    def at(**values):
        fresh = PaddingWaste(LENGTHS, 12)
        fresh.update(**values)
        return fresh.png()

    moved = PaddingWaste(LENGTHS, 12)
    start = redraw(moved)
    other = redraw(moved, batch_size=1, padding="fixed")
    assert other != start and other == at(batch_size=1, padding="fixed")
    assert redraw(moved, batch_size=16, padding="per batch") == start


def test_the_static_padding_figure_is_the_same_picture():
    drawing = PaddingWaste(LENGTHS, 12)
    png = redraw(drawing)
    drawing.figure.canvas.draw()
    static = np.asarray(drawing.figure.canvas.buffer_rgba())[..., :3].astype(int)
    # Ticks that lie under the picture in one of the two may differ by a few pixels.
    assert (np.abs(static - pixels(png)).max(axis=2) > 40).mean() < 0.01


def test_the_padding_sliders_name_their_values():
    row, picture, _ = explore(PaddingWaste(LENGTHS, 12)).children
    batch_size, padding = row.children
    assert padding.options == tuple((name, name) for name in ("fixed", "per batch", "bucketed"))
    assert padding.value == "per batch"
    before = bytes(picture.value)
    padding.value = "fixed"
    assert bytes(picture.value) != before


# Near duplicates


def test_shingles_by_hand():
    assert text_data.shingles("A slow film, to LOVE!") == {
        ("a", "slow", "film"), ("slow", "film", "to"), ("film", "to", "love"),
    }  # fmt: skip
    assert text_data.shingles("Too slow.") == {("too", "slow")}
    assert text_data.shingles("a b a b", words=2) == {("a", "b"), ("b", "a")}


def test_jaccard_by_hand():
    assert text_data.jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    assert text_data.jaccard({1}, {2}) == 0
    assert text_data.jaccard(set(), set()) == 1


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_near_duplicates_are_those_of_all_pairs(block):
    words = np.array("a b c d e".split())  # noqa: SIM905
    generator = np.random.default_rng(3)
    texts = [" ".join(words[generator.integers(5, size=n)]) for n in generator.integers(2, 9, 30)]
    expected = {}
    for i, j in itertools.combinations(range(30), 2):
        similarity = text_data.jaccard(text_data.shingles(texts[i], 2),
                                       text_data.shingles(texts[j], 2))  # fmt: skip
        if similarity >= 0.3:
            expected[i, j] = similarity
    found = text_data.near_duplicates(texts, threshold=0.3, words=2, block=block)
    assert len(expected) > 5
    assert {(i, j): s for i, j, s in found} == pytest.approx(expected)
    assert [s for *_, s in found] == sorted((s for *_, s in found), reverse=True)


def test_near_duplicates_of_few_or_odd_texts():
    assert text_data.near_duplicates([]) == []
    assert text_data.near_duplicates(["one"]) == []
    assert text_data.near_duplicates(["Same text.", "same TEXT"]) == [(0, 1, 1.0)]
    with pytest.raises(ValueError, match="threshold: expected a number above 0 and at most 1"):
        text_data.near_duplicates(["a", "b"], threshold=0)


def test_edit_positions_by_hand():
    # Words 1 and 2 of five: (1 + 0.5) / 5 and (2 + 0.5) / 5.
    found = text_data.edit_positions("I left before the end.", "I stayed until the end.")
    assert found == [0.3, 0.5]
    assert text_data.edit_positions("not bad", "bad") == [0.25]
    assert text_data.edit_positions("bad", "not bad") == []
    assert text_data.edit_positions("same", "same") == []
