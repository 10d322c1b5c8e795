"""What a model says of a batch when the texts' word embeddings are moved a little.

The change δ is added behind the word embeddings' module, by a hook that lives for one forward pass.
No weight is touched, so none has to be restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor


class Neighbourhood:
    """The texts of a batch and what the model says of them when their embeddings are moved.

    A change is written in units of a row's mean embedding norm: u (B, T, D) stands for the
    δ = m u on real tokens and δ = 0 on padding, m the mean norm, a constant.

    Args:
        model: maps `input_ids` and `attention_mask` to an output with `.logits`; inside it is a
            transformers model, perhaps in the wrappers that `fit` puts around it.
        batch: input_ids (B, T) and attention_mask (B, T).

    Attributes:
        real: (B, T, 1), 1 on real tokens and 0 on padding.
        entries: (B, 1, 1) numbers in the embeddings of a row's real tokens, T × D.
        unit: (B, 1, 1) m.
    """

    def __init__(self, model: torch.nn.Module, batch: dict[str, Tensor]):
        self.model, self.batch = model, batch
        self.table = word_embeddings(model)
        with torch.no_grad():
            x = self.table(batch["input_ids"]).float()  # (B, T, D)
            self.real = batch["attention_mask"][:, :, None].to(x)
            tokens = self.real.sum(dim=1, keepdim=True)
            norms = torch.linalg.vector_norm(x, dim=2, keepdim=True)
            self.unit = (self.real * norms).sum(dim=1, keepdim=True) / tokens.clamp(min=1)
        self.entries = tokens * x.shape[2]
        self.shape = x.shape

    def zeros(self) -> Tensor:
        """No change, (B, T, D)."""
        return self.real.new_zeros(self.shape)

    def delta(self, at: Tensor) -> Tensor:
        """δ (B, T, D): a change in the embeddings' own unit, 0 on padding."""
        return self.real * self.unit * at

    def logits(self, at: Tensor, last: bool = False, model: torch.nn.Module | None = None):
        """(B, C) scores in fp32 of the texts moved by `at`.

        Unless it is the last pass, the random numbers it draws are put back for the next one.
        """
        repeat = nullcontext() if last else same_random_numbers(self.real.device)
        ids, mask = self.batch["input_ids"], self.batch["attention_mask"]
        with repeat, moved_embeddings(self.table, self.delta(at)):
            return (model or self.model)(ids, attention_mask=mask).logits.float()

    def gradient(self, value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
        """The gradient of value(logits) with respect to `at`; none of a weight is computed."""
        at = at.detach().requires_grad_()
        # The wrapper of several processes takes no gradients but those of `backward`.
        plain = getattr(self.model, "module", self.model)
        return finite(torch.autograd.grad(value(self.logits(at, model=plain)), at)[0])


def word_embeddings(model: torch.nn.Module) -> torch.nn.Module:
    """The module that turns ids into word vectors, whatever is wrapped around the model.

    Raises:
        ValueError: no transformers model inside.
    """
    for module in model.modules():
        if hasattr(module, "get_input_embeddings"):
            return module.get_input_embeddings()
    raise ValueError(
        f"expected a transformers model, which has get_input_embeddings(), found none "
        f"in {type(model).__name__}: load one with tutorkit.models.load_model"
    )


@contextmanager
def moved_embeddings(table: torch.nn.Module, delta: Tensor) -> Iterator[None]:
    """Inside, the module's output is δ more than it would be.

    Args:
        table: a model's word embeddings, see `word_embeddings`.
        delta: (B, T, D) δ.
    """
    hook = table.register_forward_hook(lambda module, ids, x: x + delta.to(x.dtype))
    try:
        yield
    finally:
        hook.remove()


def same_random_numbers(device: torch.device):
    """A context after which torch's generators stand where they stood before it."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def finite(gradient: Tensor) -> Tensor:
    """NaN and infinity as 0: `fit` finds them in the loss or in the gradients, and says more."""
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
