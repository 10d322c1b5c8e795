"""Rows of several tasks as one data set: what a task is, its rows, and how often each has its turn.

The rows of all tasks stand one after another, and a batch may mix them: the encoder reads them all
at once, and a number beside each row says whose labels it bears. How often a task is drawn decides
how much it weighs in training, as its loss does (`tutorkit.multitask`).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor

from tutorkit.data import SentimentDataset, check_classes, check_rows, take_rows, training_batches
from tutorkit.losses.tasks import KINDS
from tutorkit.sources import SPLITS

SAMPLINGS = ("proportional", "temperature", "round_robin")


@dataclass(frozen=True)
class Task:
    """What is asked of a text: one of some classes, or a number.

    Raises:
        ValueError: no name, an unknown kind, names that do not fit the kind, a weight not above 0.
    """

    name: str
    kind: str = "classification"  # or "regression"
    names: Sequence[str] = ()  # of the classes, that of label 0 first; none for a regression
    weight: float = 1.0  # of the task's loss, where weights are fixed

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name: expected a task's name, found {self.name!r}")
        if self.kind not in KINDS:
            raise ValueError(f"task {self.name!r}: expected one of {KINDS} as kind, found "
                             f"{self.kind!r}")
        object.__setattr__(self, "names", tuple(self.names))  # a list can't be compared with one
        if self.kind == "regression" and self.names:
            raise ValueError(f"task {self.name!r}: expected no names of classes for a regression, "
                             f"found {self.names}: drop them, or set kind='classification'")
        if self.kind == "classification" and len(set(self.names)) < max(2, len(self.names)):
            raise ValueError(f"task {self.name!r}: expected two or more different names of "
                             f"classes, found {self.names}; numbers are kind='regression'")
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight < math.inf:
            raise ValueError(f"task {self.name!r}: expected a weight above 0, found "
                             f"{self.weight!r}; leave a task out that should not count")

    @property
    def num_labels(self) -> int:
        """The head's outputs: one a class, or the number itself."""
        return len(self.names) or 1


def check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse no tasks, and two of one name.

    Raises:
        ValueError: as said.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected one or more tasks of different names, found {names}")


def _is_number(label: object) -> bool:
    is_real = isinstance(label, numbers.Real) and not isinstance(label, (bool, np.bool_))
    return is_real and math.isfinite(label)


class TaskDataset(SentimentDataset):
    """The rows of one task; all else as in `SentimentDataset`.

    Args:
        task: what the labels are.
        texts: N texts, none of them empty.
        labels: N class numbers, or for a regression N finite numbers.
        tokenizer: as there, like the arguments after it.
        max_length: as there.
        truncation: as there.

    Raises:
        TypeError, ValueError: as there, for a task without rows or labels of another kind too; the
            message begins with the task.
    """

    def __init__(
        self, task: Task, texts: Collection, labels: Collection, tokenizer, max_length: int = 128,
        truncation: str = "head+tail",
    ):  # fmt: skip
        texts, labels = list(texts), list(labels)
        classes = labels if task.kind == "classification" else [0] * len(labels)
        try:
            check_rows(texts, classes, task.num_labels)
        except (TypeError, ValueError) as error:
            raise type(error)(f"task {task.name!r} ({task.kind}): {error}") from error
        odd = [i for i, label in enumerate(labels) if not _is_number(label)]
        if task.kind == "regression" and odd:
            raise ValueError(f"task {task.name!r} (regression): row {odd[0]}: expected a finite "
                             f"number as label, found {labels[odd[0]]!r}: drop the row, or make "
                             "it a task of kind='classification'")
        super().__init__(texts, classes, tokenizer, max_length, truncation, task.num_labels)
        self.task = task
        if task.kind == "regression":
            self.labels = np.asarray(labels, dtype=np.float64)

    def __getitem__(self, row: int | np.integer) -> dict[str, Tensor]:
        item = super().__getitem__(row)
        if self.task.kind == "regression":
            item["labels"] = torch.tensor(self.labels[row], dtype=torch.float32)
        return item


def task_datasets(
    tasks: Sequence[Task], split: Dataset, tokenizer, max_length: int = 128,
    truncation: str = "head+tail",
) -> list[TaskDataset]:
    """Several tasks on the same texts: each task's labels stand in the column of its name.

    Args:
        tasks: K tasks.
        split: with a column `text` and one for each task.
        tokenizer: as for `SentimentDataset`, like the arguments after it.
        max_length: as there.
        truncation: as there.

    Raises:
        ValueError: a missing column; also as `TaskDataset`.
    """
    missing = [task.name for task in tasks if task.name not in split.column_names]
    if missing:
        raise ValueError(f"expected a column for each task, found none for {missing} among "
                         f"{split.column_names}: rename a column, or the task")
    texts = split["text"]
    return [TaskDataset(task, texts, split[task.name], tokenizer, max_length, truncation)
            for task in tasks]  # fmt: skip


class MultiTaskDataset(SentimentDataset):
    """The training rows of K tasks one after another, for `fit`.

    In a batch, "task" (B,) says whose row each is, by its number among the parts, and "labels" (B,)
    are float32: classes and numbers side by side.

    How the rows of an epoch are drawn, from tasks of n_1, …, n_K rows, N in all:

    - "proportional": every row once.
    - "temperature": N rows, of task k the share p_k ∝ n_k^(1/τ). τ = 1 is proportional, τ = ∞
      gives all tasks the same. The sum is over all epochs: a task's rows take turns, none comes a
      second time before all others have come once.
    - "round_robin": every batch is of one task, and the tasks take turns. Equally many batches a
      task, the smallest number with N rows or more.

    Every epoch has the same number of steps, and its order is a function of (seed, epoch) alone.

    Args:
        parts: the rows of each task, of one tokenizer and `max_length`.
        sampling: one of `SAMPLINGS`.
        temperature: τ > 0, for "temperature".

    Attributes:
        tasks: the K tasks, in the order of the parts.
        lengths: (N,) token ids a row.
        labels: (N,) int64, different where labels are: the bits of each label as a float64. `fit`
            takes them to be class numbers; they only serve to tell rows apart.

    Raises:
        ValueError: no parts, two of one task, unequal `max_length`, labels that are all the same
            within a task, an unknown `sampling`, a `temperature` that is not above 0 or not asked
            for.

    Source: Raffel et al. 2020 (arXiv:1910.10683), section 3.5.2, "temperature-scaled mixing".
    """

    def __init__(
        self, parts: Sequence[TaskDataset], sampling: str = "proportional",
        temperature: float = 1.0,
    ):  # fmt: skip
        self.parts, self.tasks = list(parts), tuple(part.task for part in parts)
        check_tasks(self.tasks)
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling: expected one of {SAMPLINGS}, found {sampling!r}")
        if not temperature > 0 or (temperature != 1 and sampling != "temperature"):
            raise ValueError("temperature: expected a number above 0, and 1 unless sampling is "
                             f"'temperature', found {temperature!r} with {sampling!r}")
        frames = {(part.max_length, part.pad_token_id) for part in parts}
        if len(frames) > 1:
            raise ValueError("expected tasks of one max_length and tokenizer, found (max_length, "
                             f"pad_token_id) of {sorted(frames)}")
        for part in self.parts:
            if part.task.kind == "regression" and len(set(part.labels)) < 2:
                raise ValueError(f"task {part.task.name!r}: expected labels that differ, found "
                                 f"only {part.labels[0]}: there is nothing to learn")
            if part.task.kind == "classification":
                try:
                    check_classes(part.labels)
                except ValueError as error:
                    raise ValueError(f"task {part.task.name!r}: {error}") from error
        self.sampling, self.temperature = sampling, temperature
        self.sizes = np.array([len(part) for part in self.parts])  # n_1, …, n_K
        self.first_rows = np.cumsum(self.sizes) - self.sizes  # of each task
        self.lengths = np.concatenate([part.lengths for part in self.parts])
        self.full_lengths = np.concatenate([part.full_lengths for part in self.parts])
        labels = np.concatenate([part.labels.astype(np.float64) for part in self.parts])
        self.labels = labels.view(np.int64)
        self.max_length, self.pad_token_id = frames.pop()

    def __getitem__(self, row: int | np.integer) -> dict[str, Tensor]:
        row = range(len(self))[row]
        k = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        item = self.parts[k][row - self.first_rows[k]]
        return item | {"labels": item["labels"].float(), "task": torch.tensor(k)}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """As there, with "task" (B,)."""
        return super().collate(items) | {"task": torch.stack([item["task"] for item in items])}

    def batches_of_epoch(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Row numbers of each training batch of an epoch, of similar length within a batch."""
        if self.sampling == "round_robin":
            rounds = math.ceil(len(self) / (batch_size * len(self.parts)))
            rows = self._rows([rounds * batch_size] * len(self.parts), seed, epoch)
            in_turn = zip(*(self._batches(r, batch_size, seed, epoch) for r in rows), strict=True)
            return [batch for batches in in_turn for batch in batches]
        counts = rows_each(self.sizes, self.temperature)
        rows = np.concatenate(self._rows(counts, seed, epoch))
        return self._batches(np.sort(rows), batch_size, seed, epoch)

    def _rows(self, counts: Sequence[int] | np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
        return [first + rows_in_turn(int(size), int(count), epoch, (seed, k)) for k, (first, size,
                count) in enumerate(zip(self.first_rows, self.sizes, counts, strict=True))]

    def _batches(self, rows: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
        return [rows[i] for i in training_batches(self.lengths[rows], size, seed, epoch)]


def rows_each(sizes: np.ndarray, temperature: float) -> np.ndarray:
    """How many of N rows each task gets: N p_k with p_k = n_k^(1/τ) / Σ_j n_j^(1/τ).

    Rounded down; what is left over goes to those that lost most. Source: see `MultiTaskDataset`.

    Args:
        sizes: (K,) n_k, rows of each task.
        temperature: τ > 0.

    Returns:
        (K,) whole numbers that sum to N = Σ_k n_k.
    """
    powers = (sizes / sizes.max()) ** (1 / temperature)  # the largest is 1: nothing overflows
    wanted = sizes.sum() * powers / powers.sum()
    counts = wanted.astype(np.int64)
    counts[np.argsort(counts - wanted, kind="stable")[: sizes.sum() - counts.sum()]] += 1
    return counts


def rows_in_turn(size: int, count: int, epoch: int, seed: Sequence[int]) -> np.ndarray:
    """The rows that a task brings to an epoch: part of an endless row of its permutations.

    Epoch 0 takes the first `count`, epoch 1 the next, and so on: after any number of epochs no row
    has come twice more than another, and each epoch is found without those before.

    Args:
        size: rows of the task.
        count: rows an epoch.
        epoch: number of the epoch, from 0.
        seed: of the permutations.
    """
    start = epoch * count
    first, end = start // size, math.ceil((start + count) / size)
    shuffled = [np.random.default_rng((*seed, i)).permutation(size) for i in range(first, end)]
    return np.concatenate([np.empty(0, np.int64), *shuffled])[start - first * size :][:count]


def stack_domains(
    splits: Mapping[str, DatasetDict], sizes: Mapping[str, int | None] | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Data sets of several domains as one, with the domain as a second thing to tell.

    Args:
        splits: for each domain its splits, with columns `text` and `label`.
        sizes: split to rows of each domain, drawn with the seed; all of a split that is not named.
        seed: which rows are drawn.

    Returns:
        The splits with columns `text`, `sentiment` (the label), `domain` (its number in `splits`),
        `rating` where all domains have it, and `id` ("domain/id").

    Raises:
        ValueError: fewer than two domains, an unknown split in `sizes`, or a size below 2.
    """
    if len(splits) < 2:
        raise ValueError(f"expected two domains or more, found {list(splits)}")
    sizes = dict(sizes or {})
    if set(sizes) - set(SPLITS):
        raise ValueError(f"sizes: expected splits among {SPLITS}, found {list(sizes)}")
    rated = all("rating" in tables[split].column_names
                for tables in splits.values() for split in SPLITS)  # fmt: skip
    stacked = {}
    for split in SPLITS:
        rows = []
        for number, (domain, tables) in enumerate(splits.items()):
            for row in take_rows(tables[split], sizes.get(split), seed, f"{domain} {split}"):
                new = {"text": row["text"], "sentiment": row["label"], "domain": number,
                       "id": f"{domain}/{row['id']}"}  # fmt: skip
                rows.append(new | ({"rating": row["rating"]} if rated else {}))
        stacked[split] = Dataset.from_list(rows)
    return DatasetDict(stacked)
