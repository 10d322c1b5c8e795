"""The report's parameters: what passes, and what is refused before any work."""

import ast
import dataclasses
import os
from pathlib import Path

import jaxtyping
import pytest

from tutorkit.parameters import ReportParameters, runs_folder
from tutorkit.recipes import RECIPES
from tutorkit.report import REPORT, parameter_defaults


def test_the_defaults_are_those_of_the_notebook():
    assert dataclasses.asdict(ReportParameters()) == parameter_defaults(REPORT)


def test_each_parameter_of_the_notebook_has_a_comment():
    script = REPORT.with_suffix(".py").read_text(encoding="utf-8")
    cell = script.split('tags=["parameters"]')[1].split("# %%")[0]
    lines = [line for line in cell.splitlines() if "=" in line]
    assert len(lines) == len(dataclasses.fields(ReportParameters))
    for line in lines:
        name = line.split(" = ")[0]
        assert "  # " in line and len(line.split("  # ")[1]) > 5, name
        ast.parse(line)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dataset", "", "dataset: expected a name, found ''"),
        ("model", None, "model: expected a name, found None"),
        ("train_size", 1, "train_size: expected a number of rows from 2, or None for all, found 1"),
        ("validation_size", 2.5, "validation_size: expected a number of rows"),
        ("test_size", True, "test_size: expected a number of rows"),
        ("max_length", 4, "max_length: expected a number of tokens from 8, found 4"),
        ("recipe", "quick", "recipe: expected one of .*'fast'.*, or None for none, found 'quick'"),
        ("train_max_length", 7, "train_max_length: expected a number of tokens from 8, or None"),
        ("truncation", "middle", "truncation: expected one of .*'head\\+tail'.*, found 'middle'"),
        ("epochs", 0, "epochs: expected a whole number from 1, found 0"),
        ("batch_size", 0, "batch_size: expected a whole number from 1, found 0"),
        ("learning_rate", "fast", "learning_rate: expected a number in 0…1, found 'fast'"),
        ("weight_decay", -0.1, "weight_decay: expected a number in 0…1, found -0.1"),
        ("warmup_ratio", 2, "warmup_ratio: expected a number in 0…1, found 2"),
        ("optimizer", "adam", "optimizer: expected one of .*'adamw', 'sgd'.*, found 'adam'"),
        ("schedule", "step", "schedule: expected one of .*'linear'.*, found 'step'"),
        ("evaluations_per_epoch", 0, "evaluations_per_epoch: expected a whole number from 1"),
        ("patience", 0, "patience: expected a whole number from 1, found 0"),
        ("freeze", "head", 'freeze: expected "none", "embeddings", "backbone" or a number'),
        ("precision", "int8", "precision: expected one of .*'bf16'.*, found 'int8'"),
        ("device", "tpu9", "device.*tpu9"),
        ("device", 0, "device: expected .* found 0"),
        ("seed", -1, "seed: expected a whole number from 0, found -1"),
        ("show_texts", "yes", "show_texts: expected True, False or None, found 'yes'"),
        ("run_dir", 3, "run_dir: expected a folder's name or None, found 3"),
        ("overwrite", 1, "overwrite: expected True or False, found 1"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(name, value, message, monkeypatch):
    # Under pytest the annotations are checked too; a notebook has only the class's own checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        ReportParameters(**{name: value})


def test_a_misspelt_name_is_refused_with_the_closest_one():
    with pytest.raises(ValueError, match="unknown parameter 'learning_rat' .did you mean 'learn"):
        ReportParameters.from_namespace({"learning_rat": 1e-5})
    with pytest.raises(ValueError, match="unknown parameter 'zzz': expected one of dataset, model"):
        ReportParameters.from_namespace({"dataset": "imdb", "zzz": 1})


def test_a_namespace_may_hold_what_a_notebook_holds():
    namespace = {
        "epochs": 3, "dataset": "imdb", "In": [], "Out": {}, "_i1": "x", "__name__": "__main__",
        "os": os, "ReportParameters": ReportParameters, "exit": exit,
    }  # fmt: skip
    params = ReportParameters.from_namespace(namespace)
    assert (params.epochs, params.dataset, params.batch_size) == (3, "imdb", 32)


def test_running_the_cell_again_checks_values_but_not_later_names():
    later = {"params": ReportParameters(), "tokenized": {}, "epochs": 5}
    assert ReportParameters.from_namespace(later).epochs == 5
    with pytest.raises(ValueError, match="epochs"):
        ReportParameters.from_namespace(later | {"epochs": -1})


def test_the_training_config_takes_the_same_values():
    params = ReportParameters(epochs=5, learning_rate=3e-5, patience=None, seed=7)
    config = params.train_config()
    assert (config.epochs, config.learning_rate, config.patience, config.seed) == (5, 3e-5, None, 7)


def test_runs_go_to_the_projects_root_or_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("TUTORKIT_RUNS", raising=False)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert runs_folder() == tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    assert runs_folder() == tmp_path / "runs"
    monkeypatch.setenv("TUTORKIT_RUNS", "elsewhere")
    assert runs_folder() == Path("elsewhere")


def test_a_recipe_fills_in_what_is_at_its_default():
    plain = ReportParameters()
    assert plain.with_recipe() == plain
    fast = ReportParameters(recipe="fast", max_length=200, seed=3).with_recipe()
    changed = {n for n, v in dataclasses.asdict(fast).items() if v != getattr(plain, n)}
    assert changed == {*RECIPES["fast"], "recipe", "seed"}
    assert fast.max_length == 200  # one's own value goes before the recipe's
    assert all(getattr(fast, n) == v for n, v in RECIPES["fast"].items() if n != "max_length")
    assert fast.with_recipe() == fast


def test_each_recipe_is_of_values_that_a_report_takes():
    for name in RECIPES:
        ReportParameters(recipe=name).with_recipe().train_config()
