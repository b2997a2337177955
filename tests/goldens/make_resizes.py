"""Writes resizes/ and resizes.json: crops by every filter and crop mode of torchvision and timm, of files in images/.

Each record holds the `[input]` values of a manifest and the name of its crop, a lossless RGB PNG. The steps
come from the libraries: `create_transform` of timm, or `Resize` and `CenterCrop` of torchvision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from evaluation import load_rgb

HERE = Path(__file__).resolve().parent
RESIZES = HERE / "resizes"

FILTERS = ("bicubic", "bilinear", "lanczos")
# To be enlarged, to be reduced by 3 to 9, and one that lies on its side.
FILES = ("png-rgb.png", "jpeg-large.jpg", "jpeg-orientation-6.jpg")
MEAN = (0.485, 0.456, 0.406)


def timm(size: tuple[int, int], crop_pct: float, mode: str, interpolation: str) -> tuple[dict, Callable]:
    """timm's evaluation transform, and the manifest's values for it."""
    steps = create_transform(
        (3, *size), is_training=False, interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode, mean=MEAN
    ).transforms[:2]
    resize = [math.floor(side / crop_pct) for side in size]
    square = mode == "center" and resize[0] == resize[1]
    return {"resize": resize[0] if square else resize, "crop_mode": mode}, transforms.Compose(steps)


def rounded(size: tuple[int, int], side: int, interpolation: str) -> tuple[dict, Callable]:
    """timm's resize for inputs that are not square, with a square."""
    steps = [ResizeKeepRatio((side, side), interpolation=interpolation), transforms.CenterCrop(size)]
    return {"resize": [side, side], "crop_mode": "center"}, transforms.Compose(steps)


def torchvision(size: tuple[int, int], resize: int | list[int], interpolation: str) -> tuple[dict, Callable]:
    """torchvision's transform: the shorter side, or both."""
    steps = [transforms.Resize(resize, InterpolationMode(interpolation)), transforms.CenterCrop(size)]
    mode = "center" if isinstance(resize, int) else "squash"
    return {"resize": resize, "crop_mode": mode}, transforms.Compose(steps)


def main() -> None:
    RESIZES.mkdir(exist_ok=True)
    for old in RESIZES.iterdir():
        old.unlink()
    records = []
    for file in FILES:
        image = load_rgb(HERE / "images" / file)
        for interpolation in FILTERS:
            cases = [
                ((32, 32), timm((32, 32), 0.875, "center", interpolation)),
                ((24, 40), timm((24, 40), 0.9, "center", interpolation)),
                ((40, 24), timm((40, 24), 1.0, "squash", interpolation)),
                ((40, 24), timm((40, 24), 0.9, "border", interpolation)),
            ]
            if interpolation == "bilinear":
                cases += [
                    ((48, 48), torchvision((48, 48), 50, interpolation)),
                    ((48, 48), rounded((48, 48), 50, interpolation)),
                    ((32, 32), torchvision((32, 32), [36, 40], interpolation)),
                    ((24, 40), torchvision((24, 40), 40, interpolation)),
                    ((32, 32), timm((32, 32), 1.0, "border", interpolation)),
                ]
            for size, (values, transform) in cases:
                crop: Image.Image = transform(image)
                assert crop.size == size[::-1], crop.size
                name = f"{Path(file).stem}.{len(records)}.png"
                crop.save(RESIZES / name, optimize=True)
                record = {"file": f"images/{file}", "size": size, "interpolation": interpolation, **values}
                records.append({**record, "expected": f"resizes/{name}"})
    lines = ",\n".join(" " + json.dumps(record) for record in records)
    (HERE / "resizes.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(records)} records, {sum(f.stat().st_size for f in RESIZES.iterdir())} bytes of files")


if __name__ == "__main__":
    main()
