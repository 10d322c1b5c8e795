"""Training a weight through thin matrices: LoRA in readable form, and AdaLoRA's budget.

    LoRA       h = W x + (α/r) B A x        A (r, d_in), B (d_out, r)
    AdaLoRA    h = W x + (α/r) B Λ A x      Λ diagonal; small singular values are set to zero

Runs use the `peft` library's layers (`tutorkit.adapters.prepare`); `LoRALinear` is the same layer
to read. AdaLoRA starts every layer with the same rank and takes ranks away where they matter least,
until a budget is met: `AdaLoraBudget` is the callback for `fit` that does it.

Source: Hu et al. 2021, "LoRA"; Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for
Parameter-Efficient Fine-Tuning".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tutorkit.losses import lora_forward
from tutorkit.objectives import Backward, classification
from tutorkit.training import TrainState

ADAPTER = "default"  # the name that peft gives to a layer's only adapter


class LoRALinear(torch.nn.Module):
    """A frozen linear layer plus a trained one of rank r; the identity at the start, as B = 0.

    Args:
        linear: the layer to be adapted; it is frozen and shared, not copied.
        r: rank of the update.
        alpha: α; the update is scaled by α/r.

    Raises:
        ValueError: a rank below 1.

    Source: Hu et al. 2021, section 4.1 and equation 3.
    """

    def __init__(self, linear: torch.nn.Linear, r: int, alpha: float):
        super().__init__()
        if r < 1:
            raise ValueError(f"r: expected a rank from 1, found {r}")
        self.linear, self.alpha, self.merged = linear.requires_grad_(False), alpha, False
        weight = linear.weight
        self.a = torch.nn.Parameter(torch.randn(r, linear.in_features).to(weight) / r)
        self.b = torch.nn.Parameter(weight.new_zeros(linear.out_features, r))

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) to (…, d_out)."""
        if self.merged:
            return self.linear(x)
        rows = x.flatten(0, -2)  # (N, d_in)
        h = lora_forward(rows, self.linear.weight, self.a, self.b, self.alpha)
        h = h if self.linear.bias is None else h + self.linear.bias
        return h.unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def merge(self) -> None:
        """W ← W + (α/r) B A: from now on the layer costs no more than a plain one."""
        if not self.merged:
            self.linear.weight += self.alpha / len(self.a) * self.b @ self.a
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """W ← W - (α/r) B A, which gives the first W back up to rounding."""
        if self.merged:
            self.linear.weight -= self.alpha / len(self.a) * self.b @ self.a
            self.merged = False


def svd_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """AdaLoRA's layers by name, lowest first; also those inside a wrapper of the model."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_E")}


def start_adalora(model: torch.nn.Module) -> None:
    """Make AdaLoRA's start the identity, and give each layer room for its importance scores.

    The scores are buffers, so they stand in every checkpoint: a resumed run takes the same ranks
    away as one that was never interrupted.
    """
    for layer in svd_layers(model).values():
        values = layer.lora_E[ADAPTER]  # (r, 1)
        torch.nn.init.zeros_(values)
        layer.register_buffer("kept", torch.ones_like(values, dtype=torch.bool))
        for part in "AEB":
            like = getattr(layer, f"lora_{part}")[ADAPTER].detach()
            layer.register_buffer(f"sensitivity_{part}", torch.zeros_like(like))
            layer.register_buffer(f"uncertainty_{part}", torch.zeros_like(like))


def ranks(model: torch.nn.Module) -> dict[str, int]:
    """The rank that each of AdaLoRA's layers has now, by the layer's name.

    Raises:
        ValueError: a model without such layers.
    """
    return {name: int(layer.kept.sum()) for name, layer in _checked(model).items()}


def orthogonality(model: torch.nn.Module) -> Tensor:
    """How far AdaLoRA's factors are from singular vectors: 0 where all are orthonormal.

        R = 1/(2n) Σ_k ‖A_k A_kᵀ - I‖_F + ‖B_kᵀ B_k - I‖_F        over n layers k

    Singular values can be compared, and dropped one by one, only if the vectors have length 1 and
    do not overlap. This is peft's form; the source squares the norms and sums over the layers.

    Raises:
        ValueError: a model without AdaLoRA's layers.

    Source: Zhang et al. 2023, section 3.1, equation 4.
    """
    gaps = []
    for layer in _checked(model).values():
        a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]  # (r, d_in), (d_out, r)
        for product in (a @ a.T, b.T @ b):  # (r, r)
            identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
            gaps.append(torch.linalg.matrix_norm(product - identity))
    return torch.stack(gaps).mean()


@dataclass(frozen=True)
class AdaLoraObjective:
    """AdaLoRA's objective for `fit`: cross-entropy plus γ R, with R as in `orthogonality`."""

    orth_reg_weight: float = 0.1  # γ

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward
    ) -> Tensor:
        # Losses are sums over rows: so weighted, the step's mean loss has γ R once.
        penalty = self.orth_reg_weight * len(batch["labels"]) * orthogonality(model)
        # One backward pass: several processes exchange gradients after the first.
        loss = classification(model, batch, lambda loss: backward(loss + penalty))
        return loss + penalty.detach()


@dataclass
class AdaLoraBudget:
    """A callback for `fit` that lowers the sum of ranks from init_r to target_r a layer.

    After a warm-up at full rank the budget falls with a cubic curve; the last steps train what is
    left. After each step peft scores every rank by its smoothed sensitivity |w · ∂L/∂w| times the
    uncertainty of it, over all layers, and sets the singular values of the lowest to zero.

    `fit` keeps the weights of the best evaluation, which may lie before the budget is met; `ranks`
    says what they have. With validation=None the last weights stay, which meet it.

    Args:
        model: prepared by `tutorkit.adapters.prepare(model, "adalora")`.
        warmup_ratio: share of all steps at full rank.
        final_ratio: share of all steps with the final ranks.
        every: steps from one allocation to the next.

    Raises:
        ValueError: a model without AdaLoRA's layers, or, at the start of a run, too few steps.

    Source: Zhang et al. 2023, section 3.2, equations 8 to 11, and section 3.3.
    """

    model: torch.nn.Module
    warmup_ratio: float = 0.1
    final_ratio: float = 0.3
    every: int = 1

    def __post_init__(self):
        _checked(self.model)
        whole = isinstance(self.every, int) and not isinstance(self.every, bool)
        fits = min(self.warmup_ratio, self.final_ratio) >= 0
        if not (fits and self.warmup_ratio + self.final_ratio < 1 and whole and self.every >= 1):
            raise ValueError("expected warmup_ratio and final_ratio from 0, together below 1, and "
                             f"every from 1, found {self.warmup_ratio}, {self.final_ratio} and "
                             f"{self.every}")

    def __call__(self, event: str, state: TrainState) -> None:
        if event == "train_start":
            self._start(state)
        elif event == "step":  # the step's gradients are there until the next one begins
            self._allocate(state.step)

    def _start(self, state: TrainState) -> None:
        from peft.tuners.adalora import RankAllocator

        config, total = self.model.peft_config[ADAPTER], state.total_steps
        config.total_step, config.deltaT = total, self.every
        config.tinit = round(self.warmup_ratio * total)
        config.tfinal = round(self.final_ratio * total)
        self.last_allocation = total - config.tfinal
        if self.last_allocation < config.tinit + 2:
            raise ValueError(
                f"expected steps for taking ranks away, found {total} in all, {config.tinit} of "
                f"them warm-up and {config.tfinal} at the end: train for longer, or set "
                "warmup_ratio and final_ratio lower"
            )
        self.allocator = RankAllocator(self.model, config, ADAPTER)
        if state.step == 0:
            for layer in svd_layers(self.model).values():
                layer.kept.fill_(True)
            return
        for name, sensitivity, uncertainty in _scores(self.model):
            self.allocator.ipt[name] = torch.zeros_like(sensitivity)
            self.allocator.exp_avg_ipt[name] = sensitivity.clone()
            self.allocator.exp_avg_unc[name] = uncertainty.clone()

    def _allocate(self, step: int) -> None:
        layers = svd_layers(self.model)
        if step > self.last_allocation:
            pattern = {f"{name}.lora_E.{ADAPTER}": layer.kept.flatten().tolist()
                       for name, layer in layers.items()}  # fmt: skip
            self.allocator.mask_using_rank_pattern(self.model, pattern)
            return
        _, pattern = self.allocator.update_and_allocate(
            self.model, step, force_mask=step == self.last_allocation
        )
        for name, layer in layers.items() if pattern else ():
            kept = pattern[f"{name}.lora_E.{ADAPTER}"]
            layer.kept.copy_(torch.tensor(kept)[:, None])
        for name, sensitivity, uncertainty in _scores(self.model):
            sensitivity.copy_(self.allocator.exp_avg_ipt[name])
            uncertainty.copy_(self.allocator.exp_avg_unc[name])


def _scores(model: torch.nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each factor: its name as peft's allocator has it, and the buffers of its two scores."""
    for name, layer in svd_layers(model).items():
        for part in "AEB":
            yield (f"{name}.lora_{part}.{ADAPTER}", getattr(layer, f"sensitivity_{part}"),
                   getattr(layer, f"uncertainty_{part}"))  # fmt: skip


def _checked(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    layers = svd_layers(model)
    if not layers:
        raise ValueError("expected a model with AdaLoRA's layers, found none: prepare it with "
                         'tutorkit.adapters.prepare(model, "adalora") first')
    return layers
