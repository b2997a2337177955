"""Writes images/, expected/ and cases.json: small synthetic files in many encodings, and their decoded pixels.

All images are drawn here; none is a photograph. For each file, the reference result of each
transform is stored as a lossless RGB PNG. Encodings that must decode to the same pixels share one
expected file, which keeps the folder small and shows that they are equal.

Before a result is stored it is compared with the drawn image, exactly for lossless encodings and
within a bound for lossy ones. So a file that Pillow reads wrongly cannot become a golden.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import torchvision
from PIL import ExifTags, Image

from evaluation import CIFAR, IMAGENET, SMALL, load_rgb
from synthetic import uniform

HERE = Path(__file__).resolve().parent
IMAGES = HERE / "images"
EXPECTED = HERE / "expected"

FORMATS = {
    ".jpg": "jpeg",
    ".png": "png",
    ".webp": "webp",
    ".gif": "gif",
    ".bmp": "bmp",
    ".tif": "tiff",
}

# The transposition that undoes each EXIF orientation: stored = displayed.transpose(UNDO[orientation]).
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


# Drawing


def grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as fractions of the width and of the height."""
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height) + 0.5) / height
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def draw_image(width: int, height: int, key: str = "picture", flip: bool = False) -> np.ndarray:
    """An image without any symmetry: gradients, soft blobs, hard edges, a fine pattern, mild noise.

    Only arithmetic that IEEE 754 defines exactly is used, so every machine draws the same bytes.
    """
    x, y = grid(width, height)
    if flip:
        x, y = 1 - x, 1 - y
    rgb = np.stack([30 + 170 * x, 50 + 140 * y, 190 - 150 * x * y], axis=-1)

    for cx, cy, radius, colour in (
        (0.28, 0.30, 0.26, (235, 60, 40)),
        (0.72, 0.38, 0.20, (40, 200, 90)),
        (0.45, 0.78, 0.24, (60, 70, 230)),
        (0.85, 0.82, 0.14, (250, 220, 60)),
    ):
        distance = ((x - cx) ** 2 + (y - cy) ** 2) / radius**2
        weight = (np.maximum(0.0, 1.0 - distance) ** 2)[..., None]
        rgb = rgb * (1 - weight) + np.array(colour) * weight

    stripe = np.abs(2 * x + y - 1.7) < 0.06
    rgb[stripe] = (245, 240, 225)
    box = (x > 0.06) & (x < 0.20) & (y > 0.62) & (y < 0.92)
    rgb[box] = (25, 20, 30)
    # Two pixels wide, so that a resize without antialiasing is noticed.
    rows, columns = np.indices((height, width))
    pattern = (x > 0.60) & (x < 0.78) & (y > 0.06) & (y < 0.20) & ((rows // 2 + columns // 2) % 2 == 0)
    rgb[pattern] = (200, 200, 210)

    noise = uniform(f"{key}.{width}x{height}", width * height * 3).reshape(height, width, 3)
    return np.clip(np.floor(rgb + 4 * noise - 2 + 0.5), 0, 255).astype(np.uint8)


def alpha_of(width: int, height: int) -> np.ndarray:
    """A gradient with a fully transparent hole and a fully opaque corner."""
    x, y = grid(width, height)
    alpha = np.floor(255 * (0.15 + 0.8 * x * (1 - y)))
    alpha[(x - 0.35) ** 2 + (y - 0.4) ** 2 < 0.05] = 0
    alpha[(x > 0.7) & (y > 0.7)] = 255
    return alpha.astype(np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L"))


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def with_low_bytes(samples: np.ndarray) -> np.ndarray:
    """16-bit samples with the given high bytes and arbitrary low bytes."""
    low = np.floor(256 * uniform("low bytes", samples.size)).reshape(samples.shape)
    return samples.astype(np.uint16) * 256 + low.astype(np.uint16)


# Encoders for formats that Pillow cannot write


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_rows(samples: np.ndarray) -> bytes:
    """Filtered rows; the rows use the five filters in turn, so that a decoder needs all of them."""
    depth = samples.dtype.itemsize
    rows = samples.astype(">u2" if depth == 2 else np.uint8)
    step = samples.shape[2] * depth
    out = bytearray()
    above = np.zeros(samples.shape[1] * step, dtype=np.int32)
    for index in range(samples.shape[0]):
        here = np.frombuffer(rows[index].tobytes(), dtype=np.uint8).astype(np.int32)
        left = np.concatenate([np.zeros(step, dtype=np.int32), here[:-step]])
        corner = np.concatenate([np.zeros(step, dtype=np.int32), above[:-step]])
        guess = left + above - corner
        by_left, by_above, by_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
        paeth = np.where(
            (by_left <= by_above) & (by_left <= by_corner), left, np.where(by_above <= by_corner, above, corner)
        )
        kind = index % 5
        prediction = (0, left, above, (left + above) // 2, paeth)[kind]
        out.append(kind)
        out += ((here - prediction) & 0xFF).astype(np.uint8).tobytes()
        above = here
    return bytes(out)


def write_png(path: Path, samples: np.ndarray, interlaced: bool = False) -> None:
    """A PNG of 8 or 16 bits a sample; Pillow writes neither 16-bit colour nor interlaced files."""
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    if interlaced:
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        parts = [samples[y::dy, x::dx] for x, y, dx, dy in passes]
        rows = b"".join(png_rows(part) for part in parts if part.size)
    else:
        rows = png_rows(samples)
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.dtype.itemsize, colour, 0, 0, int(interlaced))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows, 9))
        + png_chunk(b"IEND", b"")
    )


def write_ycck(path: Path, cmyk: Image.Image) -> None:
    """A YCCK JPEG, which Pillow reads but does not write.

    The encoder stores four channels without converting them. So this function passes the luma and
    chroma that Adobe's convention stores, and patches the marker that names the colour transform.
    """
    # YCCK computes luma and chroma from 255 - C, and Adobe's convention stores 255 - C for C. The two
    # inversions cancel: these are the luma and chroma of the inks themselves.
    cyan, magenta, yellow, key = np.moveaxis(np.asarray(cmyk).astype(np.float64), 2, 0)
    y = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    cb = 128 + (yellow - y) / 1.772
    cr = 128 + (cyan - y) / 1.402
    stored = np.clip(np.floor(np.stack([y, cb, cr, 255 - key], axis=-1) + 0.5), 0, 255).astype(np.uint8)
    # Pillow inverts the samples when it writes the file.
    Image.fromarray(255 - stored, "CMYK").save(path, "JPEG", quality=92)
    data = bytearray(path.read_bytes())
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    path.write_bytes(data)


def shift_gif(path: Path, width: int, height: int, left: int, top: int) -> None:
    """Places the only frame of a GIF at an offset on a larger canvas."""
    data = bytearray(path.read_bytes())
    colours = 3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0
    data[6:10] = struct.pack("<HH", width, height)
    at = 13 + colours
    while data[at] == 0x21:
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    assert data[at] == 0x2C
    data[at + 1 : at + 5] = struct.pack("<HH", left, top)
    path.write_bytes(data)


# The list of cases


class Cases:
    def __init__(self) -> None:
        self.records: list[dict] = []
        self.known: dict[str, str] = {}

    def add(
        self,
        name: str,
        what: str,
        drawn: np.ndarray,
        within: float = 0.0,
        imagenet: bool = False,
    ) -> None:
        """Records images/`name`, which must show `drawn` with a mean error of at most `within`."""
        path = IMAGES / name
        shown = load_rgb(path)
        assert shown.size == drawn.shape[1::-1], (name, shown.size, drawn.shape)
        error = np.abs(np.asarray(shown).astype(int) - drawn).mean()
        assert error <= within, (name, error)

        transforms = ([IMAGENET] if imagenet else []) + [SMALL, CIFAR]
        self.records.append(
            {
                "file": f"images/{name}",
                "format": FORMATS[path.suffix],
                "width": shown.width,
                "height": shown.height,
                "what": what,
                "transforms": [
                    {
                        "name": t.name,
                        "source": t.source,
                        "resize": t.resize,
                        "crop": t.crop,
                        "expected": self.store(t(shown), f"{path.stem}.{t.name}.png"),
                    }
                    for t in transforms
                ],
            }
        )

    def store(self, result: Image.Image, name: str) -> str:
        """Stores a result, unless an equal one exists, and returns the path of its file."""
        digest = hashlib.sha256(repr(result.size).encode() + result.tobytes()).hexdigest()
        if digest not in self.known:
            result.save(EXPECTED / name, optimize=True)
            self.known[digest] = f"expected/{name}"
        return self.known[digest]

    def write(self, path: Path) -> None:
        lines = ",\n".join(" " + json.dumps(record) for record in self.records)
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def png_cases(cases: Cases, rgb: np.ndarray, gray: np.ndarray, alpha: np.ndarray, palette: Image.Image) -> None:
    image = Image.fromarray(rgb)
    image.save(IMAGES / "png-rgb.png", optimize=True)
    cases.add("png-rgb.png", "8-bit RGB", rgb, imagenet=True)

    write_png(IMAGES / "png-interlaced.png", rgb, interlaced=True)
    cases.add("png-interlaced.png", "8-bit RGB, Adam7 interlaced, every row filter", rgb)

    rgba = np.dstack([rgb, alpha])
    write_png(IMAGES / "png-rgba.png", rgba)
    cases.add("png-rgba.png", "8-bit RGBA with colours under the transparent parts", rgb)

    write_png(IMAGES / "png-gray-alpha.png", np.dstack([gray, alpha]))
    cases.add("png-gray-alpha.png", "8-bit gray with alpha", three(gray))

    Image.fromarray(gray).save(IMAGES / "png-gray.png", optimize=True)
    cases.add("png-gray.png", "8-bit gray", three(gray))

    bits = gray > 120
    Image.fromarray(bits).save(IMAGES / "png-1bit.png", optimize=True)
    cases.add("png-1bit.png", "1-bit gray", three(bits.astype(np.uint8) * 255))

    shown = np.asarray(palette.convert("RGB"))
    palette.save(IMAGES / "png-palette.png", optimize=True)
    cases.add("png-palette.png", "palette of 64 colours", shown)

    palette.save(IMAGES / "png-palette-trns.png", transparency=bytes(range(0, 256, 4)), optimize=True)
    cases.add("png-palette-trns.png", "palette with a tRNS chunk: an opacity for each colour", shown)

    sixteen = image.quantize(16, dither=Image.Dither.NONE)
    sixteen.save(IMAGES / "png-palette-4bit.png", bits=4, optimize=True)
    cases.add("png-palette-4bit.png", "palette of 16 colours, 4 bits a pixel", np.asarray(sixteen.convert("RGB")))

    write_png(IMAGES / "png-gray16.png", with_low_bytes(gray[..., None]))
    cases.add("png-gray16.png", "16-bit gray", three(gray))

    write_png(IMAGES / "png-rgb16.png", with_low_bytes(rgb))
    cases.add("png-rgb16.png", "16-bit RGB", rgb)

    write_png(IMAGES / "png-rgba16.png", with_low_bytes(rgba))
    cases.add("png-rgba16.png", "16-bit RGBA", rgb)


def jpeg_cases(cases: Cases, rgb: np.ndarray, gray: np.ndarray) -> None:
    # Both sides are multiples of 16; the odd size below has partial blocks at two edges.
    even = draw_image(96, 80)
    for name, what, options in (
        ("444", "4:4:4", {"subsampling": 0}),
        ("422", "4:2:2", {"subsampling": 1}),
        ("420", "4:2:0", {"subsampling": 2}),
        ("420-progressive", "4:2:0, progressive", {"subsampling": 2, "progressive": True}),
        ("420-restart", "4:2:0, a restart marker after every fourth block", {"restart_marker_blocks": 4}),
        ("rgb", "components are RGB, not YCbCr", {"keep_rgb": True}),
    ):
        Image.fromarray(even).save(IMAGES / f"jpeg-{name}.jpg", quality=92, **options)
        cases.add(f"jpeg-{name}.jpg", what, even, within=4.0, imagenet=name == "420")

    for name, what, options in (
        ("odd-420", "4:2:0, odd width and height", {"subsampling": 2}),
        ("odd-422-progressive", "4:2:2, progressive, odd width and height", {"subsampling": 1, "progressive": True}),
    ):
        Image.fromarray(rgb).save(IMAGES / f"jpeg-{name}.jpg", quality=92, **options)
        cases.add(f"jpeg-{name}.jpg", what, rgb, within=4.0)

    Image.fromarray(gray).save(IMAGES / "jpeg-gray.jpg", quality=92)
    cases.add("jpeg-gray.jpg", "grayscale", three(gray), within=3.0)

    cmyk = ink(even)
    shown = np.asarray(cmyk.convert("RGB"))
    cmyk.save(IMAGES / "jpeg-cmyk.jpg", quality=92)
    cases.add("jpeg-cmyk.jpg", "CMYK, inverted as Adobe writes it", shown, within=4.0)
    write_ycck(IMAGES / "jpeg-ycck.jpg", cmyk)
    cases.add("jpeg-ycck.jpg", "YCCK, inverted as Adobe writes it", shown, within=4.0)

    big = draw_image(700, 500)
    Image.fromarray(big).save(IMAGES / "jpeg-large.jpg", quality=80, subsampling=2)
    cases.add("jpeg-large.jpg", "4:2:0, larger than every target", big, within=4.0, imagenet=True)


def ink(rgb: np.ndarray) -> Image.Image:
    """The image as CMYK with a black channel, which Pillow's own conversion leaves at zero."""
    inverse = 255 - rgb.astype(int)
    key = inverse.min(axis=2) // 2
    left = (255 - key)[..., None]
    inks = ((inverse - key[..., None]) * 255 + left // 2) // left
    return Image.fromarray(np.dstack([inks, key]).astype(np.uint8), "CMYK")


def orientation_cases(cases: Cases) -> None:
    drawn = draw_image(48, 36)
    for n in range(1, 9):
        stored = Image.fromarray(drawn)
        if n in UNDO:
            stored = stored.transpose(UNDO[n])
        name = f"jpeg-orientation-{n}.jpg"
        stored.save(IMAGES / name, quality=92, subsampling=0, exif=exif(n))
        cases.add(name, f"EXIF orientation {n}", drawn, within=4.0)

    stored = Image.fromarray(drawn).transpose(UNDO[6])
    stored.save(IMAGES / "webp-orientation-6.webp", lossless=True, exif=exif(6))
    cases.add("webp-orientation-6.webp", "lossless, EXIF orientation 6", drawn)
    stored.save(IMAGES / "png-orientation-6.png", optimize=True, exif=exif(6))
    cases.add("png-orientation-6.png", "eXIf chunk with orientation 6", drawn)
    stored.save(IMAGES / "tiff-orientation-6.tif", compression="tiff_adobe_deflate", tiffinfo={274: 6})
    cases.add("tiff-orientation-6.tif", "Orientation tag 6", drawn)


def webp_cases(cases: Cases, rgb: np.ndarray, alpha: np.ndarray) -> None:
    image = Image.fromarray(rgb)
    image.save(IMAGES / "webp-lossy.webp", quality=85)
    cases.add("webp-lossy.webp", "lossy", rgb, within=5.0)

    image.save(IMAGES / "webp-lossless.webp", lossless=True)
    cases.add("webp-lossless.webp", "lossless", rgb)

    # Without `exact` the encoder makes fully transparent pixels black.
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    rgba.save(IMAGES / "webp-lossless-alpha.webp", lossless=True, exact=True)
    cases.add("webp-lossless-alpha.webp", "lossless with colours under the transparent parts", rgb)
    rgba.save(IMAGES / "webp-lossy-alpha.webp", quality=85, exact=True)
    cases.add("webp-lossy-alpha.webp", "lossy with colours under the transparent parts", rgb, within=5.0)

    later = Image.fromarray(draw_image(rgb.shape[1], rgb.shape[0], "later", flip=True))
    image.save(IMAGES / "webp-animated.webp", save_all=True, append_images=[later], lossless=True, duration=100)
    cases.add("webp-animated.webp", "animated, lossless: the first of two frames counts", rgb)


def gif_cases(cases: Cases, palette: Image.Image) -> None:
    shown = np.asarray(palette.convert("RGB"))
    palette.save(IMAGES / "gif-static.gif", interlace=0)
    cases.add("gif-static.gif", "one frame, 64 colours", shown)

    palette.save(IMAGES / "gif-interlaced.gif", interlace=1)
    cases.add("gif-interlaced.gif", "one frame, interlaced", shown)

    later = Image.fromarray(draw_image(*palette.size, "later", flip=True)).quantize(32, dither=Image.Dither.NONE)
    palette.save(IMAGES / "gif-animated.gif", save_all=True, append_images=[later], duration=100)
    cases.add("gif-animated.gif", "animated: the first of two frames counts", shown)

    # The most common colour becomes transparent; its palette entry is still what decoders must return.
    common = int(np.bincount(np.asarray(palette).ravel()).argmax())
    palette.save(IMAGES / "gif-transparent.gif", transparency=common, interlace=0)
    cases.add("gif-transparent.gif", "one frame, one colour transparent", shown)

    # Decoders disagree about the canvas around a first frame: transparent black, or the palette's
    # transparent colour, as in Pillow. They agree if that colour is black.
    frame = np.asarray(palette)[10:60, 20:80].copy()
    common = int(np.bincount(frame.ravel()).argmax())
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[common] = 0
    inner = Image.fromarray(frame, "P")
    inner.putpalette(colours.astype(np.uint8).tobytes())
    inner.save(IMAGES / "gif-offset.gif", transparency=common, interlace=0, optimize=False)
    shift_gif(IMAGES / "gif-offset.gif", *palette.size, left=20, top=10)
    canvas = np.zeros_like(shown)
    canvas[10:60, 20:80] = colours[frame]
    cases.add("gif-offset.gif", "first frame smaller than the canvas and at an offset, black around it", canvas)


def bmp_cases(cases: Cases, rgb: np.ndarray, alpha: np.ndarray, palette: Image.Image) -> None:
    Image.fromarray(rgb).save(IMAGES / "bmp-24bit.bmp")
    cases.add("bmp-24bit.bmp", "24 bits a pixel, padded rows", rgb)
    palette.save(IMAGES / "bmp-8bit.bmp")
    cases.add("bmp-8bit.bmp", "8 bits a pixel with a palette, padded rows", np.asarray(palette.convert("RGB")))
    # The fourth byte is padding in such a file: its value must not affect the pixels.
    Image.fromarray(np.dstack([rgb, alpha])).save(IMAGES / "bmp-32bit.bmp")
    cases.add("bmp-32bit.bmp", "32 bits a pixel, the fourth byte is padding", rgb)


def tiff_cases(cases: Cases, rgb: np.ndarray, gray: np.ndarray, alpha: np.ndarray, palette: Image.Image) -> None:
    image = Image.fromarray(rgb)
    image.save(IMAGES / "tiff-rgb.tif")
    cases.add("tiff-rgb.tif", "RGB, uncompressed", rgb)
    image.save(IMAGES / "tiff-rgb-lzw.tif", compression="tiff_lzw", tiffinfo={317: 2})
    cases.add("tiff-rgb-lzw.tif", "RGB, LZW with horizontal differencing", rgb)
    image.save(IMAGES / "tiff-rgb-deflate.tif", compression="tiff_adobe_deflate")
    cases.add("tiff-rgb-deflate.tif", "RGB, deflate", rgb)
    image.save(IMAGES / "tiff-rgb-packbits-strips.tif", compression="packbits", strip_size=16 * 3 * rgb.shape[1])
    cases.add("tiff-rgb-packbits-strips.tif", "RGB, PackBits, several strips", rgb)

    Image.fromarray(gray).save(IMAGES / "tiff-gray.tif", compression="tiff_lzw")
    cases.add("tiff-gray.tif", "8-bit gray, LZW", three(gray))
    Image.fromarray(with_low_bytes(gray)).save(IMAGES / "tiff-gray16.tif")
    cases.add("tiff-gray16.tif", "16-bit gray, uncompressed", three(gray))
    palette.save(IMAGES / "tiff-palette.tif", compression="tiff_lzw")
    cases.add("tiff-palette.tif", "palette, LZW", np.asarray(palette.convert("RGB")))
    Image.fromarray(np.dstack([rgb, alpha])).save(IMAGES / "tiff-rgba.tif", compression="tiff_adobe_deflate")
    cases.add("tiff-rgba.tif", "RGBA, deflate, colours under the transparent parts", rgb)

    cmyk = ink(rgb)
    cmyk.save(IMAGES / "tiff-cmyk.tif", compression="tiff_adobe_deflate")
    cases.add("tiff-cmyk.tif", "CMYK, deflate", np.asarray(cmyk.convert("RGB")))


def size_cases(cases: Cases) -> None:
    for width, height, kind, what in (
        (1, 1, "png", "a single pixel"),
        (1, 300, "png", "one pixel wide"),
        (300, 1, "png", "one pixel high"),
        (33, 57, "jpg", "odd sides, upright"),
        (31, 200, "png", "narrower than every target, much taller"),
        (64, 64, "png", "already the size of the small target"),
        (20, 12, "png", "smaller than every target both ways"),
    ):
        drawn = draw_image(width, height)
        name = f"size-{width}x{height}.{kind}"
        if kind == "jpg":
            Image.fromarray(drawn).save(IMAGES / name, quality=92, subsampling=2)
            cases.add(name, what, drawn, within=6.0, imagenet=True)
        else:
            Image.fromarray(drawn).save(IMAGES / name, optimize=True)
            cases.add(name, what, drawn)


def main() -> None:
    for folder in (IMAGES, EXPECTED):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    # Odd sides: rows need padding where a format pads, and no block or tile fits exactly.
    width, height = 101, 79
    rgb, alpha = draw_image(width, height), alpha_of(width, height)
    gray = luma(rgb)
    palette = Image.fromarray(rgb).quantize(64, dither=Image.Dither.NONE)

    cases = Cases()
    png_cases(cases, rgb, gray, alpha, palette)
    jpeg_cases(cases, rgb, gray)
    orientation_cases(cases)
    webp_cases(cases, rgb, alpha)
    gif_cases(cases, palette)
    bmp_cases(cases, rgb, alpha, palette)
    tiff_cases(cases, rgb, gray, alpha, palette)
    size_cases(cases)
    cases.write(HERE / "cases.json")

    print(f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}")
    for folder in (IMAGES, EXPECTED):
        files = list(folder.iterdir())
        print(f"{folder.name}: {len(files)} files, {sum(f.stat().st_size for f in files)} bytes")
    print(f"{len(cases.records)} cases")


if __name__ == "__main__":
    main()
