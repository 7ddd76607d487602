"""Every benchmark runs at its smallest size and prints its ratios. Times are never judged here."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import config
import prepare
import tables
import utils

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LITE = (
    "--backbone",
    "efficientnet-lite0",
    "--image-size",
    "32",
)  # a side in another process does not know the tiny one
SMALL = ("--rounds", "1", "--workers", "0", "--threads", "1")
ONE_BATCH = ("--batches", "1", "--batch-size", "4", "--threads", "1")


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        (
            "training_speed",
            (*LITE, *SMALL[:2], *ONE_BATCH, "--workers", "1"),
            r"real / limit [\d.]+ +real(.*\n)+.* ram gains",
        ),
        (
            "loading_speed",
            ("--image-size", "32", "--images", "2", "--rounds", "1"),
            r"tta [\d.]+(.*\n)+.*--cache ram.* tta",
        ),
        (
            "ensemble_speed",
            (*LITE, *SMALL, "--images", "2", "--members", "2", "--plain-passes", "1"),
            r"limit, in time [\d.]+",
        ),
        (
            "memory",
            ("--image-size", "32", "--members", "1", "--images", "14"),
            r"ensemble of +1 over +14 .*\n.*training on +14 ",
        ),
        (
            "growth",
            ("--backbone", "tiny", *SMALL, "--images", "2", "--rows", "42", "70"),
            r"leak .*of 1x\n(.*\n)+ +70 rows, l",
        ),
    ],
)
def test_a_benchmark_prints_its_ratios(
    script: str,
    words: tuple[str, ...],
    said: str,
    train_root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(script, (str(train_root), *words), monkeypatch) == 0
    assert re.search(said, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("startup", ("--rounds", "1")),
        ("revote", ("--rounds", "1", "--members", "2", "--images", "5")),
    ],
)
def test_a_benchmark_compares_processes_with_python_alone(
    script: str,
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(script, words, monkeypatch) == 0
    assert len(re.findall(r"[\d.]+ s +[\d.]+ x python -c pass", capsys.readouterr().out)) >= 3


def test_fast_paths_are_compared_with_plain_ones_and_bf16(
    train_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (str(train_root), str(tmp_path), "--seeds", "1", "--epochs", "1", "--image-size", "32")
    assert run("fast_paths_score", words, monkeypatch) == 0
    assert re.search(
        r"plain +macro F1 [\d.]+, deviation of the seeds .*, less fast [+-][\d.]+\nbf16",
        capsys.readouterr().out,
    )
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 4


def test_what_keeping_the_state_costs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("state_cost", ("--backbone", "tiny", "--rounds", "1"), monkeypatch) == 0
    assert re.search(r"state of tiny: .* s a write .*% of 60 s", capsys.readouterr().out)


def test_settings_are_compared_on_the_same_people_and_not_run_twice(
    train_root: Path,
    eval_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(train_root, target_is_directory=True)
    shutil.copytree(eval_root, tmp_path / "data" / "eval")
    names = pd.read_csv(tmp_path / "data" / "eval" / "info.csv")["ImageID"]
    pd.DataFrame({"ImageID": names[::-1], "ans": 3}).to_csv(
        tmp_path / "data" / "eval" / "answers.csv", index=False
    )
    words = [str(tmp_path / "data"), str(tmp_path / "runs"), "--image-size", "32", "--epochs", "1"]
    assert run("ablation", (*words, "--settings", "seed", "strong", "facecrop"), monkeypatch) == 0
    told = capsys.readouterr().out
    assert told.count("done: ") == 3
    rows = [line.split() for line in told.splitlines() if re.search(r" +1 +[\d.]+ +[\d.]+ ", line)]
    assert len(rows) == 3 + 2 + 1  # views
    assert [row[:2] for row in rows[:1]] == [["seed", "wide"]]
    kept = sorted(path.name for path in (tmp_path / "runs").glob("*/seed1/*"))
    assert not [name for name in kept if name.endswith(".pth") or name == "models"]
    assert run("ablation", (*words, "--settings", "seed"), monkeypatch) == 0
    assert "done: " not in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="use another DIR"):
        run("ablation", (*words, "--cv", "2"), monkeypatch)


def test_face_finders_are_judged_by_the_true_boxes(
    train_root: Path,
    eval_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(train_root, target_is_directory=True)
    shutil.copytree(eval_root, data / "eval")
    names = pd.read_csv(data / "eval" / "info.csv")["ImageID"]
    pd.DataFrame({"ImageID": names, "ans": 0}).to_csv(data / "eval" / "answers.csv", index=False)
    files = [f"train/{file}" for file in tables.read_train(train_root)["file"]] + [
        f"eval/images/{name}" for name in names
    ]
    box = pd.DataFrame({"file": files, "left": 100, "top": 150, "right": 280, "bottom": 390})
    box.to_csv(data / "boxes.csv", index=False)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    finders = importlib.import_module("face_finders")
    shifted = finders.Detector(
        lambda: lambda photo: [(0.5, (0, 0, 9, 9)), (0.9, (110, 140, 290, 380))], "nothing"
    )
    monkeypatch.setitem(finders.DETECTORS, "shifted", shifted)
    absent = finders.Detector(lambda: importlib.import_module("no_such_package"), "it")
    monkeypatch.setitem(finders.DETECTORS, "absent", absent)
    words = (
        str(data),
        "--side",
        "eval",
        "--detectors",
        "pixels",
        "shifted",
        "absent",
        "--boxes-out",
        str(tmp_path / "out"),
    )
    assert run("detectors", words, monkeypatch) == 0
    told = capsys.readouterr().out
    assert "missing: absent (No module named 'no_such_package'); install it" in told
    row = next(line.split() for line in told.splitlines() if line.split()[:2] == ["shifted", "all"])
    common, union = 170 * 230, 2 * 180 * 240 - 170 * 230
    assert [float(value) for value in row[3:11]] == pytest.approx(
        [100, 100, 100, *[common / union] * 2, 100, 1, 1], abs=1e-3
    )
    made = pd.read_csv(tmp_path / "out" / "shifted.csv")
    assert made[["left", "top", "right", "bottom"]].drop_duplicates().to_numpy().tolist() == [
        [100, 150, 280, 390]
    ]


@pytest.fixture
def data(train_root: Path, eval_root: Path, tmp_path: Path) -> Path:
    """A data root with train/ and eval/."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(train_root, target_is_directory=True)
    (tmp_path / "data" / "eval").symlink_to(eval_root, target_is_directory=True)
    return tmp_path / "data"


@pytest.mark.parametrize("library", ["fastai", "timm"])
def test_peers_answer_in_the_tables_order_and_are_not_trained_twice(
    library: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    words = (
        str(data),
        str(tmp_path / "out.npz"),
        "--image-size",
        "32",
        "--epochs",
        "1",
        "--batch-size",
        "4",
    )
    assert run(f"peers/{library}_peer", words, monkeypatch) == 0
    told = capsys.readouterr().out
    assert re.search(
        rf"{library} [\d.]+, seed 1: answers macro F1 [\d.]+ .*\nCPU seconds: training [\d.]+ \(",
        told,
    )
    with np.load(tmp_path / "out.npz") as stored:
        assert stored["probabilities"].shape == (1, 1, 9, 18)
        assert (
            stored["images"].tolist() == pd.read_csv(data / "eval" / "info.csv")["ImageID"].tolist()
        )
    assert run(f"peers/{library}_peer", words, monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == told.splitlines()[-2:]


def test_peers_hold_out_whom_training_does_and_refuse_another_runs_answers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    peer = importlib.import_module("peer")
    seen = []

    def side(args: argparse.Namespace, given: Any) -> Any:
        seen.append(given)
        return peer.Result(np.eye(18)[[3] * len(given.paths)], 0.5, 1.0, 1.0, "stub 1")

    args = peer.options("").parse_args([str(data), str(tmp_path / "out.npz")])
    assert [peer.play(args, side) for _ in range(2)] == [0, 0]
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("stub 1, seed 1: answers macro F1 ")
    assert told[:2] == told[2:]
    (given,) = seen
    table, _ = prepare.load_table(config.TrainSettings(train_root=str(data / "train")))
    assert given.held_out["file"].tolist() == table.loc[table["fold"] == 0, "file"].tolist()
    assert len(given.train) + len(given.held_out) == len(table)
    table.drop_duplicates("person")[["person", "fold"]].replace({"fold": {0: 1, -1: 0}}).to_csv(
        tmp_path / "folds.csv"
    )
    args.folds = str(tmp_path / "folds.csv")
    assert len(peer.read(args).train) == len(given.held_out)
    with pytest.raises(utils.UserError, match=r"made with other arguments"):
        peer.play(args, side)


def run(script: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    code: int = runpy.run_path(str(BENCHMARKS / f"{script}.py"))["main"](list(words))
    return code
