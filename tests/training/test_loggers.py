"""--log wandb: what the package is handed; its own failures end no run."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import train
from tests.helpers import support


class FakeRun:
    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.logged, self.finished = arguments, list[tuple[Any, int]](), False

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((figures, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that a stand-in for wandb has begun."""
    begun: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        begun.append(FakeRun(**arguments))
        return begun[-1]

    package: Any = types.ModuleType("wandb")
    package.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    package.init, package.Settings = init, dict
    monkeypatch.setitem(sys.modules, "wandb", package)
    return begun


def words(root: Path, saved: Path) -> list[str]:
    options = ["--train-root", str(root), "--save-path", str(saved), "--epochs", "2"]
    return [*options, "--log", "wandb", *support.FAST]


def test_wandb_gets_settings_figures_and_final_scores(
    train_root: Path, tmp_path: Path, runs: list[FakeRun]
) -> None:
    assert train.main(words(train_root, tmp_path)) == 0
    fold, whole = runs
    assert fold.arguments["config"]["epochs"] == 2
    assert fold.arguments["group"] == whole.arguments["group"]
    assert fold.arguments["id"] != whole.arguments["id"]
    assert [step for _, step in fold.logged] == [1, 2]
    assert {"train_loss", "valid_loss", "macro_f1", "lr"} <= set(fold.logged[0][0])
    ((final, _),) = whole.logged
    assert 0 <= final["out_of_fold_macro_f1"] <= 1
    assert fold.finished
    assert whole.finished


def test_a_logger_that_fails_is_one_warning(
    train_root: Path,
    tmp_path: Path,
    runs: list[FakeRun],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(FakeRun, "log", refuse)
    assert train.main(words(train_root, tmp_path)) == 0
    err = capsys.readouterr().err
    assert err.count("--log wandb: cannot be written (no network)") == 1
    assert all(run.finished for run in runs)
