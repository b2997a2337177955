"""Images as callers have them: paths, bytes, open files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TypeAlias, cast

#: One image file: its path, its contents, or an open binary file.
Image: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
#: One image or several.
Images: TypeAlias = Image | Iterable[Image]


def load(image: Image) -> bytes:
    """The bytes of an image file. Raises `OSError` if it cannot be read, and `TypeError` for anything else.

    The whole file is read: a request that is repeated after an overload needs it again.
    """
    if isinstance(image, (str, os.PathLike)):
        return Path(image).read_bytes()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    data = image.read() if hasattr(image, "read") else None
    if not isinstance(data, bytes):
        raise TypeError(f"an image is a path, bytes or a file opened with 'rb', not {type(image).__name__}")
    return data


def load_all(images: Images) -> list[bytes]:
    """The bytes of one image or of several. Raises `ValueError` if there are none."""
    # A file is iterable, too: it has lines.
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(images, "read"):
        return [load(cast(Image, images))]
    if not isinstance(images, Iterable):
        raise TypeError(f"images are paths, bytes or files, one or several, not {type(images).__name__}")
    files = [load(image) for image in images]
    if not files:
        raise ValueError("there are no images to send")
    return files
