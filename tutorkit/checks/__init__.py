"""Checks of the lessons' exercises: one module for each lesson, `lesson_NN`.

An exercise is an `Exercise`: the right function, fresh inputs for it, the mistakes that learners
make, and hints. A notebook calls `lesson_01.name.check(name)` and `lesson_01.name.hint()`.
"""

from tutorkit.checks.exercise import CheckFailed, Exercise, Mistake

__all__ = ["CheckFailed", "Exercise", "Mistake"]
