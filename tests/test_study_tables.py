"""The README's tables of studies: numbers by hand, and the text equal to the stored records."""

from __future__ import annotations

import pytest

from tutorkit.notebooks import ROOT
from tutorkit.studies import Record, stored, tables
from tutorkit.studies.tables import TABLES, differences, scores

README = (ROOT / "README.md").read_text(encoding="utf-8")
ABOUT = {
    "settings": {"dataset": {"name": "toy", "source": "a mirror"}, "n_test": 10, "model": "minilm",
                 "max_length": 64, "train_max_length": 32},
    "environment": {"cpu": "A processor", "gpu": None, "versions": {"torch": "2.13.0"}},
    "git_commit": "abc1234",
}  # fmt: skip


def runs(*accuracies, **fields) -> list[dict]:
    return [{"seed": seed, "accuracy": a, **fields} for seed, a in enumerate(accuracies)]


def test_scores_of_several_seeds_and_of_one():
    assert scores(runs(0.8, 0.9, 0.85)) == "0.850 (0.800–0.900)"
    assert scores(runs(0.8)) == "0.800"


def test_differences_are_taken_seed_by_seed():
    # 3, 1 and 2 points: mean 2, s = 1, t of 2 degrees = 4.303, half of the interval 2.484.
    assert differences(runs(0.83, 0.91, 0.72), runs(0.80, 0.90, 0.70)) == "+2.0 (-0.5 to +4.5)"
    turned = list(reversed(runs(0.83, 0.91, 0.72)))
    assert differences(turned, runs(0.80, 0.90, 0.70)) == "+2.0 (-0.5 to +4.5)"
    # A baseline has one run, which meets each of the others.
    assert differences(runs(0.80), runs(0.83, 0.81, 0.82)) == "-2.0 (-4.5 to +0.5)"
    assert differences(runs(0.83), runs(0.80)) == "+3.0"


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_methods_that_train_few_weights():
    common = {"model": "minilm", "n": 40, "steps": 5, "batch_size": 8, "n_parameters": 1000}
    full = runs(0.8, 0.9, method="full", settings={}, n_trained=1000, cpu_s=20.0,
                peak_rss_mb=2048, **common)  # fmt: skip
    lora = runs(0.7, 0.8, method="lora", settings={"r": 4}, n_trained=50, cpu_s=10.0,
                peak_rss_mb=1024, **common)  # fmt: skip
    cheap = runs(0.75, method="baseline", model="tfidf_unigrams", settings={}, n=40, train_s=0.6)
    text = tables.peft_text(Record([*cheap, *lora, *full], [], ABOUT))
    head, _, *rows = cells(text)
    assert head[0] == "Trained" and [row[0] for row in rows] == [
        "everything", "LoRA, rank 4", "tfidf_unigrams (baseline)"]  # fmt: skip
    assert rows[0][1:] == ["1,000 (100 %)", "0.850 (0.800–0.900)", "—", "20", "2.00 GiB"]
    assert rows[1][1:] == ["50 (5 %)", "0.750 (0.700–0.800)", "-10.0 (-10.0 to -10.0)", "10",
                           "1.00 GiB"]  # fmt: skip
    assert rows[2][2] == "0.750" and rows[2][3].startswith("-10.0 (")
    assert "40 training reviews seen once in 5 steps of 8; 2 seeds. toy (a mirror)" in text
    assert text.endswith("A processor, no GPU, torch 2.13.0, commit abc1234.\n")


def test_adversarial_training():
    def lines(method, *accuracies, settings=None, **more):
        measured = {"typos 10%": {"n": 20, "accuracy": 0.5}, "pairs": {"n": 5, "accuracy": 0.4}}
        return runs(*accuracies, method=method, settings=settings or {}, n=40, cpu_s=8.0,
                    learning_rate=2e-4, batch_size=16, measured=measured, **more)  # fmt: skip

    cheap = [{**line, "cpu_s": None} for line in lines("nb_trigrams", 0.7)]
    record = Record([*cheap, *lines("plain", 0.8, 0.9),
                     *lines("freelb", 0.82, 0.92, settings={"steps": 3, "epsilon": 0.1})],
                    [], ABOUT)  # fmt: skip
    head, _, *rows = cells(tables.adversarial_text(record))
    assert head[3:5] == ["typos 10% (n = 20)", "pairs (n = 5)"]
    assert [row[0] for row in rows] == ["nb_trigrams (baseline)", "plain",
                                        "FreeLB, 3 steps, ε = 0.1"]  # fmt: skip
    assert rows[0][-1] == "—" and rows[1][2] == "—"
    assert rows[2][1:] == ["0.870 (0.820–0.920)", "+2.0 (+2.0 to +2.0)", "0.50 (0.50–0.50)",
                           "0.40 (0.40–0.40)", "8"]  # fmt: skip


def test_students():
    size = {"n_parameters": 100, "n_non_embedding": 30}
    student = {"student": "2 layers", "n": 40, "epochs": 2, "agreement": 0.9, **size}
    lines = [
        {"student": "teacher", "seed": 0, "accuracy": 0.9, "agreement": 1.0, **size},
        {"student": "nb_trigrams", "n": 40, "seed": 0, "accuracy": 0.81, "agreement": 0.8},
        *runs(0.8, 0.82, taught="alone", **student),
        *runs(0.83, 0.85, taught="soft targets", **student),
        {"student": "teacher", "taught": "timed", "latency": {"median_ms": 20.0, "p95_ms": 30.0}},
        {"student": "2 layers", "taught": "timed", "latency": {"median_ms": 5.0, "p95_ms": 8.0}},
    ]
    _, _, *rows = cells(tables.distillation_text(Record(lines, [], ABOUT)))
    assert [row[:2] for row in rows] == [
        ["teacher", "labels"], ["nb_trigrams (baseline)", "labels"], ["2 layers", "alone"],
        ["2 layers", "soft targets"],
    ]  # fmt: skip
    assert rows[0][7:] == ["20.0 (30.0)", "1.0"] and rows[1][7:] == ["—", "—"]
    assert rows[2][3:5] == ["—", "90.0%"]
    assert rows[3][2:] == ["0.840 (0.830–0.850)", "+3.0 (+3.0 to +3.0)", "93.3%",
                           "0.900 (0.900–0.900)", "30", "5.0 (8.0)", "4.0"]  # fmt: skip


def test_several_domains():
    about = ABOUT | {"settings": {"model": "minilm", "n_test": {"a": 10, "b": 20}}}
    lines = []
    for setting, gain in (("single", 0), ("joint", 0.1)):
        for domain, accuracy in (("a", 0.5), ("b", 0.7)):
            lines += runs(accuracy + gain, accuracy + 2 * gain, setting=setting, domain=domain, n=8,
                          cpu_s=60.0)  # fmt: skip
    lines += runs(0.5, 0.6, setting="nb_trigrams", domain="a", n=8)
    lines += runs(0.5, 0.6, setting="nb_trigrams", domain="b", n=8)
    lines.append({"setting": "conflict", "n": 8, "seed": 0, "steps": [], "cosines": {}})
    head, _, *rows = cells(tables.multitask_text(Record(lines, [], about)))
    assert head[2:4] == ["a (n = 10)", "b (n = 20)"]
    # The two single models take a minute each, the joint one a minute for both domains.
    assert rows[0] == ["8", "a model for each domain", "0.500 (0.500–0.500)",
                       "0.700 (0.700–0.700)", "—", "2.0"]  # fmt: skip
    # 10 and 20 points: mean 15, s = 7.07, t of 1 degree = 12.706, half of the interval 63.5.
    assert rows[1][-2:] == ["+15.0 (-48.5 to +78.5)", "1.0"]
    assert rows[2][1] == "nb_trigrams (baseline)" and rows[2][-1] == "—"


def test_rendering_writes_between_the_marks(tmp_path, monkeypatch):
    make = "<{}>\n".format
    monkeypatch.setattr(tables, "TABLES", {"absent": ("b", make), "toy": ("a record", make)})
    monkeypatch.setattr(tables, "stored", lambda name: name)
    path = tmp_path / "x.md"
    path.write_text("before\n<!-- toy:start -->\nold\n<!-- toy:end -->\nafter\n")
    tables.render(path)
    assert path.read_text() == (
        "before\n<!-- toy:start -->\n\n<a record>\n\n<!-- toy:end -->\nafter\n"
    )
    path.write_text("no mark\n")
    with pytest.raises(ValueError, match="such as <!-- absent:start -->, found none"):
        tables.render(path)


@pytest.mark.parametrize("mark", [mark for mark in TABLES if f"<!-- {mark}:start -->" in README])
def test_the_readme_shows_the_stored_record(mark):
    name, make = TABLES[mark]
    found = README.split(f"<!-- {mark}:start -->")[1].split(f"<!-- {mark}:end -->")[0]
    assert found.strip() == make(stored(name)).strip()
