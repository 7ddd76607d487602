"""Reports: every number against scikit-learn, and pages that are harmless, small and need nothing
but themselves.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jinja2 import UndefinedError
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    root_mean_squared_error,
)

import ensemble
import metrics
from labels import TASKS, age_group, scoring_task
from reporting import html, plots, summary
from runtime.errors import UserError
from tests.helpers import support

EVIL = '<script>alert(1)</script> & "quoted" \x07\u202e'
VOID = {"img", "meta", "br", "wbr", "input", "link", "hr", "path", "use"}


def synthetic(task: str, root: Path, people: int = 24) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(table, out-of-fold table): people of seven photographs, one of them with a vicious name, and
    noisy answers.
    """
    draw = np.random.default_rng(3)
    photo = root / "photo.png"
    support.paint(photo, "a face", (38, 51))
    rows = []
    for number in range(people):
        gender, age = int(draw.integers(2)), int(draw.choice([20, 28, 31, 45, 57, 58, 59, 60]))
        person = EVIL if number == 0 else f"{number:06d}"
        for shot, mask in zip(support.SHOTS, (1, 0, 0, 0, 0, 0, 2), strict=True):
            rows.append(
                (
                    f"images/{person}/{shot}.png",
                    str(photo),
                    person,
                    number % 3,
                    mask,
                    gender,
                    float(age),
                )
            )
    table = pd.DataFrame(rows, columns=["file", "path", "person", "fold", "mask", "gender", "age"])
    table["ageg"] = [age_group(age) for age in table["age"]]
    table["main"] = 6 * table["mask"] + 3 * table["gender"] + table["ageg"]
    oof = table.drop(columns="path")
    if task == "age":
        return table, oof.assign(value=oof["age"] + draw.normal(0, 6, len(oof)))
    classes = TASKS[task].outputs
    logits = draw.normal(0, 1, (len(oof), classes)) + 2.5 * np.eye(classes)[oof[task]]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return table, oof.assign(**{f"p{number}": probs[:, number] for number in range(classes)})


def make_tree(task: str, root: Path) -> Path:
    """A tree of three folds of four epochs, without checkpoints."""
    tree = root / "kfold-ensemble-Tiny"
    for fold in range(3):
        (tree / f"fold{fold:02d}").mkdir(parents=True)
        history = {
            "epoch": range(1, 5),
            "train_loss": [2.0, 1.5, 1.2, 1.1],
            "valid_loss": [2.1, 1.7, 1.5, 1.6],
            "macro_f1": [0.1, 0.3, 0.5, 0.4 + fold / 100],
            "images_per_second": [10.0, 20, 20, 30],
        }
        pd.DataFrame(history).to_csv(tree / f"fold{fold:02d}" / "history.csv", index=False)
    run = {
        "started": "2026-01-02T03:04:05",
        "command": ["train.py", EVIL],
        "settings": {"task": task, "cv": 3, "boxes": EVIL},
        "machine": {"gpu": EVIL},
        "versions": {"torch": "2"},
    }
    (tree / "run.json").write_text(json.dumps(run))
    return tree


class Checked(HTMLParser):
    """Collects what a page holds; fails on tags that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def checked(page: str) -> Checked:
    """A page that is well-formed, works alone, and lets no name become markup."""
    found = Checked(page)
    tags = {tag for tag, _ in found.seen}
    assert not tags & {"script", "link", "iframe", "object"}
    links = [
        value or ""
        for _, attrs in found.seen
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert all(not name.startswith("on") for _, attrs in found.seen for name in attrs)
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in found.seen
    assert "<script>alert(1)</script>" in found.words, "the name is to be read, as text"
    assert not {"\x07", "\u202e"} & set(page)
    assert all(attrs.get("aria-label") for tag, attrs in found.seen if tag == "svg")
    assert len(page) < 1_000_000
    return found


Made = Callable[[str], tuple[pd.DataFrame, dict[str, Any], Checked]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a training report for a task -> (out-of-fold table, report.json, the page)."""

    @functools.cache
    def make(task: str) -> tuple[pd.DataFrame, dict[str, Any], Checked]:
        root = tmp_path_factory.mktemp(task)
        tree, (table, oof) = make_tree(task, root), synthetic(task, root)
        extra: dict[str, Any] = {
            f"Rule {EVIL}": [("gain", 0.25), (EVIL, EVIL)],
            "Suspects": [
                (EVIL, {"file": table["path"][0], "note": EVIL}),
                ("gone", {"file": "no/where.png", "note": "x"}),
            ],
        }
        summary.training_report(tree, table, oof, extra)
        stored = json.loads((tree / "report.json").read_text(encoding="utf-8"))
        return oof, stored, checked((tree / "report.html").read_text(encoding="utf-8"))

    return make


def test_every_number_of_a_run_is_scikit_learns(made: Made) -> None:
    oof, numbers, _ = made("main")
    probs = oof[[f"p{number}" for number in range(18)]].to_numpy()
    answers, truth = probs.argmax(1), oof["main"].to_numpy()
    head = numbers["headline"]
    assert head["macro_f1"]["value"] == pytest.approx(f1_score(truth, answers, average="macro"))
    assert head["accuracy"]["value"] == pytest.approx(accuracy_score(truth, answers))
    assert (head["people"], head["photographs"]) == (24, 168)
    draws = metrics.bootstrap("main", answers, truth, oof["person"].to_numpy())
    assert [head["macro_f1"]["low"], head["macro_f1"]["high"]] == pytest.approx(
        metrics.out_of_fold_interval(
            head["macro_f1"]["value"], metrics.macro_f1(draws), oof["fold"].nunique()
        )
    )
    assert numbers["confusion"] == confusion_matrix(truth, answers, labels=range(18)).tolist()
    each = f1_score(truth, answers, average=None, labels=range(18), zero_division=np.nan)
    for row, score, own in zip(numbers["classes"], each, range(18), strict=True):
        assert row["f1"] == pytest.approx(score) if not np.isnan(score) else row["f1"] is None
        assert (row["photographs"], row["answered"]) == (
            (truth == own).sum(),
            (answers == own).sum(),
        )
        assert row["f1"] is None or row["low"] <= row["f1"] <= row["high"]
    for part in ("mask", "gender", "ageg"):
        mine = ensemble.marginalize_main(probs, part).argmax(1)
        assert numbers["parts"][part]["confusion"] == confusion_matrix(oof[part], mine).tolist()
        assert numbers["parts"][part]["headline"]["macro_f1"]["value"] == pytest.approx(
            f1_score(oof[part], mine, average="macro")
        )
    perfect_age = answers // 3 * 3 + truth % 3
    assert numbers["if_right"]["ageg"] == pytest.approx(
        f1_score(truth, perfect_age, average="macro")
    )
    for fold in numbers["folds"]:
        rows = (oof["fold"] == fold["fold"]).to_numpy()
        assert fold["macro_f1"]["value"] == pytest.approx(
            f1_score(truth[rows], answers[rows], average="macro")
        )
        assert fold["photographs_per_class"] == np.bincount(truth[rows], minlength=18).tolist()
        assert fold["people"] == oof["person"][rows].nunique()
        assert fold["history"]["macro_f1"] == pytest.approx(
            [0.1, 0.3, 0.5, 0.4 + fold["fold"] / 100]
        )
    for row in numbers["ages"]:
        rows = (oof["age"] == row["age"]).to_numpy()
        wrong = answers[rows] % 3 - oof["ageg"].to_numpy()[rows]
        counted = (row["photographs"], row["too_young"], row["too_old"])
        assert counted == (rows.sum(), (wrong < 0).sum(), (wrong > 0).sum())
    near = oof["age"].between(57, 59).to_numpy()
    assert numbers["boundaries"][1]["below"] == near.sum()
    assert numbers["boundaries"][1]["below_called_older"] == (answers[near] % 3 == 2).sum()
    assert numbers["calibration"]["ece"] == pytest.approx(metrics.calibration_error(probs, truth))
    assert sum(row["photographs"] for row in numbers["calibration"]["bins"]) == 168
    assert numbers["time"]["images_per_second"] == 20
    assert numbers["time"]["seconds"] > 0
    assert numbers["run"]["settings"]["cv"] == 3
    assert numbers["extra"]["Suspects"][1] == {
        "name": "gone",
        "value": {"file": "no/where.png", "note": "x"},
    }


def test_the_most_wrong_people_come_first_with_their_worst_photograph(made: Made) -> None:
    oof, numbers, page = made("main")
    sure = oof[[f"p{number}" for number in range(18)]].to_numpy()[np.arange(168), oof["main"]]
    error = pd.Series(1 - sure).groupby(oof["person"]).mean()
    listed = [row["person"] for row in numbers["most_wrong"]]
    assert 0 < len(listed) <= 12
    assert error[listed].is_monotonic_decreasing
    assert error[listed[0]] == pytest.approx(numbers["most_wrong"][0]["error"])
    assert all(
        row["true"] != row["answered"] and 0 < row["wrong"] <= 7 for row in numbers["most_wrong"]
    )
    pictures = [attrs["src"] for tag, attrs in page.seen if tag == "img"]
    # and that of the suspect; the one that is gone has a frame
    assert len(pictures) == len(listed) + len(numbers["samples"]) + 1


def test_samples_are_right_and_wrong_predictions_from_all_over_the_data(made: Made) -> None:
    """(18.4)"""
    oof, numbers, page = made("main")
    answers = oof[[f"p{number}" for number in range(18)]].to_numpy().argmax(1)
    rows = oof.assign(answered=answers).set_index("file")
    samples = numbers["samples"]
    assert [row["wrong"] for row in samples] == [False] * 6 + [True] * 6
    for row in samples:
        stored = rows.loc[row["file"]]
        assert row["true"] == TASKS["main"].classes[stored["main"]]
        assert row["answered"] == TASKS["main"].classes[stored["answered"]]
        assert row["wrong"] == (stored["main"] != stored["answered"])
    assert len({row["person"] for row in samples}) > 6
    assert "Sample predictions" in page.words
    assert f"predicted:\n{samples[0]['answered'].replace('_', ' ')}" in page.words


def test_a_model_that_guesses_is_named_as_such(made: Made, tmp_path: Path) -> None:
    """(18.4) In place of sentences about what its errors show."""
    assert "hardly beats guessing" not in made("main")[2].words
    table, oof = synthetic("main", tmp_path)
    oof[[f"p{number}" for number in range(18)]] = np.eye(18)[4]
    tree = make_tree("main", tmp_path)
    summary.training_report(tree, table, oof, {})
    page = checked((tree / "report.html").read_text(encoding="utf-8"))
    assert "hardly beats guessing" in page.words
    assert "less than half as often" not in page.words


def test_ticks_of_shares_are_not_rounded() -> None:
    """(18.4)"""
    shown = [plots.percent(share, None) for share in (0.0, 0.025, 3 * 0.05, 1.0)]
    assert shown == ["0%", "2.5%", "15%", "100%"]


def test_commands_to_paste_hold_for_a_folder_with_spaces(tmp_path: Path) -> None:
    """(18.4)"""
    tree = make_tree("mask", tmp_path / "my runs")
    summary.training_report(tree, *synthetic("mask", tmp_path), {})
    page = checked((tree / "report.html").read_text(encoding="utf-8"))
    assert f"submit_ensemble.py --root '{tree}' --top-k 2\n" in page.words + "\n"
    assert f"tools.compare_runs '{tree.parent}/'" in page.words
    probs, _ = probabilities("mask")
    for method, other in (("hardvoting", "soft"), ("softvoting", "hard")):
        folder = tmp_path / f"a {method}"
        folder.mkdir()
        summary.prediction_report(
            folder, probs, ensemble.vote(method, "mask", probs.array, [1.0] * 4)
        )
        page = checked((folder / "report.html").read_text(encoding="utf-8"))
        assert f"--from-probs '{folder}' \\\n--method {other}" in page.words


def test_the_page_of_a_run_says_what_matters(made: Made) -> None:
    _, numbers, page = made("main")
    assert f"{numbers['headline']['macro_f1']['value']:.3f}" in page.words
    for words in (
        "95 % interval",
        "Where the points are lost",
        "Around 60",
        "Learning curves",
        "calibration error",
        "The most wrong people",
        "--cv",
        "The mean curve is best at epoch 3 of 4",
    ):
        assert words in page.words
    assert sum(tag == "svg" for tag, _ in page.seen) == 6


def test_years_are_reported_as_years_and_as_groups(made: Made) -> None:
    oof, numbers, page = made("age")
    groups = [age_group(value) for value in oof["value"]]
    head = numbers["headline"]
    assert head["rmse"] == pytest.approx(root_mean_squared_error(oof["age"], oof["value"]))
    assert head["mae"] == pytest.approx(mean_absolute_error(oof["age"], oof["value"]))
    assert head["macro_f1"]["value"] == pytest.approx(
        f1_score(oof["ageg"], groups, average="macro")
    )
    assert numbers["confusion"] == confusion_matrix(oof["ageg"], groups).tolist()
    assert "calibration" not in numbers
    assert numbers["ages"][0]["mean_answer"] == pytest.approx(
        oof["value"][oof["age"] == numbers["ages"][0]["age"]].mean()
    )
    assert "years" in numbers["most_wrong"][0]["answered"]
    assert f"{head['rmse']:.2f}" in page.words


@pytest.mark.parametrize("task", ["mask", "gender", "ageg"])
def test_each_part_alone_is_reported(task: str, tmp_path: Path) -> None:
    oof = synthetic(task, tmp_path)[1]
    numbers = summary.training_numbers(make_tree(task, tmp_path), oof)
    answers = oof[[f"p{number}" for number in range(TASKS[task].outputs)]].to_numpy().argmax(1)
    assert numbers["headline"]["macro_f1"]["value"] == pytest.approx(
        f1_score(oof[task], answers, average="macro")
    )
    assert bool(numbers["ages"]) == (task == "ageg")
    assert "parts" not in numbers


def test_a_page_that_fails_leaves_the_numbers_and_no_half_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("no chart")

    monkeypatch.setattr(plots, "render_svg", broken)
    tree = make_tree("main", tmp_path)
    with pytest.raises(RuntimeError, match="no chart"):
        summary.training_report(tree, *synthetic("main", tmp_path), {})
    assert (tree / "report.json").is_file()
    assert not list(tree.glob("*.html*"))


def test_a_name_that_the_template_lacks_stops_the_page_and_is_not_shown_as_nothing() -> None:
    with pytest.raises(UndefinedError, match="misspelt"):
        html.environment().from_string("{{ report.misspelt }}").render(report={"name": "a"})


def test_an_out_of_fold_table_without_a_column_is_refused_by_its_name(tmp_path: Path) -> None:
    table, oof = synthetic("main", tmp_path)
    with pytest.raises(UserError, match="no column 'p7'"):
        summary.training_report(make_tree("main", tmp_path), table, oof.drop(columns="p7"), {})


def probabilities(task: str) -> tuple[ensemble.Probabilities, np.ndarray]:
    """Four members of two folds over 60 photographs, and the truth."""
    draw = np.random.default_rng(4)
    spec = TASKS[task]
    truth = (
        draw.integers(18, 61, 60).astype(float)
        if spec.regression
        else draw.integers(0, spec.outputs, 60)
    )
    if spec.regression:
        array = truth[None, None, :, None] + draw.normal(0, 5, (4, 2, 60, 1))
    else:
        logits = draw.normal(0, 1, (4, 2, 60, spec.outputs)) + 2 * np.eye(spec.outputs)[truth]
        array = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    names = [f"fold0{number // 2}/{EVIL}{number}.pth" for number in range(4)]
    return ensemble.Probabilities(
        task,
        array.astype(np.float32),
        names,
        [0, 0, 1, 1],
        [0.5, 0.4, 0.6, 0.3],
        [f"{number}.jpg" for number in range(60)],
    ), truth


@pytest.mark.parametrize(
    ("task", "known"), [("main", True), ("main", False), ("age", True), ("gender", False)]
)
def test_a_prediction_tells_members_agreement_shares_and_scores(
    task: str, known: bool, tmp_path: Path
) -> None:
    probs, truth = probabilities(task)
    voted = ensemble.vote("softvoting", task, probs.array, probs.weights)
    classes = len(TASKS[scoring_task(task)].classes)
    shares = np.full(classes, 1 / classes)
    summary.prediction_report(tmp_path, probs, voted, truth if known else None, shares)
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    members = [
        metrics.to_classes(task, ensemble.decide(task, probs.array[m].mean(0))) for m in range(4)
    ]
    expected = [[accuracy_score(a, b) for b in members] for a in members]
    np.testing.assert_allclose(numbers["agreement"], expected)
    arithmetic = metrics.to_classes(task, voted["arithmetic"])
    assert numbers["class_shares"] == pytest.approx(
        (np.bincount(arithmetic, minlength=classes) / 60).tolist()
    )
    assert numbers["training_shares"] == pytest.approx(shares.tolist())
    assert [row["validation_macro_f1"] for row in numbers["members"]] == [0.5, 0.4, 0.6, 0.3]
    true = metrics.to_classes(task, truth)
    if known:
        assert numbers["headline"]["macro_f1"]["value"] == pytest.approx(
            f1_score(true, arithmetic, average="macro")
        )
        assert numbers["members"][2]["macro_f1"] == pytest.approx(
            f1_score(true, members[2], average="macro")
        )
        assert (
            numbers["confusion"]
            == confusion_matrix(true, arithmetic, labels=range(classes)).tolist()
        )
        assert ("if_right" in numbers) == (task == "main")
    else:
        assert "headline" not in numbers
    page = checked((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("macro F1 here" in page.words) == known
    assert [row["name"] for row in numbers["methods"]] == list(voted)


def test_one_member_and_unknown_shares_make_a_page_too(tmp_path: Path) -> None:
    probs, _ = probabilities("main")
    alone = probs.select([1])
    summary.prediction_report(
        tmp_path, alone, {"submission": ensemble.decide("main", ensemble.arithmetic(alone.array))}
    )
    checked((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_values_that_json_does_not_know_are_mended() -> None:
    mended = summary.to_json(
        {
            "nan": float("nan"),
            "one": np.float32(1),
            "name": "a\udcff",
            "rows": (np.int64(2), True, None),
        }
    )
    assert json.loads(json.dumps(mended)) == {
        "nan": None,
        "one": 1.0,
        "name": "a?",
        "rows": [2, True, None],
    }
    shown = html.environment().from_string("{{ value }}").render(value="a\udcff\n<")
    assert shown == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}&lt;"
