"""Writes scaled/ and scaled.json: the pixels of JPEG files that Pillow decodes at a fraction of their size.

Only a hash of the pixels is stored, because the tests need only equality. The files are those of images/ and some more
in scaled/: sampling factors that Pillow does not write, made by changing the frame header of a file with as many blocks,
and larger images for the comparison of a network's predictions.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation import to_rgb
from make_images import draw_image, grid
from synthetic import uniform

HERE = Path(__file__).resolve().parent
SCALED = HERE / "scaled"

# Constants of 64-bit FNV-1a.
OFFSET, PRIME, MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def fnv1a(data: bytes) -> str:
    h = OFFSET
    for byte in data:
        h = ((h ^ byte) * PRIME) & MASK
    return f"{h:016x}"


def decode(path: Path, denominator: int) -> Image.Image:
    """The file at 1/`denominator` of its size; `Image.draft` would choose the denominator itself."""
    with Image.open(path) as image:
        size = tuple(-(-side // denominator) for side in image.size)
        image.decoderconfig = (denominator, 0)
        image._size = size
        image.tile = [tile._replace(extents=(0, 0, *size)) for tile in image.tile]
        image.load()
        return image.copy() if image.mode == "L" else to_rgb(image)


def patched(path: Path, factors: tuple[int, int], size: tuple[int, int]) -> None:
    """Gives the first component other sampling factors, and the image a size that has as many blocks."""
    data = bytearray(path.read_bytes())
    at = 2
    while data[at + 1] not in (0xC0, 0xC2):
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    struct.pack_into(">HH", data, at + 5, size[1], size[0])
    data[at + 11] = factors[0] << 4 | factors[1]
    path.write_bytes(data)


def smooth(key: str, rows: int, columns: int, width: int, height: int) -> np.ndarray:
    """A field of random values, interpolated."""
    field = Image.fromarray(uniform(key, rows * columns).reshape(rows, columns).astype(np.float32))
    return np.asarray(field.resize((width, height), Image.Resampling.BICUBIC))


def scene(width: int, height: int, number: int) -> np.ndarray:
    """An image like a photograph: detail at every scale, weaker the finer it is, and objects with sharp edges."""
    x, y = grid(width, height)
    rgb = np.zeros((height, width, 3))
    for octave in range(2, 9):
        cells = 2**octave
        light = smooth(f"scene {number} light {octave}", cells * 3 // 4, cells, width, height)
        rgb += (light[..., None] - 0.5) * 260 * 0.62**octave
        if octave < 6:
            for channel in range(3):
                hue = smooth(f"scene {number} hue {octave} {channel}", cells * 3 // 4, cells, width, height)
                rgb[..., channel] += (hue - 0.5) * 330 * 0.62**octave
    draws = uniform(f"scene {number} objects", 64)
    for k in range(8):
        cx, cy, rx, ry, r, g, b, angle = draws[8 * k : 8 * k + 8]
        along, across = (x - cx) + (angle - 0.5) * (y - cy), (y - cy) - (angle - 0.5) * (x - cx)
        inside = (along / (0.03 + 0.2 * rx)) ** 2 + (across / (0.03 + 0.2 * ry)) ** 2 < 1
        if k % 2:
            inside = (abs(along) < 0.03 + 0.15 * rx) & (abs(across) < 0.03 + 0.15 * ry)
        rgb[inside] = rgb[inside] * 0.5 + np.array([r - 0.5, g - 0.5, b - 0.5]) * 200
    # An off-centre part of the image is a checkerboard of the size for which reduced decoding is worst.
    board = (x > 0.55) & (x < 0.7) & (y > 0.3) & (y < 0.5)
    rows, columns = np.indices((height, width))
    rgb[board] += np.where((rows // 6 + columns // 6) % 2 == 0, 60, -60)[board][:, None]
    return np.clip(np.floor(rgb + 128.5), 0, 255).astype(np.uint8)


def main() -> None:
    SCALED.mkdir(exist_ok=True)
    for old in SCALED.iterdir():
        old.unlink()

    drawn = Image.fromarray(draw_image(96, 80))
    # 4:2:2 has two blocks of the first component in an MCU, 4:2:0 four; the sizes have as many MCUs, some of them partial.
    for name, subsampling, factors, size in (
        ("440", 1, (1, 2), (93, 76)),
        ("411", 2, (4, 1), (92, 77)),
        ("410", 2, (1, 4), (39, 187)),
    ):
        path = SCALED / f"{name}.jpg"
        drawn.save(path, quality=85, subsampling=subsampling)
        patched(path, factors, size)
    Image.fromarray(draw_image(13, 9)).save(SCALED / "tiny-420.jpg", quality=85, subsampling=2)
    Image.fromarray(draw_image(3, 35)).save(SCALED / "narrow-422-progressive.jpg", quality=85, subsampling=1, progressive=True)
    for number, (width, height, options) in enumerate(
        (
            (640, 480, {"subsampling": 2}),
            (480, 641, {"subsampling": 2}),
            (699, 525, {"subsampling": 2, "progressive": True}),
            (600, 450, {"subsampling": 1}),
            (512, 512, {"subsampling": 0}),
            (800, 530, {"subsampling": 2, "exif": orientation(6)}),
        )
    ):
        Image.fromarray(scene(width, height, number)).save(SCALED / f"scene-{number}.jpg", quality=68, **options)

    records = []
    for path in sorted([*(HERE / "images").glob("*.jpg"), *SCALED.glob("*.jpg")]):
        for denominator in (8, 4, 2, 1):
            decoded = decode(path, denominator)
            records.append(
                {
                    "file": path.relative_to(HERE).as_posix(),
                    "denominator": denominator,
                    "width": decoded.width,
                    "height": decoded.height,
                    "pixels": fnv1a(decoded.tobytes()),
                }
            )
    lines = ",\n".join(" " + json.dumps(record) for record in records)
    (HERE / "scaled.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(records)} records, {sum(f.stat().st_size for f in SCALED.iterdir())} bytes of files")


def orientation(value: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = value
    return tags


if __name__ == "__main__":
    main()
