"""Scores against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, root_mean_squared_error

import metrics

labels = st.lists(st.tuples(st.integers(0, 17), st.integers(0, 17)), min_size=1, max_size=200)


@given(labels)
def test_macro_f1_and_accuracy_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    matrix = metrics.confusion(truth, predicted, 18)
    assert metrics.macro_f1(matrix) == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-9)
    assert metrics.accuracy(matrix) == pytest.approx(accuracy_score(truth, predicted), abs=1e-9)


def test_counts_of_batches_equal_counts_of_the_whole() -> None:
    draw = np.random.default_rng(0)
    truth, predicted = draw.integers(0, 18, (2, 1000))
    parts = [metrics.confusion(truth[i : i + 7], predicted[i : i + 7], 18) for i in range(0, 1000, 7)]
    assert (np.sum(parts, axis=0) == metrics.confusion(truth, predicted, 18)).all()


@given(st.lists(st.tuples(st.floats(18, 70), st.integers(18, 60)), min_size=1, max_size=50))
def test_years_are_judged_as_groups_after_rounding(pairs: list[tuple[float, int]]) -> None:
    answers, truth = np.array(pairs).T
    scores = metrics.score("age", answers, truth)
    assert scores.rmse == pytest.approx(root_mean_squared_error(truth, answers), abs=1e-9)
    assert scores.mae == pytest.approx(mean_absolute_error(truth, answers), abs=1e-9)
    rounded = np.digitize(np.floor(answers + 0.5), [30, 60])
    assert scores.macro_f1 == pytest.approx(f1_score(np.digitize(truth, [30, 60]), rounded, average="macro"), abs=1e-9)


def test_running_loss_weighs_photographs_not_batches() -> None:
    running = metrics.RunningLoss(torch.device("cpu"))
    running.add(torch.tensor(1.0), 3, 7)
    running.add(torch.tensor(5.0), 1, 8)
    assert np.isnan(running.read()[1])
    running.add_hits(torch.eye(3), torch.tensor([0, 1, 2]))
    running.add_hits(torch.eye(3)[:1], torch.tensor([2]))
    assert running.read() == (2.0, 0.75, 4)
    again = metrics.RunningLoss(torch.device("cpu"), running.kept())
    assert again.read() == (2.0, 0.75, 4)
    assert again.first_bad() is None
    again.add(torch.tensor(float("inf")), 1, 9)
    again.add(torch.tensor(float("nan")), 1, 10)
    assert again.first_bad() == 9


def test_absent_classes_are_named() -> None:
    assert metrics.absent_classes("mask", np.array([0, 0, 2])) == ["incorrect"]
    assert metrics.absent_classes("age", np.array([18.0, 60.0])) == ["30 to 59"]
