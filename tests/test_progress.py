"""What a person sees of a run: a bar in JupyterLab, lines elsewhere."""

from __future__ import annotations

import pytest
import tqdm.auto

from tutorkit import progress
from tutorkit.progress import Progress, clock, someone_is_watching
from tutorkit.training import TrainConfig, TrainState


class Clock:
    """Stands for `time`: the test moves the hands."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class FakeBar:
    made: list[FakeBar] = []

    def __init__(self, total: int, initial: int, unit: str):
        self.total, self.initial, self.done, self.closed = total, initial, initial, False
        self.lines, self.postfix = [], ""
        self.made.append(self)

    def update(self, count: int) -> None:
        self.done += count

    def set_postfix_str(self, text: str) -> None:
        self.postfix = text

    def write(self, line: str) -> None:
        self.lines.append(line)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def hands(monkeypatch) -> Clock:
    hands = Clock()
    monkeypatch.setattr(progress, "time", hands)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    return hands


@pytest.fixture
def bars(monkeypatch, hands) -> list[FakeBar]:
    monkeypatch.setenv("JPY_SESSION_NAME", "lesson.ipynb")
    monkeypatch.setattr(tqdm.auto, "tqdm", FakeBar)
    monkeypatch.setattr(FakeBar, "made", [])
    return FakeBar.made


def play(report: Progress, hands: Clock, start: int = 0, steps: int = 4, total: int = 10) -> None:
    """A run of 2 s a step, 100 tokens a step, losses 1.0, 0.9, …; evaluated at the last step."""
    state = TrainState(TrainConfig(), total_steps=total)
    state.step, state.seconds, state.tokens = start, 2.0 * start, 100 * start
    state.resumed_from_step = start or None
    report("train_start", state)
    for step in range(start + 1, start + steps + 1):
        hands.now += 2
        state.step, state.epoch, state.seconds = step, step / 5, 2.0 * step
        state.tokens += 100
        state.steps.append({"loss": 1.1 - 0.1 * (step - start)})
        report("step", state)
    state.best = {"loss": 0.51234, "accuracy": 0.87654}
    state.evaluations.append(state.best)
    report("evaluation", state)
    state.evaluations.append({"loss": 0.6, "accuracy": 0.5})
    report("evaluation", state)
    report("epoch_end", state)
    state.stopped_early = state.step < total
    report("train_end", state)


def test_lines_of_a_batch_run(hands, capsys):
    play(Progress(every_seconds=4), hands)
    assert capsys.readouterr().out.splitlines() == [
        "step 2/10, epoch 0.40, loss 0.950, 50 tokens/s, 0:16 left",
        "step 4/10, epoch 0.80, loss 0.850, 50 tokens/s, 0:12 left",
        "step 4: validation loss 0.5123, accuracy 0.8765 (best so far)",
        "step 4: validation loss 0.6000, accuracy 0.5000",
        "training over: stopped early, 4 steps in 0:08",
    ]


def test_a_long_pause_leaves_the_evaluations_and_the_end(hands, capsys):
    play(Progress(every_seconds=3600), hands, steps=10)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 10", "step 10", "training over"]
    assert lines[-1] == "training over: 10 steps in 0:20"


def test_the_loss_shown_is_the_mean_of_the_last_20_steps(hands, capsys):
    play(Progress(every_seconds=60), hands, steps=30, total=90)
    # losses of steps 11 to 30 are 0.0, -0.1, … -1.9
    assert "step 30/90, epoch 6.00, loss -0.950, " in capsys.readouterr().out


def test_a_resumed_run_says_so_and_judges_its_speed_by_its_own_steps(hands, capsys):
    play(Progress(every_seconds=4), hands, start=6, steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "resumed at step 6 of 10"
    assert lines[1] == "step 8/10, epoch 1.60, loss 0.950, 50 tokens/s, 0:04 left"


def test_a_bar_where_a_person_watches(hands, bars, capsys):
    assert someone_is_watching()
    play(Progress(every_seconds=1), hands, start=6, steps=2)
    (bar,) = bars
    assert (bar.total, bar.initial, bar.done, bar.closed) == (10, 6, 8, True)
    assert bar.postfix == "loss 0.950"
    assert [line.split(":")[0] for line in bar.lines] == ["step 8", "step 8", "training over"]
    assert capsys.readouterr().out == "resumed at step 6 of 10\n"  # above the bar


def test_the_same_object_serves_a_second_run(hands, bars):
    report = Progress()
    play(report, hands)
    play(report, hands)
    assert [bar.done for bar in bars] == [4, 4]


def test_a_real_bar_ends_at_the_last_step(hands, monkeypatch, capsys):
    monkeypatch.setenv("JPY_SESSION_NAME", "lesson.ipynb")
    monkeypatch.setattr(tqdm.auto, "tqdm", tqdm.std.tqdm)
    play(Progress(), hands, steps=10)
    captured = capsys.readouterr()
    assert "10/10" in captured.err and "loss 0.550" in captured.err
    assert "training over: 10 steps" in captured.out


def test_of_several_processes_only_the_first_speaks(hands, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    play(Progress(every_seconds=0), hands)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    play(Progress(every_seconds=0), hands)
    assert capsys.readouterr().out.count("step") > 4


def test_nobody_watches_a_batch_run(hands):
    assert not someone_is_watching()


@pytest.mark.parametrize(
    "seconds, expected",
    [(0, "0:00"), (9.4, "0:09"), (59.6, "1:00"), (75, "1:15"), (2820.2, "47:00"), (7265, "121:05")],
)
def test_clock(seconds, expected):
    assert clock(seconds) == expected
