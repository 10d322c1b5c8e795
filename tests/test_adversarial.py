"""Adversarial objectives: by hand on a linear model, and what holds for all of them in `fit`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tutorkit import neighbourhood
from tutorkit.adversarial import FGM, PGD, VAT, FreeLB, Passes
from tutorkit.data import SentimentDataset
from tutorkit.losses import cross_entropy
from tutorkit.models import load_model
from tutorkit.neighbourhood import Neighbourhood, moved_embeddings, word_embeddings
from tutorkit.objectives import classification
from tutorkit.training import TrainConfig, fit

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["good", "a bad film", "fine fine fine", "dull", "great fun", "not good at all", "bad bad"]
LABELS = [1, 0, 1, 0, 1, 0, 0]
CONFIG = TrainConfig(epochs=1, batch_size=3, learning_rate=1e-3, precision="fp32", device="cpu")
METHODS = [FGM(), PGD(), PGD(weight=0.5), FreeLB(), FreeLB(random_start=False), VAT()]
each_method = pytest.mark.parametrize("method", METHODS, ids=repr)


class Linear(torch.nn.Module):
    """Scores W Σ_t x_t of the word embeddings x: convex losses, and gradients known by hand."""

    def __init__(self, num_labels: int, width: int = 4):
        super().__init__()
        self.table = torch.nn.Embedding(10, width)
        self.head = torch.nn.Linear(width, num_labels, bias=False)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids) * attention_mask[:, :, None]
        return SimpleNamespace(logits=self.head(x.sum(dim=1)))


BATCH = {
    "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "labels": torch.tensor([0, 1]),
}


def tiny(name="tiny", dropout=True):
    loaded = load_model(name, seed=0)
    for module in loaded.model.modules():
        if hasattr(module, "p") and not dropout:
            module.p = 0.0
    rows = SentimentDataset(TEXTS, LABELS, loaded.tokenizer, 16)
    return loaded.model.train(), rows, rows.batch(range(7))


def gradients(objective, model, batch, seed=0):
    """The loss that an objective reports, and the gradient it leaves on each weight."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = objective(model, batch, lambda loss: loss.backward())
    return loss, [p.grad.clone() for p in model.parameters()]


@pytest.fixture
def deltas(monkeypatch):
    """Each δ that is added to word embeddings, in order."""
    seen = []

    def spy(table, delta):
        seen.append(delta.detach().clone())
        return moved_embeddings(table, delta)

    monkeypatch.setattr(neighbourhood, "moved_embeddings", spy)
    return seen


def norms(deltas):
    return torch.linalg.vector_norm(deltas.flatten(1), dim=1)


def mean_word_norms(model, batch):
    """The unit of the radius, row by row as it reads."""
    table = word_embeddings(model).weight.detach()
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return torch.stack([table[ids[mask == 1]].norm(dim=1).mean() for ids, mask in rows])


@each_method
@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_the_change_is_within_its_radius_in_each_row_and_0_on_padding(method, name, deltas):
    model, _, batch = tiny(name)
    gradients(method, model, batch)
    radius = method.epsilon * mean_word_norms(model, batch)
    assert batch["attention_mask"].min() == 0
    for delta in deltas:
        assert (delta[batch["attention_mask"] == 0] == 0).all()
        assert (norms(delta) <= radius * 1.0001).all()
    if method != FreeLB(random_start=False):  # which has the clean text among its steps
        torch.testing.assert_close(norms(deltas[-1]), radius)


def test_fgm_by_hand(deltas):
    model = Linear(num_labels=3)
    loss, _ = gradients(FGM(epsilon=0.3, weight=0.25), model, BATCH)
    x = model.table(BATCH["input_ids"]) * BATCH["attention_mask"][:, :, None]
    for row, real in enumerate(BATCH["attention_mask"]):
        p = model.head(x[row].sum(dim=0)).softmax(dim=0)
        p[BATCH["labels"][row]] -= 1
        g = real[:, None] * (p @ model.head.weight)  # (T, D), the same for every real token
        radius = 0.3 * mean_word_norms(model, BATCH)[row]
        torch.testing.assert_close(deltas[-1][row], radius * g / g.norm())
    clean = cross_entropy(model.head(x.sum(dim=1)), BATCH["labels"], "sum")
    moved = cross_entropy(model.head((x + deltas[-1]).sum(dim=1)), BATCH["labels"], "sum")
    torch.testing.assert_close(loss, (0.75 * clean + 0.25 * moved).detach())


def test_more_steps_find_a_loss_at_least_as_high():
    """A step in the ball's direction of ascent never lowers a convex function."""
    model, losses = Linear(num_labels=3), []
    near = Neighbourhood(model, BATCH)
    for steps in (1, 2, 5, 20):
        worst = PGD(epsilon=3.0, step_size=3.0, steps=steps).worst(near, BATCH["labels"])
        losses.append(cross_entropy(near.logits(worst), BATCH["labels"], "none").detach())
        assert (norms(worst) <= 3.0001).all()
    for fewer, more in zip(losses, losses[1:], strict=False):
        assert (more >= fewer - 1e-6).all()
    assert (losses[-1] > losses[0] + 1e-3).any()


def test_freelb_of_one_step_from_zero_is_plain_training():
    model, _, batch = tiny()
    loss, found = gradients(FreeLB(steps=1, random_start=False), model, batch)
    plain, expected = gradients(classification, model, batch)
    assert loss == plain
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_freelb_averages_the_gradients_of_all_its_steps(deltas):
    model, _, batch = tiny()
    _, found = gradients(FreeLB(steps=3), model, batch)
    expected = [torch.zeros_like(g) for g in found]
    for delta in list(deltas):
        def at_delta(model, batch, backward, delta=delta):
            torch.rand_like(delta)  # the start's random numbers come before those of dropout
            with moved_embeddings(word_embeddings(model), delta):
                return classification(model, batch, backward)

        expected = [a + g / 3 for a, g in
                    zip(expected, gradients(at_delta, model, batch)[1], strict=True)]  # fmt: skip
    assert len(deltas) == 3 and norms(deltas[2] - deltas[1]).min() > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_vat_finds_the_largest_curvature():
    """For a linear model KL(p(x) ‖ p(x + δ)) = ½ δᵀHδ + …, H = Jᵀ (diag p - ppᵀ) J."""
    model, epsilon = Linear(num_labels=3), 0.02
    batch = BATCH | {"labels": torch.tensor([-100, -100])}
    loss, _ = gradients(VAT(epsilon, iterations=30), model, batch)
    expected = 0.0
    for ids, real, unit in zip(BATCH["input_ids"], BATCH["attention_mask"],
                               mean_word_norms(model, BATCH), strict=True):  # fmt: skip
        ids = ids[real == 1]
        p = model.head(model.table(ids).sum(dim=0)).softmax(dim=0)
        jacobian = unit * model.head.weight.repeat(1, len(ids))  # (C, T·D), in units of a word
        hessian = jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
        expected += 0.5 * epsilon**2 * float(torch.linalg.eigvalsh(hessian.detach()).max())
    assert float(loss) == pytest.approx(expected, rel=0.05)


def test_vat_of_two_classes_needs_one_iteration(deltas):
    model = Linear(num_labels=2)
    gradients(VAT(epsilon=0.3, iterations=1), model, BATCH)
    direction = (model.head.weight[1] - model.head.weight[0]).detach()
    for delta, real in zip(deltas[-1], BATCH["attention_mask"], strict=True):
        cosine = torch.cosine_similarity((real[:, None] * direction).flatten(), delta.flatten(), 0)
        assert cosine.abs() == pytest.approx(1, abs=1e-5)


@each_method
def test_weights_are_untouched_and_hooks_removed(method):
    model, _, batch = tiny()
    before = [p.detach().clone() for p in model.parameters()]
    gradients(method, model, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not word_embeddings(model)._forward_hooks


def test_inner_gradients_leave_the_weights_gradients_alone():
    model, _, batch = tiny()
    PGD().worst(Neighbourhood(model, batch), batch["labels"])
    assert all(p.grad is None for p in model.parameters())


def test_the_hook_goes_whatever_happens():
    model, _, batch = tiny()
    with pytest.raises(IndexError):
        FGM()(model, batch | {"input_ids": batch["input_ids"] + 10**6}, lambda loss: None)
    with pytest.raises(ZeroDivisionError), moved_embeddings(word_embeddings(model), torch.ones(1)):
        1 / 0  # noqa: B018
    assert not word_embeddings(model)._forward_hooks


@each_method
def test_passes_are_as_stated(method):
    model, _, batch = tiny()
    forward, backward = [], []
    model.register_forward_hook(lambda *_: forward.append(1))
    method(model, batch, lambda loss: (backward.append(1), loss.backward()))
    assert (len(forward), len(backward)) == (method.passes.forward, method.passes.backward)


def test_what_a_step_costs():
    assert FGM().passes == Passes(forward=2, backward=2)
    assert FreeLB(steps=3).passes == Passes(forward=3, backward=3)
    assert PGD(steps=3).passes == Passes(forward=4, backward=1, inner_backward=3)
    assert PGD(steps=3, weight=0.5).passes == Passes(forward=5, backward=2, inner_backward=3)
    assert VAT().passes == Passes(forward=3, backward=2, inner_backward=1)


@pytest.mark.parametrize("method", [FGM(0.0), PGD(0.0), PGD(0.0, weight=0.5), FreeLB(0.0),
                                    VAT(0.0)],
                         ids=repr)  # fmt: skip
def test_radius_0_is_plain_training_in_all_passes(method):
    """Which holds under dropout only if its masks are the same in every pass."""
    model, _, batch = tiny()
    loss, found = gradients(method, model, batch)

    def after_the_start(model, batch, backward):
        draw = {FreeLB: torch.rand_like, VAT: torch.randn_like}.get(type(method), torch.zeros_like)
        draw(Neighbourhood(model, batch).zeros())  # comes before the numbers of dropout
        return classification(model, batch, backward)

    plain, expected = gradients(after_the_start, model, batch)
    torch.testing.assert_close(loss, plain)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@each_method
def test_a_batch_is_the_sum_of_its_rows(method, monkeypatch):
    """Each by itself and without padding: so it is with micro-batches of any size."""
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)
    model, rows, batch = tiny(dropout=False)
    loss, found = gradients(method, model, batch)
    parts = [gradients(method, model, rows.batch([i])) for i in range(7)]
    torch.testing.assert_close(loss, sum(part for part, _ in parts))
    for i, gradient in enumerate(found):
        total = sum(of_row[i] for _, of_row in parts)
        torch.testing.assert_close(gradient, total, rtol=1e-3, atol=1e-5)


@each_method
@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_fit_in_bf16_is_close_to_fp32(method, name):
    losses = {}
    for precision in ("fp32", "bf16"):
        model, rows, _ = tiny(name)
        config = TrainConfig(**{**vars(CONFIG), "precision": precision, "batch_size": 2,
                                "gradient_accumulation_steps": 2})  # fmt: skip
        before = [p.detach().clone() for p in model.parameters()]
        state = fit(model, rows, None, config, objective=method)
        losses[precision] = [entry["loss"] for entry in state.steps]
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_a_row_without_label_gives_its_divergence_alone():
    model = Linear(num_labels=2)
    unlabelled = BATCH | {"labels": torch.tensor([-100, -100])}
    loss, _ = gradients(VAT(weight=1.0), model, unlabelled)
    twice, _ = gradients(VAT(weight=2.0), model, unlabelled)
    plain, _ = gradients(classification, model, BATCH)
    assert float(loss) > 0 and float(twice) == pytest.approx(2 * float(loss))
    both, _ = gradients(VAT(weight=1.0), model, BATCH)
    torch.testing.assert_close(both, plain + loss)


def test_the_repr_tells_all_settings():
    assert repr(FGM(0.3)) == "FGM(epsilon=0.3, weight=0.5)"
    assert repr(FreeLB()) == "FreeLB(epsilon=0.1, step_size=0.05, steps=3, random_start=True)"


@pytest.mark.parametrize("make, message", [
    (lambda: FGM(-1.0), "epsilon: expected a number, 0 or above, found -1.0"),
    (lambda: FGM(weight=1.0), "weight: expected a number between 0 and 1, found 1.0: .*PGD"),
    (lambda: PGD(step_size=0.0), "step_size: expected a number, above 0, found 0.0"),
    (lambda: PGD(weight=0.0), "weight: expected a number above 0 and up to 1, found 0.0"),
    (lambda: FreeLB(steps=0), "steps: expected a whole number from 1, found 0"),
    (lambda: VAT(xi=float("nan")), "xi: expected a number, above 0, found nan"),
    (lambda: VAT(weight=-0.1), "weight: expected a number, 0 or above, found -0.1"),
    (lambda: word_embeddings(torch.nn.Linear(1, 1)), "expected a transformers model, .* in Linear"),
])  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
