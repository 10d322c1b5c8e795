"""What the tests of the lessons share: a script's exercises, solved, and the inputs they draw."""

from __future__ import annotations

from typing import Any

import torch

from tutorkit import checks, exercises
from tutorkit.checks import Exercise


def solved(cells: list) -> dict[str, Any]:
    """What the setup and the solutions of a lesson's exercises define."""
    found: dict[str, Any] = {}
    for cell in cells:
        if {"exercise-setup", "solution"} & set(cell.metadata.get("tags", [])):
            exec(cell.source, found)
    return found


def blocks(cells: list, lesson: str) -> list[exercises.Block]:
    """A lesson's exercises, in order."""
    found = exercises.read_blocks(cells, lesson)
    return [block for block in found if isinstance(block, exercises.Block)]


def cases(exercise: Exercise) -> list[tuple]:
    """The inputs that a check gives to a learner's function."""
    return [exercise.inputs(torch.Generator().manual_seed(seed)) for seed in checks.exercise.SEEDS]
