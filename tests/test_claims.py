"""Claims: one holder at a time, whoever is late, whatever the clock says."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tutorkit import claims
from tutorkit.claims import Claim, finish, hold, newest_claims, take, take_if_free, touch


def make_old(path: Path) -> None:
    """As if the process that holds this claim had been gone for ten minutes."""
    past = time.time() - 600
    os.utime(path, (past, past))


def at_once(work: Callable[[], object], number: int = 8) -> list[object]:
    """What as many threads, let go together, return."""
    ready, got = threading.Barrier(number), []

    def wait_and_work() -> None:
        ready.wait()
        got.append(work())

    threads = [threading.Thread(target=wait_and_work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == number
    return got


def test_a_claim_is_for_one_and_an_abandoned_one_goes_to_one(tmp_path: Path) -> None:
    def race() -> list[object]:
        return [path for path in at_once(lambda: take_if_free(tmp_path, "seed=1")) if path]

    (first,) = race()
    assert first.name == "seed=1.1.json" and race() == []  # it is alive
    make_old(first)
    (second,) = race()
    assert second.name == "seed=1.2.json" and race() == []
    # One that had found the first claim abandoned, and acts only when the second has ended.
    finish(second, "done")
    assert take(tmp_path, "seed=1", 2) is None
    assert take_if_free(tmp_path, "seed=1").name == "seed=1.3.json"


def test_the_newest_claim_of_each_name_is_told(tmp_path: Path) -> None:
    assert newest_claims(tmp_path / "none") == {}
    for number in range(1, 11):
        path = take(tmp_path, "rate=0.5,seed=1", number)
    other = take(tmp_path, "a.1", 1)
    finish(other, "failed", "ValueError: no")
    (tmp_path / "a.1.1.log").touch()
    found = newest_claims(tmp_path)
    assert found == {
        "rate=0.5,seed=1": Claim(10, fresh=True),
        "a.1": Claim(1, "failed", "ValueError: no", fresh=True),
    }
    assert found["rate=0.5,seed=1"].held and not found["a.1"].held and not Claim().held
    make_old(path)
    assert not newest_claims(tmp_path)["rate=0.5,seed=1"].held


def test_a_touch_keeps_a_claim_until_it_is_taken_over(tmp_path: Path) -> None:
    first = take(tmp_path, "a", 1)
    make_old(first)
    assert touch(first) and newest_claims(tmp_path)["a"].held
    make_old(first)
    second = take_if_free(tmp_path, "a")
    assert not touch(first) and touch(second)
    second.unlink()
    assert not touch(second)


def test_the_first_outcome_stays(tmp_path: Path) -> None:
    path = take(tmp_path, "a", 1)
    finish(path, "done")
    finish(path, "failed", "too late")
    assert newest_claims(tmp_path)["a"] == Claim(1, "done", None, fresh=True)


def test_the_age_of_a_claim_is_told_by_the_clock_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(tmp_path, "a", 1)
    monkeypatch.setattr(time, "time", lambda: 1e12)  # this machine's clock is wrong
    assert newest_claims(tmp_path)["a"].held
    assert [path.name for path in tmp_path.iterdir()] == ["a.1.json"]


def test_holders_take_turns(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")

    def add_one() -> None:
        with hold(tmp_path, "count"):
            number = int(count.read_text())
            time.sleep(0.01)
            count.write_text(str(number + 1))

    at_once(add_one, number=5)
    assert count.read_text() == "5"
    with pytest.raises(KeyError), hold(tmp_path, "count"):
        raise KeyError  # it is given back
    assert newest_claims(tmp_path)["count"] == Claim(6, "done", fresh=True)


def test_an_abandoned_lock_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "STALE_S", 0.3)
    take(tmp_path, "plan", 1)
    with hold(tmp_path, "plan"):
        assert newest_claims(tmp_path)["plan"].number == 2
