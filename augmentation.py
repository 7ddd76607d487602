"""Photograph -> what the network sees: crops and augmentation, in three forms for each
--transform-type.

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
# the face's square is brought to this much more than the network's size, for the crop to move in
FACE_CROP_SCALE = 8 / 7

BLANK_SQUARE = Image.new(
    "L", (WIDE_CROP_PIXELS, WIDE_CROP_PIXELS)
)  # stands for the square that windows are drawn in

# a photograph, and where its face is if a file told
Form = Callable[[Image.Image, Box | None], Image.Image]


@dataclass(frozen=True)
class Forms:
    """The forms of one transform type. `valid` is deterministic; `view` is what inference uses,
    random for some.
    """

    train: Form
    valid: Form
    view: Form


@dataclass(frozen=True)
class View:
    """One way to look at each photograph. Its random draws derive from `key`, the epoch and the
    photograph's name.
    """

    form: Form
    key: tuple[Hashable, ...] = ()


def fit_frame(photo: Image.Image) -> Image.Image:
    """Scale a photograph of another size to cover the 384x512 frame, keeping its shape; (384, 512)
    stays as it is.
    """
    if photo.size == PHOTO_SIZE:
        return photo
    width, height = PHOTO_SIZE
    scale = max(width / photo.width, height / photo.height)
    size = (max(width, round(photo.width * scale)), max(height, round(photo.height * scale)))
    return photo.resize(size, Image.Resampling.BILINEAR)


def stretch_to_frame(photo: Image.Image) -> Image.Image:
    """Bring a photograph of another size to exactly (384, 512), whatever its shape."""
    return (
        photo if photo.size == PHOTO_SIZE else photo.resize(PHOTO_SIZE, Image.Resampling.BILINEAR)
    )


class Crop:
    """The middle `side` pixels of the frame, or a random window of its middle 384, at the network's
    size; then `change`.

    The draws and the pixels are those of torchvision's CenterCrop, RandomResizedCrop and Resize one
    after the other.
    """

    def __init__(
        self,
        size: int,
        side: int | None = None,
        change: v2.Transform | None = None,
        frame: Callable[[Image.Image], Image.Image] = fit_frame,
    ) -> None:
        self.size, self.side, self.change, self.frame = size, side, change, frame
        self.random = v2.RandomResizedCrop(size)

    def window(self) -> tuple[int, int, int, int]:
        """Draw the part of the middle square to cut out: left, top, width, height in its pixels."""
        if self.side is not None:
            start = (WIDE_CROP_PIXELS - self.side) // 2
            return start, start, self.side, self.side
        made = self.random.make_params([BLANK_SQUARE])
        return made["left"], made["top"], made["width"], made["height"]

    def __call__(self, photo: Image.Image, box: Box | None = None) -> Image.Image:
        photo = self.frame(photo)
        return self.cut(photo, *middle_corner(photo))

    def square(self, photo: Image.Image) -> Image.Image:
        """The middle square of the frame, of which `cut` makes what a call on the whole photograph
        does.
        """
        photo = self.frame(photo)
        left, top = middle_corner(photo)
        return photo.crop((left, top, left + WIDE_CROP_PIXELS, top + WIDE_CROP_PIXELS))

    def cut(self, photo: Image.Image, left: int = 0, top: int = 0) -> Image.Image:
        """A window of the square that begins at left, top of a photograph."""
        x, y, width, height = self.window()
        part = (left + x, top + y, left + x + width, top + y + height)
        photo = photo.crop(part).resize((self.size, self.size), Image.Resampling.BILINEAR)
        return photo if self.change is None else self.change(photo)


def middle_corner(photo: Image.Image) -> tuple[int, int]:
    """Left and top of the middle square of WIDE_CROP_PIXELS pixels."""
    return round((photo.width - WIDE_CROP_PIXELS) / 2), round((photo.height - WIDE_CROP_PIXELS) / 2)


def base(size: int) -> Forms:
    """Resize(512, 384); a random crop of the middle 384 to train on, the middle 224 to judge by."""
    narrow = Crop(size, NARROW_CROP_PIXELS, frame=stretch_to_frame)
    return Forms(Crop(size, frame=stretch_to_frame), narrow, narrow)


def random(size: int) -> Forms:
    """A random crop of the middle 384 and RandAugment(2, 9) to train on, the middle 224 to judge
    by.
    """
    narrow = Crop(size, NARROW_CROP_PIXELS)
    return Forms(Crop(size, change=v2.RandAugment(2, 9)), narrow, narrow)


def tta(size: int) -> Forms:
    """Trains as `random`; validates on the middle 384; every test view is another random crop of
    it.
    """
    crop = Crop(size)
    return Forms(random(size).train, Crop(size, WIDE_CROP_PIXELS), crop)


def face_square(photo: Image.Image, box: Box | None) -> tuple[float, float, float, float]:
    """The square around a face with its margin, inside the photograph: left, top, right, bottom in
    pixels.

    Without a face, or with a box that lies outside or is no box, the middle square of 3/5 of the
    photograph's width (the middle 224 or so of 384 pixels).
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
    """Cut the face's square out, told or found, bring it to a size, and go on with one crop."""

    def __init__(self, size: int, crop: v2.Transform) -> None:
        self.size = (round(size * FACE_CROP_SCALE),) * 2
        self.crop = crop

    def __call__(self, photo: Image.Image, box: Box | None = None) -> Image.Image:
        square = face_square(photo, box or find_face(photo))
        seen: Image.Image = self.crop(
            photo.resize(self.size, Image.Resampling.BILINEAR, square, reducing_gap=3.0)
        )
        return seen


def facecrop(size: int) -> Forms:
    """The face's square with a margin; a random crop of it to train on, its middle to judge by."""
    middle_of_face = FaceSteps(size, v2.CenterCrop(size))
    return Forms(FaceSteps(size, v2.RandomCrop(size)), middle_of_face, middle_of_face)


def facerandom(size: int) -> Forms:
    """A random part of the face's square, mirrored half of the time, with RandAugment(2, 9) to
    train on; its middle to judge by; every test view another crop of it, mirrored half of the time.
    """
    part = v2.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.85, 1.18))
    train = v2.Compose([part, v2.RandomHorizontalFlip(), v2.RandAugment(2, 9)])
    view = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    return Forms(
        FaceSteps(size, train), FaceSteps(size, v2.CenterCrop(size)), FaceSteps(size, view)
    )


def forms(name: str, size: int) -> Forms:
    """The forms of a registered transform type at the network's size."""
    made: Forms = registries.import_target(registries.TRANSFORMS[name].target)(size)
    return made


def pixels(photo: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.array(photo, dtype=np.uint8)


def plan_views(
    members: list[tuple[str, str, int]], views: int, auto: bool
) -> tuple[list[View], list[list[int]]]:
    """The distinct views that an ensemble needs of each photograph, and which of them each member
    reads.

    members: (name, transform type, image size) of each; views: test-time passes per member; auto:
    one deterministic pass in the form that each member's validation used. A member's random views
    are its own (they hang on its name); deterministic ones are shared by all members that would see
    the same. Returns (views, plan) with plan[m][v] an index into the views.
    """
    found: dict[tuple[Hashable, ...], tuple[int, View]] = {}
    plan: list[list[int]] = []
    for name, transform, size in members:
        made = forms(transform, size)
        row = []
        for number in range(views):
            if registries.TRANSFORMS[transform].random_view and not (auto and views == 1):
                view = View(made.view, ("view", name, number))
            else:
                view = View(made.valid if auto else made.view)
            identity = (transform, size, auto, *view.key)
            row.append(found.setdefault(identity, (len(found), view))[0])
        plan.append(row)
    return [view for _, view in found.values()], plan
