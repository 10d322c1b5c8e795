"""Five texts with the labels of three tasks, and `tiny` without dropout: for test_multitask*.py."""

from __future__ import annotations

from functools import cache

import torch

from tutorkit.models import LoadedModel, load_model
from tutorkit.multitask import MultiTaskModel
from tutorkit.multitask_data import Task, TaskDataset
from tutorkit.training import TrainConfig

CONFIG = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3, precision="fp32", device="cpu")
MOOD = Task("mood", names=("negative", "positive"))
TOPIC = Task("topic", names=("plot", "cast", "songs"))
RATING = Task("rating", "regression")
TEXTS = ["what a joy", "dull and long", "a fine cast", "no plot at all", "lovely songs, truly so"]
LABELS = {"mood": [1, 0, 1, 0, 1], "topic": [0, 0, 1, 0, 2],
          "rating": [2.5, -1.0, 0.5, -2.0, 3.0]}  # fmt: skip


@cache
def tiny(name: str = "tiny") -> LoadedModel:
    loaded = load_model(name)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its masks depend on how the rows are split
    return loaded


def rows(task: Task, copies: int = 1, name: str = "tiny") -> TaskDataset:
    labels = LABELS[task.name] * copies
    return TaskDataset(task, TEXTS * copies, labels, tiny(name).tokenizer, 32)


def multi(*tasks: Task, name: str = "tiny", **settings) -> MultiTaskModel:
    return MultiTaskModel(tiny(name), tasks, **settings)
