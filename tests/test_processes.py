"""Several processes, as torchrun starts them, give what one gives."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
import torch

import checkpoint
import config
import dataset
import ensemble
import submission
import submit_ensemble
import train

HERE = Path(__file__).parent


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the tiny backbones in two processes, as a user starts them."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE / "run_tiny.py")]
    return subprocess.run([*start, *words], capture_output=True, text=True, check=False, timeout=240)


def one_of_two(rank: int, port: int, main: Callable[[list[str]], int], words: list[str], codes: Any) -> None:
    """What torchrun tells a process, and its command."""
    told: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    codes[rank] = main(words)


def in_two(main: Callable[[list[str]], int], words: list[str]) -> list[int]:
    """Run a command in two forked processes, which need not import anything anew; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    codes = fork.Array("i", [-1, -1])
    both = [fork.Process(target=one_of_two, args=(rank, port, main, words, codes)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()
    return [int(codes[rank]) for rank in range(2)]


@pytest.fixture(autouse=True, scope="module")
def _plain() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.BACKBONES, "tiny", support.TINY)
        patch.setitem(config.MODELS, "Plain", config.Model("run_tiny:Plain", "tiny"))
        yield


@pytest.fixture(scope="module")
def trees(train_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same folds and the same single split, trained by one process and by two."""
    saved = tmp_path_factory.mktemp("several")
    common = ["--train-root", str(train_root), "--epochs", "2", "--batch-size", "9", *support.FAST]
    folds, single = ["--cv", "3", "--transform-type", "tta"], ["--model-type", "Plain", "--optim-type", "momentum"]
    assert train.main([*common, *folds, "--save-path", str(saved / "one")]) == 0
    done = torchrun("train.py", *common, *folds, "--save-path", str(saved / "two"))
    assert done.returncode == 0, done.stderr
    assert "out-of-fold, 84" in done.stdout
    assert train.main([*common, *single, "--save-path", str(saved / "single")]) == 0
    assert in_two(train.main, [*common, *single, "--save-path", str(saved / "shared")]) == [0, 0]
    return {path.name: next(path.iterdir()) for path in saved.iterdir()}


def test_folds_dealt_to_processes_are_bit_for_bit_those_of_one(trees: dict[str, Path]) -> None:
    one, two = ({p.relative_to(t).as_posix(): p for p in sorted(t.glob("fold*/*.pth"))} for t in (trees["one"], trees["two"]))
    assert one.keys() == two.keys()
    for name in one:
        a, b = checkpoint.read(one[name]).weights, checkpoint.read(two[name]).weights
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (trees["one"] / "oof.csv").read_bytes() == (trees["two"] / "oof.csv").read_bytes()


def test_a_shared_batch_gives_the_weights_of_a_whole_one(trees: dict[str, Path]) -> None:
    (one, one_info), (two, two_info) = (checkpoint.ranked_members(trees[t] / "fold00")[0] for t in ("single", "shared"))
    assert one_info.epoch == two_info.epoch
    for name, value in one.weights.items():
        assert torch.allclose(value, two.weights[name], rtol=1e-4, atol=1e-6), name
    a, b = (checkpoint.read_validation(trees[t] / "fold00", "main") for t in ("single", "shared"))
    assert a is not None
    assert b is not None
    assert a[0] == b[0]
    assert np.allclose(a[1], b[1], atol=1e-5)
    rows = [support.read_rows(trees[t] / "fold00" / "history.csv") for t in ("single", "shared")]
    for name in ("train_loss", "train_accuracy", "valid_loss", "macro_f1"):
        k = rows[0][0].index(name)
        assert [float(r[k]) for r in rows[0][1:]] == pytest.approx([float(r[k]) for r in rows[1][1:]], rel=1e-4)


def test_processes_share_the_photographs_of_a_submission(trees: dict[str, Path], eval_root: Path, tmp_path: Path) -> None:
    made: list[ensemble.Probabilities] = []
    for run in (submit_ensemble.main, lambda words: sum(in_two(submit_ensemble.main, words))):
        out = tmp_path / str(len(made))
        words = ["--root", str(trees["one"]), "--data-root", str(eval_root), "--save-path", str(out), "--tta", "2"]
        assert run([*words, "--top-k", "1", "--workers", "0", "--device", "cpu", "--threads", "1"]) == 0
        made.append(submission.load(next(out.iterdir())))
    assert made[0].images == made[1].images
    assert np.allclose(made[0].array, made[1].array, atol=1e-5)


def test_every_photograph_is_in_one_process_share_of_a_batch() -> None:
    for count in (7, 9, 10, 18, 19):
        whole = dataset.Batches(range(count), 9, ("x",), least=2, world=1)
        shares = [dataset.Batches(range(count), 9, ("x",), least=1, rank=r, world=2) for r in range(2)]
        assert len(shares[0]) == len(whole)
        for step, (batch, *parts) in enumerate(zip(whole, *shares, strict=True)):
            assert sorted(batch) == sorted(parts[0] + parts[1])
            assert [s.weight(step) for s in shares] == [len(part) * 2 / len(batch) for part in parts]
