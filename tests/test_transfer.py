"""Ways to use a pretrained model: what each starts from, trains, answers and remembers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from tutorkit import sources, transfer
from tutorkit.data import SentimentDataset
from tutorkit.models import load_model, parameter_depths, save_model
from tutorkit.training import steps_of_epoch
from tutorkit.transfer import (
    ALL_LAYERS,
    STRATEGIES,
    Memory,
    Strategy,
    draw,
    labels_worth,
    logistic_probe,
    mean_states,
    mixed_weights,
    only_asked,
    pairs_memory,
    plan,
    remembers,
    same_kind,
    start,
    unit,
    use,
)

pytestmark = pytest.mark.usefixtures("one_thread")

GOOD = ["what a joy", "a fine cast", "lovely songs and a great end", "good fun", "warm and clever",
        "a real treat"]  # fmt: skip
BAD = ["dull and long", "no plot at all", "a mess of a film, and loud too", "so slow", "cold, flat",
       "a waste of time"]  # fmt: skip


def table(texts: list[str], labels: list[int]) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": labels})


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return table([text for pair in zip(GOOD, BAD, strict=True) for text in pair], [1, 0] * 6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    """A pretrained `tiny`: one with other weights than those that seed 0 gives."""
    folder = tmp_path_factory.mktemp("pretrained") / "tiny"
    save_model(load_model("tiny", seed=7), folder, "# A model card\n")
    return str(folder)


@pytest.fixture
def full_precision(monkeypatch):
    monkeypatch.setattr(transfer, "choose_precision", lambda *_: "fp32")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(after: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {n for n, t in after.state_dict().items() if not torch.equal(t, before[n])}


# --- drawing labelled rows ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split() -> Dataset:
    """30 rows of class 0, then 20 of class 1: sorted by label, as published files often are."""
    return Dataset.from_dict({
        "text": [f"text {i}" for i in range(50)], "label": [0] * 30 + [1] * 20,
        "id": [f"train-{i:05d}" for i in range(50)],
    })  # fmt: skip


@pytest.mark.parametrize("n", [2, 8, 40])
def test_a_draw_has_equally_many_rows_of_each_class(split, n):
    drawn = draw(split, n, seed=3)
    assert len(drawn) == len(set(drawn["text"])) == n
    assert Counter(drawn["label"]) == {0: n // 2, 1: n // 2}
    given = dict(zip(split["text"], zip(split["label"], split["id"], strict=True), strict=True))
    for row in drawn:  # whole rows of the split
        assert given[row["text"]] == (row["label"], row["id"])


def test_a_larger_draw_holds_the_smaller_ones(split):
    largest = list(draw(split, 40, seed=3)["text"])
    for n in (2, 8, 20):
        assert list(draw(split, n, seed=3)["text"]) == largest[:n]


def test_the_seed_decides_which_rows_are_drawn(split):
    first, again, other = (list(draw(split, 8, seed)["text"]) for seed in (3, 3, 4))
    assert first == again
    assert set(first) != set(other)
    often = Counter(text for seed in range(200) for text in draw(split, 8, seed)["text"])
    assert len(often) == 50
    # 4 of 30 and 4 of 20 rows a draw: 27 and 40 times in 200, and not the first ones of the file
    assert all(8 < often[f"text {i}"] < 50 for i in range(30))
    assert all(18 < often[f"text {i}"] < 65 for i in range(30, 50))


def test_a_draw_of_three_classes():
    split = table([f"text {i}" for i in range(12)], [2, 0, 1, 1] * 3)
    drawn = draw(split, 9, seed=0)
    assert list(drawn["label"]) == [0, 1, 2] * 3
    assert len(set(drawn["text"])) == 9


@pytest.mark.parametrize("n", [7, 0, -2, 42, 1])
def test_a_draw_that_can_not_be_made_is_refused(split, n):
    message = rf"2 classes, up to 40 rows \(the smallest class has 20\), found {n}"
    with pytest.raises(ValueError, match=message):
        draw(split, n, seed=0)


# --- the length of a training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, epochs, steps",
    [
        (2, 64, 64), (15, 64, 64), (16, 64, 64), (17, 32, 64), (32, 32, 64), (33, 22, 66),
        (128, 8, 64), (512, 2, 64), (513, 2, 66), (2048, 2, 256),
    ],
)  # fmt: skip
def test_two_epochs_or_as_many_as_64_steps_take(rows, epochs, steps):
    config = plan(Strategy("any"), rows)
    data = SentimentDataset(["a"] * rows, [0] * rows, load_model("tiny").tokenizer)
    assert config.epochs == epochs
    assert config.batch_size == min(16, rows)
    assert len(steps_of_epoch(data, config, epoch=0)) * epochs == steps


def test_a_plan_of_other_sizes():
    assert plan(Strategy("any"), 32, batch_size=4, least_steps=17).epochs == 3  # 8 steps each
    assert plan(Strategy("any"), 32, batch_size=4, least_steps=16).epochs == 2
    assert plan(Strategy("any"), 32, least_steps=1).epochs == 2
    assert plan(Strategy("any"), 32, batch_size=64).batch_size == 32


def test_a_plan_takes_the_rates_of_its_strategy():
    config = plan(Strategy("any", 3e-3, layer_decay=0.25), 32, seed=5)
    assert (config.learning_rate, config.layer_decay, config.seed) == (3e-3, 0.25, 5)
    assert plan(Strategy("any"), 32).layer_decay == 1.0


# --- what a strategy starts from ------------------------------------------------------------------


def test_the_strategies_are_what_their_titles_say():
    kinds = {name: (s.pretrained, s.trained_layers, s.layer_decay < 1, s.penalty is not None)
             for name, s in STRATEGIES.items()}  # fmt: skip
    assert kinds == {
        "scratch": (False, ALL_LAYERS, False, False),
        "features": (True, 0, False, True),
        "last_layers": (True, 2, False, False),
        "everything": (True, ALL_LAYERS, False, False),
        "discriminative": (True, ALL_LAYERS, True, False),
    }


def test_from_scratch_is_the_same_architecture_with_new_weights(saved):
    pretrained, scratch = start(Strategy("any"), saved), start(STRATEGIES["scratch"], saved)
    assert changed(pretrained.model, load_model("tiny", seed=7).model.state_dict()) == set()
    before = weights(pretrained.model)
    differing = changed(scratch.model, before)
    assert differing == {n for n, t in before.items() if t.unique().numel() > 2}  # not 0s and 1s
    assert {"bert.encoder.layer.0.output.dense.weight", "classifier.weight"} < differing
    # The weights that this architecture has under the same seed: `tiny` is made so.
    assert changed(scratch.model, load_model("tiny", seed=0).model.state_dict()) == set()
    assert scratch.model.config.to_dict() == pretrained.model.config.to_dict()
    assert not scratch.model.training
    assert all(p.requires_grad for p in scratch.model.parameters())


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_start_is_seeded_and_leaves_the_callers_random_state_alone(pretrained):
    strategy = Strategy("any", pretrained=pretrained)
    state = torch.get_rng_state()
    first = weights(start(strategy, "tiny", seed=3).model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert changed(start(strategy, "tiny", seed=3).model, first) == set()
    assert "bert.encoder.layer.0.output.dense.weight" in changed(
        start(strategy, "tiny", seed=4).model, first
    )


@pytest.mark.parametrize(
    "trained, frozen_parts",
    [
        (ALL_LAYERS, ()),
        (2, ("bert.embeddings.",)),
        (1, ("bert.embeddings.", "bert.encoder.layer.0.")),
        (0, ("bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer.1.")),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_what_a_strategy_does_not_train_is_frozen(trained, frozen_parts, pretrained):
    model = start(Strategy("any", pretrained=pretrained, trained_layers=trained), "tiny").model
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    everything = [n for n, _ in model.named_parameters()]
    assert frozen == {n for n in everything if frozen_parts and n.startswith(frozen_parts)}


@pytest.mark.parametrize("trained", [3, -1])
def test_more_layers_than_there_are_is_refused(trained):
    message = rf"trained_layers: expected 0…2, as many as tiny has, found {trained}"
    with pytest.raises(ValueError, match=message):
        start(Strategy("any", trained_layers=trained), "tiny")


def test_classes_of_a_start():
    assert start(Strategy("any"), "tiny").model.config.id2label == {0: "negative", 1: "positive"}
    three = start(Strategy("any"), "tiny", labels=[0, 1, 2]).model
    assert three.config.id2label == {0: "0", 1: "1", 2: "2"}
    assert three.classifier.out_features == 3


# --- using it -------------------------------------------------------------------------------------

FAST = {"learning_rate": 5e-3}  # what the strategies take would need more steps on a tiny model
SIZES = {"max_length": 16, "batch_size": 4, "least_steps": 60}
WAYS = {
    "scratch": replace(STRATEGIES["scratch"], **FAST),
    "features": replace(STRATEGIES["features"], penalty=1e4),
    "last_layers": replace(STRATEGIES["last_layers"], trained_layers=1, **FAST),
    "everything": replace(STRATEGIES["everything"], **FAST),
    "discriminative": replace(STRATEGIES["discriminative"], **FAST),
}


@pytest.mark.parametrize("name", WAYS)
def test_probabilities_are_rows_in_the_order_of_what_was_asked(rows, name):
    """A way that has learnt its rows by heart answers them, in any order, with their labels."""
    shuffled = rows.select([7, 2, 11, 0, 5, 4, 9, 1, 10, 3, 8, 6])
    used = use(WAYS[name], "tiny", rows, shuffled, **SIZES)
    p = used.probabilities
    assert p.shape == (12, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-9)
    assert (p > 0).all()
    assert p.argmax(axis=1).tolist() == list(shuffled["label"])


@pytest.mark.parametrize("name", ["features", "last_layers", "discriminative"])
def test_same_seed_same_probabilities_and_another_seed_others(rows, name):
    short = {**SIZES, "least_steps": 6}

    def answer(seed):
        return use(WAYS[name], "tiny", rows, rows, seed, **short).probabilities

    first = answer(0)
    torch.rand(3), np.random.rand(3)
    assert np.array_equal(answer(0), first)
    assert not np.allclose(answer(1), first)


@pytest.mark.parametrize("name", WAYS)
def test_what_is_frozen_does_not_move_and_the_rest_does(rows, name):
    strategy = WAYS[name]
    before = start(strategy, "tiny", seed=2).model
    used = use(strategy, "tiny", rows, rows, seed=2, **SIZES)
    moved = changed(used.loaded.model, weights(before))
    if name == "features":
        assert moved == set()  # bit by bit
        return
    trained = {n for n, p in before.named_parameters() if p.requires_grad}
    if name == "last_layers":
        lower = ("bert.embeddings.", "bert.encoder.layer.0.")
        assert not any(n.startswith(lower) for n in moved)
        assert "bert.encoder.layer.1.output.dense.weight" in moved
    assert moved <= trained
    # A key's bias adds the same to every score, so its gradient is zero but for rounding.
    assert {n for n in trained - moved if ".key.bias" not in n} == set()


def test_counts_of_a_fine_tuned_way(rows):
    calls = []
    used = use(WAYS["last_layers"], "tiny", rows, rows, **{**SIZES, "least_steps": 7},
               callbacks=[lambda event, state: calls.append(event)])  # fmt: skip
    # 12 rows in batches of 4 are 3 steps an epoch, so 7 steps take 3 epochs
    assert used.steps == len(used.losses) == calls.count("step") == 9
    assert "evaluation" not in calls
    assert used.losses[0] == pytest.approx(math.log(2), abs=0.1)
    h, i = 32, 64
    layer = 4 * (h * h + h) + 2 * h + (h * i + i) + (i * h + h) + 2 * h
    assert used.n_trained == layer + (h * h + h) + (2 * h + 2)  # and the pooler and the head
    assert used.train_s > 0
    assert used.loaded.name == "tiny" and not used.loaded.model.training


def test_frozen_features_are_a_logistic_regression_on_the_mean_states(rows):
    used = use(WAYS["features"], "tiny", rows, rows.select([3, 0]), seed=2, max_length=16)
    assert (used.steps, used.losses, used.n_trained) == (0, (), 32 + 1)
    loaded = load_model("tiny", seed=2)
    data = SentimentDataset(rows["text"], rows["label"], loaded.tokenizer, max_length=16)
    vectors = mean_states(loaded.model, data).numpy()
    probe = logistic_probe(vectors, data.labels, 1e4)
    expected = probe.predict_proba(unit(vectors[[3, 0]]))
    np.testing.assert_allclose(used.probabilities, expected, atol=5e-3)  # in bf16, batches differ
    assert np.ptp(used.probabilities) > 0.1


def test_discriminative_rates_move_lower_layers_less(rows):
    """Adam's steps are about as long as the learning rate, so a layer's share shows in its move."""

    def moves(strategy):
        before = start(strategy, "tiny").model
        used = use(strategy, "tiny", rows, rows, **{**SIZES, "least_steps": 12})
        after, found = used.loaded.model.state_dict(), {}
        depths = parameter_depths(before)
        for name, parameter in before.named_parameters():
            if "dense.weight" in name or "query.weight" in name:
                by = (after[name] - parameter.data).abs().mean().item()
                found.setdefault(depths[name], []).append(by)
        return {depth: np.mean(values) for depth, values in found.items()}

    even = moves(WAYS["everything"])
    uneven = moves(replace(WAYS["everything"], layer_decay=0.25))
    shares = {depth: uneven[depth] / even[depth] for depth in even}
    assert sorted(shares) == [0, 1, 2]  # pooler, last layer, first layer
    assert shares == {depth: pytest.approx(0.25**depth, rel=0.3) for depth in (0, 1, 2)}


def test_texts_are_cut_as_asked(rows, monkeypatch):
    lengths = []

    class Seen(SentimentDataset):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            lengths.append(int(self.lengths.max()))

    monkeypatch.setattr(transfer, "SentimentDataset", Seen)
    long = table(["good fun " * 30, "so slow " * 30], [1, 0])
    use(WAYS["features"], "tiny", long, long, max_length=12)
    assert lengths == [12, 12]


def test_three_classes():
    texts = [*GOOD[:3], *BAD[:3], "some of it", "half and half", "neither good nor bad"]
    three = table(texts, [2] * 3 + [0] * 3 + [1] * 3)
    for name in ("features", "everything"):
        used = use(WAYS[name], "tiny", three, three, **{**SIZES, "least_steps": 150})
        assert used.probabilities.shape == (9, 3)
        assert used.probabilities.argmax(axis=1).tolist() == list(three["label"])


@pytest.mark.parametrize("name", ["features", "everything"])
def test_rows_that_can_not_be_trained_on_are_refused(rows, name):
    with pytest.raises(ValueError, match="at least two classes|at least 2 classes"):
        use(WAYS[name], "tiny", table(["a", "b"], [0, 0]), rows.select([1, 3]), **SIZES)
    with pytest.raises(ValueError, match="row 1: expected a label in 0…1, found 2"):
        use(WAYS[name], "tiny", rows, table(["a", "b"], [0, 2]), **SIZES)


# --- mean states and the probe --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_mean_states_are_the_mean_over_the_tokens_of_each_row(full_precision, name):
    """More rows than a batch holds, of very different lengths; one at a time gives the same."""
    loaded = load_model(name)
    words = " ".join(GOOD + BAD).split()
    texts = [" ".join(words[: 1 + 7 * k % 41]) for k in range(70)]
    data = SentimentDataset(texts, [0] * 70, loaded.tokenizer, max_length=64)
    assert len(set(data.lengths)) > 20
    found = mean_states(loaded.model, data)
    assert (found.shape, found.dtype) == ((70, 32), torch.float32)
    for row in range(70):
        with torch.no_grad():
            hidden = loaded.model.base_model(data[row]["input_ids"][None]).last_hidden_state[0]
        expected = sum(hidden) / len(hidden)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_mean_states_are_without_dropout_and_leave_the_mode_alone(rows):
    loaded = load_model("tiny")
    data = SentimentDataset(rows["text"], rows["label"], loaded.tokenizer)
    expected = mean_states(loaded.model, data)
    loaded.model.train()
    found = mean_states(loaded.model, data)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert all(module.training for module in loaded.model.modules())


def test_unit_vectors():
    found = unit(np.array([[3.0, 4.0], [0.0, -2.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, -1.0]])


def test_the_probe_reads_directions_and_a_larger_penalty_is_freer():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 5))
    labels = (vectors[:, 0] + 0.5 * rng.normal(size=40) > 0).astype(int)
    probe = logistic_probe(vectors, labels, 10.0)
    plain = LogisticRegression(C=10.0, max_iter=1000)
    plain.fit(vectors / np.sqrt((vectors**2).sum(axis=1))[:, None], labels)
    np.testing.assert_allclose(probe.coef_, plain.coef_, rtol=1e-6)
    scaled = logistic_probe(vectors * rng.uniform(0.1, 9, size=(40, 1)), labels, 10.0)
    np.testing.assert_allclose(scaled.coef_, probe.coef_, rtol=1e-6)
    assert np.abs(logistic_probe(vectors, labels, 0.1).coef_).sum() < np.abs(probe.coef_).sum() / 2


# --- what it remembers ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_same_kind_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 15))
    vectors = rng.normal(size=(n, 4)) * rng.uniform(0.1, 10, size=(n, 1))  # of unequal lengths
    kinds = [str(k) for k in rng.integers(0, 3, size=n)]
    asked = [True, *(bool(a) for a in rng.integers(0, 2, size=n - 1))]
    right = []
    for i in range(n):
        if asked[i]:
            cosines = {
                j: vectors[i] @ vectors[j] / math.sqrt(vectors[i] @ vectors[i])
                / math.sqrt(vectors[j] @ vectors[j]) for j in range(n) if j != i
            }  # fmt: skip
            right.append(kinds[max(cosines, key=cosines.get)] == kinds[i])
    found = same_kind(torch.tensor(vectors, dtype=torch.float32), kinds, asked)
    assert found == pytest.approx(sum(right) / len(right), abs=1e-12)


def test_same_kind_by_hand():
    """Three directions; the third row is long, which must not make it everybody's neighbour."""
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [50.0, 50.0]])
    assert same_kind(vectors, ["film", "film", "shop"], [True, True, False]) == 1.0
    assert same_kind(vectors, ["film", "film", "shop"], [True, True, True]) == pytest.approx(2 / 3)
    assert same_kind(vectors, ["film", "shop", "shop"], [True, False, False]) == 0.0
    # A row that nobody asks for stands around all the same.
    assert same_kind(vectors, ["a", "b", "b"], [False, False, True]) == 1.0


def test_opposite_rows_are_not_preferred_to_oneself():
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert same_kind(vectors, ["a", "b", "b"], [True, True, True]) == pytest.approx(2 / 3)


def test_the_pairs_are_the_built_in_reviews():
    memory = pairs_memory()
    assert len(memory.texts) == len(set(memory.texts)) == 740
    assert len(memory.kinds) == len(memory.asked) == 740
    assert sum(memory.asked) == 180
    count = Counter(memory.kinds)
    for kind, asked in zip(memory.kinds, memory.asked, strict=True):
        assert count[kind] == (2 if asked else 1)  # a partner for each that is asked for
    label = {}
    for part in sources.load_splits("reviews").values():
        label |= dict(zip(part["text"], part["label"], strict=True))
    partners: dict[str, list[str]] = {}
    for text, kind in zip(memory.texts, memory.kinds, strict=True):
        partners.setdefault(kind, []).append(text)
    for texts in partners.values():
        if len(texts) == 2:
            first, second = (set(text.lower().split()) for text in texts)
            assert len(first & second) > len(first ^ second) / 2
            assert label[texts[0]] != label[texts[1]]


def test_the_domains_are_equally_many_test_rows_of_each(monkeypatch):
    def load(name):
        return {split: table([f"{name}, {split} {i}" for i in range(9)], [0, 1, 0] * 3)
                for split in sources.SPLITS}  # fmt: skip

    monkeypatch.setattr(transfer.sources, "load_splits", load)
    memory = transfer.domains_memory(each=4)
    assert Counter(memory.kinds) == dict.fromkeys(transfer.DOMAINS, 4)
    assert len(set(memory.texts)) == 16 and memory.asked == (True,) * 16
    for text, kind in zip(memory.texts, memory.kinds, strict=True):
        assert text.startswith(f"{kind}, test ")
    assert transfer.domains_memory(each=4) == memory


def test_a_model_knows_two_equal_texts_to_be_near():
    loaded = load_model("tiny")
    texts = ("a fine cast", "no plot at all", "a fine cast", "no plot at all", "so slow, so loud")
    kinds, asked = ("a", "b", "a", "b", "c"), (True, True, True, True, False)
    before = weights(loaded.model)
    assert remembers(loaded, Memory(texts, kinds, asked)) == 1.0
    assert remembers(loaded, Memory(texts, ("a", "b", "c", "d", "e"), asked)) == 0.0
    assert changed(loaded.model, before) == set()


def test_a_memory_is_read_up_to_96_tokens_or_as_asked(monkeypatch):
    loaded, seen = load_model("tiny"), []

    def states(model, data):
        seen.append(data)
        return mean_states(model, data)

    monkeypatch.setattr(transfer, "mean_states", states)
    memory = Memory(("a fine cast " * 90, "so slow"), ("a", "b"), (True, True))
    remembers(loaded, memory)
    remembers(loaded, memory, max_length=8)
    assert [data.lengths.max() for data in seen] == [96, 8]


def test_a_memory_without_what_stands_around():
    memory = Memory(("w", "x", "y", "z"), ("a", "b", "a", "c"), (True, False, True, False))
    assert only_asked(memory) == Memory(("w", "y"), ("a", "a"), (True, True))
    assert len(only_asked(pairs_memory()).texts) == 180


# --- between two models, and what labels are worth ------------------------------------------------


def test_mixed_weights_are_on_the_straight_way():
    before, after = (load_model("tiny", seed=seed).model.state_dict() for seed in (0, 1))
    head = ("classifier.weight", "classifier.bias")
    for alpha in (0.0, 0.3, 1.0):
        mixed = mixed_weights(before, after, alpha, head)
        assert mixed.keys() == after.keys()
        for name, tensor in mixed.items():
            a, b = before[name], after[name]
            torch.testing.assert_close(tensor, b if name in head else a + alpha * (b - a))
    for alpha, end in ((0.0, before), (1.0, after)):
        mixed = mixed_weights(before, after, alpha)
        assert all(torch.equal(mixed[name], end[name]) for name in end)  # exactly


def test_mixed_weights_are_new_and_leave_counts_alone():
    before, after = (
        {"w": torch.full((2,), value), "head": torch.full((2,), value), "count": torch.tensor(k)}
        for value, k in ((1.0, 3), (2.0, 7))
    )
    mixed = mixed_weights(before, after, 0.5, head=["head"])
    assert mixed["count"] == 7
    for tensor in mixed.values():
        tensor.zero_()
    assert after["w"].tolist() == after["head"].tolist() == [2.0, 2.0] and after["count"] == 7
    assert before["w"].tolist() == [1.0, 1.0]


def test_mixed_weights_of_other_models_are_refused():
    small, large = {"w": torch.zeros(2)}, {"w": torch.zeros(3)}
    with pytest.raises(ValueError, match="two models of one architecture.*: w of shape"):
        mixed_weights(small, large, 0.5)
    with pytest.raises(ValueError, match="two models of one architecture.*: v of shape"):
        mixed_weights(small, {**small, "v": torch.zeros(1)}, 0.5)


@pytest.mark.parametrize(
    "accuracy, expected",
    [
        (0.60, 10), (0.55, 10), (0.65, math.sqrt(10 * 100)), (0.70, 100),
        (0.80, math.sqrt(100 * 1000)), (0.90, 1000), (0.901, None),
    ],
)  # fmt: skip
def test_labels_worth_by_hand(accuracy, expected):
    found = labels_worth([10, 100, 1000], [0.6, 0.7, 0.9], accuracy)
    assert found == (None if expected is None else pytest.approx(expected))


def test_labels_worth_is_where_a_curve_first_gets_there():
    assert labels_worth([1, 10, 100, 1000], [0.5, 0.7, 0.6, 0.8], 0.65) == pytest.approx(10**0.75)
    assert labels_worth([32], [0.8], 0.8) == 32


@pytest.mark.parametrize(
    "budgets, accuracies",
    [([], []), ([1, 2], [0.5]), ([2, 2], [0.5, 0.6]), ([2, 1], [0.5, 0.6]), ([0, 1], [0.5, 0.6])],
)
def test_labels_worth_of_no_curve_is_refused(budgets, accuracies):
    with pytest.raises(ValueError, match="expected rising budgets above 0 and one accuracy"):
        labels_worth(budgets, accuracies, 0.5)
