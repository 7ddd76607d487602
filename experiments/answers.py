"""The only reader of DATA/eval/answers.csv for scores: what was scored there is on record.

Whoever looks at these answers again and again chooses by them. So choices are made on out-of-fold
predictions, and every choice that is scored here leaves a line (time, choice) in reads.csv, beside
the answers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import harness
from data import tables

RENDER_SEED = 0  # of the renderer that names the photographs


def read_answers(data: str, choices: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(photographs of DATA/eval, their classes). Records those choices that are new and prints how
    many were scored on these answers so far. Raises UserError.
    """
    images, _ = tables.read_eval(str(Path(data) / "eval"))
    path = Path(data) / "eval" / "answers.csv"
    truth = tables.read_labels(str(path), images, "main")
    record = path.resolve().with_name("reads.csv")  # crops of DATA link to its answers
    read = pd.read_csv(record)["choice"].tolist() if record.is_file() else []
    new = list(dict.fromkeys(choice for choice in choices if choice not in read))
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    rows = pd.DataFrame({"time": now, "choice": new})
    rows.to_csv(record, mode="a", header=not record.is_file(), index=False)
    print(f"{record}: {len(read) + len(new)} choices scored so far, {len(new)} of them now")
    return images, truth


def read_people(path: str | None, images: Sequence[str]) -> np.ndarray:
    """The person on each photograph, from a table ImageID,person, or the renderer's table of people
    (photo). Without a table each photograph is a person.
    """
    if path is None:
        return np.arange(len(images))
    table = pd.read_csv(path, dtype=str)
    if "photo" in table:  # a photograph's name is the hash of seed, person and shot
        texts = {f"{RENDER_SEED}/{p}/{shot}": p for p in table["photo"] for shot in harness.SHOTS}
        owner = {f"{hashlib.sha1(text.encode()).hexdigest()}.jpg": p for text, p in texts.items()}
    else:
        owner = dict(zip(table["ImageID"], table["person"], strict=True))
    return np.array([owner[image] for image in images])
