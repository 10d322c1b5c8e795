"""Students: what they start from, that they are plain models, and how they are measured."""

from __future__ import annotations

import dataclasses
import math
import time
from functools import cache

import numpy as np
import pytest
import torch

from tutorkit.comparison import (
    Contender,
    Latency,
    agreement,
    compare,
    fidelity,
    latency,
    one_by_one,
)
from tutorkit.data import SentimentDataset
from tutorkit.fast_bert import FastBert, faster
from tutorkit.metrics import accuracy_interval
from tutorkit.models import count_parameters, load_model, non_embedding_parameters, save_model
from tutorkit.prediction import predict_texts
from tutorkit.students import bag_student, every_kth, transformer_student
from tutorkit.training import TrainConfig, evaluate, fit

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["good", "a bad film", "fine fine fine", "dull", "great fun", "not good at all " * 9]
LABELS = [1, 0, 1, 0, 1, 0]
NAMES = {0: "bad", 1: "middling", 2: "good"}


@cache
def teacher(name: str = "tiny"):
    return load_model(name, NAMES, seed=3)


def rows(loaded, max_length: int = 24) -> SentimentDataset:
    return SentimentDataset(TEXTS, LABELS, loaded.tokenizer, max_length)


def logits(loaded, padding: int = 0) -> torch.Tensor:
    batch = rows(loaded).batch(range(len(TEXTS)))
    ids = torch.nn.functional.pad(batch["input_ids"], (0, padding), value=7)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, padding))
    with torch.no_grad():
        return loaded.model(ids, attention_mask=mask).logits


def test_every_kth_layer_ends_with_the_last():
    assert every_kth(6, 2) == (3, 6)
    assert every_kth(6, 3) == (2, 4, 6)
    assert every_kth(6, 4) == (2, 3, 5, 6)
    assert every_kth(6, 6) == (1, 2, 3, 4, 5, 6)
    assert every_kth(12, 4) == (3, 6, 9, 12)  # TinyBERT's n = 3 m
    for wrong in (0, 7):
        with pytest.raises(ValueError, match=f"layers: expected 1…6, .*found {wrong}"):
            every_kth(6, wrong)


def test_all_the_teachers_layers_are_the_teacher():
    student = transformer_student(teacher(), layers=2)
    torch.testing.assert_close(logits(student), logits(teacher()), rtol=0, atol=0)
    assert student.model is not teacher().model
    shared = {p.data_ptr() for p in teacher().model.parameters()}
    assert not shared & {p.data_ptr() for p in student.model.parameters()}


def test_one_copied_layer_is_the_teachers_last():
    student = transformer_student(teacher(), layers=1)
    own, last = student.model.bert.encoder.layer[0], teacher().model.bert.encoder.layer[1]
    for a, b in zip(own.parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(student.model.bert.encoder.layer) == student.model.config.num_hidden_layers == 1
    assert "layers [2] of tiny" in student.source


def test_fresh_layers_keep_only_the_embeddings():
    student = transformer_student(teacher(), layers=2, start="fresh", seed=5)
    torch.rand(1)
    again = transformer_student(teacher(), layers=2, start="fresh", seed=5)
    other = transformer_student(teacher(), layers=2, start="fresh", seed=6)
    drawn = set(student.head)
    for name, p in teacher().model.named_parameters():
        own = student.model.get_parameter(name)
        assert torch.equal(own, again.model.get_parameter(name))
        assert (name in drawn) == (".embeddings." not in name)
        if p.ndim == 2:  # biases and norms start at 0 and 1 anyhow
            assert torch.equal(own, p) == (name not in drawn)
            assert torch.equal(own, other.model.get_parameter(name)) == (name not in drawn)


def test_drawing_a_student_leaves_the_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    transformer_student(teacher(), 1, "fresh")
    bag_student(teacher(), 8, "fresh")
    assert torch.equal(torch.rand(2), expected)


def test_a_transformer_student_is_saved_as_a_plain_model(tmp_path):
    student = transformer_student(teacher(), layers=1)
    assert isinstance(faster(student.model), FastBert)
    save_model(student, tmp_path / "student", "card")
    loaded = load_model(str(tmp_path / "student"), NAMES)
    assert loaded.head == []
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=0)


def test_a_bag_is_the_mean_of_its_embeddings():
    student = bag_student(teacher(), start="teacher")
    table = teacher().model.bert.embeddings.word_embeddings.weight
    assert torch.equal(student.model.embeddings.weight, table)
    found = logits(student)
    data, classifier = rows(student), student.model.classifier
    for row in range(len(data)):
        ids = data[row]["input_ids"]
        mean = sum(table[i] for i in ids.tolist()) / len(ids)
        torch.testing.assert_close(found[row], classifier.weight @ mean + classifier.bias)


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_padding_changes_nothing_in_a_bag(name):
    student = bag_student(teacher(name), dim=8, start="fresh")
    torch.testing.assert_close(logits(student, padding=19), logits(student), rtol=0, atol=1e-6)


def test_a_bag_computes_in_fp32():
    student = bag_student(teacher())
    expected = logits(student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(logits(student), expected)


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_a_bag_is_trained_saved_and_used_like_any_model(name, tmp_path):
    student = bag_student(teacher(name), dim=16, start="fresh")
    config = TrainConfig(epochs=20, batch_size=3, learning_rate=0.05, device="cpu")
    state = fit(student.model, rows(student), rows(student), config)
    assert state.best["accuracy"] == 1.0
    assert evaluate(student.model, rows(student), precision="fp32").accuracy == 1.0
    assert predict_texts(student, TEXTS)["label"].tolist() == [NAMES[y] for y in LABELS]
    save_model(student, tmp_path / "bag", "card")
    files = {path.name for path in (tmp_path / "bag").iterdir()}
    assert {"model.safetensors", "config.json"} <= files
    loaded = load_model(str(tmp_path / "bag"), NAMES)
    assert loaded.head == [] and type(loaded.model) is type(student.model)
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=0)


def test_parameters_are_counted():
    words = len(teacher().tokenizer)
    bag = bag_student(teacher(), dim=16, start="fresh").model
    assert count_parameters(bag)[0] == words * 16 + 16 * 3 + 3
    assert non_embedding_parameters(bag) == 16 * 3 + 3
    one, two = (transformer_student(teacher(), n).model for n in (1, 2))
    layer = sum(p.numel() for p in two.bert.encoder.layer[0].parameters())
    assert non_embedding_parameters(two) - non_embedding_parameters(one) == layer
    assert count_parameters(two)[0] - count_parameters(one)[0] == layer


def test_what_a_student_can_not_be():
    with pytest.raises(ValueError, match="teacher: expected a BertForSeq.*found Llama"):
        transformer_student(teacher("tiny-decoder"))
    with pytest.raises(ValueError, match="layers: expected 1…2"):
        transformer_student(teacher(), layers=3)
    for build in (transformer_student, bag_student):
        with pytest.raises(ValueError, match=r"start: expected one of \('teacher', .*found 'old'"):
            build(teacher(), start="old")
    with pytest.raises(ValueError, match="dim: expected 32, .*found 8: leave it out"):
        bag_student(teacher(), dim=8)


@pytest.mark.parametrize("truncation", ["head", "head+tail"])
@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_one_text_at_a_time_gives_the_probabilities_of_a_batch(name, truncation):
    loaded = teacher(name)
    data = SentimentDataset(TEXTS, LABELS, loaded.tokenizer, 12, truncation)
    expected = evaluate(loaded.model, data, precision="fp32").probabilities
    predict_one = one_by_one(loaded, 12, truncation)
    np.testing.assert_allclose([predict_one(text) for text in TEXTS], expected, atol=1e-6)
    with pytest.raises(ValueError, match="max_length: expected at most 256"):
        one_by_one(loaded, 257)


def test_latency_takes_the_least_disturbed_round_of_each_text(monkeypatch):
    """A clock that only the model moves: text i takes i ms, and longer in every round but one."""
    now, seen = 0.0, []

    def predict_one(text):
        nonlocal now
        seen.append((text, torch.get_num_threads()))
        number, at = int(text), (len(seen) - 1) // 20
        now += (number + (0 if at == 1 + number % 3 else 50)) / 1000

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    torch.set_num_threads(2)
    try:
        found = latency(predict_one, [str(i) for i in range(1, 21)], repeats=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert found.n == 20 and found.median_ms == pytest.approx(10.5)
    assert found.p95_ms == pytest.approx(np.percentile(np.arange(1, 21), 95))
    assert [text for text, _ in seen] == [str(i) for i in range(1, 21)] * 4  # one not counted
    assert {threads for _, threads in seen} == {1}


def test_latency_restores_the_threads_after_an_error():
    def broken(text):
        raise KeyError(text)

    before = torch.get_num_threads()
    with pytest.raises(KeyError):
        latency(broken, ["a"])
    assert torch.get_num_threads() == before
    for texts, repeats in (([], 1), (["a"], 0)):
        with pytest.raises(ValueError, match="at least one text and one repeat, found"):
            latency(str, texts, repeats)


def test_agreement_and_fidelity_by_hand():
    found = agreement([0, 1, 1, 0, 2], np.array([0, 1, 0, 0, 2]))
    assert found == {"n": 5, "share": 0.8, "ci95": list(accuracy_interval(4, 5))}
    p, q = np.array([[1 / 4, 3 / 4], [1, 0]]), np.array([[1 / 2, 1 / 2], [1 / 2, 1 / 2]])
    by_hand = (math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4 + math.log(2)) / 2
    assert fidelity(p, q) == pytest.approx(by_hand, abs=1e-12)
    assert fidelity(p, p) == pytest.approx(0, abs=1e-12)
    assert fidelity(q, p) > 100  # it gave no chance at all to what the other holds possible
    for a, b in (([0], [0, 1]), ([], []), (np.eye(2), np.eye(2))):
        with pytest.raises(ValueError, match="same rows, found shapes .*argmax"):
            agreement(a, b)
    with pytest.raises(ValueError, match=r"same rows, found shapes \(2, 2\) and \(1, 2\)"):
        fidelity(p, q[:1])


def test_the_table_of_a_comparison():
    labels = [0, 1, 1, 0]
    big = Contender("teacher", 100, 60, Latency(8.0, 9.0, 4), np.eye(2)[[0, 1, 1, 1]] * 0.8 + 0.1)
    small = Contender("student", 20, 5, Latency(2.0, 3.0, 4), np.eye(2)[[0, 1, 0, 1]] * 0.6 + 0.2)
    table = compare([big, small], labels)
    low, high = accuracy_interval(2, 4)
    same_low, same_high = accuracy_interval(3, 4)
    expected = {
        "model": "student", "parameters": 20, "non_embedding": 5, "median_ms": 2.0, "p95_ms": 3.0,
        "speedup": 4.0, "accuracy": 0.5, "of_teacher": 0.5 / 0.75, "accuracy_low": low,
        "accuracy_high": high, "agreement": 0.75, "agreement_low": same_low,
        "agreement_high": same_high, "kl": fidelity(big.probabilities, small.probabilities),
    }  # fmt: skip
    assert list(table.columns) == list(expected)
    assert table.iloc[1].to_dict() == expected
    first = table.iloc[0]
    assert (first.speedup, first.of_teacher, first.agreement) == (1, 1, 1)
    with pytest.raises(ValueError, match="rows: expected the teacher and its students"):
        compare([], labels)
    short = dataclasses.replace(small, probabilities=small.probabilities[:3])
    with pytest.raises(ValueError, match="student: expected probabilities for the 4 .*found 3"):
        compare([big, short], labels)
