"""Scores of words: by hand, against finite differences, complete, and put to the test."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from tutorkit import explain as explain_module
from tutorkit.explain import (
    NoWords,
    WordScore,
    deletion_check,
    explain,
    gradient_times_input,
    integrated_gradients,
    integrated_gradients_naive,
    log_odds_of_embeddings,
    predict_logits,
    without_words,
    word_spans,
)
from tutorkit.models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "A wonderful film, but don't expect an unwatchable-ish plot!"


@cache
def pair(name: str):
    """A tiny model with weights large enough to say something, in float64, and its tokenizer."""
    loaded = load_model(name)
    model = deepcopy(loaded.model).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        # The pad row is zero as built; a decoder that normalises its input is not smooth there.
        table = model.get_input_embeddings().weight
        table[loaded.tokenizer.pad_token_id] = table[-40:].mean(dim=0) + 0.05
    return model, loaded.tokenizer


# --- formulas -----------------------------------------------------------------------------------


def polynomial(path):
    """f = 3 a + b² c of the three tokens a, b, c (B, 3, 1)."""
    a, b, c = path[..., 0].unbind(dim=1)
    return 3 * a + b**2 * c


def test_integrated_gradients_by_hand():
    """From zero to (1, 2, 3): the parts of b² c are 2/3 and 1/3 of 12, for ∫ 2α·α = 2/3."""
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    scores = integrated_gradients(polynomial, x, torch.zeros_like(x), steps=2)
    torch.testing.assert_close(scores, torch.tensor([3.0, 8.0, 4.0], dtype=torch.float64))


def test_gradient_times_input_by_hand():
    """Slopes at (1, 2, 3) are 3, 2·2·3 and 4: it does not sum to f = 15."""
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    scores = gradient_times_input(polynomial, x)
    torch.testing.assert_close(scores, torch.tensor([3.0, 24.0, 12.0], dtype=torch.float64))


def test_one_step_of_the_sum_is_gradient_times_input_from_zero():
    x = torch.randn(5, 2, dtype=torch.float64)

    def f(path):
        return path.sin().sum(dim=(1, 2)) + path[:, 0, 0] * path[:, 1, 1]

    naive = integrated_gradients_naive(f, x, torch.zeros_like(x), steps=1)
    torch.testing.assert_close(naive, gradient_times_input(f, x))


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_the_sum_of_the_paper_comes_to_the_same(name):
    """Its error falls with 1/m: ten times the steps, a tenth of the error."""
    model, tokenizer = pair(name)
    f, x, blank = function(model, tokenizer, "a wonderful film")
    used = integrated_gradients(f, x, blank, steps=60)
    errors = [
        (integrated_gradients_naive(f, x, blank, m) - used).abs().max().item() for m in (10, 100)
    ]
    assert errors[1] < 0.02 * used.abs().max()
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)


def function(model, tokenizer, text):
    ids = torch.tensor(tokenizer(text)["input_ids"])
    table = model.get_input_embeddings()
    blank = table(torch.full_like(ids, tokenizer.pad_token_id))
    return log_odds_of_embeddings(model, ids, 1), table(ids).detach(), blank.detach()


# The normalisation of transformers' Llama computes in float32, whatever the weights are.
@pytest.mark.parametrize("name, h, rel", [("tiny", 1e-5, 1e-6), ("tiny-decoder", 3e-4, 1e-3)])
def test_the_gradient_is_that_of_finite_differences(name, h, rel):
    model, tokenizer = pair(name)
    f, x, _ = function(model, tokenizer, "a dull film")
    gradient = explain_module._gradients(f, x[None])[0]
    largest = gradient.abs().max().item()
    rng = torch.Generator().manual_seed(1)
    for _ in range(8):
        t = int(torch.randint(len(x), (1,), generator=rng))
        d = int(torch.randint(x.shape[1], (1,), generator=rng))
        step = torch.zeros_like(x)
        step[t, d] = h
        with torch.no_grad():
            slope = (f((x + step)[None]) - f((x - step)[None])) / (2 * h)
        assert gradient[t, d].item() == pytest.approx(slope.item(), abs=rel * largest)
    assert largest > 1e-3


def test_log_odds_by_hand():
    logits = torch.tensor([[1.0, 3.0, 0.0]])
    p = logits.softmax(dim=1)[0, 1].item()
    found = explain_module._log_odds(logits, 1).item()
    assert found == pytest.approx(math.log(p / (1 - p)), rel=1e-5)


def test_no_steps():
    with pytest.raises(ValueError, match="steps: expected a whole number from 1, found 0"):
        integrated_gradients(polynomial, torch.ones(3, 1), torch.zeros(3, 1), steps=0)


# --- a text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
@pytest.mark.parametrize("label", [0, 1])
def test_completeness(name, label):
    """The scores sum to f(x) - f(baseline): the axiom of the paper."""
    model, tokenizer = pair(name)
    found = explain(model, tokenizer, TEXT, steps=60, label=label)
    total = sum(word.score for word in found.words)
    change = found.log_odds - found.baseline_log_odds
    assert abs(change) > 0.01
    assert total == pytest.approx(change, abs=1e-3 * abs(change))
    assert found.unexplained == pytest.approx(change - total, abs=1e-12)


def test_the_scores_of_two_classes_are_opposite():
    model, tokenizer = pair("tiny")
    one, zero = (explain(model, tokenizer, TEXT, label=label) for label in (1, 0))
    assert [w.score for w in one.words] == pytest.approx([-w.score for w in zero.words])


def test_the_prediction_is_the_models():
    model, tokenizer = pair("tiny")
    found = explain(model, tokenizer, TEXT)
    logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].detach()
    assert found.label == int(logits.argmax())
    assert found.probabilities == pytest.approx(logits.softmax(0).tolist())
    assert found.log_odds == pytest.approx(float(logits.max() - logits.min()))
    assert found.probability == max(found.probabilities)


def test_a_blank_text_is_the_baseline():
    """With zero as baseline, gradient x input is what one step at the text's end gives."""
    model, tokenizer = pair("tiny")
    pads = explain(model, tokenizer, TEXT, baseline="pad")
    zeros = explain(model, tokenizer, TEXT, baseline="zero")
    assert pads.log_odds == zeros.log_odds
    assert pads.baseline_log_odds != zeros.baseline_log_odds


def test_the_model_is_left_as_it_was():
    model, tokenizer = pair("tiny")
    model.train()
    model.classifier.eval()
    explain(model, tokenizer, TEXT)
    assert model.training and model.bert.training and not model.classifier.training
    assert not model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_another_thread_may_use_the_model_meanwhile():
    """A widget's callback runs beside the main thread: its hook must not answer for others."""
    model, tokenizer = pair("tiny")
    f, x, _ = function(model, tokenizer, "a dull film")
    ids = tokenizer("a dull film", return_tensors="pt")["input_ids"]
    before, during = model(ids).logits.detach(), []

    def look(*_anything):
        if not during:
            during.append(None)
            with ThreadPoolExecutor(1) as pool:
                during[0] = pool.submit(lambda: model(ids).logits.detach()).result()

    watching = model.classifier.register_forward_hook(look)
    with torch.no_grad():
        f(0 * x[None])
    watching.remove()
    torch.testing.assert_close(during[0], before)


def test_errors_say_what_is_allowed():
    model, tokenizer = pair("tiny")
    with pytest.raises(ValueError, match="method: expected one of .*'lime'"):
        explain(model, tokenizer, TEXT, method="lime")
    with pytest.raises(ValueError, match="baseline: expected one of .*'mean'"):
        explain(model, tokenizer, TEXT, baseline="mean")
    with pytest.raises(ValueError, match="label: expected a class in 0…1, found 2"):
        explain(model, tokenizer, TEXT, label=2)
    with pytest.raises(ValueError, match="max_length: expected at most 256"):
        explain(model, tokenizer, TEXT, max_length=300)
    for nothing in ("", " \n", "\u200b"):
        with pytest.raises(NoWords, match="at least one word"):
            explain(model, tokenizer, nothing)


# --- words --------------------------------------------------------------------------------------


def spans(text, offsets=()):
    return [text[a:b] for a, b in word_spans(text, offsets)]


def test_words():
    assert spans("Don't miss it!! A 7/10, well-made.") == [
        "Don't", "miss", "it", "!!", "A", "7/10", ",", "well-made", "."]  # fmt: skip
    assert spans("好电影 😀😀 ok") == ["好", "电", "影", "😀😀", "ok"]
    assert spans("") == []


def test_words_that_share_a_token_are_one():
    assert spans('fine." he', [(0, 4), (4, 6), (6, 9)]) == ["fine", '."', "he"]
    assert spans("电影 a", [(0, 2), (2, 4)]) == ["电影", "a"]
    assert spans("a, b", [(0, 2), (2, 4)]) == ["a,", "b"]


def test_a_words_score_is_the_sum_over_its_tokens():
    """`unwatchable` is in no vocabulary of 500 words: several tokens, one score."""
    model, tokenizer = pair("tiny")
    text = "an unwatchable film"
    assert len(tokenizer(text)["input_ids"]) > 6
    found = explain(model, tokenizer, text, method="gradient_x_input")
    assert [w.text for w in found.words] == text.split()
    f, x, _ = function(model, tokenizer, text)
    tokens = gradient_times_input(f, x)[1:-1] * (1 if found.label == 1 else -1)
    assert found.words[1].score == pytest.approx(float(tokens[1:-1].sum()))
    assert found.words[2].score == pytest.approx(float(tokens[-1]))


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_words_that_truncation_cuts_have_no_score(name):
    model, tokenizer = pair(name)
    text = " ".join(["fine"] * 5 + ["dull"] * 50 + ["film"] * 5)
    found = explain(model, tokenizer, text, max_length=12)
    seen = [word.seen for word in found.words]
    assert sum(seen) == found.tokens == (10 if name == "tiny" else 12)
    assert seen == seen[::-1]
    assert all(word.score == 0 for word in found.words if not word.seen)
    short = " ".join(word.text for word in found.words if word.seen)
    assert explain(model, tokenizer, short).log_odds == pytest.approx(found.log_odds)


def test_unknown_characters_are_counted():
    model, tokenizer = pair("tiny")
    found = explain(model, tokenizer, "film 电影 😀")
    assert (found.tokens, found.unknown) == (4, 3)
    assert len(found.words) == 4


# --- the check ----------------------------------------------------------------------------------


class OneWord(torch.nn.Module):
    """Its log-odds of class 1 are 2 for a text with the word, else -1."""

    def __init__(self, number: int):
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=256, num_labels=2)
        self.table = torch.nn.Embedding(1000, 1)
        with torch.no_grad():
            self.table.weight.zero_()
            self.table.weight[number] = 3.0

    @property
    def base_model(self):
        return self

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        total = (self.table(input_ids)[..., 0] * attention_mask).sum(dim=1) - 1
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(total), total], dim=1))


def test_deleting_the_one_word_that_matters():
    _, tokenizer = pair("tiny")
    number = tokenizer("film", add_special_tokens=False)["input_ids"][0]
    model = OneWord(number)
    found = explain(model, tokenizer, "a nice film with a good plot")
    assert (found.label, found.log_odds) == (1, 2.0)
    assert [round(w.score, 4) for w in found.words] == [0, 0, 3, 0, 0, 0, 0]
    check = deletion_check(model, tokenizer, found, k=1, draws=70)
    p = torch.tensor([2.0, -1.0]).sigmoid()
    assert check.deleted == ("film",)
    assert check.drop == pytest.approx(3.0)
    assert check.probability_drop == pytest.approx(float(p[0] - p[1]))
    # A random word is the right one 1 time in 7: the mean drop is about 3/7.
    hits = sum(drop > 1 for drop in check.random_drops)
    assert 3 <= hits <= 20
    assert check.random_drop == pytest.approx(3 * hits / 70)
    assert check.beaten == pytest.approx(1 - hits / 140)


def test_the_same_seed_draws_the_same_words():
    model, tokenizer = pair("tiny")
    found = explain(model, tokenizer, TEXT)
    one, same, other = (
        deletion_check(model, tokenizer, found, k=2, draws=5, seed=s) for s in (0, 0, 1)
    )
    assert one == same != other
    assert len(one.random_drops) == len(one.random_probability_drops) == 5


def test_a_word_is_left():
    model, tokenizer = pair("tiny")
    found = explain(model, tokenizer, "a fine film")
    for k in (0, 3):
        with pytest.raises(ValueError, match=rf"k in 1…2, .* found k={k}"):
            deletion_check(model, tokenizer, found, k=k)


def test_without_words():
    text = "a  fine film"
    words = [WordScore("film", 8, 12, 0.0, True), WordScore("a", 0, 1, 0.0, True)]
    assert without_words(text, words) == "fine"


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_logits_of_a_batch_are_those_of_each_text(name):
    model, tokenizer = pair(name)
    texts = ["dull", TEXT, "a fine film"]
    together = predict_logits(model, tokenizer, texts, batch_size=2)
    alone = torch.cat([predict_logits(model, tokenizer, [text]) for text in texts])
    torch.testing.assert_close(together, alone)
