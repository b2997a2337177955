"""The data set: where the images are, what the classes are, how pixels become tensors.

A split is a folder tree ``<split>/<class>/<name>.jpg`` or a tar archive of one. Both are read
into memory (CIFAR-10 is a few tens of megabytes as JPEG) and ordered by class and name, so that
the same data gives the same run whichever form it came in.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision import transforms
from torchvision.transforms import InterpolationMode

# The order is the order of the network's outputs and of labels.txt.
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

# The images' own size, and the size the network sees them at.
SOURCE_SIZE = 32
INPUT_SIZE = 64

# ImageNet's statistics, not CIFAR-10's: they are timm's default for this network, and keeping them
# lets one pre-processing serve this model and the ImageNet ones.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

SPLITS = ("train", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")


class DataError(Exception):
    """The data set is missing, incomplete or unreadable. The message is meant for the user."""


@dataclass(frozen=True)
class Sample:
    """One encoded image."""

    name: str
    label: int
    encoded: bytes

    def decode(self) -> Image.Image:
        """The image as RGB.

        Raises:
            DataError: the bytes are not a readable image.
        """
        try:
            return Image.open(io.BytesIO(self.encoded)).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{self.name} is not a readable image: {error}") from error


def load_split(location: Path, split: str) -> list[Sample]:
    """Reads one split from ``location``, which may be

    * a tar archive,
    * a folder of class folders,
    * a folder that holds ``<split>/`` or exactly one archive with the split's name in its own.

    Raises:
        DataError: nothing usable is there, a class is missing, or an unknown class is present.
    """
    if not location.exists():
        raise DataError(f"{location} does not exist")
    place = _locate(location, split)
    files = _archive_files(place, split) if place.is_file() else _folder_files(place)

    found: list[tuple[str, str, bytes]] = sorted(files, key=lambda file: file[:2])
    present = {class_name for class_name, _, _ in found}
    if not present:
        raise DataError(f"{place} holds no images; expected {split}/<class>/<name>.jpg")
    if unknown := sorted(present.difference(CLASSES)):
        raise DataError(f"{place} holds classes this recipe does not know: {', '.join(unknown)}")
    if missing := [name for name in CLASSES if name not in present]:
        raise DataError(f"{place} has no images of: {', '.join(missing)}")
    return [
        Sample(f"{class_name}/{name}", CLASSES.index(class_name), encoded)
        for class_name, name, encoded in found
    ]


def source_transform(size: int = SOURCE_SIZE) -> transforms.Compose:
    """Brings a picture down to the size of CIFAR-10's own: shorter side to ``size``, centre crop.

    It leaves CIFAR-10's images as they are. Other photographs need it because the network has
    only ever seen enlarged 32-pixel images, and does better on pictures with the same softness.
    """
    return transforms.Compose(
        [
            transforms.Resize(size, interpolation=InterpolationMode.BICUBIC, antialias=True),
            transforms.CenterCrop(size),
        ]
    )


def decode_all(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, uint8 ``[N, 3, SOURCE_SIZE, SOURCE_SIZE]``, and labels, int64 ``[N]``."""
    to_source = source_transform()
    pixels = np.empty((len(samples), SOURCE_SIZE, SOURCE_SIZE, 3), dtype=np.uint8)
    for row, sample in zip(pixels, samples, strict=True):
        row[:] = np.asarray(to_source(sample.decode()))
    labels = torch.tensor([sample.label for sample in samples])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)


def _locate(location: Path, split: str) -> Path:
    """The archive, or the folder of class folders, that ``location`` stands for."""
    if location.is_file():
        if not _is_archive(location):
            raise DataError(f"{location} is neither a folder nor a tar archive")
        return location
    if (location / split).is_dir():
        return location / split
    if any((location / name).is_dir() for name in CLASSES):
        return location
    archives = sorted(
        path for path in location.iterdir() if _is_archive(path) and split in path.name.lower()
    )
    if not archives:
        raise DataError(
            f"{location} holds no {split} images: expected a folder {split}/ with one folder a "
            f"class, or a tar archive with '{split}' in its name"
        )
    if len(archives) > 1:
        names = ", ".join(path.name for path in archives)
        raise DataError(f"{location} holds more than one archive of {split} images: {names}")
    return archives[0]


def _folder_files(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in folder.glob("*/*"):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path.parent.name, path.name, path.read_bytes()


def _archive_files(archive: Path, split: str) -> Iterator[tuple[str, str, bytes]]:
    """Images of ``split``. Nothing is extracted to disk, so member paths need no vetting."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                *above, class_name, _ = ["", *path.parts]
                # An archive of both splits is fine: what lies under the other one is passed over.
                if above and above[-1] in SPLITS and above[-1] != split:
                    continue
                content = tar.extractfile(member)
                assert content is not None, "a regular file always has content"
                yield class_name, path.name, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive} cannot be read as a tar archive: {error}") from error
