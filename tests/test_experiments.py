"""Every experiment runs at its smallest size; what it finds is not judged here."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import augmentation
import config
import dataset
import labels
import out_of_fold
import registries
import train
from data import faces, images, tables
from experiments import (
    ablation,
    answers,
    candidates,
    crop_noise,
    detectors,
    epoch_choice,
    face_crops,
    face_finders,
    label_noise,
    peers,
    planted_copies,
    planted_errors,
    score_truth,
)
from runtime.errors import UserError
from tests.helpers.support import FAST
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


@pytest.fixture
def registries_of_a_process() -> Iterator[None]:
    """What a test registers is no other test's."""
    with contextlib.ExitStack() as stack:
        for registry in (registries.MODELS, registries.LOSSES, registries.TRANSFORMS):
            stack.enter_context(mock.patch.dict(registry))
        stack.enter_context(mock.patch.dict(labels.INNER_HEADS))
        yield


def test_settings_are_screened_out_of_fold_without_the_answers_and_not_run_twice(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "eval" / "answers.csv").unlink()
    words = [str(data), str(tmp_path / "runs"), "--image-size", "32", "--epochs", "1", "--cv", "2"]
    assert ablation.main([*words, "--settings", "strong"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("done: ") == 1
    (row,) = (line.split() for line in printed.splitlines() if " out of fold " in line)
    assert [float(value) for value in row[-4:-1]] == [0, 0, 0]  # gain over itself, interval
    kept = {path.name for path in (tmp_path / "runs").glob("*/seed1/*")}
    folds = {f"fold0{fold}.{kind}" for fold in (0, 1) for kind in ("csv", "npz")}
    assert kept == folds | {"complete", "cpu.json", "log.txt", "oof.csv", "report.json"}
    assert ablation.main([*words, "--settings", "strong"]) == 0
    assert "done: " not in capsys.readouterr().out
    with pytest.raises(UserError, match="use another DIR"):
        ablation.main([*words, "--epochs", "2"])
    assert epoch_choice.main([str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 runs\n")
    rules = [f"{rule}, {who}" for rule in epoch_choice.RULES for who in ("own", "others")]
    for rule in (*rules, "the last", "mean of the last three"):  # of a single epoch: all the same
        assert re.search(rf"\b{rule}( +[\d.]+){{2}} +0.0 +0.0 +0.0\n", printed + "\n"), rule


def test_a_setting_gains_over_the_base_seed_by_seed_on_the_same_people() -> None:
    classes = np.tile(np.arange(18), 7)
    truth = ablation.Truth([], classes, np.repeat(np.arange(18), 7))
    worse = np.where(np.arange(len(classes)) < 63, classes, (classes + 1) % 18)
    base = ablation.Results({1: worse, 2: classes}, [0.5, 1.0], [1.0])
    better = ablation.Results({1: classes, 3: worse}, [1.0, 0.5], [3.0])
    results = {("strong", ablation.SCREENED): base, ("other", ablation.SCREENED): better}
    measures = {"even F1": ablation.even_macro_f1, "accuracy": ablation.metrics.accuracy}
    first, second = ablation.make_table(results, truth, "strong", measures).to_dict("records")
    assert (first["gain"], first["low"], first["high"], first["accuracy"]) == (0, 0, 0, 0.75)
    assert first["sd"] == pytest.approx(second["gain"] / np.sqrt(2))
    assert second["seeds"] == 2  # the gain is that of seed 1, which both have
    assert 0 < second["low"] < second["gain"] < second["high"]
    with pytest.raises(UserError, match="name another --base"):
        ablation.make_table(results, truth, "absent", measures)


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
    assert "3 choices scored so far, 2 of them now" in printed
    assert [line.split()[:2] for line in printed.splitlines()[-3:]] == [
        ["strong", "one"],
        ["strong", "two"],
        ["stub", "1"],
    ]
    assert ablation.main([*words, "--base", "stub 1 data"]) == 0
    assert ", 0 of them now" in capsys.readouterr().out


def test_every_setting_is_made_of_options_that_exist(
    train_root: Path, registries_of_a_process: None
) -> None:
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
    for setting in ablation.SETTINGS.values():
        config.TrainSettings.parse(list(setting.train), "train.py", "").completed()


def test_the_error_of_age_labels_is_estimated_from_three_estimates(
    train_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    age = rng.uniform(18, 65, 20_000)
    others = [0.5 * age + 9 + rng.normal(0, 4, age.size), 0.8 * age + rng.normal(0, 6, age.size)]
    estimates = np.stack([age + rng.normal(0, 5, age.size), *others])
    assert label_noise.error_deviation(estimates) == pytest.approx(5, abs=0.2)
    assert label_noise.error_deviation(estimates[::-1]) == pytest.approx(6, abs=0.3)

    class Package:
        def __init__(self, folder: Path) -> None:
            pass

        def age_and_gender(self, photo: Image.Image) -> tuple[float, str]:
            assert photo.size == (224, 224)
            return float(rng.uniform(18, 65)), "male"

    monkeypatch.setattr(label_noise, "Package", Package)
    words = ["--train-root", str(train_root), "--save-path", str(tmp_path), *FAST, "--cv", "2"]
    assert train.main([*words, "--task", "age", "--epochs", "1", "--run-name", "age"]) == 0
    (run_dir,) = tmp_path.iterdir()
    assert label_noise.main([str(run_dir), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"label: \d+\.\d\d \(", printed)
    assert re.search(r"the ceiling: macro F1 [01]\.\d+, even F1 [01]\.\d+, accuracy", printed)


@pytest.mark.parametrize("name", candidates.YEAR_LOSSES)
def test_every_loss_of_years_grows_with_the_distance_and_minds_the_rare(name: str) -> None:
    target = f"{candidates.HERE}:{candidates.YEAR_LOSSES[name]}"
    criterion = registries.import_target(target)(torch.full((100,), 0.01))
    distance = torch.arange(100) - torch.tensor([40, 45, 60])[:, None]
    losses = [float(criterion(row[None], torch.tensor([40]))) for row in -(distance**2) / 18]
    assert losses == sorted(losses)
    shares = torch.zeros(100)
    shares[[20, 60]] = torch.tensor([0.9, 0.1])
    criterion = registries.import_target(target)(shares)
    frequent, rare = (float(criterion(torch.zeros(1, 100), torch.tensor([a]))) for a in (20, 60))
    assert frequent < rare


def test_an_epoch_is_chosen_by_others_than_it_is_scored_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [f"p{number}" for number in range(8)]
    rows = pd.DataFrame({"file": people, "person": people, "fold": 0, "main": [0, 1] * 4})
    right = np.eye(18)[rows["main"]]
    wrong = np.eye(18)[1 - rows["main"]]
    fold = out_of_fold.fold_predictions("main", 0, rows, np.stack([wrong, right, wrong, wrong]))
    chosen = epoch_choice.chosen_predictions([fold] * 2, np.random.default_rng(0))
    truth = [0, 1] * 8
    for rule in epoch_choice.RULES:
        assert chosen[f"{rule}, own"].tolist() == truth == chosen[f"{rule}, others"].tolist()
    assert chosen["the last"].tolist() == [1, 0] * 8
    # what is right for one half alone is chosen by that half, and scored on the other
    half = epoch_choice.halves(rows["person"].to_numpy(), np.random.default_rng(0))
    lucky = np.stack([np.where(seen[:, None], right, wrong) for seen in (half, ~half)])
    fold = out_of_fold.fold_predictions("main", 0, rows, lucky)
    by_half = epoch_choice.chosen_predictions([fold], np.random.default_rng(0))
    assert by_half["macro F1, own"].tolist() == wrong.argmax(1).tolist()


def test_faces_cut_for_peers_are_a_root_of_their_own_with_the_same_record(
    data: Path, tmp_path: Path
) -> None:
    assert face_crops.main([str(data), str(tmp_path / "faces")]) == 0
    both = [tables.read_train(root / "train") for root in (data, tmp_path / "faces")]
    assert both[0].drop(columns="path").equals(both[1].drop(columns="path"))
    for path, cut in zip(*(table["path"] for table in both), strict=True):
        photo = images.read_image(path)
        left, _, right, _ = augmentation.face_square(photo, faces.find_face(photo))
        assert images.read_image(cut).size == (round(right - left),) * 2
    for root in (data, tmp_path / "faces"):
        answers.read_answers(str(root), ["one choice"])
    assert len(pd.read_csv(data / "eval" / "reads.csv")) == 1


def test_people_of_photographs_come_from_a_table_or_from_the_renderers_hashes(
    tmp_path: Path,
) -> None:
    names = [hashlib.sha1(f"0/{p}/mask1".encode()).hexdigest() + ".jpg" for p in ("a", "b")]
    pd.DataFrame({"photo": ["a", "b"]}).to_csv(tmp_path / "people.csv")
    assert answers.read_people(str(tmp_path / "people.csv"), names[::-1]).tolist() == ["b", "a"]
    pd.DataFrame({"ImageID": names, "person": ["x", "x"]}).to_csv(tmp_path / "by_name.csv")
    assert answers.read_people(str(tmp_path / "by_name.csv"), names).tolist() == ["x", "x"]
    assert answers.read_people(None, names).tolist() == [0, 1]


def test_the_cost_of_a_worse_crop_is_measured_on_the_same_people(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    registries_of_a_process: None,
) -> None:
    candidates.register()  # as ablation.py does before it trains
    words = ["--train-root", str(data / "train"), "--save-path", str(tmp_path / "saved"), *FAST]
    words += ["--recipe", "strong", "--transform-type", "face_jittered"]
    assert train.main([*words, "--cv", "2", "--epochs", "1"]) == 0
    (run_dir,) = (tmp_path / "saved").iterdir()
    portraits = tmp_path / "portraits"
    shutil.copytree(data / "eval" / "images", portraits / "photos")
    files = sorted(path.name for path in (portraits / "photos").iterdir())
    box = pd.DataFrame({"file": files, "left": 100, "top": 150, "right": 280, "bottom": 390})
    box.to_csv(portraits / "boxes.csv", index=False)
    monkeypatch.setattr(faces, "find_face", lambda _: (90, 140, 270, 380))
    capsys.readouterr()
    assert crop_noise.main([str(data), str(portraits), str(run_dir)]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("errors on 5 portraits: deviations [0.0, 0.0, 0.0, 0.0], 0.0%")
    name, *figures = last.split()
    assert (name, figures[:3], float(figures[6])) == (str(run_dir), figures[3:6], 0)


def test_a_box_is_moved_and_scaled_in_its_own_sides() -> None:
    box = (100, 100, 200, 300)
    assert candidates.move_box(box, (0.1, -0.05), (0.0, 0.0)) == (110, 90, 210, 290)
    assert candidates.move_box(box, (0.0, 0.0), (np.log(2), np.log(0.5))) == (50, 150, 250, 250)


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
    assert capsys.readouterr().out.splitlines()[-2:] == printed.splitlines()[-2:]


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
    assert lines[0].endswith("1 choices scored so far, 1 of them now")
    assert lines[1].startswith("stub 1, seed 1: answers macro F1 ")
    assert lines[1:3] == lines[4:]
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
