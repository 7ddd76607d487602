"""Killed, stopped and resumed runs end as unbroken ones do."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoint
import engine
import optim
import out_of_fold
import registries
import run_directory
import train
from runtime.errors import RunError, Stopped, UserError
from tests.helpers import fault_runs, support
from training import fold as training_fold
from training import fold_state


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def run(root: Path, saved: Path, *words: str) -> int:
    return train.main(
        [
            "--train-root",
            str(root),
            "--save-path",
            str(saved),
            *fault_runs.RUN,
            *support.FAST,
            *words,
        ]
    )


@pytest.fixture(scope="module")
def unbroken(train_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    saved = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        assert run(train_root, saved) == 0
        return fault_runs.result(saved)


def kill_at(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, after: bool
) -> None:
    """Die in a function's call number `call`, before or after it does its work."""
    plain: Callable[..., object] = getattr(owner, name)
    calls = iter(range(10**6))

    def dying(*args: object, **named: object) -> object:
        now = next(calls) == call
        if now and not after:
            raise Killed
        found = plain(*args, **named)
        if now:
            raise Killed
        return found

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (checkpoint, "save_checkpoint", 0),
        (checkpoint, "save_checkpoint", 3),
        (fold_state, "save_validation", 2),
        (fold_state, "save_fold_state", 1),
        (fold_state, "save_fold_state", 7),
        (checkpoint, "delete_displaced", 9),
        (engine, "validate", 4),
        (out_of_fold, "write_oof", 0),
    ],
)
def test_a_run_killed_anywhere_ends_as_if_it_had_not_been(
    train_root: Path,
    tmp_path: Path,
    unbroken: dict[str, object],
    owner: object,
    name: str,
    call: int,
    after: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training_fold, "SAVE_INTERVAL_SECONDS", 0.0
        )  # the state is kept after every step
        kill_at(patch, owner, name, call, after)
        with pytest.raises(Killed):
            run(train_root, tmp_path)
        patch.undo()
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        assert run(train_root, tmp_path, "--resume", "--workers", str(call % 2)) == 0
    assert fault_runs.result(tmp_path) == unbroken


def test_a_run_killed_before_it_deletes_in_its_last_epoch_leaves_no_displaced_checkpoint(
    train_root: Path, tmp_path: Path, unbroken: dict[str, object]
) -> None:
    plain, epochs = checkpoint.delete_displaced, list[int]()

    def dying(folder: Path, kept: list[checkpoint.KeptCheckpoint]) -> None:
        if len(list(folder.glob("*.pth"))) > len(kept):
            state = fold_state.load_fold_state(folder)
            assert state is not None
            epochs.append(state[0].epoch)
            raise Killed
        plain(folder, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "delete_displaced", dying)
        with pytest.raises(Killed):
            run(train_root, tmp_path)
    assert epochs == [3], "the data must have an epoch 3 that displaces"
    assert run(train_root, tmp_path, "--resume") == 0
    assert fault_runs.result(tmp_path) == unbroken


def test_a_broken_write_leaves_the_old_state(
    train_root: Path, tmp_path: Path, unbroken: dict[str, object]
) -> None:
    plain = torch.save
    calls = iter(range(1000))

    def full(content: object, file: object) -> None:
        if next(calls) == 5:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")
        plain(content, file)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match="No space left on device"):
            run(train_root, tmp_path)
    assert not list(tmp_path.rglob(".writing-*"))
    assert run(train_root, tmp_path, "--resume") == 0
    assert fault_runs.result(tmp_path) == unbroken


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_the_next_batch_and_loses_nothing(
    train_root: Path, tmp_path: Path, unbroken: dict[str, object], number: int
) -> None:
    calls = iter(range(1000))
    plain = engine.to_network

    def interrupted(compute: engine.Compute, pixels: torch.Tensor) -> torch.Tensor:
        if next(calls) == 9:
            os.kill(os.getpid(), number)
        return plain(compute, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "to_network", interrupted)
        with pytest.raises(Stopped, match="--resume goes on from there") as stopped:
            run(train_root, tmp_path)
    assert stopped.value.number == number
    assert run(train_root, tmp_path, "--resume") == 0
    assert fault_runs.result(tmp_path) == unbroken


def test_resume_refuses_other_settings_and_says_what_there_is(
    train_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--resume: no unfinished run in"):
        run(train_root, tmp_path, "--resume")
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, fold_state, "save_fold_state", 1, True)
        with pytest.raises(Killed):
            run(train_root, tmp_path)
    with pytest.raises(
        UserError, match=r"was trained with --lr 0\.001 \(now 0\.5\), --seed 42 \(now 1\)"
    ):
        run(train_root, tmp_path, "--resume", "--lr", "0.5", "--seed", "1")
    with pytest.raises(UserError, match="--resume nobody: no such run"):
        run(train_root, tmp_path, "--resume", "nobody")
    (tree,) = tmp_path.iterdir()
    before = (tree / "fold00" / fold_state.STATE_FILE).read_bytes()
    (tree / "fold00" / fold_state.STATE_FILE).write_bytes(before[:-1000])
    with pytest.raises(UserError, match=r"state\.pt: cannot be read safely"):
        run(train_root, tmp_path, "--resume", tree.name)
    (tree / "fold00" / fold_state.STATE_FILE).write_bytes(before)
    other = shutil.copytree(train_root, tmp_path.parent / f"{tmp_path.name}-other")
    shutil.rmtree(next((other / "images").glob("000001*")))
    text = (other / "train.csv").read_text().splitlines()
    (other / "train.csv").write_text(
        "\n".join(line for line in text if not line.startswith("000001,"))
    )
    run_json = json.loads((tree / "run.json").read_text())
    run_json["settings"]["train_root"] = str(other)
    (tree / "run.json").write_text(json.dumps(run_json))
    with pytest.raises(UserError, match="has other photographs, labels or folds"):
        run(other, tmp_path, "--resume", tree.name)


@pytest.mark.parametrize(
    "change", [{"fold": 1}, {"step": 10**6}, {"epoch": 4, "history": [{"epoch": 1.0}] * 4}]
)
def test_a_state_that_is_not_of_its_fold_is_refused(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, fold_state, "save_fold_state", 0, True)
        with pytest.raises(Killed):
            run(train_root, tmp_path)
    (path,) = tmp_path.rglob(fold_state.STATE_FILE)
    content = torch.load(path, weights_only=True)
    content["state"].update(change)
    torch.save(content, path)
    with np.load(path.parent / fold_state.VALIDATION_FILE) as arrays:
        longer: dict[str, Any] = {
            n: a if n == "files" else np.concatenate([a] * 4) for n, a in arrays.items()
        }
    np.savez(path.parent / fold_state.VALIDATION_FILE, **longer)
    with pytest.raises(
        UserError,
        match=r"state\.pt: is not of this fold \(fold ., epoch ., step \d+\); remove .*fold00 to",
    ):
        run(train_root, tmp_path, "--resume")


def test_a_photograph_that_vanishes_stops_the_run_and_once_it_is_back_the_run_goes_on(
    train_root: Path, tmp_path: Path, unbroken: dict[str, object]
) -> None:
    root = Path(shutil.copytree(train_root, tmp_path / "train"))
    lost = sorted((root / "images").glob("*/mask2.*"))[3]
    data = lost.read_bytes()
    plain, calls = engine.to_network, iter(range(1000))

    def vanishing(compute: engine.Compute, pixels: torch.Tensor) -> torch.Tensor:
        if next(calls) == 1:
            lost.unlink()
        return plain(compute, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "to_network", vanishing)
        with pytest.raises(
            UserError, match=f"{lost}: cannot be read as a photograph .No such file"
        ):
            run(root, tmp_path / "saved", "--quiet")
    lost.write_bytes(data)
    assert run(root, tmp_path / "saved", "--resume") == 0
    assert fault_runs.result(tmp_path / "saved") == unbroken


@pytest.mark.parametrize("name", registries.OPTIMIZERS)
def test_every_optimizer_goes_on_from_its_kept_state_to_the_bit(name: str) -> None:
    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(36, 2)
        )
        groups = [{"params": list(network[k].parameters()), "scale": 0.1 + k} for k in (0, 2)]
        return network.to(memory_format=torch.channels_last), optim.make_optimizer(
            name, groups, 1e-3, 0.01
        )

    def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        network(torch.ones(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    (first, own), (second, other) = made(), made()
    step(first, own)
    second.load_state_dict(first.state_dict())
    optim.load_optimizer_state(other, own.state_dict())
    step(first, own)
    step(second, other)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_two_processes_do_not_train_one_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory, "LOCK_SECONDS", 0.3)
    tree = tmp_path / "kfold-ensemble-VanillaEfficientNet_x"
    tree.mkdir()
    with (
        run_directory.fold_lock(tree / "fold00"),
        run_directory.fold_lock(tree / "fold01"),
        pytest.raises(UserError, match="fold00: another process trains this fold"),
        run_directory.fold_lock(tree / "fold00"),
    ):
        pass


def wait_for(what: Callable[[], object]) -> None:
    """Poll until something is so; the limit is for a test that hangs, not for a slow machine."""
    until = time.monotonic() + 300
    while not what():
        assert time.monotonic() < until, "waited for 300 seconds"
        time.sleep(0.01)


@pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="sees by /proc that a process waits for a lock"
)
def test_a_second_process_leaves_a_fold_alone_that_the_first_completed(
    train_root: Path, tmp_path: Path
) -> None:
    """(16.1) Two processes want fold 0. The second one waits for its lock, and is held there until
    the first has completed it.
    """
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        *fault_runs.RUN,
        "--epochs",
        "20",
        *support.FAST,
    ]
    words += ["--run-name", "both", "--folds", "0"]
    folder = tmp_path / "kfold-ensemble-VanillaEfficientNet_both" / "fold00"
    first = fault_runs.start(words, fault_runs.FORK.Value("i", 0))
    wait_for((folder / fold_state.STATE_FILE).exists)
    os.kill(first.pid, signal.SIGSTOP)
    assert (folder / fold_state.STATE_FILE).exists()
    second = fault_runs.start(words, fault_runs.FORK.Value("i", 0))
    wait_for(
        lambda: (
            str(folder.resolve())
            in {os.path.realpath(link) for link in Path(f"/proc/{second.pid}/fd").iterdir()}
        )
    )
    os.kill(second.pid, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGCONT)
    first.join(300)
    assert first.exitcode == 0
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert len([name for name in before if name.endswith(".pth")]) == 2
    os.kill(second.pid, signal.SIGCONT)
    second.join(300)
    assert second.exitcode == 0
    assert {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()
    } == before


def test_a_fold_without_its_checkpoints_is_trained_again(
    train_root: Path,
    tmp_path: Path,
    unbroken: dict[str, object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.1) validation.npz alone does not make a fold complete."""
    assert run(train_root, tmp_path / "saved", "--run-name", "x") == 0
    (tree,) = (tmp_path / "saved").iterdir()
    lost = list((tree / "fold00").glob("*.pth"))
    for path in lost:
        path.unlink()
    capsys.readouterr()
    assert run(train_root, tmp_path / "saved", "--run-name", "x") == 0
    streams = capsys.readouterr()
    assert "fold 0: complete already" not in streams.out
    assert "fold 1: complete already" in streams.out
    assert "fold00: its checkpoints are missing, so the fold is trained again" in streams.err
    assert fault_runs.result(tmp_path / "saved") == unbroken


def test_a_dead_process_leaves_no_temporary_file_when_a_fold_goes_on(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.5) It is gone before anything is written: it may fill the disk."""
    monkeypatch.setattr(training_fold, "SAVE_INTERVAL_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        kill_at(patch, fold_state, "save_fold_state", 2, True)
        with pytest.raises(Killed):
            run(train_root, tmp_path)
    (tree,) = tmp_path.iterdir()
    stray = [
        tree / "fold00" / f".writing-{host}-99999999-x"
        for host in ("another-container", socket.gethostname())
    ]
    for path in stray:
        path.write_bytes(b"half a state")
    plain = fold_state.save_fold_state

    def write_state(folder: Path, *rest: Any) -> None:
        assert not list(folder.glob(".writing-*"))
        plain(folder, *rest)

    monkeypatch.setattr(fold_state, "save_fold_state", write_state)
    assert run(train_root, tmp_path, "--resume") == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_drive_without_locks_trains_with_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """(16.21)"""
    living = tmp_path / "fold00" / f".writing-{socket.gethostname()}-{os.getpid()}-x"
    living.parent.mkdir()
    living.touch()

    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_directory.fold_lock(tmp_path / "fold00"), run_directory.fold_lock(tmp_path / "fold01"):
        assert living.exists()  # without a lock another process may be writing it
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}: folders cannot be locked there ({os.strerror(number)})" in line


def test_a_drive_that_fails_while_a_fold_is_locked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.21)"""

    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(
            RunError, match=r"fold00: cannot be locked \(Input/output error\); .*--resume"
        ),
        run_directory.fold_lock(tmp_path / "fold00"),
    ):
        pass


def test_killed_processes_resume_to_the_same_result(tmp_path: Path) -> None:
    _, kills, _, differ = fault_runs.compare(6, 1, tmp_path)
    assert kills >= 6
    assert differ == 0


def test_more_epochs_are_refused_with_what_does_work(train_root: Path, tmp_path: Path) -> None:
    """(18.10) Before and after the run's end; and what the message names works."""
    assert run(train_root, tmp_path) == 0
    tree = next(tmp_path.iterdir())
    for words in (("--resume", tree.name, "--epochs", "5"), ("--resume", "--epochs", "5")):
        with pytest.raises(UserError, match="to train .*longer, start a new run .*--load-state-d"):
            run(train_root, tmp_path, *words)
    best = next((tree / "fold00").glob("*.pth"))
    longer = ("--load-state-dict", str(best), "--epochs", "1")
    assert run(train_root, tmp_path / "longer", *longer) == 0
