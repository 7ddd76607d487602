"""Scores against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, root_mean_squared_error

import engine
import metrics

labels = st.lists(st.tuples(st.integers(0, 17), st.integers(0, 17)), min_size=1, max_size=200)


@given(labels)
def test_macro_f1_and_accuracy_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    matrix = metrics.confusion(truth, predicted, 18)
    assert metrics.macro_f1(matrix) == pytest.approx(
        f1_score(truth, predicted, average="macro"), abs=1e-9
    )
    assert metrics.accuracy(matrix) == pytest.approx(accuracy_score(truth, predicted), abs=1e-9)


def test_counts_of_batches_equal_counts_of_the_whole() -> None:
    draw = np.random.default_rng(0)
    truth, predicted = draw.integers(0, 18, (2, 1000))
    parts = [
        metrics.confusion(truth[i : i + 7], predicted[i : i + 7], 18) for i in range(0, 1000, 7)
    ]
    assert (np.sum(parts, axis=0) == metrics.confusion(truth, predicted, 18)).all()


@given(st.lists(st.tuples(st.floats(18, 70), st.integers(18, 60)), min_size=1, max_size=50))
def test_years_are_judged_as_groups_after_rounding(pairs: list[tuple[float, int]]) -> None:
    answers, truth = np.array(pairs).T
    scores = metrics.score("age", answers, truth)
    assert scores.rmse == pytest.approx(root_mean_squared_error(truth, answers), abs=1e-9)
    assert scores.mae == pytest.approx(mean_absolute_error(truth, answers), abs=1e-9)
    rounded = np.digitize(np.floor(answers + 0.5), [30, 60])
    assert scores.macro_f1 == pytest.approx(
        f1_score(np.digitize(truth, [30, 60]), rounded, average="macro"), abs=1e-9
    )


def test_running_loss_weighs_photographs_not_batches() -> None:
    running = engine.RunningLoss(torch.device("cpu"))
    running.add(torch.tensor(1.0), 3, 7)
    assert np.isnan(running.read()[1])
    running = engine.RunningLoss(torch.device("cpu"))
    running.add(torch.tensor(1.0), 3, 7, torch.tensor(3))
    running.add(torch.tensor(5.0), 1, 8, torch.tensor(0))
    assert running.read() == (2.0, 0.75, 4)
    again = engine.RunningLoss(torch.device("cpu"), running.kept())
    assert again.read() == (2.0, 0.75, 4)
    assert again.first_bad() is None
    again.add(torch.tensor(float("inf")), 1, 9)
    again.add(torch.tensor(float("nan")), 1, 10)
    shared = engine.RunningLoss(torch.device("cpu"))
    shared.add(torch.tensor(2.0), 3, 0, torch.tensor(1), lambda counts: counts.mul_(2))
    assert shared.read() == (2.0, 1 / 3, 6)
    assert again.first_bad() == 9


def test_absent_classes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    metrics.warn_absent_classes("mask", np.array([0, 0, 2]), "--answers")
    assert "1 class is absent (the first: incorrect)" in capsys.readouterr().err
    metrics.warn_absent_classes("age", np.array([18.0, 60.0]), "--answers")
    assert "1 class is absent (the first: 30 to 59)" in capsys.readouterr().err


def test_classes_that_the_truth_lacks_are_warned_of_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics.warn_absent_classes("mask", np.array([0, 1, 2]), "--answers")
    assert capsys.readouterr().err == ""
    metrics.warn_absent_classes("mask", np.array([2, 2]), "--answers")
    (line,) = capsys.readouterr().err.splitlines()
    assert "--answers: 2 classes are absent (the first: wear); macro F1 leaves out" in line


def test_a_stack_of_matrices_scores_like_each_of_them() -> None:
    draw = np.random.default_rng(1)
    answers = draw.integers(0, 18, (20, 2, 40))
    stack = np.stack([metrics.confusion(truth, predicted, 18) for truth, predicted in answers])
    expected = [f1_score(truth, predicted, average="macro") for truth, predicted in answers]
    np.testing.assert_allclose(metrics.macro_f1(stack), expected, atol=1e-12)
    np.testing.assert_allclose(metrics.accuracy(stack), [accuracy_score(*pair) for pair in answers])
    assert metrics.macro_f1(np.zeros((2, 3, 3))).tolist() == [0, 0]


@pytest.mark.parametrize("classes", [2, 3, 18])
def test_guessing_is_told_from_predicting(classes: int) -> None:
    """(18.4) A constant and a random model are known whatever the classes' shares are."""
    draw = np.random.default_rng(2)
    truth = draw.choice(classes, 2000, p=draw.dirichlet(np.full(classes, 2.0)))
    half = np.where(draw.random(2000) < 0.5, truth, draw.permutation(truth))
    for predicted, is_guessing in (
        (np.full(2000, truth[0]), True),
        (draw.integers(classes, size=2000), True),
        (draw.permutation(truth), True),
        (half, False),
        (truth, False),
    ):
        matrix = metrics.confusion(truth, predicted, classes)
        assert metrics.is_guessing(matrix) == is_guessing


def test_bootstrap_draws_whole_people() -> None:
    people = np.repeat(["b", "a", "c"], 7)
    truth = np.repeat([0, 1, 2], 7)
    draws = metrics.bootstrap("mask", truth, truth, people, draws=200, seed=5)
    assert draws.shape == (200, 3, 3)
    assert (draws.sum((1, 2)) == 21).all()
    assert (draws % 7 == 0).all()
    assert (
        draws
        == metrics.bootstrap("mask", truth[::-1], truth[::-1], people[::-1], draws=200, seed=5)
    ).all()
    weights = draws[:, range(3), range(3)] // 7
    assert weights.mean(0) == pytest.approx([1, 1, 1], abs=0.2)


def test_an_interval_by_people_is_wider_than_by_photographs_where_people_err_whole() -> None:
    draw = np.random.default_rng(2)
    truth = np.repeat(draw.integers(0, 2, 100), 7)
    predicted = np.where(np.repeat(draw.random(100) < 0.7, 7), truth, 1 - truth)
    by_people, by_photograph = (
        metrics.interval(metrics.accuracy(metrics.bootstrap("gender", predicted, truth, units)))
        for units in (np.repeat(np.arange(100), 7), np.arange(700))
    )
    counted = metrics.interval(
        metrics.accuracy(metrics.bootstrap("gender", predicted, truth, None))
    )
    assert counted == pytest.approx(by_photograph, abs=0.01)
    assert by_people[0] < metrics.accuracy(metrics.confusion(truth, predicted, 2)) < by_people[1]
    assert by_people[1] - by_people[0] == pytest.approx(
        np.sqrt(7) * (by_photograph[1] - by_photograph[0]), rel=0.15
    )
    assert by_people[1] - by_people[0] == pytest.approx(
        2 * 1.96 * np.sqrt(0.7 * 0.3 / 100), rel=0.15
    )


def test_an_interval_leaves_out_draws_without_a_value() -> None:
    assert metrics.interval(np.array([np.nan, 1, 2, 3]), 1.0) == (1, 3)
    assert np.isnan(metrics.interval(np.array([np.nan]))).all()


def test_an_out_of_fold_interval_allows_for_the_folds_common_training_people() -> None:
    draws = np.random.default_rng(3).normal(0.6, 0.02, 100_000)
    low, high = metrics.interval(draws)
    for folds, times in ((5, 1.5), (2, np.sqrt(3)), (1, np.sqrt(10 / 9))):
        span = metrics.out_of_fold_interval(0.61, draws, folds)
        assert span == pytest.approx((0.61 - times * (0.61 - low), 0.61 + times * (high - 0.61)))
    assert metrics.out_of_fold_interval(0.02, draws - 0.58, 5) == (
        0.0,
        pytest.approx(0.02 + 1.5 * (high - 0.6), abs=1e-3),
    )
    assert metrics.out_of_fold_interval(0.99, draws + 0.39, 5)[1] == 1
    assert np.isnan(metrics.out_of_fold_interval(np.nan, np.array([np.nan]), 5)).all()


def test_calibration_of_sure_answers() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.95, 0.05], [0.55, 0.45], [1.0, 0.0]])
    truth = np.array([0, 1, 1, 0, 0])
    rows = metrics.calibration(probabilities, truth)
    assert [count for *_, count in rows] == [1, 2, 2]
    assert rows[0][:2] == pytest.approx((0.55, 1))
    assert rows[2][:2] == pytest.approx((0.975, 0.5))
    assert metrics.calibration_error(probabilities, truth) == pytest.approx(
        (0.45 + 2 * 0.1 + 2 * 0.475) / 5
    )
