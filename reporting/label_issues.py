"""Labels that the out-of-fold predictions contradict, ranked by evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from labels import GROUP_STARTS, MASKS, PARTS, TASKS
from runtime.files import atomic_write, csv_cell

COLUMNS = ["kind", "person", "file", "given", "suggested", "evidence"]
# against one wrong file alone: people have all their shots, so files are swapped, not lost
SINGLE_FILE_PENALTY_NATS = 3.0
CONTRADICTION_WEIGHT = 0.05  # of predictions against one label while another is judged
AGE_BLUR_YEARS = 5.0  # the standard deviation of how old people of one age look

# --- suspects


def find_label_issues(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Suspected labels, the best evidence first: kind (gender, age, mask), person, file, given,
    suggested, evidence.

    table: a row per photograph with file, person, mask, gender, age (years) and ageg; probabilities
    [photographs, 18] out of fold. Genders and age groups are suspected of a whole person, from all
    photographs together and where most of them disagree (`file` is then the clearest); mask states
    of single files. Evidence is the log of the odds, in nats, of the suggested label against the
    given one, after a logistic regression of the given labels on the answers: so classes that the
    model favours, and its over- or underconfidence, do not count as evidence.
    """
    rows = [
        *person_suspects(table, probabilities, "gender"),
        *person_suspects(table, probabilities, "ageg"),
    ]
    rows += photo_suspects(table, probabilities)
    found = pd.DataFrame(rows, columns=COLUMNS)
    return found.sort_values(
        ["evidence", "person", "file"], ascending=[False, True, True], ignore_index=True
    )


def conditional_probabilities(
    table: pd.DataFrame, probabilities: np.ndarray, part: str
) -> np.ndarray:
    """[photographs, classes of the part] centred log-probabilities, its two other labels as good as
    taken for given.

    Joint probabilities that disagree with one of the others count CONTRADICTION_WEIGHT times, for
    it may be wrong itself.
    """
    joint = np.maximum(probabilities, 1e-9).reshape(-1, 3, 2, 3)
    for axis, other in enumerate(PARTS, start=1):
        if other != part:
            believed = np.where(
                np.eye(joint.shape[axis], dtype=bool)[table[other]], 1, CONTRADICTION_WEIGHT
            )
            joint = (joint * np.expand_dims(believed, tuple({1, 2, 3} - {axis}))).sum(
                axis, keepdims=True
            )
    scores: np.ndarray = np.log(joint.reshape(len(joint), -1))
    return scores - scores.mean(1, keepdims=True)


def calibrator(scores: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Scores [n, classes] -> calibrated log-probabilities; -inf for classes that none of the labels
    has.
    """
    from sklearn.linear_model import LogisticRegression

    several = len(np.unique(labels)) > 1
    fit = LogisticRegression(max_iter=1000).fit(scores, labels) if several else None

    def calibrated(new: np.ndarray) -> np.ndarray:
        found = np.full(new.shape, -np.inf)
        if fit is None:
            found[:, labels[0]] = 0
        else:
            found[:, fit.classes_] = fit.predict_log_proba(new)
        return found

    return calibrated


def log_odds_against_label(given: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """[n, classes] log odds of each class against the given one."""
    return logs - logs[np.arange(len(given)), given][:, None]


def person_suspects(
    table: pd.DataFrame, probabilities: np.ndarray, part: str
) -> list[tuple[object, ...]]:
    """People whose gender or age group the mean of their photographs' scores, and most of them,
    contradict.
    """
    codes, people = pd.factorize(table["person"])
    counts = np.bincount(codes)
    scores = conditional_probabilities(table, probabilities, part)
    means = np.stack([np.bincount(codes, column) / counts for column in scores.T], axis=1)
    first = np.unique(codes, return_index=True)[1]
    given = table[part].to_numpy()[first]
    calibrate = calibrator(means, given)
    logs = calibrate(means)
    odds, each = (
        log_odds_against_label(given, logs),
        log_odds_against_label(given[codes], calibrate(scores)),
    )
    suggested = odds.argmax(1)
    evidence = odds.max(1)
    if part == "ageg":  # somebody of 59 who looks sixty is hardly a suspect
        near = near_group(table["age"].to_numpy(float)[first])[np.arange(len(given)), suggested]
        evidence = evidence - np.logaddexp(0, np.log(np.maximum(near, 1e-9)) + evidence)
    votes = np.bincount(codes, each[np.arange(len(codes)), suggested[codes]] > 0)
    names, rows = TASKS[part].classes, list[tuple[object, ...]]()
    for k in np.flatnonzero((suggested != given) & (evidence > 0) & (votes > counts / 2)):
        own = np.flatnonzero(codes == k)
        file = table["file"].iloc[own[each[own, suggested[k]].argmax()]]
        kind = "age" if part == "ageg" else part
        rows.append((kind, people[k], file, names[given[k]], names[suggested[k]], evidence[k]))
    return rows


def near_group(years: np.ndarray) -> np.ndarray:
    """[people, age groups] the chance that somebody of that age looks like one of the group,
    AGE_BLUR_YEARS being one standard deviation.
    """
    edges = np.array([-np.inf, *(start - 0.5 for start in GROUP_STARTS), np.inf])
    below = [
        [math.erf((edge - year) / AGE_BLUR_YEARS / math.sqrt(2)) / 2 for edge in edges]
        for year in years
    ]
    return np.diff(np.array(below), axis=1)


def photo_suspects(table: pd.DataFrame, probabilities: np.ndarray) -> list[tuple[object, ...]]:
    """Files whose mask state is contradicted: two files of a person that look swapped add up, one
    alone has to say more.
    """
    given = table["mask"].to_numpy()
    scores = conditional_probabilities(table, probabilities, "mask")
    odds = log_odds_against_label(given, calibrator(scores, given)(scores))
    odds[np.arange(len(given)), given] = -np.inf
    suggested, evidence = odds.argmax(1), odds.max(1) - SINGLE_FILE_PENALTY_NATS
    for own in table.groupby("person", sort=False).indices.values():
        pairs = odds[own][:, given[own]]
        pairs = pairs + pairs.T  # both files of a swap
        partner, total = pairs.argmax(1), pairs.max(1)
        for k in np.flatnonzero(
            (partner[partner] == np.arange(len(own))) & (total > evidence[own])
        ):
            suggested[own[k]], evidence[own[k]] = given[own[partner[k]]], total[k]
    person, file = table["person"].to_numpy(), table["file"].to_numpy()
    names = MASKS
    return [
        ("mask", person[k], file[k], names[given[k]], names[suggested[k]], evidence[k])
        for k in np.flatnonzero(evidence > 0)
    ]


def write_suspects(path: Path, suspects: pd.DataFrame) -> None:
    """suspects.csv, whole or not at all; evidence in nats with two decimals."""
    with atomic_write(path, "w") as file:
        named = suspects.assign(
            person=suspects["person"].map(csv_cell), file=suspects["file"].map(csv_cell)
        )
        named.to_csv(file, index=False, float_format="%.2f")
