"""A live board for a training run in a notebook: curves, speed, time left, and a Stop button.

While `fit` runs, the kernel is busy with its cell and handles no message, so a click on a button
would wait until the training is over. The board looks at the kernel's incoming messages itself,
between two steps, and passes every one of them on untouched. Interrupting the kernel stops the
training between two steps as well, for whatever front end a click does not come through from.
"""

from __future__ import annotations

import base64
import math
import os
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from tutorkit import training
from tutorkit.losses import lr_schedule
from tutorkit.plots import BLUE, INK, SKY, STYLE, VERMILLION, running_mean
from tutorkit.progress import Progress, clock, pace, someone_is_watching
from tutorkit.training import TrainState
from tutorkit.widgets import Drawing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

MOST_POINTS = 1000  # of a curve: a finer one would look the same and take longer to draw
NO_WIDGETS = "Training board, in a front end with widgets. Interrupting the kernel stops the run."
LEAST_REST = 50  # pause after a redraw, in times of what it took: the board costs 2 % at most


class TrainingBoard:
    """A callback for `fit`: a live board where a person is watching, lines elsewhere.

    In a batch run (papermill, nbconvert, nbval, scripts) it is `Progress`, to the letter. On the
    board, **Stop** ends the run after the current step, as does interrupting the kernel once; `fit`
    then returns as usual, with the best weights so far in the model. Interrupting a second time
    stops at once, with a KeyboardInterrupt. When the run is over a picture stands in the board's
    place, and no widget is left.

    Args:
        every_seconds: least pause between two redraws of the board; between two lines in a batch
            run it is `Progress`'s own.

    Example:
        fit(model, train, validation, config, callbacks=[TrainingBoard()])
    """

    def __init__(self, every_seconds: float = 0.5):
        self.every_seconds = every_seconds
        self._shown: _Panel | Progress = Progress()

    def __call__(self, event: str, state: TrainState) -> None:
        if event == "train_start":
            if isinstance(self._shown, _Panel):
                self._shown.close("ended by an error")  # does nothing unless that was so
            shell = _notebook_shell()
            self._shown = _Panel(shell, state, self.every_seconds) if shell else Progress()
        self._shown(event, state)


def _notebook_shell() -> Any:
    """The IPython shell of a notebook that a person is looking at, else None."""
    first = os.environ.get("RANK", "0") == "0"  # of the processes of a run over several
    if not (first and someone_is_watching() and "IPython" in sys.modules):
        return None
    shell = sys.modules["IPython"].get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None


def status(state: TrainState, first_step: int = 0, first_seconds: float = 0.0) -> str:
    """One line on a run: step, epoch, loss (mean of the last 20 steps), tokens/s, time left.

    Args as in `progress.pace`.
    """
    loss, speed, left = pace(state, first_step, first_seconds)
    return (
        f"step {state.step:,} of {state.total_steps:,}, epoch {state.epoch:.2f}, "
        f"loss {loss:.3f}, {speed:,.0f} tokens/s, {left} left"
    )


def best_line(state: TrainState) -> str:
    """One line on the validation scores so far."""
    if state.best is None:
        return "no evaluation yet"
    last, best = state.evaluations[-1], state.best
    return (
        f"validation at step {last['step']:,}: loss {last['loss']:.4f}, accuracy "
        f"{last['accuracy']:.4f}; best {best['accuracy']:.4f} at step {best['step']:,}"
    )


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A curve as at most `most` points: steps (from 1) and the mean over each stretch.

    The step of a point is the last of its stretch, as for a running mean.
    """
    stretch = max(1, -(-len(values) // most))
    starts = np.arange(0, len(values), stretch)
    ends = np.minimum(starts + stretch, len(values))
    if len(values) == 0:
        return ends, np.zeros(0)
    return ends, np.add.reduceat(np.asarray(values, dtype=float), starts) / (ends - starts)


class Curves(Drawing):
    """Loss, validation accuracy and learning rate of a run that is under way.

    Args:
        state: the run; its length and its planned learning rates are drawn at once.
    """

    controls = {}
    height = 2.9
    description = (
        "Three curves over the optimizer steps: training and validation loss, validation "
        "accuracy, and the learning rate."
    )

    def __init__(self, state: TrainState) -> None:
        self._state = state
        super().__init__()

    def _build(self, figure: Figure) -> None:
        config, total = self._state.config, max(self._state.total_steps, 1)
        axes = figure.subplot_mosaic([["loss", "accuracy"], ["loss", "rate"]], height_ratios=[3, 2])
        self._loss, self._accuracy, rate = axes["loss"], axes["accuracy"], axes["rate"]
        for each in axes.values():
            each.set_xlim(-0.03 * total, 1.03 * total)
            each.xaxis.get_major_locator().set_params(integer=True)
        moving = {"animated": True}
        (self._each,) = self._loss.plot([], [], ".-", markersize=3, color=SKY, linewidth=0.6,
                                        label="training", **moving)  # fmt: skip
        (self._mean,) = self._loss.plot([], [], color=BLUE, linewidth=2,
                                        label="training, running mean", **moving)  # fmt: skip
        (self._validation,) = self._loss.plot([], [], "o-", color=VERMILLION, label="validation",
                                              **moving)  # fmt: skip
        self._loss.set(title="Loss (cross-entropy, nats)", xlabel="optimizer step", ylim=(0, 1))
        self._loss.legend(labelcolor="linecolor", loc="upper right")
        (self._scores,) = self._accuracy.plot([], [], "o-", color=VERMILLION, **moving)
        (self._best,) = self._accuracy.plot([], [], "o", markersize=11, markerfacecolor="none",
                                            color=INK, **moving)  # fmt: skip
        self._accuracy.set(title="Validation accuracy (best: ring)", ylim=(0.45, 1.02))
        steps = np.unique(np.linspace(0, total, 200).astype(int))
        warmup = round(config.warmup_ratio * total)
        plan = [config.learning_rate * lr_schedule(config.schedule, int(s), total, warmup)
                for s in steps[steps < total]]  # fmt: skip
        rate.plot(steps[steps < total] + 1, plan, color="#BBBBBB")
        (self._rate,) = rate.plot([], [], "o", color=INK, **moving)
        rate.set(title="Learning rate (line: as planned)", xlabel="optimizer step",
                 ylim=(0, 1.2 * config.learning_rate or 1))  # fmt: skip
        if config.learning_rate:
            rate.set_yticks([0, config.learning_rate], ["0", f"{config.learning_rate:.3g}"])

    def _move(self, **_values: float) -> None:
        steps, evaluations = self._state.steps, self._state.evaluations
        x, losses = thinned([row["loss"] for row in steps])
        self._each.set_data(x, losses)
        window = len(losses) // 20
        smooth = running_mean(losses, window) if window > 1 else []
        self._mean.set_data(x if window > 1 else [], smooth)
        at = [row["step"] for row in evaluations]
        self._validation.set_data(at, [row["loss"] for row in evaluations])
        accuracies = [row["accuracy"] for row in evaluations]
        self._scores.set_data(at, accuracies)
        best = self._state.best
        self._best.set_data(([best["step"]], [best["accuracy"]]) if best else ([], []))
        if steps:
            self._rate.set_data([steps[-1]["step"]], [steps[-1]["learning_rate"]])
        highest = max([*losses, *(row["loss"] for row in evaluations)], default=0.0)
        # Fixed scales are what makes a redraw cheap, so they change seldom and by a lot.
        if highest > self._loss.get_ylim()[1] or 0 < highest < self._loss.get_ylim()[1] / 3:
            self._rescale(self._loss, 0, 1.3 * highest)
        if accuracies and min(accuracies) < self._accuracy.get_ylim()[0] + 0.02:
            self._rescale(self._accuracy, max(-0.02, min(accuracies) - 0.1), 1.02)

    def _rescale(self, axes: Any, low: float, high: float) -> None:
        axes.set_ylim(low, high)
        self._background = None

    def png(self) -> bytes:
        """The curves as they stand now, as a PNG file."""
        if self._background is not None:
            return super().png()
        with matplotlib.rc_context(STYLE):  # new ticks take the style of this moment
            return super().png()


class _Panel:
    """The board of one run: widgets, and what hears that the run shall stop."""

    def __init__(self, shell: Any, state: TrainState, every_seconds: float) -> None:
        import ipywidgets
        from IPython.display import display

        self.state, self.every_seconds, self._shell = state, every_seconds, shell
        self._first, self._thread = (state.step, state.seconds), threading.get_ident()
        self.curves = Curves(state)
        self._stop = ipywidgets.Button(description="Stop", icon="stop", tooltip=(
            "End the training after the current step and keep the best weights"))  # fmt: skip
        self._bar = ipywidgets.IntProgress(max=state.total_steps, layout={"width": "auto",
                                                                          "flex": "1 1 auto"})
        self._text = ipywidgets.HTML()
        # As large as the still picture: a box stretches what is in it, and that blurs.
        layout = {"max_width": "100%", "align_self": "flex-start"}
        self._picture = ipywidgets.Image(format="png", layout=layout)
        row = ipywidgets.HBox([self._stop, self._bar])
        self._box = ipywidgets.VBox([row, self._text, self._picture])
        self._clicks = _Clicks(shell.kernel, self._stop, self._click_handled)
        self._over, self._cost = False, math.inf
        self._interrupts = _Interrupts()
        self._redraw()  # the first is no measure: it draws the axes too
        self._cost, self._due = math.inf, time.monotonic() + every_seconds
        # Published by hand: ipywidgets 7 would show itself without the display_id.
        view = {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}
        bundle = {"application/vnd.jupyter.widget-view+json": view, "text/plain": NO_WIDGETS}
        self._handle = display(bundle, raw=True, display_id=True)
        shell.events.register("post_run_cell", self._after_cell)

    def __call__(self, event: str, state: TrainState) -> None:
        if event == "train_end":
            stopped = "stopped by hand" if self._stop.disabled else "stopped" if state.stop else ""
            self.close("stopped early" if state.stopped_early else stopped)
        elif not state.stop and (self._clicks.poll() or self._interrupts.asked):
            state.stop = True
            self._stop.disabled, self._stop.description = True, "Stopping"
            self._redraw()
        elif time.monotonic() >= self._due:
            self._redraw()

    def _redraw(self) -> None:
        begun = time.monotonic()
        self.curves.update()
        self._picture.value = self.curves.png()
        self._bar.value = self.state.step
        lines = [best_line(self.state)]
        if self.state.resumed_from_step is not None:
            lines.append(f"resumed at step {self.state.resumed_from_step:,}")
        if self.state.step > self._first[0]:
            lines.insert(0, status(self.state, *self._first))
        self._text.value = "<br>".join(lines)
        done = time.monotonic()
        # The quickest so far: a changed scale, or other work on the machine, slows a single one.
        self._cost = min(self._cost, done - begun)
        self._due = done + max(self.every_seconds, LEAST_REST * self._cost)

    def _after_cell(self, result: Any) -> None:
        if threading.get_ident() != self._thread:
            return  # a cell of a subshell, which runs beside the one that trains
        error = getattr(result, "error_in_exec", None)
        self.close(f"ended by {type(error).__name__ if error else 'an error'}")

    def close(self, why: str) -> None:
        """Put a picture in the board's place, remove the widgets, and say how the run ended."""
        if self._over:
            return
        self._over = True
        self._shell.events.unregister("post_run_cell", self._after_cell)
        self._interrupts.close()
        self._clicks.close()
        self.curves.update()
        picture = base64.b64encode(self.curves.png()).decode("ascii")
        self._handle.update({"image/png": picture, "text/plain": Curves.description}, raw=True)
        self._click_handled()
        state = self.state
        print(f"training over: {why + ', ' if why else ''}{state.step:,} of {state.total_steps:,} "
              f"steps in {clock(state.seconds)}; {best_line(state)}")  # fmt: skip

    def _click_handled(self) -> None:
        # The kernel complains of a message to a widget that is gone, and the click that stopped
        # the run reaches it only after the cell.
        if not self._over or self._clicks.waiting:
            return
        for widget in (self._box, *self._box.children, *self._box.children[0].children):
            for part in (getattr(widget, "style", None), widget.layout, widget):
                if part is not None:
                    part.close()


class _Clicks:
    """Notices a click on a button while the cell that shows the button is still running.

    Up to ipykernel 6 messages wait in the shell socket, which the main thread reads: `poll` does
    that between steps. From ipykernel 7 on, a thread reads the socket at all times. In both, each
    message goes on to the kernel's own handler, so cells that wait run later as they would have.

    Args:
        kernel: the kernel that runs this code.
        button: an ipywidgets button.
        handled: called when the kernel has handled a click in its usual way, which is at once
            where the front end gives widgets a thread of their own, else after the cell.
    """

    def __init__(self, kernel: Any, button: Any, handled: Callable[[], None]) -> None:
        self._noticed = self._handled = 0
        self._then = handled
        self._button_id = button.model_id.encode()
        button.on_click(self._on_click)
        self._stream = getattr(kernel, "shell_stream", None)
        self._in_thread = getattr(kernel, "shell_channel_thread", None) is not None
        # pyzmq has no public way to ask which callback is registered.
        self._pass_on = getattr(self._stream, "_recv_callback", None)
        if self._pass_on is not None:
            self._receive_by(self._receive)

    def _receive_by(self, callback: Any) -> None:
        register = self._stream.on_recv
        if self._in_thread:  # a socket belongs to one thread
            self._stream.io_loop.add_callback(register, callback, copy=False)
        else:
            register(callback, copy=False)

    def _receive(self, message: list[Any]) -> Any:
        if is_click([frame.bytes for frame in message], self._button_id):
            self._noticed += 1
        return self._pass_on(message)

    def _on_click(self, _button: Any) -> None:
        self._handled += 1
        self._then()

    @property
    def waiting(self) -> bool:
        """Whether a click was noticed that the kernel has yet to handle."""
        return self._noticed > self._handled

    def poll(self) -> bool:
        """Whether the button has been clicked."""
        if self._pass_on is not None and not self._in_thread:
            import zmq

            self._stream.flush(zmq.POLLIN)
        return self._noticed + self._handled > 0

    def close(self) -> None:
        """Leave the kernel's messages alone again."""
        if self._pass_on is not None:
            self._receive_by(self._pass_on)


def is_click(frames: Sequence[bytes], widget_id: bytes) -> bool:
    """Whether a message of the Jupyter protocol says that this widget was clicked.

    Only its text is looked at: unpacking it would count it as received, and the kernel would then
    refuse it as a repeat.

    Args:
        frames: as they arrive: identities, `<IDS|MSG>`, signature, header, parent, metadata,
            content, buffers.
        widget_id: the widget's comm id, which is a secret of this kernel and its front ends.
    """
    if b"<IDS|MSG>" not in frames:
        return False
    parts = list(frames[frames.index(b"<IDS|MSG>") + 1 :])
    if len(parts) < 5:
        return False
    header, content = parts[1], parts[4]
    return b'"comm_msg"' in header and widget_id in content and b'"click"' in content


class _Interrupts:
    """Turns the first interrupt during `fit` into a wish; any other is one as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():  # others can't set a handler
            self._before = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        code = training.fit.__code__
        if self.asked or not any(f.f_code is code for f, _ in traceback.walk_stack(frame)):
            self.close()
            signal.default_int_handler(number, frame)
        self.asked = True

    def close(self) -> None:
        """Put the handler from before back, unless someone has set another since."""
        if self._before is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._before)
