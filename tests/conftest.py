"""Fixtures: the tiny backbone is registered in every test; one painted root and one small trained
tree per session.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import registries
import run_directory
import train
from reporting import plots
from runtime import cli, errors
from tests.helpers import support
from training import run as training_run

# No test may fail because the machine has much else to do.
hypothesis.settings.register_profile(
    "loaded machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("loaded machine")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run's readers keep its locks until they notice; a slow run's progress is no line
    that a test counts.
    """
    monkeypatch.setattr(run_directory, "LOCK_SECONDS", float(support.LIMIT))
    monkeypatch.setattr(cli, "PROGRESS_LINE_SECONDS", float(support.LIMIT))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registries.BACKBONES, "tiny", support.TINY)
    monkeypatch.setitem(registries.BACKBONES, "tiny-resnet", support.TINY_RESNET)
    errors._warned.clear()


@pytest.fixture(autouse=True)
def _no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run ends with a report, whose charts take longer than the tests' training: only the
    reports' own tests draw them.
    """
    if request.module.__name__ != "tests.reporting.test_report":
        monkeypatch.setattr(plots, "render_svg", lambda *_, **__: "<svg></svg>")


@pytest.fixture(autouse=True, scope="session")
def one_fold_at_a_time() -> Iterator[None]:
    """Tests replace parts of this process: folds run in it unless --jobs is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "PROCESS_BYTES", math.inf)
        yield


@pytest.fixture(scope="session")
def train_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_train(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="session")
def eval_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_eval(tmp_path_factory.mktemp("data") / "eval")


@pytest.fixture(scope="session")
def tree(train_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds x two epochs of a `tta` model on the tiny backbone."""
    saved = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        code = train.main(
            [
                "--train-root",
                str(train_root),
                "--save-path",
                str(saved),
                "--epochs",
                "2",
                "--cv",
                "3",
                "--transform-type",
                "tta",
                "--save-top",
                "2",
                "--run-name",
                "test",
                *support.FAST,
            ]
        )
    assert code == 0
    return saved / "kfold-ensemble-VanillaEfficientNet_test"
