"""Machines that fail, files that lie, numbers that go wrong: one line names the cause, and nothing
is lost.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import checkpoint
import dataset
import engine
import out_of_fold
import registries
import run_directory
import submit_ensemble
import submit_singular
import train
import utils
from data import images
from inference import submission
from runtime import errors, loading
from runtime.cli import run_script
from runtime.errors import RunError, UserError
from tests.helpers import fault_runs, support
from training import cross_validation, fold_state, run_files
from training import fold as training_fold

RUN = (
    "--cv",
    "2",
    "--epochs",
    "2",
    "--save-top",
    "2",
    "--batch-size",
    "8",
    "--transform-type",
    "tta",
    *support.FAST,
)
PEOPLE = support.PEOPLE[:6]


@pytest.fixture(autouse=True, scope="module")
def _brief(tree: Path) -> Any:
    """Runs without what follows the out-of-fold table, in one thread (forked processes have no
    others). The tree that all modules share comes first: it is whole, whichever module asks for it
    first.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        patch.setattr(run_files, "warn_of_duplicates", lambda run_dir, parts: {})
        patch.setattr(
            cross_validation,
            "analyze_out_of_fold",
            lambda context, folds: out_of_fold.write_oof(
                context.run_dir, context.data.task, *out_of_fold.nested_epoch_predictions(folds)
            ),
        )
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_train(tmp_path_factory.mktemp("data") / "train", PEOPLE, junk=False)


def words(root: Path, saved: Path, *more: str) -> list[str]:
    return ["--train-root", str(root), "--save-path", str(saved), *RUN, *more]


@pytest.fixture(scope="module")
def unbroken(
    root: Path, tmp_path_factory: pytest.TempPathFactory, _brief: None
) -> dict[str, object]:
    saved = tmp_path_factory.mktemp("unbroken")
    assert train.main(words(root, saved)) == 0
    return fault_runs.result(saved)


def answered(tree: Path, eval_root: Path, out: Path, *more: str) -> list[str]:
    """The words of a short submission."""
    return [
        "--root",
        str(tree),
        "--data-root",
        str(eval_root),
        "--save-path",
        str(out),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--workers",
        "0",
        "--top-k",
        "1",
        *more,
    ]


class Forked:
    """A command in a process (and process group) of its own; `prepare` is called there first."""

    def __init__(
        self, script: Any, words: list[str], prepare: Callable[[], object] = lambda: None
    ) -> None:
        told, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.setpgid(0, 0)
            signal.alarm(support.LIMIT)  # whatever it waits for, the tests go on
            os.dup2(tell, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.close(told)
            # a lost worker is noticed sooner
            _MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)
            code = 99  # an error in `prepare` must not run on into the parent's tests
            try:
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                prepare()
                code = run_script(lambda _: script.main(words), "script.py")
            except BaseException as error:
                print(repr(error), file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(tell)
        self.errors = open(told)  # noqa: SIM115

    def end(self) -> tuple[int, list[str]]:
        """(exit code, lines on stderr but the warning that a class is absent)."""
        with self.errors as file:
            lines = [
                line
                for line in file.read().splitlines()
                if "macro F1 leaves out such a class" not in line
            ]
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), lines


def at_call(owner: Any, name: str, number: int, act: Callable[[], object]) -> None:
    """Have a function's call `number` begin with `act`, in a forked process or a monkeypatch."""
    plain, calls = getattr(owner, name), iter(range(10**6))

    def watched(*args: object, **named: object) -> object:
        if next(calls) == number:
            act()
        return plain(*args, **named)

    setattr(owner, name, watched)


def limit(what: int, value: int) -> None:
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))


def check_whole(saved: Path) -> None:
    """No half-written file, and every checkpoint that a state lists is there."""
    assert not list(saved.rglob(".writing-*"))
    for path in saved.rglob("*.pth"):
        checkpoint.load_checkpoint(path)
    for path in saved.rglob(fold_state.STATE_FILE):
        found = fold_state.load_fold_state(path.parent)
        assert found is not None
        assert all((path.parent / kept.file).is_file() for kept in found[0].kept)


# --- disks, files, processes


@pytest.mark.parametrize(
    ("owner", "name", "call", "file"),
    [
        (run_directory, "write_json", 0, "run.json"),
        (checkpoint, "save_checkpoint", 1, ".pth"),
        (fold_state, "save_fold_state", 1, "state.pt"),
        (fold_state, "save_validation", 3, "history.csv"),
        (np, "savez_compressed", 1, "validation.npz"),
        (out_of_fold, "write_oof", 0, "oof.csv"),
    ],
)
def test_a_full_disk_is_named_and_costs_nothing(
    root: Path,
    tmp_path: Path,
    unbroken: dict[str, object],
    owner: Any,
    name: str,
    call: int,
    file: str,
) -> None:
    def full() -> None:
        at_call(owner, name, call, lambda: limit(resource.RLIMIT_FSIZE, 50))

    code, lines = Forked(train, words(root, tmp_path), full).end()
    assert code == 1
    assert len(lines) == 1
    assert re.fullmatch(
        rf"script.py: error: /.*{re.escape(file)}: cannot be written \(File too large\); "
        rf".*{'start it again' if file == 'run.json' else 'go on with --resume'}",
        lines[0],
    )
    check_whole(tmp_path)
    resumed = [] if file == "run.json" else ["--resume"]  # nothing had begun
    assert train.main(words(root, tmp_path, *resumed)) == 0
    assert fault_runs.result(tmp_path) == unbroken


@pytest.mark.parametrize(
    ("name", "file"), [("save_probabilities", "probs.npz"), ("write_predictions", ".csv")]
)
def test_a_full_disk_in_a_submission(
    tree: Path, eval_root: Path, tmp_path: Path, name: str, file: str
) -> None:
    def full() -> None:
        at_call(submission, name, 0, lambda: limit(resource.RLIMIT_FSIZE, 50))

    code, lines = Forked(submit_ensemble, answered(tree, eval_root, tmp_path), full).end()
    assert code == 1
    assert len([line for line in lines if "note:" not in line]) == 1
    assert f"{file}: cannot be written (File too large)" in lines[-1]
    assert not [
        p for p in tmp_path.rglob("*") if p.name.startswith(".writing-") or p.name.endswith(file)
    ]


def test_a_folder_that_cannot_be_written_is_refused_before_the_long_part(
    root: Path, tree: Path, eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "out"
    monkeypatch.setattr(engine, "predict", lambda *_: pytest.fail("predicted"))
    monkeypatch.setattr(engine, "train_one_epoch", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match="out.*file is not a writable folder.*--save-path"):
        train.main(words(root, below))
    with pytest.raises(UserError, match=f"{below}: .*file is not a writable folder.*--save-path"):
        submit_ensemble.main(answered(tree, eval_root, below))


def test_a_folder_that_becomes_read_only_is_named(
    root: Path, tmp_path: Path, unbroken: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", os.replace)
        at_call(os, "replace", 7, refuse)
        with pytest.raises(
            RunError, match=r"fold00/.*: cannot be written \(Read-only file system\)"
        ):
            train.main(words(root, tmp_path))
    check_whole(tmp_path)
    assert train.main(words(root, tmp_path, "--resume")) == 0
    assert fault_runs.result(tmp_path) == unbroken


def test_too_few_open_files_are_told_and_never_waited_for(root: Path, tmp_path: Path) -> None:
    def few() -> None:
        at_call(
            training_fold,
            "train_fold",
            0,
            lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)),
        )

    code, lines = Forked(train, words(root, tmp_path / "a", "--workers", "1"), few).end()
    assert (code, len(lines)) == (1, 1)
    assert re.search(
        r"--workers 1: about \d+ files will be open at once, the system allows 40", lines[0]
    )

    def cannot_send() -> None:  # torch's sender would drop the batch, and the run wait for it
        def refuse(handle: int) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        torch.multiprocessing.reductions.reduction.DupFd = refuse  # type: ignore[assignment]

    code, lines = Forked(train, words(root, tmp_path / "b", "--workers", "1"), cannot_send).end()
    assert code == 1
    assert len(lines) == 2
    assert "cannot send them: Too many open files" in lines[0]
    assert "a process that reads photographs was lost" in lines[1]

    def in_worker() -> None:
        at_call(dataset.ImageDataset, "__getitem__", 2, lambda: limit(resource.RLIMIT_NOFILE, 3))

    code, lines = Forked(train, words(root, tmp_path / "c", "--workers", "1"), in_worker).end()
    assert (code, len(lines)) == (1, 1)
    assert "cannot be opened (Too many open files)" in lines[0]


def test_the_limit_of_open_files_is_raised_as_far_as_batches_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [(100, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    loading.raise_open_file_limit(16, 32)
    assert limits[-1][0] > 16 * 34
    loading.raise_open_file_limit(1, 3)
    assert len(limits) == 2


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_machine_that_is_short_does_not_make_photographs_bad(
    root: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(images, "read_file", short)
    for read in (images.read_image, images.inspect_image):
        with pytest.raises((RunError, MemoryError)):
            read("x.jpg")


def kill_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()


def kill_worker(batch: int, photo: int) -> None:
    """Kill the processes that read when that batch has come, while one of them has a photograph to
    read: of a later batch, which it does not get past.
    """
    at_call(engine, "to_network", batch, kill_children)
    at_call(dataset.ImageDataset, "__getitem__", photo, lambda: time.sleep(support.LIMIT))


def test_a_killed_worker_is_named_and_the_run_goes_on_from_there(
    root: Path, tmp_path: Path, unbroken: dict[str, object]
) -> None:
    code, lines = Forked(
        train, words(root, tmp_path, "--workers", "1"), lambda: kill_worker(7, 37)
    ).end()
    assert (code, len(lines)) == (1, 1)
    assert "a process that reads photographs was lost" in lines[0]
    assert "go on with --resume" in lines[0]
    check_whole(tmp_path)
    assert train.main(words(root, tmp_path, "--resume")) == 0
    assert fault_runs.result(tmp_path) == unbroken


def test_a_killed_worker_ends_a_submission_in_one_line(
    tree: Path, eval_root: Path, tmp_path: Path
) -> None:
    asked = answered(tree, eval_root, tmp_path, "--workers", "1", "--batch-size", "1")
    code, lines = Forked(submit_ensemble, asked, lambda: kill_worker(4, 6)).end()
    assert code == 1
    assert [line for line in lines if "note:" not in line] == lines[-1:]
    assert "a process that reads photographs was lost" in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_one_line(
    root: Path, tmp_path: Path, unbroken: dict[str, object], number: signal.Signals
) -> None:
    ready, tell = os.pipe()
    held, let = os.pipe()

    def wait() -> None:
        at_call(engine, "to_network", 4, lambda: (os.write(tell, b"x"), os.read(held, 1)))

    run = Forked(train, words(root, tmp_path, "--workers", "2"), wait)
    os.close(tell)
    assert os.read(ready, 1), "it ended before"
    os.killpg(run.pid, number)
    os.write(let, b"x")
    code, lines = run.end()
    assert code == 128 + number
    assert len(lines) == 1
    assert re.search(
        r"script.py: stopped in epoch \d of fold 0; the same command with --resume goes on from "
        r"there",
        lines[0],
    )
    assert train.main(words(root, tmp_path, "--resume")) == 0
    assert fault_runs.result(tmp_path) == unbroken


def test_of_two_runs_on_one_tree_one_is_refused_and_nothing_is_lost(
    root: Path, tmp_path: Path, unbroken: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, tell = os.pipe()
    held, let = os.pipe()
    asked = words(root, tmp_path, "--run-name", "x")

    def wait() -> None:
        at_call(engine, "to_network", 4, lambda: (os.write(tell, b"x"), os.read(held, 1)))

    first = Forked(train, asked, wait)
    os.close(tell)
    assert os.read(ready, 1), "it ended before"
    monkeypatch.setattr(run_directory, "LOCK_SECONDS", 0.0)
    with pytest.raises(UserError, match="_x/fold00: another process trains this fold"):
        train.main(asked)
    os.write(let, b"x")
    assert first.end() == (0, [])
    assert fault_runs.result(tmp_path) == unbroken


# --- files that lie


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_run_code_are_refused_wherever_they_lie(
    root: Path,
    tree: Path,
    eval_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zipped: bool,
) -> None:
    mark = tmp_path / "ran"

    def poison(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"state_dict": Evil(mark), "state": Evil(mark), "linear.weight": Evil(mark)}
        if zipped:
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content))
        return path

    def refused(script: Any, asked: list[str], path: Path) -> None:
        with pytest.raises(UserError, match=re.escape(str(path)) + ": cannot be read safely"):
            script.main(asked)
        assert not mark.exists()

    pickle.loads(pickle.dumps(Evil(mark)))
    mark.rmdir()  # it does run where it is let
    alone = poison(tmp_path / "x.pth")
    refused(train, words(root, tmp_path / "s", "--load-state-dict", str(alone)), alone)
    refused(train, words(root, tmp_path / "s", "--pretrained", str(alone)), alone)
    refused(
        submit_singular,
        [*answered(tree, eval_root, tmp_path)[2:-2], "--load-state-dict", str(alone)],
        alone,
    )
    copy = Path(shutil.copytree(tree, tmp_path / "kfold-ensemble-x"))
    member = poison(copy / "fold01" / "a.pth")
    refused(submit_ensemble, answered(copy, eval_root, tmp_path / "p"), member)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    cached = poison(tmp_path / "home" / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    resnet = ["--model-type", "VanillaResNet", "--backbone", "resnet18"]
    refused(train, [*words(root, tmp_path / "s"), *resnet], cached)
    state = poison(copy / "fold02" / fold_state.STATE_FILE)
    with pytest.raises(UserError, match="cannot be read safely"):
        fold_state.load_fold_state(state.parent)
    assert not mark.exists()
    assert not (tmp_path / "s").exists()


def test_zip_bombs_are_refused_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"w": torch.zeros(1 << 23)}, plain)
    with (
        zipfile.ZipFile(plain) as whole,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in whole.namelist():
            packed.writestr(part, whole.read(part))
    np.savez_compressed(tmp_path / "probs.npz", probabilities=np.zeros(1 << 22))
    assert len(checkpoint.load_checkpoint(plain).weights["w"]) == 1 << 23
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=r"bomb\.pth: .* bytes unpacked"):
        checkpoint.load_checkpoint(bomb)
    with pytest.raises(UserError, match=r"probs\.npz: .* bytes unpacked"):
        submission.load_probabilities(tmp_path)


def spoilt(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The checkpoint with something changed."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@pytest.fixture
def copied(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "kfold-ensemble-copy"))


def best(tree: Path, fold: int) -> Path:
    return checkpoint.load_ranked(tree / f"fold{fold:02d}")[0].path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    root: Path, copied: Path, eval_root: Path, tmp_path: Path, value: float
) -> None:
    path = spoilt(
        best(copied, 1), lambda c: c["state_dict"]["linear.weight"].view(-1)[5:6].fill_(value)
    )
    told = re.escape(str(path)) + r": linear\.weight holds NaN or infinity"
    with pytest.raises(UserError, match=told):
        submit_ensemble.main(answered(copied, eval_root, tmp_path / "p"))
    with pytest.raises(UserError, match=told):
        train.main(words(root, tmp_path / "s", "--load-state-dict", str(path)))
    weights = support.tiny_weights("tiny")
    weights["stem.bias"][0] = value
    torch.save(weights, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=r"backbone\.pth: stem\.bias holds NaN"):
        train.main(words(root, tmp_path / "s", "--pretrained", str(tmp_path / "backbone.pth")))
    assert not (tmp_path / "s").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["info"].update(image_size=10**9), "out of range"),
        (lambda c: c["info"].update(padding=-1), "out of range"),
        (lambda c: c["info"].update(macro_f1=float("nan")), "out of range"),
        (lambda c: c["info"].update(macro_f1=7.0), "out of range"),
        (lambda c: c["info"].update(task="mask"), "was trained for mask"),
        (lambda c: c["info"].update(model="THANet_MK1"), "another network's"),
        (
            lambda c: c["state_dict"].update({"linear.bias": torch.zeros(1).expand(1 << 40)}),
            "another network's",
        ),
        (
            lambda c: c["state_dict"].update({"linear.bias": torch.zeros(18).to_sparse()}),
            "cannot be",
        ),
        (
            lambda c: c["state_dict"].update({"linear.bias": torch.zeros(18, device="meta")}),
            "cannot be",
        ),
        (
            lambda c: c["state_dict"].pop("linear.bias"),
            r"linear.bias: missing in the file, float \[18\]",
        ),
    ],
)
def test_checkpoints_that_lie_are_refused_by_name(
    copied: Path,
    eval_root: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    told: str,
) -> None:
    path = spoilt(best(copied, 0), change)
    with pytest.raises(UserError, match=told) as caught:
        submit_singular.main(
            [*answered(copied, eval_root, tmp_path / "p")[2:-2], "--load-state-dict", str(path)]
        )
    assert str(path) in str(caught.value)


def test_a_tree_of_several_kinds_votes_where_all_can_answer(
    root: Path, tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train.main(
            words(
                root, tmp_path / "saved", "--task", "mask", "--cv", "1", "--epochs", "1", "--quiet"
            )
        )
        == 0
    )
    mixed = Path(shutil.copytree(tree, tmp_path / "of no model's name"))
    assert submit_ensemble.main(answered(mixed, eval_root, tmp_path / "p")) == 0
    assert "kinds" not in capsys.readouterr().err
    shutil.copytree(next(tmp_path.glob("saved/*/fold00")), mixed / "fold07")
    assert submit_ensemble.main(answered(mixed, eval_root, tmp_path / "p", "--task", "mask")) == 0
    assert (
        "of 2 kinds (VanillaEfficientNet for main, VanillaEfficientNet for mask)"
        in capsys.readouterr().err
    )
    with pytest.raises(
        UserError, match="--task main: .*fold07/.* was trained for mask; use --task mask"
    ):
        submit_ensemble.main(answered(mixed, eval_root, tmp_path / "p"))
    (mixed / "fold08").mkdir()
    with pytest.raises(
        UserError, match="fold08: holds no checkpoint; finish its training or remove"
    ):
        submit_ensemble.main(answered(mixed, eval_root, tmp_path / "p"))


def test_more_folds_than_people_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"--cv 7: there are only {len(PEOPLE)} people; use at most --cv 6"
    ):
        train.main(words(root, tmp_path / "s", "--cv", "7"))


# --- numbers that go wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fold_that_diverged_is_tried_again_from_its_last_good_state(
    root: Path,
    tmp_path: Path,
    unbroken: dict[str, object],
    value: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = engine.to_network
    # the second of the three steps of fold 0's second epoch
    in_step = utils.derive_seed("step", 42, 0, 4)

    def spoil(compute: engine.Compute, pixels: torch.Tensor) -> torch.Tensor:
        return plain(compute, pixels) * (value if torch.initial_seed() == in_step else 1)

    lines = []
    for more in ([], ["--resume"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "to_network", spoil)
            assert train.main(words(root, tmp_path, *more)) == 1
        captured = capsys.readouterr()
        lines.append([line for line in captured.out.splitlines() if "failed" in line])
        errors._warned.clear()
        check_whole(tmp_path)
        assert len(list(tmp_path.glob("*/fold00/*.pth"))) == 1
        assert len(list(tmp_path.glob("*/fold01/*.pth"))) == 2
    assert "fold 0: goes on after 1 epoch and " in captured.out
    assert "fold 1: complete already" in captured.out
    assert lines[0] == lines[1]
    told = (
        r"fold 0, epoch 2, step 2 of 3: loss is NaN or infinite at a learning rate of "
        r"[\d.e-]+; try"
    )
    assert re.search(told, lines[0][0])
    assert train.main(words(root, tmp_path, "--resume")) == 0
    assert fault_runs.result(tmp_path) == unbroken


def test_weights_that_are_no_numbers_are_never_saved(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = engine.validate

    def validate(network: Any, *rest: Any) -> Any:
        found = plain(network, *rest)
        network.batchnorm.running_var[3] = float("inf")  # its answers are still numbers
        return found

    monkeypatch.setattr(engine, "validate", validate)
    assert train.main(words(root, tmp_path, "--cv", "1", "--epochs", "1")) == 1
    assert "epoch 1, step 5 of 5: weights or outputs are NaN or infinite" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pth"))


def test_few_people_of_one_class_and_odd_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = support.make_train(tmp_path / "one", [("1", "male", 20), ("2", "male", 21)], junk=False)
    for task, size in (
        ("gender", "2"),
        ("main", "3"),
        ("age", "6"),
    ):  # 7 photographs: the last batch would hold one
        errors._warned.clear()
        assert (
            train.main(
                words(root, tmp_path / task, "--task", task, "--batch-size", size, "--epochs", "1")
            )
            == 0
        )
        err = capsys.readouterr().err
        assert ("1 class is absent" in err or "classes are absent" in err) == (
            task != "gender" or "female" in err
        )
    for path in sorted((root / "images").glob("*/*"))[1:7]:
        path.unlink()
    with pytest.raises(UserError, match="a single photograph is left to train fold . on"):
        train.main(words(root, tmp_path / "alone"))
    assert not (tmp_path / "alone").exists()


def real_failure() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def out_of_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def no_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [real_failure, out_of_gpu, no_memory])
def test_a_full_memory_names_the_batch_size_the_peak_and_what_is_free(
    root: Path,
    tree: Path,
    eval_root: Path,
    tmp_path: Path,
    fail: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = (
        r"--batch-size {}: the memory is full \(peak [\d.]+ GiB here, [\d.]+ GiB free now\); "
        r"use a smaller one{}$"
    )
    monkeypatch.setattr(engine, "to_network", lambda *_: fail())
    with pytest.raises(
        RunError, match=told.format(8, r" in a new run \(--resume takes no other batch size\)")
    ):
        train.main(words(root, tmp_path / "s"))
    with pytest.raises(RunError, match=told.format(3, "")):
        submit_ensemble.main(answered(tree, eval_root, tmp_path / "p", "--batch-size", "3"))
    alone = [
        *answered(tree, eval_root, tmp_path / "p")[2:-2],
        "--load-state-dict",
        str(best(tree, 0)),
    ]
    with pytest.raises(RunError, match=told.format(32, "")):
        submit_singular.main(alone)
    with pytest.raises(UserError, match=r"--batch-size 8 \(now 4\)"):
        train.main(words(root, tmp_path / "s", "--resume", "--batch-size", "4"))


def test_a_program_ends_though_its_readers_are_still_there(train_root: Path) -> None:
    """They ignore SIGTERM; whoever holds an exception's frames keeps them alive to the end."""
    root = Path(__file__).resolve().parents[2]
    code = f"""
import sys, torch, augmentation, dataset
from data import tables
from runtime import loading
paths = tables.read_train({str(train_root)!r})['path'].tolist()
views = [augmentation.View(augmentation.forms('base', 16).valid)]
photos = dataset.ImageDataset(paths, paths, views)
batches = dataset.EpochBatchSampler(range(len(paths)), 8)
sys.kept = iter(loading.make_loader(photos, batches, 1, torch.device('cpu')))
print(len(next(sys.kept)))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=support.LIMIT,
        check=False,
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "2"), ended.stderr
