"""What every test stands on: no hub, no display, the same random numbers each time."""

from __future__ import annotations

import os
import random
import sys

# Before any test imports a library that reads them. Weights and data come from the cache that the
# commands use too, so a test run does not fetch 84 MB again.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import matplotlib
import numpy as np
import pytest

# The same examples in every run and on every machine, and no database of past failures.
hypothesis.settings.register_profile(
    "tutorkit", deadline=None, derandomize=True, database=None, max_examples=40
)
hypothesis.settings.load_profile("tutorkit")

# Not by its environment variable, which the notebooks run by tests would inherit.
matplotlib.use("agg")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Seed every generator before each test, so that no test depends on the ones before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """For many tiny tensors: on a busy machine torch's threads wait 10 ms for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
