"""Rows without labels in every batch: how they are drawn, and that `fit` takes them."""

from __future__ import annotations

import numpy as np
import pytest

from tutorkit.adversarial import VAT
from tutorkit.data import SentimentDataset
from tutorkit.models import load_model
from tutorkit.tiny import build_tokenizer
from tutorkit.training import TrainConfig, fit
from tutorkit.unlabelled import WithUnlabelled

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["good", "a bad film", "fine fine fine", "dull", "great fun", "not good at all", "bad bad"]
LABELS = [1, 0, 1, 0, 1, 0, 0]


def test_unlabelled_rows_join_every_batch():
    loaded = load_model("tiny", seed=0)
    rows = SentimentDataset(TEXTS, LABELS, loaded.tokenizer, 16)
    others = SentimentDataset(["so so", "it is a film", "hm"], [0, 0, 0], loaded.tokenizer, 16)
    mixed = WithUnlabelled(rows, others, ratio=2)
    batches = mixed.batches_of_epoch(6, seed=0, epoch=0)
    seen = np.concatenate(batches)
    assert sorted(seen[seen < 7]) == list(range(7)) and set(seen) == set(range(10))
    for numbers in batches:
        labels = mixed.batch(numbers)["labels"]
        assert (labels == -100).sum() == 2 * (labels != -100).sum()
        assert labels.tolist() == mixed.labels[numbers].tolist()
    again = mixed.batches_of_epoch(6, seed=0, epoch=1)
    assert [b.tolist() for b in again] != [b.tolist() for b in batches]
    config = TrainConfig(epochs=1, batch_size=6, precision="fp32", device="cpu")
    state = fit(loaded.model, mixed, None, config, objective=VAT())
    assert sum(entry["rows"] for entry in state.steps) == 21


def test_errors():
    encoder, decoder = build_tokenizer(), build_tokenizer(decoder=True)
    rows, other = (SentimentDataset(TEXTS, LABELS, t, 16) for t in (encoder, decoder))
    one = SentimentDataset(["a", "b"], [1, 1], encoder, 16)
    with pytest.raises(ValueError, match="ratio: expected a whole number from 1, found 0"):
        WithUnlabelled(rows, one, ratio=0)
    with pytest.raises(ValueError, match="both sets from one tokenizer, found pad tokens 0 and 4"):
        WithUnlabelled(rows, other)
    with pytest.raises(ValueError, match="at least two classes"):
        WithUnlabelled(one, rows)
