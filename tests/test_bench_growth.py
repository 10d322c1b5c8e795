"""The scripts that measure cost run, their figures follow from times made by hand, and draw."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tutorkit.metrics import accuracy_interval

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))
import figures  # noqa: E402
import growth  # noqa: E402
import time_to_score  # noqa: E402

MACHINE = {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None, "precision": "fp32",
           "versions": {"torch": "2.13"}}  # fmt: skip


def script(name: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, BENCH / name, *map(str, arguments)], timeout=300,
                          capture_output=True, text=True,
                          env=os.environ | {"TUTORKIT_DATA": "", "OMP_NUM_THREADS": "1"})


def start(**other) -> dict:
    return {"settings": {"model": "minilm"}, "hardware": MACHINE | other, "points": {}}


def test_growth_measures_each_point_once(tmp_path):
    arguments = ("--model", "tiny", "--data", "reviews", "--output", tmp_path / "growth.json")
    done = script("growth.py", *arguments, "--points", "freeze-none", "freeze-backbone", "rows")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("left out, reviews has 540 rows to train on") == 3
    first = json.loads((tmp_path / "growth.json").read_text())
    assert list(first["points"]) == ["freeze-none", "freeze-backbone"]
    for point in first["points"].values():
        assert len(point["seconds"]) == growth.TIMED and point["peak_rss_mb"] > 100
        # every row fills its 128 tokens, so all steps read the same number
        assert point["tokens_per_s"] == pytest.approx(32 * 128 / point["step_s"], rel=0.2)
    assert first["points"]["freeze-backbone"]["trained_parameters"] == 32 * 2 + 2  # the classifier

    done = script("growth.py", *arguments, "--points", "freeze-none", "batch-4")
    assert done.returncode == 0 and "freeze-none: measured before" in done.stdout
    second = json.loads((tmp_path / "growth.json").read_text())
    assert list(second["points"]) == [*first["points"], "batch-4"]
    assert second["points"]["freeze-none"] == first["points"]["freeze-none"]

    before = (tmp_path / "growth.json").read_bytes()
    done = script("growth.py", *arguments, "--points", "freeze-4")
    assert done.returncode == 1 and "freeze-4 failed" in done.stderr
    assert "expected 0…2 layers, found 4" in done.stderr
    assert (tmp_path / "growth.json").read_bytes() == before


def test_time_to_score_adds_a_run_to_the_record(tmp_path):
    path = tmp_path / "curve.json"
    arguments = ("--model", "tiny", "--data", "reviews", "--rows", 50, "--batch-size", 10,
                 "--train-max-length", 16, "--max-length", 24, "--looks", 2, "--output", path)
    for name, freeze in (("all layers", "none"), ("one frozen", 1)):
        done = script("time_to_score.py", "--name", name, "--freeze", freeze, *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    runs = json.loads(path.read_text())["runs"]
    assert list(runs) == ["all layers", "one frozen"]
    for run in runs.values():
        assert [look["step"] for look in run["curve"]] == [2, 5]
        first, last = run["curve"]
        assert 0 < first["seconds"] < last["seconds"] and 0 < first["tokens"] < last["tokens"]
        assert last["tokens"] <= 50 * 16
        assert 100 < first["peak_rss_mb"] <= last["peak_rss_mb"] <= run["peak_rss_mb"]
        assert run["tokens_per_s"] == pytest.approx(last["tokens"] / last["seconds"])
        n = run["n_validation"]
        right = round(last["accuracy"] * n)
        assert last["accuracy_ci95"] == pytest.approx(accuracy_interval(right, n))
    assert runs["one frozen"]["trained_parameters"] < runs["all layers"]["trained_parameters"]

    before = path.read_bytes()
    done = script("time_to_score.py", "--name", "all layers", *arguments)
    assert done.returncode == 1 and "expected a new name, found 'all layers'" in done.stderr
    assert path.read_bytes() == before


def test_points_vary_one_thing_each():
    found = growth.points("minilm")
    assert len(found) == 5 + 5 + 3 + 6 + 3
    assert found["length-512"] == {"series": "length", "model": "minilm", "batch_size": 16,
                                   "max_length": 512, "freeze": "none"}
    assert found["model-smollm2"]["batch_size"] == 8 and found["freeze-2"]["batch_size"] == 32


def test_rows_are_filled_in_order_over_and_over():
    assert growth.filled(["a b", "c", "d e f"], rows=3, words=3) == ["a b c", "d e f", "a b c"]


def test_medians_leave_out_the_warm_up():
    # steps of 9, 4, 1, 2 and 5 seconds; the first two don't count
    found = growth.medians([1, 10, 14, 15, 17, 22], tokens=[1, 1, 100, 300, 500], warm_up=2)
    assert found == {"seconds": [1, 2, 5], "step_s": 2, "tokens_per_s": 100}


def test_the_clock_stands_still_while_validation_rows_are_read():
    events = [("train_start", 0.0), ("step", 2.0), ("step", 5.0), ("evaluation", 15.0),
              ("step", 16.0), ("evaluation", 26.0), ("epoch_end", 26.5), ("step", 30.0),
              ("evaluation", 40.0), ("train_end", 41.0)]  # fmt: skip
    # the half second that an epoch's end takes counts as training, like all but evaluations
    assert time_to_score.training_seconds(events) == [5, 6, 10]
    looks = [{"step": step, "accuracy": 0.75, "loss": 0.5} for step in (2, 3, 4)]
    state = SimpleNamespace(steps=[{"tokens": n} for n in (10, 20, 40, 80)], evaluations=looks)
    found = time_to_score.curve(state, events, n_validation=4)
    assert [(look["seconds"], look["tokens"]) for look in found] == [(5, 30), (6, 70), (10, 150)]
    assert found[0]["accuracy_ci95"] == accuracy_interval(3, 4)


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "x" * 31])
def test_a_name_fits_into_the_figure(name):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a name of 1 to 30 printable"):
        time_to_score.label(name)
    assert time_to_score.label(" minilm, 2 frozen ") == "minilm, 2 frozen"


@pytest.mark.parametrize(("other", "words"), [
    ({"cpu": "another"}, "cpu: expected 'a CPU', found 'another'"),
    ({"threads": 1}, "threads: expected 2, found 1"),
    ({"versions": {"torch": "2.6"}}, "torch: expected '2.13', found '2.6'"),
])  # fmt: skip
def test_a_record_of_another_machine_is_refused(tmp_path, other, words):
    path = tmp_path / "new" / "growth.json"
    growth.save_record(path, start())
    before = path.read_bytes()
    assert growth.open_record(path, start(memory_gb=1)) == start()
    with pytest.raises(ValueError, match=rf"\({words}\).*left as it is: name another --output"):
        growth.open_record(path, start(**other))
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"results": {}}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "growth.json").write_text(text)
    with pytest.raises(ValueError, match="expected a record that this script wrote, found"):
        growth.open_record(tmp_path / "growth.json", start())
    assert (tmp_path / "growth.json").read_text() == text


def test_figures_draw_what_the_records_hold(tmp_path, monkeypatch):
    points = {
        name: point | {"git_commit": "abc", "peak_rss_mb": 1024.0, "tokens_per_s": 10.0 + i,
                       "non_embedding_parameters": 10**i, "tokenized": part, "cached": part}
        for i, (name, point) in enumerate(growth.points("minilm").items())
        for part in [{"seconds": [i], "peak_rss_mb": 512.0 * i}]
    }  # fmt: skip
    look = {"seconds": 90, "accuracy": 0.8, "accuracy_ci95": [0.7, 0.9]}
    run = {"curve": [look, look | {"seconds": 180}], "n_validation": 1000, "git_commit": "abc"}
    costs, scores = start() | {"points": points}, start() | {"runs": {"one": run, "other": run}}
    drawn = figures.growth(costs).axes
    assert [list(axes.lines[0].get_ydata()) for axes in (drawn[0], drawn[4])] == [
        [10, 11, 12, 13, 14], [1] * 5]  # fmt: skip
    assert list(drawn[1].lines[0].get_xdata()) == [32, 64, 128, 256, 512]
    assert [list(axes.lines[1].get_ydata()) for axes in drawn[8:]] == [
        [19, 20, 21], [9.5, 10, 10.5]]  # fmt: skip
    # whatever the order in which they were measured
    backwards = start() | {"points": dict(reversed(points.items()))}
    assert list(figures.growth(backwards).axes[0].lines[0].get_ydata()) == [10, 11, 12, 13, 14]
    axes = figures.time_to_score(scores, (0.918, 24_000)).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1.5, 3] and {"one", "other"} <= {
        text.get_text() for text in axes.texts}  # fmt: skip
    assert "24,000 reviews: 0.918 on test rows" in axes.texts[0].get_text()

    monkeypatch.setattr(sys, "argv", ["figures.py", "--records", str(tmp_path)])
    for name, record in (("growth", costs), ("time_to_score", scores)):
        growth.save_record(tmp_path / f"{name}.json", record)
    figures.main()
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    figures.main()
    assert len(first) == 2 and max(map(len, first.values())) < 150_000
    assert first == {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}


def test_figures_say_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", "--records", str(tmp_path)])
    figures.main()
    assert capsys.readouterr().out.count("found none: run python tests/bench/") == 2
    for draw, empty in ((figures.growth, start()), (figures.time_to_score, {"runs": {}})):
        with pytest.raises(ValueError, match="expected at least one .* found none: run"):
            draw(empty)


def test_best_baseline_is_that_of_an_imdb_report(tmp_path):
    assert figures.best_baseline(tmp_path) is None
    for name, best in (("imdb", 0.9), ("tweets", 0.99), ("imdb", 0.91)):
        (tmp_path / f"{name}-{best}").mkdir()
        report = {"dataset": {"name": name, "n_train": round(best * 100)},
                  "baseline": {"majority": 1.0, "words": best, "pairs": 0.5}}  # fmt: skip
        (tmp_path / f"{name}-{best}" / "metrics.json").write_text(json.dumps(report))
    assert figures.best_baseline(tmp_path) == (0.91, 91)


def test_names_keep_their_distance():
    assert figures.spread([3.0, 1.0], gap=1) == pytest.approx([3, 1])
    # two at the same height move half the gap each, a third far away stays
    assert figures.spread([5.0, 5.0, 9.0], gap=1) == pytest.approx([4.5, 5.5, 9])
    assert np.diff(figures.spread([0.0, 0.1, 0.2, 0.3], gap=1)) == pytest.approx([1, 1, 1])


def test_counts_in_three_digits():
    assert [figures.short(n) for n in (7, 18_210, 10_800_000)] == ["7", "18.2 k", "10.8 M"]
