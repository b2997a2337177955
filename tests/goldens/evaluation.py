"""The reference for decoding and pre-processing: Pillow for the file, timm's transform for the pixels.

Order: EXIF orientation, conversion to 8-bit RGB, resize of the shorter side, centre crop. The result is
the uint8 crop before it is scaled to [0, 1] and normalised.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode

CROP_PCT = 0.875

# Pillow warns that the transparency of such files should be kept; the reference drops it on purpose.
warnings.filterwarnings("ignore", message="Palette images with Transparency expressed in bytes")


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB: alpha dropped, not blended; 16-bit samples cut to their high byte."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip every sample above 255 to white.
        samples = np.asarray(image).astype(np.int64)
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def load_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


@dataclass(frozen=True)
class Transform:
    """One evaluation transform; `source` is the size an image is reduced to before it is enlarged."""

    name: str
    source: int | None
    resize: int
    crop: int

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.source is not None:
            # An image of a data set of small images, enlarged to the network's input size.
            for step in (
                transforms.Resize(self.source, InterpolationMode.BICUBIC),
                transforms.CenterCrop(self.source),
                transforms.Resize(self.resize, InterpolationMode.BICUBIC),
                transforms.CenterCrop(self.crop),
            ):
                image = step(image)
            return image
        steps = create_transform(
            (3, self.crop, self.crop),
            is_training=False,
            interpolation="bicubic",
            crop_pct=CROP_PCT,
        ).transforms
        resize, crop = steps[:2]
        # If another version of timm builds other steps, fail instead of recording their result.
        assert isinstance(resize, transforms.Resize) and isinstance(crop, transforms.CenterCrop), steps
        assert resize.interpolation is InterpolationMode.BICUBIC and resize.antialias, resize
        assert resize.size == self.resize, resize
        return crop(resize(image))


IMAGENET = Transform("imagenet", source=None, resize=256, crop=224)
SMALL = Transform("small", source=None, resize=73, crop=64)
CIFAR = Transform("cifar", source=32, resize=64, crop=64)
