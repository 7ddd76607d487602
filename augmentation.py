"""Photograph -> what the network sees: crops and augmentation, in three forms for each --transform-type.

Everything works on upright RGB Pillow images in the photograph's pixels (384x512); only the last step goes to
the network's size, so the field of view is the same at every --image-size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torchvision.transforms import v2

import config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

WIDE = 384  # side of the square that holds the person
NARROW = 224  # side of the square in the middle that inference looks at

Form = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Forms:
    """The forms of one transform type. `valid` is deterministic; `view` is what inference uses, random for some."""

    train: Form
    valid: Form
    view: Form


@dataclass(frozen=True)
class View:
    """One way to look at each photograph. Its random draws derive from `key`, the epoch and the photograph's name."""

    form: Form
    key: tuple[Hashable, ...] = ()


def fit_frame(photo: Image.Image) -> Image.Image:
    """Scale a photograph of another size to cover the 384x512 frame, keeping its shape; (384, 512) stays as it is."""
    if photo.size == config.PHOTO_SIZE:
        return photo
    width, height = config.PHOTO_SIZE
    scale = max(width / photo.width, height / photo.height)
    size = (max(width, round(photo.width * scale)), max(height, round(photo.height * scale)))
    return photo.resize(size, Image.Resampling.BILINEAR)


def middle(side: int, size: int) -> list[v2.Transform]:
    """The middle square of `side` pixels, brought to the network's size."""
    return [v2.CenterCrop(side)] + ([v2.Resize((size, size))] if side != size else [])


class Steps:
    """torchvision transforms in a row, over a photograph brought to the frame first."""

    def __init__(self, *steps: v2.Transform, frame: Form = fit_frame) -> None:
        self.frame = frame
        self.steps = steps

    def __call__(self, photo: Image.Image) -> Image.Image:
        photo = self.frame(photo)
        for step in self.steps:
            photo = step(photo)
        return photo


def base(size: int) -> Forms:
    """Resize(512, 384); a random crop of the middle 384 to train on, the middle 224 to judge by."""
    frame = v2.Resize((config.PHOTO_SIZE[1], config.PHOTO_SIZE[0]))
    narrow = Steps(*middle(NARROW, size), frame=frame)
    return Forms(Steps(v2.CenterCrop(WIDE), v2.RandomResizedCrop(size), frame=frame), narrow, narrow)


def random(size: int) -> Forms:
    """A random crop of the middle 384 and RandAugment(2, 9) to train on, the middle 224 to judge by."""
    narrow = Steps(*middle(NARROW, size))
    return Forms(Steps(v2.CenterCrop(WIDE), v2.RandomResizedCrop(size), v2.RandAugment(2, 9)), narrow, narrow)


def tta(size: int) -> Forms:
    """Trains as `random`; validates on the middle 384; every test view is another random crop of it."""
    crop = Steps(v2.CenterCrop(WIDE), v2.RandomResizedCrop(size))
    return Forms(random(size).train, Steps(*middle(WIDE, size)), crop)


def forms(name: str, size: int) -> Forms:
    """The forms of a registered transform type at the network's size."""
    made: Forms = config.resolve(config.TRANSFORMS[name].target)(size)
    return made


def pixels(photo: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.array(photo, dtype=np.uint8)


def view_plan(members: list[tuple[str, str, int]], views: int, auto: bool) -> tuple[list[View], list[list[int]]]:
    """The distinct views that an ensemble needs of each photograph, and which of them each member reads.

    members: (name, transform type, image size) of each; views: test-time passes per member; auto: one deterministic
    pass in the form that each member's validation used. A member's random views are its own (they hang on its name);
    deterministic ones are shared by all members that would see the same. Returns (views, plan) with plan[m][v] an
    index into the views.
    """
    found: dict[tuple[Hashable, ...], View] = {}
    plan: list[list[int]] = []
    for name, transform, size in members:
        made = forms(transform, size)
        row = []
        for number in range(views):
            if config.TRANSFORMS[transform].random_view and not (auto and views == 1):
                view = View(made.view, ("view", name, number))
            else:
                view = View(made.valid if auto else made.view)
            identity = (transform, size, auto, *view.key)
            found.setdefault(identity, view)
            row.append(list(found).index(identity))
        plan.append(row)
    return list(found.values()), plan
