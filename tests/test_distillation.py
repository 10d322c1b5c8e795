"""Learning from a teacher: its logits on disk, soft targets in `fit`, matching layer by layer."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from tutorkit import distillation
from tutorkit.data import SentimentDataset
from tutorkit.distillation import (
    SoftTargets,
    TeacherLogits,
    check_same_labels,
    model_digest,
    teacher_logits,
)
from tutorkit.fast_bert import FastBert, faster
from tutorkit.losses import distillation_grad, distillation_loss_naive
from tutorkit.matching import LayerMatching, MatchedStudent, attention_scores, hidden_states
from tutorkit.models import LoadedModel, load_model, save_model
from tutorkit.objectives import classification
from tutorkit.students import bag_student, transformer_student
from tutorkit.training import TrainConfig, evaluate, fit

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainConfig(epochs=2, batch_size=3, learning_rate=1e-3, precision="fp32", device="cpu")
TEXTS = ["good", "a bad film", "fine fine fine", "dull", "great fun", "not good at all", "bad bad"]
LABELS = [1, 0, 1, 0, 1, 0, 0]
NAMES = {0: "negative", 1: "positive"}
RATES = {"whole": 3e-3, "bag": 0.03}
TAUGHT = TeacherLogits(torch.tensor([[i - 3.0, (-1.0) ** i] for i in range(7)]), NAMES)


def model(name: str = "tiny", seed: int = 0, scale: float = 8.0, **settings) -> LoadedModel:
    """With weights large enough to tell the texts apart; `settings` of a BERT of another shape."""
    loaded = load_model(name, seed=seed)
    if settings:
        config = copy.deepcopy(loaded.model.config)
        for key, value in settings.items():
            setattr(config, key, value)
        torch.manual_seed(seed)
        loaded = dataclasses.replace(loaded, model=BertForSequenceClassification(config))
    for module in loaded.model.modules():
        if hasattr(module, "p"):
            module.p = 0.0  # no dropout: its masks depend on how the rows are split
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return loaded


@cache
def teacher(name: str = "tiny") -> LoadedModel:
    return model(name, seed=7)


def rows(loaded: LoadedModel, texts=TEXTS, labels=LABELS) -> SentimentDataset:
    return SentimentDataset(texts, labels, loaded.tokenizer, 16)


def train(objective, student=None, **settings):
    student = student or model()
    config = dataclasses.replace(CONFIG, **settings)
    state = fit(student.model, rows(student), None, config, objective=objective)
    return [e["loss"] for e in state.steps], student


def gradients(objective, net, batch) -> dict[str, torch.Tensor]:
    net.zero_grad()
    objective(net, batch, lambda loss: loss.backward())
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def whole_batch(loaded: LoadedModel, order=range(7)) -> dict[str, torch.Tensor]:
    return rows(loaded).batch(order) | {"rows": torch.tensor(list(order))}


# The teacher's logits ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_logits_are_the_teachers_up_to_a_shift_of_each_row(name):
    loaded = teacher(name)
    found = teacher_logits(loaded, TEXTS, 16, batch_size=3, precision="fp32")
    for row, values in enumerate(found.values):
        ids = rows(loaded)[row]["input_ids"][None]
        with torch.no_grad():
            own = loaded.model(ids, attention_mask=torch.ones_like(ids)).logits[0]
        torch.testing.assert_close(values - values[0], own - own[0], rtol=1e-4, atol=1e-5)
    assert found.id2label == NAMES


def test_the_second_call_reads_what_the_first_kept(tmp_path, monkeypatch):
    fresh = teacher_logits(teacher(), TEXTS, 16)
    first = teacher_logits(teacher(), TEXTS, 16, cache=tmp_path / "logits")
    monkeypatch.setattr(distillation, "read_logits", None)
    second = teacher_logits(teacher(), TEXTS, 16, cache=tmp_path / "logits")
    for found in (first, second):
        assert torch.equal(found.values, fresh.values)
        assert repr(found) == repr(fresh)
    assert len(list((tmp_path / "logits").iterdir())) == 1


def test_what_decides_the_logits_decides_the_entry(tmp_path):
    def entries(loaded=None, texts=TEXTS, max_length=16, **settings):
        teacher_logits(loaded or teacher(), texts, max_length, cache=tmp_path, **settings)
        return len(list(tmp_path.iterdir()))

    other = model(seed=8)
    assert entries(loaded=model(seed=7), precision="fp32") == 1
    assert entries(precision="fp32") == 1
    assert entries(texts=[*TEXTS[:-1], "bad bad bad"], precision="fp32") == 2
    assert entries(texts=TEXTS[::-1], precision="fp32") == 3
    assert entries(loaded=other, precision="fp32") == 4
    assert entries(max_length=8, precision="fp32") == 5
    assert entries(truncation="head", precision="fp32") == 6
    assert entries(precision="bf16") == 7
    with torch.no_grad():
        other.model.classifier.bias[0] += 1e-6
    assert entries(loaded=other, precision="fp32") == 8
    assert entries(precision="fp32", batch_size=2) == 8


def test_the_cache_is_never_in_the_way(tmp_path):
    fresh = teacher_logits(teacher(), TEXTS, 16)
    teacher_logits(teacher(), TEXTS, 16, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    for damaged in (entry.read_bytes()[:-40], b"", entry.read_bytes()[:200] + b"?" * 40):
        entry.write_bytes(damaged)
        again = teacher_logits(teacher(), TEXTS, 16, cache=tmp_path)
        assert torch.equal(again.values, fresh.values)
        assert len(np.load(entry)["logits"]) == 7  # mended
    no_folder = tmp_path / "file"
    no_folder.write_text("")
    assert torch.equal(teacher_logits(teacher(), TEXTS, 16, cache=no_folder).values, fresh.values)


def test_a_saved_teacher_is_the_same_teacher(tmp_path):
    save_model(teacher(), tmp_path / "saved", "card")
    assert model_digest(load_model(str(tmp_path / "saved")).model) == model_digest(teacher().model)


def test_texts_are_checked():
    with pytest.raises(TypeError, match="texts: expected a list of texts, found a single str"):
        teacher_logits(teacher(), "good")
    with pytest.raises(ValueError, match="row 1: expected a text, found an empty one"):
        teacher_logits(teacher(), ["good", " "])
    with pytest.raises(ValueError, match="max_length: expected at most 256"):
        teacher_logits(teacher(), TEXTS, 999)


# Soft targets -----------------------------------------------------------------------------------


def test_alpha_of_zero_is_plain_classification():
    loaded = model()
    batch = whole_batch(loaded)
    found = gradients(SoftTargets(TAUGHT, 3.0, alpha=0.0), loaded.model, batch)
    expected = gradients(classification, loaded.model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 0.7), (50.0, 0.5)])
def test_loss_and_gradient_are_those_of_the_formula(temperature, alpha):
    loaded = model()
    order = [4, 0, 6]
    batch, weight = whole_batch(loaded, order), loaded.model.classifier.bias
    with torch.no_grad():
        z = loaded.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    v, y = TAUGHT.values[order], torch.tensor(LABELS)[order]
    objective = SoftTargets(TAUGHT, temperature, alpha)
    loss = objective(loaded.model, batch, lambda loss: loss.backward())
    expected = 3 * distillation_loss_naive(z, v, y, temperature, alpha)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    grad = 3 * distillation_grad(z, v, y, temperature, alpha).sum(dim=0)  # of the bias
    torch.testing.assert_close(weight.grad, grad, rtol=1e-4, atol=1e-5)


def test_a_high_temperature_is_regression_of_centred_logits():
    loaded = model()
    batch = whole_batch(loaded)
    with torch.no_grad():
        z = loaded.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = gradients(SoftTargets(TAUGHT, 1e3, alpha=1.0), loaded.model, batch)
    difference = z - z.mean(1, keepdim=True) - TAUGHT.values + TAUGHT.values.mean(1, keepdim=True)
    expected = (difference / 2).sum(dim=0)  # over C = 2 classes
    torch.testing.assert_close(found["classifier.bias"], expected, rtol=0.01, atol=1e-3)


def test_t_squared_keeps_the_size_of_the_gradient():
    loaded = model()
    batch = whole_batch(loaded)
    sizes = []
    for temperature in (20.0, 80.0):
        found = gradients(SoftTargets(TAUGHT, temperature, 0.0), loaded.model, batch)
        sizes.append(sum(g.square().sum() for g in found.values()).sqrt().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_every_row_meets_its_own_logits_however_the_rows_are_split():
    """Shuffled, in batches of any size, accumulated: the same steps as in one batch of all."""
    objective = SoftTargets(TAUGHT, 2.0, 0.2)
    losses, whole = train(objective, batch_size=7, optimizer="sgd")
    for settings in ({"batch_size": 2, "gradient_accumulation_steps": 4},
                     {"batch_size": 3, "gradient_accumulation_steps": 3}):  # fmt: skip
        found, parts = train(objective, optimizer="sgd", seed=3, **settings)
        assert found == pytest.approx(losses, rel=1e-5)
        for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    turned = TeacherLogits(TAUGHT.values.flip(0), NAMES)
    assert train(SoftTargets(turned, 2.0, 0.2), batch_size=7)[0] != pytest.approx(losses, rel=0.01)


def test_a_step_that_ran_out_of_memory_is_done_again():
    seen = []

    class Cramped(SoftTargets):
        def __call__(self, net, batch, backward):
            seen.append(len(batch["rows"]))
            loss = super().__call__(net, batch, backward)
            if len(batch["rows"]) > 3:
                raise MemoryError
            return loss

    settings = {"batch_size": 7, "optimizer": "sgd"}
    expected, _ = train(SoftTargets(TAUGHT), **settings)
    found, _ = train(Cramped(TAUGHT), **settings)
    assert found == pytest.approx(expected, rel=1e-5)
    assert seen == [7, 3, 2, 2, 3, 2, 2]


@pytest.mark.parametrize("names", [("tiny", "tiny-decoder"), ("tiny-decoder", "tiny")])
@pytest.mark.parametrize("kind", ["whole", "bag"])
def test_teacher_and_student_of_different_tokenizers(names, kind):
    """The student comes to say what the teacher says, whatever the labels are."""
    told = teacher_logits(teacher(names[0]), TEXTS, 16, precision="fp32")
    student = model(names[1], scale=2.0)
    if kind == "bag":
        student = bag_student(student, 16, "fresh")
    objective = SoftTargets(told, temperature=1.0, alpha=1.0)
    train(objective, student, epochs=60, learning_rate=RATES[kind])
    found = evaluate(student.model, rows(student), precision="fp32").probabilities
    np.testing.assert_allclose(found, told.values.softmax(dim=1).numpy(), atol=0.05)
    assert np.ptp(found[:, 0]) > 0.2  # not one answer for all


def test_a_repr_tells_the_settings_and_the_logits_apart():
    told = repr(SoftTargets(TAUGHT, 2.0, 0.25))
    assert "temperature=2.0, alpha=0.25" in told and "(7, 2), sha256=" in told
    moved = TeacherLogits(TAUGHT.values + 1e-6, NAMES)
    others = [SoftTargets(moved, 2.0, 0.25), SoftTargets(TAUGHT, 3.0, 0.25), SoftTargets(TAUGHT)]
    assert len({told, *map(repr, others)}) == 4
    assert repr(SoftTargets(TeacherLogits(TAUGHT.values.clone(), NAMES), 2.0, 0.25)) == told


def test_a_run_is_resumed_with_its_own_logits_only(tmp_path):
    def run(told, stop_after=99):
        def stop(event, state):
            state.stop = state.step == stop_after

        student = model()
        config = dataclasses.replace(CONFIG, checkpoint_every=1)
        fit(student.model, rows(student), None, config, tmp_path, [stop], SoftTargets(told))
        return student.model

    expected = train(SoftTargets(TAUGHT))[1].model
    run(TAUGHT, stop_after=2)
    with pytest.raises(ValueError, match="objective: expected 'SoftTargets.*found 'SoftTargets"):
        run(TeacherLogits(-TAUGHT.values, NAMES))
    for a, b in zip(run(TAUGHT).parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("names", [{0: "positive", 1: "negative"}, {**NAMES, 2: "mixed"}])
def test_other_labels_are_refused(names):
    match = "student: expected the teacher's classes .*'negative', 1.*found .*teacher's id2label"
    with pytest.raises(ValueError, match=match):
        check_same_labels(NAMES, names)
    check_same_labels(names, dict(reversed(names.items())))
    student = load_model("tiny", names)
    for given in (student.model, FastBert(student.model)):
        with pytest.raises(ValueError, match=match):
            SoftTargets(TAUGHT)(given, whole_batch(student), torch.Tensor.backward)
    with pytest.raises(ValueError, match=match):
        MatchedStudent(student, teacher())


def test_settings_and_rows_are_checked():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"alpha: expected .* in \[0, 1\], found {alpha}"):
            SoftTargets(TAUGHT, alpha=alpha)
    with pytest.raises(ValueError, match="temperature: expected a number above 0, found 0"):
        SoftTargets(TAUGHT, temperature=0)
    short = TeacherLogits(TAUGHT.values[:5], NAMES)
    with pytest.raises(ValueError, match="every training row, found 5 and row number 6: compute"):
        train(SoftTargets(short), batch_size=7)


# Layer by layer ---------------------------------------------------------------------------------


def taught_by(student: LoadedModel, layers=None, **weights) -> tuple[MatchedStudent, LayerMatching]:
    matched = MatchedStudent(student, teacher(), layers)
    return matched, LayerMatching(matched, **weights)


def test_states_and_scores_are_those_of_transformers():
    net, batch = copy.deepcopy(teacher().model.bert), whole_batch(teacher())
    ids, mask = batch["input_ids"], batch["attention_mask"]
    net.set_attn_implementation("eager")
    with torch.no_grad():
        states = hidden_states(net, ids, mask)
        own = net(ids, mask, output_hidden_states=True, output_attentions=True)
        for layer, x, weights in zip(net.encoder.layer, states, own.attentions, strict=False):
            scores = attention_scores(layer, x).masked_fill(mask[:, None, None] == 0, -torch.inf)
            torch.testing.assert_close(scores.softmax(dim=-1), weights, rtol=1e-4, atol=1e-5)
    assert len(states) == len(own.hidden_states) == 3
    for a, b in zip(states, own.hidden_states, strict=True):
        torch.testing.assert_close(a[mask == 1], b[mask == 1], rtol=1e-4, atol=1e-5)


def test_a_copy_of_the_teacher_has_nothing_to_learn():
    matched, objective = taught_by(transformer_student(teacher(), layers=2))
    assert objective(matched.eval(), whole_batch(teacher()), lambda loss: None).item() == 0
    half, objective = taught_by(transformer_student(teacher(), layers=1))
    assert objective(half.eval(), whole_batch(teacher()), lambda loss: None).item() > 1


def test_errors_are_those_of_the_equations_and_blind_to_padding():
    """Row by row without padding, head by head, against torch's mean square error."""
    mse, layers = torch.nn.functional.mse_loss, (2, 1)
    student = model(hidden_size=16)
    matched, _ = taught_by(student, layers)
    with torch.no_grad():
        for projection in (matched.hidden_projection, matched.embedding_projection):
            projection.weight.normal_()
        batch = whole_batch(student)
        found = matched.eval()(batch["input_ids"], batch["attention_mask"], match=True)
        plain = student.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(found.logits, plain, rtol=1e-4, atol=1e-5)
        for row in range(7):
            ids = rows(student)[row]["input_ids"][None]
            nets = student.model.bert, teacher().model.bert
            own, taught = (hidden_states(net, ids, torch.ones_like(ids)) for net in nets)
            embeddings = mse(own[0] @ matched.embedding_projection.weight.T, taught[0])  # eq. 9
            hidden = attention = 0
            for m, n in enumerate(layers, start=1):
                hidden += mse(own[m] @ matched.hidden_projection.weight.T, taught[n])  # eq. 8
                a = attention_scores(nets[0].encoder.layer[m - 1], own[m - 1])
                b = attention_scores(nets[1].encoder.layer[n - 1], taught[n - 1])
                attention += sum(mse(a[:, h], b[:, h]) for h in range(2)) / 2  # eq. 7
            for a, b in zip(found[1:], (embeddings, hidden, attention), strict=True):
                torch.testing.assert_close(a[row], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_projections_are_trained_and_stay_behind(precision):
    student = model(hidden_size=16)
    matched, objective = taught_by(student, targets=SoftTargets(TAUGHT))
    before, kept = copy.deepcopy(matched.state_dict()), model_digest(teacher().model)
    names, config = list(student.model.state_dict()), dataclasses.replace(CONFIG, epochs=15)
    config = dataclasses.replace(config, precision=precision, learning_rate=0.01)
    state = fit(matched, rows(student), rows(student), config, objective=objective)
    assert state.steps[-1]["loss"] < 0.7 * state.steps[0]["loss"]
    for name in ("hidden_projection.weight", "embedding_projection.weight"):
        assert not torch.equal(matched.state_dict()[name], before[name])
    assert model_digest(teacher().model) == kept
    assert all(p.grad is None for p in teacher().model.parameters())
    assert list(student.model.state_dict()) == names
    extra = {"hidden_projection.weight", "embedding_projection.weight"}
    assert set(matched.state_dict()) == extra | {f"student.{name}" for name in names}
    assert isinstance(faster(student.model), FastBert)  # no hooks were left
    logits = [evaluate(m, rows(student)).probabilities for m in (matched, student.model)]
    np.testing.assert_array_equal(*logits)


def test_matching_adds_up_over_micro_batches():
    found = []
    for settings in ({"batch_size": 7}, {"batch_size": 2, "gradient_accumulation_steps": 4}):
        matched, objective = taught_by(model(hidden_size=16), attention=0.5, embeddings=0.0,
                                       targets=SoftTargets(TAUGHT))  # fmt: skip
        config = dataclasses.replace(CONFIG, optimizer="sgd", **settings)
        state = fit(matched, rows(teacher()), None, config, objective=objective)
        found.append(([e["loss"] for e in state.steps], matched.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-5)


def test_what_can_not_be_matched():
    with pytest.raises(ValueError, match="teacher: expected a BertFor.*found LlamaFor.*Soft"):
        MatchedStudent(model(), teacher("tiny-decoder"))
    foreign = dataclasses.replace(model(), tokenizer=model("tiny-decoder").tokenizer)
    foreign.tokenizer.add_tokens("[NEW]")
    with pytest.raises(ValueError, match="share a tokenizer.*found two: teach by logits instead"):
        MatchedStudent(foreign, teacher())
    for layers in [(1,), (1, 3), (0, 1)]:
        with pytest.raises(ValueError, match=r"layers: expected 2 numbers in 1…2, .*found \("):
            MatchedStudent(model(), teacher(), layers)
    with pytest.raises(ValueError, match="found 4 and 2: set attention=0"):
        taught_by(model(num_attention_heads=4))
    taught_by(model(num_attention_heads=4), attention=0.0)
    for weights in ({"hidden": -1.0}, {"hidden": 0.0, "attention": 0.0, "embeddings": 0.0}):
        with pytest.raises(ValueError, match="expected weights from 0, and one above 0 where"):
            taught_by(model(), **weights)
    with pytest.raises(ValueError, match="expected the MatchedStudent .*found FastBert: give that"):
        train(taught_by(model())[1])
