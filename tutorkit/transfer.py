"""What pre-training buys: ways to use a pretrained model, each on few or many labelled texts.

A way is a `Strategy`: which weights the model starts from, which of them train, and how fast. `use`
trains one on some rows and returns the model and its probabilities; `remembers` asks what the model
still knows of what it could do before.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tutorkit import heads, sources
from tutorkit.data import SentimentDataset, evaluation_batches, take_rows
from tutorkit.models import LoadedModel, backbone_layers, drawn_with, load_model, set_trainable
from tutorkit.precision import autocast, choose_device, choose_precision
from tutorkit.training import Callback, TrainConfig, eval_mode, evaluate, fit

ALL_LAYERS = None  # as `trained_layers`
DOMAINS = ("rt_snippets", "amazon_snippets", "nyt_snippets", "tweets")


@dataclass(frozen=True)
class Strategy:
    """One way to use a pretrained model."""

    title: str  # what figures and tables call it
    learning_rate: float = 1e-4  # of the head; of all that trains where `layer_decay` is 1
    pretrained: bool = True  # False: the same architecture with random weights
    trained_layers: int | None = ALL_LAYERS  # from the top; the embeddings train with all layers
    layer_decay: float = 1.0  # see `optim.parameter_groups`
    penalty: float | None = None  # set: no fine-tuning, a logistic regression; its C, larger: freer


# Learning rates, layer decay and C: of those tried, the ones with the lowest loss on 500 validation
# rows of IMDB, at 512 labelled reviews of a draw that no result uses (`budgets.TRIED`).
STRATEGIES = {
    "scratch": Strategy("from scratch", 1e-4, pretrained=False),
    "features": Strategy("frozen features", penalty=10.0, trained_layers=0),
    "last_layers": Strategy("last two layers", 3e-4, trained_layers=2),
    "everything": Strategy("everything", 2e-4),
    "discriminative": Strategy("discriminative rates", 2e-4, layer_decay=0.7),
}


@dataclass(frozen=True)
class Used:
    """A strategy after its training."""

    loaded: LoadedModel
    probabilities: np.ndarray  # (N, C) of the rows to answer
    n_trained: int  # weights that training could move
    steps: int  # optimizer steps; 0 for frozen features
    train_s: float  # seconds of training, tokenizing and loading left out
    losses: tuple[float, ...]  # of each step


def use(
    strategy: Strategy, model: str, rows: Any, answer: Any, seed: int = 0, max_length: int = 128,
    batch_size: int = 16, least_steps: int = 64, callbacks: Sequence[Callback] = (),
) -> Used:
    """Train a strategy on labelled rows, then answer others.

    Nothing is chosen on the way, so no validation rows are needed: two epochs, or `least_steps`
    optimizer steps where those are more, and the last weights count.

    Args:
        strategy: one of `STRATEGIES`, or your own.
        model: a name for `models.load_model`.
        rows: columns `text` and `label`, to learn from.
        answer: the same columns, to be answered.
        seed: of the new weights, the order of rows, and dropout.
        max_length: tokens a text, by head and tail.
        batch_size: rows a step.
        least_steps: Zhang et al. 2021 (arXiv:2006.05987): with few rows, few epochs are too few.
        callbacks: as for `training.fit`.

    Raises:
        ValueError: rows that can't be trained on, more layers to train than there are.
    """
    loaded = start(strategy, model, sorted(set(rows["label"])), seed)
    train, wanted = (
        SentimentDataset(part["text"], part["label"], loaded.tokenizer, max_length,
                         num_labels=loaded.model.config.num_labels)
        for part in (rows, answer)
    )  # fmt: skip
    begun = time.perf_counter()
    if strategy.penalty is not None:
        vectors = mean_states(loaded.model, train).numpy()
        probe = logistic_probe(vectors, train.labels, strategy.penalty)
        train_s = time.perf_counter() - begun
        probabilities = probe.predict_proba(unit(mean_states(loaded.model, wanted).numpy()))
        return Used(loaded, probabilities, probe.coef_.size + probe.intercept_.size, 0, train_s, ())
    n_trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    config = plan(strategy, len(train), seed, batch_size, least_steps)
    state = fit(loaded.model, train, None, config, callbacks=callbacks)
    found = evaluate(loaded.model, wanted)
    losses = tuple(step["loss"] for step in state.steps)
    return Used(loaded, found.probabilities, n_trained, state.step, state.seconds, losses)


def start(
    strategy: Strategy, model: str, labels: Collection[int] = (0, 1), seed: int = 0
) -> LoadedModel:
    """The model a strategy starts from, with what it does not train frozen.

    Raises:
        ValueError: more layers to train than the model has.
    """
    names = {0: "negative", 1: "positive"} if len(labels) == 2 else {i: str(i) for i in labels}
    loaded = load_model(model, names, seed)
    if not strategy.pretrained:
        with drawn_with(seed):
            new = type(loaded.model)(loaded.model.config).eval()
        loaded = replace(loaded, model=new, source="random weights of the same architecture",
                         head=[name for name, _ in new.named_parameters()])  # fmt: skip
    layers = len(backbone_layers(loaded.model))
    if strategy.trained_layers is not ALL_LAYERS:
        if not 0 <= strategy.trained_layers <= layers:
            raise ValueError(f"trained_layers: expected 0…{layers}, as many as {model} has, found "
                             f"{strategy.trained_layers!r}")
        set_trainable(loaded.model, layers - strategy.trained_layers)
    return loaded


def plan(
    strategy: Strategy, rows: int, seed: int = 0, batch_size: int = 16, least_steps: int = 64
) -> TrainConfig:
    """The training of a strategy on so many rows: two epochs, or as many as `least_steps` take."""
    batch_size = min(batch_size, rows)
    epochs = max(2, -(-least_steps // -(-rows // batch_size)))  # both rounded up
    return TrainConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=strategy.learning_rate,
        layer_decay=strategy.layer_decay, seed=seed,
    )  # fmt: skip


def draw(split: Any, n: int, seed: int) -> Any:
    """`n` labelled rows, equally many of each class; a larger draw holds the smaller ones.

    Args:
        split: a `datasets.Dataset` with a column `label`.
        n: rows, a multiple of the number of classes.
        seed: which rows are drawn.

    Raises:
        ValueError: `n` can't be divided among the classes, or a class has too few rows.
    """
    labels = np.asarray(split["label"])
    classes = np.unique(labels)
    each, left_over = divmod(n, len(classes))
    fewest = min(int((labels == c).sum()) for c in classes)
    if left_over or not 1 <= each <= fewest:
        raise ValueError(
            f"n: expected a multiple of {len(classes)} classes, up to {fewest * len(classes)} "
            f"rows (the smallest class has {fewest}), found {n!r}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    of_class = [order[labels[order] == c][:each] for c in classes]
    return split.select(np.stack(of_class, axis=1).ravel())  # classes in turn


@torch.no_grad()
def mean_states(model: torch.nn.Module, dataset: SentimentDataset) -> Float[Tensor, "rows hidden"]:
    """The mean of a text's last hidden states over its real tokens: (N, H) float32."""
    device = choose_device("auto")
    numeric = choose_precision("auto", device)
    model.to(device)
    found = torch.zeros(len(dataset), model.config.hidden_size)
    with eval_mode(model):
        for rows in evaluation_batches(dataset.lengths, 64):
            batch = {name: tensor.to(device) for name, tensor in dataset.batch(rows).items()}
            mask = batch["attention_mask"]
            with autocast(numeric, device):
                hidden = model.base_model(batch["input_ids"], attention_mask=mask).last_hidden_state
            found[rows] = heads.pool(hidden.float(), mask, "mean").cpu()
    return found


def logistic_probe(vectors: np.ndarray, labels: np.ndarray, penalty: float):
    """A logistic regression on vectors of length 1; `penalty` is C, larger is freer."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=penalty, max_iter=1000).fit(unit(vectors), labels)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its length."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- what it remembers --------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Texts of known kinds: a model that knows what texts are about puts a kind close together."""

    texts: tuple[str, ...]
    kinds: tuple[str, ...]  # one a text
    asked: tuple[bool, ...]  # texts whose nearest neighbour counts; the others only stand around


def pairs_memory() -> Memory:
    """The built-in reviews: is the nearest text to one of a pair its partner, about the same film?

    The two differ in a few words, and in their label. Random weights find most partners too, by
    the words that they share: this measure says little, and lesson 06 shows why.
    """
    splits = sources.load_splits("reviews")
    rows = [row for split in sources.SPLITS for row in splits[split]]
    return Memory(
        tuple(row["text"] for row in rows), tuple(row["pair"] or row["id"] for row in rows),
        tuple(row["pair"] is not None for row in rows),
    )  # fmt: skip


def aspects_memory() -> Memory:
    """Built-in reviews that speak of one thing (acting, plot, …): does the nearest speak of it too?

    Reviews in pairs are left out.
    """
    splits = sources.load_splits("reviews")
    rows = [row for split in sources.SPLITS for row in splits[split]
            if len(row["aspects"]) == 1 and row["pair"] is None]  # fmt: skip
    texts, kinds = [row["text"] for row in rows], [row["aspects"][0] for row in rows]
    return Memory(tuple(texts), tuple(kinds), (True,) * len(rows))


def domains_memory(each: int = 200) -> Memory:
    """Sentences of film reviews, product reviews, editorials and tweets: is the nearest of its own?

    They are of the test splits, so a model has not been trained on them.

    Raises:
        ConnectionError: they have to be downloaded and could not be.
    """
    texts, kinds = [], []
    for name in DOMAINS:
        taken = take_rows(sources.load_splits(name)["test"], each, seed=0)
        texts += taken["text"]
        kinds += [name] * len(taken)
    return Memory(tuple(texts), tuple(kinds), (True,) * len(texts))


def only_asked(memory: Memory) -> Memory:
    """The same without the texts that only stand around."""
    kept = [i for i, asked in enumerate(memory.asked) if asked]
    texts, kinds = ([column[i] for i in kept] for column in (memory.texts, memory.kinds))
    return Memory(tuple(texts), tuple(kinds), (True,) * len(kept))


def remembers(loaded: LoadedModel, memory: Memory, max_length: int = 96) -> float:
    """The share of texts whose nearest neighbour, by cosine of the mean states, is of their kind.

    Nothing is trained for it: it is what the vectors themselves know.
    """
    texts = SentimentDataset(memory.texts, [0] * len(memory.texts), loaded.tokenizer, max_length)
    return same_kind(mean_states(loaded.model, texts), memory.kinds, memory.asked)


def same_kind(
    vectors: Float[Tensor, "rows hidden"], kinds: Sequence[str], asked: Sequence[bool]
) -> float:
    """The share of the rows asked for whose nearest other row is of the same kind."""
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    nearness = (vectors @ vectors.T).fill_diagonal_(-2)  # (N, N); no row is its own neighbour
    kinds = np.asarray(kinds)
    same = kinds[nearness.argmax(dim=1).numpy()] == kinds
    return float(same[np.asarray(asked)].mean())


def mixed_weights(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], alpha: float,
    head: Collection[str] = (),
) -> dict[str, Tensor]:
    """Weights on the straight way from one model to another of the same architecture.

        θ(α) = (1 - α) θ_0 + α θ_1

    Args:
        before: θ_0, a state dict: the pretrained model's.
        after: θ_1, the fine-tuned model's.
        alpha: α; 0 gives θ_0, 1 gives θ_1, exactly.
        head: names that are taken from `after` whatever α is: a new head has no pretrained value.

    Raises:
        ValueError: the two have other names or shapes.

    Source: Wortsman et al. 2022 (arXiv:2109.01903), eq. 1, for zero-shot models.
    """
    shapes = [{name: tuple(t.shape) for name, t in part.items()} for part in (before, after)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0]
        raise ValueError("expected two models of one architecture, found weights that only one "
                         f"of them has: {odd[0]} of shape {odd[1]}")
    return {
        name: after[name].clone() if name in head or not after[name].is_floating_point()
        else (1 - alpha) * before[name] + alpha * after[name] for name in after
    }  # fmt: skip


def labels_worth(
    budgets: Sequence[float], accuracies: Sequence[float], accuracy: float
) -> float | None:
    """The number of labels at which a learning curve first reaches an accuracy.

    Between two budgets the curve is straight over log n:

        log n = log n_i + (a - a_i) / (a_{i+1} - a_i) · (log n_{i+1} - log n_i)

    Args:
        budgets: numbers of labels, rising.
        accuracies: the curve at each.
        accuracy: a, to be reached.

    Returns:
        The smallest budget where that already reaches it; None where no budget does.

    Raises:
        ValueError: lists of unequal length, none at all, or budgets that do not rise.
    """
    n, a = np.asarray(budgets, dtype=float), np.asarray(accuracies, dtype=float)
    if n.shape != a.shape or n.size == 0 or n[0] <= 0 or (np.diff(n) <= 0).any():
        raise ValueError("expected rising budgets above 0 and one accuracy for each, found "
                         f"{list(budgets)} and {list(accuracies)}")
    reached = np.flatnonzero(a >= accuracy)
    if not reached.size:
        return None
    i = int(reached[0])
    if i == 0:
        return float(n[0])
    share = (accuracy - a[i - 1]) / (a[i] - a[i - 1])
    return float(n[i - 1] * (n[i] / n[i - 1]) ** share)
