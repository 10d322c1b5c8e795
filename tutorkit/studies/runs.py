"""The training of one run of a study, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tutorkit.data import SentimentDataset
from tutorkit.objectives import Objective, classification
from tutorkit.training import Callback, TrainConfig, fit


def train_run(
    model: torch.nn.Module, train: SentimentDataset, key: Mapping[str, Any],
    objective: Objective = classification, callbacks: Sequence[Callback] = (),
) -> dict[str, float]:
    """Train a model in place as a plan's key says; nothing is chosen, the last weights stay.

    Args:
        model: as for `fit`, like `train`, `objective` and `callbacks`.
        train: rows to learn from.
        key: has "epochs", "batch_size", "learning_rate" and "seed".
        objective: what a step lowers.
        callbacks: called by `fit`.

    Returns:
        steps, tokens, `train_s` by the clock and `cpu_s` of all threads.
    """
    config = TrainConfig(epochs=key["epochs"], batch_size=key["batch_size"], seed=key["seed"],
                         learning_rate=key["learning_rate"], patience=None)  # fmt: skip
    cpu = time.process_time()
    state = fit(model, train, None, config, callbacks=callbacks, objective=objective)
    return {"steps": state.step, "tokens": state.tokens, "train_s": round(state.seconds, 1),
            "cpu_s": round(time.process_time() - cpu, 1)}  # fmt: skip
