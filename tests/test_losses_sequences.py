"""Losses over tokens: by hand, position by position, torch, transformers' own losses and models."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from loss_strategies import (
    DTYPES,
    EXTREME,
    MODERATE,
    autograd,
    close,
    f64,
    label_tensors,
    labelled_tokens,
    sizes,
    tensors,
)
from transformers.loss import loss_utils

from tutorkit.losses import (
    IGNORE_INDEX,
    check_gradient,
    span_loss,
    span_loss_grad,
    span_loss_naive,
    tagging_loss,
    tagging_loss_grad,
    tagging_loss_naive,
    token_cross_entropy,
    token_cross_entropy_grad,
    token_cross_entropy_naive,
)
from tutorkit.losses.sequences import _check_spans, _check_tokens

pytestmark = pytest.mark.usefixtures("one_thread")

NO = IGNORE_INDEX
A = [0, math.log(3)]  # its softmax is (1/4, 3/4): a loss of log 4 for class 0, log 4/3 for 1
RIGHT, WRONG = math.log(4 / 3), math.log(4)
TOKEN_FORMS = [token_cross_entropy, token_cross_entropy_naive]
TAG_FORMS = [tagging_loss, tagging_loss_naive]
SPAN_FORMS = [span_loss, span_loss_naive]
EVERY_TOKEN_LOSS = [
    (token_cross_entropy, token_cross_entropy_naive, token_cross_entropy_grad),
    (tagging_loss, tagging_loss_naive, tagging_loss_grad),
]


# --- the next token


@pytest.mark.parametrize("loss", TOKEN_FORMS)
def test_next_token_in_numbers(loss):
    # position 0 is scored on token 1 (label 1), position 1 on token 2 (label 0), position 2 on none
    logits, labels = f64([[A, A, [50, -50]]]), torch.tensor([[0, 1, 0]])
    assert loss(logits, labels).item() == pytest.approx((RIGHT + WRONG) / 2, abs=1e-15)


@pytest.mark.parametrize("loss", TOKEN_FORMS)
def test_next_token_mean_is_over_all_positions_not_over_the_rows_means(loss):
    # row 1 scores two tokens, RIGHT each; row 2 one, WRONG (its last label is ignored)
    logits, labels = f64([[A, A, A]] * 2), torch.tensor([[0, 1, 1], [1, 0, NO]])
    assert loss(logits, labels).item() == pytest.approx((2 * RIGHT + WRONG) / 3, abs=1e-15)


def test_next_token_gradient_in_numbers():
    # ((1/4, 3/4) - (0, 1)) / 2, then ((1/4, 3/4) - (1, 0)) / 2, then nothing to predict
    grad = token_cross_entropy_grad(f64([[A, A, A]]), torch.tensor([[0, 1, 0]]))
    torch.testing.assert_close(grad, f64([[[1 / 8, -1 / 8], [-3 / 8, 3 / 8], [0, 0]]]))


@given(labelled_tokens(torch.float32))
def test_next_token_loss_is_that_of_transformers(rows):
    logits, labels = rows
    if (labels[:, 1:] != NO).any():
        expected = loss_utils.ForCausalLMLoss(logits, labels, vocab_size=logits.shape[2])
        torch.testing.assert_close(token_cross_entropy(logits, labels), expected)


TINY = {
    "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "max_position_embeddings": 16, "num_labels": 3,
}  # fmt: skip
IDS = torch.tensor([[1, 4, 2, 7, 3], [5, 5, 9, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_next_token_loss_is_what_a_decoder_of_transformers_trains_on():
    config = transformers.LlamaConfig(**TINY, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = transformers.LlamaForCausalLM(config)
    labels = IDS.masked_fill(MASK == 0, NO)
    output = model(input_ids=IDS, attention_mask=MASK, labels=labels)
    torch.testing.assert_close(token_cross_entropy(output.logits, labels), output.loss)


# --- a tag for each token


@pytest.mark.parametrize("loss", TAG_FORMS)
def test_tagging_in_numbers(loss):
    # three tagged tokens in two rows of unequal length: the mean is over the three
    logits, labels = f64([[A, A, A]] * 2), torch.tensor([[1, 1, NO], [0, NO, NO]])
    assert loss(logits, labels).item() == pytest.approx((2 * RIGHT + WRONG) / 3, abs=1e-15)


def test_tagging_gradient_in_numbers():
    grad = tagging_loss_grad(f64([[A, A]]), torch.tensor([[NO, 0]]))
    torch.testing.assert_close(grad, f64([[[0, 0], [-3 / 4, 3 / 4]]]))
    # N = 2 tagged tokens: half of each
    grad = tagging_loss_grad(f64([[A, A]]), torch.tensor([[1, 0]]))
    torch.testing.assert_close(grad, f64([[[1 / 8, -1 / 8], [-3 / 8, 3 / 8]]]))


@given(labelled_tokens(torch.float32))
def test_tagging_loss_is_that_of_transformers(rows):
    logits, labels = rows
    if (labels != NO).any():
        config = transformers.PretrainedConfig(num_labels=logits.shape[2])
        expected = loss_utils.ForTokenClassification(logits, labels, config)
        torch.testing.assert_close(tagging_loss(logits, labels), expected)


def test_tagging_loss_is_what_an_encoder_of_transformers_trains_on():
    model = transformers.BertForTokenClassification(transformers.BertConfig(**TINY))
    labels = (IDS % 3).masked_fill(MASK == 0, NO)
    output = model(input_ids=IDS, attention_mask=MASK, labels=labels)
    torch.testing.assert_close(tagging_loss(output.logits, labels), output.loss)


# --- both of them


@pytest.mark.parametrize(("loss", "naive", "grad"), EVERY_TOKEN_LOSS)
@given(data=st.data(), dtype=DTYPES)
def test_used_form_equals_the_sum_over_positions(loss, naive, grad, data, dtype):
    rows = data.draw(labelled_tokens(dtype))
    found = loss(*rows)
    torch.testing.assert_close(found, naive(*rows), **close(dtype))
    assert found.dtype == grad(*rows).dtype == dtype


@pytest.mark.parametrize(("loss", "naive", "grad"), EVERY_TOKEN_LOSS)
@given(rows=labelled_tokens())
def test_gradient_agrees_with_autograd_and_differences(loss, naive, grad, rows):
    assert check_gradient(loss, grad, *rows, verbose=False)


@pytest.mark.parametrize(("loss", "naive", "grad"), EVERY_TOKEN_LOSS)
@given(rows=labelled_tokens(bound=EXTREME))
def test_extreme_logits_give_a_finite_loss_and_gradient(loss, naive, grad, rows):
    logits, labels = rows
    assert loss(logits, labels).isfinite()
    expected = autograd(lambda z: loss(z, labels), logits)
    torch.testing.assert_close(grad(logits, labels), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("loss", "naive", "grad"), EVERY_TOKEN_LOSS)
@given(rows=labelled_tokens())
def test_padding_a_batch_changes_nothing(loss, naive, grad, rows):
    logits, labels = rows
    batch, tokens, classes = logits.shape
    noise = torch.full((batch, 2, classes), 7.0, dtype=torch.float64)
    noise[:, :, 0] = -3
    padded = torch.cat([logits, noise], dim=1)
    padding = torch.full((batch, 2), NO)
    padded_labels = torch.cat([labels, padding], dim=1)
    torch.testing.assert_close(loss(padded, padded_labels), loss(logits, labels))
    found = grad(padded, padded_labels)
    torch.testing.assert_close(found[:, :tokens], grad(logits, labels))
    assert not found[:, tokens:].any()


@pytest.mark.parametrize(("loss", "naive", "grad"), EVERY_TOKEN_LOSS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_nothing_that_counts_gives_zero_and_a_zero_gradient(loss, naive, grad, shape):
    logits, labels = torch.ones(*shape, 2, dtype=torch.float64), torch.full(shape, NO)
    for form in (loss, naive):
        assert form(logits, labels).item() == 0
        assert not autograd(lambda z, form=form: form(z, labels), logits).any()
    assert grad(logits, labels).shape == logits.shape
    assert not grad(logits, labels).any()


def test_a_single_token_leaves_nothing_to_predict():
    logits, labels = f64([[A]]), torch.tensor([[1]])
    for loss in TOKEN_FORMS:
        assert loss(logits, labels).item() == 0
    assert not token_cross_entropy_grad(logits, labels).any()


@pytest.mark.parametrize("function", [f for functions in EVERY_TOKEN_LOSS for f in functions])
def test_label_out_of_range(function):
    with pytest.raises(ValueError, match=r"labels in 0…1 or -100 \(ignored\), found 2"):
        function(torch.zeros(1, 2, 2), torch.tensor([[0, 2]]))


@pytest.mark.parametrize(("logits", "labels"), [
    ((2, 3), (2, 3)), ((2, 3, 4), (2, 2)), ((2, 3, 4), (2,)), ((2, 3, 4), (1, 3)),
])  # fmt: skip
def test_shapes_that_do_not_match(logits, labels):
    with pytest.raises(ValueError, match=r"logits \(B, T, C\) and labels \(B, T\), found shapes"):
        _check_tokens(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))


# --- a span


@pytest.mark.parametrize("loss", SPAN_FORMS)
def test_span_in_numbers(loss):
    # start 1 has p = 3/4, end 1 has p = 1/4: half the sum of the two losses
    start, end = f64([A]), f64([A[::-1]])
    found = loss(start, end, torch.tensor([1]), torch.tensor([1]))
    assert found.item() == pytest.approx((RIGHT + WRONG) / 2, abs=1e-15)


@pytest.mark.parametrize("loss", SPAN_FORMS)
def test_span_on_a_padded_batch_in_numbers(loss):
    # a third position, of padding, with the largest score of all, and a row to ignore
    start, end = f64([[*A, 40.0]] * 2), f64([[*A[::-1], 40.0]] * 2)
    starts, ends, mask = torch.tensor([1, NO]), torch.tensor([1, NO]), torch.tensor([[1, 1, 0]] * 2)
    assert loss(start, end, starts, ends, mask).item() == pytest.approx((RIGHT + WRONG) / 2)


def test_span_gradient_in_numbers():
    # ((1/4, 3/4) - (0, 1)) / 2 and ((3/4, 1/4) - (0, 1)) / 2, nothing on padding
    mask, position = torch.tensor([[1, 1, 0]]), torch.tensor([1])
    start, end = f64([[*A, 40.0]]), f64([[*A[::-1], 40.0]])
    grads = span_loss_grad(start, end, position, position, mask)
    torch.testing.assert_close(grads[0], f64([[1 / 8, -1 / 8, 0]]))
    torch.testing.assert_close(grads[1], f64([[3 / 8, -3 / 8, 0]]))


@st.composite
def spans(draw, dtype=torch.float64, bound=MODERATE):
    """Scores (B, T) for starts and ends, spans on real tokens or ignored, and a mask."""
    batch, tokens = draw(sizes(0, 3)), draw(sizes(1, 4))
    start, end = (draw(tensors((batch, tokens), dtype, -bound, bound)) for _ in range(2))
    lengths = [draw(st.integers(1, tokens)) for _ in range(batch)]
    positions = []
    for length in lengths:
        first = draw(st.integers(0, length - 1))
        ignored = draw(st.integers(0, 4)) == 0
        positions.append((NO, NO) if ignored else (first, draw(st.integers(first, length - 1))))
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).reshape(batch, tokens).long()
    starts, ends = torch.tensor(positions, dtype=torch.long).reshape(batch, 2).unbind(1)
    return start, end, starts, ends, mask


@given(st.data(), DTYPES, st.booleans())
def test_span_loss_equals_the_sum_over_real_positions(data, dtype, masked):
    arguments = data.draw(spans(dtype))
    arguments = arguments if masked else arguments[:4]
    found = span_loss(*arguments)
    torch.testing.assert_close(found, span_loss_naive(*arguments), **close(dtype))
    assert found.dtype == dtype


@given(spans(torch.float32))
def test_span_loss_is_that_of_transformers(arguments):
    start, end, starts, ends, _ = arguments
    if (starts != NO).any():
        outside = start.shape[1]  # what transformers ignores
        expected = loss_utils.ForQuestionAnsweringLoss(
            start, end, starts.where(starts != NO, outside), ends.where(ends != NO, outside)
        )
        torch.testing.assert_close(span_loss(start, end, starts, ends), expected)


def test_span_loss_is_what_an_encoder_of_transformers_trains_on():
    config = transformers.BertConfig(**{**TINY, "num_labels": 2})
    model = transformers.BertForQuestionAnswering(config)
    starts, ends = torch.tensor([1, 0]), torch.tensor([3, 2])
    output = model(input_ids=IDS, attention_mask=MASK, start_positions=starts, end_positions=ends)
    found = span_loss(output.start_logits, output.end_logits, starts, ends)
    torch.testing.assert_close(found, output.loss)


@given(spans())
def test_span_gradient_agrees_with_autograd_and_differences(arguments):
    assert check_gradient(span_loss, span_loss_grad, *arguments, verbose=False)


@given(spans())
def test_span_scores_on_padding_have_no_influence(arguments):
    start, end, starts, ends, mask = arguments
    loss, grads = span_loss(*arguments), span_loss_grad(*arguments)
    for rest in (-EXTREME, EXTREME):
        other = start.where(mask == 1, rest), end.where(mask == 1, -rest)
        torch.testing.assert_close(span_loss(*other, starts, ends, mask), loss)
        for found, grad in zip(span_loss_grad(*other, starts, ends, mask), grads, strict=True):
            torch.testing.assert_close(found, grad)
            assert not found[mask == 0].any()


@given(st.data(), DTYPES)
def test_extreme_span_scores_give_a_finite_loss_and_gradient(data, dtype):
    start, end, *rest = data.draw(spans(dtype, EXTREME))
    assert span_loss(start, end, *rest).isfinite()
    expected = autograd(lambda s, e: span_loss(s, e, *rest), start, end)
    for found, other in zip(span_loss_grad(start, end, *rest), expected, strict=True):
        rounding = 2 * EXTREME * torch.finfo(dtype).eps
        torch.testing.assert_close(found, other, rtol=0, atol=rounding)


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_no_span_at_all_gives_zero_and_a_zero_gradient(rows, masked):
    scores, ignored = torch.ones(rows, 3, dtype=torch.float64), torch.full((rows,), NO)
    rest = (ignored, ignored, torch.zeros(rows, 3, dtype=torch.long) if masked else None)
    for loss in SPAN_FORMS:
        assert loss(scores, scores, *rest).item() == 0
        for grad in autograd(lambda s, e, loss=loss: loss(s, e, *rest), scores, scores):
            assert not grad.any()
    for grad in span_loss_grad(scores, scores, *rest):
        assert not grad.any()


EVERY_SPAN = [*SPAN_FORMS, span_loss_grad]


@pytest.mark.parametrize("function", EVERY_SPAN)
@pytest.mark.parametrize(("start", "end"), [(2, 1), (NO, 1), (1, NO)])
def test_an_end_before_its_start_or_half_a_span(function, start, end):
    scores = torch.zeros(2, 3)
    match = rf"end at or after its start, or both ignored, found starts \[0, {start}\] and ends"
    with pytest.raises(ValueError, match=match):
        function(scores, scores, torch.tensor([0, start]), torch.tensor([0, end]))


@pytest.mark.parametrize("function", EVERY_SPAN)
@pytest.mark.parametrize(("start", "end"), [(0, 3), (-1, 0), (0, 2)])
def test_a_position_out_of_range_or_on_padding(function, start, end):
    scores, mask = torch.zeros(1, 3), torch.tensor([[1, 1, 0]])
    match = r"positions of real tokens in 0…2, found .*: a position out of range or on padding"
    with pytest.raises(ValueError, match=match):
        function(scores, scores, torch.tensor([start]), torch.tensor([end]), mask)


@pytest.mark.parametrize("shapes", [
    [(2,), (2,), (2,), (2,)], [(2, 3), (2, 2), (2,), (2,)],
    [(2, 3), (2, 3), (1,), (2,)], [(2, 3), (2, 3), (2,), (3,)],
])  # fmt: skip
def test_span_shapes_that_do_not_match(shapes):
    scores = [torch.zeros(shape) for shape in shapes[:2]]
    positions = [torch.zeros(shape, dtype=torch.long) for shape in shapes[2:]]
    with pytest.raises(ValueError, match=r"scores \(B, T\), \(B, T\) and positions \(B,\), \(B,\)"):
        _check_spans(*scores, *positions, None)


def test_span_mask_of_another_shape():
    scores, position = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    match = r"expected attention_mask \(B, T\) = \(2, 3\), found \(1, 3\)"
    with pytest.raises(ValueError, match=match):
        _check_spans(scores, scores, position, position, torch.ones(1, 3))


@given(st.data())
def test_bfloat16_keeps_its_type(data):
    logits = data.draw(tensors((2, 3, 2), torch.bfloat16))
    labels = data.draw(label_tensors((2, 3), 2))
    for function in (f for functions in EVERY_TOKEN_LOSS for f in functions[::2]):
        found = function(logits, labels)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(
            found.double(), function(logits.double(), labels), rtol=2**-6, atol=2**-3
        )
