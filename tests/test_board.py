"""The board: what it says and draws, and a Stop button pressed in a real kernel that is busy."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pytest
import zmq
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session
from zmq.eventloop.zmqstream import ZMQStream

from tutorkit import board
from tutorkit.board import Curves, TrainingBoard, best_line, is_click, status, thinned
from tutorkit.progress import Progress
from tutorkit.training import TrainConfig, TrainState

LIMIT = 60  # seconds, of anything in the kernel


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


def run_state(steps: int = 0, total: int = 40, **config: Any) -> TrainState:
    """A run of 2 s and 100 tokens a step, losses 1.0, 0.9, …; evaluated at every 2nd step."""
    state = TrainState(TrainConfig(**config), total_steps=total)
    for _ in range(steps):
        advance(state)
    return state


def advance(state: TrainState) -> None:
    state.step += 1
    state.seconds, state.tokens, state.epoch = 2.0 * state.step, 100 * state.step, state.step / 20
    loss = 1.1 - 0.1 * state.step
    state.steps.append({"step": state.step, "loss": loss, "learning_rate": 1e-5 * state.step})
    if state.step % 2 == 0:
        state.evaluations.append({"step": state.step, "loss": loss + 0.05,
                                  "accuracy": 0.5 + 0.1 * (state.step == 4)})  # fmt: skip
        if state.best is None or state.step == 4:
            state.best = state.evaluations[-1]


# --- words and curves ---------------------------------------------------------------------------


def test_the_status_by_hand():
    assert status(run_state(4)) == (
        "step 4 of 40, epoch 0.20, loss 0.850, 50 tokens/s, 1:12 left")  # fmt: skip


def test_a_resumed_run_judges_its_speed_by_its_own_steps():
    state = run_state(4)
    state.seconds = 2 * 2.0 + 2 * 5.0  # the last two steps took 5 s each
    assert status(state, first_step=2, first_seconds=4.0).endswith(", 3:00 left")


def test_the_validation_line():
    assert best_line(run_state(1)) == "no evaluation yet"
    assert best_line(run_state(6)) == (
        "validation at step 6: loss 0.5500, accuracy 0.5000; best 0.6000 at step 4")  # fmt: skip


def test_a_curve_is_thinned_by_means():
    at, means = thinned([1.0, 3.0, 5.0, 7.0, 8.0], most=3)
    assert at.tolist() == [2, 4, 5] and means.tolist() == [2.0, 6.0, 8.0]
    at, means = thinned([4.0, 5.0])
    assert at.tolist() == [1, 2] and means.tolist() == [4.0, 5.0]
    assert [len(part) for part in thinned([])] == [0, 0]
    assert len(thinned(np.zeros(123_456))[0]) <= board.MOST_POINTS


def test_the_curves_are_the_runs():
    state = run_state()
    curves = Curves(state)
    for _ in range(6):
        advance(state)
    curves.update()
    assert curves._each.get_xydata().tolist() == [[s, 1.1 - 0.1 * s] for s in range(1, 7)]
    assert curves._scores.get_xydata().tolist() == [[2, 0.5], [4, 0.6], [6, 0.5]]
    assert curves._best.get_xydata().tolist() == [[4, 0.6]]
    assert curves._rate.get_xydata()[0] == pytest.approx([6, 6e-5])
    assert curves.png().startswith(b"\x89PNG")


def test_a_new_point_moves_artists_only_and_a_large_loss_the_scale():
    state = run_state(2)
    curves = Curves(state)
    first = curves.png()
    background = curves._background
    advance(state)
    curves.update()
    assert curves.png() != first
    assert curves._background is background
    state.steps.append({"step": 4, "loss": 9.0, "learning_rate": 0.0})
    curves.update()
    assert curves._loss.get_ylim()[1] > 9
    assert curves.png() and curves._background is not background


def test_the_picture_redrawn_is_the_picture_drawn_at_once():
    state = run_state()
    grown = Curves(state)
    grown.png()
    for _ in range(8):
        advance(state)
        grown.update()
        grown.png()
    assert grown.png() == Curves(state).png()


# --- the board without a kernel -----------------------------------------------------------------


class Clock:
    """Stands for `time`: a redraw takes `cost` seconds."""

    def __init__(self):
        self.now, self.cost, self.calls = 0.0, 0.0, 0

    def monotonic(self) -> float:
        self.calls += 1
        self.now += self.cost
        return self.now


class Events:
    def __init__(self):
        self.hooks: list[Any] = []

    def register(self, _event: str, hook: Any) -> None:
        self.hooks.append(hook)

    def unregister(self, _event: str, hook: Any) -> None:
        self.hooks.remove(hook)


@pytest.fixture
def watched(monkeypatch):
    """A shell with a kernel, a person in front of it, and what is displayed."""
    shown: list[Any] = []
    shell = SimpleNamespace(kernel=SimpleNamespace(), events=Events(), shown=shown)
    monkeypatch.setattr(board, "_notebook_shell", lambda: shell)

    def display(bundle, raw, display_id):
        assert raw and display_id
        shown.append(bundle)
        return SimpleNamespace(update=lambda bundle, raw: shown.append(bundle))

    monkeypatch.setattr(IPython.display, "display", display)
    before = signal.getsignal(signal.SIGINT)
    yield shell
    assert signal.getsignal(signal.SIGINT) == before
    assert shell.events.hooks == []


def alive() -> set[str]:
    from ipywidgets.widgets import widget

    return set(widget._instances)


def test_a_click_stops_the_run_and_no_widget_stays(watched, capsys):
    before, state, live = alive(), run_state(), TrainingBoard()
    live("train_start", state)
    panel = live._shown
    assert len(alive() - before) > 5
    for _ in range(3):
        advance(state)
        live("step", state)
    assert not state.stop
    panel._stop.click()
    assert not state.stop  # only between steps
    advance(state)
    live("step", state)
    assert state.stop and panel._stop.disabled
    live("evaluation", state)
    live("train_end", state)
    assert alive() == before
    first, last = watched.shown
    assert "application/vnd.jupyter.widget-view+json" in first
    assert set(last) == {"image/png", "text/plain"}
    assert capsys.readouterr().out == (
        "training over: stopped by hand, 4 of 40 steps in 0:08; validation at step 4: loss "
        "0.7500, accuracy 0.6000; best 0.6000 at step 4\n")  # fmt: skip


def test_a_run_without_validation_rows(watched, capsys):
    before, state, live = alive(), run_state(), TrainingBoard(every_seconds=0.0)
    live("train_start", state)
    for _ in range(3):
        advance(state)
        state.evaluations, state.best = [], None
        live._shown._due = 0.0
        live("step", state)
    assert "step 3 of 40" in live._shown._text.value
    live("epoch_end", state)
    live("train_end", state)
    assert alive() == before
    assert set(watched.shown[-1]) == {"image/png", "text/plain"}
    said = capsys.readouterr().out
    assert said.startswith("training over: 3 of 40 steps in 0:06; no evaluation")


def test_redraws_rest_fifty_times_what_they_took(watched, monkeypatch):
    hands = Clock()
    monkeypatch.setattr(board, "time", hands)
    state, live = run_state(1), TrainingBoard(every_seconds=0.5)
    live("train_start", state)
    drawn = []
    monkeypatch.setattr(live._shown, "_picture", SimpleNamespace(tooltip="", close=lambda: None))
    original = live._shown._redraw
    monkeypatch.setattr(live._shown, "_redraw", lambda: (drawn.append(hands.now), original()))
    for hands.now in np.arange(0, 3, 0.1):
        live("step", state)
    assert 5 <= len(drawn) <= 6  # twice a second
    hands.cost = 0.05  # a look at the clock stands for a slow redraw
    live._shown._due, live._shown._cost = 0.0, math.inf
    live("step", state)
    assert live._shown._due == pytest.approx(hands.now + 50 * 0.05)
    live._shown.close("")


def test_a_second_run_and_one_that_failed(watched, capsys):
    before, live = alive(), TrainingBoard()
    live("train_start", run_state(1))  # fails: no train_end
    live("train_start", run_state(2))
    live("train_end", live._shown.state)
    live("train_start", run_state(3))
    (hook,) = watched.events.hooks
    other = threading.Thread(target=hook, args=[SimpleNamespace()])  # a cell of a subshell
    other.start()
    other.join()
    assert not live._shown._over
    hook(SimpleNamespace(error_in_exec=FloatingPointError()))  # the cell is over
    lines = [line.split(";")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "training over: ended by an error, 1 of 40 steps in 0:02",
        "training over: 2 of 40 steps in 0:04",
        "training over: ended by FloatingPointError, 3 of 40 steps in 0:06",
    ]
    assert alive() == before


def test_lines_where_nobody_watches(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    before, texts = alive(), []
    for callback in (TrainingBoard(), Progress()):
        state = run_state()
        callback("train_start", state)
        for _ in range(4):
            advance(state)
            callback("step", state)
            if state.step % 2 == 0:
                callback("evaluation", state)
        callback("train_end", state)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].count("\n") == 3
    assert alive() == before


def test_a_script_that_a_notebook_starts_shows_no_board(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "lesson.ipynb")  # inherited
    assert board._notebook_shell() is None


# --- messages and interrupts --------------------------------------------------------------------


def click(button: str) -> dict:
    return {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}}


def frames(session: Session, kind: str, content: dict) -> list[bytes]:
    return [b"someone", *session.serialize(session.msg(kind, content))]


def test_what_a_click_is():
    session = Session(key=b"secret")
    assert is_click(frames(session, "comm_msg", click("ab12")), b"ab12")
    assert not is_click(frames(session, "comm_msg", click("cd34")), b"ab12")
    assert not is_click(frames(session, "execute_request", click("ab12")), b"ab12")
    moved = {"comm_id": "ab12", "data": {"method": "update", "state": {"tooltip": "x"}}}
    assert not is_click(frames(session, "comm_msg", moved), b"ab12")
    for broken in ([], [b"stop aborting"], [b"<IDS|MSG>", b"", b"{}"]):
        assert not is_click(broken, b"ab12")


def test_messages_of_a_busy_kernel_6_are_read_between_steps_and_passed_on():
    """Up to ipykernel 6 the main thread reads the shell socket; all goes on in order."""

    async def busy() -> tuple[list[bool], list[str]]:
        context, passed, session = zmq.Context(), [], Session(key=b"secret")
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        stream = ZMQStream(router)

        def kernels_own(message):
            _identities, parts = session.feed_identities(message, copy=False)
            passed.append(session.deserialize(parts, copy=False)["msg_type"])

        stream.on_recv(kernels_own, copy=False)
        button = SimpleNamespace(model_id="ab12", on_click=lambda handler: None)
        clicks = board._Clicks(SimpleNamespace(shell_stream=stream), button, lambda: None)
        seen = [clicks.poll()]
        for kind, content in (("execute_request", {"code": "1"}), ("comm_msg", click("cd34"))):
            session.send(dealer, kind, content)
        time.sleep(0.1)
        seen.append(clicks.poll())
        session.send(dealer, "comm_msg", click("ab12"))
        session.send(dealer, "execute_request", {"code": "2"})
        time.sleep(0.1)
        seen += [clicks.poll(), clicks.waiting]
        clicks.close()
        session.send(dealer, "kernel_info_request", {})
        while len(passed) < 5:
            await asyncio.sleep(0.01)
        assert stream._recv_callback is kernels_own
        stream.close()
        dealer.close()
        context.term()
        return seen, passed

    seen, passed = asyncio.run(asyncio.wait_for(busy(), 10))
    assert seen == [False, False, True, True]
    assert passed == ["execute_request", "comm_msg", "comm_msg", "execute_request",
                      "kernel_info_request"]  # fmt: skip


def test_an_interrupt_outside_fit_is_one_as_usual():
    before = signal.getsignal(signal.SIGINT)
    interrupts = board._Interrupts()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not interrupts.asked
    assert signal.getsignal(signal.SIGINT) == before


# --- a real kernel ------------------------------------------------------------------------------

SETUP = """
import os
from tutorkit.board import TrainingBoard
from tutorkit.data import SentimentDataset
from tutorkit.models import load_model
from tutorkit.training import TrainConfig, evaluate, fit

loaded = load_model("tiny")
texts = ["what a joy", "dull and long", "a fine cast", "no plot at all"] * 4
rows = SentimentDataset(texts, [1, 0, 1, 0] * 4, loaded.tokenizer, max_length=16)

def train(epochs, **settings):
    config = TrainConfig(epochs=epochs, batch_size=4, patience=None, precision="fp32",
                         device="cpu", **settings)
    state = fit(loaded.model, rows, rows, config, callbacks=[TrainingBoard()])
    best = evaluate(loaded.model, rows, precision="fp32").loss == state.best["loss"]
    print(state.stop, 0 < state.step < state.total_steps, best)
"""
FOREVER = "train(1_000_000)"


class Notebook:
    """A kernel and its front end, with JupyterLab's sign that a person is there."""

    def __init__(self):
        self.manager = KernelManager()
        self.manager.start_kernel(env={**os.environ, "JPY_SESSION_NAME": "lesson.ipynb",
                                       "OMP_NUM_THREADS": "1"})  # fmt: skip
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LIMIT)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code: str, when_it_draws: Any = None) -> list[dict]:
        """Run a cell; `when_it_draws(button)` is called once the board has drawn twice."""
        cell, outputs, button, drawn = self.client.execute(code), [], None, 0
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=LIMIT)
            kind, content = message["msg_type"], message["content"]
            if kind in ("stream", "display_data", "update_display_data", "error"):
                outputs.append({"kind": kind, **content})
            if kind == "comm_open" and content["data"]["state"].get("_model_name") == "ButtonModel":
                button = content["comm_id"]
            if kind == "comm_msg" and content["data"].get("buffer_paths") == [["value"]]:
                drawn += 1
                if drawn == 2 and when_it_draws is not None:
                    when_it_draws(button)
            if (kind == "status" and content["execution_state"] == "idle"
                    and message["parent_header"].get("msg_id") == cell):  # fmt: skip
                return outputs
        raise TimeoutError(f"the cell {code!r} was not over after {LIMIT} s")

    def press(self, button: str, subshell: str | None = None) -> None:
        message = self.client.session.msg("comm_msg", click(button))
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)

    def comms(self) -> int:
        assert self.run("pass") == []  # what waits in the queue comes first; nobody complains
        return len(self.client.comm_info(reply=True, timeout=LIMIT)["content"]["comms"])


@pytest.fixture(scope="module")
def notebook():
    notebook = Notebook()
    try:
        failures = [o for o in notebook.run(SETUP) if o["kind"] == "error"]
        assert failures == []
        yield notebook
    finally:
        notebook.close()


def text(outputs: list[dict]) -> str:
    return "".join(output["text"] for output in outputs if output["kind"] == "stream")


def test_the_stop_button_stops_a_busy_kernel(notebook):
    outputs = notebook.run(FOREVER, when_it_draws=notebook.press)
    assert [o["kind"] for o in outputs if o["kind"] != "stream"] == [
        "display_data", "update_display_data"]  # fmt: skip
    shown, last = (o for o in outputs if o["kind"] != "stream")
    assert "application/vnd.jupyter.widget-view+json" in shown["data"]
    assert set(last["data"]) == {"image/png", "text/plain"}
    assert last["transient"] == shown["transient"]
    assert text(outputs).startswith("training over: stopped by hand")
    assert text(outputs).endswith("True True True\n")
    assert notebook.comms() == 0


def test_cells_that_wait_run_after_the_stop(notebook):
    later = []

    def press_twice(button):
        later.append(notebook.client.execute("print('later')"))
        notebook.press(button)
        notebook.press(button)

    assert "stopped by hand" in text(notebook.run(FOREVER, when_it_draws=press_twice))
    assert text(notebook.run("print('last')")) == "later\nlast\n"
    assert notebook.comms() == 0


def test_the_button_works_where_widgets_have_a_thread_of_their_own(notebook):
    """As JupyterLab 4.4 and later do, with ipykernel 7."""
    control = notebook.client.control_channel
    control.send(notebook.client.session.msg("create_subshell_request"))
    reply = notebook.client.get_control_msg(timeout=LIMIT)["content"]
    if "subshell_id" not in reply:
        pytest.skip("this kernel has no subshells")
    outputs = notebook.run(
        FOREVER, when_it_draws=lambda button: notebook.press(button, reply["subshell_id"])
    )
    assert text(outputs).endswith("True True True\n")
    assert notebook.comms() == 0


def test_an_interrupt_stops_between_two_steps(notebook):
    outputs = notebook.run(
        FOREVER, when_it_draws=lambda _button: notebook.manager.interrupt_kernel()
    )
    assert not [o for o in outputs if o["kind"] == "error"]
    assert text(outputs).endswith("True True True\n")


def test_an_error_leaves_a_picture_and_no_widget(notebook):
    outputs = notebook.run("train(1, learning_rate=1.0, max_grad_norm=1e30, optimizer='sgd',"
                           " warmup_ratio=0.0)\nraise SystemError('x')")  # fmt: skip
    outputs += notebook.run("def fail(event, state):\n    raise KeyError(event)\n"
                            "fit(loaded.model, rows, rows, TrainConfig(device='cpu'),"
                            " callbacks=[TrainingBoard(), fail])")  # fmt: skip
    assert "training over: ended by KeyError, 0 of" in text(outputs)
    assert outputs[-1]["kind"] == "stream" and outputs[-2]["kind"] == "update_display_data"
    assert notebook.comms() == 0


def test_plain_lines_and_no_widgets_in_a_batch_run(notebook):
    outputs = notebook.run("session = os.environ.pop('JPY_SESSION_NAME')\ntrain(1)\n"
                           "os.environ['JPY_SESSION_NAME'] = session")  # fmt: skip
    assert {o["kind"] for o in outputs} == {"stream"}
    lines = text(outputs).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "step 2", "step 4", "training over", "False False True"]  # fmt: skip
    assert notebook.comms() == 0
