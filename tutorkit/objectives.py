"""What a training step lowers: one function from a batch to gradients.

`fit` takes plain classification by default. The methods of later lessons (adversarial training,
distillation, several tasks) are objectives too, so that the loop is written once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutorkit.losses import cross_entropy

# An objective is called as `objective(model, batch, backward)`. The batch is the data set's, on the
# device, and "rows" (B,) besides: the rows' numbers in the training set. It hands each loss, summed
# over the B rows, to `backward(loss)`, which adds its gradients to the parameters' with the weight
# that the whole optimizer step asks for, and returns the sum to be reported, detached.
Backward = Callable[[Tensor], None]
Objective = Callable[[torch.nn.Module, dict[str, Tensor], Backward], Tensor]


def classification(model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward) -> Tensor:
    """Cross-entropy of the labels, summed over the batch."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = cross_entropy(logits.float(), batch["labels"], reduction="sum")
    backward(loss)
    return loss.detach()
