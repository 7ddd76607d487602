"""Photograph -> what the network sees: each --transform-type is three forms, of crops and draws.

Everything works on upright RGB Pillow images in the photograph's pixels (384x512); only the last
step goes to the network's size, so the field of view is the same at every --image-size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torchvision.transforms import v2

import registries
from data.faces import Box, find_face
from labels import PHOTO_SIZE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

WIDE_CROP_PIXELS = 384  # side of the square that holds the person
NARROW_CROP_PIXELS = 224  # side of the square in the middle that inference looks at

FACE_MARGIN = 0.15  # of the face's box, added on each side before it is made square
FACE_CROP_SCALE = 8 / 7  # the face's square in network sizes, for the crop to move in

# a photograph, and where its face is if that is known
Form = Callable[[Image.Image, Box | None], Image.Image]


@dataclass(frozen=True)
class Forms:
    """The forms of one transform type. `valid` is deterministic; `view`, of inference, need not."""

    train: Form
    valid: Form
    view: Form


@dataclass(frozen=True)
class View:
    """A form whose draws derive from `key`, the epoch and the photograph's name."""

    form: Form
    key: tuple[Hashable, ...] = ()


def fit_frame(photo: Image.Image) -> Image.Image:
    """Scale a photograph of another size to cover the 384x512 frame, keeping its shape."""
    if photo.size == PHOTO_SIZE:
        return photo
    width, height = PHOTO_SIZE
    scale = max(width / photo.width, height / photo.height)
    size = (max(width, round(photo.width * scale)), max(height, round(photo.height * scale)))
    return photo.resize(size, Image.Resampling.BILINEAR)


stretch_to_frame = v2.Resize(PHOTO_SIZE[::-1])


class Crop:
    """The middle `side` pixels of the frame, or a random window of its middle 384, at the network's
    size; then `change`.
    """

    def __init__(
        self,
        size: int,
        side: int | None = None,
        change: v2.Transform | None = None,
        frame: Callable[[Image.Image], Image.Image] = fit_frame,
    ) -> None:
        middle = [] if side is None else [v2.CenterCrop(side), v2.Resize((size, size))]
        steps = middle or [v2.RandomResizedCrop(size)]
        self.cut = v2.Compose([*steps, *([change] if change else [])])  # of what `square` returns
        self.frame, self.middle = frame, v2.CenterCrop(WIDE_CROP_PIXELS)

    def square(self, photo: Image.Image) -> Image.Image:
        """The middle square of the frame, 384 pixels wide."""
        return self.middle(self.frame(photo))

    def __call__(self, photo: Image.Image, box: Box | None = None) -> Image.Image:
        return self.cut(self.square(photo))


def base(size: int) -> Forms:
    """Resize(512, 384); trains on a random crop of the middle 384, validates on the middle 224."""
    narrow = Crop(size, NARROW_CROP_PIXELS, frame=stretch_to_frame)
    return Forms(Crop(size, frame=stretch_to_frame), narrow, narrow)


def random(size: int) -> Forms:
    """Trains on a random crop of the middle 384 with RandAugment, validates on the middle 224."""
    narrow = Crop(size, NARROW_CROP_PIXELS)
    return Forms(Crop(size, change=v2.RandAugment(2, 9)), narrow, narrow)


def tta(size: int) -> Forms:
    """Trains as `random`; validates on the middle 384; each test view is a random crop of it."""
    return Forms(random(size).train, Crop(size, WIDE_CROP_PIXELS), Crop(size))


def face_square(photo: Image.Image, box: Box | None) -> tuple[float, float, float, float]:
    """The square around a face with its margin, inside the photograph: left, top, right, bottom in
    pixels. Without a face, or with a box outside: the middle 3/5 of the photograph's width.
    """
    width, height = photo.size
    left, top, right, bottom = box or (0, 0, 0, 0)
    inside = min(right, width) - max(left, 0) >= 1 and min(bottom, height) - max(top, 0) >= 1
    if inside:
        side = (1 + 2 * FACE_MARGIN) * max(right - left, bottom - top)
    else:
        left, top, right, bottom = 0, 0, width, height
        side = 0.6 * min(width, height)
    side = min(max(side, 1.0), width, height)
    x = min(max((left + right - side) / 2, 0.0), width - side)
    y = min(max((top + bottom - side) / 2, 0.0), height - side)
    return x, y, x + side, y + side


class FaceSteps:
    """Cut out the face's square, given or found, bring it to a size, and go on with `crop`."""

    def __init__(self, size: int, crop: v2.Transform) -> None:
        self.size = (round(size * FACE_CROP_SCALE),) * 2
        self.crop = crop

    def __call__(self, photo: Image.Image, box: Box | None = None) -> Image.Image:
        square = face_square(photo, box or find_face(photo))
        face = photo.resize(self.size, Image.Resampling.BILINEAR, square, reducing_gap=3.0)
        return self.crop(face)


def facecrop(size: int) -> Forms:
    """The face's square with a margin: trains on a random crop of it, validates on its middle."""
    middle = FaceSteps(size, v2.CenterCrop(size))
    return Forms(FaceSteps(size, v2.RandomCrop(size)), middle, middle)


def facerandom(size: int) -> Forms:
    """Trains on a random part of the face's square, mirrored half of the time, with RandAugment;
    validates on its middle; each test view is another crop of it, mirrored half of the time.
    """
    part = v2.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.85, 1.18))
    train = v2.Compose([part, v2.RandomHorizontalFlip(), v2.RandAugment(2, 9)])
    view = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    middle = v2.CenterCrop(size)
    return Forms(FaceSteps(size, train), FaceSteps(size, middle), FaceSteps(size, view))


def forms(name: str, size: int) -> Forms:
    """The forms of a registered transform type at the network's size."""
    return registries.import_target(registries.TRANSFORMS[name].target)(size)


def pixels(photo: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.array(photo, dtype=np.uint8)


def plan_views(
    members: list[tuple[str, str, int]], views: int, auto: bool
) -> tuple[list[View], list[list[int]]]:
    """(the distinct views that an ensemble needs of each photograph, plan), where plan[m][v] is the
    index of the view that member m reads in its pass v.

    members: (name, transform type, image size) of each; views: test-time passes per member; auto:
    one deterministic pass in the form of each member's validation. A member's random views are its
    own (keyed by its name); members that would see the same share deterministic ones.
    """
    distinct: dict[tuple[Hashable, ...], tuple[int, View]] = {}
    plan: list[list[int]] = []
    for name, transform, size in members:
        kinds = forms(transform, size)
        random_view = registries.TRANSFORMS[transform].random_view and not (auto and views == 1)
        row = []
        for number in range(views):
            if random_view:
                view = View(kinds.view, ("view", name, number))
            else:
                view = View(kinds.valid if auto else kinds.view)
            identity = (transform, size, *view.key)
            row.append(distinct.setdefault(identity, (len(distinct), view))[0])
        plan.append(row)
    return [view for _, view in distinct.values()], plan
