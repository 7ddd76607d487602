"""Several processes, as torchrun starts them, give what one gives."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoint
import config
import dataset
import engine
import ensemble
import registries
import submit_ensemble
import train
from inference import submission
from runtime.errors import DistInfo, UserError
from tests.helpers import support
from training import cross_validation, fold_state
from training import fold as training_fold
from training import run as training_run

ROOT = Path(__file__).resolve().parents[2]


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the tiny backbones in two processes, as a user starts them."""
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "tests/helpers/run_tiny.py"),
    ]
    return subprocess.run(
        [*start, *words], capture_output=True, text=True, check=False, timeout=support.LIMIT
    )


def one_of_two(
    rank: int, port: int, main: Callable[[list[str]], int], words: list[str], codes: Any
) -> None:
    """What torchrun tells a process, and its command."""
    told: dict[str, object] = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
    }
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    codes[rank] = main(words)


def in_two(main: Callable[[list[str]], int], words: list[str]) -> list[int]:
    """Run a command in two forked processes, which need not import anything anew; returns their
    exit codes.
    """
    port = support.free_port()
    fork = multiprocessing.get_context("fork")
    codes = fork.Array("i", [-1, -1])
    both = [
        fork.Process(target=one_of_two, args=(rank, port, main, words, codes)) for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(support.LIMIT)
        process.kill()
    return [int(codes[rank]) for rank in range(2)]


@pytest.fixture(autouse=True, scope="module")
def _plain() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        patch.setitem(
            registries.MODELS, "Plain", registries.Model("tests.helpers.run_tiny:Plain", "tiny")
        )
        yield


@pytest.fixture(scope="module")
def trees(train_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same folds and the same single split, trained by one process and by two."""
    saved = tmp_path_factory.mktemp("several")
    common = ["--train-root", str(train_root), "--epochs", "2", "--batch-size", "9", *support.FAST]
    folds, single = (
        ["--cv", "3", "--transform-type", "tta"],
        ["--model-type", "Plain", "--optim-type", "momentum"],
    )
    assert train.main([*common, *folds, "--save-path", str(saved / "one")]) == 0
    done = torchrun("train.py", *common, *folds, "--save-path", str(saved / "two"))
    assert done.returncode == 0, done.stderr
    assert "out-of-fold, 84" in done.stdout
    assert train.main([*common, *single, "--save-path", str(saved / "single")]) == 0
    assert in_two(train.main, [*common, *single, "--save-path", str(saved / "shared")]) == [0, 0]
    return {path.name: next(path.iterdir()) for path in saved.iterdir()}


def test_folds_dealt_to_processes_are_bit_for_bit_those_of_one(trees: dict[str, Path]) -> None:
    one, two = (
        {p.relative_to(t).as_posix(): p for p in sorted(t.glob("fold*/*.pth"))}
        for t in (trees["one"], trees["two"])
    )
    assert one.keys() == two.keys()
    for name in one:
        a, b = (
            checkpoint.load_checkpoint(one[name]).weights,
            checkpoint.load_checkpoint(two[name]).weights,
        )
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (trees["one"] / "oof.csv").read_bytes() == (trees["two"] / "oof.csv").read_bytes()


def test_folds_that_end_together_are_scored_once(
    train_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plain = cross_validation.train_share

    def end_together(*args: Any) -> int:
        code = plain(*args)
        torch.distributed.barrier()
        return code

    monkeypatch.setattr(cross_validation, "train_share", end_together)
    words = ["--train-root", str(train_root), "--save-path", str(tmp_path), "--cv", "2"]
    assert in_two(train.main, [*words, "--epochs", "1", *support.FAST]) == [0, 0]
    out = capfd.readouterr().out
    assert out.count("out-of-fold, 84 photographs") == 1
    assert "not complete yet" not in out


def test_a_shared_batch_gives_the_weights_of_a_whole_one(trees: dict[str, Path]) -> None:
    one, two = (checkpoint.load_ranked(trees[t] / "fold00")[0] for t in ("single", "shared"))
    assert one.info.epoch == two.info.epoch
    for name, value in one.weights.items():
        assert torch.allclose(value, two.weights[name], rtol=1e-4, atol=1e-6), name
    a, b = (fold_state.load_validation(trees[t] / "fold00", "main") for t in ("single", "shared"))
    assert a is not None
    assert b is not None
    assert a[0] == b[0]
    assert np.allclose(a[1], b[1], atol=1e-5)
    rows = [support.read_rows(trees[t] / "fold00" / "history.csv") for t in ("single", "shared")]
    for name in ("train_loss", "train_accuracy", "valid_loss", "macro_f1"):
        k = rows[0][0].index(name)
        assert [float(r[k]) for r in rows[0][1:]] == pytest.approx(
            [float(r[k]) for r in rows[1][1:]], rel=1e-4
        )


def test_processes_share_the_photographs_of_a_submission(
    trees: dict[str, Path], eval_root: Path, tmp_path: Path
) -> None:
    made: list[ensemble.Probabilities] = []
    for run in (submit_ensemble.main, lambda words: sum(in_two(submit_ensemble.main, words))):
        out = tmp_path / str(len(made))
        words = [
            "--root",
            str(trees["one"]),
            "--data-root",
            str(eval_root),
            "--save-path",
            str(out),
            "--tta",
            "2",
        ]
        assert (
            run([*words, "--top-k", "1", "--workers", "0", "--device", "cpu", "--threads", "1"])
            == 0
        )
        made.append(submission.load_probabilities(next(out.iterdir())))
    assert made[0].images == made[1].images
    assert np.allclose(made[0].array, made[1].array, atol=1e-5)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_batches_of_several_processes_are_those_of_one(world: int) -> None:
    for count in (
        2,
        7,
        9,
        10,
        11,
        12,
        13,
        18,
        19,
        20,
        21,
        22,
    ):  # 11 and 20 to 22: the rest is too small for two shares
        whole = dataset.EpochBatchSampler(range(count), 9, ("x",), least=2)
        shares = [
            dataset.EpochBatchSampler(range(count), 9, ("x",), least=2, rank=rank, world=world)
            for rank in range(world)
        ]
        assert {len(share) for share in shares} == {len(whole)}
        for step, (batch, *parts) in enumerate(zip(whole, *shares, strict=True)):
            assert min(map(len, parts)) >= 2
            taken = [(part, share.weight(step)) for part, share in zip(parts, shares, strict=True)]
            assert sorted(batch) == sorted(key for part, weight in taken if weight for key in part)
            assert all(weight in (0, len(part) * world / len(batch)) for part, weight in taken)


def test_a_rest_too_small_to_share_trains_as_in_one_process(
    train_root: Path, tmp_path: Path
) -> None:
    # 77 photographs in batches of 25: the last holds 2, of which two processes cannot have 2 each
    words = [
        "--train-root",
        str(train_root),
        "--epochs",
        "1",
        "--batch-size",
        "25",
        "--model-type",
        "Plain",
        "--optim-type",
        "momentum",
        *support.FAST,
    ]
    assert train.main([*words, "--save-path", str(tmp_path / "one")]) == 0
    assert in_two(train.main, [*words, "--save-path", str(tmp_path / "two")]) == [0, 0]
    one, two = (
        checkpoint.load_checkpoint(next(tmp_path.glob(f"{name}/*/fold00/*.pth"))).weights
        for name in ("one", "two")
    )
    assert all(
        torch.allclose(value, two[name], rtol=1e-4, atol=1e-6) for name, value in one.items()
    )
    rows = [
        support.read_rows(next(tmp_path.glob(f"{name}/*/fold00/history.csv")))[1]
        for name in ("one", "two")
    ]
    assert [float(value) for value in rows[0][:-1]] == pytest.approx(
        [float(value) for value in rows[1][:-1]], rel=1e-4
    )


def failing(code: str, words: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Both processes of a pair that runs train.main after `code`, waited for."""
    port = support.free_port()
    text = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}]
import train
from tests.helpers import run_tiny
from training import fold
from runtime.cli import run_script
run_tiny.register()
rank = int(os.environ["RANK"])
def main(_):
    {code}
    return train.main({words!r})
sys.exit(run_script(main, "train.py"))
"""
    told = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", text],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=support.LIMIT) for process in both]
    return [
        subprocess.CompletedProcess([], p.returncode, *said)
        for p, said in zip(both, ended, strict=True)
    ]


def told(stderr: str) -> list[str]:
    """What the program said, without its progress."""
    return [line for line in stderr.splitlines() if line.startswith("train.py")]


def test_when_one_process_dies_the_other_says_so_in_a_line(
    train_root: Path, tmp_path: Path
) -> None:
    # after the first step, so that the first process is in the next one's exchange
    code = (
        "fold.SAVE_INTERVAL_SECONDS = 0; fold.FoldTrainer.after_step = lambda *_: os._exit(9) "
        "if "
        "rank else None"
    )
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        "--epochs",
        "2",
        "--batch-size",
        "9",
        *support.FAST,
    ]
    first, second = failing(code, words)
    assert second.returncode == 9
    assert first.returncode == 1
    assert "Traceback" not in first.stderr
    (line,) = told(first.stderr)
    assert "another process of this run ended; its message tells why" in line
    assert "--resume" in line


def test_a_refusal_in_the_first_process_ends_the_other_quietly(
    train_root: Path, tmp_path: Path
) -> None:
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        "--resume",
        "gone",
        *support.FAST,
    ]
    first, second = failing("pass", words)
    assert [first.returncode, second.returncode] == [2, 2]
    assert len(told(first.stderr)) == 1
    assert "no such run" in first.stderr
    assert "Traceback" not in second.stderr
    assert told(second.stderr) == []
    assert "held out per fold" in first.stdout
    assert "held out per fold" not in second.stdout


def test_a_batch_too_small_to_share_and_other_processes_are_refused(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = DistInfo(0, 4, 0, 4)
    settings = config.TrainSettings(
        train_root=str(train_root), batch_size=7, backbone="tiny", device="cpu"
    ).completed()
    with pytest.raises(UserError, match="--batch-size 7: shared by 4 processes; use at least 8"):
        training_run.prepare_run(settings, who)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--nproc-per-node 4: more processes than the 2 GPUs here"):
        engine.select_gpu(torch.device("cuda"), who)
    with pytest.raises(UserError, match="--device cuda:1: 4 processes take a GPU each"):
        engine.select_gpu(torch.device("cuda:1"), who)


def test_a_shared_split_goes_on_with_as_many_processes_only(
    train_root: Path, tmp_path: Path
) -> None:
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        "--run-name",
        "x",
        "--epochs",
        "1",
        *support.FAST,
    ]
    assert in_two(train.main, words) == [0, 0]
    with pytest.raises(UserError, match="2 processes began to share its batches, now there are 1"):
        train.main(words)


def test_a_process_that_is_told_to_end_says_so(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from runtime.cli import run_script; sys.exit(run_script(lambda _: "
        "os.kill(os.getpid(), signal.SIGTERM), 'x.py'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 143
    assert done.stderr.startswith("x.py: stopped: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_shared_epoch_taken_up_in_its_middle_counts_what_all_had_seen(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [
        "--train-root",
        str(train_root),
        "--epochs",
        "1",
        "--batch-size",
        "9",
        "--model-type",
        "Plain",
        *support.FAST,
    ]
    assert in_two(train.main, [*common, "--save-path", str(tmp_path / "whole")]) == [0, 0]
    words = [*common, "--save-path", str(tmp_path / "broken")]
    plain = training_fold.FoldTrainer.after_step

    def dying(trainer: training_fold.FoldTrainer, running: engine.RunningLoss, done: int) -> None:
        plain(trainer, running, done)
        if done == 4:
            os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(training_fold, "SAVE_INTERVAL_SECONDS", 0.0)
        patch.setattr(training_fold.FoldTrainer, "after_step", dying)
        assert in_two(train.main, words) == [-1, -1]
    (folder,) = tmp_path.glob("broken/*/fold00")
    begun = fold_state.load_fold_state(folder)
    assert begun is not None
    assert (begun[0].step, begun[0].sums[1]) == (4, 36)
    assert in_two(train.main, [*words, "--resume"]) == [0, 0]
    rows = [
        support.read_rows(next(tmp_path.glob(f"{name}/*/fold00/history.csv")))[1]
        for name in ("whole", "broken")
    ]
    assert [float(value) for value in rows[0][:-1]] == pytest.approx(
        [float(value) for value in rows[1][:-1]], rel=1e-5
    )


def test_a_dry_run_counts_on_the_processes_that_share_the_folds(train_root: Path) -> None:
    words = [
        "--train-root",
        str(train_root),
        "--cv",
        "3",
        "--dry-run",
        "--batch-size",
        "9",
        *support.FAST,
    ]
    first, second = failing("pass", words)
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, "")
    assert "for 3 folds (2 after another in each process) x 30 epochs" in first.stdout
