"""Several tasks, one encoder: outputs, the joint loss, its gradients, their conflict."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers
from multitask_examples import CONFIG, LABELS, MOOD, RATING, TEXTS, TOPIC, multi, rows, tiny

from tutorkit.data import SentimentDataset
from tutorkit.losses import cross_entropy
from tutorkit.models import load_model, parameter_depths, save_model, set_trainable
from tutorkit.multitask import JointLoss, gradient_conflict, last_linear, row_losses
from tutorkit.multitask_data import MultiTaskDataset
from tutorkit.multitask_training import evaluate_task, fit_tasks, recorded
from tutorkit.optim import parameter_groups
from tutorkit.prediction import predict_texts
from tutorkit.training import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

PUT = dataclasses.replace


def joint_gradients(model, objective, batches: list[dict]) -> float:
    """The loss summed over the batches; gradients are left on the model's parameters."""
    model.zero_grad()
    batches = [batch | {"rows": torch.arange(len(batch["task"]))} for batch in batches]
    return sum(float(objective(model, batch, lambda loss: loss.backward())) for batch in batches)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# --- outputs and the loss ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_a_task_of_classes_is_the_classifier_it_was_made_from(name):
    model, plain = multi(MOOD, RATING, name=name), tiny(name).model
    last = plain.get_submodule(last_linear(plain))
    with torch.no_grad():
        model.heads[0].weight.copy_(last.weight)
        model.heads[0].bias.copy_(torch.zeros(2) if last.bias is None else last.bias)
    data = SentimentDataset(TEXTS, LABELS["mood"], tiny(name).tokenizer, 32)
    found = evaluate(model.for_task("mood").model, data, precision="fp32")
    expected = evaluate(plain, data, precision="fp32")
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_mixed_rows_and_padding_change_no_output(name):
    model = multi(MOOD, TOPIC, RATING, name=name)
    data = MultiTaskDataset([rows(task, name=name) for task in model.tasks])
    batch = data.batch(order := [12, 3, 9, 0, 7, 4])
    batch.pop("labels")
    mixed = model(**batch)
    for k, part in enumerate(data.parts):
        mine = [r - 5 * k for r in order if r // 5 == k]
        for i, row in enumerate(mine):
            ids = part[row]["input_ids"][None]
            alone = model(ids, torch.ones_like(ids), torch.tensor([k])).outputs
            torch.testing.assert_close(mixed.outputs[k][i : i + 1], alone[k], atol=1e-5, rtol=1e-5)
            assert [len(o) for o in alone] == [int(j == k) for j in range(3)]


def test_the_joint_loss_and_its_gradients_are_the_sums_of_the_tasks_alone():
    tasks = (PUT(MOOD, weight=2.0), TOPIC, PUT(RATING, weight=0.5))
    model, parts = multi(*tasks), [rows(t) for t in tasks]
    mixed = joint_gradients(model, JointLoss(tasks), [MultiTaskDataset(parts).batch(range(15))])
    found, total, expected = gradients(model), 0.0, {}
    for k, (task, part) in enumerate(zip(tasks, parts, strict=True)):
        batch = part.batch(range(5))
        model.zero_grad()
        one = model.for_task(task.name).model
        logits = one(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = task.weight * (cross_entropy(logits, batch["labels"], "sum") if k < 2 else
                              ((logits[:, 0] - batch["labels"]) ** 2).sum())  # fmt: skip
        loss.backward()
        total += loss.item()
        for name, p in model.named_parameters():
            expected[name] = expected.get(name, 0) + (0 if p.grad is None else p.grad)
    assert mixed == pytest.approx(total, rel=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(weighting):
    model = multi(MOOD, RATING, weighting=weighting)
    data, joint = MultiTaskDataset([rows(MOOD), rows(RATING)]), JointLoss((MOOD, RATING))
    whole = joint_gradients(model, joint, [data.batch(range(10))])
    expected = gradients(model)
    parts = joint_gradients(model, joint, [data.batch([0, 1, 2]), data.batch(range(3, 10))])
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_accumulation_in_fit_equals_one_big_batch(weighting):
    ends = []
    for size, parts in ((10, 1), (4, 3)):
        model = multi(MOOD, RATING, weighting=weighting)
        config = PUT(CONFIG, epochs=4, batch_size=size, gradient_accumulation_steps=parts)
        state = fit_tasks(model, MultiTaskDataset([rows(MOOD), rows(RATING)]), [], config)
        ends.append(([s["loss"] for s in state.steps], recorded(state, "task_losses"), model))
    (losses, curves, big), (same, again, small) = ends
    assert losses == pytest.approx(same, rel=1e-4) and len(losses) == 4
    for (_, a), (_, b) in zip(curves, again, strict=True):
        assert a == pytest.approx(b, rel=1e-4) and a.keys() == {"mood", "rating"}
    for a, b in zip(big.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_learned_weights_have_the_gradient_found_by_hand():
    model = multi(MOOD, RATING, weighting="uncertainty")
    with torch.no_grad():
        model.log_variances_by_rate.copy_(torch.tensor([0.007, -0.003]))
    torch.testing.assert_close(model.log_variances, torch.tensor([0.7, -0.3]))
    data = MultiTaskDataset([rows(MOOD), rows(RATING)])
    total = joint_gradients(model, JointLoss((MOOD, RATING)), [data.batch([0, 1, 5, 6, 7])])
    found = []
    for k, n in ((0, 2), (1, 3)):
        batch = data.parts[k].batch(range(n))
        out = model(batch["input_ids"], batch["attention_mask"], torch.full((n,), k)).outputs[k]
        found.append(row_losses(model.tasks[k], out, batch["labels"]).mean().item())
    by_hand = (2 * (math.exp(-0.7) * found[0] + 0.35)
               + 3 * (0.5 * math.exp(0.3) * found[1] - 0.15))  # fmt: skip
    assert total == pytest.approx(by_hand, rel=1e-5)
    slopes = [2 * (0.5 - math.exp(-0.7) * found[0]), 3 * (0.5 - 0.5 * math.exp(0.3) * found[1])]
    assert model.log_variances_by_rate.grad.tolist() == pytest.approx(slopes, rel=1e-5)
    groups = parameter_groups(model, weight_decay=0.1)
    assert [g["weight_decay"] for g in groups
            if any(p is model.log_variances_by_rate for p in g["params"])] == [0.0]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_overfits_five_examples_of_two_tasks(precision):
    model, parts = multi(MOOD, RATING), [rows(MOOD), rows(RATING)]
    config = PUT(CONFIG, epochs=150, batch_size=10, learning_rate=5e-3, precision=precision)
    fit_tasks(model, MultiTaskDataset(parts), [], config)
    mood, rating = (evaluate_task(model, part, precision="fp32") for part in parts)
    assert mood["score"] == 1.0 and mood["loss"] < 0.05
    assert rating["score"] > 0.99 and rating["loss"] < 0.1


def test_learned_weights_reach_their_optimum_where_nothing_else_moves():
    model, parts = multi(MOOD, RATING, weighting="uncertainty"), [rows(MOOD), rows(RATING)]
    for name, p in model.named_parameters():
        p.requires_grad_(name == "log_variances_by_rate")
    config = PUT(CONFIG, epochs=160, batch_size=10)  # a step moves s by up to 100 times 0.001
    fit_tasks(model, MultiTaskDataset(parts), [], config)
    mood, rating = (evaluate_task(model, part)["loss"] for part in parts)
    best = [math.log(2 * mood), math.log(rating)]  # σ² = 2 c L
    assert model.log_variances.tolist() == pytest.approx(best, abs=0.02)


def test_one_tasks_model_predicts_trains_in_place_and_is_saved(tmp_path):
    model = multi(MOOD, TOPIC)
    topic = model.for_task("topic")
    labels = predict_texts(topic, TEXTS, max_length=32, precision="fp32")
    assert set(labels["label"]) <= set(TOPIC.names)
    save_model(topic, tmp_path / "topic", "a card")
    again = predict_texts(load_model(str(tmp_path / "topic"), dict(enumerate(TOPIC.names))),
                          TEXTS, max_length=32, precision="fp32")  # fmt: skip
    np.testing.assert_allclose(again["probability"], labels["probability"], atol=1e-6)
    own = {id(p) for p in model.parameters()}
    assert all(id(p) in own for p in topic.model.parameters())
    assert tiny().model.config.num_labels == 2 and model.for_task("mood").model.num_labels == 2
    assert parameter_depths(model)["heads.1.weight"] == 0
    assert all("layer.1" in n or n.startswith(("heads", "encoder.bert.pooler"))
               for n in set_trainable(model, 1))  # fmt: skip


def test_the_last_linear_layer_is_found_inside_a_larger_head():
    config = transformers.RobertaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1,
                                        num_attention_heads=1, intermediate_size=8)  # fmt: skip
    model = transformers.RobertaForSequenceClassification(config)
    assert last_linear(model) == "classifier.out_proj"
    with pytest.raises(ValueError, match="expected a model with a linear classification head"):
        last_linear(transformers.RobertaModel(config))


# --- conflict ------------------------------------------------------------------------------------


def test_conflict_is_the_cosine_of_the_gradients_that_backward_leaves():
    model, parts = multi(MOOD, TOPIC, RATING), [rows(MOOD), rows(TOPIC), rows(RATING)]
    batches = {part.task.name: part.batch(range(5)) for part in parts}
    data, alone = MultiTaskDataset(parts), []
    for k, task in enumerate(model.tasks):
        joint_gradients(model, JointLoss(model.tasks), [data.batch(range(5 * k, 5 * k + 5))])
        alone.append(torch.cat([p.grad.flatten() / 5 for p in model.encoder.parameters()]))
        assert model.heads[k].weight.grad.any(), task
    model.train()
    kept, state = gradients(model), {n: t.clone() for n, t in model.state_dict().items()}
    found = gradient_conflict(model, batches)
    for i, j in ((0, 1), (0, 2), (2, 1), (1, 1)):
        cosine = torch.nn.functional.cosine_similarity(alone[i], alone[j], dim=0).item()
        assert found.cosines[i, j] == pytest.approx(cosine, abs=1e-4)
    assert found.tasks == ("mood", "topic", "rating")
    assert found.norms == pytest.approx([g.norm().item() for g in alone], rel=1e-4)
    assert all(torch.equal(kept[n], g) for n, g in gradients(model).items())
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_opposite_tasks_conflict_fully():
    opposite = PUT(MOOD, name="opposite")
    model = multi(MOOD, opposite)
    model.heads[1].load_state_dict({n: -t for n, t in model.heads[0].state_dict().items()})
    batch = rows(MOOD).batch(range(5))
    found = gradient_conflict(model, {"mood": batch, "opposite": batch})
    same_logits_turned = found.cosines[0, 1]  # -W on the same labels asks for the reverse
    assert same_logits_turned == pytest.approx(-1, abs=0.01)
    turned = batch | {"labels": 1 - batch["labels"]}
    found = gradient_conflict(model, {"mood": batch, "opposite": turned})
    assert found.cosines[0, 1] == pytest.approx(1, abs=1e-4)
    set_trainable(model, "backbone")
    with pytest.raises(ValueError, match="expected encoder weights that train, found none"):
        gradient_conflict(model, {"mood": batch})


# --- what is refused -----------------------------------------------------------------------------


def test_models_that_make_no_sense():
    with pytest.raises(ValueError, match=r"different names, found \['mood', 'mood'\]"):
        multi(MOOD, MOOD)
    with pytest.raises(ValueError, match="weighting: expected one of .*, found 'learned'"):
        multi(MOOD, weighting="learned")
    with pytest.raises(ValueError, match=r"weight 1 with learned weights, found .* \['topic'\]"):
        multi(MOOD, PUT(TOPIC, weight=2.0), weighting="uncertainty")
    with pytest.raises(ValueError, match=r"one of the model's tasks \['mood'\], found 'topic'"):
        multi(MOOD).for_task("topic")
    with pytest.raises(ValueError, match=r"one of the model's tasks \['mood'\], found 'topic'"):
        gradient_conflict(multi(MOOD), {"topic": rows(TOPIC).batch([0])})
