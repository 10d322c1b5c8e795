# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adversarial training: robust to small changes
#
# A classifier that is right on a review may be wrong on the same review with one word changed, a
# few letters swapped, or a "not" put in. Adversarial training prepares a model for the worst small
# change. This lesson builds it, looks at what it finds, attacks a model with plain words, and asks
# of each kind of change whether the training helped.
#
# **After this lesson you can** write FGM in ten lines and test that it is right, say what PGD,
# FreeLB and VAT do differently and what a step of each costs, measure robustness on pairs, typos
# and under attack, and tell which of these a small move of an embedding says nothing about.
#
# **Time**: under two minutes to run on two CPU cores; two hours to read, the exercises not counted.
# **Needs**: the installed package; the weights of `minilm` (about 90 MB) are fetched once and kept.
# The worst small change is derived in [`01_math`](01_math.ipynb), section 6; the training loop is
# in [`04_training`](04_training.ipynb).

# %% tags=["colab", "nbval-ignore-output"]
# In Colab: install what is missing there, never torch. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    from pathlib import Path
    from subprocess import check_call

    _pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    _clones = [f"./{folder.parent}" for folder in Path().glob("*/tutorkit")]
    if _clones:
        check_call([*_pip, "gguf", "jaxtyping"])
        check_call([*_pip, "--no-deps", _clones[0]])
    else:
        print("Run `!git clone` with the address of your fork, then this cell again.")

# %% tags=["parameters"]
model = "minilm"  # the pretrained model
dataset = "reviews"  # where the texts come from
labelled = 256  # labelled texts to learn from
answered = 100  # test texts, at most
max_length = 64  # tokens a text
epochs = 2  # passes over the labelled texts
learning_rate = 2e-4
methods = ["plain", "FGM", "FreeLB"]  # what is trained here; "PGD" and "VAT" can be added
epsilon = 0.5  # radius of a change, as a share of a word's mean norm; smaller for smollm2: 0.15
steps = 2  # K of PGD and FreeLB
attacked = 16  # test texts that are attacked
seed = 0  # of the draw of labelled texts, of new weights, and of dropout

# %%
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from tutorkit import adversarial_figures as figures
from tutorkit import data, losses, metrics, robustness, sources, training, transfer, widgets
from tutorkit.adversarial import FGM, PGD, VAT, FreeLB, Passes
from tutorkit.models import load_model, model_digest
from tutorkit.neighbourhood import Neighbourhood, moved_embeddings
from tutorkit.noise import drop_words, typos
from tutorkit.objectives import classification
from tutorkit.probes import contrast_pairs, negation_probes
from tutorkit.studies import compare, stored
from tutorkit.substitution import WORD, Budget, substitution_attack, synonym_table
from tutorkit.unlabelled import WithUnlabelled

splits = sources.load_splits(dataset, seed)
rows = transfer.draw(splits["train"], labelled, seed)
alone = splits["test"]
if "pair" in alone.column_names:  # pairs are asked by themselves
    alone = alone.select([i for i, pair in enumerate(alone["pair"]) if pair is None])
test = data.take_rows(alone, answered, seed, "test")
pairs = contrast_pairs(sources.load_splits("reviews")["test"])
print({"labelled": len(rows), "test": len(test), "contrast pairs": len(pairs),
       "negation probes": len(negation_probes())})  # fmt: skip

# %% [markdown]
# ## 1. A right answer that a small change turns
#
# First a model to look at: `minilm`, fine-tuned plainly on a few hundred built-in reviews. That is
# little to learn from, and these reviews are hard by design, so it is no strong model. It is enough
# to see what small changes do.

# %% tags=["nbval-ignore-output"]
def train(objective, epochs, weights=None):
    """A model after its training, from pretrained or given weights, and the seconds that took."""
    loaded = load_model(model, seed=seed)
    if weights is not None:
        loaded.model.load_state_dict(weights)
    known = data.SentimentDataset(rows["text"], rows["label"], loaded.tokenizer, max_length)
    config = training.TrainConfig(
        epochs=epochs, batch_size=16, learning_rate=learning_rate, seed=seed
    )
    state = training.fit(loaded.model, known, None, config, objective=objective)
    loaded.model.eval().zero_grad()  # the last step's gradients would stay in memory
    return loaded, state.seconds


plain, seconds = train(classification, epochs)
predict = robustness.predictor(plain, max_length)
print(f"{seconds:.0f} s")

# %% [markdown]
# Now small changes of several kinds. In a **contrast pair** a small edit turns the verdict round,
# so the right answer changes too. A **negation probe** is a short pair of the same kind: in half of
# them the sentence with the "not" is the positive one. **Typos** and **dropped words** are made by
# a program. After a typo the label stays. A dropped word may have been the verdict, or its "not",
# so there no model can have all texts right.

# %% tags=["nbval-ignore-output"]
def show(texts, labels):
    """Each text with its label and the probability that the model gives to "positive"."""
    for text, label, p in zip(texts, labels, predict(list(texts))[:, 1], strict=True):
        print(f"label {label}  p {p:.2f}  {'right' if (p > 0.5) == label else 'WRONG'}  {text}")


shortest = sorted(pairs, key=lambda pair: len(pair.texts[0]))
for pair in [*shortest[:3], negation_probes()[1], negation_probes()[20]]:
    show(pair.texts, pair.labels)

# %% tags=["nbval-ignore-output"]
rng = np.random.default_rng(0)
text = "A wonderful film, beautifully acted, with a clever story and lovely songs."
show([text, *(typos(text, 0.3, rng) for _ in range(3)),
      *(drop_words(text, 0.3, rng) for _ in range(3))], [1] * 7)  # fmt: skip

# %% [markdown]
# Single texts show what can happen. How often it does is a measurement: the same test texts as
# they are and changed at a fixed rate, and the pairs. A pair counts only where **both** members are
# right. Why: a model that sees no difference between the two gives them one answer, has half of
# the texts right, and no pair. A coin has a quarter of the pairs.

# %% tags=["nbval-ignore-output"]
found = robustness.robustness(predict, test["text"], test["label"], pairs, seed=seed)
robustness.robustness_table({"plain": found}).drop(columns="model").round(2)

# %% [markdown]
# The column `clean` is the accuracy on the same texts before they were changed. With so few texts
# every interval is wide. Section 8 has thousands of clean texts and a thousand with typos; the
# pairs and the attack stay small there too.

# %% [markdown]
# ## 2. The worst small change of an input
#
# Which small change is the worst? Words cannot be moved a little, their embeddings can. With $x$
# the embeddings of a text, $\ell$ the loss of its label and $g = \partial\ell/\partial x$, the
# adversarial objective asks at each step for the worst $\delta$ in the **ball** of all changes with
# $\|\delta\|_2 \le \varepsilon$. It, and FGM's answer to that inner question:
#
# $$\min_\theta \; \mathbb{E} \max_{\|\delta\|_2\le\varepsilon} \ell(x+\delta;\theta)
#   \qquad \delta_{\text{FGM}} = \varepsilon\,\frac{g}{\|g\|_2}$$
#
# FGM is exact where $\ell$ is straight. **PGD** goes in $K$ smaller steps of length $\alpha$ and
# after each comes back to the ball, $\delta\leftarrow\Pi_\varepsilon(\delta+\alpha\,g/\|g\|_2)$,
# where $\Pi_\varepsilon$ takes a change to its nearest point of the ball. On an embedding of two
# numbers the ball is a disc and all of it can be seen:

# %%
worst_change = figures.WorstChange()
worst_change.figure

# %% [markdown]
# FGM's arrow starts along the gradient at $x$ and ends on the disc's edge, where the loss has long
# turned another way. PGD looks again after each step. Which radius makes the two equal? What do
# steps of the size $\alpha = \varepsilon$ do? How many of them are needed?

# %%
widgets.explore(worst_change)

# %%
for radius in (0.1, 0.5, 1.0):
    once = figures.ascent(radius, radius, 1).losses[-1]
    several = figures.ascent(radius, radius / 4, 12).losses[-1]
    print(f"ε = {radius}: start {figures.ascent(radius, radius, 1).losses[0]:.2f}, FGM {once:.2f}, "
          f"PGD {several:.2f}, highest on the disc {figures.highest_on_disc(radius):.2f}")

# %% [markdown]
# ### The same around a real review
#
# A review of $T$ tokens is a point in $T \times D$ dimensions. There the loss is drawn along one
# direction: that of the gradient, and random ones of the same length. The unit of all changes is
# the mean norm of the row's word embeddings. `Neighbourhood` moves the embeddings and asks the
# model: `zeros()` is no change, `real` is 1 on real tokens, `entries` counts the numbers of a row,
# and `gradient` is that of a loss by the change. Section 3 writes the same out by hand.

# %% tags=["nbval-ignore-output"]
review = data.SentimentDataset(test["text"], test["label"], plain.tokenizer, max_length)
right = np.flatnonzero(found["clean"].correct)
first = int(right[review.lengths[right].argmin()])  # a short one that the model has right


def around(row, copies=1):
    """The neighbourhood of a row of the test texts, and its label, as often as asked for."""
    batch = review.batch([row] * copies)
    return Neighbourhood(plain.model, batch), batch["labels"]


near, label = around(first)
g = near.gradient(lambda logits: losses.cross_entropy(logits, label, "sum"), near.zeros())
steepest = g / g.norm()
randoms = [near.real * torch.randn(g.shape, generator=torch.Generator().manual_seed(k))
           for k in range(10)]  # fmt: skip
randoms = [direction / direction.norm() for direction in randoms]

# %% tags=["nbval-ignore-output"]
radii = torch.linspace(-2 * epsilon, 2 * epsilon, 25)


@torch.no_grad()
def along(direction):
    """The loss of the review at each radius in one direction."""
    near, label = around(first, len(radii))
    return losses.cross_entropy(near.logits(radii[:, None, None] * direction), label, "none")


figures.direction_figure(radii, along(steepest), [along(d) for d in randoms], epsilon)

# %% [markdown]
# Random changes of the same size do nothing to speak of. The slope along a unit vector $d$ is
# $\|g\|\cos(g, d)$, and in $n$ dimensions the cosine of a random direction is about $1/\sqrt n$
# in size. So a model can be calm under noise and still have a direction in which it gives way: a
# test with random noise does not find it.

# %% tags=["nbval-ignore-output"]
cosines = [float((steepest * d).sum()) for d in randoms]
n = int(near.entries)
print(f"n = {n:,} dimensions, 1/√n = {n**-0.5:.4f}; root mean square of the cosines: "
      f"{np.sqrt(np.mean(np.square(cosines))):.4f}")  # fmt: skip

# %% [markdown]
# ## 3. FGM in ten lines
#
# The clean loss, its gradient with respect to the embeddings, the step, and the loss there.
# `moved_embeddings` adds $\delta$ to what the embedding module returns, for one pass. Many recipes
# add it to the weights of that module instead and take it back afterwards; here no weight is
# touched, so none can be forgotten. (Exercise 7 looks at what else goes wrong in such a recipe.)

# %%
def fgm(network, batch, epsilon):
    """Summed loss of a batch as it is and at FGM's change, and that change (B, T, D)."""
    table, real = network.get_input_embeddings(), batch["attention_mask"][:, :, None].float()
    x = table(batch["input_ids"]).detach()
    unit = (real * x.norm(dim=2, keepdim=True)).sum(1, keepdim=True) / real.sum(1, keepdim=True)

    def loss(delta):
        with moved_embeddings(table, delta):
            logits = network(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return losses.cross_entropy(logits, batch["labels"], "sum")

    start = torch.zeros_like(x, requires_grad=True)
    clean = loss(start)
    (g,) = torch.autograd.grad(clean, start)
    delta = unit * losses.fgm_perturbation(real * g, epsilon)
    return clean.detach(), loss(delta).detach(), delta  # nothing is trained on here


# %% [markdown]
# The checks that such code needs, on a model before any training, so that they come out the same
# everywhere. The radius is reached in each row, padding stays, the loss rises, and it is the
# package's `FGM`, which trains on the mean of both losses:

# %%
fresh = load_model(model, seed=seed)
small = data.SentimentDataset(test["text"][:8], test["label"][:8], fresh.tokenizer, max_length)
batch = small.batch(range(8))
before = model_digest(fresh.model)
clean, moved, delta = fgm(fresh.model, batch, epsilon)
unit = Neighbourhood(fresh.model, batch).unit.flatten()
ours = FGM(epsilon)(fresh.model, batch, lambda loss: loss.backward())
fresh.model.zero_grad()
print("padded places:", int((batch["attention_mask"] == 0).sum()),
      " moved among them:", int((delta[batch["attention_mask"] == 0] != 0).sum()))
print("size of each row's change / its unit:",
      [round(float(size), 3) for size in delta.flatten(1).norm(dim=1) / unit])
print("the loss rises:", bool(moved > clean))
print("FGM of the package, the same loss:", torch.allclose(ours, (clean + moved) / 2, rtol=1e-4))
print("weights exactly as before:", model_digest(fresh.model) == before)

# %% [markdown]
# ### How far is ε?
#
# Beside the distances between words. For some words: the nearest other entry of the vocabulary, and
# how far away it is, in units of the mean norm of a review's words.

# %%
vectors = fresh.model.get_input_embeddings().weight.detach()
words = [w for w in ("good", "bad", "film", "boring", "lovely", "slow", "not", "the")
         if w in fresh.tokenizer.get_vocab()]  # fmt: skip
ids = torch.tensor([fresh.tokenizer.convert_tokens_to_ids(word) for word in words])
distances = torch.cdist(vectors[ids], vectors) / unit.mean()
distances[torch.arange(len(ids)), ids] = torch.inf
nearest = distances.min(dim=1)
pd.DataFrame({"nearest": fresh.tokenizer.convert_ids_to_tokens(nearest.indices.tolist()),
              "away": nearest.values.numpy()}, index=words).round(2)  # fmt: skip

# %%
print("all of them lie outside the radius:", bool(nearest.values.min() > epsilon))
whole = [word for word in fresh.tokenizer.get_vocab() if word.isalpha() and len(word) > 3]
some = torch.tensor([fresh.tokenizer.convert_tokens_to_ids(word) for word in sorted(whole)[::50]])
far = torch.cdist(vectors[some], vectors) / unit.mean()
far[torch.arange(len(some)), some] = torch.inf
print(f"of {len(some)} other words: {(far.min(dim=1).values > epsilon).float().mean():.0%}")
length = int(batch["attention_mask"][0].sum())
print(f"a change spread evenly over the {length} tokens of the first review moves each by "
      f"{epsilon / length**0.5:.2f}")  # fmt: skip

# %% [markdown]
# So even where the whole radius goes to one of these words, no other word is reached, and spread
# over a review each token moves by a small part of it. **The ball around a review holds no review
# with one of these words replaced.** What adversarial training prepares for are not edits. It is a
# smoothness of the model between texts, and whether that carries over to edits is a question for
# measurements.

# %% [markdown]
# ## 4. PGD and FreeLB: more passes
#
# What a step does, with "backward" for a pass that gives the gradients of all weights:
#
# - **FGM**: forward and backward of the clean texts, which also gives $g$; the same at $x+\delta$.
# - **PGD**: $K$ times forward and an *inner* backward pass, for $g$ alone; then the weights learn
#   from the last place.
# - **FreeLB**: starts at a random place of the ball and makes $K - 1$ steps. The weights learn from
#   the mean of all $K$ places, and each backward pass but the last also gives the next step.
#
# A backward pass costs about two forward ones: the gradients of each layer's inputs, and those of
# its weights. An inner one needs only the first.

# %%
objectives = {"plain": classification, "FGM": FGM(epsilon), "VAT": VAT(epsilon),
              "PGD": PGD(epsilon, 0.75 * epsilon, steps),
              "FreeLB": FreeLB(epsilon, epsilon, steps)}  # fmt: skip
costs = pd.DataFrame({name: asdict(getattr(objective, "passes", Passes(1, 1)))
                      for name, objective in objectives.items()}).T  # fmt: skip
costs["cost / plain"] = (costs["forward"] + 2 * costs["backward"] + costs["inner_backward"]) / 3
costs.round(2)

# %% [markdown]
# (VAT is the subject of section 5.) Measured it is less, because the optimizer's own work is the
# same for all (section 6). Is the search worth its passes? PGD on the model of section 1, watched
# while it climbs:

# %% tags=["nbval-ignore-output"]
def climb(near, labels, step_size, steps):
    """The mean loss after each step of PGD."""
    at, found = near.zeros(), []
    for _ in range(steps):
        g = near.gradient(lambda z: losses.cross_entropy(z, labels, "sum"), at)
        at = losses.project(at + losses.fgm_perturbation(g, step_size), epsilon)
        found.append(losses.cross_entropy(near.logits(at), labels).item())
    return found


batch = review.batch(range(8))
near, labels = Neighbourhood(plain.model, batch), batch["labels"]
plain.model.requires_grad_(False)  # nothing but the search is wanted here
climbs = {f"α = {share:g} ε": climb(near, labels, share * epsilon, 4) for share in (0.25, 0.5, 1)}
plain.model.requires_grad_(True)
figures.steps_figure(climbs, losses.cross_entropy(near.logits(near.zeros()), labels).item())

# %% [markdown]
# With $\alpha = \varepsilon$ the first step is FGM. It finds a good part of the rise at once;
# several steps find more. Steps of a quarter need four to reach the edge at all: let $K\alpha$
# exceed $\varepsilon$. Whether a higher inner loss makes a better model is another question
# (section 8).

# %%
batch = small.batch(range(8))
near = Neighbourhood(fresh.model, batch)
once = near.delta(PGD(epsilon, step_size=epsilon, steps=1).worst(near, batch["labels"]))
print("one step with α = ε is FGM:", torch.allclose(once, delta, atol=1e-6))
nowhere = PGD(0.0, 0.1, 2).worst(near, batch["labels"])
print("radius 0 moves nothing:", bool((nowhere == 0).all()))

# %% [markdown]
# ## 5. VAT: no label needed
#
# The worst change of the loss needs the label. The largest change of the *answer* does not. Virtual
# adversarial training adds
#
# $$\lambda\,\mathrm{KL}\big(p(\cdot\mid x)\,\|\,p(\cdot\mid x+\delta)\big), \qquad
#   \delta = \arg\max_{\|\delta\|_2\le\varepsilon} \mathrm{KL}$$
#
# At $\delta = 0$ the divergence is 0 and has no slope, so a gradient there says nothing. Its
# curvature does: $\mathrm{KL} \approx \frac12\delta^\top H\delta$, and the worst $\delta$ lies
# along the first eigenvector of $H$. A small trial step in a random direction and one gradient
# there are an iteration of the power method towards it. So a step of VAT goes forward and backward
# through the clean texts, for each iteration forward and inner backward at the trial step, then
# forward and backward at $x+\delta$.

# %%
near = Neighbourhood(fresh.model, batch)
with torch.no_grad():
    answer = near.logits(near.zeros())


def divergence(logits):
    """KL from the answer to the texts as they are, summed over the rows."""
    return len(logits) * losses.distillation_loss(logits, answer, temperature=1.0)


anywhere = near.real * torch.randn(near.shape, generator=torch.Generator().manual_seed(0))
trial = losses.fgm_perturbation(anywhere, 0.1)
virtual = losses.fgm_perturbation(near.gradient(divergence, trial), epsilon)
g = near.gradient(lambda z: losses.cross_entropy(z, batch["labels"], "sum"), near.zeros())
with torch.no_grad():
    along_random = divergence(near.logits(losses.fgm_perturbation(anywhere, epsilon)))
    along_virtual = divergence(near.logits(virtual))
print("KL in VAT's direction is 20 times that in the random one:",
      bool(along_virtual > 20 * along_random))
cosine = torch.cosine_similarity(virtual.flatten(1), g.flatten(1)).abs()
print("cosine of VAT's direction and the loss's gradient, all rows above 0.9:",
      bool((cosine > 0.9).all()))  # fmt: skip

# %% [markdown]
# With two classes the answer is one number, so there is one direction in which it changes fastest.
# FGM and VAT find the same line; FGM takes the end that is bad for the label, VAT either. With more
# classes they differ.
#
# Rows without labels can join. In a batch of `WithUnlabelled` their label is -100, which the
# cross-entropy leaves out and the divergence does not ask for:

# %%
some = data.SentimentDataset(rows["text"][:8], rows["label"][:8], fresh.tokenizer, max_length)
others = splits["validation"]["text"][:40]
unlabelled = data.SentimentDataset(others, [0] * len(others), fresh.tokenizer, max_length)
mixed = WithUnlabelled(some, unlabelled, ratio=3)  # the zeros are never looked at
together = mixed.batch(mixed.batches_of_epoch(8, seed, 0)[0])
print("labels of one batch:", together["labels"].tolist())
only = {key: value[together["labels"] == -100] for key, value in together.items()}
loss = VAT(epsilon)(fresh.model, only, lambda loss: loss.backward())
fresh.model.zero_grad()
print("rows without a label give a loss:", bool(loss > 0))

# %% [markdown]
# ## 6. Train with each
#
# The same reviews, the same number of steps, the same seed; only the objective differs. All go on
# from the model of section 1 for one more epoch, the plain one too. (From the pretrained weights
# these few steps are not enough: the constant answer is the smoothest of all, and with this radius
# FGM had not left it after forty steps when we tried. Section 8 comes back to that.)

# %% tags=["nbval-ignore-output"]
trained, cost = {}, {}
for name in methods:
    trained[name], cost[name] = train(objectives[name], epochs=1, weights=plain.model.state_dict())
pd.DataFrame({"seconds": cost}).assign(
    times=lambda table: table["seconds"] / cost[methods[0]]
).round(1)

# %% [markdown]
# First the thing they train for: the loss in the ball, on test reviews. The search on each model is
# PGD with six steps, a stronger one than any of them trained with.

# %% tags=["nbval-ignore-output"]
batch = review.batch(range(8))
ball = {}
for name, loaded in trained.items():
    near = Neighbourhood(loaded.model, batch)
    worst = PGD(epsilon, epsilon / 2, steps=6).worst(near, batch["labels"])
    with torch.no_grad():
        ball[name] = {place: losses.cross_entropy(near.logits(at), batch["labels"]).item()
                      for place, at in (("clean", near.zeros()), ("worst", worst))}  # fmt: skip
pd.DataFrame(ball).T.assign(rise=lambda table: table["worst"] - table["clean"]).round(2)

# %% [markdown]
# Then the changes of section 1, which are none that they trained for. Each model is compared with
# the first on the same rows, by McNemar's test.

# %% tags=["nbval-ignore-output"]
measured = {name: robustness.robustness(robustness.predictor(loaded, max_length), test["text"],
                                        test["label"], pairs, seed=seed)
            for name, loaded in trained.items()}  # fmt: skip
table = robustness.robustness_table(measured)
table[["measurement", "model", "n", "accuracy", "low", "high"]].round(2)

# %% tags=["nbval-ignore-output"]
for name, line in list(measured.items())[1:]:
    for change, mine in line.items():
        result = metrics.paired_test(mine.correct, measured[methods[0]][change].correct)
        low, high = (100 * end for end in result["difference_ci95"])
        print(f"{change}: {name} minus {methods[0]} {100 * result['difference']:+.0f} points "
              f"({low:+.0f} to {high:+.0f}), {'' if result['resolved'] else 'not '}resolved")

# %% [markdown]
# One small training each, one seed, a hundred texts: a line that says "resolved" speaks of these
# very models. What can be seen here is the mechanism. Whether it helps is section 8's question.

# %% [markdown]
# ## 7. An attack with words
#
# Nobody sends embeddings to a model. An attacker who sees only probabilities can replace words:
# rank the words by how far the label's probability falls without them, put a similar word in the
# place of the first, and go on until the answer is wrong or the **budget** is spent, a number of
# words and of questions to the model. This is a plain form of TextFooler (Jin et al. 2020).
#
# Similar words: the nearest ones in the embeddings of the model before training.

# %%
own = [("The acting is good, the story is strong and the songs are lovely. A clever ending.", 1),
       ("A beautiful film with great actors, and I enjoyed each scene of it.", 1),
       ("The story is weak, the jokes are bad and the acting is terrible. A boring film.", 0),
       ("A slow, silly film with poor dialogue, and I hated the ending.", 0)]
texts = test["text"][:attacked]
candidates = synonym_table([*(text for text, _ in own), *texts], fresh.tokenizer, vectors)
for word in ("acting", "story", "songs", "lovely", "clever", "slow", "boring", "scene"):
    print(f"{word}: {', '.join(candidates.get(word, ['none']))}")

# %% [markdown]
# Read them as a reader would. Some are synonyms ("story", "tale"); some are other forms of the
# word, which break the grammar; some are neither: "singers" are no "songs". Words of opposite
# meaning are neighbours in any embedding. So a word on a short list of praise is replaced only by
# others of that list, the same for blame, a word on neither only by such a word, and "not" never.
# The lists are not complete, and nobody has read the changed texts. **An accuracy under such an
# attack is an accuracy on texts whose label probably stayed.**
#
# The attack on one of the four sentences, the one that the first model has right with the least
# confidence. Of each round of questions, the three with the lowest probability:

# %% tags=["nbval-ignore-output"]
predict = robustness.predictor(trained[methods[0]], max_length)
at_label = predict([text for text, _ in own])[range(len(own)), [label for _, label in own]]
sentence, label = own[int(np.where(at_label > 0.5, at_label, 2).argmin())]
asked = []


def watched(texts):
    """The model's answers, and a note of each question."""
    answers = predict(texts)
    asked.append(pd.DataFrame({"p": answers[:, label].round(3), "text": texts}))
    return answers


attack = substitution_attack(watched, [sentence], [label], candidates, Budget(words=3))[0]

# %% tags=["nbval-ignore-output"]
def round_name(text):
    """What a round asks, by one of its texts: the attack begins with the text as it is."""
    if text == sentence:
        return f"label {label}"
    shorter = len(WORD.findall(text)) < len(WORD.findall(sentence))
    return "without a word, the lowest" if shorter else "with a replacement, the lowest"


for questions in asked:
    print(round_name(questions["text"][0]))
    for _, (p, text) in questions.sort_values("p")[:3].iterrows():
        print(f"   p {p:.3f}  {text}")

# %% tags=["nbval-ignore-output"]
print({"right before": attack.correct_before, "flipped": attack.flipped,
       "questions": attack.queries})  # fmt: skip
print("changes:", ", ".join(f"{word} → {new}" for word, new in attack.changes))

# %% [markdown]
# ### Accuracy against the budget
#
# The attack replaces its words one after the other, in an order that does not depend on how many
# more it may replace. So one run with four words, and at most 100 questions a text, tells the
# accuracy for every smaller number of words. The rows are few. The bars belong to each model alone;
# whether two models differ is a question for the paired test on the same rows, and so few rows
# seldom answer it.

# %% tags=["nbval-ignore-output"]
def held(loaded, most=4):
    """How many texts stay right with 0, 1, … words replaced."""
    attacks = substitution_attack(robustness.predictor(loaded, max_length), texts,
                                  test["label"][:attacked], candidates, Budget(most, 100))
    return [sum(a.correct_before and not (a.flipped and len(a.changes) <= words) for a in attacks)
            for words in range(most + 1)]  # fmt: skip


curves = {name: held(loaded) for name, loaded in trained.items()}
figures.budget_figure(curves, len(texts))

# %% [markdown]
# ## 8. On thousands of reviews
#
# Now the question of this lesson, where it can be answered: `minilm` on 4,000 IMDB reviews,
# plainly, with FGM and with FreeLB ($K = 2$, $\alpha = \varepsilon$); plainly with twice the epochs
# as well, because by section 4's count that is what the same time could buy; and two models that
# count words and read the whole of each review. It was run once and kept:

# %%
record = stored("adversarial-imdb-minilm")
lines, about = record.lines, record.about
settings = about["settings"]
print(settings["dataset"]["name"], f"{settings['max_length']} tokens,",
      f"{settings['n_test']:,} test reviews")
kept = pd.DataFrame([{key: line.get(key) for key in ("method", "seed", "n", "epochs", "steps",
                                                     "train_s")} for line in lines])  # fmt: skip
kept.map(lambda value: "" if pd.isna(value) else
         f"{value:,.0f}" if isinstance(value, float) else value)  # fmt: skip

# %% [markdown]
# The radius was chosen before, in one run of each radius and method, on 1,000 validation rows that
# no result uses. The lowest loss is no good rule here: a radius of 0 is plain training, so it would
# tend to no radius at all. Taken was the largest whose loss is within 0.01 nats of the lowest.
#
# It is a fifth of section 6's. With that one, from pretrained weights and in one pass over 4,000
# reviews, neither method left the constant answer: the loss is that of a coin, $\log 2$.

# %%
tried = pd.DataFrame([rate | {"epsilon": rate["settings"]["epsilon"]} for rate in record.rates])
tried.pivot(index="epsilon", columns="method", values=["loss", "accuracy"]).round(3)

# %%
figures.record_figure(lines)

# %% [markdown]
# - **typos** and **dropped words**: test reviews changed by a program, as in section 1;
# - **under attack**: the attack of section 7 with at most 3 words and 100 questions a text, on 100
#   of the test reviews;
# - **expert edits**: reviews that experts edited until the verdict was the opposite one (Gardner et
#   al. 2020): the accuracy on the edited texts, and both members right. The originals stand in
#   IMDB's training split, 18 of the 100 among our 4,000 reviews, so the edited texts give the fair
#   number, and "both right" flatters all models a little. And where a review has more than 128
#   tokens, its middle is not read, where some of the edits are;
# - **built-in pairs**, from all three splits (none is trained on there), and **negation probes**:
#   far from the training reviews.
#
# The same as differences from plain training, row by row on the same rows:

# %%
present = [name for name in figures.LOOKS if any(line["method"] == name for line in lines)]
tuned = [name for name in ("fgm", "freelb", "plain_longer") if name in present]
figures.difference_figure(lines, tuned, "plain")

# %%
def verdicts(method, rival):
    """One line a measurement: the mean difference, and whether each seed resolves it."""
    print(f"{figures.LOOKS[method][0]} minus {figures.LOOKS[rival][0]}, in points:")
    for name in figures.measurements(lines):
        tests = figures.paired(lines, method, rival, name)
        if tests:
            shown = {1: "better", -1: "worse", 0: "not resolved"}[compare.agreed(tests)]
            mean = 100 * np.mean([test["difference"] for test in tests])
            print(f"{mean:+6.1f}  {figures.TITLES.get(name, name)}: {shown}")


for method in tuned:
    verdicts(method, "plain")

# %% [markdown]
# "Better" and "worse" stand where every seed's own test says so. Of twenty tests about one resolves
# by chance, so a single one among many is weak evidence; that three seeds agree is stronger.
#
# Some questions to the record, with their answers:

# %%
adversarial = [name for name in ("fgm", "freelb") if name in present]
for method in adversarial:
    for rival in ("plain", "plain_longer"):
        better = [figures.TITLES.get(name, name) for name in figures.measurements(lines)
                  if compare.agreed(figures.paired(lines, method, rival, name)) == 1]  # fmt: skip
        print(f"{figures.LOOKS[method][0]} better than {figures.LOOKS[rival][0]}, resolved:",
              ", ".join(better) or "nowhere")  # fmt: skip

# %%
shown = ("clean", "typos 10%", "contrast, edited texts", "contrast, both right")
pd.DataFrame({figures.LOOKS[method][0]: {figures.TITLES[name]: figures.accuracy(lines, method, name)
                                         for name in shown} for method in present}).T.round(3)

# %% [markdown]
# **Where adversarial training cannot be expected to help**: a small move in embedding space is no
# small edit of meaning. The training asks that the answer stay the same in a ball, and that ball
# reached none of the words that we tried in place of another (section 3). A contrast pair asks for
# the opposite: that the answer *change* with a few words. Nothing in the objective speaks of that,
# and a smoother model may even see less of it. What would: training on such pairs.
#
# Typos lie in between. A misspelled word is cut into other tokens, so its embeddings are not near
# the old ones either; what can help is a model that leans less on single tokens. The direct remedy
# is to train on texts with typos.

# %% [markdown]
# ## Summary
#
# - A right answer says little about its neighbours. Measure them: changed texts, and pairs of which
#   both members have to be right.
# - To first order the worst small change goes along the gradient; where the loss bends, several
#   steps find a worse one. Random noise of the same size does not find it.
# - By our count a step of FGM costs two plain ones, one of FreeLB $K$, one of PGD $(2K + 3)/3$.
#   Give plain training the same time before you praise them.
# - Test an implementation: the radius of each row, padding, the weights, radius 0.
# - A ball in embedding space is no set of edited texts: most words' nearest neighbours lie outside
#   it. What adversarial training does for edits has to be measured on edits.
# - Under attack: say the budget, count only rows that were right before, and read the changed
#   texts.

# %% [markdown]
# ## Exercises
#
# Write these yourself in [`exercises/09_adversarial.ipynb`](exercises/09_adversarial.ipynb): there
# each function is a stub, with hints and a check that names your mistake. Here they stand solved;
# the solutions are folded, so open one when you have tried. The last two are "spot the flaw" labs.

# %% tags=["exercise-setup"]
import re

import torch

from tutorkit.checks import lesson_09

# %% [markdown] tags=["exercise"]
# ### Exercise 1: one step of FGM
#
# **Goal**: write the worst change of each row of a batch, to first order.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `worst_change(gradient, mask, unit, epsilon)`: (B, T, D), (B, T), (B,), a number →
# (B, T, D)
#
# Row $b$ gets $\varepsilon\,u_b\,g/\|g\|_2$ with $u_b$ its `unit` and $g$ its gradient on real
# tokens, where `mask` is 1; padding gets 0, whatever the gradient says there. A row without any
# gradient gets 0.

# %% tags=["solution"] jupyter={"source_hidden": true}
def worst_change(gradient, mask, unit, epsilon):
    """FGM's change of each row.

    gradient: (B, T, D) of the loss; mask: (B, T), 1 on real tokens; unit: (B,); epsilon: a number.
    Returns (B, T, D).
    """
    ### BEGIN SOLUTION
    g = gradient * mask[:, :, None]
    length = g.pow(2).sum(dim=(1, 2), keepdim=True).sqrt()
    return epsilon * unit[:, None, None] * g / length.where(length > 0, 1)
    ### END SOLUTION

# %% tags=["check"]
lesson_09.worst_change.check(worst_change)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: back onto the ball
#
# **Goal**: write the projection that PGD and FreeLB make after each step.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `onto_ball(delta, epsilon)`: (B, T, D), a number → (B, T, D)
#
# For each row the nearest change with $\|\delta\|_2 \le \varepsilon$, the length taken over all its
# entries.

# %% tags=["solution"] jupyter={"source_hidden": true}
def onto_ball(delta, epsilon):
    """Each row's nearest point in the ball of radius epsilon.

    delta: (B, T, D); epsilon: a number above 0. Returns (B, T, D).
    """
    ### BEGIN SOLUTION
    length = delta.pow(2).sum(dim=(1, 2), keepdim=True).sqrt()
    return delta * (epsilon / length.clamp(min=epsilon))
    ### END SOLUTION

# %% tags=["check"]
lesson_09.onto_ball.check(onto_ball)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: scores of pairs
#
# **Goal**: compute what pairs tell that single texts do not.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `pair_scores(predictions, labels)`: (P, 2), (P, 2) → (3,) float64
#
# The share of texts that are right, the share of pairs with both members right, and the share of
# pairs whose members got the same answer. The labels of a pair differ.

# %% tags=["solution"] jupyter={"source_hidden": true}
def pair_scores(predictions, labels):
    """Shares of texts right, of pairs right, and of pairs with one answer for both.

    predictions, labels: (P, 2), whole numbers 0 or 1. Returns (3,) in float64.
    """
    ### BEGIN SOLUTION
    right = predictions == labels
    same = predictions[:, 0] == predictions[:, 1]
    return torch.stack([right.double().mean(), right.all(dim=1).double().mean(),
                        same.double().mean()])  # fmt: skip
    ### END SOLUTION

# %% tags=["check"]
lesson_09.pair_scores.check(pair_scores)

# %% [markdown]
# Three ways to know nothing, and their scores. The first number is a half for all three. The others
# tell a model that answers each text by chance from one that gives both members of a pair the same
# answer; how it comes to that answer they can't tell:

# %%
coin = torch.Generator().manual_seed(0)
truth = torch.tensor([[0, 1]] * 100_000)
guesses = {"always the same": torch.ones_like(truth),
           "a coin for each pair": torch.randint(2, (100_000, 1), generator=coin).expand(-1, 2),
           "a coin for each text": torch.randint(2, truth.shape, generator=coin)}  # fmt: skip
for name, guess in guesses.items():
    print(f"{name}: {[round(x, 2) for x in pair_scores(guess, truth).tolist()]}")

# %% [markdown] tags=["exercise"]
# ### Exercise 4: how often through the model
#
# **Goal**: count the passes of a step of each method.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `passes(method, steps)`: a name, a whole number → a tuple of three whole numbers
#
# The names are "FGM", "PGD", "FreeLB" and "VAT"; `steps` is $K$, for VAT the iterations of the
# power method, and FGM has no use for it. The three numbers: forward passes, backward passes that
# give the gradients of the weights, and inner ones for the embeddings alone. As in section 4: PGD
# trains on the last place only. Count a backward pass for each forward pass that the weights learn
# from, also where code would add the losses first. VAT's one pass over the clean texts gives both
# $p(x)$ and the loss of the labels.

# %% tags=["solution"] jupyter={"source_hidden": true}
def passes(method, steps):
    """Forward, backward and inner backward passes of a step.

    method: "FGM", "PGD", "FreeLB" or "VAT"; steps: K. Returns a tuple of three whole numbers.
    """
    ### BEGIN SOLUTION
    return {
        "FGM": (2, 2, 0),
        "PGD": (steps + 1, 1, steps),
        "FreeLB": (steps, steps, 0),
        "VAT": (steps + 2, 2, steps),
    }[method]
    ### END SOLUTION

# %% tags=["check"]
lesson_09.passes.check(passes)

# %% [markdown] tags=["exercise"]
# ### Exercise 5: how many typos
#
# **Goal**: say what a rate of typos does to a text before any is made.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `expected_typos(texts, rate)`: a list of N texts, a number → (N, 2) float64
#
# A word is an unbroken run of the letters A to Z, in either case: "wouldn't" is "wouldn" and "t".
# Each word of four letters or more is misspelled with the chance `rate`, independently of the
# others. For each text: the expected number of typos, and the chance that it stays as it is.

# %% tags=["solution"] jupyter={"source_hidden": true}
def expected_typos(texts, rate):
    """Expected typos of each text, and the chance that there is none.

    texts: N texts; rate: a number in 0…1. Returns (N, 2) in float64.
    """
    ### BEGIN SOLUTION
    counts = [len(re.findall(r"[A-Za-z]{4,}", text)) for text in texts]
    return torch.tensor([[n * rate, (1 - rate) ** n] for n in counts], dtype=torch.float64)
    ### END SOLUTION

# %% tags=["check"]
lesson_09.expected_typos.check(expected_typos)

# %% [markdown]
# On the test reviews, beside what `typos` does to them at the rate of the measurements. So "10 % of
# typos" still leaves some short texts exactly as they were:

# %%
expected = expected_typos(test["text"], 0.1)
changed = [typos(text, 0.1, np.random.default_rng((7, i))) for i, text in enumerate(test["text"])]
same = np.mean([a == b for a, b in zip(changed, test["text"], strict=True)])
print(f"expected typos a text: {expected[:, 0].mean():.2f}; texts as they were: expected "
      f"{expected[:, 1].mean():.3f}, in one draw {same:.3f}")  # fmt: skip

# %% [markdown] tags=["exercise"]
# ### Exercise 6: spot the flaw, what an attack did
#
# **Goal**: report an attack so that no row counts for what it is not.
#
# A report attacks all rows of a test set, those that are wrong as they stand included. It gives the
# accuracy after the attack as "accuracy under attack", and one minus that as "success rate of the
# attack". A model that was wrong on a third of the rows already makes every attack look strong; and
# a replaced word can turn a wrong answer into a right one by accident.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `attack_report(before, after)`: (N,) bool, (N,) bool → (3,) float64
#
# Row $i$ is right as it stands where `before[i]`, and right after the attack where `after[i]`.
# Return the clean accuracy, the accuracy under attack (right before and still right, as a share of
# all rows), and the success rate: of the rows that could be flipped, the share that was.

# %% tags=["solution"] jupyter={"source_hidden": true}
def attack_report(before, after):
    """Clean accuracy, accuracy under attack, and the attack's success rate.

    before, after: (N,) bool, some of `before` true. Returns (3,) in float64.
    """
    ### BEGIN SOLUTION
    held = before & after
    return torch.stack([before.double().mean(), held.double().mean(),
                        (before & ~after).sum().double() / before.sum()])  # fmt: skip
    ### END SOLUTION

# %% tags=["check"]
lesson_09.attack_report.check(attack_report)

# %% [markdown]
# In the record the attack left wrong rows alone, as `substitution_attack` does:

# %%
for name in present:
    line = figures.runs(lines, name)[0]
    now, was = figures.answers(line, "under attack"), line["measured"].get("under attack")
    if now is not None:
        print(f"{figures.LOOKS[name][0]}: clean {was['clean']:.3f}, under attack {now.mean():.3f}, "
              f"success rate {1 - now.mean() / was['clean']:.3f} (n = {len(now)})")

# %% [markdown] tags=["exercise"]
# ### Exercise 7: spot the flaw, a change that leaks
#
# **Goal**: find out how far each row is really moved by a recipe that many copy.
#
# The recipe: after the clean backward pass take the gradient $G$ of the embedding *table* (V, D),
# add $\varepsilon\,G/\|G\|_2$ to the table, with the length of the whole of $G$, run the batch
# again, and put the table back. Row $v$ of $G$ is the sum of the gradients at all places of the
# batch that hold the word $v$, and each of these places then moves by row $v$ of the step.
#
# **Difficulty**: ●●● **Minutes**: 20
#
# **Signature**: `row_sizes(input_ids, mask, gradient, epsilon)`: (B, T), (B, T), (B, T, D), a
# number → (B,)
#
# `gradient` is that at each place, 0 on padding. Return the length of what is added to the real
# tokens of each row, over all their entries.

# %% tags=["solution"] jupyter={"source_hidden": true}
def row_sizes(input_ids, mask, gradient, epsilon):
    """How far the recipe moves each row.

    input_ids, mask: (B, T); gradient: (B, T, D); epsilon: a number. Returns (B,).
    """
    ### BEGIN SOLUTION
    G = gradient.new_zeros(int(input_ids.max()) + 1, gradient.shape[2])
    G.index_add_(0, input_ids.flatten(), gradient.flatten(0, 1))
    step = epsilon * G / G.pow(2).sum().sqrt()
    moved = step[input_ids] * mask[:, :, None]
    return moved.pow(2).sum(dim=(1, 2)).sqrt()
    ### END SOLUTION

# %% tags=["check"]
lesson_09.row_sizes.check(row_sizes)

# %% [markdown]
# On eight reviews and a model before training. The first review alone, and the same review among
# the other seven: what it learns from depends on its neighbours. And even alone it is not moved by
# ε, because a word that comes twice moves twice.

# %%
batch = small.batch(range(8))
near = Neighbourhood(fresh.model, batch)
g = near.gradient(lambda z: losses.cross_entropy(z, batch["labels"], "sum"), near.zeros())
g = g / near.unit  # by the embeddings themselves, not by multiples of the unit
sizes = row_sizes(batch["input_ids"], batch["attention_mask"], g, epsilon)
first_row = row_sizes(batch["input_ids"][:1], batch["attention_mask"][:1], g[:1], epsilon)
print(f"ε = {epsilon}; the first review alone: {first_row.item():.2f}, "
      f"in the batch: {sizes[0].item():.2f}")
print(f"in the batch: the largest change is {sizes.max() / sizes.min():.1f} times the smallest")

# %% [markdown]
# ## Further reading
#
# - I. Goodfellow, J. Shlens, C. Szegedy, *Explaining and Harnessing Adversarial Examples*, ICLR
#   2015: why a linear model has them too.
# - T. Miyato, A. Dai, I. Goodfellow, *Adversarial Training Methods for Semi-Supervised Text
#   Classification*, ICLR 2017: FGM and VAT on word embeddings, on IMDB.
# - A. Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018: PGD
#   and the min-max problem. C. Zhu et al., *FreeLB*, ICLR 2020. T. Miyato et al., *Virtual
#   Adversarial Training*, TPAMI 2018.
# - M. Gardner et al., *Evaluating Models' Local Decision Boundaries via Contrast Sets*, Findings of
#   EMNLP 2020: the edited IMDB reviews, and both members right.
# - D. Jin et al., *Is BERT Really Robust?*, AAAI 2020: the attack. J. X. Morris et al.,
#   *Reevaluating Adversarial Examples in Natural Language*, Findings of EMNLP 2020: how many of
#   such examples keep their meaning when people read them.
# - D. Pruthi, B. Dhingra, Z. C. Lipton, *Combating Adversarial Misspellings with Robust Word
#   Recognition*, ACL 2019: typos.
