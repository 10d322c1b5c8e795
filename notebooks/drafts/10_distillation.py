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
# # Distillation: a small model taught by a larger one
#
# A large model is good and slow, a small one fast and less good. Distillation trains the small one,
# the **student**, to say what the large one, its **teacher**, says: not only which class, but how
# sure it is. This lesson builds the loss and looks at its temperature, keeps the teacher's logits
# on disk, trains students of different kinds alone and taught, matches hidden states and attention
# layer by layer, and measures what it was worth: size, latency, accuracy, agreement.
#
# **After this lesson you can** write the loss of distillation and say why it has a factor $T^2$,
# teach a student whose tokenizer is not the teacher's, measure latency so that others can trust it,
# and tell whether teaching helped or the difference is luck.
#
# **Time**: under two minutes to run on two CPU cores; two hours to read, the exercises not counted.
# **Needs**: the installed package; the weights of `minilm` (about 90 MB) are fetched once and kept.
# The loss and its gradient are derived in [`01_math`](01_math.ipynb), section 6; the training loop
# is that of [`04_training`](04_training.ipynb).

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
model = "minilm"  # the teacher: a BERT, for its layers are copied and matched
dataset = "reviews"  # where the texts come from
labelled = 400  # labelled texts to learn from
answered = 200  # test texts, at most
max_length = 64  # tokens a text
least_steps = 48  # optimizer steps of a run, or two epochs where that is more
temperature = 2.0  # T of the soft targets
alpha = 0.9  # the teacher's weight; 1 - alpha is that of the labels
seeds = [0, 1]  # of the students: order of rows, dropout, and what is drawn anew

# %%
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tutorkit import comparison, data, losses, matching, sources, students, studies, training
from tutorkit import distillation_figures as figures
from tutorkit.distillation import SoftTargets, teacher_logits
from tutorkit.models import count_parameters, load_model, non_embedding_parameters
from tutorkit.studies import compare
from tutorkit.studies.distillation import RATES
from tutorkit.transfer import STRATEGIES, draw, use
from tutorkit.widgets import explore

splits = sources.load_splits(dataset, seeds[0])
test = data.take_rows(splits["test"], answered, 0, "test")
unseen = data.take_rows(splits["validation"], 100, 0, "validation")
rows = draw(splits["train"], labelled, 0)
print({"to learn from": len(rows), "unseen": len(unseen), "test": len(test)})

# %% [markdown]
# ## 1. What a teacher knows that a label does not
#
# A label says "positive" of a rave and of a review that praises the music and little else. A model
# that was trained on such labels gives them different probabilities. That is what a student can
# learn from it and not from the label. Our teacher is fine-tuned as in
# [`06_transfer`](06_transfer.ipynb): everything trains.
#
# The **softened probabilities** at temperature $T$ are $\operatorname{softmax}(v/T)$ of the logits
# $v$. Their **entropy** $-\sum_c p_c \log p_c$, in nats as the logarithm is the natural one, is
# what they leave open: 0 for a certain answer, $\log 2 \approx 0.69$ for a toss of a coin.

# %% tags=["nbval-ignore-output"]
way = STRATEGIES["everything"]
made = use(way, model, rows, unseen, seeds[0], max_length, least_steps=least_steps)
teacher = made.loaded
teacher.model.zero_grad()  # of the last step: they would only take memory
confidence, logits = {}, {}
seen = rows.select(range(min(100, len(rows))))
for name, part in (("rows it was trained on", seen), ("unseen rows", unseen)):
    logits[name] = v = teacher_logits(teacher, part["text"], max_length).values
    p = figures.softened(v, 1.0)
    right = p.argmax(axis=1) == np.array(part["label"])
    confidence[name] = {"right": right.mean(), "sure": p.max(axis=1).mean(),
                        "entropy, T = 1": figures.mean_entropy(p),
                        "entropy, T = 2": figures.mean_entropy(figures.softened(v, 2.0))}
pd.DataFrame(confidence).T.round(2)

# %% [markdown]
# "Sure" is the mean of the larger probability. On rows that it was trained on a teacher is usually
# right more often than elsewhere, and sure of it: part of that is memory, and there it says little
# more than the label (exercise 6). On unseen rows it may be surer than it is right. (Of 100 texts a
# share is known to eight or nine points.) The softened probabilities of the unseen rows:

# %% tags=["nbval-ignore-output"]
figures.softened_figure(logits["unseen rows"], unseen["label"])

# %% [markdown]
# At $T = 1$ many texts lie towards 0 or 1. There differences are hidden: 0.99 and 0.999 are the
# same to the eye and nearly the same to a loss, though the logits behind them differ by 2.3. A
# higher $T$ moves the texts away from the ends; one that is very sure leaves its end last. At a
# very high one all lie near ½: their order is kept, in small differences. Move it:

# %%
explore(figures.SoftenedAnswers(logits["unseen rows"], unseen["label"]))

# %% [markdown]
# The texts behind three places of the picture:

# %% tags=["nbval-ignore-output"]
order = np.argsort(p[:, 1]).tolist()
places = {"lowest": order[0], "middle": order[len(order) // 2], "highest": order[-1]}
for name, i in places.items():
    text = unseen["text"][i]
    print(f"{name}: {text[:110]} {'…' * (len(text) > 110)}")
pd.DataFrame({
    f"{name}, label {unseen['label'][i]}":
        {f"T = {T}": figures.softened(v[[i]], T)[0, 1] for T in (1, 2, 5, 10)}
    for name, i in places.items()
}).T.round(2)  # fmt: skip

# %% [markdown]
# With two classes a row of soft targets is one number: how sure. With more classes it also says
# which wrong classes are nearly right, and there is more to learn: Hinton et al. tell of students
# that recognise a digit which they were never shown. Expect less of a yes-or-no task.

# %% [markdown]
# ## 2. The loss, and why it has T²
#
# For the student's logits $z$, the teacher's $v$ and the label $y$ (Hinton et al. 2015):
#
# $$L = \alpha\,T^2\,\mathrm{KL}\big(p^{(T)}(v)\,\|\,p^{(T)}(z)\big)
#   + (1-\alpha)\,\operatorname{CE}(z, y) \qquad p^{(T)}(z) = \operatorname{softmax}(z/T)$$
#
# averaged over rows. The label's part has no temperature. Lesson 01, section 6, has the gradient of
# the first part, $\frac{\alpha T}{N}\big(p^{(T)}(z) - p^{(T)}(v)\big)$, and shows that $T^2$ keeps
# its size. What matters in training is the balance of the two parts:

# %%
generator = torch.Generator().manual_seed(0)
z, v = 2 * torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
y = v.argmax(dim=1)
of_labels = losses.cross_entropy_grad(z, y).norm()
balance = []
for T in (1, 2, 5, 10, 100):
    of_teacher = losses.distillation_grad(z, v, temperature=T).norm()
    bare = of_teacher / T**2
    balance.append([T, bare, of_teacher, of_labels, bare / of_labels, of_teacher / of_labels])
columns = ["T", "teacher, without T²", "teacher, with T²", "labels", "ratio without", "ratio with"]
pd.DataFrame(balance, columns=columns).set_index("T").map("{:.4f}".format)

# %% [markdown]
# Without $T^2$ a higher temperature takes the teacher's say away, and $\alpha$ would have to make
# up for it. With it the ratio stays of one size, so $\alpha$ and $T$ can be chosen apart from each
# other.
#
# **Three limits** say what the loss is made of. For $\alpha = 1$ and $T \to \infty$ it is a squared
# error of the centred logits, $\frac{1}{2NC}\sum\|(z-\bar z)-(v-\bar v)\|^2$. For $\alpha = 0$ it
# is plain classification. For $T = 1$, $\alpha = 1$ and a teacher that is certain it is the
# cross-entropy with the teacher's class as the label.

# %%
def centred(logits):
    return logits - logits.mean(dim=1, keepdim=True)


regression = (centred(z) - centred(v)).square().sum() / (2 * z.numel())
for T in (1, 10, 100, 1000):
    loss = losses.distillation_loss(z, v, temperature=T)
    print(f"T = {T:>4}: loss {loss:.4f}, centred logits {regression:.4f}")

# %%
certain = 1000 * torch.nn.functional.one_hot(y, 3).double()
limits = {
    "α = 0, T = 2: plain classification": (
        losses.distillation_loss(z, v, y, 2.0, alpha=0.0), losses.cross_entropy(z, y)),
    "α = 1, T = 1, a certain teacher: classification by its class": (
        losses.distillation_loss(z, certain, y, 1.0, alpha=1.0), losses.cross_entropy(z, y)),
    "T = 1: the gradient is p(z) - p(v), over N": (
        losses.distillation_grad(z, v, temperature=1.0), (z.softmax(1) - v.softmax(1)) / len(z)),
    "the student is the teacher: no gradient left": (
        losses.distillation_grad(v, v, temperature=2.0), torch.zeros_like(v)),
}  # fmt: skip
for name, (found, expected) in limits.items():
    print(f"{torch.allclose(found, expected)}: {name}")

# %% [markdown]
# The first limit has a meaning for two classes: the student regresses the difference of the
# teacher's two logits, its log-odds. Low temperatures look away from logits that are far below the
# largest; high ones take all of them equally seriously, noise included. Hinton et al. found 2.5 to
# 4 best for small students. It is a setting to be chosen on validation rows.

# %% [markdown]
# ## 3. The teacher's logits, computed once
#
# The teacher never changes, so what it says about a text has to be computed once, not in every
# epoch of every student. `teacher_logits` keeps it in a file whose name is a digest of all that
# decides the numbers: weights, tokenizer, texts in their order, lengths, precision. A **hook**, a
# function that PyTorch calls before a module runs, counts the texts that the teacher really reads:

# %%
folder, read_texts = tempfile.TemporaryDirectory(), []
kept = Path(folder.name)
hook = teacher.model.get_input_embeddings().register_forward_pre_hook(
    lambda module, ids: read_texts.append(len(ids[0]))
)


def ask(what, texts, length=max_length):
    """The teacher's logits for some texts; says what it took."""
    read_texts.clear()
    found = teacher_logits(teacher, texts, length, cache=kept)
    print(f"{what}: {sum(read_texts)} texts read, {len(list(kept.iterdir()))} files kept")
    return found


told = ask("first call", rows["text"])
again = ask("second call", rows["text"])
print("the same logits:", torch.equal(told.values, again.values))

# %% [markdown]
# Whatever decides what is computed gives another name, so that a stale file is not read. (Device,
# batch size and library versions, which may change the last digits, are left out.)

# %%
few = rows["text"][:8]
ask("eight of them", few)
ask("in another order", few[::-1])
ask("one word more", [*few[:-1], few[-1] + " Really."])
ask("fewer tokens", few, max_length // 2)
bias = teacher.model.classifier.bias.data
before = bias.clone()
bias += 0.001
ask("another teacher", few)
bias.copy_(before)
hook.remove()

# %% [markdown]
# For a run of five epochs over three seeds, a teacher that is asked anew reads each text fifteen
# times. The teacher reads a text as it is: augmented texts, or a teacher with dropout, would need
# another call each time, and are not what this file is for.

# %% [markdown]
# ## 4. Students
#
# Two kinds. A **transformer with fewer layers** keeps the embeddings and copies some layers, spread
# over the depth. A **bag of embeddings** takes the mean of a text's embeddings and puts a linear
# layer on it: it can't know the order of words. Both start from the fine-tuned teacher's weights:
# the transformer has all but the layers left out, the bag only the token embeddings, under a new
# linear layer. So a student that is called "alone" in section 5 has had weights from its teacher,
# and no more: the objective is all that differs.

# %%
made_of = {
    "2 layers": lambda seed: students.transformer_student(teacher, layers=2, seed=seed),
    "1 layer": lambda seed: students.transformer_student(teacher, layers=1, seed=seed),
    "bag of embeddings": lambda seed: students.bag_student(teacher, seed=seed),
}
sizes = {"teacher": (count_parameters(teacher.model)[0], non_embedding_parameters(teacher.model))}
for name, build in made_of.items():
    student = build(0)
    sizes[name] = (count_parameters(student.model)[0], non_embedding_parameters(student.model))
    print(f"{name}: {student.source.split(' (')[0]}")

# %%
figures.sizes_figure(sizes)

# %%
table = teacher.model.get_input_embeddings().weight
words, width = table.shape
print(f"{words:,} token ids × {width} numbers = {words * width:,} weights")
for name, (total, rest) in sizes.items():
    print(f"{name}: {rest:,} of {total:,} outside the tables, {(total - rest) / total:.1%} inside")

# %% [markdown]
# The embeddings dominate because there are as many vectors as token ids. They cost memory and
# hardly any time: a token looks up one row. So what has to be stored shrinks little while what has
# to be computed shrinks much, and both numbers belong in a table. Narrower embeddings, or a smaller
# vocabulary (section 7), shrink the first.

# %% [markdown]
# ## 5. Alone, and taught
#
# The same student, the same seeds, the same rows in the same order, the same number of steps. Once
# it learns from the labels, once from labels and soft targets. This is a small run, to show how it
# is done: a few hundred texts, and a teacher that is not very good on them. Section 8 has the large
# one, from which the learning rates are taken.

# %%
answer = {
    name: data.SentimentDataset(part["text"], part["label"], teacher.tokenizer, max_length)
    for name, part in (("train", rows), ("unseen", unseen), ("test", test))
}
of_teacher = training.evaluate(teacher.model, answer["test"]).probabilities
print({name: f"{len(part)} rows" for name, part in answer.items()})

# %% [markdown]
# A result is a line in the form of the stored record's, so that the same figures can show both:

# %% tags=["nbval-ignore-output"]
def line(student, taught, seed, loaded, found):
    """A result in the form of the stored record's."""
    said = found.argmax(axis=1)
    total, _ = count_parameters(loaded.model)
    return {"student": student, "taught": taught, "seed": seed, "n": len(rows),
            "accuracy": float((said == np.array(test["label"])).mean()),
            "agreement": comparison.agreement(said, of_teacher.argmax(axis=1))["share"],
            "n_parameters": total, "n_non_embedding": non_embedding_parameters(loaded.model),
            "predictions": "".join(map(str, said))}  # fmt: skip


own = [line("teacher", None, seeds[0], teacher, of_teacher)]
probabilities, trained = {("teacher", None, seeds[0]): of_teacher}, {"teacher": teacher}
{key: value for key, value in own[0].items() if key != "predictions"}

# %%
def plan(rate, seed):
    """The training of every student: as many steps for each."""
    epochs = max(2, -(-least_steps // -(-len(rows) // 16)))
    return training.TrainConfig(epochs=epochs, batch_size=16, learning_rate=rate, seed=seed)


def learn(name, taught, seed, student, rate, objective, sets=answer, trains=None, callbacks=()):
    """Train a student, score it once on the test rows, and keep both."""
    training.fit(trains or student.model, sets["train"], None, plan(rate, seed),
                 callbacks=callbacks, objective=objective)
    student.model.zero_grad()
    found = training.evaluate(student.model, sets["test"]).probabilities
    probabilities[name, taught, seed], trained[name] = found, student
    own.append(line(name, taught, seed, student, found))


print(plan(1e-4, 0).epochs, "epochs in batches of 16; learning rates:", RATES)

# %% [markdown]
# `fit` calls an **objective** with each batch and lowers what it returns; by default that is the
# cross-entropy. A batch carries the numbers of its rows. `SoftTargets` looks up the teacher's
# logits by them, so `told` has to be in the order of the training set.

# %% tags=["nbval-ignore-output"]
soft = SoftTargets(told, temperature, alpha)
objectives = {"alone": training.classification, "soft targets": soft}
for seed in seeds:
    for name, rate in RATES.items():
        for taught, objective in objectives.items():
            learn(name, taught, seed, made_of[name](seed), rate, objective)
pd.DataFrame(own)[["student", "taught", "seed", "accuracy", "agreement"]].round(3)

# %% tags=["nbval-ignore-output"]
test_labels = "".join(map(str, test["label"]))
figures.gain_figure(own, test_labels)

# %% [markdown]
# A bar is the interval of one pair of models over the test rows (a paired test, as in lesson 06).
# Where the bars cross 0, these rows don't say whether teaching helped. They are few, and the
# teacher is itself far from perfect here. What can be asked of a small run is whether the student
# comes closer to its teacher, for that is what the loss asks:

# %% tags=["nbval-ignore-output"]
closer = [
    [name, taught, np.mean([comparison.fidelity(of_teacher, probabilities[name, taught, seed])
                            for seed in seeds])]
    for name in RATES for taught in objectives
]  # fmt: skip
pd.DataFrame(closer, columns=["student", "taught", "KL from the teacher"]).round(3)

# %% [markdown]
# The divergence is an average over all rows and all probabilities, so it sees more than the share
# of equal answers. Still, with so few seeds and steps not even its direction is sure, and a student
# that is closer to a poor teacher need not be better. Section 8 has more of both.

# %% [markdown]
# ## 6. Hidden states and attention
#
# Logits are the last word of a teacher. TinyBERT (Jiao et al. 2020) also asks the student to build
# the same things on the way. With $n = g(m)$ the teacher's layer for the student's layer $m$, $H$
# hidden states and $A$ attention scores before the softmax:
#
# $$L_\text{hidden} = \sum_m \mathrm{MSE}\big(H^S_m W,\,H^T_{g(m)}\big) \qquad
#   L_\text{attention} = \sum_m \mathrm{MSE}\big(A^S_m,\,A^T_{g(m)}\big)$$
#
# $W$ is needed where the widths differ; here they don't. Padding is left out of both. The mapping
# is uniform, $g(m) = \lceil mL/M \rceil$ for $L$ layers of the teacher and $M$ of the student:

# %%
depth = len(teacher.model.bert.encoder.layer)
figures.mapping_figure(depth, students.every_kth(depth, 2))

# %% [markdown]
# `MatchedStudent` holds both models and `LayerMatching` is the objective: the two sums, the same
# for the embeddings, and the soft targets. The errors are read on unseen texts as the training goes
# on.

# %%
pupil = made_of["2 layers"](seeds[0])
matched = matching.MatchedStudent(pupil, teacher)
batch = answer["unseen"].batch(range(32))
names = {"hidden": "hidden states", "attention": "attention scores", "embeddings": "embeddings"}


@torch.no_grad()
def errors():
    """Mean square errors on unseen texts, summed over the student's layers."""
    on = next(matched.parameters()).device
    with training.eval_mode(matched):
        found = matched(batch["input_ids"].to(on), batch["attention_mask"].to(on), match=True)
    return {title: float(getattr(found, key).mean()) for key, title in names.items()}


print("layers:", matched.layers)

# %% tags=["nbval-ignore-output"]
read_at, falling = [0], [errors()]


def look(event, state):
    if event == "step" and state.step % 10 == 0:
        read_at.append(state.step)
        falling.append(errors())


objective = matching.LayerMatching(matched, targets=soft)
learn("2 layers", "soft targets and layers", seeds[0], pupil, RATES["2 layers"], objective,
      trains=matched, callbacks=[look])
falling = pd.DataFrame(falling, index=pd.Index(read_at, name="step"))
falling.round(3)

# %% tags=["nbval-ignore-output"]
figures.errors_figure(read_at, {name: falling[name].tolist() for name in falling})

# %% [markdown]
# The errors of the layers fall on texts that neither model was trained on: the student learns how
# the teacher works, and not only what it said of these rows. The embeddings are the teacher's own,
# so their error starts at 0, and training moves them a little. The attention scores are the largest
# term, so with equal weights they make up most of the sum. A rest stays: the run is short, and each
# layer of the student stands for several of the teacher's. The price: a teacher that can be looked
# into, the same tokenizer, and a forward pass of the teacher in every step, which no file of logits
# replaces.

# %% [markdown]
# ## 7. Other tokenizers, other labels
#
# Logits belong to texts. A student may cut the text in its own way, as long as row $i$ of both is
# the same text. Here a bag with the small vocabulary of `tiny`:

# %%
small = load_model("tiny", dict(teacher.model.config.id2label))
sentence = "The songs are lovely, the acting is wooden."
for name, loaded in (("teacher", teacher), ("student", small)):
    pieces = loaded.tokenizer.tokenize(sentence)
    print(f"{name}: {len(loaded.tokenizer):,} ids, {len(pieces)} tokens", pieces[:9])
bag = students.bag_student(small, dim=64, start="fresh")
print(f"its weights: {count_parameters(bag.model)[0]:,}")

# %% tags=["nbval-ignore-output"]
own_sets = {
    name: data.SentimentDataset(part["text"], part["label"], small.tokenizer, 2 * max_length)
    for name, part in (("train", rows), ("test", test))
}
for seed in seeds:
    for taught, objective in objectives.items():
        student = students.bag_student(small, dim=64, start="fresh", seed=seed)
        rate = 0.03  # drawn anew and narrow, it has further to go than the bag of section 5
        learn("bag, own tokens", taught, seed, student, rate, objective, own_sets)


pd.DataFrame(own)[-4:][["student", "taught", "seed", "accuracy", "agreement"]].round(3)

# %% [markdown]
# All gains so far. *resolved* is yes where the 95 % interval of the mean over seeds leaves 0 out.
# With fewer than three seeds that interval says nothing and is left empty; then it is yes only if
# the paired test of each seed finds a difference, all in the same direction.

# %% tags=["nbval-ignore-output"]
def tidy(table, digits):
    """Rounded, and empty where there is no number."""
    return table.round(digits).map(lambda value: "" if pd.isna(value) else value)


tidy(figures.gain_table(own, test_labels), 1)

# %% [markdown]
# What can't be done is refused before any step. Hidden states belong to tokens, so matching them
# needs one tokenizer. And column $c$ of the logits speaks of class $c$: a student with its classes
# in another order would learn the opposite of what the teacher says.

# %%
def refused(build):
    try:
        build()
    except ValueError as error:
        print("-", error)


turned = load_model("tiny", {0: "positive", 1: "negative"})
refused(lambda: matching.MatchedStudent(small, teacher))
refused(lambda: training.fit(turned.model, own_sets["train"], None, plan(1e-3, 0),
                             objective=soft))  # fmt: skip
refused(lambda: losses.distillation_loss(torch.zeros(4, 2), torch.zeros(4, 3)))

# %% [markdown]
# ## 8. What it was worth
#
# Four numbers, on the same test rows: size, time for one review on one core, accuracy, and how
# often the student says what the teacher says. The latency is the **median** and the **95th
# percentile** over reviews, for reviews differ in length and a service is judged by its slow
# answers. A review's time runs from text to probabilities, tokenizing included, without padding, on
# one core. The first round is not counted. Of the others each review keeps its shortest time, for
# other work on the machine can only add. So p95 says which reviews are slow, not how often the
# machine was busy. First the lesson's own models, timed on 20 reviews:

# %% tags=["nbval-ignore-output"]
speeds = {}
for name, loaded in trained.items():
    length = 2 * max_length if name == "bag, own tokens" else max_length
    predict_one = comparison.one_by_one(loaded, length)
    speeds[name] = comparison.latency(predict_one, test["text"][:20], repeats=3)
timed = [{"student": name, "latency": vars(found)} for name, found in speeds.items()]
figures.worth_figure(own + timed, max_length)

# %% [markdown]
# The same as a table, for the first seed. `kl` is the divergence from the teacher:

# %% tags=["nbval-ignore-output"]
contenders = [
    comparison.Contender(
        f"{entry['student']}: {entry['taught'] or 'labels'}", entry["n_parameters"],
        entry["n_non_embedding"], speeds[entry["student"]],
        probabilities[entry["student"], entry["taught"], entry["seed"]],
    )
    for entry in own if entry["seed"] == seeds[0]
]  # fmt: skip
tidy(comparison.compare(contenders, test["label"]), 3)

# %% [markdown]
# Agreement is not accuracy. Two models that are each right on 64 of 100 texts may agree on all of
# them or on as few as 28. Which rows the student shares with its teacher, right and wrong:

# %% tags=["nbval-ignore-output"]
y_test, said = np.array(test["label"]), of_teacher.argmax(axis=1)
shares = {}
for taught in objectives:
    student = probabilities["2 layers", taught, seeds[0]].argmax(axis=1)
    wrong = said != y_test
    shares[taught] = {"accuracy": (student == y_test).mean(), "agreement": (student == said).mean(),
                      "both right": ((student == y_test) & ~wrong).mean(),
                      "teacher's mistakes repeated": (student == said)[wrong].mean(),
                      "if unrelated": (student != y_test).mean()}  # fmt: skip
pd.DataFrame(shares).T.round(3)

# %% [markdown]
# With two classes a student whose mistakes have nothing to do with the teacher's would still repeat
# the share in the last column. What lies above it is shared: the same starting weights, or texts
# that are hard for both.
#
# ### One review at a time, or many at once?
#
# A batch shares work, so the time of a batch divided by its rows is usually shorter than what one
# review takes alone. It is the right number for a night's work and the wrong one for an answer that
# somebody waits for. And the gain of a small model is not the same in both:

# %%
def mean_ms(loaded, size, texts):
    """Milliseconds a review in batches of a size, tokenizing included; the better of two rounds."""
    def once():
        begun = time.perf_counter()
        read = data.SentimentDataset(texts, [0] * len(texts), loaded.tokenizer, max_length)
        training.evaluate(loaded.model, read, size, precision="fp32", device="cpu")
        return 1000 * (time.perf_counter() - begun) / len(texts)

    return min(once(), once())


# %% tags=["nbval-ignore-output"]
threads, texts = torch.get_num_threads(), unseen["text"][:50]
torch.set_num_threads(1)  # one core, as the latencies have
table = pd.DataFrame({name: {f"batches of {size}, ms": mean_ms(trained[name], size, texts)
                             for size in (1, 50)}
                      for name in ("teacher", "2 layers", "bag of embeddings")}).T  # fmt: skip
torch.set_num_threads(threads)
for column in list(table):
    table[column.split(",")[0] + ", speed-up"] = table.loc["teacher", column] / table[column]
table.round(2)

# %% [markdown]
# ### On IMDB
#
# To judge the method one needs a good teacher, many texts and many test rows. That takes hours, so
# it was run once and kept. The teacher is `minilm`, fine-tuned on the same reviews:

# %%
record = studies.stored("distillation-imdb")
lines, settings = record.lines, record.about["settings"]
environment = record.about["environment"]
runs = [entry for entry in lines if entry.get("taught") and "accuracy" in entry]
print(f"{settings['n_test']:,} test reviews, at most {settings['max_length']} tokens;",
      f"students learn from {settings['train_max_length']} tokens a review")
print(f"{len(runs)} students, seeds {sorted({entry['seed'] for entry in runs})},",
      f"learned from {runs[0]['n']:,} reviews")
print(environment["cpu"], f"{environment['cores']} cores,",
      f"{sum(entry['train_s'] for entry in runs) / 3600:.1f} hours of training")

# %% [markdown]
# Learning rates and temperature were chosen before, on validation rows that no result uses: the
# rates with the students alone, the temperature with the two-layer one, and both are used for all.
# $\alpha$ was not tried. The teacher reads more tokens of a review than the students learn from.
# The test rows chose nothing: a student that is picked by its test score has a score that is too
# good. What was tried:

# %%
tried = pd.DataFrame(record.rates)
print(f"{tried['n'].iloc[0]:,} training reviews, {tried['epochs'].iloc[0]} epoch,",
      f"{len(tried['predictions'].iloc[0]):,} validation reviews")
columns = ["student", "taught", "learning_rate", "temperature", "accuracy", "agreement"]
tidy(tried[columns], 4)

# %%
figures.worth_figure(lines, settings["max_length"])

# %%
worth = figures.worth_table(lines, settings["max_length"])
tidy(worth, 3)

# %% [markdown]
# Did teaching help? Each taught student against the same student alone, with the same seed:

# %%
figures.gain_figure(lines, settings["test_labels"])

# %%
gained = figures.gain_table(lines, settings["test_labels"])
tidy(gained, 2)

# %% [markdown]
# The aim of this project was a student with at least 97 % of the teacher's accuracy at
# four times its speed or more, one review at a time on one core:

# %%
for entry in worth.itertuples():
    if entry.taught:
        reached = entry.of_teacher >= 0.97 and entry.speedup >= 4
        print(f"{reached}: {entry.student}, {entry.taught}: {entry.of_teacher:.1%} of the",
              f"accuracy, {entry.speedup:.1f} times the speed")

# %% [markdown]
# The last row of the table, counting phrases of up to three words, has no teacher. It is the rival
# that a small model has to beat.

# %% [markdown]
# ## Summary
#
# What the record says, as questions to its means:

# %%
reached = (worth["of_teacher"] >= 0.97) & (worth["speedup"] >= 4) & (worth["taught"] != "")
print("a student reaches the aim:", bool(reached.any()))
for entry in gained.itertuples():
    print(f"{entry.student}, {entry.taught}: resolved {entry.resolved}, {entry.points:+.2f} points")

# %%
rival = figures.results(lines, "nb_trigrams", None)
for student, taught in figures.ways(lines):
    tests = compare.paired_tests(figures.results(lines, student, taught), rival,
                                 compare.answers_of(settings["test_labels"]), any_seed=True)
    points = 100 * np.mean([test["difference"] for test in tests])
    print(f"{student}, {taught}: {points:+.1f} points above counting phrases,",
          {1: "better", -1: "worse", 0: "not resolved"}[compare.agreed(tests)])

# %% [markdown]
# - Soft targets say how sure a teacher is. The temperature shows it, and $T^2$ keeps the teacher's
#   weight in the sum.
# - Its limits are known losses: regression of centred logits, plain classification.
# - What a teacher says of a text is computed once. Keep it under a name made from all that decides
#   it.
# - Embeddings are most of a small model's weights and little of its time. Count both.
# - Logits belong to texts, hidden states to tokens: the first can be taught across tokenizers.
# - A gain belongs to pairs: the same student, rows, steps and seeds, and an interval.
# - Latency is one review at a time, median and p95, with the cores and lengths named.

# %% [markdown]
# ## Exercises
#
# Write these yourself in [`exercises/10_distillation.ipynb`](exercises/10_distillation.ipynb):
# there each function is a stub, with hints and a check that names your mistake. Here they stand
# solved; the solutions are folded, so open one when you have tried. The last one is a "spot the
# flaw" lab, on teachers that have seen the answers.

# %% tags=["exercise-setup"]
import torch
import torch.nn.functional as F

from tutorkit.checks import lesson_10

# %% [markdown] tags=["exercise"]
# ### Exercise 1: what softening leaves open
#
# **Goal**: compute the entropy of the softened probabilities of section 1.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `softened_entropy(logits, temperature)`: (N, C), a number → (N,)
#
# In nats, one number a row: $-\sum_c p_c \log p_c$ with $p = \operatorname{softmax}(v/T)$. A
# teacher may be so sure of a row that a probability is 0 in floating point; it adds 0 to the sum.

# %% tags=["solution"] jupyter={"source_hidden": true}
def softened_entropy(logits, temperature):
    """The entropy of each row's softened probabilities, in nats.

    logits: (N, C); temperature: T. Returns (N,).
    """
    ### BEGIN SOLUTION
    log_p = F.log_softmax(logits / temperature, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)
    ### END SOLUTION

# %% tags=["check"]
lesson_10.softened_entropy.check(softened_entropy)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the loss of distillation
#
# **Goal**: write the loss of section 2, with its $T^2$.
#
# **Difficulty**: ●●○ **Minutes**: 20
#
# **Signature**: `taught_loss(student_logits, teacher_logits, labels, temperature, alpha)`: (N, C),
# (N, C), (N,), a number, a number → a scalar tensor
#
# The mean over the rows. Its value is compared, not only its gradient.

# %% tags=["solution"] jupyter={"source_hidden": true}
def taught_loss(student_logits, teacher_logits, labels, temperature, alpha):
    """α T² KL(teacher ‖ student), softened, plus (1 - α) times the cross-entropy of the labels.

    student_logits, teacher_logits: (N, C); labels: (N,); temperature: T; alpha: α. Returns a
    scalar tensor.
    """
    ### BEGIN SOLUTION
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    hard = F.cross_entropy(student_logits, labels)
    return alpha * temperature**2 * divergence + (1 - alpha) * hard
    ### END SOLUTION

# %% tags=["check"]
lesson_10.taught_loss.check(taught_loss)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: which layer is matched with which
#
# **Goal**: spread the layers of a student over those of its teacher.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `matched_layers(teacher_layers, student_layers)`: two whole numbers → a list of
# whole numbers
#
# Layers are counted from 1. The student's layer $m$ is matched with $mL/M$, rounded up, for $L$
# layers of the teacher and $M$ of the student.

# %% tags=["solution"] jupyter={"source_hidden": true}
def matched_layers(teacher_layers, student_layers):
    """The teacher's layer for each of the student's, from the first to the last.

    teacher_layers: L; student_layers: M, at most L. Returns a list of M whole numbers.
    """
    ### BEGIN SOLUTION
    return [-(-m * teacher_layers // student_layers) for m in range(1, student_layers + 1)]
    ### END SOLUTION

# %% tags=["check"]
lesson_10.matched_layers.check(matched_layers)

# %% [markdown] tags=["exercise"]
# ### Exercise 4: median and p95
#
# **Goal**: make a latency of a list of measured times.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `median_and_p95(seconds, warm_up)`: a list of numbers, a whole number → a list of
# two numbers
#
# The times are in seconds, in the order of the calls. The first `warm_up` calls don't count: they
# fetch weights and code into the caches. Return median and 95th percentile in **milliseconds**.
# For n sorted times, counted from 0, the percentile stands at the place 0.95 (n − 1); between two
# neighbours interpolate linearly. (Here every call counts, as in a running service.)

# %% tags=["solution"] jupyter={"source_hidden": true}
def median_and_p95(seconds, warm_up):
    """Median and 95th percentile of the calls after the first ones, in milliseconds.

    seconds: one time a call, in order; warm_up: calls that don't count. Returns [median, p95].
    """
    ### BEGIN SOLUTION
    times = torch.tensor(seconds[warm_up:], dtype=torch.float64)
    quantiles = torch.quantile(times, torch.tensor([0.5, 0.95], dtype=torch.float64))
    return (1000 * quantiles).tolist()
    ### END SOLUTION

# %% tags=["check"]
lesson_10.median_and_p95.check(median_and_p95)

# %% [markdown] tags=["exercise"]
# ### Exercise 5: the same, or as good?
#
# **Goal**: tell agreement from accuracy.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `same_or_as_good(teacher, student, labels)`: (N,), (N,), (N,) whole numbers → a
# list of three numbers
#
# The classes that two models say, and the right ones. Return, as shares from 0 to 1:
#
# 1. the agreement: how often the student says what the teacher says;
# 2. the student's accuracy as a share of the teacher's (it may be above 1);
# 3. of the teacher's mistakes, the share that the student repeats: the same wrong class. The
#    teacher of the check makes some.

# %% tags=["solution"] jupyter={"source_hidden": true}
def same_or_as_good(teacher, student, labels):
    """Agreement, share of the teacher's accuracy, share of its mistakes that are repeated.

    teacher, student, labels: (N,) classes. Returns a list of three Python floats.
    """
    ### BEGIN SOLUTION
    wrong = teacher != labels
    agreement = (student == teacher).double().mean()
    kept = (student == labels).double().mean() / (teacher == labels).double().mean()
    repeated = (student[wrong] == teacher[wrong]).double().mean()
    return [agreement.item(), kept.item(), repeated.item()]
    ### END SOLUTION

# %% tags=["check"]
lesson_10.same_or_as_good.check(same_or_as_good)

# %% [markdown] tags=["exercise"]
# ### Exercise 6: spot the flaw, a teacher that has seen the answers
#
# **Goal**: give each row the word of teachers that have not been trained on it.
#
# The usual recipe: fine-tune a teacher on the training rows, then let it score the same rows for
# its student. A teacher that fits its training rows well is sure of nearly all of them, wrong
# labels included, and its soft targets are labels once more. The remedy is known from stacking:
# several teachers, each trained without a part of the rows, and each row is scored by those that
# have not seen it.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `unseen_logits(rows, teachers)`: a list of N ids, a list of dicts → a list of N
# lists of numbers
#
# A dict has `train`, the ids that this teacher was trained on, and `logits`, a dict from every id
# to a list of C numbers. For each of `rows`, in their order, return the mean of the logits of the
# teachers that have not seen it; there is at least one.

# %% tags=["solution"] jupyter={"source_hidden": true}
def unseen_logits(rows, teachers):
    """For each row the mean logits of the teachers that were not trained on it.

    rows: N ids; teachers: dicts with "train" (ids) and "logits" (id -> C numbers). Returns N lists.
    """
    ### BEGIN SOLUTION
    found = []
    for row in rows:
        said = [t["logits"][row] for t in teachers if row not in t["train"]]
        found.append([sum(column) / len(column) for column in zip(*said, strict=True)])
    return found
    ### END SOLUTION

# %% tags=["check"]
lesson_10.unseen_logits.check(unseen_logits)

# %% [markdown]
# The table of section 1 has the lesson's own case: compare its two lines. The students of section 5
# learned from the first, as is usual; so did those of the record.

# %% [markdown]
# ## Further reading
#
# - G. Hinton, O. Vinyals, J. Dean, *Distilling the Knowledge in a Neural Network*, 2015: soft
#   targets, the temperature, $T^2$ and its limit. C. Buciluă, R. Caruana, A. Niculescu-Mizil,
#   *Model Compression*, KDD 2006, taught a small model by the labels that a large one gave to
#   unlabelled data.
# - X. Jiao et al., *TinyBERT: Distilling BERT for Natural Language Understanding*, Findings of
#   EMNLP 2020: hidden states and attention. V. Sanh et al., *DistilBERT*, 2019: every second layer
#   kept, taught before fine-tuning.
# - R. Tang et al., *Distilling Task-Specific Knowledge from BERT into Simple Neural Networks*,
#   2019: a student of another architecture, taught by logits.
# - A. Joulin et al., *Bag of Tricks for Efficient Text Classification*, EACL 2017: the bag.
# - S. Stanton et al., *Does Knowledge Distillation Really Work?*, NeurIPS 2021: students agree with
#   their teachers less than one would think.
# - D. H. Wolpert, *Stacked Generalization*, 1992: the remedy of exercise 6.
