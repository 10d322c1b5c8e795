"""Where text comes from: a name becomes train, validation and test.

A name is looked up in this order: a local mirror (`$TUTORKIT_DATA/<name>/<split>.parquet`), the
Hugging Face hub, research data published on PyPI, the sets built into this package.
"""

from __future__ import annotations

import difflib
import importlib.resources
import io
import json
import numbers
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

from tutorkit.downloads import fetch_from_pypi, hub_is_reachable

IMDB_ON_HUB = ("stanfordnlp/imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31")
VADER = {
    "requirement": "vaderSentiment==3.3.2",
    "filename": "vaderSentiment-3.3.2.tar.gz",
    "sha256": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
}
# Sentences rated by 20 people each, -4 to 4 (Hutto & Gilbert 2014): our name -> file.
RATED_FILES = {
    "rt_snippets": "movieReviewSnippets_GroundTruth.txt",
    "amazon_snippets": "amazonReviewSnippets_GroundTruth.txt",
    "nyt_snippets": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
WITH_LINE_BREAK_TAGS = ("imdb", "imdb_contrast")
SPLITS = ("train", "validation", "test")


class Splits(DatasetDict):
    """A `datasets.DatasetDict` that knows its name and where its rows came from.

    Attributes:
        name: the set, for example "imdb" (never "auto").
        source: the place, for example "local mirror" or "PyPI: vaderSentiment 3.3.2".
    """

    def __init__(self, tables: dict[str, Dataset], name: str, source: str) -> None:
        super().__init__(tables)
        self.name = name
        self.source = source


def load_splits(name: str = "auto", seed: int = 0, clean: bool = True) -> Splits:
    """Load a data set by name, as train, validation and test.

    `auto` takes the first that can be had of imdb (mirror or hub), rt_snippets and the built-in
    reviews. Any other name gives that set or an error, never another set.

    The columns are at least `text`, `label` (0, 1, …) and `id`. The id names the row by its place
    in the source, "train-00012" for row 12 of the file of that split, and stays with the row when
    it moves to validation; a set without splits says "all-00012", the built-in one has its own.

    Where the source has no validation split, min(1000, 10 %) of train become one, drawn with the
    seed. The test part never depends on the seed, so scores of different seeds share its rows:
    rated sentences come without splits, and their test part, min(2000, 20 %), is drawn with the
    fixed seed 0. Of rated sentences with the same text the first is kept; their label is 1 where
    the mean rating, kept as `rating`, is above 0.

    Args:
        name: one of `known_names()`.
        seed: draws validation from train, where the source has none.
        clean: take the `<br />` tags out of the IMDB texts.

    Returns:
        The splits, with `name` and `source`. Rows keep the order of the source, which may be
        sorted by label: shuffle before taking a part.

    Raises:
        ValueError: an unknown name, or rows that can't be used (the message says which).
        FileNotFoundError: the set or one of its splits is not there.
        ConnectionError: the set has to be downloaded and could not be.
    """
    if name == "auto":
        return _load_first_at_hand(seed, clean)
    if name not in known_names():
        raise ValueError(_unknown_name(name))
    if name in mirror_names():
        frames, source = _read_mirror(name), "local mirror"
    elif name == "imdb":
        frames, source = _read_hub(), f"Hugging Face Hub: {IMDB_ON_HUB[0]}"
    elif name in RATED_FILES:
        frames = _split_off_test(_read_rated(name))
        source = f"PyPI: {VADER['requirement'].replace('==', ' ')}"
    else:
        frames, source = _read_built_in(), "built in"

    for split, frame in frames.items():
        frames[split] = _checked(_cleaned(frame, name, clean), f"{name}, {split} split ({source})")
    if "validation" not in frames:
        frames["train"], frames["validation"] = _carve(frames["train"], name, seed)
    _check_labels(frames, name)
    tables = {split: _as_dataset(frames[split]) for split in SPLITS}
    return Splits(tables, name, source)


def load_mirror_split(name: str, split: str, clean: bool = True) -> Dataset:
    """Load one split of a mirrored set as it stands, for sets that lack train or test.

    Args:
        name: a folder of the mirror, for example "imdb_contrast".
        split: its file, for example "validation".
        clean: as in `load_splits`.

    Raises:
        ValueError: rows that can't be used.
        FileNotFoundError: the mirror, the folder or the file is not there.
    """
    if name not in mirror_names():
        raise FileNotFoundError(
            f"expected {name!r} in the local mirror, found {mirror_names() or 'no mirror'}; "
            f"set TUTORKIT_DATA to a folder that holds {name}/{split}.parquet"
        )
    frame = _cleaned(_read_parquet(_mirror_file(name, split), split), name, clean)
    return _as_dataset(_checked(frame, f"{name}, {split} split (local mirror)"))


def known_names() -> list[str]:
    """Return every name that `load_splits` takes, the mirror's folders included."""
    return sorted({"auto", "imdb", "reviews", *RATED_FILES, *mirror_names()})


def mirror_names() -> list[str]:
    """Return the names of the folders in `$TUTORKIT_DATA` that hold parquet files.

    Raises:
        FileNotFoundError: the variable names a folder that is not there.
    """
    root = os.environ.get("TUTORKIT_DATA")
    if not root:
        return []
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"expected TUTORKIT_DATA to name a folder of data sets, found no folder {root}; "
            "correct the variable or unset it"
        )
    return sorted({file.parent.name for file in Path(root).glob("*/*.parquet")})


def clean_text(text: str) -> str:
    """Replace the line-break tags of a web page, and the white space around them, by a space.

    Example:
        >>> clean_text("Great.<br /><br />See it!")
        'Great. See it!'
    """
    return re.sub(r"\s*(?:<br\s*/?>\s*)+", " ", text, flags=re.IGNORECASE).strip()


def find_duplicates(splits: DatasetDict) -> dict[str, int]:
    """Count texts that occur more than once, compared exactly.

    Args:
        splits: with train and test; validation, where there is one, counts as train.

    Returns:
        `within_train` and `within_test`: rows whose text already stood in an earlier row of
        the same part; `across`: different texts that stand in both parts.
    """
    train = list(splits["train"]["text"])
    if "validation" in splits:
        train += list(splits["validation"]["text"])
    test = list(splits["test"]["text"])
    return {
        "within_train": len(train) - len(set(train)),
        "within_test": len(test) - len(set(test)),
        "across": len(set(train) & set(test)),
    }


def _load_first_at_hand(seed: int, clean: bool) -> Splits:
    for name in ("imdb", "rt_snippets"):
        try:
            return load_splits(name, seed, clean)
        except OSError:
            # A mirrored set that is there but damaged is an error to show, not to step around.
            if name in mirror_names():
                raise
    return load_splits("reviews", seed, clean)


def _unknown_name(name: str) -> str:
    close = difflib.get_close_matches(name, known_names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"unknown data set {name!r}: {hint}expected one of {', '.join(known_names())}; "
        f"to use your own, set TUTORKIT_DATA to a folder with <name>/train.parquet and "
        f"<name>/test.parquet, each with the columns text and label"
    )


def _mirror_file(name: str, split: str) -> Path:
    folder = Path(os.environ["TUTORKIT_DATA"], name)
    path = folder / f"{split}.parquet"
    if not path.is_file():
        found = sorted(file.stem for file in folder.glob("*.parquet"))
        raise FileNotFoundError(
            f"expected a {split} split of {name!r} at {path}, found only {', '.join(found)}; "
            "add the file, or read the splits that are there with load_mirror_split"
        )
    return path


def _read_mirror(name: str) -> dict[str, pd.DataFrame]:
    files = {split: _mirror_file(name, split) for split in ("train", "test")}
    extra = files["train"].with_name("validation.parquet")
    if extra.is_file():
        files["validation"] = extra
    return {split: _read_parquet(file, split) for split, file in files.items()}


def _read_parquet(path: Path, split: str) -> pd.DataFrame:
    import pyarrow

    try:
        frame = pd.read_parquet(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"expected a parquet file at {path}, could not read it ({error}); "
            "it may be half-written: copy or download it again"
        ) from error
    return _with_ids(frame, split)


def _read_hub() -> dict[str, pd.DataFrame]:
    import datasets

    # Offline, the loader still finds what an earlier run left in its cache, and fails at once.
    online = hub_is_reachable()
    repository, revision = IMDB_ON_HUB
    try:
        tables = datasets.load_dataset(repository, revision=revision)
    except Exception as error:
        state = "failed there" if online else "the hub does not answer"
        raise FileNotFoundError(
            f"expected imdb in a local mirror or on the Hugging Face hub ({repository}): {state} "
            f"({type(error).__name__}: {error}). Set TUTORKIT_DATA to a folder with "
            "imdb/train.parquet and imdb/test.parquet, or connect to the hub, "
            'or use dataset="auto" or "rt_snippets"'
        ) from error
    return {split: _with_ids(tables[split].to_pandas(), split) for split in ("train", "test")}


def _read_rated(name: str) -> pd.DataFrame:
    """Read one file of the archive inside the archive: id, mean rating and text, by tabs."""
    outer = fetch_from_pypi(**VADER, binary=False)
    folder = VADER["filename"].removesuffix(".tar.gz")
    inner = f"{folder}/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(outer) as archive:
        packed = archive.extractfile(inner).read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        lines = archive.extractfile(f"hutto_ICWSM_2014/{RATED_FILES[name]}").read().decode("utf-8")
    rows = [line.split("\t") for line in lines.replace("\r\n", "\n").split("\n") if line]
    frame = pd.DataFrame(
        {
            "text": [text.strip() for _, _, text in rows],
            "rating": [float(rating) for _, rating, _ in rows],
        }
    )
    frame["label"] = (frame["rating"] > 0).astype(int)
    return _with_ids(frame, "all").drop_duplicates("text").reset_index(drop=True)


def _read_built_in() -> dict[str, pd.DataFrame]:
    file = importlib.resources.files("tutorkit") / "datasets" / "reviews" / "reviews.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = pd.DataFrame([json.loads(line) for line in lines if line])
    return {split: part.drop(columns="split") for split, part in rows.groupby("split")}


def _with_ids(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    if "id" in frame:
        frame = frame.rename(columns={"id": "source_id"})
    width = max(5, len(str(len(frame))))
    return frame.assign(id=[f"{split}-{row:0{width}d}" for row in range(len(frame))])


def _split_off_test(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    chosen = np.random.default_rng(0).permutation(len(frame))[: min(2000, len(frame) // 5)]
    in_test = np.isin(np.arange(len(frame)), chosen)
    return {"train": frame[~in_test], "test": frame[in_test]}


def _carve(train: pd.DataFrame, name: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide train into what stays and validation, both in the order of the source."""
    if len(train) < 10:
        raise ValueError(
            f"expected at least 10 training rows in {name} to carve validation from, "
            f"found {len(train)}; add rows, or a validation split of its own"
        )
    size = min(1000, len(train) // 10)
    chosen = np.random.default_rng(seed).permutation(len(train))[:size]
    in_validation = np.isin(np.arange(len(train)), chosen)
    return train[~in_validation], train[in_validation]


def _cleaned(frame: pd.DataFrame, name: str, clean: bool) -> pd.DataFrame:
    if clean and name in WITH_LINE_BREAK_TAGS:
        for column in {"text", "original_text"} & set(frame.columns):
            # What is no text at all is left for the check that names the row.
            texts = [clean_text(t) if isinstance(t, str) else t for t in frame[column]]
            frame = frame.assign(**{column: texts})
    return frame


def _checked(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the frame, labels as integers, if every row has a text and a class number."""
    missing = {"text", "label"} - set(frame.columns)
    if missing:
        raise ValueError(
            f"{where}: expected the columns text and label, found {list(frame.columns)}; "
            f"rename or add {' and '.join(sorted(missing))}"
        )
    if len(frame) == 0:
        raise ValueError(f"{where}: expected at least one row, found none; write the file again")
    unusable = [not isinstance(text, str) or not text.strip() for text in frame["text"]]
    if any(unusable):
        row = unusable.index(True)
        raise ValueError(
            f"{where}: expected a text in every row, found {frame['text'].iloc[row]!r} in row "
            f"{row} ({sum(unusable)} such rows); remove them from the source"
        )
    odd = [label for label in frame["label"] if not _is_class(label)]
    if odd:
        raise ValueError(
            f"{where}: expected labels 0, 1, … as whole numbers, found {odd[0]!r} "
            f"({len(odd)} such rows); number the classes, and remove rows without an answer"
        )
    return frame.assign(label=frame["label"].astype("int64"))


def _is_class(label: object) -> bool:
    is_number = isinstance(label, numbers.Real) and not isinstance(label, bool)
    return is_number and label >= 0 and float(label).is_integer()


def _check_labels(frames: dict[str, pd.DataFrame], name: str) -> None:
    trained = sorted(frames["train"]["label"].unique().tolist())
    if len(trained) < 2 or trained != list(range(len(trained))):
        raise ValueError(
            f"{name}: expected training rows of two classes or more, numbered 0, 1, …, found only "
            f"the labels {trained}; check how the set was split and numbered"
        )
    for split in ("validation", "test"):
        unseen = sorted(set(frames[split]["label"]) - set(trained))
        if unseen:
            raise ValueError(
                f"{name}: expected in {split} the labels of train, {trained}, found also "
                f"{unseen}; remove those rows or add such rows to train"
            )


def _as_dataset(frame: pd.DataFrame) -> Dataset:
    return Dataset.from_pandas(frame, preserve_index=False)
