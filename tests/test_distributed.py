"""Several processes: two on the CPU do what one does, under every launcher, and end together."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tutorkit.data import SentimentDataset, take_rows
from tutorkit.launch import main as launch_main
from tutorkit.models import load_model
from tutorkit.sources import load_splits
from tutorkit.training import evaluate, make_accelerator

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "tests" / "assets" / "distributed_run.py"

spec = importlib.util.spec_from_file_location("distributed_run", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

pytestmark = pytest.mark.usefixtures("one_thread")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(folder: Path, command: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HOME": str(folder / "hf"),
                   "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, text=True,
                          capture_output=True, timeout=240)  # fmt: skip


def accelerate_launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    # With --cpu the launcher starts processes by MPI only; device="cpu" in the script does without.
    return launch(folder, ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes",
                           "2", "--num_machines", "1", "--mixed_precision", "no",
                           "--dynamo_backend", "no", "--main_process_port", free_port(),
                           str(SCRIPT), str(folder), *arguments])  # fmt: skip


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return launch(folder, ["-m", "torch.distributed.run", "--nproc-per-node", "2",
                           "--master-port", free_port(), *arguments])  # fmt: skip


def results(folder: Path, name: str, done: subprocess.CompletedProcess, ends=True) -> list[dict]:
    assert (done.returncode == 0) == ends, done.stderr[-3000:]
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a checkpoint of a run of one process that was stopped."""
    folder = tmp_path_factory.mktemp("distributed")
    stopped = script.train(script.CONFIG, folder=folder / "one-to-two",
                           callbacks=[script.stop_in_last])  # fmt: skip
    assert len(stopped["losses"]) == script.STOP_AT
    return folder


@pytest.fixture(scope="module")
def launched(folder):
    """The scenarios under `accelerate launch`: what it printed, and each process's results."""
    done = accelerate_launch(folder, "accelerate", "accumulation", "idle", "plain", "bf16",
                             "evaluations", "stop", "resume", "remove", "apart",
                             "not finite")  # fmt: skip
    return done, results(folder, "accelerate", done)


@pytest.fixture(scope="module")
def alone():
    """Runs of this one process, uninterrupted."""
    return {"accumulation": script.train(script.CONFIG), "plain": script.train(script.PLAIN),
            "idle": script.train(script.CONFIG, count=9)}  # fmt: skip


def assert_equal_runs(found: dict, expected: dict, atol: float = 1e-5) -> None:
    for name in ("losses", "grad_norms", "evaluations", "best", "after"):
        np.testing.assert_allclose(found[name], expected[name], atol=atol, err_msg=name)
    np.testing.assert_allclose(found["sums"], expected["sums"], atol=10 * atol)


@pytest.mark.parametrize("name", ["accumulation", "idle", "plain"])
def test_two_processes_do_what_one_does(launched, alone, name):
    first, second = (found[name] for found in launched[1])
    assert (launched[1][0]["world"], len(first["losses"])) == (2, len(alone[name]["losses"]))
    assert len(set(first["losses"])) > 3
    assert_equal_runs(first, alone[name])
    assert first == second
    assert first["after"] == first["best"]  # both hold the weights of the best evaluation


def test_torchrun_does_the_same_and_an_error_in_one_process_ends_all(folder, alone):
    begun = time.perf_counter()
    done = torchrun(folder, str(SCRIPT), str(folder), "torchrun", "accumulation", "error")
    seconds = time.perf_counter() - begun
    for found in results(folder, "torchrun", done, ends=False):
        assert found["world"] == 2
        assert_equal_runs(found["accumulation"], alone["accumulation"])
        assert "error" not in found
    assert "OSError: no space left, in one process" in done.stderr
    assert seconds < 90  # a process that waits for the failed one would wait for 10 minutes or more


def test_the_command_line_leaves_weights_and_their_score(folder):
    given = {"dataset": "reviews", "model": "tiny", "train_size": 12, "validation_size": 6,
             "epochs": 1, "batch_size": 4, "max_length": 32, "precision": "fp32",
             "device": "cpu"}  # fmt: skip
    pairs = [word for name, value in given.items() for word in ("-p", name, str(value))]
    done = torchrun(folder, "-m", "tutorkit.launch", "-o", "two", *pairs)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((folder / "two" / "fit.json").read_text())
    assert record["processes"] == 2
    assert record["parameters"].items() >= given.items()
    assert len(record["steps"]) == 3
    assert done.stdout.count("validation accuracy") == 1
    names = {path.name for path in (folder / "two").iterdir()}
    assert names == {"fit.json", "model"}

    loaded = load_model(str(folder / "two" / "model"))
    rows = take_rows(load_splits("reviews")["validation"], 6, 0)
    validation = SentimentDataset(rows["text"], rows["label"], loaded.tokenizer, 32)
    score = evaluate(loaded.model, validation, precision="fp32", device="cpu")
    assert score.accuracy == record["validation"]["accuracy"]
    assert score.loss == pytest.approx(record["validation"]["loss"], abs=1e-6)


def test_the_command_line_refuses_a_finished_run(tmp_path, capsys):
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(SystemExit):
        launch_main(["-o", str(tmp_path)])
    assert "holds a finished run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["fit.json"]


def test_the_command_line_refuses_a_misspelt_parameter(tmp_path):
    with pytest.raises(ValueError, match="no parameter epoch. Did you mean epochs"):
        launch_main(["-o", str(tmp_path / "run"), "-p", "epoch", "1"])
    assert not (tmp_path / "run").exists()


def test_notebook_launcher_does_the_same(folder, alone):
    done = launch(folder, [str(SCRIPT), "notebook", free_port(), str(folder), "notebook",
                           "accumulation"])  # fmt: skip
    for found in results(folder, "notebook", done):
        assert found["world"] == 2
        assert_equal_runs(found["accumulation"], alone["accumulation"])


def test_evaluation_counts_every_row_once(launched):
    expected = script.evaluations(make_accelerator("fp32", "cpu"))
    for found in launched[1]:
        assert found["evaluations"].keys() == expected.keys()
        for name, (loss, accuracy, tokens, probabilities) in expected.items():
            theirs = found["evaluations"][name]
            assert theirs[0] == pytest.approx(loss, abs=1e-6)
            assert theirs[1:3] == [accuracy, tokens]
            np.testing.assert_allclose(theirs[3], probabilities, atol=1e-6)


def test_bf16_is_as_close_to_fp32_as_rounding_allows(launched, alone):
    for found in launched[1]:
        losses = found["bf16"]["losses"]
        np.testing.assert_allclose(losses, alone["accumulation"]["losses"], atol=2e-2)
        assert losses != found["accumulation"]["losses"]


def test_only_the_main_process_writes(launched, folder):
    main, other = (found["written"] for found in launched[1])
    assert other == []
    assert str(folder / "two-to-one") in main


def test_one_process_that_stops_stops_all(launched):
    assert [len(found["stop"]["losses"]) for found in launched[1]] == [script.STOP_AT] * 2


def test_resume_with_another_number_of_processes(launched, alone, folder):
    done, found = launched
    for each in found:
        assert each["resume"]["resumed"] == script.STOP_AT
        assert_equal_runs(each["resume"], alone["accumulation"])
    assert done.stdout.count(f"resumed at step {script.STOP_AT}") == 1
    assert done.stdout.count("training over") == 1
    back = script.train(script.CONFIG, folder=folder / "two-to-one")
    assert back["resumed"] == script.STOP_AT
    assert_equal_runs(back, alone["accumulation"])


def test_checkpoints_can_be_removed_as_soon_as_fit_returns(launched, alone, folder):
    for found in launched[1]:
        assert_equal_runs(found["remove"], alone["accumulation"])
    assert not (folder / "removed").exists()


def test_processes_that_do_not_share_the_checkpoints_are_told(launched):
    for found in launched[1]:
        assert "expected every process to resume from the same step" in found["apart"]["error"]
        assert f"found steps [{script.STOP_AT}, 0]" in found["apart"]["error"]


def test_a_loss_that_one_process_finds_not_finite_ends_all(launched):
    errors = [found["not finite"]["error"] for found in launched[1]]
    assert errors[0].startswith("step 1: expected a finite loss")
    assert errors[0] == errors[1]
