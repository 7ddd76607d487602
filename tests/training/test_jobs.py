"""Folds side by side (--jobs): the same results, one Ctrl-C, nothing lost when a process dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import config
import engine
import run_directory
import train
import utils
from runtime.errors import RunError, UserError
from tests.helpers import fault_runs, support
from training import fold as training_fold
from training import run as training_run

ROOT = Path(__file__).resolve().parents[2]
RUN = ("--cv", "3", "--epochs", "3", "--batch-size", "8", "--save-top", "1", *support.FAST)


def words(root: Path, saved: Path, *more: str) -> list[str]:
    return ["--train-root", str(root), "--save-path", str(saved), *RUN, *more]


@pytest.fixture(scope="module")
def unbroken(train_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the three folds give one after the other, in one process."""
    saved = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training_run.registries.BACKBONES, "tiny", support.TINY)
        assert train.main(words(train_root, saved, "--jobs", "1")) == 0
        return fault_runs.result(saved)


def test_folds_side_by_side_are_bit_for_bit_those_of_one_process(
    train_root: Path, tmp_path: Path, unbroken: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    assert train.main(words(train_root, tmp_path, "--jobs", "2")) == 0
    assert fault_runs.result(tmp_path) == unbroken
    out = capfd.readouterr().out
    assert "1 thread, 0 workers, 2 folds side by side" in out
    lines = re.findall(r"^fold (\d)  epoch +\d/3 ", out, re.MULTILINE)
    assert sorted(lines) == sorted("012" * 3)
    assert out.count("out-of-fold, ") == 1


def start(root: Path, saved: Path) -> subprocess.Popen[str]:
    """The command in a process, its state kept after every step; returns within the folds."""
    command = [sys.executable, str(ROOT / "tests/helpers/run_tiny.py"), "train.py"]
    process = subprocess.Popen(
        [*command, *words(root, saved, "--jobs", "2")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SAVE_SECONDS": "0"},
    )
    limit = time.monotonic() + support.LIMIT
    while len(list(saved.glob("*/fold0[01]/state.pt"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    return process


def resumed(root: Path, saved: Path, jobs: str = "2") -> dict[str, object]:
    """What a stopped run has given when --resume has brought it to its end."""
    assert train.main(words(root, saved, "--resume", "--jobs", jobs)) == 0
    return fault_runs.result(saved)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that it started."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_all_folds_and_resume_gives_the_same_bits(
    number: signal.Signals, train_root: Path, tmp_path: Path, unbroken: dict[str, object]
) -> None:
    process = start(train_root, tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=support.LIMIT)
    assert process.returncode == 128 + number
    stopped = [line for line in err.splitlines() if "warning" not in line]
    assert stopped
    assert all(re.match(r"train.py( \(process 1\))?: stopped", line) for line in stopped)
    assert "Traceback" not in err
    assert resumed(train_root, tmp_path) == unbroken


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let the processes finish")
def test_a_kill_ends_all_processes_and_resume_gives_the_same_bits(
    train_root: Path, tmp_path: Path, unbroken: dict[str, object]
) -> None:
    process = start(train_root, tmp_path)
    started = children(process)
    assert started
    process.kill()
    process.communicate(timeout=support.LIMIT)
    limit = time.monotonic() + support.LIMIT
    while any(map(is_running, started)):
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert resumed(train_root, tmp_path) == unbroken


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_dies_is_said_and_its_folds_are_resumed(
    train_root: Path, tmp_path: Path, unbroken: dict[str, object]
) -> None:
    process = start(train_root, tmp_path)
    for pid in children(process):
        os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=support.LIMIT)
    assert process.returncode == 1
    assert "another process of this run ended; its message tells why; go on with --resume" in err
    assert "Traceback" not in err
    assert resumed(train_root, tmp_path, jobs="1") == unbroken


def test_a_fold_that_diverges_in_another_process_is_marked(
    train_root: Path, tmp_path: Path, unbroken: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    plain, in_step = engine.to_network, utils.derive_seed("step", 42, 1, 2)

    def spoil(compute: engine.Compute, pixels: torch.Tensor) -> torch.Tensor:
        return plain(compute, pixels) * (float("nan") if torch.initial_seed() == in_step else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "to_network", spoil)
        assert train.main(words(train_root, tmp_path, "--jobs", "2")) == 1
    out = capfd.readouterr().out
    assert re.search(r"^ +1  failed: fold 1, epoch \d, step \d of \d: loss is NaN", out, re.M)
    (run,) = tmp_path.iterdir()
    assert run_directory.read_run_json(run)["failed"].keys() == {"1"}
    assert resumed(train_root, tmp_path) == unbroken


def test_a_full_disk_in_another_process_is_no_success(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training_fold.fold_state.save_validation

    def fail(folder: Path, *rest: object) -> None:
        if folder.name == "fold01":
            raise RunError(f"{folder}: cannot be written (no space left)")
        plain(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training_fold.fold_state, "save_validation", fail)
    with pytest.raises(RunError, match="another process of this run ended"):
        train.main(words(train_root, tmp_path, "--jobs", "2"))


def test_jobs_are_as_many_as_processors_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str = "cpu", **options: object) -> int:
        settings = config.TrainSettings(**options)  # type: ignore[arg-type]
        return training_run.choose_jobs(settings, torch.device(device))

    monkeypatch.setattr(training_run, "PROCESS_BYTES", 2**30)
    monkeypatch.setattr(training_run, "usable_processors", lambda: 8)
    monkeypatch.setattr(training_run, "free_memory", lambda: 2.0**40)
    assert chosen() == 1
    assert chosen(cv=5) == 5
    assert chosen(cv=10) == 8
    assert chosen(cv=10, threads=3) == 2
    assert chosen(cv=10, folds=(2, 4)) == 2
    assert chosen("cuda", cv=5) == 1
    assert chosen("cuda", cv=5, jobs=3) == 3
    assert chosen(cv=5, jobs=9) == 5
    monkeypatch.setattr(training_run, "free_memory", lambda: 20.0 * 2**30)
    assert chosen(cv=5) == 2  # EfficientNet-b3 at 224 px, batches of 32
    assert chosen(cv=5, image_size=96) == 5
    monkeypatch.setattr(training_run, "free_memory", lambda: 0.0)  # the system does not say
    assert chosen(cv=5) == 1


def test_the_last_folds_get_the_threads_of_those_that_are_done(
    train_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "usable_processors", lambda: 8)
    settings = config.TrainSettings.parse(
        words(train_root, Path("x"), "--cv", "5", "--jobs", "3"), "train.py", ""
    )
    context = training_run.prepare_run(settings.completed())
    assert [context.threads(number) for number in context.folds] == [1] * 5  # as --threads says
    context.settings["threads"] = None
    assert [context.threads(number) for number in context.folds] == [2, 2, 2, 4, 4]


def test_jobs_without_folds_are_refused() -> None:
    with pytest.raises(UserError, match="--jobs 2: trains folds side by side; use --cv, or leave"):
        config.TrainSettings(jobs=2).completed()
