"""Measurements that lessons show: methods side by side on the same rows, over seeds.

    python -m tutorkit.studies.peft runs/peft-imdb-minilm --dataset imdb

Each study writes one line a run into `runs.jsonl` of its folder, as soon as it is there: one that
was stopped goes on where it was. Finished ones come with the package: `stored(name)`.
"""

from tutorkit.studies.shelf import Record, read, stored

__all__ = ["Record", "read", "stored"]
