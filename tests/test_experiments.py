"""Every experiment runs at its smallest size; what it finds is not judged here."""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import config
import dataset
import registries
from data import tables
from experiments import (
    ablation,
    candidates,
    detectors,
    face_finders,
    peers,
    planted_copies,
    planted_errors,
    score_truth,
)
from runtime.errors import UserError
from training import run as training_run


@pytest.fixture
def data(train_root: Path, eval_root: Path, tmp_path: Path) -> Path:
    """A data root with train/ and eval/, the latter with answers.csv in another order."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(train_root, target_is_directory=True)
    shutil.copytree(eval_root, data / "eval")
    names = pd.read_csv(data / "eval" / "info.csv")["ImageID"]
    answers = pd.DataFrame({"ImageID": names[::-1], "ans": 3})
    answers.to_csv(data / "eval" / "answers.csv", index=False)
    return data


def test_settings_are_screened_out_of_fold_without_the_answers_and_not_run_twice(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "eval" / "answers.csv").unlink()
    words = [str(data), str(tmp_path / "runs"), "--image-size", "32", "--epochs", "1", "--cv", "2"]
    assert ablation.main([*words, "--settings", "strong", "lr 0.002"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("done: ") == 2
    rows = [line.split() for line in printed.splitlines() if " out of fold " in line]
    assert [row[0] for row in rows] == ["strong", "lr"]
    assert [float(value) for value in rows[0][-5:-2]] == [0, 0, 0]  # gain over itself, interval
    kept = {path.name for path in (tmp_path / "runs").glob("*/seed1/*")}
    folds = {f"fold0{fold}.{kind}" for fold in (0, 1) for kind in ("csv", "npz")}
    assert kept == folds | {"complete", "cpu.json", "log.txt", "oof.csv", "report.json"}
    assert ablation.main([*words, "--settings", "strong"]) == 0
    assert "done: " not in capsys.readouterr().out
    with pytest.raises(UserError, match="use another DIR"):
        ablation.main([*words, "--epochs", "2"])


def test_even_macro_f1_does_not_hang_on_how_frequent_a_class_is() -> None:
    matrix = np.array([[90, 10], [5, 5]])
    rarer = np.array([[90, 10], [50, 50]])
    assert ablation.even_macro_f1(matrix) == pytest.approx(ablation.even_macro_f1(rarer))
    assert ablation.even_macro_f1(rarer) == pytest.approx(ablation.metrics.macro_f1(rarer))


def test_final_choices_are_answered_beside_the_peers_and_each_is_on_record(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = peers.make_parser("").parse_args([str(data), str(tmp_path / "peer.npz")])
    peers.run(args, lambda _, d: peers.Result(np.eye(18)[[3] * len(d.paths)], 0.5, 1, 1, "stub 1"))
    names = pd.read_csv(data / "eval" / "info.csv")["ImageID"]
    people = pd.DataFrame({"ImageID": names, "person": range(len(names))})
    people.to_csv(tmp_path / "people.csv", index=False)
    words = [str(data), str(tmp_path / "runs"), "--image-size", "32", "--epochs", "1", "--final"]
    words += ["--people", str(tmp_path / "people.csv"), "--peers", str(tmp_path / "peer.npz")]
    capsys.readouterr()
    assert ablation.main([*words, "--settings", "strong"]) == 0
    printed = capsys.readouterr().out
    assert "choices scored so far, 3 of them now" in printed
    assert [line.split()[:2] for line in printed.splitlines()[-3:]] == [
        ["strong", "one"],
        ["strong", "two"],
        ["stub", "1"],
    ]
    assert ablation.main([*words, "--base", "stub 1 data"]) == 0
    assert ", 0 of them now" in capsys.readouterr().out


def test_every_setting_is_made_of_options_that_exist(
    train_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in ("MODELS", "LOSSES", "TRANSFORMS"):
        monkeypatch.setattr(registries, registry, dict(getattr(registries, registry)))
    before = set(registries.TRANSFORMS)
    candidates.register()
    path = str(next(train_root.rglob("mask1.*")))
    for name in set(registries.TRANSFORMS) - before:
        forms = candidates.augmentation.forms(name, 32)
        views = [
            candidates.augmentation.View(form, ("test",)) for form in (forms.train, forms.valid)
        ]
        _, images = dataset.ImageDataset(["a"], [path], views)[(0, 0, 0)]
        assert [tuple(image.shape) for image in images] == [(32, 32, 3)] * 2
    losses = {name: entry.target for name, entry in registries.LOSSES.items()}
    assert registries.import_target(losses["smoothing0.1"])() is not None


def test_face_finders_are_measured_by_the_true_boxes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = pd.read_csv(data / "eval" / "answers.csv").assign(ans=0)
    answers.to_csv(data / "eval" / "answers.csv", index=False)
    files = [f"train/{file}" for file in tables.read_train(data / "train")["file"]]
    files += [f"eval/images/{name}" for name in answers["ImageID"]]
    box = pd.DataFrame({"file": files, "left": 100, "top": 150, "right": 280, "bottom": 390})
    box.to_csv(data / "boxes.csv", index=False)
    faces = [(0.5, (0, 0, 9, 9)), (0.9, (110, 140, 290, 380))]

    def import_nothing() -> face_finders.Detect:
        raise ModuleNotFoundError("No module named 'no_such_package'")

    shifted = face_finders.Detector(lambda: lambda photo: faces, "nothing")
    monkeypatch.setitem(face_finders.DETECTORS, "shifted", shifted)
    absent = face_finders.Detector(import_nothing, "it")
    monkeypatch.setitem(face_finders.DETECTORS, "absent", absent)
    words = [str(data), "--side", "eval", "--detectors", "pixels", "shifted", "absent"]
    assert detectors.main([*words, "--boxes-out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "missing: absent (No module named 'no_such_package'); install it" in printed
    rows = [line.split() for line in printed.splitlines()]
    row = next(row for row in rows if row[:2] == ["shifted", "all"])
    common, union = 170 * 230, 2 * 180 * 240 - 170 * 230
    expected = [100, 100, 100, *[common / union] * 2, 100, 1, 1]
    assert [float(value) for value in row[3:11]] == pytest.approx(expected, abs=1e-3)
    written = pd.read_csv(tmp_path / "out" / "shifted.csv")
    corners = written[["left", "top", "right", "bottom"]].drop_duplicates()
    assert corners.to_numpy().tolist() == [[100, 150, 280, 390]]


def test_planted_errors_are_ranked_by_ours_and_by_cleanlabs_measures(
    tree: Path, train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planted_errors.main([str(tree), str(train_root), "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == list(planted_errors.METHODS)
    assert (
        planted_errors.main([str(tree), str(train_root), "--seeds", "1", "--write", str(tmp_path)])
        == 0
    )
    assert capsys.readouterr().out == ""
    table = planted_errors.read_run(tree, train_root)
    table.to_csv(tmp_path / "oof.csv", index=False)
    plan = tmp_path / "planted-0.csv"
    assert {column for _, column, _ in pd.read_csv(plan).to_numpy()} == {"gender", "mask"}
    assert planted_errors.main(["--oof", str(tmp_path / "oof.csv"), "--planted", str(plan)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(planted_errors.METHODS)


def test_planted_copies_are_looked_for_among_other_peoples_photographs(
    train_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planted_copies, "COPIES", 3)
    before = sorted(path.stat().st_mtime_ns for path in train_root.rglob("*"))
    assert planted_copies.main([str(train_root)]) == 0
    assert re.match(r"seed 0: [0-3] of 3 found, 0 false pairs, ", capsys.readouterr().out)
    assert sorted(path.stat().st_mtime_ns for path in train_root.rglob("*")) == before


@pytest.mark.parametrize("library", ["fastai", "timm"])
def test_peers_answer_in_the_tables_order_and_are_not_trained_twice(
    library: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library)
    peer = importlib.import_module(f"experiments.{library}_peer")
    words = [str(data), str(tmp_path / "out.npz"), "--image-size", "32", "--epochs", "1"]
    assert peer.main([*words, "--batch-size", "4"]) == 0
    printed = capsys.readouterr().out
    line = r"seed 1: answers macro F1 [\d.]+ .*\nCPU seconds: training [\d.]+ \("
    assert re.search(rf"{library} [\d.]+, {line}", printed)
    with np.load(tmp_path / "out.npz") as stored:
        assert stored["probabilities"].shape == (1, 1, 9, 18)
        names = pd.read_csv(data / "eval" / "info.csv")["ImageID"].tolist()
        assert stored["images"].tolist() == names
    assert peer.main([*words, "--batch-size", "4"]) == 0
    assert capsys.readouterr().out.splitlines() == printed.splitlines()[-2:]


def test_peers_hold_out_whom_training_does_and_refuse_another_runs_result(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    received = []

    def peer(args: argparse.Namespace, given: peers.Data) -> peers.Result:
        received.append(given)
        return peers.Result(np.eye(18)[[3] * len(given.paths)], 0.5, 1.0, 1.0, "stub 1")

    args = peers.make_parser("").parse_args([str(data), str(tmp_path / "out.npz")])
    assert [peers.run(args, peer) for _ in range(2)] == [0, 0]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stub 1, seed 1: answers macro F1 ")
    assert lines[:2] == lines[2:]
    (given,) = received
    table, _ = training_run.load_table(config.TrainSettings(train_root=str(data / "train")))
    held_out = table.loc[table["fold"] == 0, "file"].tolist()
    assert given.held_out["file"].tolist() == held_out
    assert len(given.train) + len(given.held_out) == len(table)
    folds = table.drop_duplicates("person")[["person", "fold"]]
    folds.replace({"fold": {0: 1, -1: 0}}).to_csv(tmp_path / "folds.csv")
    args.folds = str(tmp_path / "folds.csv")
    assert len(peers.read_data(args).train) == len(given.held_out)
    with pytest.raises(UserError, match=r"made with other arguments"):
        peers.run(args, peer)


def test_the_headline_is_compared_with_the_truth_and_seeds_are_not_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path), "--seeds", "1", "--people", "9", "--eval-people", "3", "--jobs", "1"]
    words += ["--epochs", "1", "--image-size", "32"]
    assert score_truth.main(words) == 0
    line = r"1 seeds: headline minus truth [+-][\d.]+ .* width [\d.]+, covered [01]"
    assert re.search(line, capsys.readouterr().out)
    results = (tmp_path / "results.csv").read_text()
    assert score_truth.main(words) == 0
    assert (tmp_path / "results.csv").read_text() == results
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judges", "results.csv"]
