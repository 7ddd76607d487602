"""Years by a distribution: Factorised trained for `age`, and one of `main` that answers it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import augmentation
import checkpoint
import config
import engine
import metrics
import model
import out_of_fold
import registries
import submit_ensemble
import submit_singular
import train
from data import images, tables
from experiments import years as experiment
from inference import submission
from inference.predictor import Predictor
from labels import AGE_GROUPS
from runtime.errors import UserError
from tests.helpers import support

TASKS_TRAINED = ("main", "age")


class Trained(NamedTuple):
    """A run, and what its training printed."""

    path: Path
    lines: str


def words(train_root: Path, saved: Path, task: str) -> list[str]:
    """A command of train.py."""
    places = ["--train-root", str(train_root), "--save-path", str(saved), "--run-name", task]
    recipe = ["--recipe", "strong", "--cv", "2", "--epochs", "2", "--save-top", "1"]
    return [*places, *recipe, *support.FAST, "--task", task]


@pytest.fixture(scope="module")
def runs(train_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """{task: a run of `--recipe strong` for it, of two folds and two epochs}."""
    saved = tmp_path_factory.mktemp("years")
    trained = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registries.BACKBONES, "tiny", support.TINY)
        for task in TASKS_TRAINED:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert train.main(words(train_root, saved, task)) == 0
            path = saved / f"kfold-ensemble-Factorised_{task}"
            trained[task] = Trained(path, out.getvalue())
    return trained


def predict(script: Any, eval_root: Path, out: Path, *words: str) -> Path:
    """The folder of a prediction of years."""
    machine = ("--device", "cpu", "--threads", "1", "--workers", "0", "--transform-type", "auto")
    data = ("--data-root", str(eval_root), "--save-path", str(out), "--task", "age")
    assert script.main([*data, *machine, *words]) == 0
    (folder,) = out.iterdir()
    return folder


def answered(folder: Path, file: str = "submission") -> np.ndarray:
    return pd.read_csv(folder / f"{file}.csv")["ans"].to_numpy()


def expected_years(run: Path, eval_root: Path) -> np.ndarray:
    """[checkpoints, images]: the mean of each network's distribution over years, step by step."""
    form = augmentation.forms("facerandom", 32).valid
    _, paths = tables.read_eval(str(eval_root))
    views = [augmentation.pixels(form(images.read_image(path), None)) for path in paths]
    compute = engine.Compute(torch.device("cpu"), "fp32", 0, len(views))
    pixels = torch.from_numpy(np.stack(views))
    each = []
    for path in sorted(run.glob("fold*/*.pth")):
        network = model.build_from_checkpoint(checkpoint.load_checkpoint(path)).eval()
        with torch.inference_mode():
            shares = network(engine.to_network(compute, pixels))["year"].softmax(1).numpy()
        each.append(shares @ np.arange(100))
    return np.array(each)


def test_training_for_age_trains_all_heads_and_is_judged_in_years(runs: dict[str, Trained]) -> None:
    run, lines = runs["age"]
    epochs = re.findall(r"^fold \d  epoch +\d/2  .*$", lines, re.MULTILINE)
    assert len(epochs) == 4
    form = (
        r"macro F1 [\d.]+  accuracy [\d.]+  RMSE [\d.]+  MAE [\d.]+  mask F1 .*gender F1 .*ageg F1"
    )
    assert all(re.search(form, line) for line in epochs)
    assert re.search(r"headline  macro F1 [\d.]+ .* MAE [\d.]+", lines)
    paths = sorted(run.glob("fold*/*.pth"))
    assert all("Factorised_task(age)" in path.name for path in paths)
    info = checkpoint.load_checkpoint(paths[0]).info
    assert (info.model, info.task) == ("Factorised", "age")
    assert {"rmse", "mae"} <= set(info.scores)
    history = pd.read_csv(run / "fold00" / "history.csv")
    assert history["mae"].iloc[info.epoch - 1] == pytest.approx(info.scores["mae"])
    held_out = out_of_fold.read_oof(run, "age")
    assert held_out is not None
    scores = metrics.score("age", held_out.predictions[:, 0], held_out.rows["age"].to_numpy())
    assert f"MAE {scores.mae:.2f}" in lines
    report = json.loads((run / "report.json").read_text())
    assert report["ages"][0]["mean_answer"] > 0


def test_a_run_for_age_that_dies_after_an_epoch_goes_on_to_the_same_years(
    runs: dict[str, Trained], train_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plain, epochs = engine.train_one_epoch, itertools.count()

        def dying(*args: Any) -> float:
            if next(epochs) == 1:
                raise RuntimeError("died")
            return plain(*args)

        patch.setattr(engine, "train_one_epoch", dying)
        with pytest.raises(RuntimeError, match="died"):
            train.main(words(train_root, tmp_path, "age"))
    assert train.main(words(train_root, tmp_path, "age")) == 0
    (run,) = tmp_path.iterdir()
    for file in ("oof.csv", "fold00/validation.npz"):
        assert (run / file).read_bytes() == (runs["age"].path / file).read_bytes()


def test_a_run_for_main_keeps_its_lines_and_its_columns(runs: dict[str, Trained]) -> None:
    assert "MAE" not in runs["main"].lines
    columns = set(pd.read_csv(runs["main"].path / "fold00" / "history.csv"))
    assert {name for name in columns if name.startswith("macro_f1_")} == {
        "macro_f1_mask",
        "macro_f1_gender",
        "macro_f1_ageg",
    }


@pytest.mark.parametrize("task", TASKS_TRAINED)
def test_both_scripts_answer_the_mean_of_the_distribution_over_years(
    task: str,
    runs: dict[str, Trained],
    eval_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = runs[task].path
    years = expected_years(run, eval_root)
    single = predict(
        submit_singular,
        eval_root,
        tmp_path / "single",
        "--load-state-dict",
        str(min(run.glob("fold00/*.pth"))),
    )
    assert answered(single) == pytest.approx(years[0], abs=0.02)
    capsys.readouterr()
    labels = ("--answers", str(eval_root / "answers.csv"))
    soft = predict(submit_ensemble, eval_root, tmp_path / "soft", "--root", str(run), *labels)
    assert answered(soft) == pytest.approx(years.mean(0), abs=0.02)
    truth = pd.read_csv(eval_root / "answers.csv")["age"].to_numpy()
    assert f"MAE {np.abs(answered(soft) - truth).mean():.2f}" in capsys.readouterr().out
    assert submission.load_probabilities(soft).array.shape == (2, 1, len(truth), 1)
    hard = predict(
        submit_ensemble, eval_root, tmp_path / "hard", "--root", str(run), "--method", "hard"
    )
    assert answered(hard) == pytest.approx(np.median(years, axis=0), abs=0.02)


@pytest.mark.parametrize("task", TASKS_TRAINED)
def test_the_report_compares_with_the_age_groups_of_training(
    task: str, runs: dict[str, Trained], train_root: Path, eval_root: Path, tmp_path: Path
) -> None:
    folder = predict(submit_ensemble, eval_root, tmp_path, "--root", str(runs[task].path))
    report = json.loads((folder / "report.json").read_text())
    groups = tables.read_train(str(train_root))["ageg"]
    assert report["class_names"] == list(AGE_GROUPS)
    assert report["training_shares"] == pytest.approx(np.bincount(groups) / len(groups))


def test_the_python_interface_answers_years(
    runs: dict[str, Trained], eval_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Predictor.load(runs["main"].path, task="age", device="cpu").predict(
        eval_root / "images"
    )
    names, _ = tables.read_eval(str(eval_root))
    years = dict(zip(names, expected_years(runs["main"].path, eval_root).mean(0), strict=True))
    assert table["years"].tolist() == pytest.approx([years[n] for n in table["file"]], abs=0.01)


def test_a_model_trained_for_age_answers_the_18_classes(
    runs: dict[str, Trained], eval_root: Path, tmp_path: Path
) -> None:
    folder = predict(
        submit_ensemble, eval_root, tmp_path, "--root", str(runs["age"].path), "--task", "main"
    )
    assert submission.load_probabilities(folder).array.shape == (2, 1, 9, 18)
    assert set(answered(folder)) <= set(range(18))


def test_the_newest_run_of_main_is_taken_for_years(
    runs: dict[str, Trained],
    eval_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "saved_models").mkdir()
    run = runs["main"].path
    (tmp_path / "saved_models" / run.name).symlink_to(run)
    monkeypatch.chdir(tmp_path)
    predict(submit_ensemble, eval_root, tmp_path / "p")
    assert capsys.readouterr().out.startswith(f"run: saved_models/{run.name}: 2 members")


def test_stored_probabilities_of_main_hold_no_years(
    runs: dict[str, Trained], eval_root: Path, tmp_path: Path
) -> None:
    folder = predict(
        submit_ensemble, eval_root, tmp_path, "--root", str(runs["main"].path), "--task", "main"
    )
    with pytest.raises(UserError, match="--task age: the stored probabilities are of main; use"):
        submit_ensemble.main(["--from-probs", str(folder), "--task", "age"])


def test_a_distribution_is_read_as_alike_frequent_years_and_by_shares() -> None:
    alike = torch.full((1, 5), -torch.inf)
    alike[0, [1, 3]] = torch.tensor([0.5, 0.5]).log()
    shares = torch.tensor([0.1, 0.6, 0.05, 0.2, 0.05])
    read = experiment.readings(alike, shares.log())
    assert {way: float(values[0]) for way, values in read.items()} == pytest.approx(
        {
            "mean, alike": 2.0,
            "median, alike": 1.0,
            "mean, training's shares": 0.75 * 1 + 0.25 * 3,
            "median, training's shares": 1.0,
        }
    )


def test_the_ways_to_read_years_are_compared_on_the_held_out_people(
    runs: dict[str, Trained], capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.main([str(runs["main"].path), "--against", str(runs["age"].path)]) == 0
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "84 photographs of 12 people, out of fold"
    assert len(rows) == 5
    held_out = out_of_fold.read_oof(runs["age"].path, "age")
    assert held_out is not None
    errors = np.abs(held_out.predictions[:, 0] - held_out.rows["age"])
    assert f"{errors.mean():.2f} (" in rows[4]
    with pytest.raises(UserError, match="is no finished run of Factorised"):
        experiment.main([str(runs["main"].path.parent)])


def test_the_losses_of_age_are_those_of_the_heads() -> None:
    def loss_type(*words: str) -> str | None:
        asked = config.TrainSettings.parse(["--task", "age", *words], "train.py", "")
        return asked.completed().loss_type

    assert loss_type() == "smoothl1loss"
    assert loss_type("--model-type", "Factorised") == "labelsmoothingloss"
    assert loss_type("--recipe", "strong") == "crossentropyloss"
    with pytest.raises(UserError, match="^--loss-type smoothl1loss: .* use labelsmoothingloss, fo"):
        loss_type("--model-type", "Factorised", "--loss-type", "smoothl1loss")
    with pytest.raises(UserError, match="^--task age: THANet_MK1 has no head .* or Factorised$"):
        loss_type("--model-type", "THANet")
