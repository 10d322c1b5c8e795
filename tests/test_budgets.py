"""The learning curve: what is measured on which rows, and that a stopped run goes on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from tutorkit import baselines, budgets, sources, transfer
from tutorkit.budgets import CHEAP, choose_rates, measure
from tutorkit.models import load_model, save_model
from tutorkit.studies import read, shelf, stored

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS, BUDGETS, WAYS = (0, 1), (4, 8), tuple(transfer.STRATEGIES)
ALL = [(seed, n, name) for seed in SEEDS for n in BUDGETS for name in (*CHEAP, *WAYS)]
MEMORY = transfer.Memory(("a good film", "a bad film", "tea", "milk"), ("f", "f", "d", "d"),
                         (True, True, True, False))  # fmt: skip


class Stopped(BaseException):
    """Stands for a kill: no handler of the code under test catches it."""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A data set of 100 short rows; the test labels are no plain pattern."""
    root = tmp_path_factory.mktemp("mirror")
    rng = np.random.default_rng(5)
    for split, count in (("train", 60), ("validation", 15), ("test", 25)):
        labels = rng.permutation(np.arange(count) % 2)
        texts = [f"a {('dull', 'lovely')[label]} film of {split} {i}"
                 for i, label in enumerate(labels)]  # fmt: skip
        path = root / "toy" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pd.DataFrame({"text": texts, "label": labels}).to_parquet(path)
    return root


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a run; its model is a saved one, so that the seed decides the head alone."""
    folder = tmp_path_factory.mktemp("pretrained") / "tiny"
    save_model(load_model("tiny"), folder, "# A model card\n")
    return {"dataset": "toy", "model": str(folder), "budgets": BUDGETS, "seeds": SEEDS,
            "test_size": 20, "max_length": 16}  # fmt: skip


class Calls:
    """What was trained on which rows, one entry a training; can stop at one of them."""

    def __init__(self):
        self.made: list[dict] = []
        self.stop_at: int | None = None

    def note(self, what, rows, answer, seed, **more) -> dict:
        if self.stop_at is not None and len(self.made) == self.stop_at:
            raise Stopped
        self.made.append({"what": what, "rows": list(rows["text"]), "answer": list(answer["text"]),
                          "seed": seed, **more})  # fmt: skip
        return self.made[-1]


@pytest.fixture
def calls(mirror, monkeypatch) -> Calls:
    """The toy data set, small memories, and short trainings that are noted."""
    monkeypatch.setenv("TUTORKIT_DATA", str(mirror))
    monkeypatch.setattr(transfer, "pairs_memory", lambda: MEMORY)
    monkeypatch.setattr(transfer, "domains_memory", lambda: MEMORY)
    calls, real_use, real_run = Calls(), transfer.use, baselines.run_baselines

    def use(strategy, model, rows, answer, seed, max_length):
        entry = calls.note(strategy, rows, answer, seed, model=model, max_length=max_length)
        entry["used"] = real_use(strategy, model, rows, answer, seed, max_length, least_steps=1)
        return entry["used"]

    def run_baselines(train, test, names, seed):
        calls.note(names, train, test, seed)
        return real_run(train, test, names, seed)

    monkeypatch.setattr(transfer, "use", use)
    monkeypatch.setattr(baselines, "run_baselines", run_baselines)
    return calls


def without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "train_s"} for line in lines]


def key(line: dict) -> tuple:
    return line["seed"], line["n"], line["strategy"]


@pytest.fixture(scope="module")
def whole(mirror, settings, tmp_path_factory):
    """An uninterrupted run: its folder, its lines and what was trained for it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        noted = calls.__wrapped__(mirror, monkeypatch)
        folder = tmp_path_factory.mktemp("whole") / "deep" / "transfer"
        return folder, measure(folder, **settings), noted.made


# --- the record -----------------------------------------------------------------------------------


def test_one_line_a_result(whole):
    folder, lines, made = whole
    assert [key(line) for line in lines] == ALL
    assert len(made) == len(ALL)
    assert (folder / "runs.jsonl").read_text(encoding="utf-8").count("\n") == len(ALL)
    assert read(folder) == lines
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "runs.jsonl"]


def test_what_a_line_holds(whole):
    _, lines, made = whole
    labels = list(sources_test()["label"])
    for line, call in zip(lines, made, strict=True):
        predictions = [int(digit) for digit in line["predictions"]]
        assert len(predictions) == 20 and set(predictions) <= {0, 1}
        right = sum(p == label for p, label in zip(predictions, labels, strict=True))
        assert line["accuracy"] == pytest.approx(right / 20)
        assert line["train_s"] >= 0
        cheap = {"strategy", "n", "seed", "train_s", "accuracy", "predictions"}
        if line["strategy"] in CHEAP:
            assert set(line) == cheap
            continue
        assert set(line) == cheap | {"n_trained", "steps", "learning_rate", "layer_decay",
                                     "remembers"}  # fmt: skip
        strategy, used = transfer.STRATEGIES[line["strategy"]], call["used"]
        assert call["what"] is strategy
        assert predictions == used.probabilities.argmax(axis=1).tolist()
        assert (line["n_trained"], line["steps"]) == (used.n_trained, used.steps)
        assert line["learning_rate"] == strategy.learning_rate
        assert line["layer_decay"] == pytest.approx(strategy.layer_decay, abs=1e-4)
        share = transfer.remembers(used.loaded, MEMORY)
        assert line["remembers"] == {"pairs": round(share, 4), "domains": round(share, 4)}
    assert {line["accuracy"] for line in lines} != {0.5}


def sources_test():
    """The test rows that the runs below are scored on."""
    test = sources.load_splits("toy")["test"]
    return test.select(np.random.default_rng(0).permutation(25)[:20])


@pytest.fixture(autouse=True)
def toy(mirror, monkeypatch):
    monkeypatch.setenv("TUTORKIT_DATA", str(mirror))


def test_frozen_features_remember_what_the_model_did_before(whole):
    _, lines, made = whole
    found = [line["remembers"] for line in lines if line["strategy"] == "features"]
    assert len(found) == 4 and len({json.dumps(one) for one in found}) == 1
    (first, *_) = [call["used"] for call in made if call["what"] is transfer.STRATEGIES["features"]]
    assert found[0]["pairs"] == round(transfer.remembers(first.loaded, MEMORY), 4)


def test_all_ways_of_a_seed_share_the_rows_and_all_seeds_the_test(whole):
    _, lines, made = whole
    rows: dict[tuple, set] = {}
    for line, call in zip(lines, made, strict=True):
        assert call["seed"] == line["seed"]
        assert call["answer"] == list(sources_test()["text"])
        rows.setdefault((line["seed"], line["n"]), set()).add(tuple(call["rows"]))
    assert {key: len(found) for key, found in rows.items()} == {
        (seed, n): 1 for seed in SEEDS for n in BUDGETS
    }
    train = sources.load_splits("toy")["train"]
    for (seed, n), (found,) in rows.items():
        assert list(found) == list(transfer.draw(train, n, seed)["text"])
    assert rows[0, 4] != rows[1, 4]


def test_what_the_results_were_made_with(whole, settings):
    folder, _, made = whole
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    assert about["settings"] == {
        "dataset": {"name": "toy", "source": "local mirror"}, "model": settings["model"],
        "n_test": 20, "max_length": 16, "test_labels": "".join(map(str, sources_test()["label"])),
        "strategies": {name: asdict(way) for name, way in transfer.STRATEGIES.items()},
    }  # fmt: skip
    assert set(about["settings"]["test_labels"]) == {"0", "1"}
    assert {"environment", "git_commit", "started_at"} < set(about)
    trained = [call for call in made if "model" in call]
    assert {(call["model"], call["max_length"]) for call in trained} == {(settings["model"], 16)}


# --- stopped and started again --------------------------------------------------------------------


@pytest.mark.parametrize("place", [2, 13])
def test_a_run_that_was_stopped_goes_on(whole, settings, calls, tmp_path, place, capsys):
    _, expected, _ = whole
    calls.stop_at = place
    with pytest.raises(Stopped):
        measure(tmp_path, **settings)
    assert without_times(read(tmp_path)) == without_times(expected[:place])
    first, calls.made, calls.stop_at = list(calls.made), [], None
    capsys.readouterr()
    lines = measure(tmp_path, **settings)
    assert without_times(lines) == without_times(expected)
    assert len(first) + len(calls.made) == len(ALL)  # nothing twice
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        f"{k} of {len(ALL)}" for k in range(place + 1, len(ALL) + 1)
    ]


def test_a_finished_run_trains_nothing(whole, settings, calls):
    folder, expected, _ = whole
    before = (folder / "runs.jsonl").read_bytes()
    assert measure(folder, **settings) == expected
    assert calls.made == []
    assert (folder / "runs.jsonl").read_bytes() == before


def test_half_a_line_is_made_again(whole, settings, calls, tmp_path):
    """As a full disk leaves it."""
    folder, expected, _ = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "runs.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    assert read(tmp_path) == expected[:-1]
    lines = measure(tmp_path, **settings)
    assert without_times(lines) == without_times(expected)
    assert len(calls.made) == 1


def test_more_seeds_and_budgets_join_the_same_folder(settings, calls, tmp_path):
    few = {**settings, "strategies": ("features",), "seeds": (1,), "budgets": (8,)}
    assert len(measure(tmp_path, **few)) == len(CHEAP) + 1
    lines = measure(tmp_path, **{**few, "seeds": (0, 1), "budgets": (4, 8)})
    assert len(lines) == len(calls.made) == 4 * (len(CHEAP) + 1)
    assert set(Counter(map(key, lines)).values()) == {1}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_length": 32}, r"other settings \(max_length: expected 32, found 16\): name another"),
        ({"test_size": 10}, r"other settings \(n_test: expected 10, found 20\)"),
        ({"model": "tiny-decoder"}, r"\(model: expected 'tiny-decoder', found '/.*\): name an"),
        ({"dataset": "reviews"}, r"\(dataset: expected {'name': 'reviews'.*, found {'name': 'toy'"),
    ],
)
def test_results_of_other_settings_are_refused(whole, settings, calls, change, message):
    folder, _, _ = whole
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        measure(folder, **{**settings, **change})
    assert calls.made == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_learning_rate_of_a_strategy_is_refused(whole, settings, monkeypatch):
    folder, _, _ = whole
    faster = replace(transfer.STRATEGIES["everything"], learning_rate=0.5)
    monkeypatch.setitem(transfer.STRATEGIES, "everything", faster)
    with pytest.raises(ValueError, match=r"other settings \(strategies: "):
        measure(folder, **settings)


def test_other_test_rows_are_refused(whole, settings, mirror, tmp_path, monkeypatch):
    """A mirror whose file has changed since."""
    folder, _, _ = whole
    other = shutil.copytree(mirror, tmp_path / "other")
    frame = pd.read_parquet(other / "toy" / "test.parquet")
    frame.assign(label=1 - frame["label"]).to_parquet(other / "toy" / "test.parquet")
    monkeypatch.setenv("TUTORKIT_DATA", str(other))
    with pytest.raises(ValueError, match=r"other settings \(test_labels: expected '[01]{20}', f"):
        measure(folder, **settings)


def test_a_folder_without_results_has_no_lines(tmp_path):
    assert read(tmp_path / "nothing") == []
    assert read(tmp_path, "rates.jsonl") == []


# --- rates ----------------------------------------------------------------------------------------


class NoTest(sources.Splits):
    """A data set whose test split nobody may look at."""

    def __getitem__(self, name):
        assert name != "test", "the test rows were looked at for a choice"
        return super().__getitem__(name)


@pytest.fixture
def choosing(calls, monkeypatch):
    monkeypatch.setattr(budgets, "CHOICE_BUDGET", 8)
    real = sources.load_splits

    def load_splits(name):
        found = real(name)
        return NoTest(dict(found.items()), found.name, found.source)

    monkeypatch.setattr(sources, "load_splits", load_splits)
    return calls


RATES = {"dataset": "toy", "model": "tiny", "validation_size": 10, "max_length": 16}
TRIALS = [(name, change) for name, tried in budgets.TRIED.items() for change in tried]


def test_rates_of_another_model_are_not_taken_for_this_one_s(choosing, tmp_path):
    choose_rates(tmp_path, **RATES)
    path = tmp_path / "rates.jsonl"
    others = path.read_text(encoding="utf-8").replace(f'"model": "{RATES["model"]}"',
                                                      '"model": "another"')  # fmt: skip
    path.write_text(others, encoding="utf-8")
    choosing.made = []
    assert len(choose_rates(tmp_path, **RATES)) == 2 * len(TRIALS)
    assert len(choosing.made) == len(TRIALS)


def test_rates_are_chosen_on_validation_rows_of_a_draw_of_their_own(choosing, tmp_path, mirror):
    lines = choose_rates(tmp_path, **RATES)
    assert [line["strategy"] for line in lines] == [name for name, _ in TRIALS]
    validation = pd.read_parquet(mirror / "toy" / "validation.parquet")
    chosen = np.random.default_rng(0).permutation(15)[:10]
    labels = validation["label"].to_numpy()[chosen]
    for line, (name, change), call in zip(lines, TRIALS, choosing.made, strict=True):
        assert line.items() >= change.items()
        base = transfer.STRATEGIES[name]
        for field, value in change.items():
            assert getattr(call["what"], field) == value
        assert (call["what"].title, call["what"].trained_layers) == (base.title,
                                                                     base.trained_layers)
        assert call["seed"] == budgets.CHOICE_SEED
        assert call["answer"] == list(validation["text"][chosen])
        assert call["rows"] == list(
            transfer.draw(sources.load_splits("toy")["train"], 8, budgets.CHOICE_SEED)["text"]
        )
        p = call["used"].probabilities
        right = [row[label] for row, label in zip(p, labels, strict=True)]
        assert line["accuracy"] == pytest.approx(np.mean(p.argmax(axis=1) == labels))
        assert line["loss"] == pytest.approx(-np.mean(np.log(right)), abs=1e-4)
        assert (line["n"], line["n_validation"]) == (8, 10)
    assert budgets.CHOICE_SEED not in (0, 1, 2, 3, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.jsonl"]


def test_every_strategy_is_tried():
    assert set(budgets.TRIED) == set(transfer.STRATEGIES)
    for name, strategy in transfer.STRATEGIES.items():
        chosen = [change for change in budgets.TRIED[name]
                  if all(getattr(strategy, field) == value for field, value in change.items())]
        assert len(chosen) == 1, f"{name}: its settings are none of those tried"


def test_the_choice_goes_on_where_it_was(choosing, tmp_path):
    choosing.stop_at = 6
    with pytest.raises(Stopped):
        choose_rates(tmp_path / "stopped", **RATES)
    assert len(read(tmp_path / "stopped", "rates.jsonl")) == 6
    choosing.made, choosing.stop_at = [], None
    lines = choose_rates(tmp_path / "stopped", **RATES)
    assert len(choosing.made) == len(TRIALS) - 6
    assert lines == choose_rates(tmp_path / "whole", **RATES)
    choosing.made = []
    assert choose_rates(tmp_path / "whole", **RATES) == lines
    assert choosing.made == []


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What the command would have measured or chosen."""
    found = []
    monkeypatch.setattr(budgets, "choose_rates", lambda *a, **k: found.append(("rates", a, k)))

    def stand_in(folder, dataset, model, budgets, seeds, strategies=None, test_size=None,
                 max_length=128):  # fmt: skip
        found.append((folder, dataset, model, budgets, seeds, strategies, test_size, max_length))

    monkeypatch.setattr(budgets, "measure", stand_in)
    return found


def test_the_command(asked):
    budgets.main(["runs/transfer"])
    budgets.main(["x", "--dataset", "toy", "--model", "tiny", "--budgets", "4,8", "--seeds", "3",
                  "--test-size", "20"])  # fmt: skip
    budgets.main(["x", "--rates", "--dataset", "toy", "--model", "tiny"])
    defaults = ("runs/transfer", "rt_snippets", "minilm", (32, 128, 512, 2048), (0, 1, 2), None,
                2000, 128)  # fmt: skip
    assert asked == [defaults, ("x", "toy", "tiny", (4, 8), (3,), None, 20, 128),
                     ("rates", ("x", "toy", "tiny"), {})]  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["x", "--budgets", "4,many"], ["x", "--seeds", ""],
                                       ["x", "--no-such"]])  # fmt: skip
def test_the_command_refuses(asked, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        budgets.main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m tutorkit.budgets" in capsys.readouterr().err
    assert asked == []


def test_the_command_measures(calls, tmp_path, capsys):
    budgets.main([str(tmp_path), "--dataset", "toy", "--model", "tiny", "--budgets", "4",
                  "--seeds", "0", "--test-size", "20"])  # fmt: skip
    assert [line["strategy"] for line in read(tmp_path)] == [*CHEAP, *WAYS]
    assert capsys.readouterr().out.splitlines()[-1].startswith(
        f"{len(CHEAP) + len(WAYS)} of {len(CHEAP) + len(WAYS)}: {{'strategy': {WAYS[-1]!r}, 'n': 4,"
    )


# --- records that come with the package -----------------------------------------------------------


def test_a_stored_record_is_what_was_measured(whole, monkeypatch, tmp_path):
    folder, lines, _ = whole
    measured = tmp_path / "measured"
    shutil.copytree(folder, measured / "toy-tiny")
    (measured / "toy-tiny" / "rates.jsonl").write_text('{"strategy": "scratch", "loss": 0.5}\n')
    (measured / "other").mkdir()
    (measured / "notes.txt").touch()
    monkeypatch.setattr(shelf.resources, "files", {"tutorkit": tmp_path}.get)
    record = stored("toy-tiny")
    assert (record.lines, record.rates) == (lines, [{"strategy": "scratch", "loss": 0.5}])
    assert record.about == json.loads((folder / "about.json").read_text(encoding="utf-8"))
    message = r"a stored record among \['other', 'toy-tiny'\], found 'toy'"
    with pytest.raises(FileNotFoundError, match=message):
        stored("toy")
