"""Nothing lost: a sample of `make proof`, and that its checks see what they should."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import registries
import train
from reporting import html
from runtime import files
from tests.helpers import crash_points, interleavings, kills, proof, support
from tests.helpers.crash_points import Recording, Submission, Training
from tests.helpers.recorder import Disk, Operation, Recorder, crash_states, read_tree
from training import cross_validation

EVERY = 40  # of the states after a crash, the sample of a test


@pytest.fixture(autouse=True, scope="module")
def _tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        patch.setattr(html, "render_page", lambda *_: "<html></html>")
        for name in ("show_views", "show_heat_maps"):
            patch.setattr(cross_validation, name, lambda *_: html.Gallery("", []))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proof")


@pytest.fixture(scope="module")
def training(folder: Path) -> Training:
    return Training(support.make_train(folder / "train", crash_points.PEOPLE, junk=False))


@pytest.fixture(scope="module")
def recording(training: Training, folder: Path) -> Recording:
    return training.record(folder / "whole")


@pytest.fixture(scope="module")
def submission(recording: Recording, folder: Path) -> Submission:
    (run_dir,) = (folder / "whole" / "saved").iterdir()
    return Submission(folder / "submission", run_dir)


def careless(root: Path) -> None:
    """Creates, writes, appends, copies, renames and removes in many ways."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "one").write_text("1")
    with open(root / "a" / "one", "a") as file:
        file.write("more")
    handle = os.open(root / "two", os.O_WRONLY | os.O_CREAT)
    os.write(handle, b"2")
    os.fsync(handle)
    os.close(handle)
    shutil.copy(root / "two", root / "a" / "b" / "three")
    os.replace(root / "two", root / "a" / "one")
    shutil.move(root / "a" / "one", root / "four")
    (root / "five").touch()
    (root / "five").unlink()
    (root / "four").open("w").close()
    (root / "six").mkdir()
    (root / "six").rmdir()


def test_what_was_recorded_gives_the_same_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with Recorder(root) as recorder:
        careless(root)
        (tmp_path / "elsewhere").touch()
    disk = Disk({})
    for number, operation in enumerate(recorder.operations):
        disk.apply(operation, number)
    assert (
        disk.whole() == read_tree(root) == {"a": None, "a/b": None, "a/b/three": b"2", "four": b""}
    )
    assert {operation.kind for operation in recorder.operations} == {
        *("open", "write", "sync", "rename", "remove", "mkdir", "rmdir")
    }


def crashes(write: Callable[[Path], None], root: Path) -> list[dict[str, bytes | None]]:
    """Every folder that a crash while `write` is at work may leave."""
    with Recorder(root) as recorder:
        write(root)
    return [tree for _, tree, _ in crash_states({}, recorder.operations)]


def test_a_crash_may_lose_what_was_not_flushed(tmp_path: Path) -> None:
    def without_flush(root: Path) -> None:
        (root / "new").write_bytes(b"whole")
        (root / "new").replace(root / "file")

    states = [tree.get("file") for tree in crashes(without_flush, tmp_path)]
    assert {None, b"", b"wh", bytes(5), b"whole"} == set(states)


def test_a_written_file_is_whole_or_absent_after_a_crash(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        with files.atomic_write(root / "file") as file:
            file.write(b"whole")

    states = crashes(write, tmp_path)
    assert {tree.get("file") for tree in states} == {None, b"whole"}
    assert states[-1] == {"file": b"whole"}


def test_a_new_folder_outlasts_a_power_cut(tmp_path: Path) -> None:
    """Its entry in the folder above it is flushed too, else all that it holds would be lost."""

    def create(root: Path) -> None:
        files.create_folder(root / "one" / "two")
        files.create_new_folder(root / "three", "four")

    with Recorder(tmp_path) as recorder:
        create(tmp_path)
    disk = Disk({})
    for number, operation in enumerate(recorder.operations):
        disk.apply(operation, number)
    assert disk.crashes()["nothing"] == dict.fromkeys(("one", "one/two", "three", "three/four"))


def around(recording: Recording, is_near: Callable[[Operation], bool]) -> set[str]:
    """Numbers of the operations before and after the first and last of a kind."""
    numbers = [k for k, operation in enumerate(recording.operations) if is_near(operation)]
    assert numbers
    return {str(k + step) for k in (numbers[0], numbers[-1]) for step in (0, 1, 2)}


def renames_to(end: str) -> Callable[[Operation], bool]:
    return lambda operation: operation.kind == "rename" and operation.value.endswith(end)


def removes(end: str) -> Callable[[Operation], bool]:
    return lambda operation: operation.kind == "remove" and operation.path.endswith(end)


def test_from_sampled_crash_points_a_run_ends_as_the_unbroken_one(
    training: Training, recording: Recording
) -> None:
    near = set[str]()
    for end in ("run.json", "state.pt", ".pth"):
        near |= around(recording, renames_to(end))
    for end in (".pth", "state.pt"):
        near |= around(recording, removes(end))
    sample = [
        state
        for k, state in enumerate(recording.states())
        if k % EVERY == 0 or state[0].partition(",")[0] in near
    ]
    assert len(sample) > 15
    found = {name: training.difference(recording, tree, marks) for name, tree, marks in sample}
    assert not {name: difference for name, difference in found.items() if difference}


def test_from_sampled_crash_points_a_submission_is_the_unbroken_one(submission: Submission) -> None:
    states = list(submission.recording.states())
    found = {name: submission.difference(tree) for name, tree, _ in states[:: EVERY // 4]}
    assert len(found) > 3
    assert not {name: difference for name, difference in found.items() if difference}


def test_a_product_that_flushes_nothing_is_found_out(
    training: Training, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fsync", lambda handle: None)
    recording = Recording(folder / "careless", train.main, training.words(folder / "careless"))
    half = [recording.half_written(tree) for _, tree, _ in recording.states()]
    assert any(path.endswith("state.pt") for paths in half for path in paths)


@pytest.fixture(scope="module")
def pairs(folder: Path) -> dict[str, interleavings.Pair]:
    return interleavings.make_pairs(folder / "pairs")


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("a new run", 0, 12),
        ("a new run", 14, 10),
        ("two folds of a new run", 7, 3),
        ("a run to resume", 3, 2),
    ],
)
def test_of_two_commands_at_once_only_one_trains_a_fold(
    pairs: dict[str, interleavings.Pair], name: str, first: int, second: int
) -> None:
    assert pairs[name].run(first, second)[1] == ""


def test_two_trainers_of_one_fold_are_found_out(
    pairs: dict[str, interleavings.Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda handle, operation: None)
    differences = {pairs["a new run"].run(i, 100)[1] for i in (20, 24)}
    assert any("both train fold" in text or "trained folds" in text for text in differences)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_at_an_operation_a_run_ends_as_the_unbroken_one(
    training: Training, recording: Recording, jobs: str
) -> None:
    killed = Training(training.root, "--jobs", jobs)
    command = kills.Command(train.main)
    count, difference = kills.train_round(killed, command, training.expected, "seed")
    assert difference == ""
    assert count > 0


def test_killed_at_an_operation_a_submission_is_the_unbroken_one(submission: Submission) -> None:
    assert kills.submit_round(submission, 9) == (1, "")


def test_a_proof_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[str]()

    def case(name: str) -> crash_points.Case:
        def run() -> tuple[int, str]:
            ran.append(name)
            if name == "broken":
                raise RuntimeError("no such run")
            return 2, ""

        return name, run

    cases = [case("a"), case("broken"), case("b")]
    monkeypatch.setitem(sys.modules, "cases", SimpleNamespace(all_cases=lambda folder: cases))
    monkeypatch.setattr(proof, "PARTS", {"part": "cases"})
    path = tmp_path / "done.jsonl"
    assert not proof.run_part("part", tmp_path, proof.Log(path), 0.0)
    assert ran == []
    proof.Log(path).add("part", "a", 2, "")
    log = proof.Log(path)
    assert proof.run_part("part", tmp_path, log, float("inf"))
    assert ran == ["broken", "b"]
    assert log.done["part"]["broken"] == (1, "RuntimeError: no such run")
    assert proof.Log(path).summary("part") == "part: 3 cases, 5 states, 1 differences"
