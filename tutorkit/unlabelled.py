"""Texts without labels beside the labelled ones, for objectives that can learn from both."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tutorkit.data import SentimentDataset, check_classes, training_batches
from tutorkit.losses import IGNORE_INDEX


class WithUnlabelled(SentimentDataset):
    """Labelled rows for `fit`, and in every batch others whose labels are not looked at (-100).

    An epoch is one pass over the labelled rows. Of each batch one row in 1 + ratio is labelled; the
    others are drawn anew in every epoch, and go round again where they are too few.

    Args:
        labelled: N rows, of at least two classes.
        unlabelled: M rows, by the same tokenizer. Their numbers go on from N.
        ratio: unlabelled rows for each labelled one.

    Raises:
        ValueError: labelled rows of one class, another pad token, or a ratio below 1.
    """

    def __init__(self, labelled: SentimentDataset, unlabelled: SentimentDataset, ratio: int = 1):
        check_classes(labelled.labels.tolist())
        if ratio < 1:
            raise ValueError(f"ratio: expected a whole number from 1, found {ratio!r}")
        if labelled.pad_token_id != unlabelled.pad_token_id:
            raise ValueError(
                f"expected both sets from one tokenizer, found pad tokens {labelled.pad_token_id} "
                f"and {unlabelled.pad_token_id}: build both with the model's own"
            )
        both = (labelled, unlabelled)
        self.labelled, self.unlabelled, self.ratio = labelled, unlabelled, ratio
        self.lengths = np.concatenate([rows.lengths for rows in both])
        self.full_lengths = np.concatenate([rows.full_lengths for rows in both])
        self.labels = np.concatenate([labelled.labels, np.full(len(unlabelled), IGNORE_INDEX)])
        self.pad_token_id = labelled.pad_token_id
        self.max_length = max(rows.max_length for rows in both)
        self.num_labels = labelled.num_labels

    def __getitem__(self, row: int | np.integer) -> dict[str, Tensor]:
        row = range(len(self))[row]
        first = len(self.labelled)
        if row < first:
            return self.labelled[row]
        return self.unlabelled[row - first] | {"labels": torch.tensor(IGNORE_INDEX)}

    def batches_of_epoch(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Row numbers of each batch: up to batch_size // (1 + ratio) labelled rows, then others."""
        size = max(1, batch_size // (1 + self.ratio))
        batches = training_batches(self.labelled.lengths, size, seed, epoch)
        others = np.random.default_rng((seed, epoch, 1)).permutation(len(self.unlabelled))
        drawn = np.resize(others, self.ratio * len(self.labelled)) + len(self.labelled)
        ends = self.ratio * np.cumsum([len(rows) for rows in batches])
        return [np.concatenate(both)
                for both in zip(batches, np.split(drawn, ends[:-1]), strict=True)]  # fmt: skip
