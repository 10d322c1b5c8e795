"""How long a lesson takes: the split into training and the rest, and the estimate from it."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tutorkit import lesson_times
from tutorkit.lesson_times import as_table, estimate, read_record, training_part, write_record
from tutorkit.models import load_model
from tutorkit.tour_figures import times_figure

HARDWARE = {"cpu": "Some CPU", "cores": 2, "memory_gb": 8.0, "gpu": None, "precision": "fp32"}
RECORD = {
    "hardware": HARDWARE,
    "step_s": 0.2,
    "plain_s": 0.04,
    "lessons": {
        "01_math": {"seconds": 30.0, "training_s": 0.0, "peak_gib": 0.61},
        "04_training": {"seconds": 60.0, "training_s": 45.0, "peak_gib": None},
    },
}


def test_what_takes_longer_on_one_thread_is_training() -> None:
    # 40 s of training take 80 s on one thread, where a step takes twice as long.
    assert training_part(50, 90, step_s=0.2, one_thread_step_s=0.4) == pytest.approx(40)
    assert training_part(50, 70, step_s=0.2, one_thread_step_s=0.3) == pytest.approx(40)


def test_the_part_lies_between_nothing_and_all() -> None:
    assert training_part(50, 49, step_s=0.2, one_thread_step_s=0.4) == 0
    assert training_part(50, 140, step_s=0.2, one_thread_step_s=0.4) == 50


def test_without_a_second_core_nothing_can_be_told() -> None:
    with pytest.raises(ValueError, match=r"found 1\.10 times: record on a quiet machine"):
        training_part(50, 50, step_s=0.2, one_thread_step_s=0.22)


def test_each_yardstick_scales_its_part() -> None:
    # Training twice as fast, Python half as fast.
    math, training, other = estimate(
        RECORD, {"step_s": 0.1, "plain_s": 0.08}, ["01_math", "04_training", "07_peft"]
    )
    assert math == {"lesson": "01_math", "there_s": 30.0, "here_s": 60.0, "here_training_s": 0.0,
                    "peak_gib": 0.61}  # fmt: skip
    assert training["here_training_s"] == pytest.approx(22.5)
    assert training["here_s"] == pytest.approx(22.5 + 30)
    assert other == {"lesson": "07_peft", "there_s": None, "here_s": None,
                     "here_training_s": None, "peak_gib": None}  # fmt: skip


def test_the_reference_machine_gets_its_own_times() -> None:
    for row in estimate(RECORD, {"step_s": 0.2, "plain_s": 0.04}, list(RECORD["lessons"])):
        assert row["here_s"] == pytest.approx(row["there_s"])


def test_as_a_table() -> None:
    rows = estimate(RECORD, {"step_s": 0.1, "plain_s": 0.04}, ["01_math", "04_training", "07_x"])
    table = as_table(rows)
    assert table.loc["01_math"].tolist() == ["30", "30", "0", "0.61"]
    assert table.loc["04_training"].tolist() == ["60", "38", "22", "not known"]
    assert table.loc["07_x"].tolist() == ["no record yet", "", "", ""]


def test_as_a_figure() -> None:
    rows = estimate(RECORD, {"step_s": 0.1, "plain_s": 0.04}, ["01_math", "04_training", "07_x"])
    figure = times_figure(rows)
    (axes,) = figure.axes
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([0, 22.5, 30, 15])
    assert axes.lines[0].get_xdata().tolist() == [30, 60]
    assert list(axes.lines[0].get_ydata()) == [0, 1]
    assert [text.get_text() for text in axes.texts] == ["no record yet"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["01_math", "04_training", "07_x"]
    assert plt.get_fignums() == []


def test_a_figure_without_any_record() -> None:
    figure = times_figure(estimate(RECORD, {"step_s": 1, "plain_s": 1}, ["07_x"]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["no record yet"]
    with pytest.raises(ValueError, match="at least one lesson"):
        times_figure([])


def test_a_record_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson_times, "hardware", lambda: HARDWARE)
    path = tmp_path / "times.json"
    yardsticks = {"step_s": 0.2, "plain_s": 0.04}
    assert write_record(yardsticks, RECORD["lessons"], path) == []
    assert read_record(path) == RECORD
    # One lesson again, on the same machine: the other stays.
    again = {"01_math": {"seconds": 20.0, "training_s": 1.0, "peak_gib": 0.5}}
    assert write_record({"step_s": 0.3, "plain_s": 0.05}, again, path) == ["04_training"]
    found = read_record(path)
    assert found["lessons"] == {**RECORD["lessons"], **again}
    assert found["step_s"] == 0.3
    # On another machine the old seconds mean nothing.
    monkeypatch.setattr(lesson_times, "hardware", lambda: HARDWARE | {"cores": 64})
    assert write_record(yardsticks, again, path) == []
    assert read_record(path)["lessons"] == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("step_s"), r"times\.json: expected step_s, found \['hardware'"),
        (lambda record: record.pop("lessons"), "expected lessons"),
        (lambda record: record["lessons"]["01_math"].pop("seconds"), "01_math: expected seconds"),
    ],
)
def test_a_damaged_record_is_refused(change, message: str, tmp_path: Path) -> None:
    record = json.loads(json.dumps(RECORD))
    change(record)
    path = tmp_path / "times.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_the_package_s_own_record() -> None:
    record = read_record()
    assert record["hardware"]["cores"] >= 2
    for name, lesson in record["lessons"].items():
        assert 0 <= lesson["training_s"] <= lesson["seconds"] < 600, name
        assert lesson["peak_gib"] is None or 0 < lesson["peak_gib"] < 1.8, name


def test_this_machine_s_hardware_is_described_without_names() -> None:
    found = lesson_times.hardware()
    assert set(found) == set(HARDWARE)
    assert found["precision"] in ("fp32", "bf16", "fp16")
    assert json.loads(json.dumps(found)) == found


def test_the_yardsticks_are_times_and_leave_the_model_alone() -> None:
    loaded = load_model("tiny")
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    seconds = lesson_times.step_seconds(loaded, steps=3, batch_size=4, max_length=16)
    assert 0 < seconds < 5
    assert all(weight.equal(before[name]) for name, weight in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert 0 < lesson_times.plain_seconds(repeats=2) < 5


def test_a_step_reads_full_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All batches have the same shape, so that the yardstick does not depend on texts."""
    from tutorkit import training

    seen = []

    def fit(model, train, validation, config):
        seen.extend([train.lengths.tolist(), len(train), validation])
        state = training.TrainState(config, total_steps=4)
        state.steps = [{"seconds": s} for s in (9.0, 9.5, 9.7, 10.0)]
        return state

    monkeypatch.setattr(training, "fit", fit)
    seconds = lesson_times.step_seconds(load_model("tiny"), steps=2, batch_size=3, max_length=8)
    assert seen == [[8] * 12, 12, None]
    assert seconds == pytest.approx(0.25)  # 0.2 and 0.3; the first two steps only warm up
