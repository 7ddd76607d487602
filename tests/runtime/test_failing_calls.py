"""Calls of the system that fail: a short run of tests/helpers/failing_calls.py, and what the long
one found.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import train
from runtime.cli import run_script
from runtime.errors import RunError
from tests.helpers import damage, failing_calls, support
from training import run_files

KINDS = ("state.pt", "a.pth", "validation.npz", "probs.npz")


def test_a_sample_of_failing_calls_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing_calls.main(["--sample", "12", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "12 runs: " in lines[-1]
    assert "0 not as they should be" in lines[-1]


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


def test_a_full_memory_ends_a_script_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: object) -> int:
        raise MemoryError

    assert run_script(full, "submit_ensemble.py") == 1
    line = "submit_ensemble.py: error: the memory is full; mend that, then start it again\n"
    assert capsys.readouterr().err == line


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
