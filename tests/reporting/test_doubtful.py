"""What a prediction's report says of doubtful photographs, and a run's of ages (18.4)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import ensemble
from reporting import summary


def test_the_least_sure_and_the_most_disputed_photographs_come_first(tmp_path: Path) -> None:
    array = np.full((3, 1, 4, 3), 0.05, np.float32)
    array[:, :, 0, 0] = 0.9  # sure and agreed
    array[:, :, 1] = (0.34, 0.33, 0.33)  # unsure and agreed
    for member in range(3):
        array[member, :, 2, member] = 0.9  # sure and disputed
    array[:, :, 3, 1] = (0.9, 0.9, 0.9)[0]
    names = [f"{k}.jpg" for k in range(4)]
    probs = ensemble.Probabilities("mask", array, ["a", "b", "c"], [0, 1, 2], [1.0] * 3, names)
    votes = ensemble.vote("softvoting", "mask", probs.array, probs.weights)
    summary.prediction_report(tmp_path, probs, votes)
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    least, disputed = (
        [row["name"] for row in numbers["extra"][f"The {title} photographs"]]
        for title in ("least sure", "most disputed")
    )
    assert set(least[:2]) == {"1.jpg", "2.jpg"}
    assert disputed == ["2.jpg"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the vote arithmetic, the mean of the members" in page
    assert f"--from-probs {tmp_path}" in page


def test_only_ages_of_ten_people_are_named() -> None:
    row = {"photographs": 70, "too_old": 0, "too_young": 35}
    ages = [
        {"age": 59, "people": 10, **row},
        {"age": 60, "people": 9, **row, "too_young": 70},
        {"age": 20, "people": 12, **row, "too_young": 7},
    ]
    assert summary.worst_ages(ages) == [{"age": 59, "share": 0.5}, {"age": 20, "share": 0.1}]
    (near,) = [b for b in summary.boundary_errors(ages) if b["age"] == 60]
    assert near["people"] == 19
