"""Every formula of the lessons, written as in the text (`…_naive`) and as it is used.

cross_entropy    softmax cross-entropy, a linear head's gradients, label smoothing
binary           two classes with one score
risk             the empirical risk, over all rows and by batches
sequences        losses over tokens: the next token, tags, spans
steps            one update of the weights: SGD, AdamW, an L2 penalty, clipping
schedules        the learning rate over a run
lengths          a published loss that does not hold, and its repairs
distillation     learning from a teacher's probabilities
low_rank         LoRA and the bottleneck adapter
perturbation     the worst small change of an input: FGM, PGD
tasks            several losses in one: fixed weights, weights from uncertainty
gradient_check   a stated gradient against autograd and finite differences
"""

from tutorkit.losses.binary import (
    binary_cross_entropy,
    binary_cross_entropy_grad,
    binary_cross_entropy_naive,
)
from tutorkit.losses.cross_entropy import (
    IGNORE_INDEX,
    REDUCTIONS,
    HeadGrads,
    cross_entropy,
    cross_entropy_grad,
    cross_entropy_naive,
    label_smoothing_cross_entropy,
    label_smoothing_cross_entropy_grad,
    label_smoothing_cross_entropy_naive,
    linear_head_grads,
    linear_head_grads_naive,
)
from tutorkit.losses.distillation import (
    distillation_grad,
    distillation_loss,
    distillation_loss_naive,
)
from tutorkit.losses.gradient_check import GradientCheck, check_gradient
from tutorkit.losses.lengths import (
    expected_length,
    expected_length_grad,
    expected_length_naive,
    length_balance_loss,
    length_balance_loss_grad,
    length_balance_loss_naive,
    max_length_loss,
    max_length_loss_grad,
    max_length_loss_grad_as_published,
    max_length_loss_naive,
)
from tutorkit.losses.low_rank import (
    AdapterGrads,
    LoraGrads,
    adapter_forward,
    adapter_grads,
    lora_forward,
    lora_forward_naive,
    lora_grads,
)
from tutorkit.losses.perturbation import (
    fgm_perturbation,
    fgm_perturbation_naive,
    pgd_perturbation,
    project,
)
from tutorkit.losses.risk import empirical_risk, empirical_risk_naive
from tutorkit.losses.schedules import SCHEDULES, lr_schedule, lr_schedule_naive
from tutorkit.losses.sequences import (
    span_loss,
    span_loss_grad,
    span_loss_naive,
    tagging_loss,
    tagging_loss_grad,
    tagging_loss_naive,
    token_cross_entropy,
    token_cross_entropy_grad,
    token_cross_entropy_naive,
)
from tutorkit.losses.steps import (
    AdamState,
    adamw_step,
    adamw_step_naive,
    clip_by_global_norm,
    clip_by_global_norm_naive,
    global_norm,
    l2_penalty_step,
    sgd_step,
    sgd_step_naive,
)
from tutorkit.losses.tasks import (
    UncertaintyGrads,
    multitask_loss,
    multitask_loss_naive,
    uncertainty_weighted_loss,
    uncertainty_weighted_loss_grad,
    uncertainty_weighted_loss_naive,
)
