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
# # From texts to tensors
#
# A model reads rectangles of numbers; reviews are strings of any length. This lesson walks the
# whole way between the two, measures what each step throws away or wastes, and ends at the place
# where most wrong results are made: the splits.
#
# **After this lesson you can** say what a tokenizer does to a text and what it loses, choose a
# truncation and a padding by numbers, build a batch with its mask by hand, and find a leak between
# train and test before it becomes a result.
#
# **Time**: under a minute to run on two CPU cores, and no faster on a GPU; two to three hours to
# read, the exercises not counted. **Needs**: the installed package and the weights of `minilm` (a
# small BERT: 6 layers, hidden size 384), which are fetched once.

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
dataset = "reviews"  # the texts; "imdb", "rt_snippets" and others where they can be had
rows = 600  # texts of a split that are looked at, at most
model = "minilm"  # its tokenizer, and the model of section 5
bpe = "reviews"  # byte-level BPE trained here; "smollm2" or "gpt2" takes that model's, if at hand
max_length = 64  # tokens a text in sections 3 and 5, special ones included
padded_to = 256  # the same in section 4, with room for every built-in review
batch_size = 16  # texts a batch
seed = 0  # of the order of the rows and of the model's head

# %%
import difflib
import itertools
import math
import time
from collections import Counter

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from tutorkit import baselines, data, metrics, plots, sources, text_data, widgets
from tutorkit.models import load_model, max_positions
from tutorkit.text_figures import SAMPLES, PaddingWaste, TokenView, explore_tokens

torch.set_printoptions(precision=4, sci_mode=False, linewidth=120)

# %%
splits = sources.load_splits(dataset, seed)
train = data.take_rows(splits["train"], rows, seed)
validation = data.take_rows(splits["validation"], rows, seed)
texts, labels = list(train["text"]), list(train["label"])
loaded = load_model(model, seed=seed)
tokenizer, bpe_tokenizer = loaded.tokenizer, text_data.bpe_tokenizer(bpe)
tokenizers = {"WordPiece": tokenizer, "byte-level BPE": bpe_tokenizer}
print("texts:", splits.name, {"train": len(train), "validation": len(validation)})
print("vocabularies:", {name: len(each) for name, each in tokenizers.items()})

# %% [markdown]
# ## 1. Tokens
#
# A model has one vector for each entry of a fixed vocabulary. Whole words would need millions of
# entries and still miss the next typing error; single letters make texts very long. **Subwords**
# lie between: frequent words are one token, rare ones are put together from pieces.
#
# Two kinds are common. **WordPiece** (BERT and its kin, here `minilm`, whose texts are lower-cased
# first) splits at spaces and punctuation, and writes the pieces inside a word with `##`.
# **Byte-level BPE** (GPT-style models) works on the bytes of the text as it is, spaces included,
# shown here as `␣`. Ours is trained on the built-in training reviews, in a fraction of a second;
# one that was trained on the web has more whole words. The parameter `bpe` takes such a one.

# %%
TokenView(tokenizers, SAMPLES["rare words"]).figure

# %% [markdown]
# ### WordPiece: the longest piece first
#
# To split a word, WordPiece looks for the longest beginning that is in the vocabulary, cuts it off
# and goes on with the rest. If at some point nothing fits, not even a single letter, the *whole*
# word becomes `[UNK]`. Exercise 1 writes this. The vocabulary is learned from text as well, by
# merging pieces.

# %%
def steps_of(word):
    """For each piece of a word: what was left, what was found, how many candidates were tried."""
    found, start = [], 0
    for piece in tokenizer.tokenize(word):
        stop = start + len(piece.removeprefix("##"))
        found.append([word[start:], piece, len(word) - stop + 1])
        start = stop
    return pd.DataFrame(found, columns=["still to split", "longest piece", "candidates tried"])


steps_of("unwatchable")

# %% [markdown]
# ### BPE: the commonest neighbours first
#
# **Byte-pair encoding** *learns* its pieces (Sennrich et al. 2016). Spell every word in letters,
# count all pairs of neighbours, merge the commonest pair into one piece wherever it occurs, and
# begin again. The list of merges, in their order, is the tokenizer.

# %%
def merged(pieces, pair):
    """The pieces of a word with each occurrence of the pair joined, from left to right."""
    joined = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def learn_merges(words, count):
    """The first `count` merges. words: each word and how often it occurs."""
    spelled = {word: list(word) for word in words}
    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, pieces in spelled.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += words[word]
        merges.append(max(pairs, key=pairs.get))
        spelled = {word: merged(pieces, merges[-1]) for word, pieces in spelled.items()}
    return merges, spelled


merges, spelled = learn_merges({"film": 5, "films": 3, "filming": 2, "ring": 4}, 5)
for n, pair in enumerate(merges, 1):
    print(f"merge {n}:", " + ".join(pair))
print(spelled)

# %% [markdown]
# By hand: `i` and `l` are neighbours in ten words, `f` and `i` as well, `l` and `m` too. Among
# equals the first one met is merged. A new word is split into letters, and the merges are applied
# in their order:

# %%
pieces = list("rings")
for pair in merges:
    pieces = merged(pieces, pair)
print("rings:", pieces)

# %% [markdown]
# On the training reviews, against the library that trained ours (there `Ġ` stands for the space in
# front of a word):

# %%
split_words = text_data.train_bpe(texts, 300).pre_tokenizer.pre_tokenize_str
words = Counter(word for text in texts for word, _ in split_words(text))
by_hand, _ = learn_merges(words, 12)
library = text_data.train_bpe(texts, 257 + 12).get_vocab()
in_order = sorted(library, key=library.get)[257:]  # after 256 bytes and the end-of-text token
print("first merges:", ["".join(pair) for pair in by_hand])
print("those of the library:", in_order == ["".join(pair) for pair in by_hand])

# %% [markdown]
# More merges make longer pieces and shorter texts. A tokenizer fits its training texts better than
# new ones, as any model does: a larger vocabulary shortens the training texts more than new ones.

# %%
def tokens_per_word(trained, of):
    tokens = sum(len(each.tokens) for each in trained.encode_batch(list(of)))
    return tokens / sum(len(text.split()) for text in of)


sizes = [257, 500, 1000, 2000, 4000]
trained = [text_data.train_bpe(texts, size) for size in sizes]
pd.DataFrame(
    {
        "tokens a word, train": [tokens_per_word(each, texts) for each in trained],
        "tokens a word, validation": [tokens_per_word(e, validation["text"]) for e in trained],
        "␣predictable": [" ".join(each.encode(" predictable").tokens) for each in trained],
    },
    index=pd.Index(sizes, name="vocabulary, at most"),
).round(2)

# %% [markdown]
# What are the later entries good for? Of the largest vocabulary, in the order in which its entries
# were learned, the share that no validation text needs:

# %%
used = {t for each in trained[-1].encode_batch(list(validation["text"])) for t in each.tokens}
vocab = trained[-1].get_vocab()
entries = sorted(vocab, key=vocab.get)
for low, high in itertools.pairwise(sizes):
    unused = np.mean([entry not in used for entry in entries[low:high]])
    print(f"entries {low:4} to {high:4}: {unused:.0%} never occur in validation")

# %% [markdown]
# Most of the second half never occurs in validation: words and endings of the training texts alone.
# The model has a vector for each of them, trained on the few texts that hold it.

# %% [markdown]
# ### What is unknown, and what is only long
#
# Every text is a sequence of bytes, and all 256 bytes are in a byte-level vocabulary: nothing is
# unknown, any text comes back from its tokens as it was. `minilm` has English pieces, single
# letters of many other scripts, and a few hundred Chinese characters. A word with a character that
# it lacks becomes `[UNK]` as a whole: in `great🎬` the *great* is lost too. (Chinese characters
# count as a word each.) Each of these Chinese characters takes three bytes:

# %%
chinese = [piece for piece in tokenizer.get_vocab() if "\u4e00" <= piece <= "\u9fff"]
print("Chinese characters in its vocabulary:", len(chinese), "of", 0x9FFF - 0x4E00 + 1)
print("影 in bytes:", "影".encode().hex(" ").upper())
print(tokenizer.tokenize("great🎬"), tokenizer.tokenize("great 🎬"))
TokenView(tokenizers, SAMPLES["Chinese, complaint"]).figure

# %%
def summary(text):
    row = {}
    for name, each in tokenizers.items():
        found = [p for p in text_data.pieces(each, text) if p.kind != "special"]
        back = each.decode([p.id for p in found], clean_up_tokenization_spaces=False)
        row |= {
            (name, "tokens"): len(found),
            (name, "unknown"): sum(p.kind == "unknown" for p in found),
            (name, "comes back"): back == text,
        }
    return row


pd.DataFrame([summary(text) for text in SAMPLES.values()], index=list(SAMPLES))

# %% [markdown]
# None of these comes back exactly from `minilm`: it is an *uncased* model, which drops capitals and
# accents, and no WordPiece keeps the places of spaces. For sentiment in English that loses little.
# For Chinese this model is the wrong one: two sentences of opposite verdict can become the same row
# of `[UNK]`. Look at the unknown tokens before you fine-tune on a new language or domain; it takes
# one line.

# %%
praise, complaint = "很好看，推荐。", "很难看，无聊。"  # very good, recommended; very bad, boring
print("WordPiece:", tokenizer.tokenize(praise), tokenizer.tokenize(complaint))
same = {name: each(praise)["input_ids"] == each(complaint)["input_ids"]
        for name, each in tokenizers.items()}  # fmt: skip
print("the same ids for praise and complaint:", same)

# %% [markdown]
# Choose a text or type one. Try a name, a typing error, your own language.

# %%
explore_tokens(TokenView(tokenizers))

# %% [markdown]
# ## 2. Special tokens
#
# Some entries of the vocabulary mean no text: where a text begins and ends, what fills up a
# batch, what is unknown. The model met them in pre-training and expects them where they were.
# `minilm` frames each text with `[CLS]` and `[SEP]`, and a classifier reads its answer at `[CLS]`.
# GPT-2's kin add nothing (Llama's add a token in front), and often have no pad token of their own:
# the end-of-text token then serves for padding too.

# %%
roles = {
    "unk_token": "unknown (unk)",
    "cls_token": "start, read by a classifier (cls)",
    "sep_token": "end or separator (sep)",
    "pad_token": "padding (pad)",
    "eos_token": "end of the text (eos)",
}
pd.DataFrame(
    {name: [f"{getattr(each, role)}" for role in roles] for name, each in tokenizers.items()},
    index=list(roles.values()),
)

# %% [markdown]
# The frame is found by comparing a text with and without it:

# %%
def frame(tokenizer):
    """The ids before and after a text, such as ([CLS], [SEP])."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    start = framed.index(bare[0])
    return framed[:start], framed[start + len(bare) :]


for name, each in tokenizers.items():
    before, after = frame(each)
    print(f"{name}: before {each.convert_ids_to_tokens(before)}, "
          f"after {each.convert_ids_to_tokens(after)}")  # fmt: skip

# %% [markdown]
# **A trap.** Whoever types the *name* of a special token gets the token: the model then sees two
# texts where there is one. Where texts come from strangers, `split_special_tokens=True` reads it as
# letters. The class below does not: none of these texts holds one.

# %%
typed = "good [SEP] bad"
for split in (False, True):
    ids = tokenizer(typed, split_special_tokens=split)["input_ids"]
    print(f"split_special_tokens={split!s:5}", tokenizer.convert_ids_to_tokens(ids))

# %% [markdown]
# ## 3. Truncation
#
# A model such as BERT has a vector for each position and no more positions than it was built with.
# Long before that limit, length costs time: so a text is cut at `max_length` tokens, special ones
# included. How long are the texts?

# %%
lengths = np.array([len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]])
print("positions of the model:", max_positions(loaded.model))
print(f"longer than {max_length} tokens: {(lengths > max_length).mean():.0%} of {len(texts)}")
pd.DataFrame(
    {"tokens": np.percentile(lengths, [0, 25, 50, 75, 90, 100]).round().astype(int)},
    index=["shortest", "a quarter below", "half below", "three quarters below", "90 % below",
           "longest"],
).T  # fmt: skip

# %% [markdown]
# Which part goes? `head` keeps the beginning, `tail` the end, `head+tail` some of each (Sun et al.
# 2019 took 128 and 382; here it is half and half). Of `room` places for text the head gets
# $\lfloor room/2 \rfloor$ and the tail the rest.

# %%
def truncate(ids, room, truncation):
    """At most `room` of the ids."""
    if len(ids) <= room:
        return ids
    head = {"head": room, "tail": 0, "head+tail": room // 2}[truncation]
    tail = room - head
    return ids[:head] + ids[len(ids) - tail :]


before, after = frame(tokenizer)
room = max_length - len(before) - len(after)
for truncation in data.TRUNCATIONS:
    print(f"{truncation:9} of ten ids, room for five:", truncate(list(range(10)), 5, truncation))

# %% [markdown]
# Note `ids[len(ids) - tail :]` and not `ids[-tail:]`: for `tail = 0` the latter is `ids[0:]`, the
# whole row. What each one keeps of the training texts, special tokens left out, the shortest text
# on top:

# %%
text_lengths = np.sort(lengths) - len(before) - len(after)
with plots.styled_figure(2.8) as figure:
    panels = zip(figure.subplots(1, 3, sharey=True), data.TRUNCATIONS, strict=True)
    for axes, truncation in panels:
        picture = np.zeros((len(texts), text_lengths.max()))  # 0 nothing, 1 cut, 2 kept
        for row, n in enumerate(text_lengths):
            picture[row, :n] = 1
            picture[row, truncate(list(range(n)), room, truncation)] = 2
        axes.imshow(picture, cmap=ListedColormap(["white", "#F2B38A", plots.BLUE]),
                    vmin=0, vmax=2, aspect="auto", interpolation="nearest")  # fmt: skip
        kept = (picture == 2).sum() / (picture > 0).sum()
        axes.set(title=f"{truncation}: {kept:.0%} kept", xlabel="token")
        axes.grid(visible=False)
    figure.axes[0].set_ylabel("text, by length")
    swatches = [Patch(color=c) for c in (plots.BLUE, "#F2B38A")]
    figure.legend(swatches, ["kept", "cut"], loc="outside lower center", ncols=2)
figure

# %% [markdown]
# All three keep the same number of tokens. The question is *which*: where do reviews say whether
# the film is good? Two ways to ask.
#
# **Words that judge.** A list made by hand, and the third of its review where each one occurs.
#
# **Contrast pairs.** The built-in reviews hold pairs that differ in a few words and have opposite
# labels. The words that differ carry the verdict, by construction; no list is needed.

# %%
JUDGING = """
good great best better fine lovely love loved beautiful perfect brilliant wonderful superb excellent
enjoyed recommend delightful charming moving funny terrific bad worse worst awful terrible boring
bored dull waste wasted poor hate hated mess forgettable disappointing stupid ugly tedious lazy
nothing never cried laughed slept asleep walked left
""".split()  # noqa: SIM905


def judging_positions(text):
    found = [word.strip(".,;:!?\"'()").lower() for word in text.split()]
    return [(i + 0.5) / len(found) for i, word in enumerate(found) if word in JUDGING]


print("great is at", judging_positions("An old, simple, great film."))
print("edits at", text_data.edit_positions("I left before the end.", "I stayed until the end."))

# %%
built_in = sources.load_splits("reviews")
members = {}
for split in ("train", "validation"):  # the test split is not looked at
    for row in built_in[split]:
        if row["pair"]:
            members.setdefault(row["pair"], []).append(row["text"])
print("contrast pairs in train and validation:", len(members))

# %%
both = [(a, b) for pair in members.values() for a, b in (pair, pair[::-1])]
positions = {
    "words that judge": [p for text in texts for p in judging_positions(text)],
    "edits of contrast pairs": [p for a, b in both for p in text_data.edit_positions(a, b)],
}
pd.DataFrame(
    {name: [len(found), *np.histogram(found, [0, 1 / 3, 2 / 3, 1])[0] / len(found)]
     for name, found in positions.items()},
    index=["how many", "first third", "middle", "last third"],
).round(2).T.astype({"how many": int})  # fmt: skip

# %%
with plots.styled_figure(2.4) as figure:
    axes = figure.subplots()
    colours = zip(positions.items(), (plots.BLUE, plots.VERMILLION), ("-", "--"), strict=True)
    for (name, found), colour, line in colours:
        shares = np.histogram(found, 10, (0, 1))[0] / len(found)
        axes.step(np.arange(11) / 10, [*shares, shares[-1]], line, where="post", color=colour,
                  label=f"{name}, n = {len(found)}")  # fmt: skip
    axes.axhline(0.1, color=plots.GREY, linewidth=1)
    axes.set(xlim=(0, 1), xlabel="place in the text: 0 is its start, 1 its end", ylabel="share")
    axes.set_ylim(bottom=0)
    axes.set_title("Where the verdict stands (the grey line: everywhere alike)")
    axes.legend(loc="upper left")
figure

# %% [markdown]
# The edits, which carry the verdict, come late in these reviews; the words of the list are spread
# almost evenly, with a few more at the end. A word that judges may be about a song or an actor.
#
# **What is thrown away.** In tokens, and in tokens that are words of the list (those within
# `brilliantly` and `feel-good` count here, `tedious` is more than one token):

# %%
rows_of_ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
judging_ids = set(tokenizer.convert_tokens_to_ids(JUDGING)) - {tokenizer.unk_token_id}


def left_over(room, truncation):
    kept = [truncate(ids, room, truncation) for ids in rows_of_ids]
    return {
        "tokens": sum(map(len, kept)),
        "texts cut": f"{np.mean([len(ids) > room for ids in rows_of_ids]):.0%}",
        "words that judge": sum(i in judging_ids for ids in kept for i in ids),
    }


table = {"nothing cut": left_over(10**6, "head")}
table |= {truncation: left_over(room, truncation) for truncation in data.TRUNCATIONS}
pd.DataFrame(table).T

# %% [markdown]
# **What it costs.** When both members of a contrast pair become the *same* ids, nobody can tell
# them apart any more: one of the two will be wrong, whatever the model. Counted for three lengths:

# %%
def pairs_made_equal(truncation, length):
    room = length - len(before) - len(after)
    kept = [[truncate(ids, room, truncation)
             for ids in tokenizer(pair, add_special_tokens=False)["input_ids"]]
            for pair in members.values()]  # fmt: skip
    return sum(first == second for first, second in kept)


at = [16, 32, 64]
table = {t: [pairs_made_equal(t, n) for n in at] for t in data.TRUNCATIONS}
print("contrast pairs:", len(members))
pd.DataFrame(table, index=pd.Index(at, name="max_length")).T

# %% [markdown]
# Here `tail` keeps most words of the list, and `head` loses most pairs. Reviews that say it at once
# lose by `tail`, so `head+tail` is the default of this kit, to be checked on validation rows of
# your own data: set `dataset` and run again.

# %% [markdown]
# ## 4. Padding
#
# A batch is one tensor, and a tensor has no ragged edge:

# %%
try:
    torch.tensor([[101, 2204, 102], [101, 2919, 3185, 102]])
except ValueError as error:
    print(error)

# %% [markdown]
# So short rows are filled up with the pad token, and a second tensor, the **attention mask**, says
# what is real (1) and what is filling (0). The mask comes from the rows' *lengths*. Comparing ids
# with the pad token would nearly do for `minilm` (until somebody types `[PAD]`), and goes wrong
# where the end-of-text token is also the pad token.
#
# The width is the longest row's, rounded up to a multiple of 32: with a new width in every batch,
# PyTorch's memory on a CPU keeps growing.

# %%
def collate(items, pad_id, max_length, step=32):
    """Items to one batch: input_ids (B, L), attention_mask (B, L), labels (B,)."""
    longest = max(len(item["input_ids"]) for item in items)
    width = min(-(-longest // step) * step, max_length)  # L, rounded up
    input_ids = torch.full((len(items), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for i, item in enumerate(items):
        n = len(item["input_ids"])
        input_ids[i, :n] = item["input_ids"]
        attention_mask[i, :n] = 1
    labels = torch.stack([item["labels"] for item in items])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


items = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(y)}
         for ids, y in (([101, 2204, 102], 1), ([101, 2919, 3185, 102], 0))]  # fmt: skip
for name, tensor in collate(items, tokenizer.pad_token_id, max_length, step=1).items():
    print(name, tensor.tolist())

# %% [markdown]
# ### The data set, by hand
#
# Everything so far in one class: tokenize once, frame, truncate; pad only when a batch is made.
# Below it the shortest and the longest text as one batch, padding shown as `·`, and the seam of
# `head+tail` in the longest as `‖`. The model sees no such mark and has to live with the seam.

# %%
class SentimentDataset(torch.utils.data.Dataset):
    """Labelled texts as token ids."""

    def __init__(self, texts, labels, tokenizer, max_length, truncation):
        before, after = frame(tokenizer)
        room = max_length - len(before) - len(after)
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        self.rows = [before + truncate(row, room, truncation) + after for row in ids]
        self.labels = labels
        self.pad_id, self.max_length = tokenizer.pad_token_id, max_length

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        ids = torch.tensor(self.rows[i])
        label = torch.tensor(self.labels[i])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label}

    def collate(self, items):
        return collate(items, self.pad_id, self.max_length)


by_hand = SentimentDataset(texts, labels, tokenizer, max_length, "head+tail")
by_length = np.argsort(lengths, kind="stable")
batch = by_hand.collate([by_hand[i] for i in (by_length[0], by_length[-1])])
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
short, long = batch["input_ids"]
seam = len(before) + room // 2
print(tokenizer.decode(short).replace("[PAD]", "·"))
print(tokenizer.decode(long[:seam]), "‖", tokenizer.decode(long[seam:]))

# %% [markdown]
# The package has the same class, with checks of its inputs. From here on we use that one.

# %%
def equal_batches(mine, ours):
    pairs = [(mine.collate([mine[i] for i in rows]), ours.batch(rows))
             for rows in np.array_split(np.arange(len(mine)), 8)]  # fmt: skip
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in b)


for truncation in data.TRUNCATIONS:
    mine = SentimentDataset(texts, labels, tokenizer, max_length, truncation)
    ours = data.SentimentDataset(texts, labels, tokenizer, max_length, truncation)
    print(f"{truncation:9} equal to the package's: {equal_batches(mine, ours)}")

# %% [markdown]
# ### What padding costs
#
# Padding is computed like text and then thrown away. In each layer a token first looks at the
# others, by its *query* and their *keys* and *values* (the *attention*, section 5); then two
# matrices work on each token alone (the *feed-forward* part). The work of one row of $T$ token
# places in a layer with hidden size $H$ and feed-forward size $I$, in multiply-adds:
#
# $$T\,(4H^2 + 2HI) \;+\; 2T^2H$$
#
# Four $H\times H$ matrices for queries, keys, values and output, two of $H \times I$, and the two
# products of the attention. By hand for $H = 2$, $I = 4$, $T = 3$: $3\,(16 + 16) + 36 = 132$.

# %%
config = loaded.model.config
shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers)
print("by hand:", text_data.multiply_adds(3, hidden=2, intermediate=4, layers=1))
print("hidden, feed-forward, layers:", shape)
for tokens in (32, 64, 512):
    work = text_data.multiply_adds(tokens, *shape)
    print(f"{tokens:3} tokens: {work / 1e9:.2f} billion multiply-adds")

# %% [markdown]
# Three ways to choose the width. **Fixed**: every row to `max_length`. **Per batch**: to the
# longest row of its batch. **Bucketed**: the same, after sorting a large pool of shuffled rows by
# length, so that a batch holds rows of like length; the batches are shuffled again.
#
# The order of the batches is random, and so is what meets in a batch while the pool is a small part
# of the set. `tutorkit.data.training_batches` takes pools of 50 batches; a set smaller than that,
# such as this one, meets nearly the same batches in each epoch.

# %%
roomy = data.SentimentDataset(texts, labels, tokenizer, padded_to)
ways = {
    "fixed": ("fixed", 1),
    "per batch": ("per batch", 1),
    "bucketed": ("bucketed", 1),
    "bucketed, in steps of 32": ("bucketed", 32),
}
costs = {}
for name, (padding, step) in ways.items():
    batches = text_data.padded_batches(roomy.lengths, batch_size, padding, padded_to, seed, step)
    costs[name] = text_data.padding_cost(roomy.lengths, batches, *shape)
pd.DataFrame(
    {
        "real tokens": [cost.real for cost in costs.values()],
        "token places": [cost.padded for cost in costs.values()],
        "places / real": [cost.ratio for cost in costs.values()],
        "multiply-adds wasted": [f"{cost.wasted:.0%}" for cost in costs.values()],
    },
    index=list(costs),
).round(2)

# %% [markdown]
# The fixed width is set by the longest text that may come, the others by the texts that do come.
# The attention's $T^2$ makes the share of wasted work a little larger than that of wasted places.
# The last line is what the package does: rounding up to 32 costs more than the buckets leave over,
# on texts as short as these.
#
# A picture of 128 of the texts (within a batch the rows are sorted for the eye):

# %%
PaddingWaste(roomy.lengths[:128], padded_to, seed).figure

# %% [markdown]
# Move the batch size, and compare the three ways. With batches of one row there is no padding at
# all; why does nobody train like that? (Hardware multiplies 16 rows in much less than 16 times one
# row's time, and the gradient of one row is noisy: lesson 01.)

# %%
widgets.explore(PaddingWaste(roomy.lengths[:128], padded_to, seed))

# %% [markdown]
# The wasted work is wasted time, if not to the digit. Measured here for one pass over some of the
# rows, the three ways in turn, the best of three:

# %% tags=["nbval-ignore-output"]
def seconds(padding, count=16):
    few = roomy.lengths[:count]
    start = time.perf_counter()
    for rows, length in text_data.padded_batches(few, 8, padding, padded_to, seed):
        ids = torch.full((len(rows), length), tokenizer.pad_token_id)
        mask = (torch.arange(length) < torch.tensor(few[rows])[:, None]).long()
        with torch.no_grad():
            loaded.model(ids, attention_mask=mask)
    return time.perf_counter() - start


seconds("fixed", count=8)  # the first pass sets up memory
passes = [{padding: seconds(padding) for padding in text_data.PADDINGS} for _ in range(3)]
best = {padding: min(each[padding] for each in passes) for padding in text_data.PADDINGS}
print({padding: f"{taken:.2f} s" for padding, taken in best.items()})

# %% [markdown]
# ## 5. The attention mask
#
# In each layer a token takes a weighted mean over all tokens of its row (in a decoder: over those
# before it and itself). Its *query* $q_i$ is compared with the *key* $k_j$ of each token, both of
# $d$ numbers made from the tokens' vectors; the scores become weights by a softmax. The mask adds
# $-\infty$ to the scores of padding, so that its weight is exactly 0:
#
# $$a_{ij} = \operatorname{softmax}_j\Big(\frac{q_i \cdot k_j}{\sqrt{d}} + m_j\Big), \qquad
#   m_j = \begin{cases} 0 & j \text{ is real} \\ -\infty & j \text{ is padding} \end{cases}$$
#
# By hand: scores 0 and $\log 3$ give the weights 1/4 and 3/4. Two padding tokens of score 0 would
# take a third of it all away.

# %%
scores = torch.tensor([0.0, math.log(3), 0.0, 0.0])
mask = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
print("with the mask   ", torch.softmax(scores + mask, dim=0))
print("without the mask", torch.softmax(scores, dim=0))

# %% [markdown]
# ### What breaks without it
#
# One review, alone and with padding behind it. With the mask nothing changes. Without it the
# padding takes part in every layer, and the logits are those of another text.

# %%
def logits_of(batch, masked=True):
    """The model's logits, (B, C), with the batch's mask or, as some tutorials have it, none."""
    extra = {"attention_mask": batch["attention_mask"]} if masked else {}
    with torch.no_grad():
        return loaded.model(batch["input_ids"], **extra).logits


def with_padding(row, count):
    """One row as a batch, with `count` padding tokens behind it."""
    item = ours[row]
    width = len(item["input_ids"]) + count
    return collate([item], tokenizer.pad_token_id, max_length=width, step=width)


ours = data.SentimentDataset(texts, labels, tokenizer, max_length)
row = int(ours.lengths.argmin())
print("alone                       ", logits_of(with_padding(row, 0))[0])
print("32 padding tokens, masked   ", logits_of(with_padding(row, 32))[0])
print("32 padding tokens, no mask  ", logits_of(with_padding(row, 32), masked=False)[0])

# %%
counts = [0, 1, 4, 16, 64]
shortest = np.argsort(ours.lengths, kind="stable")[:5]
with plots.styled_figure(2.6) as figure:
    axes = figure.subplots()
    for number in shortest:
        alone = logits_of(with_padding(number, 0))
        for masked, colour in ((False, plots.VERMILLION), (True, plots.BLUE)):
            moved = [(logits_of(with_padding(number, n), masked) - alone).abs().max().item()
                     for n in counts]  # fmt: skip
            axes.plot(range(len(counts)), moved, "o-", color=colour, markersize=3, linewidth=1)
    axes.lines[0].set_label("without a mask")
    axes.lines[1].set_label("with its mask")
    axes.set_xticks(range(len(counts)), counts)
    axes.set(xlabel="padding tokens", ylabel="largest change of a logit")
    axes.set_title(f"Five short reviews, {model} with an untrained head")
    axes.legend()
figure

# %% [markdown]
# The property on the blue line has a name, **padding invariance**: a padded batch gives each row
# the logits it has alone. It is the first test to write for any model that reads batches. In
# float32 equal means up to rounding:

# %%
rows_seen = np.arange(0, len(ours), max(1, len(ours) // 32))[:32]
alone = torch.cat([logits_of(with_padding(int(i), 0)) for i in rows_seen])
together = torch.cat([logits_of(ours.batch(part)) for part in np.array_split(rows_seen, 4)])
unmasked = torch.cat([logits_of(ours.batch(part), masked=False)
                      for part in np.array_split(rows_seen, 4)])  # fmt: skip
print("rows compared:", len(rows_seen))
print("equal to 1e-4 with the mask:   ", bool((alone - together).abs().max() < 1e-4))
print("equal to 1e-4 without the mask:", bool((alone - unmasked).abs().max() < 1e-4))

# %% [markdown]
# ### Spot the flaw: a score that depends on the batch size
#
# Without a mask a prediction depends on the *neighbours* in the batch. Such code runs, trains and
# prints a score; what gives it away is that the score moves when nothing but the batch size does.
# Three evaluation loops, as tutorials have them. Two are wrong. Which ones do you suspect?
#
# ```
# A   model(input_ids)
# B   model(input_ids, attention_mask=attention_mask)
# C   model(input_ids, attention_mask=(input_ids != tokenizer.eos_token_id).long())
# ```
#
# C is meant for a decoder that pads with its end-of-text token. It goes wrong where a pipeline, or
# a text, ends with that token as a real one. What each lets the model read of three such rows, with
# 3, 6 and 5 real tokens:

# %%
def three_masks(lengths, end_id, width):
    """What A, B and C let the model read. Row i: lengths[i] real tokens, the last is the end."""
    input_ids = torch.full((len(lengths), width), end_id)
    for i, n in enumerate(lengths):
        input_ids[i, : n - 1] = torch.arange(100, 100 + n - 1)
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {"A": torch.ones_like(input_ids), "B": real.long(), "C": (input_ids != end_id).long()}


read_by = three_masks([3, 6, 5], bpe_tokenizer.eos_token_id, 6)
for name, mask in read_by.items():
    print(name, mask.tolist())

# %% [markdown]
# Exercise 5 writes the audit that tells the three apart without reading their code. How many
# predictions of loops A and B differ from those for each row alone:

# %%
def changed(size, masked):
    parts = [rows_seen[i : i + size] for i in range(0, len(rows_seen), size)]
    found = torch.cat([logits_of(ours.batch(part), masked) for part in parts])
    return f"{(found.argmax(1) != alone.argmax(1)).sum()} of {len(alone)}"


pd.DataFrame(
    {"A: no mask": [changed(size, False) for size in (1, 8)],
     "B: with its mask": [changed(size, True) for size in (1, 8)]},
    index=pd.Index([1, 8], name="batch size"),
)  # fmt: skip

# %% [markdown]
# Even at batch size 1 loop A may be off: the package pads a row to a multiple of 32.

# %% [markdown]
# ## 6. Splits, leaks and duplicates
#
# **Train** fits the weights. **Validation** chooses between models, settings and moments to stop.
# **Test** is used once, at the end, to say how good the choice is. A row that is in two of them
# makes the score of the second one too good.

# %%
parts = {name: data.take_rows(splits[name], rows, seed) for name in splits}
pd.DataFrame(
    {
        "texts": [len(part) for part in parts.values()],
        "positive": [np.mean(part["label"]) for part in parts.values()],
        "words, mean": [np.mean([len(t.split()) for t in p["text"]]) for p in parts.values()],
    },
    index=list(parts),
).round(2)

# %% [markdown]
# ### Exact duplicates
#
# The first check takes a Python `set` and a minute. IMDB, as published, has texts that are in both
# train and test; the report in `05_imdb_report` counts them. Here train and validation count as one
# part, and `across` is between this part and test.

# %%
print(sources.find_duplicates(splits))

# %% [markdown]
# ### Near duplicates
#
# A copy with a changed comma is no exact duplicate, and a model that has seen it knows the answer
# all the same. Compare texts by their runs of three words, their **shingles**: the share of runs in
# common, of all runs that either has (Jaccard similarity; Broder 1997).
#
# $$J(A, B) = \frac{|A \cap B|}{|A \cup B|}$$
#
# By hand: "a slow film to love" has three runs of three words, "a slow film to hate" too. Two are
# in common, four in all: $J = 1/2$.

# %%
first, second = (text_data.shingles(t) for t in ("A slow film to love.", "a slow film to hate"))
print("in common:", sorted(" ".join(run) for run in first & second))
print("J =", text_data.jaccard(first, second))

# %%
everything = pd.concat([part.to_pandas().assign(split=name) for name, part in parts.items()])
everything = everything.reset_index(drop=True)
print("texts compared:", len(everything))

# %%
similar = pd.DataFrame(
    text_data.near_duplicates(list(everything["text"]), threshold=0.05),
    columns=["first", "second", "similarity"],
)
a, b = (everything.loc[similar[which]].reset_index() for which in ("first", "second"))
similar["same split"] = a["split"] == b["split"]
similar["same label"] = a["label"] == b["label"]
if "pair" in everything:  # the built-in reviews name their contrast pairs
    similar["contrast pair"] = (a["pair"] == b["pair"]) & (a["pair"] != "")

# %%
near = similar[similar["similarity"] >= 0.3]
print("near duplicates, J of 0.3 or more:", len(near), " across splits:",
      int((~near["same split"]).sum()))  # fmt: skip
print("with the same label:", int(near["same label"].sum()))
if "contrast pair" in near:
    print("contrast pairs:", int(near["contrast pair"].sum()))

# %%
with plots.styled_figure(2.4) as figure:
    axes = figure.subplots()
    for same, colour, mark in ((False, plots.VERMILLION, "o"), (True, plots.BLUE, "s")):
        chosen = similar[similar["same label"] == same]
        axes.plot(chosen.index, chosen["similarity"], mark, color=colour, markersize=4,
                  label=f"{'the same' if same else 'opposite'} label")  # fmt: skip
    axes.axhline(0.3, color=plots.GREY, linewidth=1, label="threshold 0.3")
    axes.set(xlabel="pair of texts, by similarity", ylabel="J of 3-word runs", ylim=(0, 1))
    axes.set_title("Pairs of texts with a similarity of 0.05 or more")
    axes.legend()
figure

# %% [markdown]
# A gap separates copies from the rest, and a threshold within it needs no tuning. What was found
# here are the contrast pairs: near duplicates on purpose, with *opposite* labels, both members kept
# in one split. The most similar pair within train, and the words in which the two differ:

# %%
in_train = (a["split"] == "train") & (b["split"] == "train")
if in_train.any():
    top = similar[in_train.to_numpy()].iloc[0]
    one, other = (everything.loc[int(top[w]), "text"].split() for w in ("first", "second"))
    for kind, i, j, k, m in difflib.SequenceMatcher(None, one, other, False).get_opcodes():
        if kind != "equal":
            print(f"{' '.join(one[i:j])!r} -> {' '.join(other[k:m])!r}")
    print(f"similarity {top['similarity']:.2f}, same label: {top['same label']}")

# %% [markdown]
# ### Rows that belong together stay together
#
# A random split knows nothing of pairs, of several reviews of one film, or of one author. Rows that
# belong together should be drawn together: draw *groups*, then take their rows. How many contrast
# pairs does a random split into 60 % and 40 % tear apart? Each is torn with probability
# $2 \cdot 0.6 \cdot 0.4 = 0.48$.

# %%
paired = np.array([name for split in ("train", "validation") for name in built_in[split]["pair"]])
pair_names = sorted(members)
print("rows:", len(paired), " pairs among them:", len(pair_names))

# %%
generator = np.random.default_rng(seed)
torn = []
for _ in range(500):
    in_first = generator.random(len(paired)) < 0.6
    torn += [len(set(in_first[paired == name])) == 2 for name in pair_names]
print(f"torn apart by a random split of rows: {np.mean(torn):.2f} of the pairs")

# %%
drawn = {name: generator.random() < 0.6 for name in pair_names}  # one draw for each group
in_first = np.array([drawn.get(name, generator.random() < 0.6) for name in paired])
torn = [len(set(in_first[paired == name])) == 2 for name in pair_names]
print(f"torn apart by a split of groups: {np.mean(torn):.2f}")

# %% [markdown]
# ### A planted leak
#
# We copy half of the validation rows into train, each slightly changed: capitals gone, the last
# word dropped, full stops turned into commas. The exact check finds nothing, the shingles find
# every one.

# %%
def disturbed(text):
    return " ".join(text.lower().replace(".", ",").split()[:-1])


def with_leak(share):
    """The training texts and labels with copies of this share of the validation rows."""
    chosen = np.random.default_rng(seed).permutation(len(validation))
    chosen = chosen[: round(share * len(validation))]
    return (texts + [disturbed(validation[int(i)]["text"]) for i in chosen],
            labels + [validation[int(i)]["label"] for i in chosen], chosen)  # fmt: skip


def near_validation(train_texts):
    """The training rows that have a near duplicate in validation."""
    found = text_data.near_duplicates(train_texts + list(validation["text"]))
    return {i for i, j, _ in found if i < len(train_texts) <= j}


leaky, leaky_labels, leaked = with_leak(0.5)
print("planted:", len(leaked))
print("found by exact comparison:", len(set(leaky) & set(validation["text"])))
print("found by shingles:", len(near_validation(leaky)))

# %% [markdown]
# What the leak does to a score: the TF-IDF baseline of word pairs (each word and pair of neighbours
# counts, rare ones more, and logistic regression weighs them), trained with more and more copies of
# validation rows, and once more after removing from train what the shingles found. A copy that it
# has seen, it mostly answers from memory. The second row stays the same: without what was found,
# train is what it was before the leak.

# %% tags=["nbval-ignore-output"]
def baseline_accuracy(train_texts, train_labels):
    guess = baselines.tfidf_bigrams(train_texts, train_labels, list(validation["text"])).argmax(1)
    return (guess == np.array(validation["label"])).mean()


shares = [0, 0.25, 0.5, 0.75, 1.0]
scores = {"with the leak": [], "near duplicates removed": []}
for share in shares:
    leaky, leaky_labels, _ = with_leak(share)
    kept = sorted(set(range(len(leaky))) - near_validation(leaky))
    scores["with the leak"].append(baseline_accuracy(leaky, leaky_labels))
    scores["near duplicates removed"].append(
        baseline_accuracy([leaky[i] for i in kept], [leaky_labels[i] for i in kept])
    )
pd.DataFrame(scores, index=pd.Index(shares, name="share of validation rows in train")).round(3).T

# %% tags=["nbval-ignore-output"]
with plots.styled_figure(2.4) as figure:
    axes = figure.subplots()
    looks = zip(scores.items(), ("o-", "s--"), (plots.VERMILLION, plots.BLUE), strict=True)
    for (name, values), look, colour in looks:
        axes.plot(shares, values, look, color=colour, label=name)
    axes.set(xlabel="share of validation rows with a copy in train", ylabel="accuracy",
             ylim=(0, 1.03))  # fmt: skip
    axes.set_title(f"TF-IDF 1–2-grams, {len(validation)} validation rows")
    axes.legend(loc="lower right")
figure

# %% [markdown]
# Remove duplicates *before* splitting. Where the splits are given, remove from train what is in the
# others, or score without the rows that leak (exercise 6). The built-in reviews were written to
# be hard for models that count words, hence the low score without a leak.
#
# ### Spot the flaw: an accuracy of 1.000
#
# A pipeline reads each review from a file and joins what it knows of it into one text. Its score is
# the best ever seen on this set. IMDB comes as files too, with names such as `pos/127_10.txt`. The
# model is one of the baselines again: it counts in how many positive and how many negative training
# texts a word or phrase occurs, and weighs it by their ratio.

# %%
def joined(part):
    folders = ["pos" if label else "neg" for label in part["label"]]
    rows = zip(folders, part["text"], strict=True)
    return [f"{folder}/{i}.txt {text}" for i, (folder, text) in enumerate(rows)]


guess = baselines.nb_trigrams(joined(train), labels, joined(validation)).argmax(1)
print(f"validation accuracy {(guess == np.array(validation['label'])).mean():.3f}")

# %% [markdown]
# No validation row is in train. Before you read on: what would you look at?
#
# A model that is too good is asked what it looks at. This one gives each word a vote (above 0 for
# positive), which says it at once; for other models there are the methods of a later lesson.

# %%
from sklearn.feature_extraction.text import CountVectorizer

counter = CountVectorizer(binary=True, token_pattern=baselines.TOKEN)
has = counter.fit_transform(joined(train))
votes = baselines.log_count_ratio(has, np.array(labels) == 1)
largest = np.argsort(-np.abs(votes), kind="stable")[:5]
pd.Series(votes[largest], index=counter.get_feature_names_out()[largest], name="vote").round(2)

# %% [markdown]
# The folder's name *is* the label. The same leak comes in other guises: a rating of "9/10" left
# in the text, an id that was given class by class, the length of a padding that depends on the
# label, a column filled in after the fact.

# %% [markdown]
# ### Spot the flaw: which split is it?
#
# A model can be scored on the rows that it was trained on. The number says how well it remembers:

# %% tags=["nbval-ignore-output"]
for name, part in (("training", train), ("validation", validation)):
    guess = baselines.tfidf_bigrams(texts, labels, list(part["text"])).argmax(1)
    print(f"accuracy on the {name} split: {(guess == np.array(part['label'])).mean():.3f}")

# %% [markdown]
# A table made for this lesson, modelled on a mistake seen in print: four systems "on our test set
# of 50 reviews"; train has 120, validation 30. One of the scores can't come from 50 reviews,
# whatever the model. Which one, and from which split is it?
#
# No code is at hand, only arithmetic. An accuracy over $n$ rows is $k/n$ with a whole $k$, so with
# 50 rows it moves in steps of 0.02 (Brown & Heathers 2017 audit published means this way). Exercise
# 7 writes it.

# %%
claimed = {"word counts": 0.7400, "frozen encoder": 0.8200, "fine-tuned": 0.9917, "ours": 0.8800}
claimed_rows = {"train": 120, "validation": 30, "test": 50}
pd.DataFrame({"accuracy": claimed})

# %% [markdown]
# ## 7. Class balance
#
# Accuracy has a floor: answering always with the commonest class. On a balanced set it is one half;
# where nine of ten rows are of one class it is 0.9, and a model can reach it without having read a
# word. Macro F1, the mean of the classes' F1, shows it:

# %%
truth = np.repeat([0, 1], [10, 90])
always = np.ones(100, dtype=int)
report = metrics.classification_report(truth, always, ["negative", "positive"])
print(f"accuracy {(truth == always).mean():.2f}, macro F1 {report['macro avg']['f1-score']:.2f}")
print("recall:", {name: report[name]["recall"] for name in ("negative", "positive")})

# %% [markdown]
# By hand: the negative class has F1 = 0; the positive one has precision 0.9 and recall 1, so
# $F_1 = 2 \cdot 0.9/1.9 = 0.947$; their mean is 0.474. The balance of the set before us:

# %%
counts = {name: np.bincount(part["label"], minlength=2) for name, part in parts.items()}
pd.DataFrame(
    {
        "negative": [count[0] for count in counts.values()],
        "positive": [count[1] for count in counts.values()],
        "always the commonest": [count.max() / count.sum() for count in counts.values()],
    },
    index=list(counts),
).round(2)

# %% [markdown]
# **Sorted files.** Many sets, IMDB among them, store one class after the other. Whoever takes the
# first rows for a quick try trains on one class. The package refuses:

# %%
try:
    data.check_classes(np.sort(labels)[:20])
except ValueError as error:
    print(error)

# %% [markdown]
# **Small parts.** A random part of $n$ rows has a positive share with the standard deviation
# $\sqrt{p(1-p)/n}$, where $p$ is the share in all rows. Drawing the same share from each class (a
# **stratified** split) takes that noise away. For 1,000 draws of 30 rows out of a large balanced
# set:

# %%
draws = np.random.default_rng(seed).binomial(30, 0.5, size=1000) / 30
print(f"standard deviation: measured {draws.std():.3f}, by the formula {np.sqrt(0.25 / 30):.3f}")
outside = abs(draws - 0.5) > 0.101  # 12 of 30 is inside, 11 is not; 0.1 itself is not exact
print(f"draws with a positive share outside 0.4 to 0.6: {outside.mean():.0%}")

# %% [markdown]
# ## Summary
#
# - A **tokenizer** decides what a model can see. WordPiece loses a word that it has no pieces for;
#   byte-level BPE loses nothing and gets long. Count the unknown tokens before you train.
# - **Truncation** keeps equally many tokens in all its forms. Which ones matter is measured: where
#   the verdict stands, and which opposite texts become equal.
# - **Padding** is work. Per batch it is less than at a fixed width, and in buckets of like length
#   little (and more again where widths are rounded up to 32).
# - **Without a mask** a prediction depends on its neighbours. Padding invariance is the test.
# - **Duplicates** are searched before splitting, near ones by shingles, and rows that belong
#   together go into one split. A score that is too good is asked what it looks at, and from which
#   rows it comes.

# %% [markdown]
# ## Exercises
#
# Write these yourself in [`exercises/02_data.ipynb`](exercises/02_data.ipynb): there each function
# is a stub, with hints and a check that names your mistake. Here they stand solved. In JupyterLab
# the solutions are folded, so open one when you have tried; elsewhere they stand open.

# %% tags=["exercise-setup"]
import re

import torch

from tutorkit.checks import lesson_02

# Exercise 5: what the three loops of section 5 let a model read, and the real tokens of each row.
read_by = {
    "A": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
    "B": torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]),
    "C": torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]),
}
row_lengths = torch.tensor([3, 6, 5])
# Exercise 7: the table of section 6, four accuracies "on our test set", and the rows of each split.
claimed = {"word counts": 0.7400, "frozen encoder": 0.8200, "fine-tuned": 0.9917, "ours": 0.8800}
claimed_rows = {"train": 120, "validation": 30, "test": 50}

# %% [markdown] tags=["exercise"]
# ### Exercise 1: WordPiece
#
# **Goal**: split a word into the longest pieces that are in a vocabulary.
#
# **Difficulty**: ●●● **Minutes**: 20
#
# **Signature**: `wordpiece(word, vocab)`: a text, a list of pieces → a list of pieces
#
# Pieces that do not begin the word are written with `##`, in the vocabulary and in the answer. If
# at some point no piece fits, the answer is `["[UNK]"]`. What has been cut off is not taken back:
# if the longest piece leads nowhere, the word is `[UNK]`, even where a shorter one would have
# worked.

# %% tags=["solution"] jupyter={"source_hidden": true}
def wordpiece(word, vocab):
    """The pieces of a word, the longest first.

    word: a text without spaces; vocab: a list of pieces. Returns a list of pieces.
    """
    ### BEGIN SOLUTION
    pieces, start = [], 0
    while start < len(word):
        for stop in range(len(word), start, -1):
            piece = ("##" if start > 0 else "") + word[start:stop]
            if piece in vocab:
                break
        else:  # no break: nothing fits
            return ["[UNK]"]
        pieces.append(piece)
        start = stop
    return pieces
    ### END SOLUTION

# %% tags=["check"]
lesson_02.wordpiece.check(wordpiece)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: keep both ends
#
# **Goal**: truncate a row of ids to `head+tail`; of an odd `room` the tail gets the extra id.
#
# **Difficulty**: ●○○ **Minutes**: 5
#
# **Signature**: `head_tail(ids, room)`: (T,) whole numbers, a whole number from 1 → (min(T, room),)

# %% tags=["solution"] jupyter={"source_hidden": true}
def head_tail(ids, room):
    """At most `room` ids: the first room // 2 and the last ones.

    ids: (T,) whole numbers; room: a whole number from 1. Returns (min(T, room),).
    """
    ### BEGIN SOLUTION
    if len(ids) <= room:
        return ids
    head = room // 2
    tail = room - head
    return torch.cat([ids[:head], ids[len(ids) - tail :]])
    ### END SOLUTION

# %% tags=["check"]
lesson_02.head_tail.check(head_tail)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: one batch
#
# **Goal**: pad rows on the right to the longest of them, and make the mask.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `pad_batch(rows, pad_id)`: a list of B tensors of ids, a whole number → (input_ids,
# attention_mask), both (B, L) whole numbers

# %% tags=["solution"] jupyter={"source_hidden": true}
def pad_batch(rows, pad_id):
    """Rows of ids as one batch.

    rows: B tensors (T_i,) of whole numbers; pad_id: the number of the pad token, which may be in a
    row as a real token too. Returns (input_ids, attention_mask), each (B, L) with L the longest.
    """
    ### BEGIN SOLUTION
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = row
        attention_mask[i, : len(row)] = 1
    return input_ids, attention_mask
    ### END SOLUTION

# %% tags=["check"]
lesson_02.pad_batch.check(pad_batch)

# %% [markdown] tags=["exercise"]
# ### Exercise 4: the price of padding
#
# **Goal**: the share of token places that are padding, when rows are taken in the order given and
# each batch is padded to its longest row.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `padding_share(lengths, batch_size)`: a list of whole numbers, a whole number → a
# number between 0 and 1

# %% tags=["solution"] jupyter={"source_hidden": true}
def padding_share(lengths, batch_size):
    """Padding as a share of all token places of an epoch.

    lengths: a list of N tokens a row; batch_size: rows a batch, the last one may be short. Returns
    a number.
    """
    ### BEGIN SOLUTION
    places = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        places += max(batch) * len(batch)
    return (places - sum(lengths)) / places
    ### END SOLUTION

# %% tags=["check"]
lesson_02.padding_share.check(padding_share)

# %% [markdown] tags=["exercise"]
# ### Exercise 5: spot the flaw, a mask that does not fit
#
# **Goal**: count the padding that a model would read and the real tokens that are hidden from it.
# Then find the two wrong loops of section 5: the first cell holds what each of them lets the model
# read, `read_by`, and the real tokens of the rows, `row_lengths`.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `audit_mask(attention_mask, lengths)`: (B, L) of 0 and 1, (B,) real tokens of each
# row → two whole numbers: (padding that is read, tokens that are hidden)

# %% tags=["solution"] jupyter={"source_hidden": true}
def audit_mask(attention_mask, lengths):
    """How many places of a mask are wrong, in each direction.

    attention_mask: (B, L), 1 where the model reads; lengths: (B,) real tokens, which come first in
    each row. Returns (padding that is read, real tokens that are hidden) as Python numbers.
    """
    ### BEGIN SOLUTION
    real = torch.arange(attention_mask.shape[1]) < lengths[:, None]  # (B, L)
    read = attention_mask == 1
    return (read & ~real).sum().item(), (~read & real).sum().item()
    ### END SOLUTION

# %% tags=["check"]
lesson_02.audit_mask.check(audit_mask)

# %% [markdown]
# The three loops of section 5, audited. A reads padding; C hides the end token of every row, and
# with it the place where a decoder gives its answer.

# %%
pd.DataFrame(
    [audit_mask(mask, row_lengths) for mask in read_by.values()],
    columns=["padding that is read", "tokens that are hidden"],
    index=list(read_by),
)

# %% [markdown] tags=["exercise"]
# ### Exercise 6: spot the flaw, test rows in train
#
# **Goal**: a score looks too good. Find the test rows that are in train as well, whatever their
# capitals and punctuation, and compute the accuracy of the others.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `clean_score(train, test, right)`: two lists of texts, a list of True and False
# (was the test row answered right) → (how many *test* rows leak, accuracy of the rows that do not)

# %% tags=["solution"] jupyter={"source_hidden": true}
def clean_score(train, test, right):
    """The rows of test that are in train, and the accuracy without them.

    train, test: lists of texts; right: a list of True and False, one for each test row. Returns
    (how many test rows leak, accuracy of the others) as Python numbers.
    """
    ### BEGIN SOLUTION
    def plain(text):
        return " ".join(re.findall(r"\w+", text.lower()))

    seen = {plain(text) for text in train}
    kept = [hit for text, hit in zip(test, right, strict=True) if plain(text) not in seen]
    return len(test) - len(kept), sum(kept) / len(kept)
    ### END SOLUTION

# %% tags=["check"]
lesson_02.clean_score.check(clean_score)

# %% [markdown] tags=["exercise"]
# ### Exercise 7: spot the flaw, which split is it?
#
# **Goal**: say for each split whether a reported accuracy can come from its number of rows. Then
# find the row of the table in section 6 that does not come from the test set: the first cell holds
# the table, `claimed`, with four digits after the point, and the rows of the splits,
# `claimed_rows`.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `possible_splits(reported, rows, digits)`: a number with that many digits after the
# point, a list of whole numbers, a whole number → a list of True and False

# %% tags=["solution"] jupyter={"source_hidden": true}
def possible_splits(reported, rows, digits):
    """Whether some whole number of right answers gives the reported accuracy.

    reported: an accuracy, rounded to `digits` digits after the point; rows: a list with the number
    of rows of each split. Returns a list of True and False.
    """
    ### BEGIN SOLUTION
    possible = []
    for n in rows:
        k = round(reported * n)  # the nearest number of right answers
        possible.append(round(k / n, digits) == reported)
    return possible
    ### END SOLUTION

# %% tags=["check"]
lesson_02.possible_splits.check(possible_splits)

# %% [markdown]
# The table of section 6, audited. One score can only come from the training split:

# %%
pd.DataFrame(
    [possible_splits(score, list(claimed_rows.values()), 4) for score in claimed.values()],
    columns=list(claimed_rows),
    index=list(claimed),
)

# %% [markdown]
# ## Further reading
#
# - R. Sennrich, B. Haddow, A. Birch, *Neural Machine Translation of Rare Words with Subword Units*,
#   ACL 2016: byte-pair encoding, with the algorithm in twenty lines. M. Schuster, K. Nakajima,
#   *Japanese and Korean Voice Search*, ICASSP 2012: WordPiece. A. Radford et al., *Language Models
#   are Unsupervised Multitask Learners*, 2019, section 2.2: why bytes.
# - C. Sun, X. Qiu, Y. Xu, X. Huang, *How to Fine-Tune BERT for Text Classification?*, CCL 2019,
#   section 5.3.1: head, tail and both.
# - A. Broder, *On the resemblance and containment of documents*, 1997; K. Lee et al.,
#   *Deduplicating Training Data Makes Language Models Better*, ACL 2022.
# - S. Kapoor, A. Narayanan, *Leakage and the reproducibility crisis in machine-learning-based
#   science*, Patterns 2023: eight kinds of leak, found in 17 fields.
# - N. Brown, J. Heathers, *The GRIM Test*, 2017: which means are possible.
#
# Next: one backbone and many heads, [`03_heads`](03_heads.ipynb); or straight to the whole report,
# [`05_imdb_report`](05_imdb_report.ipynb).
