"""Grad-CAM's heat lies where the class's evidence is; a mosaic shows what a network sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import augmentation
import dataset
import model
import registries
from inference import pictures
from tests.helpers import support


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Class 3 speaks up for red pixels, class 4 for blue ones; nothing else counts."""
    monkeypatch.setitem(registries.BACKBONES, "tiny", support.TINY)
    built: Any = model.build("VanillaEfficientNet", "main", "tiny", 64)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
        stem, fc, linear = built.efficientnet.stem, built.efficientnet.fc, built.linear
        stem.weight[0, 0] = stem.weight[1, 2] = 1.0
        fc.weight[0, 0] = fc.weight[1, 1] = 1.0
        built.batchnorm.weight.fill_(1.0)
        linear.weight[3, 0] = linear.weight[4, 1] = 1.0
    return built


def spots() -> Image.Image:
    """Black, with a red spot at the top left and a blue one at the bottom right."""
    photo = Image.new("RGB", (384, 512))
    photo.paste((255, 0, 0), (80, 150, 140, 210))
    photo.paste((0, 0, 255), (240, 310, 300, 370))
    return photo


def test_heat_lies_where_the_class_is_seen(network: Any) -> None:
    form = augmentation.forms("tta", 64).valid
    face = (70, 140, 150, 220)  # around the red spot
    red, blue = pictures.explain(network, form, [(spots(), face)] * 2, "main", [3, 4])
    assert red.face_share > 0.9
    assert blue.face_share < 0.05
    assert red.picture.size == (64, 64)
    heat = np.asarray(red.picture, int) - np.asarray(blue.picture, int)
    assert heat[:32, :32].sum() > 0 > heat[32:, 32:].sum()


def test_heat_in_the_margin_of_a_cropped_face_is_outside_it(network: Any) -> None:
    form = augmentation.forms("facecrop", 64).valid
    photo = Image.new("RGB", (384, 512))
    photo.paste((255, 0, 0), (130, 150, 142, 210))  # across the left edge
    (edge,) = pictures.explain(network, form, [(photo, (140, 150, 200, 210))], "main", [3])
    assert 0.1 < edge.face_share < 0.9


def test_heat_is_scaled_to_one_and_gradients_stay_clear(network: Any) -> None:
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode(False):
        maps = pictures.grad_cam(network, images, "mask", [0, 1, 2])
    assert maps.shape == (3, 64, 64)
    assert float(maps.min()) >= 0
    assert float(maps.max()) <= 1
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_mosaic_shows_each_image_as_the_network_gets_it() -> None:
    view = augmentation.View(augmentation.forms("tta", 64).valid)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)] * 3
    photos = [Image.new("RGB", (384, 512), colour) for colour in colours]
    image_set = dataset.ImageDataset([str(k) for k in range(9)], photos, [view])
    sheet = pictures.mosaic(image_set, [(0, k, 0) for k in range(8)])
    side = pictures.MOSAIC_TILE_PIXELS
    assert sheet.size == (6 * side, 2 * side)
    centres = [sheet.getpixel((k % 6 * side + 9, k // 6 * side + 9)) for k in range(8)]
    assert centres == colours[:8]
    assert sheet.getpixel((5 * side, 2 * side - 1)) == (255, 255, 255)
