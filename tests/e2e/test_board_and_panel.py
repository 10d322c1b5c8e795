"""The live training board and its Stop button, and the panel that answers a typed review."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

from lab import Server
from pages import Lesson, expect

# Seconds from the press to the end of the cell, on a busy machine; alone it takes one.
STOP_LIMIT, STOP_LIMIT_OF_THE_LESSON = 10.0, 30.0
ANSWER_LIMIT = 20_000  # milliseconds for an answer, on a busy machine
WIDGET = "application/vnd.jupyter.widget-view+json"

PREPARE = """
from tutorkit.board import TrainingBoard
from tutorkit.data import SentimentDataset
from tutorkit.models import load_model
from tutorkit.training import TrainConfig, evaluate, fit

loaded = load_model("tiny")
texts = ["what a joy", "dull and long", "a fine cast", "no plot at all"] * 8
labels = [1, 0, 1, 0] * 8
train = SentimentDataset(texts, labels, loaded.tokenizer, max_length=16)
# Its labels are the opposite ones: what is learnt makes it worse, so an early evaluation is best.
validation = SentimentDataset(texts, [1 - y for y in labels], loaded.tokenizer, max_length=16)
"""
TRAIN = """
config = TrainConfig(epochs=50_000, batch_size=4, learning_rate=1e-3, warmup_ratio=0.0,
                     evaluations_per_epoch=1, patience=None, precision="fp32", device="cpu")
state = fit(loaded.model, train, validation, config, callbacks=[TrainingBoard()])
"""
COMPARE = """
kept = evaluate(loaded.model, validation, 8, precision="fp32", device="cpu").loss
print("best weights:", kept == state.best["loss"])
print("the last were worse:", state.evaluations[-1]["loss"] > kept + 0.5)
print("steps:", state.step, "of", state.total_steps)
"""
BOARD = "callbacks=[TrainingBoard()]"  # of this notebook and of lesson 04


def wait_for_text(lesson: Lesson, cell: int | str, text: str | re.Pattern) -> None:
    expect(lesson.output(cell)).to_contain_text(text, timeout=60_000)


def steps_shown(lesson: Lesson, cell: int | str) -> int:
    found = re.search(r"step ([\d,]+) of", lesson.output(cell).inner_text())
    return int(found[1].replace(",", "")) if found else 0


def press_stop(lesson: Lesson, cell: int | str, limit: float = STOP_LIMIT) -> tuple[int, int]:
    """Press Stop while the cell runs; returns the steps done and the steps there would have been.

    Before that the board has to be alive: a button to press, and a picture that changes.
    """
    stop = lesson.button(cell, "Stop")
    expect(stop).to_be_visible(timeout=60_000)
    expect(stop).to_be_enabled()
    wait_for_text(lesson, cell, re.compile(r"step [\d,]+ of [\d,]+, epoch .* left"))
    picture = lesson.output(cell).locator("img")
    expect(picture).to_be_visible()
    first, steps, end = picture.screenshot(), steps_shown(lesson, cell), time.monotonic() + 60
    while picture.screenshot() == first or steps_shown(lesson, cell) == steps:
        assert time.monotonic() < end, "the board does not change"
        time.sleep(0.2)
    expect(lesson.prompt(cell)).to_have_text("[*]:")
    pressed = time.monotonic()
    stop.click()
    wait_for_text(lesson, cell, "training over: stopped by hand")
    lesson.wait_end(cell)
    seconds = time.monotonic() - pressed
    print(f"from Stop to the end of the cell: {seconds:.1f} s")
    assert seconds < limit
    said = lesson.output(cell).inner_text()
    done, total = re.search(r"stopped by hand, ([\d,]+) of ([\d,]+) steps", said).groups()
    return int(done.replace(",", "")), int(total.replace(",", ""))


def assert_no_widget_is_left(lesson: Lesson, cell: int | str) -> None:
    output = lesson.output(cell)
    expect(output.get_by_role("button", name="Stop")).to_have_count(0)
    expect(output.locator(".jupyter-widgets")).to_have_count(0)
    expect(output.locator("img[src^='data:image/png']").first).to_be_visible()
    expect(output).not_to_contain_text("Error displaying widget")


def test_stop_ends_a_training_and_keeps_the_best_weights(
    open_lesson: Callable, server: Server
) -> None:
    lesson = open_lesson(server.add("stop.ipynb", PREPARE, TRAIN, COMPARE))
    lesson.run(0, limit=120)
    lesson.start(1)
    wait_for_text(lesson, 1, "; best 0.5000 at step 8")  # there are weights to keep
    done, total = press_stop(lesson, 1)
    assert total == 400_000
    assert 0 < done < total / 10
    assert_no_widget_is_left(lesson, 1)

    lesson.run(2)
    expect(lesson.output(2)).to_have_text(
        f"best weights: True the last were worse: True steps: {done} of {total}"
    )
    assert lesson.errors() == []
    assert lesson.messages == []
    assert lesson.outside == []

    lesson.save()
    stored = json.loads((server.notebooks / "stop.ipynb").read_text(encoding="utf-8"))
    outputs = stored["cells"][1]["outputs"]
    pictures = [set(output["data"]) for output in outputs if "data" in output]
    assert pictures == [{"image/png", "text/plain"}]
    assert WIDGET not in json.dumps(stored)
    assert not stored["metadata"].get("widgets")
    text = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")
    assert text.startswith("training over: stopped by hand, ")


def test_stop_works_in_the_lesson_on_training(open_lesson: Callable) -> None:
    """The cells that its last training needs, with more steps, so that there is time to stop."""
    lesson = open_lesson("04_training.ipynb")
    parameters = lesson.tagged("parameters")[0]
    source = lesson.cells()[parameters]["source"]
    for name, value in {"batch_size": 4, "fine_tuned_rows": 440}.items():
        source, replaced = re.subn(rf"(?m)^{name} = \d+", f"{name} = {value}", source)
        assert replaced == 1
    lesson.write(parameters, source)
    lesson.run(parameters)
    lesson.run("loaded = load_model(model, seed=seed)", limit=120)
    lesson.start(BOARD)
    done, total = press_stop(lesson, BOARD, STOP_LIMIT_OF_THE_LESSON)
    assert 0 < done < total == 2 * 440 / 4
    # The last picture of the board, and the figure that the lesson draws.
    expect(lesson.output(BOARD).locator("img[src^='data:image/png']")).to_have_count(2)
    assert_no_widget_is_left(lesson, BOARD)
    assert lesson.errors() == []
    assert lesson.messages == []


LEARN = """
from tutorkit import panel
from tutorkit.data import SentimentDataset
from tutorkit.models import load_model
from tutorkit.training import TrainConfig, fit

loaded = load_model("tiny")
texts = ["a good film", "a bad film", "good story , good cast", "bad story , bad cast",
         "it was good", "it was bad"] * 4
rows = SentimentDataset(texts, [1, 0] * 12, loaded.tokenizer, max_length=32)
config = TrainConfig(epochs=20, batch_size=6, learning_rate=1e-3, precision="fp32", device="cpu")
state = fit(loaded.model, rows, None, config)
print("learnt:", state.steps[-1]["loss"] < 0.5)
"""
PANEL = 'panel.try_review(loaded.model, loaded.tokenizer, 1.5, text="")'


def ask(lesson: Lesson, review: str) -> None:
    """Type a review into the panel, in the place of the one before, and press the button."""
    box = lesson.output(PANEL).get_by_role("textbox")
    box.fill("")
    box.press_sequentially(review)
    lesson.button(PANEL, "Ask the model").click()


def marked(lesson: Lesson) -> dict[str, str]:
    """The marked words of the answer, and how each is underlined."""
    spans = lesson.output(PANEL).locator("span[style*='border-bottom']")
    return dict(spans.evaluate_all(
        "spans => spans.map(s => [s.textContent, getComputedStyle(s).borderBottomStyle])"
    ))  # fmt: skip


def test_the_panel_answers_what_is_typed(open_lesson: Callable, server: Server) -> None:
    lesson = open_lesson(server.add("panel.ipynb", LEARN, PANEL))
    lesson.run(0, limit=120)
    expect(lesson.output(0)).to_have_text(re.compile(r"learnt: True\s*$"))
    lesson.run(PANEL)
    output = lesson.output(PANEL)
    expect(output.get_by_role("textbox")).to_have_attribute("placeholder", "Type a review")
    expect(output).not_to_contain_text("probability")  # nothing is asked yet

    lesson.button(PANEL, "Ask the model").click()
    expect(output).to_contain_text("There is no text yet: type a review first.",
                                   timeout=ANSWER_LIMIT)  # fmt: skip
    ask(lesson, "a good film , so good")
    verdict = re.compile(r"positive, probability (0\.\d\d|1\.00) \(calibrated\)")
    expect(output).to_contain_text(verdict, timeout=ANSWER_LIMIT)
    assert marked(lesson).get("good") == "solid"  # it speaks for the label
    first = output.inner_text()

    ask(lesson, "a bad film , and <b>bad</b> music")
    expect(output).to_contain_text("negative, probability", timeout=ANSWER_LIMIT)
    expect(output).not_to_contain_text("positive, probability")
    assert marked(lesson).get("bad") == "solid" and "good" not in marked(lesson)
    assert output.inner_text() != first
    expect(output.locator("p", has_text="a bad film")).to_contain_text("<b>bad</b>")  # as typed
    output.get_by_text("The strongest words in numbers").click()
    expect(output.get_by_role("row", name="word score")).to_be_visible()
    expect(output.get_by_role("row", name="bad +").first).to_be_visible()

    ask(lesson, "   ")
    expect(output).to_contain_text("There is no text yet", timeout=ANSWER_LIMIT)
    expect(output).not_to_contain_text("probability")
    expect(lesson.button(PANEL, "Ask the model")).to_be_enabled()
    assert lesson.errors() == []
    assert lesson.messages == []
    assert lesson.outside == []
