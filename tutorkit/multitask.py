"""One encoder for several tasks, each with a head of its own: model, loss, validation, conflict.

    texts (B, T)  ->  encoder  ->  one vector a text (B, H)  ->  head k, on the rows of task k

Training is `fit`'s, as always: its objective is the joint loss here, its rows are those of
`tutorkit.multitask_data`, and `tutorkit.multitask_training` puts the three together.

Source: Caruana 1997, "Multitask Learning" (hard sharing: all layers but the last).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutorkit.fast_bert import faster
from tutorkit.losses import cross_entropy, multitask_loss, uncertainty_weighted_loss
from tutorkit.models import LoadedModel
from tutorkit.multitask_data import Task, check_tasks
from tutorkit.objectives import Backward
from tutorkit.training import TrainState, eval_mode

WEIGHTINGS = ("fixed", "uncertainty")
# Log variances learn at this many times the learning rate. At 1e-4, AdamW moves a parameter by 1e-4
# a step: they would need 7,000 steps to halve a task's weight.
LOG_VARIANCE_RATE = 100


class TaskOutputs(NamedTuple):
    """What a model says about a batch of several tasks."""

    outputs: list[Tensor]  # for each task k: (B_k, C_k), of its rows in the order of the batch
    log_variances: Tensor | None  # (K,) where the tasks' weights are learned


class MultiTaskModel(torch.nn.Module):
    """A shared encoder with a linear head for each of K tasks.

    The encoder is the loaded classifier without its last linear layer: of BERT the layers, the
    pooler and its dropout; of a decoder the layers. With a single task of classes it is the
    classifier that it was made from, so joint and single training differ in what is shared alone.

    Args:
        loaded: where the encoder comes from; it stays as it is, the encoder is a copy.
        tasks: K tasks.
        weighting: of the tasks' losses: "fixed" (`Task.weight`), or "uncertainty" (learned, Kendall
            et al. 2018; see `losses.uncertainty_weighted_loss`). A learned weight grows without
            end as the training loss goes to 0: stop early, or fix the weights.
        seed: fixes the random start of the heads.

    Raises:
        ValueError: no tasks, two of one name, an unknown weighting, or fixed weights besides
            learned ones.
    """

    def __init__(
        self, loaded: LoadedModel, tasks: Sequence[Task], weighting: str = "fixed", seed: int = 0
    ):
        super().__init__()
        check_tasks(tasks)
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting: expected one of {WEIGHTINGS}, found {weighting!r}")
        weighted = [task.name for task in tasks if task.weight != 1]
        if weighting == "uncertainty" and weighted:
            raise ValueError(f"expected weight 1 with learned weights, found another for tasks "
                             f"{weighted}: drop them, or set weighting='fixed'")
        self.tasks = tuple(tasks)
        self.encoder = copy.deepcopy(loaded.model)
        self._origin = replace(loaded, model=None, head=[])
        self._last = last_linear(self.encoder)
        hidden_size = self.encoder.get_submodule(self._last).in_features
        self.encoder.set_submodule(self._last, torch.nn.Identity())
        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(hidden_size, task.num_labels) for task in tasks
        )
        generator = torch.Generator().manual_seed(seed)
        for head in self.heads:  # as transformers starts a new head
            spread = getattr(self.config, "initializer_range", 0.02)
            torch.nn.init.normal_(head.weight, std=spread, generator=generator)
            torch.nn.init.zeros_(head.bias)
        # One dimension: the optimizer lets its weight decay alone, as it does for a bias.
        start = torch.zeros(len(tasks)) if weighting == "uncertainty" else None
        self.log_variances_by_rate = None if start is None else torch.nn.Parameter(start)
        self.eval()

    @property
    def config(self):
        """The encoder's configuration."""
        return self.encoder.config

    @property
    def base_model(self) -> torch.nn.Module:
        """The encoder's backbone: `models.set_trainable` and `layer_decay` ask for it."""
        return self.encoder.base_model

    @property
    def log_variances(self) -> Tensor | None:
        """(K,) s_k = log σ_k², all 0 at the start; None where weights are fixed."""
        if self.log_variances_by_rate is None:
            return None
        # Rate times the parameter, with the gradient of the parameter alone: so a step moves s by
        # rate times the learning rate, and the norm of the gradients is that of s.
        own = self.log_variances_by_rate
        return own + (LOG_VARIANCE_RATE - 1) * own.detach()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task: Tensor) -> TaskOutputs:
        """The encoder reads all rows once, each head its own.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 on real tokens and 0 on padding.
            task: (B,) the number of each row's task.
        """
        vectors = faster(self.encoder)(input_ids, attention_mask=attention_mask).logits  # (B, H)
        # A head without rows gives (0, C): its gradient is 0, and no process waits for it.
        outputs = [head(vectors[task == k]) for k, head in enumerate(self.heads)]
        return TaskOutputs(outputs, self.log_variances)

    def number(self, name: str) -> int:
        """The number of a task.

        Raises:
            ValueError: a name that is none of the tasks'.
        """
        names = [task.name for task in self.tasks]
        if name not in names:
            raise ValueError(f"expected one of the model's tasks {names}, found {name!r}")
        return names.index(name)

    def for_task(self, name: str) -> LoadedModel:
        """One task's model, for `evaluate`, `predict_texts` and `save_model`.

        Its model is a plain transformers classifier that shares all weights with this one.

        Raises:
            ValueError: a name that is none of the tasks'.
        """
        k = self.number(name)
        shared = {id(t): t for t in [*self.encoder.parameters(), *self.encoder.buffers()]}
        model = copy.deepcopy(self.encoder, shared)  # modules are copied, tensors are not
        model.set_submodule(self._last, self.heads[k])
        names = self.tasks[k].names or (name,)
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {label: i for i, label in enumerate(names)}
        model.num_labels = len(names)
        return replace(self._origin, model=model)


def last_linear(model: torch.nn.Module) -> str:
    """The name of the layer that makes logits: the last linear one above the backbone.

    Raises:
        ValueError: there is none.
    """
    backbone = set(model.base_model.modules())
    found = [name for name, module in model.named_modules()
             if isinstance(module, torch.nn.Linear) and module not in backbone]  # fmt: skip
    if not found:
        raise ValueError("expected a model with a linear classification head, found none: load it "
                         "with tutorkit.models.load_model")
    return found[-1]


def check_known(model: MultiTaskModel, tasks: Sequence[Task]) -> None:
    """Refuse tasks that are not the model's.

    Raises:
        ValueError: an unknown name, or a task of that name that is another.
    """
    for task in tasks:
        own = model.tasks[model.number(task.name)]
        if task != own:
            raise ValueError(f"expected the model's task {own}, found {task}")


# --- the loss -----------------------------------------------------------------------------------


def row_losses(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, or the squared error, of each row.

    Args:
        task: decides which.
        outputs: (N, C) of the task's head.
        labels: (N,).
    """
    if task.kind == "regression":
        return (outputs[:, 0].float() - labels) ** 2
    return cross_entropy(outputs.float(), labels.long(), reduction="none")


@dataclass(frozen=True, repr=False)
class JointLoss:
    """The objective of several tasks for `fit`: the weighted sum of their losses.

    Over n rows, n_k of them task k's with the mean loss L_k, a step lowers

        L = Σ_k n_k/n · w_k L_k                              fixed weights w_k
        L = Σ_k n_k/n · (c_k e^{-s_k} L_k + s_k / 2)         learned: log variances s_k

    so a task counts by its rows too. As a sum over rows it can be taken in parts: accumulated
    gradients are those of one large batch.

    `record` is a callback that writes the mean loss L_k of each task, unweighted, into the step's
    line of the history, as "task_losses". It reads notes that no result depends on.
    """

    tasks: tuple[Task, ...]
    sampling: str = "proportional"  # no part of the loss: for `repr`, which checkpoints compare
    _notes: dict[int, tuple[int, float]] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        tasks = [f"{t.weight:g} {t.name} {t.names}" for t in self.tasks]
        return f"JointLoss({'; '.join([self.sampling, *tasks])})"

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward
    ) -> Tensor:
        task = batch["task"]
        outputs, log_variances = model(
            batch["input_ids"], attention_mask=batch["attention_mask"], task=task
        )
        mine = [task == k for k in range(len(self.tasks))]
        losses = [row_losses(t, outputs[k], batch["labels"][mine[k]])
                  for k, t in enumerate(self.tasks)]  # fmt: skip
        sums = torch.stack([each.sum() for each in losses])  # (K,) n_k L_k
        if log_variances is None:
            loss = multitask_loss(sums, sums.new_tensor([t.weight for t in self.tasks]))
        else:
            loss = sums.new_zeros(())
            for k, t in enumerate(self.tasks):
                mean, s = sums[k : k + 1] / max(len(losses[k]), 1), log_variances[k : k + 1]
                loss = loss + len(losses[k]) * uncertainty_weighted_loss(mean, s, [t.kind])
        backward(loss)
        for k, each in enumerate(losses):
            # By row: a step that is done again, for want of memory, writes over its first notes.
            rows = batch["rows"][mine[k]].tolist()
            self._notes.update(zip(rows, ((k, value) for value in each.tolist()), strict=True))
        return loss.detach()

    def record(self, event: str, state: TrainState) -> None:
        """A callback for `fit`: see above. A task without rows in a step is left out."""
        if event == "step":
            values = {t.name: [v for at, v in self._notes.values() if at == k]
                      for k, t in enumerate(self.tasks)}  # fmt: skip
            means = {name: sum(found) / len(found) for name, found in values.items() if found}
            state.steps[-1]["task_losses"] = means
        if event in ("train_start", "step"):
            self._notes.clear()


# --- do the tasks pull the same way? -------------------------------------------------------------


class Conflict(NamedTuple):
    """Gradients of the shared encoder, task against task."""

    tasks: tuple[str, ...]
    cosines: np.ndarray  # (K, K), 1 on the diagonal; NaN where a gradient is zero
    norms: np.ndarray  # (K,)


def gradient_conflict(
    model: MultiTaskModel, batches: Mapping[str, dict[str, Tensor]]
) -> Conflict:
    """The cosine of the angle between the tasks' gradients of the shared encoder's weights.

        cos φ_ij = g_i · g_j / (‖g_i‖ ‖g_j‖)          g_k = ∂L_k/∂θ_shared

    Below 0 the two conflict: a small step that lowers one loss raises the other. Dropout is off;
    the model's mode and the gradients kept in it stay as they are.

    Args:
        model: has the tasks.
        batches: task to a batch of its rows, as `TaskDataset.batch` gives it.

    Raises:
        ValueError: an unknown task, or an encoder in which nothing trains.

    Source: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning" (arXiv:2001.06782),
    definition 1.
    """
    shared = [p for p in model.encoder.parameters() if p.requires_grad]
    if not shared:
        raise ValueError("expected encoder weights that train, found none: a frozen encoder has no "
                         "gradient for tasks to disagree about")
    gradients = []
    for name, batch in batches.items():
        task, one = model.tasks[model.number(name)], model.for_task(name).model
        batch = {key: tensor.to(shared[0].device) for key, tensor in batch.items()}
        with torch.enable_grad(), eval_mode(one):
            logits = faster(one)(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = row_losses(task, logits, batch["labels"]).mean()
        # Some weights may take no part, such as token embeddings of a part that is not read.
        found = torch.autograd.grad(loss, shared, materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in found]))
    norms = torch.stack([g.norm() for g in gradients])
    units = [g.div_(norm) for g, norm in zip(gradients, norms, strict=True)]
    cosines = np.array([[float(a @ b) for b in units] for a in units])
    return Conflict(tuple(batches), cosines, norms.cpu().numpy())
