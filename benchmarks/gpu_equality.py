"""The parts of benchmarks/gpu.py that compare results: of whole trainings, and the GPU's tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import Tensor

import checkpoint
import engine
import train
from benchmarks import harness
from benchmarks.gpu_parts import FORK, PartContext
from runtime import errors, loading
from training import cross_validation, fold_state
from training import fold as training_fold

RUN_SECONDS = 180  # trainings that take longer are ended
EPOCHS, LR = 3, 0.001  # a higher rate lets rounding grow into other losses
SAME_LOSS, DDP_LOSS = 0.1, 0.2  # relative differences; two processes normalise half batches each


def train_here(words: list[str], log: Path, changes: dict[str, Any]) -> None:
    """train.py in this process, without its report. changes: deterministic; stop (in the second
    epoch); rank and port, of two processes that share a GPU.
    """
    with open(log, "w") as file, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        stack.enter_context(mock.patch.object(cross_validation, "finish_run", return_value={}))
        if "rank" in changes:
            join_two(changes["rank"], changes["port"], stack)
        if "deterministic" in changes:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
            torch.use_deterministic_algorithms(True)
        if changes.keys() & {"rank", "deterministic"}:
            # neither a GPU for each process nor the fastest of cuDNN's algorithms
            stack.enter_context(
                mock.patch.object(engine, "select_gpu", lambda device, dist: device)
            )
        if "stop" in changes:
            stop_in_second_epoch(stack)
        try:
            code = train.main(words)
        except errors.Stopped:
            code = 0
        except BaseException:
            traceback.print_exc(file=file)
            code = 1
        loading.kill_workers()
    sys.exit(code)


def join_two(rank: int, port: int, stack: contextlib.ExitStack) -> None:
    """Be one of two processes, which exchange a GPU's tensors by gloo: NCCL takes a GPU each."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, rank, 2, 2, port)), strict=True))
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    join = torch.distributed.init_process_group
    stack.enter_context(
        mock.patch("torch.distributed.init_process_group", lambda _, **named: join("gloo", **named))
    )


def stop_in_second_epoch(stack: contextlib.ExitStack) -> None:
    """Stop the training as Ctrl-C does, after the second epoch's first step."""
    after_step = training_fold.FoldTrainer.after_step

    def stopping(trainer: Any, running: engine.RunningLoss, done: int) -> None:
        if (trainer.state.epoch, done) == (1, 1):
            trainer.stop(signal.SIGINT, None)
        after_step(trainer, running, done)

    stack.enter_context(mock.patch.object(training_fold.FoldTrainer, "after_step", stopping))


def train_together(
    context: PartContext, folder: Path, runs: list[tuple[str, dict[str, Any]]]
) -> None:
    """Train at once, each in a process of its own; runs: (name, changes). Raises RunError."""
    args, processes = context.args, {}
    for number, (name, changes) in enumerate(runs):
        options = {
            "train-root": args.root,
            "save-path": folder,
            "run-name": name,
            "backbone": args.backbone,
            "image-size": args.image_size,
            "pretrained": "none",
            "batch-size": args.small_batch_size,
            "epochs": EPOCHS,
            "lr": LR,
            "precision": changes.get("precision", args.precision),
            "device": args.device,
            "threads": args.threads or 2,
            "workers": 2 if args.workers is None else args.workers,
        }
        log = folder / f"{name}-{number}.log"
        words = harness.as_options(options)
        processes[log] = FORK.Process(target=train_here, args=(words, log, changes))
    end = time.monotonic() + RUN_SECONDS
    try:
        for process in processes.values():
            process.start()
        while any(p.is_alive() for p in processes.values()) and time.monotonic() < end:
            if any(p.exitcode for p in processes.values()):
                break  # another may wait for it
            time.sleep(0.05)
        for log, process in processes.items():
            if process.exitcode is None and time.monotonic() >= end:
                raise errors.RunError(f"{log.stem} took longer than {RUN_SECONDS} s")
            if process.exitcode:
                text = log.read_text(errors="replace").strip()
                context.add(f"log of {log.stem}", text)
                last = text.rpartition("\n")[2]
                raise errors.RunError(f"{log.stem} ended with {process.exitcode}: {last}")
    finally:
        for process in processes.values():
            process.kill()


def fold_dir(folder: Path, run: str) -> Path:
    return folder / f"kfold-ensemble-VanillaEfficientNet_{run}" / "fold00"


def last_weights(folder: Path, run: str) -> dict[str, Tensor]:
    """A run's weights after its last epoch."""
    stored = checkpoint.load_ranked(fold_dir(folder, run))
    return max(stored, key=lambda one: one.info.epoch).weights


def compare_losses(context: PartContext, folder: Path, names: tuple[str, str], most: float) -> None:
    """Two curves of the training loss. Raises RunError where they differ by more than `most`,
    relatively.
    """
    curves = []
    for name in names:
        curve = pd.read_csv(fold_dir(folder, name) / "history.csv")["train_loss"].tolist()
        curves.append(curve)
        context.add(f"loss, {name}", curve)
    difference = max(abs(a - b) / a for a, b in zip(*curves, strict=True))
    shown = " and ".join(" ".join(f"{value:.4f}" for value in curve) for curve in curves)
    title = f"{names[1]} against {names[0]}"
    text = f"{title}: losses {shown}, at most {100 * difference:.2f} % apart"
    context.add(title, difference, f"{text} (limit {100 * most:g})")
    if difference > most:
        raise errors.RunError(f"{title}: the losses are {100 * difference:.1f} % apart")


def compare_bits(context: PartContext, changes: dict[str, Any]) -> None:
    """Two equal runs, and a third that is stopped and resumed. Raises RunError where losses differ
    much; on a processor, where equal bits are promised, where they differ at all.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, stopped = Path(name), {**changes, "stop": True}
        runs = [("first", changes), ("second", changes), ("resumed", stopped)]
        train_together(context, folder, runs)
        if not (fold_dir(folder, "resumed") / fold_state.STATE_FILE).exists():
            raise errors.RunError("the run that is to be resumed was not stopped")
        train_together(context, folder, [("resumed", changes)])
        first = last_weights(folder, "first")
        for run in ("second", "resumed"):
            other = last_weights(folder, run)
            unequal = [key for key in first if not torch.equal(first[key], other[key])]
            text = f"differ in {len(unequal)} of {len(first)} tensors" if unequal else "equal bits"
            context.add(f"unequal tensors, {run}", len(unequal), f"{run}, weights: {text}")
            most = 0.0 if context.args.device == "cpu" else SAME_LOSS
            compare_losses(context, folder, ("first", run), most)


def resume(context: PartContext) -> None:
    """Equal runs, and a resumed one, as train.py computes."""
    compare_bits(context, {})


def deterministic(context: PartContext) -> None:
    """The same with torch.use_deterministic_algorithms, for which train.py has no option."""
    compare_bits(context, {"deterministic": True})


def precision(context: PartContext) -> None:
    """The loss in float32 and in bfloat16."""
    with tempfile.TemporaryDirectory() as name:
        runs = [(each, {"precision": each}) for each in ("fp32", "bf16")]
        train_together(context, Path(name), runs)
        compare_losses(context, Path(name), ("fp32", "bf16"), SAME_LOSS)


def ddp(context: PartContext) -> None:
    """One process against two that share its batches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        ranks = [{"precision": "fp32", "rank": rank, "port": port} for rank in range(2)]
        runs = [("one", {"precision": "fp32"}), *[("two", changes) for changes in ranks]]
        train_together(context, Path(name), runs)
        compare_losses(context, Path(name), ("one", "two"), DDP_LOSS)


def gpu_tests(context: PartContext) -> None:
    """The tests that are skipped without a GPU, which have `gpu` in their names."""
    paths = sorted((harness.PROJECT / "tests").rglob("test_*.py"))
    condition = "skipif(not torch.cuda.is_available()"
    files = [str(path) for path in paths if condition in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "_gpu_", *files]
    done = subprocess.run(command, cwd=harness.PROJECT, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    passed = re.search(r"(\d+) passed", lines[-1])
    context.add("passed", int(passed[1]) if passed else 0, lines[-1])
    if done.returncode or not (passed or context.args.device == "cpu"):
        reasons = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise errors.RunError(f"pytest ended with {done.returncode}: {' '.join(reasons)}")
