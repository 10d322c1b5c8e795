"""Any text gets an answer or a sentence, and what is typed is shown, never run."""

from __future__ import annotations

import math
import re
import time
from copy import deepcopy
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from tutorkit import panel
from tutorkit.explain import Explanation, WordScore
from tutorkit.models import load_model
from tutorkit.panel import Answer, answer, answer_html, answer_text, fit_temperature, try_review

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def tiny():
    return load_model("tiny")


def ask(text: str, **settings) -> Answer:
    return answer(text, tiny().model, tiny().tokenizer, **settings)


# --- temperature --------------------------------------------------------------------------------


def nll(z, y, temperature):
    z = z / temperature
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]).mean())


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_known_temperature_is_found(temperature, classes):
    """Labels drawn from softmax(z): of the logits T z the temperature is T."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60_000, classes)) * 2
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    y = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)
    assert fit_temperature(temperature * z, y) == pytest.approx(temperature, rel=0.02)


def test_the_temperature_is_the_lowest_nll():
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    z[np.arange(50), y] += 0.7
    found = fit_temperature(z, y)
    oracle = minimize_scalar(lambda t: nll(z, y, t), bounds=(0.01, 50), method="bounded",
                             options={"xatol": 1e-10})  # fmt: skip
    assert found == pytest.approx(oracle.x, rel=1e-6)
    assert nll(z, y, found) < nll(z, y, 1.0)


def test_a_temperature_by_hand():
    """Three rows of four right, all with logits (0, 2): p must be 3/4, so 2/T = ln 3."""
    z = np.array([[0.0, 2.0]] * 4)
    assert fit_temperature(z, [1, 1, 1, 0]) == pytest.approx(2 / math.log(3))
    # log-probabilities are logits too
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    assert fit_temperature(log_p, [1, 1, 1, 0]) == pytest.approx(2 / math.log(3))


def test_what_has_no_temperature_says_so():
    with pytest.raises(ValueError, match="expected a wrong row among the 2, found none"):
        fit_temperature(np.array([[0.0, 1.0], [3.0, 1.0]]), [1, 0])
    with pytest.raises(ValueError, match="none better than a guess"):
        fit_temperature(np.array([[0.0, 1.0], [3.0, 1.0]]), [0, 1])
    with pytest.raises(ValueError, match="labels: expected classes in 0…1"):
        fit_temperature(np.eye(2), [0, 2])
    with pytest.raises(ValueError, match="finite logits"):
        fit_temperature(np.array([[0.0, np.inf]]), [0])
    with pytest.raises(ValueError, match=r"found shapes \(2, 2\) and \(3,\)"):
        fit_temperature(np.eye(2), [0, 1, 1])


# --- the answer ---------------------------------------------------------------------------------


def test_a_temperature_changes_the_probability_and_not_the_label():
    raw, hot, cold = (ask("a fine film", temperature=t) for t in (None, 4.0, 0.01))
    assert raw.label == hot.label == cold.label in ("negative", "positive")
    odds = math.log(raw.probability / (1 - raw.probability))
    assert hot.probability == pytest.approx(1 / (1 + math.exp(-odds / 4)))
    assert cold.probability > raw.probability > hot.probability
    assert hot.raw_probability == raw.raw_probability == pytest.approx(raw.probability)


def test_it_says_whether_the_probability_is_calibrated():
    raw, hot = ask("a fine film"), ask("a fine film", temperature=2.0)
    assert "(not calibrated)" in raw.verdict and "(calibrated)" in hot.verdict
    assert any("no temperature was given" in note for note in raw.notes)
    assert hot.notes == ()


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan")])
def test_an_impossible_temperature(temperature):
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        ask("a fine film", temperature=temperature)


@pytest.mark.parametrize("text", ["", "  \n\t", "\u200b\u200d"])
def test_nothing_to_read(text):
    found = ask(text)
    assert found.label is None and len(found.notes) == 1 and found.words == ()
    assert answer_text(found) == f"No answer\n{found.notes[0]}"
    assert found.notes[0] in answer_html(found)


@pytest.mark.parametrize("text", ["😀😀", "这部电影太精彩了", "\ud83d alone", "\x00 a", "مرحبا"])
def test_any_characters_get_an_answer(text):
    found = ask(text, temperature=1.0)
    assert found.label in ("negative", "positive")
    answer_html(found).encode("utf-8")
    assert found.words


def test_unknown_characters_are_named():
    assert "2 of 2 tokens stand for characters" in ask("电影", temperature=1.0).notes[0]


def test_ten_thousand_words():
    begun = time.perf_counter()
    found = ask("wonderful but dull film " * 2500, temperature=1.0)
    html = answer_html(found)
    assert time.perf_counter() - begun < 5  # well below one second alone
    assert found.notes[0].startswith("The model read 126 of 10,000 words")
    assert html.count("[9,874 words not read]") == 1
    assert len(html) < 30_000


def test_one_endless_word():
    found = ask("x" * 150_000)
    assert found.notes[0] == "Only the first 100,000 of 150,000 characters were taken."
    assert max(map(len, answer_text(found).splitlines())) < 200


def test_a_model_in_training_is_left_alone():
    model = deepcopy(tiny().model).train()
    found = answer("a fine film", model, tiny().tokenizer)
    assert found.label is None and "being trained" in found.notes[0]
    assert all(module.training for module in model.modules())


def test_scores_that_do_not_add_up_are_called_a_hint():
    found = Explanation("a b", (WordScore("a", 0, 1, 0.1, True),), 0, (0.9, 0.1), 2.2, 0.2, 1.9,
                        "integrated_gradients", 2, 0)  # fmt: skip
    assert panel._doubts(found, 1.0) == [
        "The word scores miss +1.90 of a change of 2.00: take them as a hint only."]  # fmt: skip


# --- how it looks -------------------------------------------------------------------------------


class Reader(HTMLParser):
    """What a browser makes of it: the tags, and the text between them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_typed_html_is_shown_as_text():
    text = "<script>alert('x')</script> <img src=x onerror=\"y\"> &amp; film"
    read = Reader(answer_html(ask(text)))
    assert text in read.text
    assert set(read.tags) <= {"div", "p", "b", "span", "details", "summary", "table", "tr", "td",
                              "th", "br"}  # fmt: skip


def test_class_names_are_escaped_too():
    found = Answer("a", (), label="<b>bad</b>", probability=0.7, temperature=1.0)
    assert "<b>bad" not in answer_html(found)


def example() -> Answer:
    words = (WordScore("good", 0, 4, 2.0, True), WordScore("bad", 5, 8, -1.0, True),
             WordScore("the", 9, 12, 0.01, True), WordScore("cut", 13, 16, 0.0, False))  # fmt: skip
    explained = Explanation("good bad the cut", words, 1, (0.2, 0.8), 1.4, 0.3, 0.1,
                            "integrated_gradients", 3, 0)  # fmt: skip
    return Answer("good bad the cut", (), "positive", 0.8, 0.8, 1.0, explained)


def test_the_words_as_text():
    assert answer_text(example(), rows=2) == (
        "positive, probability 0.80 (calibrated)\n+2.00  good\n-1.00  bad")  # fmt: skip


def test_colour_is_not_the_only_sign():
    html = answer_html(example())
    good, bad = (re.search(rf"<span[^>]*>{word}</span>", html)[0] for word in ("good", "bad"))
    assert 'title="+2.00"' in good and "solid" in good
    assert 'title="-1.00"' in bad and "dotted" in bad
    assert "<td>good</td><td>+2.00</td>" in html and "<td>bad</td><td>-1.00</td>" in html
    assert ">the</span>" not in html and "[1 words not read]" not in html
    assert "[1 word not read]" in html


def test_dark_letters_keep_their_contrast():
    """WCAG 2.1 asks for 4.5 to 1; the strongest colours are half white."""
    from tutorkit.plots import _luminance

    html = answer_html(example())
    fills = re.findall(r"background:(#[0-9A-F]{6})", html)
    assert len(set(fills)) > 3
    for fill in fills:
        assert (_luminance(fill) + 0.05) / (_luminance(panel.INK) + 0.05) > 4.5


# --- the box ------------------------------------------------------------------------------------


def test_the_button_asks_the_model():
    box = try_review(tiny().model, tiny().tokenizer, temperature=2.0)
    area, button, shown = box.children
    assert shown.value == ""
    button.click()
    assert "There is no text yet" in shown.value
    area.value = "a <i>fine</i> film"
    button.click()
    assert shown.value == answer_html(ask(area.value, temperature=2.0))
    assert not button.disabled


def test_a_first_text_is_answered_at_once():
    shown = try_review(tiny().model, tiny().tokenizer, text="a fine film").children[2]
    assert shown.value == answer_html(ask("a fine film"))


def test_a_failure_is_shown_where_the_reader_looks():
    model = deepcopy(tiny().model)
    model.classifier = torch.nn.Linear(3, 2)
    box = try_review(model, tiny().tokenizer)
    area, button, shown = box.children
    area.value = "a film"
    button.click()
    assert "No answer: RuntimeError" in shown.value
    assert not button.disabled
