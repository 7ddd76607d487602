"""The face finders that detectors.py compares: the project's own, those of tools/find_faces.py, and
those of other packages.

These are packages that carry their weights, in versions that do; an entry of DETECTORS adds one.
What a finder imports, it imports when it is made. A photograph is known to show a face, so
thresholds are lower than the packages' own where that brought more faces than mistakes (tried on
the people on whom detectors.py calibrates, not on those it measures).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import faces
from tools import find_faces
from tools.find_faces import Detect, Detector

SMALLEST = 60  # pixels: least width of a face, where a finder asks; portraits have 125 and more
MEDIAPIPE = find_faces.DETECTORS["mediapipe"]


def pixels() -> Detect:
    return lambda photo: [(1.0, box) for box in [faces.find_face(photo)] if box]


def mtcnn() -> Detect:
    from facenet_pytorch import MTCNN

    thresholds = [0.4, 0.3, 0.1]  # by default 0.6, 0.7, 0.7
    net = MTCNN(min_face_size=SMALLEST, thresholds=thresholds, device="cpu")

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        boxes, scores = net.detect(photo)
        return [] if boxes is None else list(zip(scores, boxes, strict=True))

    return detect


def mediapipe_mesh() -> Detect:
    from mediapipe.python.solutions.face_mesh import FaceMesh

    net = FaceMesh(static_image_mode=True, refine_landmarks=True)

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        faces = []
        for face in net.process(np.asarray(photo)).multi_face_landmarks or []:
            points = np.array([(point.x, point.y) for point in face.landmark]) * photo.size
            faces.append((1.0, [*points.min(0), *points.max(0)]))
        return faces

    return detect


def dlib_hog() -> Detect:
    import dlib

    net = dlib.get_frontal_face_detector()

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        boxes, scores, _ = net.run(np.asarray(photo), 0, -1.0)  # by default 0.0
        corners = [(b.left(), b.top(), b.right() + 1, b.bottom() + 1) for b in boxes]
        return list(zip(scores, corners, strict=True))

    return detect


def haar() -> Detect:
    import cv2
    from cv2 import data

    cv2.setNumThreads(1)
    net = cv2.CascadeClassifier(str(Path(data.haarcascades) / "haarcascade_frontalface_alt2.xml"))

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        grey, least = np.asarray(photo.convert("L")), (SMALLEST, SMALLEST)
        boxes, _, scores = net.detectMultiScale3(
            grey, 1.1, 3, minSize=least, outputRejectLevels=True
        )
        corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
        return list(zip(np.ravel(scores), corners, strict=True))

    return detect


DETECTORS: dict[str, Detector] = {
    "pixels": Detector(pixels, "nothing"),
    "mtcnn": Detector(
        mtcnn, "facenet-pytorch==2.6.0 (--no-deps, as it pins an old torch), and requests"
    ),
    **find_faces.DETECTORS,
    "mediapipe-full": Detector(lambda: find_faces.mediapipe(1), MEDIAPIPE.package),
    "mediapipe-mesh": Detector(mediapipe_mesh, MEDIAPIPE.package),
    "dlib": Detector(dlib_hog, "dlib-bin==20.0.1.post1"),
    "haar": Detector(
        haar, "opencv-contrib-python-headless==4.12.0.88 (the newest has no cascades)"
    ),
}
