"""Writes the reference crops of every image in a folder, for a test that reads them.

    python reference_photos.py FOLDER OUT

For each FOLDER/<stem>.* it writes OUT/<stem>.rgb (224x224) and OUT/<stem>.cifar.rgb (64x64): raw
uint8, rows of RGB triples, no header. These files are not committed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from evaluation import CIFAR, IMAGENET, load_rgb


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes reference crops of a folder of images.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    known = Image.registered_extensions()
    paths = sorted(p for p in args.folder.iterdir() if p.is_file() and p.suffix.lower() in known)
    stems = [p.stem for p in paths]
    if len(set(stems)) != len(stems):
        raise SystemExit("two images differ only in their extension: their results would overwrite each other")
    for path in paths:
        image = load_rgb(path)
        (args.out / f"{path.stem}.rgb").write_bytes(IMAGENET(image).tobytes())
        (args.out / f"{path.stem}.cifar.rgb").write_bytes(CIFAR(image).tobytes())
    print(f"{len(paths)} images")


if __name__ == "__main__":
    main()
