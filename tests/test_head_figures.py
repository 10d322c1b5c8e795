"""The figures of the lesson on heads draw the numbers that the plain functions give."""

from __future__ import annotations

import io
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from tutorkit import head_figures as figures
from tutorkit.heads import pool, pooling_weights
from tutorkit.models import load_model
from tutorkit.widgets import explore, redraw

TEXTS = ["A wonderful film!", "I loved it.", "A dull film, and the plot makes no sense."]


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny")


@pytest.fixture(scope="module")
def sentences(loaded):
    return figures.encode_sentences(loaded, TEXTS, padding=4)


@pytest.fixture
def drawing(sentences):
    return figures.Pooling(sentences)


def unpadded(loaded, text):
    batch = loaded.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return loaded.model.base_model(batch["input_ids"]).last_hidden_state  # (1, n, H)


def test_sentences_are_a_padded_batch(loaded, sentences):
    lengths = [len(ids) for ids in loaded.tokenizer(TEXTS)["input_ids"]]
    assert sentences.longest == max(lengths)
    assert sentences.attention_mask.shape == (3, max(lengths) + 4)
    assert sentences.attention_mask.sum(dim=1).tolist() == lengths
    for row, (text, n) in enumerate(zip(TEXTS, lengths, strict=True)):
        torch.testing.assert_close(sentences.hidden[row, :n], unpadded(loaded, text)[0])
        assert sentences.tokens[row][0] == "[CLS]" and set(sentences.tokens[row][n:]) == {"[PAD]"}


def test_a_shorter_batch_is_the_longer_one_cut_off(loaded, sentences):
    shorter = figures.encode_sentences(loaded, TEXTS, padding=1)
    cut = sentences.hidden[:, : shorter.hidden.shape[1]]
    torch.testing.assert_close(shorter.hidden, cut)


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize(("how", "masked"), [("mean", True), ("mean", False), ("last", False)])
def test_cosines_are_those_of_the_pooled_vectors(sentences, how, masked, padding):
    length = sentences.longest + padding
    hidden, mask = sentences.hidden[:, :length], sentences.attention_mask[:, :length]
    pooled = pool(hidden, mask if masked else torch.ones_like(mask), how)
    found = figures.pooled_cosines(sentences, how, masked, padding)
    for a, b in itertools.product(range(3), range(3)):
        expected = torch.dot(pooled[a], pooled[b]) / pooled[a].norm() / pooled[b].norm()
        torch.testing.assert_close(found[a, b], expected)
    other = figures.pooled_cosines(sentences, how, masked, 4 - padding)
    assert torch.allclose(found, other, atol=1e-5) == masked


def test_padding_turns_the_unmasked_vectors_only(loaded):
    alone = figures.encode_sentences(loaded, TEXTS[:1], padding=6)
    drift = figures.padding_drift(alone, 0, [0, 3, 6])
    assert list(drift) == [name for name, _, _ in figures.CHOICES]
    for name, _, masked in figures.CHOICES:
        assert drift[name][0] == pytest.approx(1)
        assert drift[name][2] == (pytest.approx(1, abs=1e-6) if masked else pytest.approx(0, abs=1))
        assert (min(drift[name]) > 1 - 1e-5) == masked
    real = int(alone.attention_mask.sum())
    vectors = [alone.hidden[:, : real + n].mean(dim=1) for n in (0, 3)]
    assert drift["mean, no mask"][1] == pytest.approx(torch.cosine_similarity(*vectors).item())


def test_drift_is_drawn(loaded):
    alone = figures.encode_sentences(loaded, TEXTS[:1], padding=6)
    drift = figures.padding_drift(alone, 0, [0, 3, 6])
    (axes,) = figures.drift_figure(drift, [0, 3, 6]).axes
    found = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert found == drift
    looks = [(s["linestyle"], s.get("marker"), s.get("linewidth")) for s in figures.STYLES.values()]
    assert len(set(looks)) == len(looks)  # told apart without colour


def test_sizes_by_token_by_hand():
    tensor = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]])
    assert figures.sizes_by_token(tensor).tolist() == [[0.5, 0.0, 1.0]]
    assert figures.sizes_by_token(tensor * 0).tolist() == [[0.0, 0.0, 0.0]]


def test_strips_draw_numbers_and_cross_padding():
    numbers, mask = torch.rand(2, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    figure = figures.strips({"one": (numbers, mask), "two": (numbers[:1], mask[:1])}, "title")
    first, second = figure.axes
    np.testing.assert_array_equal(first.images[0].get_array(), numbers)
    assert first.lines[0].get_xydata().tolist() == [[2, 1], [3, 1], [4, 1]]
    assert len(second.lines[0].get_xdata()) == 0
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two"]


def test_reach_of_an_encoder_and_of_a_decoder(loaded):
    ids = torch.arange(30, 36)
    assert figures.reach(loaded.model.base_model, ids, 99).all()
    decoder = load_model("tiny-decoder").model.base_model
    reached = figures.reach(decoder, ids, 99)
    assert torch.equal(reached, torch.ones(6, 6).triu().bool())
    (axes,) = figures.reach_figure({"decoder": (list("abcdef"), reached)}).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), reached)
    with pytest.raises(ValueError, match="an id that the text does not have, found 31"):
        figures.reach(decoder, ids, 31)


def test_a_choice_is_a_number_that_reads_as_a_word():
    choice = figures.Choice(2, "mean")
    assert (choice, f"{choice}", "{:g}".format(choice)) == (2, "mean", "mean")  # noqa: UP032
    assert choice in (1, 2)


def test_the_controls_offer_words(drawing):
    row, *_ = explore(drawing).children
    offered = {slider.description: [word for word, _ in slider.options] for slider in row.children}
    assert offered["sentence"] == ["A", "B", "C"]
    assert offered["pooling"] == [name for name, _, _ in figures.CHOICES]
    assert offered["extra padding"] == ["0", "1", "2", "3", "4"]
    with pytest.raises(ValueError, match="pooling: expected one of CLS, mean, .+, found 9"):
        drawing.update(pooling=9)


@pytest.mark.parametrize("number", range(len(figures.CHOICES)))
def test_bars_are_weights_and_cosines(drawing, sentences, number):
    name, how, masked = figures.CHOICES[number]
    drawing.update(sentence=1, pooling=number, padding=2)
    left, right = drawing.figure.axes
    length = sentences.longest + 2
    mask = sentences.attention_mask[:, :length]
    weights = pooling_weights(mask if masked else torch.ones_like(mask), how)[1]
    most = weights.max().item()  # the axis follows it
    heights = [bar.get_height() * most for bar in left.containers[0]]
    assert heights == pytest.approx([*weights.tolist(), 0, 0])
    words = [text.get_text() for text in left.texts if text not in drawing._scale]
    assert words == [*sentences.tokens[1][:length], "", ""]
    scale = [text.get_text() for text in drawing._scale]
    assert scale == ["0", f"{most / 2:.3f}", f"{most:.3f}"]
    assert [text.get_position()[1] for text in drawing._scale] == list(left.get_yticks())
    on_padding = weights[mask[1] == 0].sum().item()
    assert left.get_title(loc="left") == f"Sentence B, {name}: {on_padding:.0%} on padding"
    assert (on_padding > 0) != masked
    hatched = [bar.get_hatch() is not None for bar in left.containers[0]]
    assert hatched == [token == "[PAD]" for token in sentences.tokens[1]]
    cosines = figures.pooled_cosines(sentences, how, masked, 2)[1]
    assert [bar.get_width() for bar in right.containers[0]] == pytest.approx(cosines.tolist())


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_static_figure_is_the_first_picture(drawing):
    file = io.BytesIO()
    drawing.figure.savefig(file, dpi=drawing.figure.dpi)
    np.testing.assert_array_equal(pixels(file.getvalue()), pixels(redraw(drawing)))


def test_every_control_moves_the_picture_and_back(drawing, sentences):
    first = redraw(drawing)
    # Only without a mask does more padding show in the weights; with one it shows as new tokens.
    for name, value in {"sentence": 2, "pooling": 4, "padding": 0}.items():
        moved = redraw(drawing, **{name: value})
        assert moved != first
        assert moved == redraw(figures.Pooling(sentences), **{name: value})
        assert redraw(drawing, **{name: drawing.controls[name].default}) == first


def test_no_words_overlap_or_leave_the_figure(drawing):
    for sentence, pooling, padding in itertools.product((0, 2), (1, 4), (0, 4)):
        redraw(drawing, sentence=sentence, pooling=pooling, padding=padding)
        texts = [text for axes in drawing.figure.axes for text in (axes._left_title, *axes.texts)]
        texts += [axes.xaxis.label for axes in drawing.figure.axes]
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text()]
        assert len(boxes) > 8
        for word, box in boxes:
            assert box.x0 >= 0 and box.x1 <= drawing.figure.bbox.width, word
            assert box.y0 >= 0 and box.y1 <= drawing.figure.bbox.height, word
        for (word, box), (other, second) in itertools.combinations(boxes, 2):
            assert not box.overlaps(second), (word, other)
