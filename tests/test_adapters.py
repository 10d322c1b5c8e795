"""What each method adds, trains, counts and saves."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from tutorkit import adapter_files
from tutorkit.adapter_files import load_adapter, save_adapter
from tutorkit.adapters import METHODS, Bottleneck, linear_names, merge, prepare, trained_by_part
from tutorkit.data import SentimentDataset
from tutorkit.fast_bert import FastBert, faster
from tutorkit.low_rank import AdaLoraBudget
from tutorkit.models import count_parameters, load_model, save_model
from tutorkit.training import TrainConfig, evaluate, fit

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["good", "a bad film", "fine fine fine", "dull", "great fun", "not good at all", "bad bad"]
LABELS = [1, 0, 1, 0, 1, 0, 0]
CONFIG = TrainConfig(epochs=2, batch_size=2, learning_rate=1e-2, precision="fp32", device="cpu",
                     checkpoint_every=1)  # fmt: skip
ADDING = ["adapter", "lora", "adalora"]
# bitfit is missing for a decoder, which has no biases
PAIRS = [("tiny", m) for m in METHODS] + [("tiny-decoder", m) for m in METHODS if m != "bitfit"]
L, H, FF, C = 2, 32, 64, 2  # layers, width, feed-forward width and classes of `tiny`


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test catches it."""


def rows(loaded) -> SentimentDataset:
    return SentimentDataset(TEXTS, LABELS, loaded.tokenizer, 16)


def logits(model) -> torch.Tensor:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        return model(torch.arange(8).view(2, 4) + 5, attention_mask=mask).logits


def trained(name: str, method: str, folder=None, callbacks=(), **settings):
    """A tiny model after a few steps of a method."""
    loaded = load_model(name, seed=0)
    prepare(loaded, method, **settings)
    extra = [AdaLoraBudget(loaded.model)] if method == "adalora" else []
    fit(loaded.model, rows(loaded), None, CONFIG, folder, [*extra, *callbacks])
    return loaded


# --- what starts and what trains ------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_only_what_should_train_trains(name, method):
    """Compared by value: all the listed parameters move in a few steps, and no others."""
    loaded = load_model(name)
    names = prepare(loaded, method)
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    fit(loaded.model, rows(loaded), None, CONFIG)  # without AdaLoRA's budget: it sets ranks to zero
    after = dict(loaded.model.named_parameters())
    moved = [n for n, p in after.items() if not torch.equal(p, before[n])]
    # A shift of all keys changes no attention weight: their bias moves by rounding alone.
    still = {n for n in names if n.endswith("attention.self.key.bias")}
    assert set(moved) | still == set(names)
    assert names == [n for n, p in after.items() if p.requires_grad]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_the_start_is_the_backbones_own(name, method):
    loaded = load_model(name)
    expected, kind = logits(loaded.model), type(loaded.model)
    prepare(loaded, method)
    torch.testing.assert_close(logits(loaded.model), expected, rtol=0, atol=1e-6)
    assert type(loaded.model) is kind and not loaded.model.training


@pytest.mark.parametrize("method", METHODS)
def test_the_fast_form_gives_the_plain_logits(method):
    model = trained("tiny", method).model
    assert type(model) is BertForSequenceClassification and isinstance(faster(model), FastBert)
    torch.testing.assert_close(logits(faster(model)), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ADDING)
def test_bf16_and_accumulation(method):
    loaded = load_model("tiny")
    prepare(loaded, method)
    config = TrainConfig(epochs=2, batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2,
                         precision="bf16", device="cpu")  # fmt: skip
    start = logits(loaded.model)
    fit(loaded.model, rows(loaded), None, config)
    assert not torch.equal(logits(loaded.model), start)
    exact = evaluate(loaded.model, rows(loaded), precision="fp32", device="cpu").probabilities
    near = evaluate(loaded.model, rows(loaded), precision="bf16", device="cpu").probabilities
    assert abs(exact - near).max() < 0.03


def test_the_same_seed_gives_the_same_start_and_leaves_the_callers_numbers():
    starts = []
    for seed in (0, 0, 1):
        model = load_model("tiny").model
        torch.manual_seed(5)
        prepare(model, "adapter", seed=seed)
        starts.append((model.state_dict(), torch.rand(1)))
    down = "bert.encoder.layer.0.output.dropout.adapter.down.weight"
    assert torch.equal(starts[0][0][down], starts[1][0][down])
    assert not torch.equal(starts[0][0][down], starts[2][0][down])
    assert starts[0][1] == starts[1][1] == starts[2][1]


def test_a_bottleneck_stands_before_each_residual_add():
    """With D = 0, U φ(c) + d adds a constant to what the norm after it gets."""
    model = load_model("tiny").model
    prepare(model, "adapter", bottleneck=3)
    output = model.bert.encoder.layer[0].attention.output
    x, residual = torch.randn(1, 2, H), torch.randn(1, 2, H)
    with torch.no_grad():
        output.dropout.adapter.down.weight.zero_()
        output.dropout.adapter.up.bias.copy_(torch.linspace(0, 1, H))
        expected = output.LayerNorm(output.dense(x) + torch.linspace(0, 1, H) + residual)
        torch.testing.assert_close(output(x, residual), expected)
    assert Bottleneck(4, 2)(torch.ones(0, 3, 4)).shape == (0, 3, 4)


# --- counts, by hand ------------------------------------------------------------------------------

HEAD = H * C + C
NORMS = 2 * H * (1 + 2 * L)  # embeddings, and two a layer
BIASES = L * (3 * H + H + FF + H + 2 * H) + H + H  # layers with their norms, embeddings', pooler


@pytest.mark.parametrize(("method", "settings", "expected"), [
    ("head", {}, HEAD),
    ("bitfit", {}, HEAD + BIASES),
    *(("adapter", {"bottleneck": m}, HEAD + NORMS + 2 * L * (2 * m * H + H + m))
      for m in (1, 8, 64)),
    *(("lora", {"r": r}, HEAD + L * 2 * r * (H + H)) for r in (1, 4, 16)),
    ("lora", {"r": 4, "target_modules": ["intermediate.dense"]}, HEAD + L * 4 * (H + FF)),
    ("lora", {"r": 4, "target_modules": "dense"}, HEAD + L * 4 * (2 * H + 2 * (H + FF))),
    *(("adalora", {"init_r": r, "target_r": 1}, HEAD + L * 2 * (r * (H + H) + r)) for r in (2, 12)),
])  # fmt: skip
def test_trained_parameters_by_formula(method, settings, expected):
    model = load_model("tiny").model
    prepare(model, method, **settings)
    assert count_parameters(model)[1] == expected


def test_a_decoders_counts_by_formula():
    model = load_model("tiny-decoder").model
    prepare(model, "lora", r=4)
    assert count_parameters(model)[1] == H * C + L * 2 * 4 * (H + H)  # a head without biases
    model = load_model("tiny-decoder").model
    prepare(model, "adapter", bottleneck=4)
    norms, bottlenecks = H * (2 * L + 1), 2 * L * (2 * 4 * H + H + 4)
    assert count_parameters(model)[1] == H * C + norms + bottlenecks


def test_what_trains_by_part():
    model = load_model("tiny").model
    prepare(model, "adapter", bottleneck=8)
    total, count = count_parameters(model)
    table = {row["part"]: row["trained"] for row in trained_by_part(model)}
    assert table == {"bottlenecks": 2 * L * (2 * 8 * H + H + 8), "head": HEAD, "norms": NORMS,
                     "total": count}  # fmt: skip
    assert trained_by_part(model)[-1]["share"] == count / total
    for method in METHODS:
        model = load_model("tiny").model
        prepare(model, method)
        *parts, last = [row["trained"] for row in trained_by_part(model)]
        assert sum(parts) == last == count_parameters(model)[1]
    parts = {row["part"] for row in trained_by_part(model)}
    assert parts == {"low-rank factors", "head", "total"}  # the last one is adalora


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "settings", "message"), [
    ("prefix", {}, r"method: expected one of \('full', .*'adalora'\), found 'prefix'"),
    ("lora", {"rank": 4}, r"lora: expected settings among \('r', .*found 'rank'"),
    ("head", {"r": 4}, r"head: expected settings among \(\), found 'r'"),
    ("lora", {"r": 0}, "r: expected a whole number from 1, found 0"),
    ("lora", {"r": True}, "r: expected a whole number from 1, found True"),
    ("adapter", {"bottleneck": 1.5}, "bottleneck: expected a whole number from 1, found 1.5"),
    ("lora", {"lora_alpha": 0}, "expected lora_alpha above 0"),
    ("lora", {"lora_dropout": 1.0}, "lora_dropout in 0…1"),
    ("adalora", {"init_r": 8, "target_r": 8}, "target_r: expected a rank below init_r = 8"),
    ("lora", {"target_modules": ["query", "q_proj"]},
     r"linear layers \['attention.self.query', .*'output.dense'\], found 'q_proj'"),
    ("lora", {"target_modules": ["classifier"]}, "target_modules: .*found 'classifier'"),
    ("lora", {"target_modules": ["uery"]}, "target_modules: .*found 'uery'"),
])  # fmt: skip
def test_wrong_methods_and_settings_are_refused(method, settings, message):
    model = load_model("tiny").model
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        prepare(model, method, **settings)
    assert before.keys() == model.state_dict().keys()


def test_models_that_a_method_does_not_fit_are_refused():
    decoder = load_model("tiny-decoder").model
    with pytest.raises(ValueError, match="bitfit: expected a model with biases, found 'llama'"):
        prepare(decoder, "bitfit")
    assert "self_attn.q_proj" in linear_names(decoder)
    decoder.config.model_type = "mamba"
    with pytest.raises(ValueError, match="adapter: expected a model of type .*found 'mamba'"):
        prepare(decoder, "adapter")
    with pytest.raises(ValueError, match="target_modules: expected names among .*self_attn.q_proj"):
        prepare(decoder, "lora")


def test_a_model_is_prepared_once():
    model = load_model("tiny").model
    prepare(model, "head")
    prepare(model, "adapter")  # nothing had been added yet
    with pytest.raises(ValueError, match="found one prepared with 'adapter': load a fresh one"):
        prepare(model, "lora")


# --- merged, resumed, saved -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_merged_gives_the_same_logits_as_a_plain_model(tmp_path, method):
    loaded = trained("tiny", method)
    apart = logits(loaded.model)
    merge(loaded)
    torch.testing.assert_close(logits(loaded.model), apart, rtol=1e-5, atol=1e-5)
    assert loaded.model.state_dict().keys() == load_model("tiny").model.state_dict().keys()
    save_model(loaded, tmp_path / "model", "")
    again = load_model(str(tmp_path / "model")).model
    assert torch.equal(logits(again), logits(loaded.model))


def test_there_is_nothing_to_merge_in_bottlenecks():
    model = load_model("tiny").model
    prepare(model, "adapter")
    with pytest.raises(ValueError, match="found no low-rank updates: bottlenecks can't be merged"):
        merge(model)


@pytest.mark.parametrize("method", ["adapter", "lora"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, method):
    def kill(event, state):
        if event == "checkpoint" and state.step == 5:
            raise Killed

    with pytest.raises(Killed):
        trained("tiny", method, tmp_path, [kill])
    resumed, expected = trained("tiny", method, tmp_path), trained("tiny", method)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_saved_and_loaded_onto_a_fresh_backbone(tmp_path, name, method):
    loaded = trained(name, method)
    size = save_adapter(loaded, tmp_path / "adapter")
    on_disk = [p.stat().st_size for p in (tmp_path / "adapter").iterdir()]
    assert len(on_disk) == 2 and sum(on_disk) == size
    kept = {n for n, _ in loaded.model.named_buffers() if n.endswith(".kept")}
    names = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert load_file(tmp_path / "adapter" / "adapter.safetensors").keys() == names | kept
    fresh = load_model(name, seed=0)
    assert set(load_adapter(fresh, tmp_path / "adapter")) == names
    assert torch.equal(logits(fresh.model), logits(loaded.model))


def test_minilm_lora_takes_a_few_hundred_kilobytes(tmp_path):
    loaded = load_model("minilm")
    prepare(loaded, "lora", r=8)
    assert 200_000 < save_adapter(loaded, tmp_path / "adapter") < 400_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    save_adapter(trained("tiny", "adapter", bottleneck=4), folder)
    return folder


def refused(model, folder, error, message):
    """Refused, and every weight and name as it was."""
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(error, match=message):
        load_adapter(model, folder)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_adapters_of_other_models_and_methods_are_refused(saved):
    refused(load_model("tiny-decoder").model, saved, ValueError, "of another architecture")
    refused(load_model("tiny", {0: "a", 1: "b", 2: "c"}).model, saved, ValueError,
            "of another architecture: expected .*'num_labels': 3")
    refused(load_model("tiny", seed=1).model, saved, ValueError, "of another backbone")
    for method, settings in (("head", {}), ("adapter", {"bottleneck": 5})):
        model = load_model("tiny").model
        prepare(model, method, **settings)
        refused(model, saved, ValueError, "of another method: the model was prepared as")
    same = load_model("tiny").model
    prepare(same, "adapter", bottleneck=4)
    load_adapter(same, saved)


@pytest.mark.parametrize("name", adapter_files.FILES)
def test_damaged_and_missing_files_are_refused(saved, tmp_path, name):
    whole = {n: (saved / n).read_bytes() for n in adapter_files.FILES}

    def put(content):
        for other, its in whole.items():
            (tmp_path / other).write_bytes(its)
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)

    model = load_model("tiny").model
    put(None)
    refused(model, tmp_path, FileNotFoundError, f"found no {name}: name a folder that save_adap")
    flipped = bytearray(whole[name])
    flipped[-2] ^= 1
    about = json.loads(whole["adapter.json"])
    about["settings"]["bottleneck"] = 5
    for content in (b"", whole[name][:-9], bytes(flipped), b"[]", json.dumps(about).encode()):
        put(content)
        refused(model, tmp_path, ValueError, "is damaged: expected two whole files that belong")


def test_saving_replaces_an_adapter_and_nothing_else(tmp_path, monkeypatch):
    model = load_model("tiny").model
    with pytest.raises(ValueError, match="prepared by tutorkit.adapters.prepare, found one that"):
        save_adapter(model, tmp_path / "a")
    prepare(model, "head")
    save_adapter(model, tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"one of its own for the adapter, found '\w+"):
        save_adapter(model, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(adapter_files.Path, "write_bytes", full)
        with pytest.raises(OSError, match="could not write the adapter to .*free some disk space"):
            save_adapter(model, tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    with torch.no_grad():
        model.classifier.bias.add_(1)
    save_adapter(model, tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}.keys() == before.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "notes.txt"]
