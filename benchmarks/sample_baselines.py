"""Check that the sample data cannot be solved by a shortcut: python benchmarks/sample_baselines.py
./input/data

Three kinds of feature that know nothing of faces are taken from every picture under ROOT: colour
histograms (16 bins per channel, over the whole picture and over its middle), an 8x8 RGB thumbnail,
and what the file says without a look at its pixels (size in bytes, number of EXIF fields).  On
each, a logistic regression and a random forest are fitted to the training pictures and scored on
the evaluation pictures against eval/answers.csv, by the macro F1 over the 18 classes.  The better
of the two is printed; it should stay under 0.20 (chance is about 0.05).
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MASKS = {"incorrect_mask": 1, "normal": 2}


def features(path: Path) -> dict[str, list[float]]:
    """The three kinds of feature of one picture."""
    with Image.open(path) as file:
        exif, picture = len(file.getexif()), file.convert("RGB")
    middle = picture.crop((80, 144, 304, 368))
    counts = [
        np.asarray(part.histogram()).reshape(48, 16).sum(1) / (part.width * part.height)
        for part in (picture, middle)
    ]
    return {
        "colour histogram": np.concatenate(counts).tolist(),
        "8x8 thumbnail": (
            np.asarray(picture.resize((8, 8), Image.Resampling.BOX)).ravel() / 255
        ).tolist(),
        "file size and EXIF": [float(path.stat().st_size), float(exif)],
    }


def read(root: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """The pictures and classes for training and for evaluation."""
    train, evaluation = [], []
    with (root / "train" / "train.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            age = int(row["age"])
            person = 3 * (row["gender"] == "female") + (age >= 30) + (age >= 60)
            for path in sorted((root / "train" / "images" / row["path"]).iterdir()):
                train.append((path, 6 * MASKS.get(path.stem, 0) + person))
    with (root / "eval" / "answers.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            evaluation.append((root / "eval" / "images" / row["ImageID"], int(row["ans"])))
    return train, evaluation


def main(argv: list[str] | None = None) -> int:
    """Print the three scores."""
    parser = argparse.ArgumentParser(
        description="Score shortcut classifiers on the sample data.", allow_abbrev=False
    )
    parser.add_argument("root", type=Path, help="folder that sample_data.py wrote")
    train, evaluation = read(parser.parse_args(argv).root)
    train_x, eval_x = ([features(path) for path, _ in part] for part in (train, evaluation))
    train_y, eval_y = ([answer for _, answer in part] for part in (train, evaluation))
    for kind in train_x[0]:
        fit_on, score_on = ([row[kind] for row in part] for part in (train_x, eval_x))
        models = {
            "logistic regression": make_pipeline(
                StandardScaler(), LogisticRegression(max_iter=2000, C=0.1)
            ),
            "random forest": RandomForestClassifier(300, random_state=0),
        }
        scores = {
            name: f1_score(
                eval_y,
                model.fit(fit_on, train_y).predict(score_on),
                labels=range(18),
                average="macro",
                zero_division=0,
            )
            for name, model in models.items()
        }
        best = max(scores, key=lambda name: scores[name])
        print(f"{kind}: macro F1 {scores[best]:.3f} ({best})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
