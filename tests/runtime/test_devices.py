"""Devices, memory and processors as containers, clusters and other machines give them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import augmentation
import checkpoint
import dataset
import engine
import model
import optim
import registries
import submit_ensemble
import train
from data import tables
from runtime import distributed, loading
from runtime.devices import choose_device, free_memory, usable_processors
from runtime.errors import RunError, UserError
from tests.helpers import run_tiny, support
from tests.runtime import test_processes
from training import fold_state

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


class Host:
    """Stands for a tensor in the machine's memory: notes how it is copied."""

    pinned = False

    def is_pinned(self) -> bool:
        return self.pinned

    def to(self, device: torch.device, non_blocking: bool = False) -> Host:
        self.waited = not non_blocking
        return self


@pytest.mark.parametrize("name", ["cpu", "mps", "xpu"])
def test_a_copy_is_waited_for_on_every_device_but_cuda(name: str) -> None:
    """(16.3) torch issues 139550 and 189690: others compute with values that have not arrived."""
    values: Any = Host()
    engine.Compute(torch.device(name), "fp32", 0, 1).to_device(values)
    assert values.waited


class OneAgainstRest(nn.Module):
    """Binary cross entropy of every class against the rest: it changes with a number added to all
    outputs.
    """

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        wanted = functional.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
        return functional.binary_cross_entropy_with_logits(outputs, wanted)


@pytest.mark.parametrize("name", ["oneagainstrest", "crossentropyloss"])
def test_the_validation_loss_is_that_of_the_networks_outputs(
    name: str, train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.6) Also for a registered loss that is not the same for softmax's probabilities."""
    monkeypatch.setitem(
        registries.LOSSES,
        "oneagainstrest",
        registries.Loss("tests.runtime.test_devices:OneAgainstRest"),
    )
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        "--task",
        "mask",
        "--epochs",
        "1",
        *support.FAST,
    ]
    assert train.main([*words, "--loss-type", name]) == 0
    (folder,) = tmp_path.glob("*/fold00")
    found = checkpoint.load_ranked(folder)[0]
    stored = fold_state.load_validation(folder, "mask")
    assert stored is not None
    table = tables.read_train(train_root).set_index("file").loc[stored[0]]
    view = augmentation.View(augmentation.forms(found.info.transform, 32).valid)
    photos = dataset.ImageDataset(stored[0], table["path"].tolist(), [view])
    network = model.build_from_checkpoint(found).eval()
    with (
        loading.make_loader(
            photos, dataset.EpochBatchSampler(range(len(photos)), len(photos)), 0, CPU
        ) as loader,
        torch.no_grad(),
    ):
        ((_, views),) = loader
        outputs = network(engine.to_network(engine.Compute(CPU, "fp32", 0, 1), views[0]))["mask"]
    criterion = OneAgainstRest() if name == "oneagainstrest" else nn.CrossEntropyLoss()
    header, row = support.read_rows(folder / "history.csv")
    expected = float(criterion(outputs.double(), torch.tensor(table["mask"].tolist())))
    assert float(row[header.index("valid_loss")]) == pytest.approx(expected, rel=1e-5)


class Masked(run_tiny.Plain):
    """Notes the dropout masks that it draws in training, in a file for each process."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.training:
            mask = functional.dropout(torch.ones(48)).gt(0).int().tolist()
            with open(Path(os.environ["MASKS"]) / os.environ.get("RANK", "alone"), "a") as file:
                print(*mask, sep="", file=file)
        return super().forward(images)


def test_processes_that_share_a_batch_draw_other_dropout_masks(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16, small) The first one draws what one process alone does."""
    monkeypatch.setitem(
        registries.MODELS, "Masked", registries.Model("tests.runtime.test_devices:Masked", "tiny")
    )
    monkeypatch.setenv("MASKS", str(tmp_path))
    words = [
        "--train-root",
        str(train_root),
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--model-type",
        "Masked",
        *support.FAST,
    ]
    assert train.main([*words, "--save-path", str(tmp_path / "one")]) == 0
    assert test_processes.in_two(train.main, [*words, "--save-path", str(tmp_path / "two")]) == [
        0,
        0,
    ]
    alone, first, second = (
        (tmp_path / name).read_text().splitlines() for name in ("alone", "0", "1")
    )
    assert alone == first
    assert len(first) == len(second)
    assert not set(first) & set(second)


BATCH = 32 * 32 * 32 * 3  # bytes of a batch of 32 photographs of 32 pixels


def test_fewer_workers_read_where_shared_memory_is_small(
    train_root: Path,
    tree: Path,
    eval_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(16.8) Workers x batches read ahead x bytes of a batch, against what /dev/shm has free."""
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 13 * BATCH)  # of two loaders
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path / "s"),
        "--epochs",
        "1",
        *support.FAST,
    ]
    assert train.main([*words, "--workers", "3"]) == 0
    captured = capsys.readouterr()
    (line,) = (line for line in captured.err.splitlines() if "/dev/shm" in line)
    assert line.startswith("warning: --workers 1 instead of 3: /dev/shm has 1 MiB free")
    assert all(remedy in line for remedy in ("--shm-size", "--ipc=host", "--workers 0"))
    assert "1 worker" in captured.out
    (run,) = tmp_path.glob("s/*/run.json")
    assert json.loads(run.read_text())["chosen"]["workers"] == 1
    words = [
        "--root",
        str(tree),
        "--data-root",
        str(eval_root),
        "--save-path",
        str(tmp_path / "p"),
        "--top-k",
        "1",
    ]
    # 6 views
    assert (
        submit_ensemble.main(
            [*words, "--tta", "2", "--workers", "3", "--device", "cpu", "--threads", "1"]
        )
        == 0
    )
    assert "warning: --workers 0 instead of 3: /dev/shm has" in capsys.readouterr().err


def in_small_shared_memory(
    size: str, code: str, words: list[str]
) -> subprocess.CompletedProcess[str]:
    """train.py after `code`, where /dev/shm has so much room."""
    text = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
import train
from runtime import loading
from tests.helpers import run_tiny
from runtime.cli import run_script
run_tiny.register()
{code}
sys.exit(run_script(lambda _: train.main({words!r}), "train.py"))
"""
    start = [
        "unshare",
        "-m",
        "bash",
        "-c",
        f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"',
        "bash",
    ]
    return subprocess.run(
        [*start, sys.executable, "-c", text], capture_output=True, text=True, check=False
    )


def can_mount() -> bool:
    """Whether this process may mount a small /dev/shm of its own."""
    try:
        start = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"]
        return subprocess.run(start, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="needs unshare and mount")
def test_a_small_dev_shm_costs_workers_and_a_full_one_is_named(
    train_root: Path, tmp_path: Path
) -> None:
    """(16.8) As in Docker, whose own is 64 MB."""
    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        "--epochs",
        "1",
        *support.FAST,
        "--workers",
        "2",
    ]
    done = in_small_shared_memory("128k", "", words)
    assert done.returncode == 0, done.stderr
    assert "--workers 0 instead of 2: /dev/shm has 0 MiB free" in done.stderr
    full = in_small_shared_memory("128k", "loading.free_shared_memory = lambda: 1e12", words)
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    assert "/dev/shm" in full.stderr.splitlines()[-1]
    assert "--shm-size" in full.stderr.splitlines()[-1]


def write_files(root: Path, files: dict[str, str]) -> Path:
    """A file system's files below a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


GIB = 2**30
MEMINFO = {"proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n"}
V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"
MACHINES = {
    "no groups": ({}, 32 * GIB, None),
    "v2, in a container that sees its own group as the root": (
        {
            "proc/self/cgroup": "0::/\n",
            V2 + "memory.max": f"{4 * GIB}\n",
            V2 + "memory.current": f"{3 * GIB}\n",
            V2 + "memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file 5\n",
            V2 + "cpu.max": "150000 100000\n",
        },
        3 * GIB,
        2,
    ),
    "v2, a limit of a group above": (
        {
            "proc/self/cgroup": "0::/system.slice/job\n",
            V2 + "system.slice/job/memory.max": "max\n",
            V2 + "system.slice/job/memory.current": "5\n",
            V2 + "system.slice/memory.max": f"{GIB}\n",
            V2 + "system.slice/memory.current": "0\n",
            V2 + "system.slice/job/cpu.max": "300000 100000\n",
            V2 + "system.slice/cpu.max": "10000 100000\n",
        },
        GIB,
        1,
    ),
    "v1, the group's path not below its mount": (
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
            V1 + "memory.limit_in_bytes": f"{2 * GIB}\n",
            V1 + "memory.usage_in_bytes": f"{GIB}\n",
            V1 + "memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
            V2 + "cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
            V2 + "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        1.5 * GIB,
        1,
    ),
    "v1, without limits": (
        {
            "proc/self/cgroup": "5:memory:/a\n3:cpu:/a\n0::/\n",
            V1 + "a/memory.limit_in_bytes": "9223372036854771712\n",
            V1 + "a/memory.usage_in_bytes": "5\n",
            V2 + "cpu/a/cpu.cfs_quota_us": "-1\n",
            V2 + "cpu/a/cpu.cfs_period_us": "100000\n",
        },
        32 * GIB,
        None,
    ),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_container_may_use_counts(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.18) Memory and processors of control groups; None: no fewer processors than without
    groups.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    files, free, processors = MACHINES[machine]
    root = write_files(tmp_path, MEMINFO | files)
    assert free_memory(root) == free
    assert usable_processors(root) == (processors or 8)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def lone(rank: int, port: int) -> dict[str, str]:
    """What a process is told that has another one to wait for."""
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_PORT": port,
    }
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in told.items()}}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_alone_in_its_group_says_what_to_check(
    rank: int, train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.23) After minutes, not days."""
    assert timedelta(minutes=1) <= distributed.JOIN_TIMEOUT <= timedelta(hours=1)
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT", timedelta(seconds=1))
    port = free_port()
    for name, value in lone(rank, port).items():
        monkeypatch.setenv(name, value)
    words = ["--train-root", str(train_root), "--save-path", str(tmp_path), *support.FAST]
    with pytest.raises(
        RunError, match=rf"MASTER_ADDR \(127.0.0.1\), MASTER_PORT \({port}\).* all 2 processes"
    ):
        train.main(words)
    assert not list(tmp_path.iterdir())


def test_a_process_that_waits_for_the_others_can_be_ended(train_root: Path, tmp_path: Path) -> None:
    """(16.23) At once, by SIGTERM."""
    port = free_port()
    words = [
        "train.py",
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        *support.FAST,
    ]
    waiting = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/helpers/run_tiny.py"), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **lone(0, port)},
    )
    try:
        while waiting.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(60) in (143, -signal.SIGTERM)  # a shell says 143 for both
    finally:
        waiting.kill()
        waiting.wait()


class WithoutKernels(TorchFunctionMode):
    """A GPU that this torch has no kernels for: memory can be had there, nothing computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        on_gpu = torch.device(kwargs.pop("device", None) or "cpu").type == "cuda"
        if func is not torch.empty and (
            on_gpu or any(getattr(value, "gpu", False) for value in args)
        ):
            raise RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\nCUDA "
                "kernel errors"
            )
        made = func(*args, **kwargs)
        if on_gpu:
            made.gpu = True
        return made


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_that_this_torch_has_no_kernels_for_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(16.30) When it is chosen, not in the first step."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with (
        WithoutKernels(),
        pytest.raises(UserError, match=r"not usable here \(.*no kernel image.*\); .*--device cpu"),
    ):
        choose_device(name)


def test_an_optimizers_state_of_another_torch_is_taken_up() -> None:
    """(16, make test-oldest) A run goes on after torch was changed, whose versions name other
    settings.
    """
    parameter = nn.Parameter(torch.ones(2))
    one, other = (
        optim.make_optimizer("adam", [{"params": [parameter], "scale": 1.0}], 0.1, 0.0)
        for _ in range(2)
    )
    parameter.sum().backward()
    one.step()
    kept = one.state_dict()
    for group in kept["param_groups"]:
        del group["maximize"]
        group["new_in_a_later_torch"] = False
    optim.load_optimizer_state(other, kept)
    assert set(other.param_groups[0]) == set(one.param_groups[0])
    assert torch.equal(other.state[parameter]["exp_avg"], one.state[parameter]["exp_avg"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_that_read_do_not_keep_memory_that_training_has_freed() -> None:
    """Else each fold after the first would take its memory twice: EfficientNet-b3 7 GB more."""
    code = """
import multiprocessing, pathlib, torch
import augmentation, dataset
from runtime import devices, loading
device = devices.choose_device("cpu")
block = torch.ones(150 * 2**20)  # 600 MiB
del block
photos = dataset.ImageDataset([], [], [augmentation.View(augmentation.forms("base", 32).valid)])
with loading.make_loader(photos, dataset.EpochBatchSampler([], 1), 1, device) as loader:
    loader.start()
    (worker,) = multiprocessing.active_children()
    pages = pathlib.Path(f"/proc/{worker.pid}/statm").read_text().split()[1]
    print(int(pages) * 4 // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600
