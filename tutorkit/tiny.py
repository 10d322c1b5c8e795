"""Two-layer models with random weights and a small tokenizer: offline, in a second.

They know no language. Their use is to watch shapes, and to test every path that a real model takes
in milliseconds instead of minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import resources

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]")
HIDDEN_SIZE = 32
MAX_POSITIONS = 256


def build(name: str, id2label: Mapping[int, str]):
    """Build (model, tokenizer): `tiny` is an encoder like BERT, `tiny-decoder` one like Llama.

    The weights come from torch's random state: seed it first.
    """
    import transformers

    tokenizer = build_tokenizer(decoder=name == "tiny-decoder")
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
        "id2label": dict(id2label),
        "label2id": {label: i for i, label in id2label.items()},
    }
    if name == "tiny":
        # No dropout of attention weights, as models.load_model has it for every encoder.
        config = transformers.BertConfig(**shape, attention_probs_dropout_prob=0.0)
        return transformers.BertForSequenceClassification(config), tokenizer
    config = transformers.LlamaConfig(
        **shape, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id
    )
    return transformers.LlamaForSequenceClassification(config), tokenizer


def build_tokenizer(decoder: bool = False):
    """A WordPiece tokenizer: all ASCII characters and the commonest words of the built-in reviews.

    An encoder's puts [CLS] before and [SEP] after a text. A decoder's adds nothing and pads with
    its end-of-text token, as many published decoders do.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    reviews = resources.files("tutorkit.datasets.reviews").joinpath("reviews.jsonl")
    words = Counter(reviews.read_text(encoding="utf-8").lower().split())
    characters = [chr(c) for c in range(33, 127)]
    # Sorted by count and then by spelling: the same vocabulary on every machine.
    common = sorted((w for w in words if w.isalpha() and len(w) > 1), key=lambda w: (-words[w], w))
    vocab = [*SPECIAL, *characters, *(f"##{c}" for c in characters), *common[:500]]
    tokenizer = Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {"unk_token": "[UNK]", "model_max_length": MAX_POSITIONS}
    if decoder:
        names |= {"pad_token": "[EOS]", "eos_token": "[EOS]"}
    else:
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
