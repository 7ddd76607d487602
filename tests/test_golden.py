"""A run that commit bc79817 made is read, voted on and resumed to the same bits by the code of
today.
"""

from __future__ import annotations

import csv
import json
import platform
import re
import shutil
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torchvision

import checkpoint
import registries
import submit_ensemble
import submit_singular
import train
from inference import submission
from tests.helpers import support

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
RUN = "kfold-ensemble-VanillaEfficientNet"
FINISHED = GOLDEN / "finished" / RUN
TRAIN = (
    "--train-root",
    "train",
    "--save-path",
    "saved_models",
    "--cv",
    "2",
    "--epochs",
    "3",
    "--save-top",
    "3",
    "--batch-size",
    "8",
    "--transform-type",
    "tta",
    *support.FAST,
)
MACHINE = ("--device", "cpu", "--workers", "0", "--threads", "1")
# largest difference of a weight or probability on other processors and libraries (torch 2.6:
# 0.0011)
CLOSE = 5e-3


def environment() -> dict[str, str]:
    """What the last bits of a float hang on besides the code."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


SAME_MACHINE = environment() == json.loads((GOLDEN / "environment.json").read_text())


def paint_photographs(folder: Path) -> None:
    """The golden run's data: six people to train on, five photographs to answer."""
    rows: list[list[object]] = [["id", "gender", "race", "age", "path"]]
    for ident, gender, age in support.PEOPLE[:6]:
        person = f"{ident}_{gender}_Asian_{age}"
        (folder / "train/images" / person).mkdir(parents=True)
        rows.append([ident, gender, "Asian", age, person])
        for shot in support.SHOTS:
            support.paint(folder / "train/images" / person / f"{shot}.png", (person, shot))
    names = [f"{number:040x}.png" for number in (3, 1, 2, 5, 4)]
    (folder / "eval/images").mkdir(parents=True)
    for name in names:
        support.paint(folder / "eval/images" / name, name)
    answers: list[list[object]] = [["ImageID", "ans"], *([name, 0] for name in names)]
    for path, table in (("train/train.csv", rows), ("eval/info.csv", answers)):
        with open(folder / path, "w", newline="") as file:
            csv.writer(file).writerows(table)


def assert_same(now: np.ndarray, then: np.ndarray, what: str) -> None:
    """Equal bit for bit where the machine is the golden run's, close elsewhere."""
    assert now.shape == then.shape, what
    assert np.array_equal(now, then) if SAME_MACHINE else np.allclose(now, then, atol=CLOSE), what


def without_scores(name: str) -> str:
    """A checkpoint's name; where rounding may differ, without its F1 and loss."""
    return name if SAME_MACHINE else re.sub(r"(f1|loss)\([\d.]+\)", "", name)


def assert_same_weights(now: Path, then: Path) -> None:
    a, b = checkpoint.load_checkpoint(now), checkpoint.load_checkpoint(then)
    assert a.weights.keys() == b.weights.keys()
    for name, value in a.weights.items():
        assert_same(value.numpy(), b.weights[name].numpy(), f"{now.name}: {name}")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the stopped run was resumed; the run's options name folders relative to
    it.
    """
    folder = tmp_path_factory.mktemp("golden")
    paint_photographs(folder)
    shutil.copytree(GOLDEN / "stopped", folder / "saved_models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        patch.chdir(folder)
        assert train.main([*TRAIN, "--resume"]) == 0
    return folder


def test_the_golden_run_is_resumed_to_the_same_bits(resumed: Path) -> None:
    run = resumed / "saved_models" / RUN
    for fold in ("fold00", "fold01"):
        weights = FINISHED / fold if fold == "fold01" else GOLDEN / "stopped" / RUN / fold
        before, after = (
            {without_scores(path.name): path for path in root.glob("*.pth")}
            for root in (weights, run / fold)
        )
        assert len(before) == 3
        assert after.keys() == before.keys()
        for name, path in before.items():
            assert_same_weights(after[name], path)
        with (
            np.load(run / fold / "validation.npz") as now,
            np.load(FINISHED / fold / "validation.npz") as then,
        ):
            assert now["files"].tolist() == then["files"].tolist()
            for name in (name for name in then.files if name != "files"):
                assert_same(now[name], then[name], f"{fold}: {name}")
        assert not (run / fold / "state.pt").exists()
    if SAME_MACHINE:
        assert (run / "oof.csv").read_bytes() == (FINISHED / "oof.csv").read_bytes()
    assert (run / "folds.csv").read_bytes() == (FINISHED / "folds.csv").read_bytes()


def test_the_golden_run_votes_as_it_did(
    resumed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(resumed)
    words = [
        "--root",
        f"saved_models/{RUN}",
        "--data-root",
        "eval",
        "--top-k",
        "2",
        "--tta",
        "2",
        "--save-path",
        str(tmp_path),
    ]
    assert submit_ensemble.main([*words, *MACHINE]) == 0
    (folder,) = tmp_path.iterdir()
    now, then = (
        submission.load_probabilities(folder),
        submission.load_probabilities(GOLDEN / "prediction"),
    )
    assert [*map(without_scores, now.members)] == [*map(without_scores, then.members)]
    assert (now.images, now.folds) == (then.images, then.folds)
    # another name draws other views
    same = [m for m, name in enumerate(now.members) if name == then.members[m]]
    assert len(same) >= (len(now.members) if SAME_MACHINE else 2)
    assert_same(now.array[same], then.array[same], "probabilities")
    assert_same(np.array(now.weights), np.array(then.weights), "weights of members")
    for name in ("arithmetic", "geometric", "weighted_mean") if SAME_MACHINE else ():
        assert (folder / f"{name}.csv").read_bytes() == (
            GOLDEN / "prediction" / f"{name}.csv"
        ).read_bytes()


def test_the_golden_prediction_is_voted_on_again(tmp_path: Path) -> None:
    assert (
        submit_ensemble.main(
            ["--from-probs", str(GOLDEN / "prediction"), "--save-path", str(tmp_path)]
        )
        == 0
    )
    (folder,) = tmp_path.iterdir()
    for name in ("arithmetic", "geometric", "weighted_mean"):
        assert (folder / f"{name}.csv").read_bytes() == (
            GOLDEN / "prediction" / f"{name}.csv"
        ).read_bytes()


def test_a_golden_checkpoint_answers_alone(
    resumed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(resumed)
    path = next((GOLDEN / "stopped" / RUN / "fold01").glob("*.pth"))
    words = [
        "--load-state-dict",
        str(path),
        "--data-root",
        "eval",
        "--transform-type",
        "auto",
        "--save-path",
        str(tmp_path),
    ]
    assert submit_singular.main([*words, *MACHINE]) == 0
    (folder,) = tmp_path.iterdir()
    assert [
        row[0] for row in support.read_rows(folder / "submission.csv")[1:]
    ] == submission.load_probabilities(GOLDEN / "prediction").images
