"""Augmentation of a batch on tensors: affine warp and enlargement, colour, cutout.

Every random number of a batch is drawn at once from one generator, on the CPU whatever the device:
a seed then gives the same pictures everywhere, and no step loops over samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data import INPUT_SIZE, MEAN, STD


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges are uniform; a probability is per image."""

    zoom: tuple[float, float] = (0.75, 1.1)
    """The share of the image's side that the output shows: below 1 zooms in."""
    log_aspect: float = 0.15
    """Width over height changes by ``exp(±2·log_aspect)`` at most."""
    translate: float = 0.2
    """Shift as a share of half the image's side."""
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    cutout_size: int = 16
    """Side of the erased square, in pixels of the enlarged image."""
    cutout: float = 0.5


def augment(
    pixels: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> torch.Tensor:
    """Network input from ``pixels``, uint8 ``[N, 3, H, W]``: float32, normalised,
    ``[N, 3, INPUT_SIZE, INPUT_SIZE]`` in channels-last order.
    """
    images = pixels.float() / 255
    images = random_affine(images, config, generator)
    images = jitter_colour(images, config, generator)
    images = normalise(images)
    images = cutout(images, config, generator)
    return images.contiguous(memory_format=torch.channels_last)


def random_affine(
    images: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> torch.Tensor:
    """Zooms, stretches, shifts and mirrors, and enlarges to the input size in the same sampling.

    One resampling from the original pixels keeps more detail than enlarging first and warping
    afterwards. It is bilinear where the evaluation is bicubic: that is what the shipped weights
    were trained with, several times cheaper on a CPU, and the slight softness is one more
    distortion for the network to disregard.
    """
    count = len(images)
    zoom = _uniform(count, *config.zoom, generator)
    stretch = _uniform(count, -config.log_aspect, config.log_aspect, generator).exp()
    mirror = torch.where(torch.rand(count, generator=generator) < config.flip, -1.0, 1.0)

    # Maps output coordinates to input coordinates, both in [-1, 1].
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = zoom * stretch * mirror
    matrix[:, 1, 1] = zoom / stretch
    matrix[:, :, 2] = _uniform((count, 2), -config.translate, config.translate, generator)

    grid = F.affine_grid(
        matrix.to(images.device), [count, 3, INPUT_SIZE, INPUT_SIZE], align_corners=False
    )
    # Reflection rather than black borders, which would tell the network how far it was shifted.
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def jitter_colour(
    images: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> torch.Tensor:
    """Scales brightness, the distance from the mean (contrast), and from grey (saturation)."""

    def factor(spread: float) -> torch.Tensor:
        drawn = _uniform((len(images), 1, 1, 1), 1 - spread, 1 + spread, generator)
        return drawn.to(images.device)

    images = images * factor(config.brightness)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, factor(config.contrast))
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, factor(config.saturation))
    return images.clamp(0, 1)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Subtracts ``MEAN`` and divides by ``STD``, for values in [0, 1]."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std


def cutout(images: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Erases one square of some images: to zero, which after normalisation is the mean colour.

    The square always lies inside the image, so its area is the same wherever it falls.
    """
    count, _, height, width = images.shape
    size = config.cutout_size
    chosen = torch.rand(count, 1, generator=generator) < config.cutout
    top = torch.randint(0, height - size + 1, (count, 1), generator=generator)
    left = torch.randint(0, width - size + 1, (count, 1), generator=generator)
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = chosen & (rows >= top) & (rows < top + size)
    in_columns = (columns >= left) & (columns < left + size)
    square = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(square.to(images.device), 0.0)


def _uniform(
    shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator
) -> torch.Tensor:
    return torch.empty(shape).uniform_(low, high, generator=generator)
