"""Votes on hand-made probabilities, and what the submit scripts do with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ensemble
import submit_ensemble
from inference import submission

# Three members, one view, four photographs, three classes.
MEMBERS = np.array(
    [
        [[0.60, 0.40, 0.00], [0.50, 0.40, 0.10], [0.40, 0.35, 0.25], [0.70, 0.20, 0.10]],
        [[0.60, 0.40, 0.00], [0.50, 0.40, 0.10], [0.35, 0.40, 0.25], [0.20, 0.70, 0.10]],
        [[0.00, 1.00, 0.00], [0.05, 0.90, 0.05], [0.10, 0.10, 0.80], [0.05, 0.05, 0.90]],
    ]
)[:, None]
WEIGHTS = [0.9, 0.6, 0.1]


def test_the_four_methods_on_a_hand_made_case() -> None:
    # photograph 0: mean .40/.60/.00 -> 1; geometric: one 0 all but vetoes class 0 -> 1; weights
    # .5625+.375 on (.6, .4) -> 0; votes 0, 0, 1 -> 0.  photograph 1: .35/.567 -> 1; geometric
    # .232/.524 -> 1; weighted .472/.431 -> 0; votes -> 0.
    # photograph 2: .283/.283/.433 -> 2; geometric .241/.241/.368 -> 2; weighted .362/.353/.284 ->
    # 0; one vote each -> largest sum -> 2.  photograph 3: .317/.317/.367 -> 2; geometric
    # .191/.191/.208 -> 2; weighted .472 -> 0; 2.
    soft = ensemble.vote("softvoting", "mask", MEMBERS, WEIGHTS)
    assert soft["arithmetic"].tolist() == [1, 1, 2, 2]
    assert soft["geometric"].tolist() == [1, 1, 2, 2]
    assert soft["weighted_mean"].tolist() == [0, 0, 0, 0]
    assert ensemble.vote("hardvoting", "mask", MEMBERS, WEIGHTS)["hardvoting"].tolist() == [
        0,
        0,
        2,
        2,
    ]


def test_all_four_disagree_on_one_photograph() -> None:
    # Votes: class 0 twice. Sums .71/.78/.75/.76 -> arithmetic 1. The second member's .08 costs
    # class 1 its geometric mean (.21), the third's .01 class 0 its own (.11): class 3 (.24). Nearly
    # all weight on the third member -> class 2.
    one = np.array(
        [[[0.32, 0.29, 0.10, 0.29]], [[0.38, 0.08, 0.23, 0.31]], [[0.01, 0.41, 0.42, 0.16]]]
    )[:, None]
    weights = [0.05, 0.05, 0.9]
    soft = ensemble.vote("softvoting", "mask", one, weights)
    assert soft["arithmetic"].tolist() == [1]
    assert soft["geometric"].tolist() == [3]
    assert soft["weighted_mean"].tolist() == [2]
    assert ensemble.vote("hardvoting", "mask", one, weights)["hardvoting"].tolist() == [0]


def test_ties_go_to_the_larger_sum_then_to_the_lowest_class() -> None:
    tie = np.array([[[0.5, 0.4, 0.1]], [[0.1, 0.8, 0.1]]])[:, None]
    assert ensemble.majority(tie).tolist() == [1]
    even = np.array([[[0.1, 0.6, 0.3]], [[0.6, 0.1, 0.3]]])[:, None]
    assert ensemble.majority(even).tolist() == [0]
    assert ensemble.decide("mask", np.array([[0.4, 0.4, 0.2]])).tolist() == [0]


def test_every_view_is_a_vote() -> None:
    passes = np.array([[[[0.9, 0.1]], [[0.4, 0.6]]], [[[0.45, 0.55]], [[0.45, 0.55]]]])
    assert ensemble.majority(passes).tolist() == [1]
    assert ensemble.arithmetic(passes)[0].tolist() == pytest.approx([0.55, 0.45])


def test_geometric_means_are_of_probabilities_with_a_floor() -> None:
    sure = np.array([[[1.0, 0.0]], [[0.3, 0.7]]])[:, None]
    mean = ensemble.geometric(sure)[0]
    assert np.isfinite(mean).all()
    assert mean[0] > mean[1] > 0
    assert mean.sum() == pytest.approx(1)


def test_years_take_means_and_the_median() -> None:
    years = np.array([[[[20.0]]], [[[30.0]]], [[[70.0]]]])
    soft = ensemble.vote("softvoting", "age", years, [1, 1, 2])
    assert soft["arithmetic"].tolist() == pytest.approx([40])
    assert soft["geometric"].tolist() == pytest.approx([42000 ** (1 / 3)])
    assert soft["weighted_mean"].tolist() == pytest.approx([47.5])
    assert ensemble.vote("hardvoting", "age", years, [1, 1, 2])["hardvoting"].tolist() == [30]


def test_main_answers_its_parts_by_summing() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(18), (2, 1, 5))
    for task, of in (
        ("mask", lambda c: c // 6),
        ("gender", lambda c: c // 3 % 2),
        ("ageg", lambda c: c % 3),
    ):
        answer = ensemble.marginalize_main(probabilities, task)
        for k in range(answer.shape[-1]):
            assert answer[..., k] == pytest.approx(
                probabilities[..., [c for c in range(18) if of(c) == k]].sum(-1)
            )


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(2, 6), st.integers(0, 999)
)
def test_means_are_distributions_and_one_member_keeps_its_answer(
    m: int, v: int, n: int, c: int, seed: int
) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(c), (m, v, n))
    for mean in (
        ensemble.arithmetic(probabilities),
        ensemble.geometric(probabilities),
        ensemble.weighted_mean(probabilities, range(1, m + 1)),
    ):
        assert mean.sum(1) == pytest.approx(np.ones(n))
    alone = probabilities[:1, :1]
    assert (ensemble.majority(alone) == alone[0, 0].argmax(1)).all()
    assert (ensemble.arithmetic(alone).argmax(1) == alone[0, 0].argmax(1)).all()


def test_top_k_is_of_each_fold(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"m{i}" for i in range(5)]
    probs = ensemble.Probabilities(
        "mask",
        np.zeros((5, 1, 2, 3), np.float32),
        names,
        [0, 0, 0, 1, 1],
        [0.5, 0.9, 0.7, 0.1, 0.2],
        ["a", "b"],
    )
    assert probs.top(2).members == ["m1", "m2", "m4", "m3"]
    assert probs.top(3).members == ["m1", "m2", "m0", "m4", "m3"]
    assert "fewer: 1 (the first: 'fold01')" in capsys.readouterr().err


def test_an_older_prediction_with_fitted_weights_is_weighted_by_its_f1(tmp_path: Path) -> None:
    names = [f"fold{fold:02d}/Fold{fold:02d}.pth" for fold in range(3)]
    submission.save_probabilities(
        tmp_path,
        ensemble.Probabilities(
            "mask", MEMBERS.astype(np.float32), names, [0, 1, 2], WEIGHTS, list("abcd")
        ),
    )
    with np.load(tmp_path / submission.PROBS) as stored:
        arrays = {name: stored[name] for name in stored.files}
    assert "f1" not in arrays
    for f1, weights, expected in (
        (WEIGHTS, [0.0, 0.0, 1.0], WEIGHTS),  # weights that --weights oof had fitted
        ([], WEIGHTS, WEIGHTS),  # none were fitted
    ):
        older = {**arrays, "weights": np.array(weights), "f1": np.array(f1, float)}
        np.savez(tmp_path / submission.PROBS, **older)
        (tmp_path / "decision.json").write_text("{}")
        (tmp_path / "calibration.json").write_text("{}")
        assert submission.load_probabilities(tmp_path).weights == expected
        out = tmp_path / f"{len(f1)}"
        words = [
            "--from-probs",
            str(tmp_path),
            "--save-path",
            str(out),
            "--task",
            "mask",
            "--top-k",
            "1",
        ]
        assert submit_ensemble.main(words) == 0
        (folder,) = out.iterdir()
        assert not list(folder.glob("*.json"))
        lines = (folder / "weighted_mean.csv").read_text().splitlines()
        assert lines == ["ImageID,ans", *(f"{name},0" for name in "abcd")]
