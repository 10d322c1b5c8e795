"""Pooling and the classification head: by hand, and against the heads of transformers."""

from __future__ import annotations

import pytest
import torch

from tutorkit.data import SentimentDataset
from tutorkit.heads import POOLINGS, ClassificationHead, pool
from tutorkit.models import load_model

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
