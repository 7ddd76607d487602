"""The three commands, end to end, on a tiny backbone."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

import augmentation
import checkpoint
import config
import dataset
import engine
import ensemble
import metrics
import model
import out_of_fold
import registries
import submit_ensemble
import submit_singular
import train
from data import images, tables
from inference import submission
from labels import TASKS
from reporting import summary
from runtime.errors import UserError
from tests.helpers import support
from training import cross_validation, fold_state, run_files
from training import fold as training_fold
from training import run as training_run


def run_train(root: Path, saved: Path, *words: str) -> int:
    return train.main(["--train-root", str(root), "--save-path", str(saved), *support.FAST, *words])


def newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns)


def weights_of(tree: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        p.relative_to(tree).as_posix(): checkpoint.load_checkpoint(p).weights
        for p in sorted(tree.glob("fold*/*.pth"))
    }


def same(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[f][k], b[f][k]) for f in a for k in a[f])


# --- training


def test_a_cross_validation_leaves_what_the_contract_says(tree: Path) -> None:
    assert sorted(p.name for p in tree.iterdir()) == [
        "fold00",
        "fold01",
        "fold02",
        "folds.csv",
        "oof.csv",
        "report.html",
        "report.json",
        "run.json",
        "suspects.csv",
    ]
    for fold in range(3):
        files = sorted(p.name for p in (tree / f"fold{fold:02d}").glob("*.pth"))
        assert len(files) == 2
        assert all(
            checkpoint.FILE_NAME.fullmatch(f)
            and f.startswith(f"Fold{fold:02d}_VanillaEfficientNet_task(main)ep(")
            for f in files
        )
    run = json.loads((tree / "run.json").read_text())
    assert run["settings"]["cv"] == 3
    assert run["data"]["people"] == len(support.PEOPLE)
    assert {"command", "versions", "machine", "started"} <= set(run)
    rows = support.read_rows(tree / "folds.csv")[1:]
    assert len(rows) == len(support.PEOPLE)
    assert {row[3] for row in rows} == {"0", "1", "2"}
    history = support.read_rows(tree / "fold00" / "history.csv")
    assert len(history) == 3


def test_tensorboard_reads_what_history_holds(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        "--epochs",
        "2",
        "--tensorboard",
        *support.FAST,
    ]
    assert train.main(words) == 0
    (fold,) = tmp_path.glob("*/fold00")
    events = EventAccumulator(str(fold / "tensorboard"))
    events.Reload()
    header, *rows = support.read_rows(fold / "history.csv")
    for column, name in enumerate(header):
        if name != "epoch":
            told = [(event.step, event.value) for event in events.Scalars(name)]
            assert told == [
                (int(float(row[0])), pytest.approx(float(row[column]), rel=1e-6)) for row in rows
            ]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run_events = EventAccumulator(str(fold.parent / "tensorboard"))
    run_events.Reload()
    oof = out_of_fold.read_oof(fold.parent, "main")
    assert oof is not None
    (final,) = run_events.Scalars("out_of_fold_macro_f1")
    assert final.value == pytest.approx(out_of_fold.score_rows("main", *oof).macro_f1, abs=1e-4)
    assert "settings/text_summary" in run_events.Tags()["tensors"]
    with pytest.raises(UserError, match="--log tensorboard: not installed; pip install tensor"):
        train.main([*words[:3], str(tmp_path / "none"), *words[4:]])


def test_a_checkpoint_knows_whom_it_never_saw(tree: Path, train_root: Path) -> None:
    folds = {row[0]: int(row[3]) for row in support.read_rows(tree / "folds.csv")[1:]}
    for path in tree.glob("fold*/*.pth"):
        info = checkpoint.load_checkpoint(path).info
        assert info is not None
        assert info.held_out == sorted(p for p, f in folds.items() if f == info.fold)
        assert (info.backbone, info.image_size, info.padding, info.transform) == (
            "tiny",
            32,
            32,
            "tta",
        )


def test_the_stored_probabilities_are_those_of_the_checkpoint(tree: Path, train_root: Path) -> None:
    path = next((tree / "fold01").glob("*.pth"))
    found = checkpoint.load_checkpoint(path)
    stored = fold_state.load_validation(tree / "fold01", "main")
    assert stored is not None
    table = tables.read_train(train_root).set_index("file").loc[stored[0]]
    photos = dataset.ImageDataset(
        stored[0], table["path"].tolist(), [augmentation.View(augmentation.forms("tta", 32).valid)]
    )
    network = model.build_from_checkpoint(found)
    compute = engine.Compute(torch.device("cpu"), "fp32", 0, 5)
    again = engine.predict([network], [[0]], photos, ["main"], compute)["main"][0, 0]
    assert np.abs(again - stored[1][found.info.epoch - 1]).max() < 1e-5
    truth = table["main"].to_numpy()
    assert metrics.score("main", again.argmax(1), truth).macro_f1 == pytest.approx(
        found.info.macro_f1
    )


def test_same_seed_same_weights_whatever_the_workers(train_root: Path, tmp_path: Path) -> None:
    trees = []
    for number, workers in enumerate(("0", "2", "0")):
        extra = ["--seed", "7"] if number == 2 else []
        assert (
            run_train(
                train_root, tmp_path / str(number), "--epochs", "2", "--workers", workers, *extra
            )
            == 0
        )
        trees.append(weights_of(tmp_path / str(number) / "kfold-ensemble-VanillaEfficientNet"))
    assert same(trees[0], trees[1])
    assert not same(trees[0], trees[2])


@pytest.mark.parametrize("transform", ["base", "tta"])
def test_squares_kept_in_memory_are_decoded_once_and_change_nothing(
    transform: str, train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(train_root, tmp_path / "train")
    support.paint(next((root / "images").glob("*/mask1.*")), 1, size=(300, 500))
    words = ("--epochs", "2", "--cv", "2", "--transform-type", transform)
    assert run_train(root, tmp_path / "plain", *words) == 0
    assert run_train(root, tmp_path / "shared", *words, "--cache", "ram", "--workers", "2") == 0
    decoded: list[str] = []
    plain = images.read_image

    def counted(path: str, shrink: int = 1) -> Image.Image:
        decoded.append(path)
        return plain(path, shrink)

    monkeypatch.setattr(images, "read_image", counted)
    monkeypatch.setattr(run_files, "warn_of_duplicates", lambda tree, parts: {})
    monkeypatch.setattr(summary, "training_report", lambda *_: None)
    monkeypatch.setattr(cross_validation, "show_heat_maps", lambda *_: None)
    assert run_train(root, tmp_path / "once", *words, "--cache", "ram") == 0
    assert len(decoded) == len(set(decoded)) == 84
    name = "kfold-ensemble-VanillaEfficientNet"
    expected = weights_of(tmp_path / "plain" / name)
    assert same(expected, weights_of(tmp_path / "shared" / name))
    assert same(expected, weights_of(tmp_path / "once" / name))


def test_squares_that_do_not_fit_are_refused(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match="--cache ram: --transform-type facecrop looks beyond the middle square"
    ):
        run_train(train_root, tmp_path, "--cache", "ram", "--transform-type", "facecrop")
    monkeypatch.setattr(training_run, "free_memory", lambda: 4e7)
    with pytest.raises(
        UserError, match="--cache ram: 84 photographs take 0.0 GiB, and 0.0 GiB are free"
    ):
        run_train(train_root, tmp_path, "--cache", "RAM")
    assert not list(tmp_path.iterdir())


def test_folds_of_several_processes_fill_one_tree_like_one(
    train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--cv", "3", "--epochs", "2", "--run-name", "x")
    assert run_train(train_root, tmp_path / "one", *words) == 0
    whole = capsys.readouterr().out
    assert run_train(train_root, tmp_path / "two", *words, "--folds", "2") == 0
    assert "2 folds are not complete yet (0, 1)" in capsys.readouterr().out
    assert run_train(train_root, tmp_path / "two", *words, "--folds", "0,1") == 0
    parts = capsys.readouterr().out
    assert (
        whole.partition("out-of-fold")[2].replace("/one/", "/two/")
        == parts.partition("out-of-fold")[2]
        != ""
    )
    name = "kfold-ensemble-VanillaEfficientNet_x"
    assert same(weights_of(tmp_path / "one" / name), weights_of(tmp_path / "two" / name))


def test_a_second_run_never_writes_into_a_first(train_root: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert run_train(train_root, tmp_path, "--epochs", "1") == 0
    trees = sorted(p.name for p in tmp_path.iterdir())
    assert len(trees) == 3
    assert all(name.startswith("kfold-ensemble-VanillaEfficientNet") for name in trees)


def test_a_named_run_is_completed_only_by_the_same_settings(
    train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--epochs", "1", "--run-name", "mine", "--cv", "2")
    assert run_train(train_root, tmp_path, *words) == 0
    before = weights_of(tmp_path / "kfold-ensemble-VanillaEfficientNet_mine")
    shutil.rmtree(tmp_path / "kfold-ensemble-VanillaEfficientNet_mine" / "fold01")
    capsys.readouterr()
    assert run_train(train_root, tmp_path, *words) == 0
    assert "fold 0: complete already" in capsys.readouterr().out
    assert same(before, weights_of(tmp_path / "kfold-ensemble-VanillaEfficientNet_mine"))
    with pytest.raises(UserError, match="--seed"):
        run_train(train_root, tmp_path, *words, "--seed", "1")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("transform", ["base", "random"])
def test_every_task_trains_and_answers(
    task: str,
    transform: str,
    train_root: Path,
    eval_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        run_train(
            train_root,
            tmp_path / "saved",
            "--epochs",
            "1",
            "--task",
            task,
            "--transform-type",
            transform,
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "macro F1" in out
    assert ("RMSE" in out) == (task == "age")
    words = [
        "--root",
        str(tmp_path / "saved"),
        "--data-root",
        str(eval_root),
        "--save-path",
        str(tmp_path / "p"),
        "--workers",
        "0",
    ]
    assert submit_ensemble.main([*words, "--task", task]) == 0
    rows = support.read_rows(newest(tmp_path / "p") / "arithmetic.csv")
    assert rows[0] == ["ImageID", "ans"]
    assert [row[0] for row in rows] == [row[0] for row in support.read_rows(eval_root / "info.csv")]
    if task == "age":
        assert all(row[1] == f"{float(row[1]):.2f}" for row in rows[1:])
        assert 15 < float(rows[1][1]) < 65
    else:
        assert {int(row[1]) for row in rows[1:]} <= set(range(TASKS[task].outputs))


TRAINING = (
    "--optim-type adamp",
    "--optim-type sgd --clip-grad 1",
    "--optim-type momentum --warmup-epochs 0.5",
    "--loss-type focalloss --precision bf16",
    "--loss-type crossentropyloss --lr-scheduler cosine:0.5 --backbone-lr-scale 0.1",
    "--task age --loss-type mseloss",
    "--pretrained none --age-filter 58",
)


@pytest.mark.parametrize("words", TRAINING)
def test_options_of_training(words: str, train_root: Path, tmp_path: Path) -> None:
    assert run_train(train_root, tmp_path, "--epochs", "1", *words.split()) == 0
    assert len(list(tmp_path.glob("*/fold00/*.pth"))) == 1


def test_a_dry_run_writes_nothing(
    train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(train_root, tmp_path / "saved", "--dry-run", "--cv", "3") == 0
    out = capsys.readouterr().out
    assert "3 folds x 30 epochs" in out
    assert "GiB of checkpoints" in out
    assert not (tmp_path / "saved").exists()


def test_the_next_epoch_is_read_while_this_one_is_validated(
    train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each epoch would begin by waiting for its first batch."""
    read, render, validate = tmp_path / "read", dataset.ImageDataset.render, engine.validate
    read.mkdir()
    validations: list[bool] = []

    def noting(photos: dataset.ImageDataset, i: int, epoch: int, copy: int) -> Any:
        (read / str(epoch)).touch()
        return render(photos, i, epoch, copy)

    def waiting(*arguments: Any) -> Any:
        next_epoch = read / str(len(validations) + 1)
        for _ in range(300 if len(validations) < 2 else 0):
            if next_epoch.exists():
                break
            time.sleep(0.1)
        validations.append(next_epoch.exists())
        return validate(*arguments)

    monkeypatch.setattr(dataset.ImageDataset, "render", noting)
    monkeypatch.setattr(engine, "validate", waiting)
    assert run_train(train_root, tmp_path / "saved", "--epochs", "3", "--workers", "1") == 0
    assert validations == [True, True, False]


def test_a_diverging_fold_is_marked_and_the_others_go_on(
    train_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = engine.to_network
    calls = iter(range(1000))

    def spoil(compute: engine.Compute, pixels: torch.Tensor) -> torch.Tensor:
        # 12 people, 3 folds: an epoch is 2 batches of training and 1 of validation; call 10 is in
        # fold 1's second epoch
        return plain(compute, pixels) * (float("nan") if next(calls) == 10 else 1)

    monkeypatch.setattr(engine, "to_network", spoil)
    assert run_train(train_root, tmp_path, "--epochs", "2", "--cv", "3") == 1
    captured = capsys.readouterr()
    assert (
        "1  failed: fold 1, epoch 2, step 2 of 2: loss is NaN or infinite at a learning "
        "rate of " in captured.out
    )
    assert "out-of-fold, 56 photographs" in captured.out
    assert len(list(tmp_path.glob("*/fold01/*.pth"))) == 1


def test_years_that_are_no_numbers_end_a_fold_too(
    train_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        model,
        "set_output_bias",
        lambda network, value: network.linear.bias.data.fill_(float("nan")),
    )
    assert run_train(train_root, tmp_path, "--epochs", "1", "--task", "age") == 1
    assert "fold 0, epoch 1, step 1 of 3: loss is NaN or infinite" in capsys.readouterr().err


def test_validation_is_on_unaltered_labels(train_root: Path, tmp_path: Path) -> None:
    s = config.TrainSettings.parse(
        ["--train-root", str(train_root), "--age-filter", "50", *support.FAST], "train.py", ""
    ).completed()
    context = training_run.prepare_run(s)
    fold = training_fold.FoldTrainer(context, 0)
    rows = np.arange(len(context.table))
    assert (context.labels(rows) == tables.read_train(train_root)["main"].to_numpy()).all()
    assert (fold.config.labels["main"].numpy() != context.labels(rows)).any()
    people = context.table["person"].to_numpy()
    assert set(people[fold.valid_rows]).isdisjoint(people[fold.batches.indices])


def test_valid_root_replaces_the_split_or_is_scored_once(
    train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = support.make_train(
        tmp_path / "other", [("100001", "male", 40), ("100002", "female", 22)]
    )
    assert run_train(train_root, tmp_path / "a", "--epochs", "1", "--valid-root", str(others)) == 0
    assert "held out per fold: 2 people" in capsys.readouterr().out
    assert (
        run_train(
            train_root, tmp_path / "b", "--epochs", "1", "--cv", "2", "--valid-root", str(others)
        )
        == 0
    )
    out, told = capsys.readouterr()
    assert "--valid-root, scored once by the ensemble of 2 checkpoints: macro F1" in out
    assert f"--valid-root {others}: 12 classes are absent (the first: wear, male, under" in told
    rows = support.read_rows(tmp_path / "b" / "kfold-ensemble-VanillaEfficientNet" / "folds.csv")
    assert not any(row[0].startswith("1000") for row in rows)
    with pytest.raises(UserError, match="12 people are in --train-root too"):
        run_train(train_root, tmp_path / "c", "--valid-root", str(train_root))


def test_training_goes_on_from_a_checkpoint(tree: Path, train_root: Path, tmp_path: Path) -> None:
    path = next((tree / "fold00").glob("*.pth"))
    assert (
        run_train(
            train_root, tmp_path, "--epochs", "1", "--lr", "1e-12", "--load-state-dict", str(path)
        )
        == 0
    )
    (after,) = weights_of(tmp_path / "kfold-ensemble-VanillaEfficientNet").values()
    before = checkpoint.load_checkpoint(path).weights
    assert torch.allclose(before["linear.weight"], after["linear.weight"], atol=1e-6)


def test_the_headline_never_scores_an_epoch_by_the_people_who_chose_it() -> None:
    curves = np.array([[0.9, 0.1, 0.2], [0.1, 0.5, 0.6], [0.2, 0.3, 0.7]])
    assert out_of_fold.epochs_chosen_by_others(curves) == [2, 0, 0]
    assert curves.argmax(1).tolist() == [0, 2, 2]


def test_the_headline_and_the_kept_answers_are_of_the_epochs_that_the_others_chose() -> None:
    truth = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    right, rows = np.eye(3)[truth], pd.DataFrame({"mask": truth, "person": list("aabbccddee")})
    curves = np.array([[0.9, 0.1, 0.2], [0.1, 0.5, 0.6], [0.2, 0.3, 0.7]])
    folds = []
    for number, curve in enumerate(curves):
        answers = np.stack(
            [
                np.where(np.arange(10)[:, None] < 10 * score, right, np.roll(right, 1, 1))
                for score in curve
            ]
        )
        folds.append(
            out_of_fold.FoldPredictions(
                number,
                rows.assign(person=rows["person"] + str(number), fold=number),
                answers,
                curve,
            )
        )
    chosen = [folds[k].predictions[epoch] for k, epoch in enumerate([2, 0, 0])]
    assert np.array_equal(out_of_fold.nested_epoch_predictions(folds)[1], np.concatenate(chosen))
    told = "\n".join(out_of_fold.summary("mask", folds, {}))
    accuracy = dict(re.findall(r"(headline|selected)  macro F1 [\d.]+  accuracy ([\d.]+)", told))
    assert accuracy == {
        "headline": f"{(2 + 1 + 2) / 30:.4f}",
        "selected": f"{(9 + 6 + 7) / 30:.4f}",
    }


# --- submissions


def predict(script: Any, eval_root: Path, out: Path, *words: str) -> Path:
    before = set(out.iterdir()) if out.is_dir() else set()
    folders = ["--data-root", str(eval_root), "--save-path", str(out)]
    assert script.main([*folders, "--device", "cpu", "--threads", "1", *words]) == 0
    (made,) = set(out.iterdir()) - before
    return made


def test_an_ensemble_decodes_each_photograph_once_and_its_views_differ(
    tree: Path, eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    plain = images.read_image

    def counted(path: str) -> Image.Image:
        decoded.append(path)
        return plain(path)

    monkeypatch.setattr(images, "read_image", counted)
    monkeypatch.setattr(summary, "prediction_report", lambda *_: None)
    made = predict(
        submit_ensemble,
        eval_root,
        tmp_path,
        "--root",
        str(tree),
        "--top-k",
        "2",
        "--tta",
        "2",
        "--workers",
        "0",
    )
    assert sorted(decoded) == sorted(tables.read_eval(str(eval_root))[1])
    probs = submission.load_probabilities(made)
    assert probs.array.shape == (6, 2, 9, 18)
    assert probs.array.sum(-1) == pytest.approx(1, abs=1e-5)
    for m in range(6):
        assert not np.array_equal(probs.array[m, 0], probs.array[m, 1])
    views, plan = augmentation.plan_views([(m, "tta", 32) for m in probs.members], 2, False)
    assert sorted(i for row in plan for i in row) == list(range(12))
    photos = dataset.ImageDataset(*tables.read_eval(str(eval_root)), views)
    crops = photos[(0, 0, 0)][1]
    assert len({crop.numpy().tobytes() for crop in crops}) == 12


def test_predictions_hang_neither_on_batches_nor_on_workers(
    tree: Path, eval_root: Path, tmp_path: Path
) -> None:
    words = ("--root", str(tree), "--top-k", "1", "--tta", "2")
    first, workers, batches = (
        submission.load_probabilities(
            predict(submit_ensemble, eval_root, tmp_path, *words, *extra)
        ).array
        for extra in (
            ("--workers", "0"),
            ("--workers", "2"),
            ("--workers", "0", "--batch-size", "2"),
        )
    )
    assert np.array_equal(first, workers)
    assert np.abs(first - batches).max() < 1e-5


def test_the_files_of_an_ensemble(
    tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = predict(
        submit_ensemble,
        eval_root,
        tmp_path,
        "--root",
        str(tree),
        "--top-k",
        "5",
        "--workers",
        "0",
        "--answers",
        str(eval_root / "answers.csv"),
    )
    captured = capsys.readouterr()
    assert (
        captured.err.count("--top-k 5: all that a fold holds vote in folds that hold fewer: 3") == 1
    )
    assert made.name.startswith("kfold-ensemble-VanillaEfficientNet_test_main_")
    order = [row[0] for row in support.read_rows(eval_root / "info.csv")]
    for name in ("arithmetic", "geometric", "weighted_mean"):
        assert [row[0] for row in support.read_rows(made / f"{name}.csv")] == order
        assert str(made / f"{name}.csv") in captured.out
    assert len(list((made / "members").glob("*.csv"))) == 6
    matrix = [
        [int(c) for c in row[1:]]
        for row in support.read_rows(made / "arithmetic_confusion.csv")[1:]
    ]
    assert np.array(matrix).sum() == 9
    truth = {row[0]: int(row[1]) for row in support.read_rows(eval_root / "answers.csv")[1:]}
    answers = {row[0]: int(row[1]) for row in support.read_rows(made / "arithmetic.csv")[1:]}
    right = accuracy_score([*truth.values()], [answers[name] for name in truth])
    f1 = f1_score([*truth.values()], [answers[name] for name in truth], average="macro")
    assert f"arithmetic.csv  macro F1 {f1:.4f}  accuracy {right:.4f}" in captured.out
    probs = submission.load_probabilities(made)
    assert ensemble.decide("main", ensemble.arithmetic(probs.array)).tolist() == list(
        answers.values()
    )


def test_a_tree_votes_again_without_a_model(
    tree: Path, eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = predict(
        submit_ensemble,
        eval_root,
        tmp_path,
        "--root",
        str(tree),
        "--top-k",
        "2",
        "--tta",
        "2",
        "--workers",
        "0",
    )
    monkeypatch.setattr(engine, "predict", None)
    words = ["--from-probs", str(made), "--save-path", str(tmp_path), "--method"]
    assert submit_ensemble.main([*words, "soft"]) == 0
    again = newest(tmp_path)
    for name in ("arithmetic.csv", "geometric.csv", "weighted_mean.csv"):
        assert (again / name).read_bytes() == (made / name).read_bytes()
    assert submit_ensemble.main([*words, "hard", "--top-k", "1", "--task", "gender"]) == 0
    hard = newest(tmp_path)
    assert {row[1] for row in support.read_rows(hard / "hardvoting.csv")[1:]} <= {"0", "1"}
    assert len(list((hard / "members").iterdir())) == 3


def test_one_checkpoint_answers_main_and_its_parts(
    tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((tree / "fold00").glob("*.pth"))
    for task in ("main", "mask", "ageg", "gender"):
        words = (
            "--load-state-dict",
            str(path),
            "--task",
            task,
            "--workers",
            "0",
            "--transform-type",
            "auto",
        )
        made = predict(submit_singular, eval_root, tmp_path, *words)
        assert submission.load_probabilities(made).array.shape == (1, 1, 9, TASKS[task].outputs)
    assert "note:" not in capsys.readouterr().out
    predict(submit_singular, eval_root, tmp_path, "--load-state-dict", str(path), "--workers", "0")
    assert "--transform-type auto" in capsys.readouterr().out
    with pytest.raises(UserError, match="--task age.*--task main"):
        submit_singular.main(
            ["--load-state-dict", str(path), "--task", "age", "--data-root", str(eval_root)]
        )


def test_a_bare_state_dict_of_any_name_answers_where_its_model_and_task_are_told(
    tree: Path, eval_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registries.BACKBONES, "efficientnet-b3", support.TINY)
    path = next((tree / "fold00").glob("*.pth"))
    torch.save(checkpoint.load_checkpoint(path).weights, tmp_path / "best.pth")
    words = ("--load-state-dict", str(tmp_path / "best.pth"), "--workers", "0")
    with pytest.raises(UserError, match="give submit_singular.py --model-type and --task"):
        submit_singular.main(["--data-root", str(eval_root), *words])
    made = predict(
        submit_singular, eval_root, tmp_path / "p", *words, "--model-type", "vanillaefficientnet"
    )
    assert made.name.startswith(f"{tmp_path.parent.name}_{tmp_path.name}_main_")
    assert submission.load_probabilities(made).array.shape == (1, 1, 9, 18)


def test_an_unfinished_tree_and_answers_of_a_part_are_told(
    tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(tree, tmp_path / tree.name)
    shutil.rmtree(copy / "fold02")
    rows = support.read_rows(eval_root / "answers.csv")
    with open(tmp_path / "answers.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [rows[0], *[[name, number % 2, age] for number, (name, _, age) in enumerate(rows[1:])]]
        )
    predict(
        submit_ensemble,
        eval_root,
        tmp_path / "p",
        "--root",
        str(copy),
        "--workers",
        "0",
        "--task",
        "gender",
        "--answers",
        str(tmp_path / "answers.csv"),
    )
    told = capsys.readouterr().err
    assert "only 2 of its 3 folds are present" in told
    assert (
        "ans is never above 1: it is read as one of the 18 classes of main, not as a gender" in told
    )


def test_the_three_lines_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the backbone made tiny: everything else is the commands' own defaults."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registries.BACKBONES, "efficientnet-b3", support.TINY)
    support.make_train(tmp_path / "input" / "data" / "train")
    support.make_eval(tmp_path / "input" / "data" / "eval")
    assert train.main(["--task", "main", "--cv", "5", "--epochs", "1"]) == 0
    assert submit_singular.main([]) == 0
    assert submit_ensemble.main(["--top-k", "2", "--tta", "2"]) == 0
    out = capsys.readouterr().out
    best = max(
        (p for p in (tmp_path / "saved_models").glob("*/*/*.pth")),
        key=lambda p: checkpoint.load_checkpoint(p).info.macro_f1,
    )
    shown = next(line for line in out.splitlines() if line.startswith("checkpoint: "))
    assert (
        checkpoint.load_checkpoint(Path(shown.removeprefix("checkpoint: "))).info.macro_f1
        == checkpoint.load_checkpoint(best).info.macro_f1
    )
    assert "5 members x 2 views (tta) of 9 photographs" in out
    assert len(list((tmp_path / "prediction").iterdir())) == 2


def test_the_newest_tree_that_answers_is_taken(
    train_root: Path,
    eval_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for task, when in (("main", "2026-01-01T00:00:00"), ("mask", "2026-01-02T00:00:00")):
        assert (
            run_train(
                train_root,
                tmp_path / "saved_models",
                "--epochs",
                "1",
                "--task",
                task,
                "--run-name",
                task,
            )
            == 0
        )
        run = tmp_path / "saved_models" / f"kfold-ensemble-VanillaEfficientNet_{task}" / "run.json"
        run.write_text(json.dumps({**json.loads(run.read_text()), "started": when}))
    capsys.readouterr()
    predict(submit_singular, eval_root, tmp_path / "p", "--task", "mask", "--workers", "0")
    assert "VanillaEfficientNet_mask" in capsys.readouterr().out
    predict(submit_singular, eval_root, tmp_path / "p", "--workers", "0")
    assert "VanillaEfficientNet_main" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds 2 runs"):
        submit_ensemble.main(
            ["--root", str(tmp_path / "saved_models"), "--data-root", str(eval_root)]
        )
    predict(submit_ensemble, eval_root, tmp_path / "p", "--workers", "0")
    assert "VanillaEfficientNet_main: " in capsys.readouterr().out


def test_a_photograph_of_another_size_covers_the_crop_with_one_warning(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = support.make_eval(tmp_path / "eval")
    for path in sorted((root / "images").iterdir())[:3]:
        support.paint(path, path.name, size=(150, 100))
    predict(submit_ensemble, root, tmp_path / "p", "--root", str(tree), "--workers", "0")
    assert capsys.readouterr().err.count("scaled to cover the crop: 3") == 1
    photo = images.read_image(str(sorted((root / "images").iterdir())[0]))
    for name in registries.TRANSFORMS:
        seen = augmentation.pixels(augmentation.forms(name, 64).valid(photo, None))
        assert seen.shape == (64, 64, 3)
        assert (seen.max(2) > 0).all(), "black bars"


def test_photographs_of_another_size_are_counted_once_in_a_whole_cross_validation(
    train_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(train_root, tmp_path / "train")
    for person in sorted((root / "images").glob("0*"))[:6]:
        support.paint(next(person.glob("mask1.*")), person.name, size=(300, 500))
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side: of the usual size once it is upright
    support.paint(
        next(sorted((root / "images").glob("0*"))[7].glob("mask2.*")),
        1,
        size=(512, 384),
        exif=turned,
    )
    assert run_train(root, tmp_path / "saved", "--epochs", "2", "--cv", "3") == 0
    assert re.findall(r"scaled to cover the crop: (\d+)", capsys.readouterr().err) == ["6"]


def test_an_empty_fold_and_odd_probabilities_are_refused(
    tree: Path, eval_root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "kfold-ensemble-VanillaEfficientNet"
    shutil.copytree(tree, copy)
    for path in (copy / "fold01").glob("*.pth"):
        path.unlink()
    with pytest.raises(UserError, match="fold01: holds no checkpoint"):
        submit_ensemble.main(["--root", str(copy), "--data-root", str(eval_root)])
    (tmp_path / "probs.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"probs\.npz: damaged"):
        submit_ensemble.main(["--from-probs", str(tmp_path)])
    with pytest.raises(UserError, match="no such file; name the folder of an earlier prediction"):
        submit_ensemble.main(["--from-probs", str(tmp_path / "probs.npz")])


def test_answers_that_lack_a_photograph_are_refused(
    tree: Path, eval_root: Path, tmp_path: Path
) -> None:
    with open(tmp_path / "answers.csv", "w", newline="") as file:
        csv.writer(file).writerows(support.read_rows(eval_root / "answers.csv")[:-1])
    with pytest.raises(UserError, match="no answer for"):
        submit_ensemble.main(
            [
                "--root",
                str(tree),
                "--data-root",
                str(eval_root),
                "--answers",
                str(tmp_path / "answers.csv"),
                "--save-path",
                str(tmp_path / "p"),
            ]
        )
    assert not (tmp_path / "p").exists()


def test_a_script_ends_with_code_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.cli import run_script

    monkeypatch.setattr(
        sys, "argv", ["train.py", "--train-root", str(tmp_path / "none"), "--pretrained", "none"]
    )
    assert run_script(train.main, "train.py") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("train.py: error: ")
    assert captured.err.count("\n") == 1
