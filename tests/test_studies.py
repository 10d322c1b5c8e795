"""Studies: which runs are made, on which rows, what a line holds; a stopped one goes on."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest

from tutorkit import machine, sources, studies
from tutorkit.adapters import METHODS
from tutorkit.data import take_rows
from tutorkit.models import count_parameters, load_model, save_model
from tutorkit.studies import adversarial, distillation, multitask, peft, runs, shelf
from tutorkit.training import TrainConfig, TrainState

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_stopped_plan_goes_on(tmp_path):
    path, made = tmp_path / "new" / "runs.jsonl", []

    def run(key):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(key["k"])
        return {"square": key["k"] ** 2}

    plan = [{"k": k} for k in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        shelf.complete(path, plan, run, own_process=False)
    with path.open("a") as file:
        file.write('{"k": 3, "squ')  # a full disk
    made.clear()
    assert shelf.complete(path, plan, run, own_process=False) == [
        {"k": k, "square": k**2} for k in (1, 2, 3)
    ]
    assert made == [3]


def test_a_run_may_have_several_lines(tmp_path):
    lines = shelf.complete(tmp_path / "runs.jsonl", [{"k": 1}],
                           lambda key: [{"part": "a"}, {"part": "b"}], False)  # fmt: skip
    assert lines == [{"k": 1, "part": "a"}, {"k": 1, "part": "b"}]


def hold(megabytes: int, key: dict) -> dict:
    """At the top of a module, as a run in a process of its own has to be."""
    held = np.ones(megabytes * 2**17)
    return {"process": os.getpid(), "sum": held.sum(), "peak": machine.peak_rss_mb()}


def test_a_run_in_a_process_of_its_own_has_a_peak_of_its_own(tmp_path):
    big = shelf.complete(tmp_path / "big.jsonl", [{"k": 1}], partial(hold, 600), True)[0]
    small = shelf.complete(tmp_path / "small.jsonl", [{"k": 1}], partial(hold, 1), True)[0]
    assert len({os.getpid(), big["process"], small["process"]}) == 3
    assert big["peak"] - small["peak"] == pytest.approx(600, rel=0.1)


def test_a_folder_belongs_to_one_set_of_settings(tmp_path):
    shelf.open_folder(tmp_path, {"n_test": 10})
    shelf.open_folder(tmp_path, {"n_test": 10})
    with pytest.raises(ValueError, match="other settings .n_test: expected 11, found 10"):
        shelf.open_folder(tmp_path, {"n_test": 11})


def test_an_unknown_record_is_named_with_those_there_are():
    with pytest.raises(FileNotFoundError, match="among .*'transfer-rt_snippets-minilm'.*'mine'"):
        studies.stored("mine")


@pytest.fixture(scope="module")
def rows():
    splits = sources.load_splits("reviews")
    return {"train": take_rows(splits["train"], 64, 0), "test": take_rows(splits["test"], 30, 0),
            "choice": take_rows(splits["train"], 64, 1000)}  # fmt: skip


@pytest.fixture
def seen(monkeypatch):
    """The texts that each call of `fit` learned from."""
    found, real = [], runs.fit

    def fit(model, train, *args, **kwargs):
        state = real(model, train, *args, **kwargs)
        found.append((model, train, state))
        return state

    monkeypatch.setattr(runs, "fit", fit)
    return found


def ids_of(dataset) -> tuple:
    return tuple(map(tuple, dataset.batch(np.arange(len(dataset)))["input_ids"].tolist()))


def test_peft_lines(tmp_path, seen, rows, monkeypatch):
    monkeypatch.setitem(peft.RATES, "tiny", {"head": 1e-2, "lora": 1e-3, "adalora": 1e-3})
    lines = peft.measure(tmp_path, "reviews", ("tiny",), 64, (0, 1), (1, 8), 30, 32, False)
    assert [(x["model"], x["method"], x["settings"].get("r"), x["seed"]) for x in lines[3:]] == [
        ("tiny", method, r, seed) for seed in (0, 1)
        for method, r in (("head", None), ("lora", 1), ("lora", 8), ("adalora", None))
    ]  # fmt: skip
    assert [x["model"] for x in lines[:3]] == list(peft.CHEAP)
    labels = np.asarray(rows["test"]["label"])
    for line in lines:
        right = np.array(list(line["predictions"]), dtype=int) == labels
        assert line["accuracy"] == right.mean()
    total, _ = count_parameters(load_model("tiny").model)
    one, eight = (next(x for x in lines if x["settings"].get("r") == r) for r in (1, 8))
    assert all(x["settings"]["lora_alpha"] == 2 * x["settings"]["r"] for x in (one, eight))
    head = next(x for x in lines if x["method"] == "head")
    assert head["n_trained"] == 2 * 32 + 2 and head["n_parameters"] == total
    assert (eight["n_trained"] - head["n_trained"]) == 8 * (one["n_trained"] - head["n_trained"])
    assert all(x["steps"] == 4 and x["epochs"] == 1 for x in lines[3:])
    assert sum(lines[-1]["ranks"].values()) == METHODS["adalora"]["target_r"] * 4
    assert len({ids_of(train) for _, train, _ in seen}) == 1  # the same rows
    assert len(seen) == 8
    monkeypatch.setattr(runs, "fit", None)  # a finished study trains nothing
    assert peft.measure(tmp_path, "reviews", ("tiny",), 64, (0, 1), (1, 8), 30, 32, False) == lines


def test_peft_rates_are_chosen_on_other_rows_than_results(tmp_path, seen, rows, monkeypatch):
    monkeypatch.setitem(peft.TRIED, "tiny", {"head": (1e-3, 1e-2)})
    lines = peft.choose_rates(tmp_path, "reviews", ("tiny",), 64, 20, 128, False)
    assert [x["learning_rate"] for x in lines] == [1e-3, 1e-2]
    assert all(len(x["predictions"]) == 20 for x in lines)
    loaded = load_model("tiny")
    wanted = loaded.tokenizer(list(rows["choice"]["text"]), truncation=False)["input_ids"]
    assert seen[0][1].lengths.tolist() == [min(128, len(ids)) for ids in wanted]


@pytest.mark.parametrize("model", list(peft.RATES))
def test_every_rate_is_one_of_those_tried(model):
    for method, rate in peft.RATES[model].items():
        assert rate in peft.TRIED[model][method]


def test_adversarial_lines(tmp_path, seen, monkeypatch):
    monkeypatch.setattr(adversarial, "NOISY_ROWS", 20)
    monkeypatch.setattr(adversarial, "ATTACKED_ROWS", 3)
    monkeypatch.setattr(adversarial, "_vocabulary", lambda: (
        (tiny := load_model("tiny")).tokenizer, tiny.model.get_input_embeddings().weight))
    lines = adversarial.measure(tmp_path, "reviews", "tiny", 64, (0,), 1e-3, 30, 32, False)
    assert [x["method"] for x in lines] == [*adversarial.CHEAP, *adversarial.METHODS]
    steps = {x["method"]: x["steps"] for x in lines[2:]}
    assert steps == {"plain": 4, "plain_longer": 8, "fgm": 4, "freelb": 4}
    radius = adversarial.RADII["freelb"]
    assert lines[-1]["settings"] == {"epsilon": radius, "step_size": radius, "steps": 2}
    assert lines[2]["settings"] == {} and lines[4]["settings"] == {
        "epsilon": adversarial.RADII["fgm"]}  # fmt: skip
    for line in lines:
        assert {"typos 10%", "dropped words 10%", "negation probes", "contrast pairs",
                "under attack"} <= set(line["measured"])  # fmt: skip
        assert line["measured"]["contrast pairs"]["n"] == 90
        assert line["measured"]["under attack"]["n"] == 3
        for name, one in line["measured"].items():
            right = np.array(list(line["correct"][name]), dtype=int)
            assert (len(right), right.mean()) == (one["n"], one["accuracy"])
        clean = np.array(list(line["correct"]["clean"]), dtype=int)
        assert clean.mean() == line["accuracy"]
        assert clean[:20].mean() == line["measured"]["typos 10%"]["clean"]


def test_radii_are_tried_on_validation_rows(tmp_path, seen, monkeypatch):
    monkeypatch.setattr(adversarial, "TRIED", (0.1, 0.3))
    lines = adversarial.choose_radii(tmp_path, "reviews", "tiny", 64, 1e-3, 20, 32,
                                     own_process=False)  # fmt: skip
    assert [(x["method"], x["settings"]["epsilon"]) for x in lines] == [
        ("fgm", 0.1), ("freelb", 0.1), ("fgm", 0.3), ("freelb", 0.3)]  # fmt: skip
    assert {(x["n"], x["n_validation"], x["steps"]) for x in lines} == {(64, 20, 4)}
    assert len({x["loss"] for x in lines if x["method"] == "fgm"}) == 2
    assert set(adversarial.RADII.values()) <= {0.05, 0.1, 0.2, 0.5}


def test_a_text_that_was_asked_is_not_read_again():
    read = []

    def predict(texts):
        read.extend(texts)
        return np.array([[len(text), 0.5] for text in texts])

    ask = adversarial._remembering(predict)
    assert ask(["bb", "a", "bb"]).tolist() == [[2, 0.5], [1, 0.5], [2, 0.5]]
    assert ask(["ccc", "a"]).tolist() == [[3, 0.5], [1, 0.5]]
    assert ask(["a"]).tolist() == [[1, 0.5]] and read == ["bb", "a", "ccc"]


def test_students_lines(tmp_path, seen):
    folder = tmp_path / "teacher"
    save_model(load_model("tiny"), folder, "# A model card\n")
    lengths = distillation.Lengths(16, 32)
    record = tmp_path / "record"
    lines = distillation.measure(record, folder, "reviews", 64, (0, 1), 1, 30, lengths, False)
    assert [(x["student"], x.get("taught"), x["seed"]) for x in lines] == [
        ("teacher", None, 0), ("nb_trigrams", None, 0),
        *((student, way, seed) for seed in (0, 1) for student, way in distillation.PLAN),
    ]  # fmt: skip
    assert lines[0]["agreement"] == 1
    teacher = lines[0]["predictions"]
    for line in lines:
        same = sum(a == b for a, b in zip(line["predictions"], teacher, strict=True))
        assert line["agreement"] == pytest.approx(same / 30)
    total, _ = count_parameters(load_model("tiny").model)
    bag = lines[5]
    assert (bag["student"], bag["n_non_embedding"]) == ("bag of embeddings", 2 * 32 + 2)
    assert lines[2]["n_parameters"] == total
    # Students learn from short texts; the teacher's logits of training rows are kept once.
    assert {int(train.lengths.max()) for _, train, _ in seen} == {16}
    assert len(list((record / "teacher").iterdir())) == 2
    timed = distillation.time_each(record, folder, "reviews", lengths)[-3:]
    assert [x["student"] for x in timed] == ["teacher", "2 layers", "bag of embeddings"]
    assert all(0 < x["latency"]["median_ms"] <= x["latency"]["p95_ms"] for x in timed)


def test_the_settings_of_students_are_among_those_tried():
    def tried(student, way, name):
        return {c[name] for s, w, c in distillation.TRIED if (s, w) == (student, way)}

    assert distillation.RATES["2 layers"] in tried("2 layers", "alone", "learning_rate")
    bag = "bag of embeddings"
    assert distillation.RATES[bag] in tried(bag, "alone", "learning_rate")
    assert distillation.TEMPERATURE in tried("2 layers", "soft targets", "temperature")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """Two domains with ratings, as a local mirror has them."""
    import pandas as pd

    root, rng = tmp_path_factory.mktemp("mirror"), np.random.default_rng(3)
    for name in ("films", "shoes"):
        for split, count in (("train", 40), ("validation", 12), ("test", 20)):
            rating = rng.permutation(np.linspace(-3, 3, count))
            texts = [f"{('dull', 'lovely')[int(r > 0)]} {name} of {split} {i}"
                     for i, r in enumerate(rating)]  # fmt: skip
            path = root / name / f"{split}.parquet"
            path.parent.mkdir(exist_ok=True)
            frame = pd.DataFrame({"text": texts, "label": (rating > 0) * 1, "rating": rating})
            frame.to_parquet(path)
    return root


def test_what_looking_costs_is_not_charged(monkeypatch):
    clock, cpu = iter([0.0, 5.0, 10.0, 12.0]), iter([0.0, 1.0, 1.0, 4.0])
    monkeypatch.setattr(multitask.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(multitask.time, "process_time", lambda: next(cpu))
    seen, looked = [], multitask._Timed([lambda event, state: seen.append(event)])
    state = TrainState(TrainConfig(), 2)
    looked("step", state)
    looked("end", state)
    assert (seen, looked.seconds, looked.cpu_seconds) == (["step", "end"], 7.0, 4.0)


def test_multitask_lines(tmp_path, domains, monkeypatch):
    monkeypatch.setenv("TUTORKIT_DATA", str(domains))
    lines = multitask.measure(tmp_path, "tiny", (16,), (0,), 10, 16, ("films", "shoes"), False)
    results = [x for x in lines if x["setting"] != "conflict"]
    assert [(x["setting"], x["domain"]) for x in results] == [
        (setting, domain) for setting in ("nb_trigrams", *multitask.SETTINGS)
        for domain in ("films", "shoes")
    ]  # fmt: skip
    labels = {name: np.asarray(take_rows(sources.load_splits(name)["test"], 10, 0)["label"])
              for name in ("films", "shoes")}  # fmt: skip
    for line in results:
        right = np.array(list(line["predictions"]), dtype=int) == labels[line["domain"]]
        assert line["accuracy"] == pytest.approx(right.mean())
    steps = {x["setting"]: x["steps"] for x in results if "steps" in x}
    # Two domains take the steps of two models; a second task on the same texts takes as many again.
    assert steps == {"single": 64, "joint": 128, "pooled": 128, "joint+domain": 256,
                     "joint+rating": 256}  # fmt: skip
    assert all(("pearson" in x) == (x["setting"] == "joint+rating") for x in results)
    conflict = next(x for x in lines if x["setting"] == "conflict")
    assert conflict["steps"] == list(range(16, 129, 16))
    assert list(conflict["cosines"]) == ["films × shoes"]
    assert all(-1 <= c <= 1 for c in conflict["cosines"]["films × shoes"])
