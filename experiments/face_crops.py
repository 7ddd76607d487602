#!/usr/bin/env python3
"""The faces alone, for other libraries: python -m experiments.face_crops DATA OUT

Writes the square that facecrop cuts out (the product's own finder, its margin) of every photograph
of DATA/train and DATA/eval in the photograph's pixels, under the same names: OUT is a root as DATA.
The tables are copied; answers.csv is a link, so that scores on both are on one record (answers.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from augmentation import face_square
from benchmarks import harness
from data import faces, images, tables
from runtime.cli import progress

QUALITY = 95  # of JPEG


def cut_face(photo: Image.Image) -> Image.Image:
    """The face's square in the photograph's pixels."""
    left, top, right, bottom = face_square(photo, faces.find_face(photo))
    side = round(right - left)
    return photo.resize((side, side), Image.Resampling.BILINEAR, (left, top, right, bottom))


def main(argv: list[str] | None = None) -> int:
    parser = harness.make_parser(__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="a root with train/ and eval/")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    args = parser.parse_args(argv)
    paths = tables.read_train(args.data / "train")["path"].tolist()
    paths += tables.read_eval(str(args.data / "eval"))[1]
    for path in progress(paths, "cutting"):
        target = args.out / Path(path).relative_to(args.data)
        target.parent.mkdir(parents=True, exist_ok=True)
        cut_face(images.read_image(path)).save(target, quality=QUALITY, subsampling=0)
    for name in ("train/train.csv", "eval/info.csv"):
        shutil.copy(args.data / name, args.out / name)
    (args.out / "eval" / "answers.csv").symlink_to((args.data / "eval" / "answers.csv").resolve())
    print(f"{args.out}: {len(paths)} faces")
    return 0


if __name__ == "__main__":
    harness.run_main(main, __file__)
