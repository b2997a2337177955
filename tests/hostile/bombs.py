"""Hostile image files, as bytes. Each has a few bytes to a few megabytes and costs a decoder as much as possible.

Images have nearly 50 megapixels, the server's default limit, unless their function says otherwise.
"""

import struct
import zlib

WIDTH, HEIGHT = 7000, 7142
# The longest side that the server accepts, and the other side of an image with nearly 50 megapixels.
LONG, SHORT = 16384, 3051
MAX_BODY = 10 << 20


def zeros_once(length):
    """Raw deflate data of `length` zero bytes; more data may follow."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(length)) + packer.flush(zlib.Z_FULL_FLUSH)


def repeated(block, times):
    """A zlib stream that repeats a block. The block is compressed once, so gigabytes take no time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.adler32(block)
    low, high = checksum & 0xFFFF, checksum >> 16
    a, b = 1, 0
    for _ in range(times):
        b = (b + high + len(block) * (a - 1)) % 65521
        a = (a + low - 1) % 65521
    # Ends with an empty final block.
    return b"\x78\xda" + packed * times + b"\x03\x00" + struct.pack(">I", b << 16 | a)


class Bits:
    """Collects bits from the lowest bit of each byte upwards, the order of GIF and WebP."""

    def __init__(self):
        self.value, self.count = 0, 0

    def put(self, value, count):
        self.value |= value << self.count
        self.count += count

    def bytes(self):
        return self.value.to_bytes(-(-self.count // 8), "little")


# GIF


def gif(canvas, frame, data, offset=(0, 0)):
    """A GIF of two colours with one frame; `data` is its LZW data."""
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    return head + b"," + struct.pack("<HHHHB", *offset, *frame, 0) + b"\x02" + blocks + b"\x00;"


def lzw(pixels):
    """The shortest LZW data for `pixels` pixels of colour 0: each code is one pixel longer than the previous one."""
    clear, end, bits = 4, 5, Bits()
    bits.put(clear, 3)
    size, code, run = 3, end, 0
    while pixels > 0:
        # Code 0 is one pixel, 6 is two, 7 is three, up to 4096 codes. Then the last code is repeated.
        if run == 0:
            value, run = 0, 1
        elif code < 4095:
            code, run = code + 1, run + 1
            value = code
        else:
            value = code
        bits.put(value, size)
        pixels -= run
        if code + 1 == 1 << size and size < 12:
            size += 1
    bits.put(end, size)
    return bits.bytes()


def gif_canvas():
    """35 bytes: a canvas and a frame of 50 megapixels, and the data of one pixel."""
    return gif((WIDTH, HEIGHT), (WIDTH, HEIGHT), b"\x44\x01")


def gif_frame():
    """The same with a frame at an offset, so that a decoder stores canvas and frame."""
    return gif((WIDTH, HEIGHT), (WIDTH - 1, HEIGHT - 1), b"\x44\x01", offset=(1, 1))


def gif_coded():
    """A GIF with the data of all pixels."""
    return gif((WIDTH, HEIGHT), (WIDTH, HEIGHT), lzw(WIDTH * HEIGHT))


def gif_zeros():
    """Files in which a side of the canvas or of the frame is zero."""
    sizes = [((0, 10), (0, 10)), ((10, 0), (10, 0)), ((0, 0), (0, 0)), ((10, 10), (0, 10)), ((10, 10), (10, 0))]
    sizes += [((10, 10), (0, 0)), ((0, 0), (10, 10)), ((0, 10), (10, 10)), ((10, 0), (10, 10))]
    return [gif(canvas, frame, lzw(100)) for canvas, frame in sizes]


# PNG


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size, depth, colour, data, interlaced=False, before=b""):
    """A PNG file; `data` are its IDAT chunks."""
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + data + chunk(b"IEND", b"")


def rows(width, height, bits):
    """The image data of a black PNG; each row has the filter that takes longest to undo (Paeth)."""
    row = b"\x04" + bytes((width * bits + 7) // 8)
    return chunk(b"IDAT", repeated(row, height))


def small_png(before=b"", idats=b""):
    """A PNG of 8x8 pixels, with chunks before its data and IDAT chunks before its own."""
    return png((8, 8), 8, 0, idats + chunk(b"IDAT", zlib.compress(bytes(9 * 8))), before=before)


def png_1bit():
    return png((WIDTH, HEIGHT), 1, 0, rows(WIDTH, HEIGHT, 1))


def png_rgba16():
    """8 bytes per pixel, the largest that PNG supports."""
    return png((WIDTH, HEIGHT), 16, 6, rows(WIDTH, HEIGHT, 64))


def png_interlaced():
    """A gray image in Adam7's seven passes."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    packer, data = zlib.compressobj(9), []
    for x, y, dx, dy in passes:
        row = bytes(1 + -(-(WIDTH - x) // dx))
        data += [packer.compress(row) for _ in range(-(-(HEIGHT - y) // dy))]
    return png((WIDTH, HEIGHT), 8, 0, chunk(b"IDAT", b"".join(data) + packer.flush()), interlaced=True)


def zeros(packed):
    """A zlib stream of zeros that has about `packed` bytes."""
    block = 16 << 20
    return repeated(bytes(block), packed // len(zeros_once(block)))


def png_icc():
    """An image of 8x8 pixels with a colour profile of 4 GB of zeros."""
    return small_png(before=chunk(b"iCCP", b"x\0\0" + zeros(4 << 20)))


def png_ztxt():
    """The same with a compressed text."""
    return small_png(before=chunk(b"zTXt", b"x\0\0" + zeros(4 << 20)))


def png_idat():
    """A small image whose data follows 800,000 empty IDAT chunks."""
    return small_png(idats=chunk(b"IDAT", b"") * 800_000)


# BMP


def bmp(data, compression=1):
    """A BMP with eight bits per pixel and two colours, run-length coded."""
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, compression, len(data), 0, 0, 2, 2)
    start = 14 + len(head) + 8
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + bytes(8) + data


def bmp_rle():
    """A BMP without a run: only the end marker."""
    return bmp(b"\x00\x01")


def bmp_rle_full():
    """A BMP whose runs cover all pixels."""
    runs, rest = divmod(WIDTH, 255)
    row = b"\xff\x01" * runs + (bytes([rest, 1]) if rest else b"") + b"\x00\x00"
    return bmp(row * HEIGHT + b"\x00\x01")


# TIFF


def tiff(fields, data):
    """A TIFF with one image, from the values of each tag. The data begin at `DATA_AT`."""
    body = bytearray(b"II*\0\0\0\0\0" + data)
    entries = []
    for tag, values in sorted(fields.items()):
        kind, values = (3, values) if tag in (258, 259, 262, 277, 338) else (4, values)
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            body += bytes(len(body) % 2)
            value = struct.pack("<I", len(body))
            body += packed
        else:
            value = packed.ljust(4, b"\0")
        entries.append(struct.pack("<HHI", tag, kind, len(values)) + value)
    body += bytes(len(body) % 2)
    body[4:8] = struct.pack("<I", len(body))
    return bytes(body) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


# Tags. Names follow the standard.
SIZE, DEPTH, COMPRESSION, COLOUR, SAMPLES, ALPHA = (256, 257), 258, 259, 262, 277, 338
DATA_AT = 8
STRIP_AT, STRIP_ROWS, STRIP_BYTES = 273, 278, 279
TILE_SIZE, TILE_AT, TILE_BYTES = (322, 323), 324, 325


def image_fields(width, height, compression):
    """The fields of an image with four samples of 16 bits."""
    size = dict(zip(SIZE, [[width], [height]]))
    return {**size, DEPTH: [16] * 4, COMPRESSION: [compression], COLOUR: [2], SAMPLES: [4], ALPHA: [2]}


def packbits(length):
    """PackBits data of zeros, in runs of 128."""
    return b"\x81\x00" * -(-length // 128)


def tiff_strips(compression=8):
    """A hundred strips that all refer to the same few bytes of the file: deflate (8) or PackBits (32773)."""
    height = -(-HEIGHT // 100)
    length = height * WIDTH * 8
    data = zlib.compress(bytes(length), 9) if compression == 8 else packbits(length)
    count = -(-HEIGHT // height)
    strips = {STRIP_AT: [DATA_AT] * count, STRIP_BYTES: [len(data)] * count, STRIP_ROWS: [height]}
    return tiff(image_fields(WIDTH, HEIGHT, compression) | strips, data)


def tiff_tiles(width=10, height=10, tile=(16384, 16384)):
    """An image of 10x10 pixels in one complete tile of 16,384x16,384."""
    data = repeated(bytes(8 * tile[0]), tile[1])
    count = -(-width // tile[0]) * -(-height // tile[1])
    sizes = dict(zip(TILE_SIZE, [[tile[0]], [tile[1]]]))
    tiles = {TILE_AT: [DATA_AT] * count, TILE_BYTES: [len(data)] * count}
    return tiff(image_fields(width, height, 8) | sizes | tiles, data)


def tiff_wide_tiles():
    """An image one pixel wide and 16,384 high. Each row is a tile of a million pixels; all tiles share their bytes."""
    return tiff_tiles(1, LONG, (1 << 20, 1))


def tiff_jpeg():
    """A gray image ten pixels wide and 100 high; each row is the same JPEG of 268 megapixels."""
    data = jpeg_baseline(16384, 16384)
    fields = dict(zip(SIZE, [[10], [100]])) | {DEPTH: [8], COMPRESSION: [7], COLOUR: [1], SAMPLES: [1]}
    strips = {STRIP_AT: [DATA_AT] * 100, STRIP_BYTES: [len(data)] * 100, STRIP_ROWS: [1]}
    return tiff(fields | strips, data)


# WebP


def webp(width, height, bits):
    """A lossless WebP file; `bits` are the bits after its size."""
    head = Bits()
    for value, count in [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 4), (bits.value, bits.count)]:
        head.put(value, count)
    data = head.bytes()
    part = b"VP8L" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(part)) + b"WEBP" + part


def put_all(bits, *values):
    for value, count in values:
        bits.put(value, count)


def put_symbols(bits, *symbols):
    """Writes simple codes of one symbol each; such a symbol takes no bit in the image data."""
    for symbol in symbols:
        long = symbol > 1
        put_all(bits, (1, 1), (0, 1), (long, 1), (symbol, 8 if long else 1))


def webp_lossless():
    """50 megapixels of one colour, without a bit per pixel. A decoder has to undo three transforms."""
    bits = Bits()
    # Prediction with the slowest predictor, in blocks of 512x512 pixels, without a colour cache.
    put_all(bits, (1, 1), (0, 2), (7, 3), (0, 1))
    put_symbols(bits, 11, 0, 0, 0, 0)
    # Colour transform.
    put_all(bits, (1, 1), (1, 2), (7, 3), (0, 1))
    put_symbols(bits, 1, 0, 0, 0, 0)
    # Subtract-green transform. Then no further transform, no colour cache, one group of codes.
    put_all(bits, (1, 1), (2, 2), (0, 1), (0, 1), (0, 1))
    put_symbols(bits, 0, 0, 0, 0, 0)
    return webp(WIDTH, HEIGHT, bits)


def webp_groups():
    """One pixel, and 65,536 groups of five codes. A code takes 12 bytes here and a table of 4 KB in a decoder."""
    # A code with the lengths 1, 2, … 9, 10, 10. The code for these lengths: 1 to 4 take four bits, the others three.
    order = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10]
    lengths = {length: 4 if length < 5 else 3 for length in range(1, 11)}
    code = Bits()
    put_all(code, (0, 1), (len(order) - 4, 4), *((lengths.get(length, 0), 3) for length in order))
    # Eleven lengths follow.
    put_all(code, (1, 1), (1, 3), (11 - 2, 4))
    for length in [*range(1, 11), 10]:
        number, bits = (length - 5, 3) if length > 4 else (12 + length - 1, 4)
        # A code is written from its highest bit.
        code.put(int(f"{number:0{bits}b}"[::-1], 2), bits)
    groups = Bits()
    put_all(groups, *[(code.value, code.count)] * 5)
    for _ in range(16):
        groups.put(groups.value, groups.count)
    # No transform, no colour cache, groups by blocks: the only block has group 65,535, in red and green.
    bits = Bits()
    put_all(bits, (0, 1), (0, 1), (1, 1), (0, 3), (0, 1))
    put_symbols(bits, 255, 255, 0, 0, 0)
    bits.put(groups.value, groups.count)
    bits.put(0, 64)
    return webp(1, 1, bits)


def webp_frames(count=200_000):
    """An animation of frames of 50 bytes; the data of each frame's lossless image reach to the end of the file."""
    frame = bytes.fromhex("414e4d46 2a000000 000000000000 ff3f00 ff0900 000000 00")
    image = b"VP8L" + struct.pack("<I", 0x7FFFFFFF) + bytes.fromhex("2fffff7f02 1188888808 5555555555")
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes.fromhex("02000000 ff3f00 ff0900")
    body = b"WEBP" + canvas + (frame + image) * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


# JPEG


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(data)) + data


def jpeg(kind, width, height, scans):
    """A gray JPEG. Each Huffman table has one code, the bit 0: for DC no difference, for AC one symbol."""
    symbol = 0 if kind == 0xC0 else 0xE0
    one = bytes([1] + [0] * 15)
    tables = segment(0xDB, bytes([0]) + b"\x01" * 64) + segment(0xC4, b"\x00" + one + b"\x00")
    tables += segment(0xC4, b"\x10" + one + bytes([symbol]))
    frame = segment(kind, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00")
    return b"\xff\xd8" + tables + frame + b"".join(scans) + b"\xff\xd9"


def scan(first, last, high, low, bits):
    """A scan whose data are `bits` zero bits."""
    return segment(0xDA, bytes([1, 1, 0, first, last, high << 4 | low])) + bytes(-(-bits // 8))


def blocks(width, height):
    """Number of blocks of 8x8 pixels."""
    return -(-width // 8) * -(-height // 8)


def jpeg_baseline(width=WIDTH, height=HEIGHT):
    """A baseline JPEG with two bits per block."""
    return jpeg(0xC0, width, height, [scan(0, 63, 0, 0, 2 * blocks(width, height))])


def jpeg_progressive(width=WIDTH, height=HEIGHT):
    """99 scans in the order that the standard requires: one of the DC coefficients, then seven bands of the others,
    each bit by bit. The data of a band say repeatedly that 16,384 blocks have no coefficient."""
    count = blocks(width, height)
    band_bits = 15 * -(-count // 16384)
    scans = [scan(0, 0, 0, 1, count)]
    for first in range(1, 64, 9):
        scans.append(scan(first, first + 8, 0, 13, band_bits))
        scans += [scan(first, first + 8, low + 1, low, band_bits) for low in reversed(range(13))]
    return jpeg(0xC2, width, height, scans)


def jpeg_progressive_dc():
    """As many scans as possible of the DC coefficients only, which a decoder needs at every scale."""
    count = blocks(WIDTH, HEIGHT)
    scans = [scan(0, 0, 0, 13, count)] + [scan(0, 0, low + 1, low, count) for low in reversed(range(13))]
    return jpeg(0xC2, WIDTH, HEIGHT, scans)
