"""Labels that the out-of-fold predictions contradict, ranked by evidence."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from labels import GROUP_STARTS, MASKS, PARTS, TASKS

Suspects = list[tuple[object, ...]]  # rows of COLUMNS
COLUMNS = ["kind", "person", "file", "given", "suggested", "evidence"]
# against one wrong file alone: people have all their shots, so files are swapped, not lost
SINGLE_FILE_PENALTY_NATS = 3.0
CONTRADICTION_WEIGHT = 0.05  # of predictions against one label while another is judged
AGE_BLUR_YEARS = 5.0  # the standard deviation of how old people of one age look


def find_label_issues(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Suspected labels, the best evidence first: kind (gender, age, mask), person, file, given,
    suggested, evidence.

    table: a row per photograph with file, person, mask, gender, age (years) and ageg; probabilities
    [photographs, 18] out of fold. Genders and age groups are suspected of a whole person, from all
    photographs together and where most of them disagree (`file` is then the clearest); mask states
    of single files. Evidence is the log of the odds, in nats, of the suggested label against the
    given one, after a logistic regression of the given labels on the predictions: so classes that
    the model favours, and its over- or underconfidence, do not count as evidence.
    """
    rows = [
        *person_suspects(table, probabilities, "gender"),
        *person_suspects(table, probabilities, "ageg"),
        *photo_suspects(table, probabilities),
    ]
    suspects = pd.DataFrame(rows, columns=COLUMNS)
    order = {"by": ["evidence", "person", "file"], "ascending": [False, True, True]}
    return suspects.sort_values(**order, ignore_index=True)


def conditional_scores(table: pd.DataFrame, probabilities: np.ndarray, part: str) -> np.ndarray:
    """[photographs, classes of the part] centred log-probabilities, given its two other labels:
    joint ones that disagree with one of these, which may be wrong, count CONTRADICTION_WEIGHT.
    """
    joint = np.maximum(probabilities, 1e-9).reshape(-1, 3, 2, 3)  # photographs, then PARTS
    for axis, other in enumerate(PARTS, start=1):
        if other != part:
            agrees = np.eye(joint.shape[axis], dtype=bool)[table[other]]
            weights = np.where(agrees, 1, CONTRADICTION_WEIGHT)
            weights = np.expand_dims(weights, tuple({1, 2, 3} - {axis}))
            joint = (joint * weights).sum(axis, keepdims=True)
    scores: np.ndarray = np.log(joint.reshape(len(joint), -1))
    return scores - scores.mean(1, keepdims=True)


def log_odds(
    scores: np.ndarray, labels: np.ndarray, *others: tuple[np.ndarray, np.ndarray]
) -> list[np.ndarray]:
    """[n, classes] log odds of each class against the label, -inf for a class that no label has,
    of the scores [n, classes] with labels [n] that they are calibrated by, and of others.
    """
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    fit = LogisticRegression(max_iter=1000).fit(scores, labels) if len(present) > 1 else None
    results = []
    for own_scores, own_labels in ((scores, labels), *others):
        logs = np.full(own_scores.shape, -np.inf)
        logs[:, present] = fit.predict_log_proba(own_scores) if fit else 0
        results.append(logs - logs[np.arange(len(own_labels)), own_labels][:, None])
    return results


def person_suspects(table: pd.DataFrame, probabilities: np.ndarray, part: str) -> Suspects:
    """People whose gender or age group most of their photographs, and the mean, contradict."""
    codes, people = pd.factorize(table["person"])
    counts = np.bincount(codes)
    first = np.unique(codes, return_index=True)[1]
    given = table[part].to_numpy()[first]
    scores = conditional_scores(table, probabilities, part)
    means = np.stack([np.bincount(codes, column) / counts for column in scores.T], axis=1)
    odds, photo_odds = log_odds(means, given, (scores, given[codes]))
    suggested, evidence = odds.argmax(1), odds.max(1)
    if part == "ageg":  # somebody of 59 who looks sixty is hardly a suspect
        near = near_group(table["age"].to_numpy(float)[first])[np.arange(len(given)), suggested]
        evidence = evidence - np.logaddexp(0, np.log(np.maximum(near, 1e-9)) + evidence)
    own_odds = photo_odds[np.arange(len(codes)), suggested[codes]]
    votes = np.bincount(codes, own_odds > 0)
    names, files = TASKS[part].classes, table["file"].to_numpy()
    kind = "age" if part == "ageg" else part
    rows: Suspects = []
    for k in np.flatnonzero((suggested != given) & (evidence > 0) & (votes > counts / 2)):
        photos = np.flatnonzero(codes == k)
        file = files[photos[own_odds[photos].argmax()]]
        rows.append((kind, people[k], file, names[given[k]], names[suggested[k]], evidence[k]))
    return rows


def near_group(years: np.ndarray) -> np.ndarray:
    """[people, age groups]: the chance that somebody of that age looks like one of the group."""
    edges = np.array([-np.inf, *(start - 0.5 for start in GROUP_STARTS), np.inf])
    deviations = (edges - years[:, None]) / AGE_BLUR_YEARS
    return np.diff(np.vectorize(math.erf)(deviations / math.sqrt(2)) / 2, axis=1)


def photo_suspects(table: pd.DataFrame, probabilities: np.ndarray) -> Suspects:
    """Files whose mask state is contradicted; the evidence of two that look swapped adds up."""
    given = table["mask"].to_numpy()
    scores = conditional_scores(table, probabilities, "mask")
    (odds,) = log_odds(scores, given)
    odds[np.arange(len(given)), given] = -np.inf
    suggested, evidence = odds.argmax(1), odds.max(1) - SINGLE_FILE_PENALTY_NATS
    for own in table.groupby("person", sort=False).indices.values():
        pairs = odds[own][:, given[own]]
        pairs = pairs + pairs.T  # both files of a swap
        partner, total = pairs.argmax(1), pairs.max(1)
        is_mutual = partner[partner] == np.arange(len(own))
        for k in np.flatnonzero(is_mutual & (total > evidence[own])):
            suggested[own[k]], evidence[own[k]] = given[own[partner[k]]], total[k]
    person, file = table["person"].to_numpy(), table["file"].to_numpy()
    return [
        ("mask", person[k], file[k], MASKS[given[k]], MASKS[suggested[k]], evidence[k])
        for k in np.flatnonzero(evidence > 0)
    ]
