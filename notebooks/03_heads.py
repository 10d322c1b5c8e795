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
# # One backbone, many tasks
#
# A pretrained backbone turns a text into one vector for each token. What comes after it, the
# *head*, is small and new: it decides the task. Here four heads stand on two backbones:
# classification, tagging, answer spans, and the next token. Each is followed from shape to shape,
# to its loss from the lesson on the math, and back to the gradient that arrives.
#
# **After this lesson you can** pool token vectors without counting padding as text, name the shape
# at every step of four heads, say what each head costs, show that a padded batch gives the scores
# of the unpadded rows, and explain why a decoder is read at its last real token.
#
# **Time**: under a minute to run on two CPU cores, and no faster on a GPU; about two hours to read,
# the exercises not counted. **Needs**: the installed package. The weights of `minilm` (about 90 MB)
# are fetched once and kept.

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
model = "minilm"  # an encoder like BERT
decoder = "tiny-decoder"  # a decoder: random weights, or "smollm2" for real ones
dataset = "reviews"  # where the texts come from
batch_size = 4  # reviews in the batch that every head reads
seed = 0  # of the new heads' weights, and of which reviews are drawn

# %%
import copy
import math
import re

import pandas as pd
import torch
import transformers

from tutorkit import data, heads, losses, sources, widgets
from tutorkit import head_figures as figures
from tutorkit.models import load_model

torch.manual_seed(seed)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. One batch through one backbone
#
# All four heads read the same few reviews. We take short ones that name a part of the film (plot,
# pictures): those words will be tagged in section 4. The word list stands in for people who label.

# %%
# Sometimes an article and a word between ("the whole plot"), then a word for a part of a film.
subject = re.compile(
    r"(?:\b(?:the|this|that|its|whose|great) (?:\w+ )?)?"
    r"\b(?:film|story|plot|script|cast|acting|score|music|songs|camera|pictures|ending)\b",
    re.IGNORECASE,
)
train = sources.load_splits(dataset)["train"]
fitting = [row for row, text in enumerate(train["text"])
           if 12 <= len(text.split()) <= 45 and subject.search(text)]  # fmt: skip
reviews = data.take_rows(train.select(fitting), batch_size, seed)
texts, labels = list(reviews["text"]), torch.tensor(reviews["label"])
for text in texts:
    print("-", text)

# %% [markdown]
# The tokenizer cuts each of the $B$ texts of the batch into at most $T$ tokens, and pads the
# shorter ones on the right. The *attention mask* is 1 on tokens and 0 on padding. The backbone
# gives back a vector of $H$ numbers for every position, padding included:
#
# $$\text{input\_ids } (B, T) \;\longrightarrow\; \text{hidden states } h\ (B, T, H)$$

# %%
loaded = load_model(model, seed=seed)
backbone = loaded.model.base_model
batch = loaded.tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
mask = batch["attention_mask"]  # (B, T)
with torch.no_grad():
    hidden = backbone(batch["input_ids"], attention_mask=mask).last_hidden_state  # (B, T, H)
B, T, H = hidden.shape
hidden.requires_grad_(True)  # to see what gradient the heads send back into the backbone
print("input_ids", tuple(batch["input_ids"].shape), " hidden states", (B, T, H))
print("real tokens in each row:", mask.sum(dim=1).tolist())

# %% [markdown]
# ## 2. Pooling: one vector for a whole text
#
# A class is a statement about the text, so $T$ vectors must become one. Every pooling of this
# lesson is a weighted sum (a maximum over tokens is none; exercise 7 has one),
#
# $$v = \sum_t a_t h_t \qquad \sum_t a_t = 1$$
#
# with the weights, for a mask $m$:
#
# | pooling | weights $a_t$ | where it is used |
# |---|---|---|
# | CLS | 1 at the first token | BERT: a special token that stands for the text |
# | mean | $m_t / \sum_s m_s$ | sentence encoders such as `minilm` |
# | last | 1 at the last $t$ with $m_t = 1$ | decoders (section 8) |

# %%
example = torch.tensor([[1, 1, 1, 1, 0, 0]])
nobody = torch.ones_like(example)  # "without a mask" means: with a mask of ones
weights = {how: heads.pooling_weights(example, how)[0] for how in heads.POOLINGS}
weights["mean, no mask"] = heads.pooling_weights(nobody, "mean")[0]
weights["last, no mask"] = heads.pooling_weights(nobody, "last")[0]
tokens = ["[CLS]", "great", "film", "[SEP]", "[PAD]", "[PAD]"]
pd.DataFrame({name: row.tolist() for name, row in weights.items()}, index=tokens).round(2).T

# %% [markdown]
# From $(B, T, H)$ to $(B, H)$, as the formula reads and as it is used:

# %%
with torch.no_grad():
    for how in heads.POOLINGS:
        pooled = heads.pool(hidden, mask, how)  # (B, H)
        a = heads.pooling_weights(mask, how)  # (B, T)
        by_formula = torch.stack([sum(a[b, t] * hidden[b, t] for t in range(T)) for b in range(B)])
        same = torch.allclose(pooled, by_formula, atol=1e-5)
        print(f"{how:4} {tuple(hidden.shape)} -> {tuple(pooled.shape)}, the two agree: {same}")

# %% [markdown]
# ### Without a mask the mean is wrong
#
# Padding has hidden states too: the backbone computes one for every position. (The backbone keeps
# its attention mask here; only the pooling goes without. Section 9 takes it from the backbone as
# well.) With $n$ real tokens of $T$ the plain mean is a mixture,
#
# $$\frac1T \sum_{t} h_t = \frac{n}{T}\; \underbrace{\frac1n \sum_{t\ \text{real}} h_t}_{v}
#   + \Big(1 - \frac{n}{T}\Big)\; \underbrace{\frac{1}{T-n}\sum_{t\ \text{padding}} h_t}_{u}$$
#
# and $T$ belongs to the longest text of the batch: the vector of a review now depends on which
# reviews it happens to be batched with.

# %%
with torch.no_grad():
    v, wrong = heads.pool(hidden, mask, "mean"), hidden.mean(dim=1)  # (B, H), (B, H)
    share = mask.float().mean(dim=1, keepdim=True)  # n / T, (B, 1)
    padding_part = (hidden * (1 - mask)[:, :, None]).sum(dim=1) / T  # (1 - n/T) u, (B, H)
print("a mixture of v and u:", torch.allclose(wrong, share * v + padding_part, atol=1e-6))

# %%
cosine = torch.cosine_similarity(v, wrong, dim=1)
pd.DataFrame({
    "real tokens": mask.sum(dim=1).tolist(),
    "weight on padding": (1 - mask.float().mean(dim=1)).tolist(),
    "cosine of the two means": cosine.tolist(),
}).round(2)  # fmt: skip

# %% [markdown]
# The longest row has no padding and is right by luck. Add padding to a row, and nothing else:

# %%
shortest = texts[int(mask.sum(dim=1).argmin())]
paddings = [0, 1, 2, 4, 8, 16, 32, 64]
alone = figures.encode_sentences(loaded, [shortest], padding=64)
drift = figures.padding_drift(alone, 0, paddings)
figures.drift_figure(drift, paddings)

# %% [markdown]
# With a mask nothing moves. Without one the mean drifts away step by step, and position −1 is lost
# with the first pad token: from then on it *is* a pad token.
#
# ### See it: what a pooling weighs, and what becomes similar
#
# Four sentences in one batch, padded on the right: two of praise, one complaint, one about
# something else. Left, the weight of each token in the vector of the chosen sentence, on an axis
# that ends at the largest weight; right, the cosine of that vector with those of the others.

# %%
sentences = [
    "A wonderful film!",
    "I loved this movie.",
    "A dull film, and the plot makes no sense at all.",
    "My bicycle has a flat tyre.",
]
for name, sentence in zip(figures.Pooling.names, sentences, strict=False):
    print(name, sentence)

# %%
encoded = figures.encode_sentences(loaded, sentences, padding=8)
pooling = figures.Pooling(encoded)
pooling.figure

# %% [markdown]
# Take the mask away and add padding: the sentences grow alike, because they share their padding.
# Which pooling tells the bicycle from the films best?

# %%
widgets.explore(pooling)

# %% [markdown]
# The cosines with sentence A, without and with 8 extra pad tokens:

# %%
cosines = {}
for name, how, masked in figures.CHOICES:
    for extra in (0, 8):
        found = figures.pooled_cosines(encoded, how, masked, extra)  # (4, 4)
        cosines[f"{name}, {extra} extra pads"] = found[0].tolist()
pd.DataFrame(cosines, index=list(figures.Pooling.names[: len(sentences)])).T.round(2)

# %% [markdown]
# The masked mean tells the bicycle from the films best: `minilm` was trained with it. Without a
# mask, 8 pads bring it close. Even without extra pads it is closer to A than the complaint is: both
# are short and share the padding of this batch.

# %% [markdown]
# ## 3. Classification: one vector, C scores
#
# There are $C$ classes, here 2. BERT's head puts one more layer between the pooled vector $v$ and
# the scores; $u$ is what leaves it (`inner` in the code):
#
# $$(B,T,H) \xrightarrow{\text{pool}} (B,H) \xrightarrow{u = \tanh(W'v + b')} (B,H)
#   \xrightarrow{Wu+b} (B,C)$$

# %%
classify = heads.ClassificationHead(H, 2).eval()  # eval: without dropout
v = heads.pool(hidden, mask, "cls")  # (B, H)
inner = torch.tanh(classify.dense(v))  # (B, H)
logits = classify.classifier(inner)  # (B, C)
print("hidden", tuple(hidden.shape), " pooled", tuple(v.shape), " dense", tuple(inner.shape),
      " logits", tuple(logits.shape))  # fmt: skip
print("the steps are the head:", torch.equal(logits, classify(v)))

# %% [markdown]
# Its loss is the cross-entropy, one label a row. A head that gives every class the same score pays
# $\log C$, and a new head, which knows nothing yet, starts not far from it:

# %%
class_loss = losses.cross_entropy(logits, labels)
print(f"loss {class_loss:.3f}, log 2 = {math.log(2):.3f}")

# %% [markdown]
# A gradient has the shape of its weight. One table for each head: what arrives at its parameters,
# and at the hidden states, from where it flows on into the backbone.

# %%
arrived = {}  # for each head: the gradient at the hidden states


def gradients(name, head, loss, hidden):
    tensors = {**dict(head.named_parameters()), "hidden states": hidden}
    found = torch.autograd.grad(loss, tensors.values(), retain_graph=True)
    arrived[name] = found[-1]
    return pd.DataFrame(
        {"shape, and that of its gradient": [tuple(g.shape) for g in found],
         "length of the gradient": [f"{g.norm():.3f}" for g in found]},
        index=list(tensors),
    )  # fmt: skip


gradients("classification, CLS", classify, class_loss, hidden)

# %% [markdown]
# The last layer's is the one derived in the lesson on the math, $G^\top u$ with $G = (p-y)/B$:

# %%
last = classify.classifier
stated = losses.linear_head_grads(inner, last.weight, last.bias, labels)
(found,) = torch.autograd.grad(class_loss, last.weight, retain_graph=True)
print("the same:", torch.allclose(stated.weight, found, atol=1e-6))

# %% [markdown]
# ## 4. Tagging: C scores for every token
#
# Which words name the film or a part of it? Now every token is a row of its own and nothing is
# pooled:
#
# $$(B, T, H) \xrightarrow{W h_t + b} (B, T, C)$$
#
# The tags are BIO: *begin*, *inside*, *outside* of a phrase. People tag words, the model reads
# pieces of words, so a word's tag goes to its **first piece**. Further pieces, special tokens and
# padding get −100: the loss leaves them out. A fast tokenizer remembers which word and which
# characters each token came from. (The word list is short and misses some. People who label miss
# things too.)

# %%
def word_tags(row):
    """0 (outside), 1 (begins) or 2 (inside) for each word of a row of the batch."""
    tags = []
    phrases = [match.span() for match in subject.finditer(texts[row])]
    for word in sorted({w for w in batch.word_ids(row) if w is not None}):
        at = batch.word_to_chars(row, word).start
        inside = [start for start, end in phrases if start <= at < end]
        tags.append(0 if not inside else 1 if at == inside[0] else 2)
    return tags


tag_labels = torch.tensor([
    heads.first_piece_labels(batch.word_ids(row), word_tags(row)) for row in range(B)
])  # (B, T)  # fmt: skip
names = {-100: "–", 0: "O", 1: "B", 2: "I"}
row = int(((tag_labels == -100) & (mask == 1)).sum(dim=1).argmax())  # most further pieces
tokens = loaded.tokenizer.convert_ids_to_tokens(batch["input_ids"][row])
print(" ".join(f"{t}/{names[n]}" for t, n in zip(tokens, tag_labels[row].tolist(), strict=True)))

# %%
tag = heads.TaggingHead(H, 3).eval()
tag_logits = tag(hidden)  # (B, T, C)
tag_loss = losses.tagging_loss(tag_logits, tag_labels)
print("hidden", tuple(hidden.shape), " logits", tuple(tag_logits.shape), " labels",
      tuple(tag_labels.shape), " labelled tokens", int((tag_labels != -100).sum()))  # fmt: skip
print(f"loss {tag_loss:.3f}, log 3 = {math.log(3):.3f}")

# %%
gradients("tagging", tag, tag_loss, hidden)

# %% [markdown]
# ## 5. Answer spans: where it starts, where it ends
#
# *Where does the review first speak of the film or a part of it?* The answer is a piece of the
# text, from that phrase to the end of its sentence, so the head scores positions: one column for
# the start, one for the end.
#
# $$(B, T, H) \xrightarrow{W h_t + b} (B, T, 2) \longrightarrow (B, T),\ (B, T)$$
#
# The labels are token positions. They are found by characters, since the answer was marked in the
# text and not in its tokens:

# %%
def answer(row):
    """The first token of the row's first phrase, and the last one of its sentence."""
    begin, after = subject.search(texts[row]).span()
    rest = re.match(r"[^.!?]*[.!?]?", texts[row][after:]).end()
    return batch.char_to_token(row, begin), batch.char_to_token(row, after + rest - 1)


starts, ends = torch.tensor([answer(row) for row in range(B)]).T  # (B,), (B,)
for row in range(B):
    first, last = (batch.token_to_chars(row, int(p[row])) for p in (starts, ends))
    print(f"tokens {int(starts[row]):2} to {int(ends[row]):2}: {texts[row][first.start:last.end]}")

# %% [markdown]
# The loss is the mean of two cross-entropies over positions, of the start and of the end. A uniform
# guess among a row's $n$ real tokens pays $\log n$.

# %%
span = heads.SpanHead(H).eval()
start_scores, end_scores = span(hidden)  # (B, T), (B, T)
span_loss = losses.span_loss(start_scores, end_scores, starts, ends, mask)
print("hidden", tuple(hidden.shape), " scores", tuple(start_scores.shape), tuple(end_scores.shape))
uniform = mask.sum(dim=1).float().log().mean()
print(f"loss {span_loss:.3f}, mean of log n over the rows {uniform:.3f}")

# %%
gradients("spans", span, span_loss, hidden)

# %% [markdown]
# One row is 0: a bias adds the same number to every position's score, and a softmax does not see
# that.
#
# ### Padding among the answers
#
# Here the softmax runs over positions, so padding stands among the *answers* if no mask takes it
# out, and the more of it, the less is left for the text:

# %%
with torch.no_grad():
    open_to_all = start_scores.softmax(dim=1)  # (B, T)
    masked = start_scores.masked_fill(mask == 0, -torch.inf).softmax(dim=1)
    unmasked_loss = losses.span_loss(start_scores, end_scores, starts, ends)
pd.DataFrame({
    "padding": (1 - mask).sum(dim=1).tolist(),
    "its probability, no mask": (open_to_all * (1 - mask)).sum(dim=1).tolist(),
    "with mask": (masked * (1 - mask)).sum(dim=1).tolist(),
}).round(2)  # fmt: skip

# %%
print(f"loss with the mask {span_loss:.3f}, without {unmasked_loss:.3f}")

# %% [markdown]
# ### Reading an answer off
#
# The best start and the best end, each for itself, can cross. The answer is the best *pair*
# $s \le e$. By hand: start scores $(1, 0, 3, 0)$, end scores $(4, 0, 1, 0)$. The largest ones are
# at 2 and at 0, which is no span. Of the pairs in order, $(0, 0)$ has the sum 5 and $(2, 2)$ the
# sum 4.

# %%
start_example, end_example = torch.tensor([[1.0, 0, 3, 0]]), torch.tensor([[4.0, 0, 1, 0]])
alone = int(start_example.argmax()), int(end_example.argmax())
first, last = heads.best_span(start_example, end_example, torch.ones(1, 4).long())
print("each for itself", alone, " best pair", (int(first), int(last)))

# %% [markdown]
# ## 6. Generation: V scores for every token
#
# A decoder's head scores all $V$ token ids at each position, for the token that comes **next**:
#
# $$(B, T, H) \xrightarrow{E h_t} (B, T, V)$$
#
# Often $E$ is the table of word embeddings that the backbone reads with (**tied**): then the score
# of a word is the inner product of $h_t$ with the word's own vector, and the head has no weight of
# its own. Another backbone, another tokenizer: the same reviews, with an end token.

# %%
writer = load_model(decoder, seed=seed)
reader = writer.model.base_model
end = writer.tokenizer.eos_token
written = writer.tokenizer([text + end for text in texts], padding=True, truncation=True,
                           max_length=128, return_tensors="pt")  # fmt: skip
ids, written_mask = written["input_ids"], written["attention_mask"]  # (B, T), (B, T)
with torch.no_grad():
    states = reader(ids, attention_mask=written_mask).last_hidden_state  # (B, T, H)
states.requires_grad_(True)
print("input_ids", tuple(ids.shape), " hidden states", tuple(states.shape))

# %% [markdown]
# The text is its own label; the loss shifts it by one (position $t$ is scored on token $t+1$). This
# decoder pads with its *end token*, as many published ones do. So the mask decides what is
# padding, not the id: one end token has to be learned, or the model never stops.

# %%
token_labels = heads.next_token_labels(ids, written_mask)  # (B, T)
row = int(written_mask.sum(dim=1).argmin())
at = int(written_mask[row].sum()) - 4
pd.DataFrame({
    "token": writer.tokenizer.convert_ids_to_tokens(ids[row, at:at + 7]),
    "id": ids[row, at:at + 7].tolist(),
    "mask": written_mask[row, at:at + 7].tolist(),
    "label": token_labels[row, at:at + 7].tolist(),
}).T  # fmt: skip

# %%
table = reader.get_input_embeddings()  # (V, H)
V = table.num_embeddings
write = heads.GenerationHead(states.shape[2], V, tied_to=table)
token_logits = write(states)  # (B, T, V)
token_loss = losses.token_cross_entropy(token_logits, token_labels)
print("hidden", tuple(states.shape), " logits", tuple(token_logits.shape), " labels",
      tuple(token_labels.shape))  # fmt: skip
print(f"loss {token_loss:.2f}, log V = {math.log(V):.2f}")

# %% [markdown]
# A decoder with random weights guesses evenly among all words, and pays $\log V$. A trained one is
# far below (`decoder = "smollm2"`: under half of its $\log 49{,}152 = 10.8$): to lower this loss is
# what its pretraining was.

# %%
gradients("generation", write, token_loss, states)

# %% [markdown]
# ### What each head asks for
#
# The length of the gradient at every hidden state, $\|\partial L/\partial h_t\|$: which positions a
# task wants to be different. Darker is larger, each panel on its own scale. From the top: one
# position a row; every real token, alike in a row; every token with a tag; every real one, though
# hardly visible beside the true start and end; all but the last, after which nothing comes.

# %%
mean_loss = losses.cross_entropy(classify(heads.pool(hidden, mask, "mean")), labels)
(arrived["classification, mean"],) = torch.autograd.grad(mean_loss, hidden)
order = ["classification, CLS", "classification, mean", "tagging", "spans", "generation"]
panels = {
    name: (figures.sizes_by_token(arrived[name]), written_mask if name == "generation" else mask)
    for name in order
}
figures.strips(panels, "Size of the gradient at each hidden state, by head")

# %%
pd.DataFrame(
    {name: [int((sizes > 0).sum()), int((sizes > 0)[m == 0].sum())]
     for name, (sizes, m) in panels.items()},
    index=["positions with a gradient", "of them on padding"],
).T  # fmt: skip

# %% [markdown]
# With CLS that is one position a row, so $B$. The mean and the spans reach every real token,
# tagging every labelled one: the real tokens without [CLS], [SEP] and further pieces. The decoder
# has a tokenizer of its own; generation reaches its real tokens without the last one of each row.

# %% [markdown]
# ## 7. What the heads cost
#
# | head | parameters |
# |---|---|
# | classification | $H^2 + H$ for the dense layer, $CH + C$ for the scores |
# | tagging | $CH + C$ |
# | spans | $2H + 2$ |
# | generation | $VH$, or 0 where it is tied |
#
# Counted on the modules that were just used. `parameters()` names a shared tensor once, so a tied
# head adds nothing. (In `transformers` BERT's dense layer belongs to the backbone and is called its
# *pooler*; here it is counted with the head.)

# %%
def count(*modules):
    return sum(p.numel() for p in torch.nn.ModuleList(modules).parameters())


def bare(backbone):
    """Its parameters without the pooler, which is counted with the head."""
    return count(backbone) - (count(backbone.pooler) if hasattr(backbone, "pooler") else 0)


untied = heads.GenerationHead(states.shape[2], V)
table_of = {
    "classification": (bare(backbone), count(classify)),
    "tagging": (bare(backbone), count(tag)),
    "spans": (bare(backbone), count(span)),
    "generation": (count(reader), count(reader, untied) - count(reader)),
    "generation, tied": (count(reader), count(reader, write) - count(reader)),
}
sizes = pd.DataFrame(table_of, index=["backbone", "head"]).T
sizes["head / backbone"] = (sizes["head"] / sizes["backbone"]).map("{:.3%}".format)
sizes

# %%
Hd = states.shape[2]
by_formula = [H * H + H + 2 * H + 2, 3 * H + 3, 2 * H + 2, V * Hd, 0]
print("the formulas give the same:", by_formula == sizes["head"].tolist())

# %% [markdown]
# Nearly everything is in the backbone, which is why one backbone can serve many tasks, each with a
# head of its own. The one large head is the untied table of a vocabulary. How large depends on the
# backbone, and the default decoder is a toy. A decoder of the size of `smollm2`, built on PyTorch's
# `meta` device, which knows shapes and holds no numbers:

# %%
size = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}  # fmt: skip
with torch.device("meta"):
    real = transformers.LlamaModel(transformers.LlamaConfig(**size))
own_table = size["vocab_size"] * size["hidden_size"]
print(f"backbone {count(real):,}, an untied head {own_table:,}: {own_table / count(real):.1%}")

# %% [markdown]
# ## 8. Why a decoder is read at its last real token
#
# An encoder's tokens look at each other in both directions. A decoder's may only look back: its
# **causal mask** lets position $t$ read tokens $\le t$, for otherwise it would see the word it has
# to predict. Replace one token at a time and see whose hidden state changes (in the figure, the
# blue squares):

# %%
sentence = "The film is slow but good"
panels = {}
for name, model_of in {"encoder": loaded, "decoder": writer}.items():
    tokenizer = model_of.tokenizer
    one = tokenizer(sentence, return_tensors="pt")["input_ids"][0]  # (T,)
    other = tokenizer("x", add_special_tokens=False)["input_ids"][0]
    reached = figures.reach(model_of.model.base_model, one, other)  # (T, T)
    panels[name] = tokenizer.convert_ids_to_tokens(one), reached
    print(f"{name}: only itself and later positions change: {not bool(reached.tril(-1).any())}")

# %%
figures.reach_figure(panels)

# %% [markdown]
# So the first position of a decoder has read one token, whatever follows, and cannot know the
# verdict. Of its real tokens only the last has read the whole text:

# %%
pair = writer.tokenizer(["the film is good", "the film is dull"], return_tensors="pt",
                        padding=True)  # fmt: skip
with torch.no_grad():
    two = reader(**{k: pair[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
for name, how in {"first position": "cls", "last real token": "last"}.items():
    a, b = heads.pool(two, pair["attention_mask"], how)
    print(f"{name}: the two texts have the same vector: {torch.allclose(a, b, atol=1e-6)}")

# %% [markdown]
# ### Position −1 is not the last token
#
# With padding on the right, position −1 of a short row holds a pad token. Its state has read the
# text *and*, where the backbone gets no mask, the padding in between, so its scores depend on how
# much of that there is. (With a mask it reads only the text, but still from a pad token: another
# vector than the last word's.) The last real token has read no padding at all: that stands behind
# it. With padding on the left, position −1 *is* the last token; then the mask and the positions
# must be right in the backbone.

# %%
score = heads.ClassificationHead(Hd, 2, dense=False).eval()
short = writer.tokenizer(shortest, return_tensors="pt")["input_ids"]  # (1, n)
table = []
for padding in (0, 1, 4, 16, 64):
    padded = torch.nn.functional.pad(short, (0, padding), value=writer.tokenizer.pad_token_id)
    real = (torch.arange(padded.shape[1]) < short.shape[1]).long()[None]  # (1, n + padding)
    with torch.no_grad():
        h = reader(padded).last_hidden_state  # no mask, as in much published code
        at_end, at_last = score(h[:, -1])[0], score(heads.pool(h, real, "last"))[0]
    table.append([*at_end.tolist(), *at_last.tolist()])
columns = pd.MultiIndex.from_product([["position −1", "last real token"], ["z₀", "z₁"]])
pd.DataFrame(table, index=pd.Index([0, 1, 4, 16, 64], name="padding"), columns=columns).round(3)

# %% [markdown]
# A training set padded to one fixed length can hide this: the head learns from pad positions that
# are all at the same place. In the table, a change of length moves the scores.

# %% [markdown]
# ## 9. Padding invariance, for every head
#
# The rule behind sections 2, 5 and 8 as a test: **a padded batch gives the logits of the unpadded
# rows**, to rounding. Each row runs once in the batch and once alone, without padding.

# %%
def invariant(loaded, texts, head, mask_backbone=True):
    """Whether every row's scores in a padded batch are those of the row alone."""
    base = loaded.model.base_model
    rows = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = rows["input_ids"], rows["attention_mask"]
    with torch.no_grad():
        seen = mask if mask_backbone else torch.ones_like(mask)
        whole = head(base(ids, attention_mask=seen).last_hidden_state, mask)
        for row, n in enumerate(mask.sum(dim=1).tolist()):
            m = mask[row : row + 1, :n]
            h = base(ids[row : row + 1, :n], attention_mask=m).last_hidden_state
            in_batch = whole[row, :n] if whole.ndim == 3 else whole[row]
            if not torch.allclose(head(h, m)[0], in_batch, atol=1e-4):
                return False
    return True


print("tagging:", invariant(loaded, texts, lambda h, m: tag(h)))

# %% [markdown]
# For every head of this lesson. In the second column the *backbone* gets no attention mask: an
# encoder's real tokens then read padding; a decoder's do not, since it stands behind them.

# %%
cases = {
    "classification, CLS": (loaded, lambda h, m: classify(heads.pool(h, m, "cls"))),
    "classification, mean": (loaded, lambda h, m: classify(heads.pool(h, m, "mean"))),
    "classification, mean, no mask": (loaded, lambda h, m: classify(h.mean(dim=1))),
    "tagging": (loaded, lambda h, m: tag(h)),
    "spans": (loaded, lambda h, m: torch.stack(span(h), dim=2)),
    "generation": (writer, lambda h, m: write(h)),
    "decoder, last real token": (writer, lambda h, m: score(heads.pool(h, m, "last"))),
    "decoder, position −1": (writer, lambda h, m: score(h[:, -1])),
}
pd.DataFrame(
    {"invariant": [invariant(of, texts, head) for of, head in cases.values()],
     "no mask in the backbone": [
         invariant(of, texts, head, mask_backbone=False) for of, head in cases.values()
     ]},
    index=list(cases),
)  # fmt: skip

# %% [markdown]
# Keep such a test beside every model that you build. It takes seconds, needs no labels, and the
# flaws that it finds raise no error.

# %% [markdown]
# ## 10. These are the heads that `transformers` ships
#
# The training code uses the library's classes, so that a saved model loads without this package.
# On the same weights ours give the same numbers:

# %%
tiny = load_model("tiny", seed=seed)
config = tiny.model.config
inputs = tiny.tokenizer(texts, padding=True, return_tensors="pt")
inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
sorter = transformers.BertForSequenceClassification(config).eval()
our_class = heads.ClassificationHead(config.hidden_size, config.num_labels).eval()
our_class.dense.load_state_dict(sorter.bert.pooler.dense.state_dict())
our_class.classifier.load_state_dict(sorter.classifier.state_dict())
with torch.no_grad():
    first = heads.pool(sorter.bert(**inputs).last_hidden_state, inputs["attention_mask"], "cls")
    print("BertForSequenceClassification:",
          torch.allclose(our_class(first), sorter(**inputs).logits))  # fmt: skip

# %%
tagger = transformers.BertForTokenClassification(config).eval()
our_tag = heads.TaggingHead(config.hidden_size, config.num_labels).eval()
our_tag.classifier.load_state_dict(tagger.classifier.state_dict())
with torch.no_grad():
    ours = our_tag(tagger.bert(**inputs).last_hidden_state)
    print("BertForTokenClassification:", torch.allclose(ours, tagger(**inputs).logits))

# %%
finder = transformers.BertForQuestionAnswering(config).eval()
our_span = heads.SpanHead(config.hidden_size)
our_span.qa_outputs.load_state_dict(finder.qa_outputs.state_dict())
with torch.no_grad():
    ours, theirs = our_span(finder.bert(**inputs).last_hidden_state), finder(**inputs)
same = [torch.allclose(ours[0], theirs.start_logits), torch.allclose(ours[1], theirs.end_logits)]
print("BertForQuestionAnswering:", all(same))

# %%
tied = copy.deepcopy(load_model("tiny-decoder").model.config)
tied.tie_word_embeddings = True
causal = transformers.LlamaForCausalLM(tied).eval()
our_write = heads.GenerationHead(tied.hidden_size, tied.vocab_size, causal.model.embed_tokens)
with torch.no_grad():
    some = torch.randint(5, tied.vocab_size, (2, 7))
    ours, theirs = our_write(causal.model(some).last_hidden_state), causal(some).logits
print("LlamaForCausalLM, tied:", torch.allclose(ours, theirs))

# %% [markdown]
# One difference on decoders: `LlamaForSequenceClassification` finds the last token by the pad *id*.
# If pad and end token share an id, as here, it reads the token *before* a text's end token.

# %%
with torch.no_grad():
    theirs = writer.model(input_ids=ids, attention_mask=written_mask).logits  # (B, 2)
    for name, back in {"the end token": 1, "the token before it": 2}.items():
        read = states[torch.arange(B), written_mask.sum(dim=1) - back]  # (B, H)
        print(f"{name} is read:", torch.allclose(writer.model.score(read), theirs, atol=1e-5))

# %% [markdown]
# ## Summary
#
# | head | hidden states to scores | loss | mask needed |
# |---|---|---|---|
# | classification | (B, T, H) → (B, H) → (B, C) | `cross_entropy` | in the pooling |
# | tagging | (B, T, H) → (B, T, C) | `tagging_loss` | as −100 in the labels |
# | spans | (B, T, H) → (B, T), (B, T) | `span_loss` | in the softmax over positions |
# | generation | (B, T, H) → (B, T, V) | `token_cross_entropy` | as −100 in the labels |
#
# An encoder's backbone needs the mask as well, whatever the head; a decoder's, padded on the right,
# does not.
#
# - **Pooling** is a weighted sum over real tokens. Padding has hidden states too, and without a
#   mask they are counted.
# - A new head starts near the loss of a uniform guess, and its **gradient** arrives where the task
#   looks: at one position, at labelled tokens, at all real ones, never at padding.
# - Of a **decoder's** real tokens only the last has read the whole text.
# - **Sizes** are counted from the loaded model, shared tensors once.
# - A padded batch gives the scores of the unpadded rows. Test it.

# %% [markdown]
# ## Exercises
#
# Write these yourself in [`exercises/03_heads.ipynb`](exercises/03_heads.ipynb): there each
# function is a stub, with hints and a check that names your mistake. Here they stand solved. In
# JupyterLab the solutions are folded, so open one when you have tried; elsewhere they stand open.
# The last three are "spot the flaw" labs: each holds a kind of mistake seen in published work.

# %% tags=["exercise-setup"]
import torch
import transformers

from tutorkit.checks import lesson_03

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the mean over real tokens
#
# **Goal**: pool hidden states without counting padding.
#
# **Difficulty**: ●○○ **Minutes**: 5
#
# **Signature**: `masked_mean(hidden, attention_mask)`: (B, T, H), (B, T) → (B, H)

# %% tags=["solution"] jupyter={"source_hidden": true}
def masked_mean(hidden, attention_mask):
    """The mean of each row's hidden states over its real tokens.

    hidden: (B, T, H); attention_mask: (B, T), 1 on real tokens, 0 on padding. Returns (B, H).
    """
    ### BEGIN SOLUTION
    kept = attention_mask[:, :, None].to(hidden.dtype)  # (B, T, 1)
    return (hidden * kept).sum(dim=1) / kept.sum(dim=1)
    ### END SOLUTION

# %% tags=["check"]
lesson_03.masked_mean.check(masked_mean)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the last real token
#
# **Goal**: find it whichever side the padding is on.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `last_real_token(hidden, attention_mask)`: (B, T, H), (B, T) → (B, H)
#
# With padding on the left, position −1 *is* the last token.

# %% tags=["solution"] jupyter={"source_hidden": true}
def last_real_token(hidden, attention_mask):
    """The hidden state of each row's last token that is not padding.

    hidden: (B, T, H); attention_mask: (B, T), with its zeros on the right or on the left. Returns
    (B, H).
    """
    ### BEGIN SOLUTION
    positions = torch.arange(hidden.shape[1]) * attention_mask  # (B, T)
    last = positions.argmax(dim=1)  # (B,)
    return hidden[torch.arange(len(hidden)), last]
    ### END SOLUTION

# %% tags=["check"]
lesson_03.last_real_token.check(last_real_token)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: a word's tag for its first piece
#
# **Goal**: turn tags of words into labels of tokens.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `labels_of_pieces(word_ids, word_tags)`: T numbers or None, W numbers → a list of T
# numbers
#
# `word_ids` is what a fast tokenizer gives: `[None, 0, 1, 1, 2, None]` for [CLS], a word in one
# piece, one in two, one more, [SEP].

# %% tags=["solution"] jupyter={"source_hidden": true}
def labels_of_pieces(word_ids, word_tags):
    """The tag of each word at its first piece, -100 at every other token.

    word_ids: T entries, the number of a token's word, or None; word_tags: a tag for each word.
    Returns a list of T whole numbers.
    """
    ### BEGIN SOLUTION
    labels, before = [], None
    for word in word_ids:
        labels.append(-100 if word is None or word == before else word_tags[word])
        before = word
    return labels
    ### END SOLUTION

# %% tags=["check"]
lesson_03.labels_of_pieces.check(labels_of_pieces)

# %% [markdown] tags=["exercise"]
# ### Exercise 4: labels for the next token
#
# **Goal**: make the labels of a batch that pads with its end token, 4, and whose texts end with
# one.
#
# **Difficulty**: ●●○ **Minutes**: 5
#
# **Signature**: `labels_for_generation(input_ids, attention_mask)`: (B, T), (B, T) → (B, T)
#
# The loss shifts by one itself.

# %% tags=["solution"] jupyter={"source_hidden": true}
def labels_for_generation(input_ids, attention_mask):
    """The labels that `losses.token_cross_entropy` expects: -100 on padding and nowhere else.

    input_ids: (B, T); attention_mask: (B, T). Returns (B, T) whole numbers.
    """
    ### BEGIN SOLUTION
    return torch.where(attention_mask == 1, input_ids, -100)
    ### END SOLUTION

# %% tags=["check"]
lesson_03.labels_for_generation.check(labels_for_generation)

# %% [markdown] tags=["exercise"]
# ### Exercise 5: read a span off
#
# **Goal**: find the pair $s \le e$ on real tokens with the largest sum of its two scores.
#
# **Difficulty**: ●●● **Minutes**: 15
#
# **Signature**: `find_span(start_scores, end_scores, attention_mask)`: (B, T), (B, T), (B, T) →
# ((B,), (B,))

# %% tags=["solution"] jupyter={"source_hidden": true}
def find_span(start_scores, end_scores, attention_mask):
    """Start and end of the best span of each row.

    start_scores, end_scores: (B, T); attention_mask: (B, T), 1 where a span may stand. Returns
    (starts, ends), a tuple of two tensors (B,) of whole numbers.
    """
    ### BEGIN SOLUTION
    T = start_scores.shape[1]
    real = attention_mask == 1  # (B, T)
    pairs = start_scores[:, :, None] + end_scores[:, None, :]  # (B, T, T)
    allowed = (real[:, :, None] & real[:, None, :]).triu()
    best = pairs.masked_fill(~allowed, float("-inf")).flatten(1).argmax(dim=1)
    return best // T, best % T
    ### END SOLUTION

# %% tags=["check"]
lesson_03.find_span.check(find_span)

# %% [markdown] tags=["exercise"]
# ### Exercise 6: spot the flaw, a classifier on a decoder
#
# **Goal**: find the line of this listing that makes a short text's answer depend on its padding,
# and compute the logits it should have had. The lines are those of a widely read tutorial, in our
# words:
#
# ```
# 1  tokenizer.padding_side = "right"
# 2  batch = tokenizer(texts, padding=True, return_tensors="pt")
# 3  hidden = decoder(batch["input_ids"]).last_hidden_state     # (B, T, H)
# 4  pooled = hidden[:, -1]                                     # (B, H)
# 5  logits = pooled @ weight.T                                 # (B, C)
# ```
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `position_lab(hidden, attention_mask, weight)`: (B, T, H), (B, T), (C, H) → the
# line's number and (B, C)

# %% tags=["solution"] jupyter={"source_hidden": true}
def position_lab(hidden, attention_mask, weight):
    """The number of the flawed line, and the logits without the flaw.

    hidden: (B, T, H), as line 3 makes it; attention_mask: (B, T), zeros on the right;
    weight: (C, H). Returns (line, logits): a whole number and (B, C).
    """
    ### BEGIN SOLUTION
    last = attention_mask.sum(dim=1) - 1  # (B,): right for padding on the right
    pooled = hidden[torch.arange(len(hidden)), last]
    return 4, pooled @ weight.T
    ### END SOLUTION

# %% tags=["check"]
lesson_03.position_lab.check(position_lab)

# %% [markdown] tags=["exercise"]
# ### Exercise 7: spot the flaw, poolings that look at padding
#
# **Goal**: write the test of section 9 for a pooling, and say of each whether it fails. You get
# functions as they are found in published code, and do not see inside.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `flawed_poolings(poolings, hidden, attention_mask)`: a dict from names to
# functions, (B, T, H), (B, T) → a dict from the same names to True (flawed) or False
#
# Each function takes `(hidden, attention_mask)` and returns (B, H). Padding is on the right.

# %% tags=["solution"] jupyter={"source_hidden": true}
def flawed_poolings(poolings, hidden, attention_mask):
    """Which poolings give a padded row another vector than the row alone.

    poolings: name -> function of (hidden, attention_mask); hidden: (B, T, H);
    attention_mask: (B, T). Returns a dict name -> True if any row's vector differs, else False.
    """
    ### BEGIN SOLUTION
    flawed = dict.fromkeys(poolings, False)
    for name, pooling in poolings.items():
        whole = pooling(hidden, attention_mask)  # (B, H)
        for row, length in enumerate(attention_mask.sum(dim=1).tolist()):
            alone = pooling(hidden[[row], :length], attention_mask[[row], :length])  # (1, H)
            if not torch.allclose(alone[0], whole[row]):
                flawed[name] = True
    return flawed
    ### END SOLUTION

# %% tags=["check"]
lesson_03.flawed_poolings.check(flawed_poolings)

# %% [markdown]
# For the last lab: sizes as a results page prints them, and the models that its scripts load. They
# are built on the `meta` device, as in section 7: nothing is downloaded, and a count needs no more.

# %% tags=["exercise-setup"]
published = {"GPT-2": 124e6, "BERT": 340e6, "DistilBERT": 66e6, "RoBERTa": 355e6}
large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096, "vocab_size": 50265, "max_position_embeddings": 514,
         "type_vocab_size": 1}  # of roberta-large; the others are the defaults  # fmt: skip
with torch.device("meta"):
    architectures = {
        "GPT-2": transformers.GPT2ForSequenceClassification(transformers.GPT2Config()),
        "BERT": transformers.BertForSequenceClassification(transformers.BertConfig()),
        "DistilBERT": transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig()
        ),
        "RoBERTa": transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(**large)
        ),
    }

# %% [markdown] tags=["exercise"]
# ### Exercise 8: spot the flaw, sizes typed by hand
#
# **Goal**: recount the parameters of models beside a table that was typed, and return the true
# count of each model that is more than 5 % off.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `wrong_sizes(typed, models)`: a dict from names to numbers, a dict from names to
# modules → a dict from names to whole numbers
#
# Shared tensors count once, frozen ones count. `published` and `architectures`, in the cell above,
# are the sizes that a results page prints and the models that its scripts load. Run
# `wrong_sizes(published, architectures)`: which row is wrong, and whose size does it print?

# %% tags=["solution"] jupyter={"source_hidden": true}
def wrong_sizes(typed, models):
    """The true count of every model whose typed number is more than 5 % of it away.

    typed: name -> parameters, as typed; models: name -> torch.nn.Module, the same names. Returns
    a dict name -> count, with the wrong rows only.
    """
    ### BEGIN SOLUTION
    wrong = {}
    for name, model in models.items():
        count = sum(parameter.numel() for parameter in model.parameters())
        if abs(typed[name] - count) > 0.05 * count:
            wrong[name] = count
    return wrong
    ### END SOLUTION

# %% tags=["check"]
lesson_03.wrong_sizes.check(wrong_sizes)

# %% [markdown]
# On the published table:

# %%
for name, size in wrong_sizes(published, architectures).items():
    print(f"{name}: printed {published[name]:,.0f}, counted {size:,}")
with torch.device("meta"):
    larger = transformers.BertConfig(**{k: large[k] for k in list(large)[:4]})
    print(f"BERT-large: {count(transformers.BertModel(larger)):,}")

# %% [markdown]
# The page scored `bert-base-uncased`, and printed the size that the BERT paper gives for its
# *large* model. In a table that compares scores by size, that row stands in the wrong place.
#
# ## Further reading
#
# - J. Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers*, NAACL 2019: figure 4
#   shows classification, tagging and spans on one backbone; sections 4.2 and 5.3 for the details.
# - N. Reimers, I. Gurevych, *Sentence-BERT*, EMNLP 2019: CLS, mean and maximum compared.
# - A. Radford et al., *Improving Language Understanding by Generative Pre-Training*, 2018: a
#   classifier at a decoder's last token.
# - O. Press, L. Wolf, *Using the Output Embedding to Improve Language Models*, EACL 2017: tying.
# - L. Ramshaw, M. Marcus, *Text Chunking using Transformation-Based Learning*, 1995: BIO tags.
#
# Next: the loop that trains a head, and the backbone under it, [`04_training`](04_training.ipynb).
