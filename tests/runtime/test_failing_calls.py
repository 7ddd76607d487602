"""Calls of the system that fail: a short run of tests/helpers/failing_calls.py, and what the long
one found.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import run_directory
import submit_ensemble
import train
from runtime import errors
from runtime.cli import run_script
from runtime.errors import RunError
from runtime.files import atomic_write
from tests.helpers import damage, failing_calls, support
from training import run_files

KINDS = ("state.pt", "a.pth", "validation.npz", "probs.npz")


def test_a_sample_of_failing_calls_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing_calls.main(["--sample", "12", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "12 runs, 0 not as they should be"


@pytest.mark.parametrize("failure", ["EIO", "EMFILE", "MemoryError"])
@pytest.mark.parametrize("name", KINDS)
def test_a_machine_that_fails_while_a_file_is_read_does_not_make_it_damaged(
    tmp_path: Path, name: str, failure: str
) -> None:
    """zipfile says of a drive that fails that the file is no zip file."""
    (kind,) = [kind for kind in damage.whole_files(tmp_path) if kind.path.name == name]
    system = failing_calls.System()
    with system.watched():
        intact = damage.frozen(kind.load())
    places = [p for p in system.places if failure not in failing_calls.NEVER.get(p[0], ())]
    assert len(places) > 3
    refusals: list[str] = []
    for place in places:
        failing = failing_calls.System(place, failure)
        with failing.watched():
            try:
                assert damage.frozen(kind.load()) == intact  # what it asked for changes nothing
            except (RunError, OSError) as error:  # the latter is named by run_script
                refusals.append(str(error))
        assert failing.has_failed
    assert len(refusals) > 3
    assert all(str(tmp_path) in line and "damaged" not in line for line in refusals)


def test_a_full_memory_ends_a_script_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "retry_remedy", "start it again")

    def full(_: object) -> int:
        raise MemoryError

    assert run_script(full, "submit_ensemble.py") == 1
    line = "submit_ensemble.py: error: the memory is full; mend that, then start it again\n"
    assert capsys.readouterr().err == line


def test_a_full_memory_while_a_checkpoint_is_written_is_called_that(tmp_path: Path) -> None:
    """torch.save says that the file cannot be written."""
    kinds = damage.whole_files(tmp_path)
    before = [kind.path.read_bytes() for kind in kinds]
    system = failing_calls.System()
    with system.watched():
        damage.whole_files(tmp_path)
    writes = [place for place in system.places if place[0] == "write"]
    assert len(writes) > 3
    for place in writes:
        with failing_calls.System(place, "MemoryError").watched(), pytest.raises(MemoryError):
            damage.whole_files(tmp_path)
    assert [kind.path.read_bytes() for kind in kinds] == before
    assert not list(tmp_path.glob(".writing-*"))


def test_a_folder_that_cannot_be_flushed_is_told_unless_it_may_not_be_opened(
    tmp_path: Path,
) -> None:
    """Until then a power cut could undo the rename."""

    def write() -> None:
        with atomic_write(tmp_path / "a", "w") as file:
            file.write("new")

    system = failing_calls.System()
    with system.watched():
        write()
    (place,) = [p for p, path in system.places.items() if path == str(tmp_path) and p[0] == "open"]
    for failure in ("EIO", "EMFILE"):
        with (
            failing_calls.System(place, failure).watched(),
            pytest.raises(RunError, match="a: cannot be written"),
        ):
            write()
    refused = failing_calls.System(place, "EACCES")
    with refused.watched():
        write()
    assert refused.has_failed


def test_a_run_that_cannot_begin_leaves_no_folder(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same command would begin a second run beside it."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "folds.csv")

    monkeypatch.setattr(run_files, "write_folds", fail)
    words = ["--train-root", str(train_root), "--save-path", str(tmp_path), *support.FAST]
    with pytest.raises(OSError, match="Input/output"):
        train.main(words)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tree: Path, tmp_path: Path, eval_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a fold that is complete would be trained again, or called one without checkpoints."""
    plain = os.listdir

    def refuse(folder: object) -> list[str]:
        if str(folder).endswith("fold01"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return plain(folder)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError, match="fold01"):
        run_directory.fold_checkpoints(tree / "fold01")
    words = ["--root", str(tree), "--data-root", str(eval_root), "--save-path", str(tmp_path)]
    assert run_script(lambda _: submit_ensemble.main(words), "submit_ensemble.py") == 2
    assert run_directory.fold_checkpoints(tree / "fold77") == []
    assert run_directory.fold_dirs(tree / "run.json") == []
