"""People -> folds, so that no person is ever on both sides."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from runtime.errors import UserError


def assign_folds(table: pd.DataFrame, folds: int, split_seed: int) -> dict[str, int]:
    """Person -> fold, all photographs of a person in one; stratified by gender and age group.

    People are shuffled within each stratum and dealt out one by one, each stratum going on where
    the last one stopped: every stratum and total is balanced to within one person.
    """
    people = table.drop_duplicates("person").sort_values("person")
    if folds > len(people):
        most = len(people)
        raise UserError(f"--cv {folds}: there are only {most} people; use at most --cv {most}")
    draw = np.random.RandomState(split_seed)  # numpy promises that this stream never changes
    strata = people.groupby(["gender", "ageg"], sort=True)["person"]
    shuffled = [stratum.to_numpy()[draw.permutation(len(stratum))] for _, stratum in strata]
    return {name: number % folds for number, name in enumerate(itertools.chain(*shuffled))}
