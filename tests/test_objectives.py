"""What an objective is given, and what its losses become."""

import dataclasses

import pytest
import torch

from tutorkit.data import SentimentDataset
from tutorkit.losses import cross_entropy
from tutorkit.models import load_model
from tutorkit.objectives import classification
from tutorkit.training import TrainConfig, fit

CONFIG = TrainConfig(epochs=1, batch_size=3, learning_rate=1e-3, precision="fp32", device="cpu")
TEXTS = ["good", "a bad film", "fine fine fine", "dull", "great fun", "not good at all", "bad bad"]
LABELS = [1, 0, 1, 0, 1, 0, 0]


def run(objective, checkpoint_dir=None, callbacks=(), **settings):
    loaded = load_model("tiny", seed=0)
    for module in loaded.model.modules():
        if hasattr(module, "p"):
            module.p = 0.0  # no dropout: its masks depend on how the rows are split
    rows = SentimentDataset(TEXTS, LABELS, loaded.tokenizer, 16)
    config = dataclasses.replace(CONFIG, **settings)
    state = fit(loaded.model, rows, None, config, checkpoint_dir, callbacks, objective)
    return state, loaded.model


def one_by_one(model, batch, backward):
    """Classification with a forward pass and a backward pass for each row."""
    total = 0.0
    for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"],
                                strict=True):
        loss = cross_entropy(model(ids[None], mask[None]).logits, label[None], reduction="sum")
        backward(loss)
        total = total + loss.detach()
    return total


def test_an_objective_gets_the_batch_with_its_row_numbers():
    seen = []

    def spy(model, batch, backward):
        seen.extend(zip(batch["rows"].tolist(), batch["labels"].tolist(), strict=True))
        return classification(model, batch, backward)

    run(spy)
    assert sorted(seen) == list(enumerate(LABELS))


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_losses_handed_over_in_parts_add_up(accumulation):
    settings = {"gradient_accumulation_steps": accumulation}
    (plain, model), (parts, same) = run(classification, **settings), run(one_by_one, **settings)
    assert [e["loss"] for e in parts.steps] == pytest.approx([e["loss"] for e in plain.steps])
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_checkpoint_of_another_objective_is_refused(tmp_path):
    def stop(event, state):
        state.stop = state.step == 2

    run(classification, tmp_path, [stop], checkpoint_every=1)
    with pytest.raises(ValueError, match="objective: expected 'one_by_one', found 'classification"):
        run(one_by_one, tmp_path, checkpoint_every=1)
