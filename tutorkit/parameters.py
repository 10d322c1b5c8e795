"""The parameters of the report notebook, checked before any work starts."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tutorkit.data import TRUNCATIONS
from tutorkit.recipes import RECIPES
from tutorkit.training import TrainConfig


@dataclass(frozen=True)
class ReportParameters:
    """One field for each name in the notebook's `parameters` cell.

    Raises:
        ValueError: a value that is not allowed; the message says what is.
    """

    dataset: str = "auto"  # a name of tutorkit.sources
    model: str = "minilm"  # a name of tutorkit.models
    recipe: str | None = None  # a name of tutorkit.recipes
    train_size: int | None = 2400  # rows at most; None: all
    validation_size: int | None = 500
    test_size: int | None = 2000
    max_length: int = 128  # tokens a review, special tokens included
    train_max_length: int | None = None  # the same of a training review; None: max_length
    truncation: str = "head+tail"
    epochs: int = 2
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    optimizer: str = "adamw"
    schedule: str = "linear"
    evaluations_per_epoch: int = 2
    patience: int | None = 3
    freeze: str | int = "none"
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    show_texts: bool | None = None
    run_dir: str | None = None
    overwrite: bool = False

    def __post_init__(self):
        for name in ("dataset", "model"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name}: expected a name, found {value!r}")
        for name in ("train_size", "validation_size", "test_size"):
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < 2):
                raise ValueError(
                    f"{name}: expected a number of rows from 2, or None for all, found {value!r}"
                )
        if self.recipe is not None and self.recipe not in RECIPES:
            raise ValueError(f"recipe: expected one of {tuple(RECIPES)}, or None for none, found "
                             f"{self.recipe!r}")
        if not _is_whole(self.max_length) or self.max_length < 8:
            raise ValueError(
                f"max_length: expected a number of tokens from 8, found {self.max_length!r}"
            )
        length = self.train_max_length
        if length is not None and (not _is_whole(length) or length < 8):
            raise ValueError("train_max_length: expected a number of tokens from 8, or None for "
                             f"max_length, found {length!r}")
        if self.truncation not in TRUNCATIONS:
            raise ValueError(
                f"truncation: expected one of {TRUNCATIONS}, found {self.truncation!r}"
            )
        if self.freeze not in ("none", "embeddings", "backbone") and not _is_whole(self.freeze):
            raise ValueError(
                'freeze: expected "none", "embeddings", "backbone" or a number of layers, '
                f"found {self.freeze!r}"
            )
        if self.show_texts not in (True, False, None):
            raise ValueError(f"show_texts: expected True, False or None, found {self.show_texts!r}")
        if not isinstance(self.overwrite, bool):
            raise ValueError(f"overwrite: expected True or False, found {self.overwrite!r}")
        if self.run_dir is not None and not isinstance(self.run_dir, str):
            raise ValueError(f"run_dir: expected a folder's name or None, found {self.run_dir!r}")
        self.train_config()  # checks the rest

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> ReportParameters:
        """Read the parameters from a notebook's `globals()`, and refuse names it does not know.

        papermill injects whatever name it is given, and only warns of unknown ones: a misspelt
        parameter would run for an hour with its default. So in the first cell after the
        parameters, every plain variable must be one of them. When that cell is run again, later
        cells have added names of their own; then only the values are checked.

        Raises:
            ValueError: an unknown name, with the closest known one, or a value not allowed.
        """
        known = [field.name for field in fields(cls)]
        found = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and name not in ("In", "Out")
            and not callable(value) and not inspect.ismodule(value)
        }  # fmt: skip
        if not any(isinstance(value, cls) for value in found.values()):
            for name in found:
                if name not in known:
                    close = difflib.get_close_matches(name, known, n=1)
                    hint = f" (did you mean {close[0]!r}?)" if close else ""
                    raise ValueError(
                        f"unknown parameter {name!r}{hint}: expected one of {', '.join(known)}"
                    )
        return cls(**{name: found[name] for name in known if name in found})

    def with_recipe(self) -> ReportParameters:
        """These parameters; those still at their default have the recipe's values.

        A value of your own that differs from the default goes before the recipe's.
        """
        defaults = ReportParameters()
        values = RECIPES[self.recipe] if self.recipe else {}
        left = {n: v for n, v in values.items() if getattr(self, n) == getattr(defaults, n)}
        return replace(self, **left)

    def train_config(self) -> TrainConfig:
        """The part that `tutorkit.training.fit` needs."""
        names = {field.name for field in fields(TrainConfig)}
        return TrainConfig(**{k: v for k, v in asdict(self).items() if k in names})


def runs_folder() -> Path:
    """Where runs without a `run_dir` go: `$TUTORKIT_RUNS`, else `runs/` at the project's root."""
    if os.environ.get("TUTORKIT_RUNS"):
        return Path(os.environ["TUTORKIT_RUNS"])
    here = Path.cwd()
    return (here.parent if here.name == "notebooks" else here) / "runs"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
