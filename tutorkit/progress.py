"""Progress of a run, for whoever watches: a bar in JupyterLab, a line now and then elsewhere."""

from __future__ import annotations

import os
import time

from tutorkit.training import TrainState


def someone_is_watching() -> bool:
    """Whether a person runs this notebook in JupyterLab (papermill, nbconvert and nbval do not
    set this variable)."""
    return "JPY_SESSION_NAME" in os.environ


class Progress:
    """A callback for `fit`: loss (mean of the last 20 steps), speed and time left.

    Of the processes of a run over several, the first one speaks for all.

    Args:
        every_seconds: pause between two lines in a batch run.
    """

    def __init__(self, every_seconds: float = 15.0):
        self.every_seconds = every_seconds
        self._bar = None

    def __call__(self, event: str, state: TrainState) -> None:
        if os.environ.get("RANK", "0") != "0":  # set by accelerate launch and torchrun
            return
        if event == "train_start":
            self._start(state)
        elif event == "step":
            self._step(state)
        elif event == "evaluation":
            latest = state.evaluations[-1]
            best = " (best so far)" if latest is state.best else ""
            self._say(f"step {state.step}: validation loss {latest['loss']:.4f}, "
                      f"accuracy {latest['accuracy']:.4f}{best}")
        elif event == "train_end":
            if self._bar is not None:
                self._bar.close()
            why = "stopped early, " if state.stopped_early else ""
            self._say(f"training over: {why}{state.step} steps in {clock(state.seconds)}")

    def _start(self, state: TrainState) -> None:
        self._last, self._first_step = time.monotonic(), state.step
        self._first_seconds = state.seconds
        if state.resumed_from_step is not None:
            self._say(f"resumed at step {state.step} of {state.total_steps}")
        if someone_is_watching():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=state.total_steps, initial=state.step, unit="step")

    def _step(self, state: TrainState) -> None:
        loss, speed, left = pace(state, self._first_step, self._first_seconds)
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix_str(f"loss {loss:.3f}")
        elif time.monotonic() - self._last >= self.every_seconds:
            self._last = time.monotonic()
            self._say(f"step {state.step}/{state.total_steps}, epoch {state.epoch:.2f}, "
                      f"loss {loss:.3f}, {speed:,.0f} tokens/s, {left} left")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)


def pace(
    state: TrainState, first_step: int = 0, first_seconds: float = 0.0
) -> tuple[float, float, str]:
    """Mean loss of the last 20 steps, tokens/s, and the time left as minutes and seconds.

    Args:
        state: of a run with at least one step.
        first_step: steps that an earlier attempt at the run had done.
        first_seconds: what they took.
    """
    recent = [row["loss"] for row in state.steps[-20:]]
    each = (state.seconds - first_seconds) / max(state.step - first_step, 1)
    speed = state.tokens / state.seconds if state.seconds else 0.0
    return sum(recent) / len(recent), speed, clock(each * (state.total_steps - state.step))


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 75 → "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
