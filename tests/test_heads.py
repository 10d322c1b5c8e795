"""Pooling and the four heads: by hand, and against the heads of transformers."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from tutorkit import heads, losses
from tutorkit.data import SentimentDataset
from tutorkit.heads import POOLINGS, ClassificationHead, pool, pooling_weights
from tutorkit.models import count_parameters, load_model

TEXTS = ["Good.", "A slow start, but what an ending!", "I would not watch it again " * 4]

HIDDEN = torch.tensor([
    [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0], [0.0, -8.0]],
    [[7.0, 7.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]],
])  # (2, 4, 2)
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize(("how", "expected"), [
    ("cls", [[1, 2], [7, 7]]), ("mean", [[3, 5], [7, 7]]), ("last", [[5, 9], [7, 7]]),
])  # fmt: skip
def test_pool_by_hand(how, expected):
    assert pool(HIDDEN, MASK, how).tolist() == expected


def test_left_padding_does_not_move_the_mean_or_the_last_token():
    mask = MASK.flip(1)  # the real tokens now stand at the end
    assert pool(HIDDEN.flip(1), mask, "mean").tolist() == [[3, 5], [7, 7]]
    assert pool(HIDDEN.flip(1), mask, "last").tolist() == [[1, 2], [7, 7]]


@pytest.mark.parametrize("how", POOLINGS)
def test_pool_does_not_see_padding(how):
    hidden = torch.randn(3, 6, 4)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
    pooled = pool(hidden, mask, how)
    other = torch.where(mask[:, :, None] == 1, hidden, 1e6)
    assert torch.equal(pool(other, mask, how), pooled)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = pool(hidden[row : row + 1, :length], mask[row : row + 1, :length], how)
        torch.testing.assert_close(alone[0], pooled[row])


def test_pool_errors():
    with pytest.raises(ValueError, match=r"how: expected one of .*'last'.*found 'max'"):
        pool(HIDDEN, MASK, "max")
    with pytest.raises(ValueError, match="real token in every row, found a row that is all pad"):
        pool(HIDDEN, MASK * torch.tensor([[1], [0]]), "mean")


def test_head_by_hand():
    head = ClassificationHead(2, 3, dense=False, dropout=0.0)
    head.classifier.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    head.classifier.bias.data = torch.tensor([0.0, 10.0, 0.5])
    assert head(torch.tensor([[2.0, 3.0]])).tolist() == [[2.0, 13.0, -0.5]]
    with_tanh = ClassificationHead(2, 3, dropout=0.0)
    with_tanh.dense.weight.data, with_tanh.dense.bias.data = torch.eye(2), torch.zeros(2)
    with_tanh.classifier.load_state_dict(head.classifier.state_dict())
    a, b = torch.tensor([2.0, 3.0]).tanh().tolist()
    found = with_tanh(torch.tensor([[2.0, 3.0]]))[0].tolist()
    assert found == pytest.approx([a, b + 10, a - b + 0.5])


def test_dropout_acts_in_training_only():
    head, pooled = ClassificationHead(64, 2, dropout=0.5), torch.randn(1, 64)
    assert not torch.equal(head(pooled), head(pooled))
    head.eval()
    assert torch.equal(head(pooled), head(pooled))


@pytest.fixture(params=["tiny", "tiny-decoder"])
def loaded(request):
    return load_model(request.param)


def test_equals_the_head_of_transformers(loaded):
    model = loaded.model
    batch = SentimentDataset(TEXTS, [0, 1, 0], loaded.tokenizer).batch(range(3))
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    assert (inputs["attention_mask"] == 0).any()  # the shorter rows are padded
    head = ClassificationHead(model.config.hidden_size, 2, dense=not loaded.is_decoder).eval()
    if loaded.is_decoder:
        head.classifier.weight.data = model.score.weight.data
        head.classifier.bias.data.zero_()
    else:
        head.dense.load_state_dict(model.bert.pooler.dense.state_dict())
        head.classifier.load_state_dict(model.classifier.state_dict())
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
        how = "last" if loaded.is_decoder else "cls"
        found = head(pool(hidden, inputs["attention_mask"], how))
        torch.testing.assert_close(found, model(**inputs).logits)
        # The test can fail: another pooling gives other scores.
        other = head(pool(hidden, inputs["attention_mask"], "mean"))
        assert (other - found).abs().max() > 1e-3


# Pooling as a weighted sum


def test_pooling_weights_by_hand():
    third = pytest.approx(1 / 3)
    assert pooling_weights(MASK, "mean").tolist() == [[third, third, third, 0], [1, 0, 0, 0]]
    assert pooling_weights(MASK, "last").tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert pooling_weights(MASK, "cls").tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    nobody = torch.ones_like(MASK)
    assert pooling_weights(nobody, "mean").tolist() == [[0.25] * 4] * 2
    assert pooling_weights(nobody, "last").tolist() == [[0, 0, 0, 1]] * 2
    with pytest.raises(ValueError, match="all padding"):
        pooling_weights(MASK * 0, "mean")


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("left", [False, True])
def test_pool_is_the_weighted_sum(how, left):
    mask = MASK.flip(1) if left else MASK
    weights = pooling_weights(mask, how)
    assert weights.sum(dim=1).tolist() == pytest.approx([1, 1])
    expected = torch.einsum("bt,bth->bh", weights, HIDDEN)
    torch.testing.assert_close(pool(HIDDEN, mask, how), expected)


def test_without_a_mask_is_a_mask_of_ones():
    nobody = torch.ones_like(MASK)
    torch.testing.assert_close(pool(HIDDEN, nobody, "mean"), HIDDEN.mean(dim=1))
    assert torch.equal(pool(HIDDEN, nobody, "last"), HIDDEN[:, -1])
    assert not torch.allclose(pool(HIDDEN, nobody, "mean"), pool(HIDDEN, MASK, "mean"))


# The heads of transformers, on the same weights


@pytest.fixture
def encoder_inputs():
    tiny = load_model("tiny")
    batch = SentimentDataset(TEXTS, [0, 1, 0], tiny.tokenizer).batch(range(3))
    return tiny.model.config, {k: batch[k] for k in ("input_ids", "attention_mask")}


def test_equals_the_tagging_head_of_transformers(encoder_inputs):
    config, inputs = encoder_inputs
    config = copy.deepcopy(config)
    config.num_labels = 5
    shipped = transformers.BertForTokenClassification(config).eval()
    head = heads.TaggingHead(config.hidden_size, 5).eval()
    head.classifier.load_state_dict(shipped.classifier.state_dict())
    with torch.no_grad():
        found = head(shipped.bert(**inputs).last_hidden_state)
        assert found.shape == (*inputs["input_ids"].shape, 5)
        torch.testing.assert_close(found, shipped(**inputs).logits)
    labels = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 5, -100)
    torch.testing.assert_close(
        losses.tagging_loss(found, labels), shipped(**inputs, labels=labels).loss
    )


def test_equals_the_span_head_of_transformers(encoder_inputs):
    config, inputs = encoder_inputs
    shipped = transformers.BertForQuestionAnswering(config).eval()
    head = heads.SpanHead(config.hidden_size)
    head.qa_outputs.load_state_dict(shipped.qa_outputs.state_dict())
    starts, ends = torch.tensor([1, 2, 0]), torch.tensor([1, 4, 3])
    with torch.no_grad():
        start, end = head(shipped.bert(**inputs).last_hidden_state)
        theirs = shipped(**inputs, start_positions=starts, end_positions=ends)
    torch.testing.assert_close(start, theirs.start_logits)
    torch.testing.assert_close(end, theirs.end_logits)
    assert not torch.equal(start, end)
    # transformers leaves padding in the softmax; without a mask ours is theirs.
    torch.testing.assert_close(losses.span_loss(start, end, starts, ends), theirs.loss)
    masked = losses.span_loss(start, end, starts, ends, inputs["attention_mask"])
    assert masked < theirs.loss


@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_generation_head_of_transformers(tied):
    tiny = load_model("tiny-decoder")
    config = copy.deepcopy(tiny.model.config)
    config.tie_word_embeddings = tied
    shipped = transformers.LlamaForCausalLM(config).eval()
    table = shipped.get_input_embeddings()
    head = heads.GenerationHead(config.hidden_size, config.vocab_size, table if tied else None)
    if not tied:
        head.lm_head.load_state_dict(shipped.lm_head.state_dict())
    assert (head.lm_head.weight is table.weight) == tied
    batch = SentimentDataset(TEXTS, [0, 1, 0], tiny.tokenizer).batch(range(3))
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    labels = heads.next_token_labels(**inputs)
    with torch.no_grad():
        found = head(shipped.model(**inputs).last_hidden_state)
        theirs = shipped(**inputs, labels=labels)
    torch.testing.assert_close(found, theirs.logits)
    torch.testing.assert_close(losses.token_cross_entropy(found, labels), theirs.loss)
    both = torch.nn.ModuleList([shipped.model, head])
    added = count_parameters(both)[0] - count_parameters(shipped.model)[0]
    assert added == (0 if tied else config.vocab_size * config.hidden_size)


def test_a_tied_head_wants_embeddings_of_its_shape():
    with pytest.raises(ValueError, match=r"\(V, H\) = \(9, 4\), found \(8, 4\): take those of"):
        heads.GenerationHead(4, 9, torch.nn.Embedding(8, 4))


def test_tagging_by_hand_and_dropout():
    head = heads.TaggingHead(2, 2, dropout=0.5)
    head.classifier.weight.data = torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    head.classifier.bias.data = torch.tensor([0.0, 10.0])
    assert not torch.equal(head(torch.ones(1, 64, 2)), head(torch.ones(1, 64, 2)))
    assert head.eval()(HIDDEN[:1, :2]).tolist() == [[[1.0, 9.0], [3.0, 9.0]]]


def test_span_by_hand():
    head = heads.SpanHead(2)
    head.qa_outputs.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    head.qa_outputs.bias.data = torch.tensor([0.0, 1.0])
    start, end = head(HIDDEN[:1, :2])
    assert (start.tolist(), end.tolist()) == ([[1.0, 3.0]], [[5.0, 9.0]])


def every_head():
    tag, span = heads.TaggingHead(32, 3).eval(), heads.SpanHead(32)
    write = heads.GenerationHead(32, 50)
    return {
        "tagging": tag, "spans": lambda h: torch.stack(span(h), dim=2), "generation": write,
    }  # fmt: skip


@pytest.mark.parametrize("name", list(every_head()))
def test_a_padded_batch_gives_the_logits_of_the_unpadded_rows(loaded, name):
    head, model = every_head()[name], loaded.model.base_model
    batch = SentimentDataset(TEXTS, [0, 1, 0], loaded.tokenizer).batch(range(3))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        whole = head(model(ids, attention_mask=mask).last_hidden_state)
        for row, n in enumerate(mask.sum(dim=1).tolist()):
            cut = mask[[row], :n]
            alone = head(model(ids[[row], :n], attention_mask=cut).last_hidden_state)
            torch.testing.assert_close(alone[0], whole[row, :n], atol=1e-5, rtol=1e-5)


# Labels and answers


def test_first_piece_labels_by_hand():
    word_ids = [None, 0, 1, 1, 1, 2, 3, 3, None, None]
    expected = [-100, 2, 1, -100, -100, 0, 2, -100, -100, -100]
    assert heads.first_piece_labels(word_ids, [2, 1, 0, 2]) == expected
    assert heads.first_piece_labels([], []) == []
    with pytest.raises(ValueError, match="expected a tag for each word, found 3 tags and word 3"):
        heads.first_piece_labels(word_ids, [2, 1, 0])


def test_next_token_labels_keep_a_real_end_token():
    ids, mask = torch.tensor([[7, 4, 4], [8, 9, 4]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert heads.next_token_labels(ids, mask).tolist() == [[7, 4, -100], [8, 9, 4]]
    assert heads.IGNORE_INDEX == losses.IGNORE_INDEX


def test_best_span_by_hand():
    start, end = torch.tensor([[1.0, 0, 3, 0]] * 3), torch.tensor([[4.0, 0, 1, 9]] * 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    first, last = heads.best_span(start, end, mask)
    # (0, 0) has 5 and (2, 2) has 4; with the last token (2, 3) has 12; one token is left.
    assert (first.tolist(), last.tolist()) == ([0, 2, 1], [0, 3, 1])
    with pytest.raises(ValueError, match="all padding"):
        heads.best_span(start, end, mask * 0)


def test_best_span_equals_trying_all_pairs():
    start, end = torch.randn(20, 7), torch.randn(20, 7)
    mask = (torch.arange(7) < torch.randint(1, 8, (20, 1))).long()
    first, last = heads.best_span(start, end, mask)
    for row, n in enumerate(mask.sum(dim=1).tolist()):
        pairs = [(s, e) for s in range(n) for e in range(s, n)]
        best = max(pairs, key=lambda p: start[row, p[0]] + end[row, p[1]])
        assert (int(first[row]), int(last[row])) == best


def test_a_later_token_does_not_reach_an_earlier_state_of_a_decoder():
    tiny = load_model("tiny-decoder")
    ids = torch.randint(5, 100, (1, 8))
    other = ids.clone()
    other[0, 5] = 101
    with torch.no_grad():
        before, after = (tiny.model.base_model(x).last_hidden_state[0] for x in (ids, other))
    torch.testing.assert_close(before[:5], after[:5])
    assert ((before[5:] - after[5:]).abs().amax(dim=1) > 1e-3).all()
