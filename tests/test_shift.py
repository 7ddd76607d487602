"""Prior shift: calibrations, the frequencies estimated from unlabelled photographs, and the
commands that use them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import support

import config
import ensemble
import shift
import submission
import submit_ensemble
import submit_singular
import train
from utils import UserError

MACHINE = ("--device", "cpu", "--threads", "1", "--workers", "0")


def drawn(task: str, priors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(calibrated probabilities [images, classes] for equal priors, true classes) of a made-up
    network.
    """
    draw = np.random.default_rng(seed)
    classes = config.TASKS[task].outputs
    truth = draw.choice(classes, size=count, p=priors)
    seen = np.eye(classes)[truth] * 2.2 + draw.normal(
        size=(count, classes)
    )  # Gaussian evidence: its posterior is known
    powers = np.exp(2.2 * seen)
    return powers / powers.sum(1, keepdims=True), truth


def of_parts(mask: list[float], gender: list[float], ageg: list[float]) -> np.ndarray:
    """Shares of the 18 classes from those of the parts."""
    parts = {"mask": mask, "gender": gender, "ageg": ageg}
    return ensemble.multiply({name: np.array(values) for name, values in parts.items()})


def test_a_fit_finds_the_temperature_and_the_shares() -> None:
    before = np.array([0.5, 0.3, 0.2])
    equal, truth = drawn("ageg", before, 20000, 1)
    posterior = equal * before / (equal * before).sum(1, keepdims=True)
    blunt = posterior**0.4 / (posterior**0.4).sum(1, keepdims=True)  # a network too unsure
    found = shift.fit("ageg", blunt, truth)
    assert found.temperature == pytest.approx(0.4, rel=0.05)
    np.testing.assert_allclose(found.shares, before, atol=0.01)
    np.testing.assert_allclose(found.adjust(blunt), posterior, atol=0.05)


def test_a_fit_takes_back_what_oversampling_did() -> None:
    before = np.array([0.8, 0.15, 0.05])
    equal, truth = drawn("ageg", before, 20000, 1)  # as if trained on classes of one size
    found = shift.fit("ageg", equal, truth)
    np.testing.assert_allclose(found.adjust(equal).mean(0), before, atol=0.01)


def test_answers_trained_for_classes_alike_frequent_are_brought_to_the_estimated_shares() -> None:
    before, after = np.array([0.8, 0.15, 0.05]), np.array([0.3, 0.3, 0.4])
    equal, truth = drawn("ageg", before, 20000, 1)  # as if trained on classes of one size
    fitted = shift.fit("ageg", equal, truth, alike=True)
    assert fitted.assumed == pytest.approx((1 / 3,) * 3)
    others, _ = drawn("ageg", after, 20000, 2)
    found = shift.estimate(fitted, others[None, None])
    np.testing.assert_allclose(found.priors, after, atol=0.03)
    expected = others * after / (others * after).sum(1, keepdims=True)
    np.testing.assert_allclose(found.adjust(others), expected, atol=0.05)


@pytest.mark.parametrize(
    ("task", "before", "after"),
    [
        ("ageg", np.array([0.5, 0.44, 0.06]), np.array([0.3, 0.45, 0.25])),
        (
            "main",
            of_parts([5 / 7, 1 / 7, 1 / 7], [0.4, 0.6], [0.45, 0.48, 0.07]),
            of_parts([5 / 7, 1 / 7, 1 / 7], [0.6, 0.4], [0.35, 0.4, 0.25]),
        ),
    ],
)
def test_the_frequencies_of_other_photographs_are_found_and_make_better_answers(
    task: str, before: np.ndarray, after: np.ndarray
) -> None:
    equal, truth = drawn(task, before, 8000, 1)
    calibration = shift.fit(task, equal * before / (equal * before).sum(1, keepdims=True), truth)
    others, answers = drawn(task, after, 6000, 2)
    trained = others * before / (others * before).sum(1, keepdims=True)
    found = shift.estimate(calibration, trained[None, None])
    np.testing.assert_allclose(found.priors, after, atol=0.02)
    right = [(array.argmax(1) == answers).mean() for array in (trained, found.adjust(trained))]
    assert right[1] > right[0] + 0.005
    np.testing.assert_allclose(found.adjust(trained).sum(1), 1)
    same = shift.estimate(
        calibration, (equal * before / (equal * before).sum(1, keepdims=True))[None, None]
    )
    np.testing.assert_allclose(same.factors, 1, atol=0.15)


def test_a_class_that_nobody_was_held_out_of_does_not_seem_frequent() -> None:
    before = of_parts([5 / 7, 1 / 7, 1 / 7], [0.4, 0.6], [0.5, 0.49, 0.01])
    equal, truth = drawn("main", before, 400, 1)
    kept = ~np.isin(truth, (5, 8, 14))
    assert np.bincount(truth[kept], minlength=18).min() == 0
    trained = equal * before / (equal * before).sum(1, keepdims=True)
    calibration = shift.fit("main", trained[kept], truth[kept])
    others, answers = drawn("main", before, 3000, 2)
    told = others * before / (others * before).sum(1, keepdims=True)
    found = shift.estimate(calibration, told[None, None])
    ages = [new for _, _, new in found.found()["ageg"]]
    assert ages[2] < 0.1
    plain, shifted = ((array.argmax(1) == answers).mean() for array in (told, found.adjust(told)))
    assert shifted > plain - 0.02


def test_certain_answers_and_classes_that_training_lacks_stay_numbers() -> None:
    calibration = shift.Calibration("ageg", 1.0, (0.0, 0.0, 0.0), *[(0.5, 0.5, 0.0)] * 2)
    certain = np.eye(3)[[0, 0, 1, 2, 2]][None, None]
    found = shift.estimate(calibration, certain)
    assert found.adjust(certain).argmax(-1).tolist() == [[[0, 0, 1, 2, 2]]]
    assert np.isfinite(found.adjust(certain)).all()
    assert found.vanished() == []
    never = shift.estimate(calibration, np.eye(3)[[0, 0, 0]][None, None])
    assert np.isfinite(never.adjust(certain)).all()
    assert never.vanished() == ["30 to 59", "60 and over"]
    assert "30 to 59 50.0 -> 0.0 %" in never.lines()[0]


def test_classes_that_seem_to_vanish_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shift.write(tmp_path, shift.Calibration("ageg", 1.0, (0.0, 0.0, 0.0), *[(0.4, 0.4, 0.2)] * 2))
    probs = ensemble.Probabilities(
        "ageg", np.eye(3)[[0, 0, 1]][None, None], ["m"], [0], [0.5], ["a", "b", "c"]
    )
    submission.adjustments(config.EnsembleSettings(task="ageg", prior_shift="em"), tmp_path, probs)
    assert "--prior-shift em finds next to nothing left" in capsys.readouterr().err


def test_the_shift_comes_before_the_rule(tmp_path: Path) -> None:
    (tmp_path / ensemble.RULE).write_text(
        json.dumps({"task": "ageg", "temperature": 2.0, "offsets": [0, 0.5, 0]})
    )
    shift.write(tmp_path, shift.Calibration("ageg", 0.8, (0.1, 0.0, -0.1), *[(0.5, 0.4, 0.1)] * 2))
    array = drawn("ageg", np.array([0.2, 0.4, 0.4]), 50, 3)[0][None, None]
    probs = ensemble.Probabilities("ageg", array, ["m"], [0], [0.5], [str(i) for i in range(50)])
    settings = config.EnsembleSettings(task="ageg", prior_shift="em", decision="macro-f1")
    steps, lines = submission.adjustments(settings, tmp_path, probs)
    shifted, rule = (
        shift.estimate(shift.read(tmp_path, "ageg"), array),
        ensemble.read_rule(tmp_path, "ageg"),
    )
    np.testing.assert_array_equal(
        ensemble.adjusted(array, steps), rule.adjust(shifted.adjust(array))
    )
    assert lines == shifted.lines()
    assert submission.adjustments(config.EnsembleSettings(task="ageg"), tmp_path, probs) == ([], [])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.unlink(), "calibration.json is not there; a run writes it when it ends"),
        (
            lambda c: c.write_text("{"),
            "calibration.json: damaged .*remove it, or use --prior-shift none",
        ),
        (lambda c: c.write_text("[]"), "calibration.json: damaged"),
        (lambda c: alter(c, task="mask"), "is for mask; use --task mask"),
        (lambda c: alter(c, biases=[0.0] * 3), "its numbers do not fit main"),
        (lambda c: alter(c, temperature=0), "its numbers do not fit main"),
        (lambda c: alter(c, shares=[0.0] * 18), "its numbers do not fit main"),
        (lambda c: alter(c, biases=["x"] * 18), "damaged"),
    ],
)
def test_a_calibration_that_is_missing_or_no_good_is_refused_by_name(
    tree: Path, eval_root: Path, tmp_path: Path, change: Callable[[Path], object], told: str
) -> None:
    root = tmp_path / tree.name
    shutil.copytree(tree, root)
    change(root / shift.FILE)
    with pytest.raises(UserError, match=told):
        submit_ensemble.main(
            [
                "--root",
                str(root),
                "--data-root",
                str(eval_root),
                "--save-path",
                str(tmp_path / "out"),
                "--prior-shift",
                "em",
                *MACHINE,
            ]
        )
    assert not (tmp_path / "out").exists()


def alter(path: Path, **values: object) -> None:
    """Other values in a calibration."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_commands_say_what_they_found_and_vote_again_with_it(
    tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data-root", str(eval_root), "--save-path", str(tmp_path / "out"), *MACHINE)
    assert (
        submit_ensemble.main(["--root", str(tree), "--prior-shift", "EM", "--top-k", "1", *words])
        == 0
    )
    said = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("prior shift, ")
    ]
    assert [line.split()[2] for line in said] == ["mask", "gender", "ageg"]
    assert "under 30 " in said[2]
    (made,) = (tmp_path / "out").iterdir()
    report = json.loads((made / "report.json").read_text())["made"]
    assert report["notes"][0].startswith("tree: ")
    assert report["notes"][1:] == said
    assert report["settings"]["prior_shift"] == "em"
    assert "prior shift, mask in training" in (made / "report.html").read_text()

    assert (
        submit_ensemble.main(
            [
                "--from-probs",
                str(made),
                "--prior-shift",
                "em",
                "--save-path",
                str(tmp_path / "again"),
            ]
        )
        == 0
    )
    (again,) = (tmp_path / "again").iterdir()
    assert (again / "arithmetic.csv").read_text() == (made / "arithmetic.csv").read_text()
    assert [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("prior shift, ")
    ] == said
    probs = submission.load(made)
    found = shift.estimate(shift.read(tree, "main"), probs.array)
    answers = pd.read_csv(made / "arithmetic.csv")["ans"]
    assert answers.tolist() == found.adjust(ensemble.arithmetic(probs.array)).argmax(1).tolist()

    checkpoint = next(tree.glob("fold00/*.pth"))
    assert (
        submit_singular.main(
            [
                "--load-state-dict",
                str(checkpoint),
                "--prior-shift",
                "em",
                *words[:2],
                "--save-path",
                str(tmp_path / "one"),
                *MACHINE,
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.count("prior shift, ") == 3


def test_other_views_than_validations_are_noted(
    tree: Path, eval_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--root",
        str(tree),
        "--data-root",
        str(eval_root),
        "--save-path",
        str(tmp_path),
        "--prior-shift",
        "em",
        *MACHINE,
    ]
    for more, noted in (
        ((), 1),
        (("--transform-type", "auto"), 0),
        (("--tta", "2"), 1),
        (("--transform-type", "facecrop"), 1),
    ):
        assert submit_ensemble.main([*words, *more]) == 0
        assert (
            capsys.readouterr().out.count(
                "note: --prior-shift em was fitted on answers as validation gave them"
            )
            == noted
        )


def test_years_and_several_trees_have_no_prior_shift(
    tree: Path, eval_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--prior-shift em: --task age has no classes"):
        submit_ensemble.main(["--task", "age", "--prior-shift", "em"])
    other = tmp_path / "kfold-ensemble-VanillaEfficientNet_other"
    shutil.copytree(tree, other)
    with pytest.raises(
        UserError,
        match=(
            "--prior-shift em: what it needs was fitted for one tree; use it with a single --root"
        ),
    ):
        submit_ensemble.main(
            [
                "--root",
                str(tree),
                str(other),
                "--data-root",
                str(eval_root),
                "--save-path",
                str(tmp_path / "o"),
                "--prior-shift",
                "em",
                *MACHINE,
            ]
        )


@pytest.mark.parametrize("words", [("--oversample", "repeat"), ()])
def test_a_run_notes_what_its_answers_reckon_with(
    words: tuple[str, ...], train_root: Path, tmp_path: Path
) -> None:
    asked = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path),
        "--epochs",
        "1",
        "--task",
        "ageg",
    ]
    assert train.main([*asked, *support.FAST, *words]) == 0
    (saved,) = tmp_path.iterdir()
    found = shift.read(saved, "ageg")
    assert found.assumed == (pytest.approx((1 / 3,) * 3) if words else found.shares)
    told = json.loads((saved / shift.FILE).read_text())
    del told["assumed"]  # as older runs wrote it
    (saved / shift.FILE).write_text(json.dumps(told))
    assert shift.read(saved, "ageg").assumed == found.shares


def test_a_model_of_years_has_no_prior_shift(
    train_root: Path, eval_root: Path, tmp_path: Path
) -> None:
    asked = [
        "--train-root",
        str(train_root),
        "--save-path",
        str(tmp_path / "s"),
        "--epochs",
        "1",
        "--model-type",
        "Factorised",
    ]
    assert train.main([*asked, *support.FAST]) == 0
    predict = [
        "--root",
        str(tmp_path / "s"),
        "--data-root",
        str(eval_root),
        "--save-path",
        str(tmp_path / "p"),
        *MACHINE,
    ]
    assert submit_ensemble.main(predict) == 0
    with pytest.raises(
        UserError, match="calibration.json is not there.*Factorised.*use --prior-shift none"
    ):
        submit_ensemble.main([*predict, "--prior-shift", "em"])
