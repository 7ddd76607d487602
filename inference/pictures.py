"""Pictures that need a network or its data: what it sees in training, and where it looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn

import augmentation
import dataset
import engine
import model
from data.faces import Box, find_face

HEAT_OPACITY = 0.45
MOSAIC_COLUMNS, MOSAIC_TILE_PIXELS = 6, 96


class HeatMap(NamedTuple):
    """Where a network looked on one image."""

    picture: Image.Image  # what the network saw, the heat laid over it
    face_share: float  # of the heat, within the face's box; 0 to 1, NaN without any heat


def grad_cam(network: nn.Module, images: Tensor, task: str, classes: Sequence[int]) -> Tensor:
    """Heat maps [batch, height, width] from 0 to 1 of what speaks for a class in each image.

    images: normalised [batch, 3, height, width] on the network's device. The weights of the
    backbone's last feature maps are the means of their gradients (Grad-CAM, Selvaraju et al. 2017,
    arXiv:1610.02391).
    """
    feature_maps: list[Tensor] = []

    def keep_last(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1:
            feature_maps[:] = [output]

    network.eval()
    hooks = [m.register_forward_hook(keep_last) for m in model.trunk_of(network).modules()]
    try:
        with torch.enable_grad():
            outputs = network(images.detach().requires_grad_())
            probabilities = model.probabilities(outputs, task)
            chosen = probabilities[range(len(images)), list(classes)]
            (gradient,) = torch.autograd.grad(chosen.clamp_min(1e-12).log().sum(), feature_maps[0])
    finally:
        for hook in hooks:
            hook.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * feature_maps[0]).sum(1, keepdim=True).relu().detach().float()
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


def explain(
    network: nn.Module,
    form: augmentation.Form,
    photos: Sequence[tuple[Image.Image, Box | None]],
    task: str,
    classes: Sequence[int],
) -> list[HeatMap]:
    """A heat map for each photograph (with its face's box, where a file has it) and class; form:
    the crop of the network's validation.
    """
    views = [form(photo, box) for photo, box in photos]
    device = next(network.parameters()).device
    compute = engine.Compute(device, "fp32", 0, len(views))
    pixels = torch.from_numpy(np.stack([augmentation.pixels(view) for view in views]))
    maps = grad_cam(network, engine.to_network(compute, pixels), task, classes).cpu().numpy()
    heat_maps = []
    for view, heat, (photo, box) in zip(views, maps, photos, strict=True):
        box = box or find_face(photo)
        # white within the face itself: a crop of its square with the margin would hold all heat
        left, top, right, bottom = box or augmentation.face_square(photo, None)
        mask = Image.new("RGB", photo.size)
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill="white")
        face = np.asarray(form(mask, box), np.float32)[..., 0] / 255
        share = float((heat * face).sum() / heat.sum()) if heat.any() else np.nan
        shades = Image.fromarray((255 * heat).astype(np.uint8))
        colours = ImageOps.colorize(shades, "black", "yellow", "crimson")
        heat_maps.append(HeatMap(Image.blend(view, colours, HEAT_OPACITY), share))
    return heat_maps


def mosaic(photos: dataset.ImageDataset, keys: Sequence[tuple[int, int, int]]) -> Image.Image:
    """What a network is shown of some images, as tiles; keys: (epoch, index, copy) of each."""
    side, columns = MOSAIC_TILE_PIXELS, min(MOSAIC_COLUMNS, len(keys))
    sheet = Image.new("RGB", (columns * side, -(-len(keys) // columns) * side), "white")
    for number, key in enumerate(keys):
        tile = Image.fromarray(photos[key][1][0].numpy()).resize((side, side))
        sheet.paste(tile, (number % columns * side, number // columns * side))
    return sheet
