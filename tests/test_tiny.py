"""The random models: small, offline, the same on every machine."""

from __future__ import annotations

import pytest
import torch

from tutorkit import tiny

LABELS = {0: "negative", 1: "positive"}


@pytest.fixture(scope="module", params=["tiny", "tiny-decoder"])
def built(request):
    torch.manual_seed(0)
    return request.param, *tiny.build(request.param, LABELS)


def test_shapes(built):
    name, model, tokenizer = built
    config = model.config
    assert config.model_type == ("bert" if name == "tiny" else "llama")
    assert (config.num_hidden_layers, config.hidden_size) == (2, tiny.HIDDEN_SIZE)
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == tokenizer.model_max_length == tiny.MAX_POSITIONS
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.id2label == LABELS
    assert config.label2id == {"negative": 0, "positive": 1}
    logits = model(**tokenizer(["a good film", "no"], padding=True, return_tensors="pt")).logits
    assert logits.shape == (2, 2)


def test_three_classes():
    model, tokenizer = tiny.build("tiny", {0: "bad", 1: "fair", 2: "good"})
    assert model(**tokenizer("fine", return_tensors="pt")).logits.shape == (1, 3)


def test_weights_follow_torchs_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in tiny.build("tiny", LABELS)[0].parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_encoder_frames_a_text_and_decoder_does_not():
    text = "The film"
    encoder, decoder = tiny.build_tokenizer(), tiny.build_tokenizer(decoder=True)
    assert encoder.convert_ids_to_tokens(encoder(text)["input_ids"]) == [
        "[CLS]", "the", "film", "[SEP]",
    ]  # fmt: skip
    assert decoder.convert_ids_to_tokens(decoder(text)["input_ids"]) == ["the", "film"]
    assert decoder.pad_token_id == decoder.eos_token_id
    assert decoder.cls_token_id is None


def test_every_printable_ascii_text_has_tokens_of_its_own():
    tokenizer = tiny.build_tokenizer()
    text = " ".join(chr(c) for c in range(33, 127)) + " zxqj 8.5/10 don't!?"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert "".join(t.removeprefix("##") if len(t) > 2 else t for t in tokens) == (
        text.lower().replace(" ", "")
    )
    assert tokenizer("中", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_vocabulary_is_the_same_each_time_and_without_repeats():
    first, second = tiny.build_tokenizer(), tiny.build_tokenizer()
    assert first.get_vocab() == second.get_vocab()
    assert sorted(first.get_vocab().values()) == list(range(len(first)))
    assert [first.convert_ids_to_tokens(i) for i in range(5)] == list(tiny.SPECIAL)
