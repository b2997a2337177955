"""Hostile image files, as bytes. Each is a few bytes to a few megabytes long and costs a decoder as much as it can.

Pictures have nearly 50 megapixels, the server's default limit, unless their function says otherwise.
"""

import struct
import zlib

WIDTH, HEIGHT = 7000, 7142
# The longest side that the server accepts, and the other side for nearly 50 megapixels.
LONG, SHORT = 16384, 3051
MAX_BODY = 10 << 20


def zeros_once(length):
    """Raw deflate data of so many zero bytes, which may be followed by more."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(length)) + packer.flush(zlib.Z_FULL_FLUSH)


def repeated(block, times):
    """A zlib stream of a block that is repeated. Only one block is compressed, so gigabytes take no time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.adler32(block)
    low, high = checksum & 0xFFFF, checksum >> 16
    a, b = 1, 0
    for _ in range(times):
        b = (b + high + len(block) * (a - 1)) % 65521
        a = (a + low - 1) % 65521
    # An empty block that is the last one.
    return b"\x78\xda" + packed * times + b"\x03\x00" + struct.pack(">I", b << 16 | a)


class Bits:
    """Collects bits from the lowest of each byte up, as GIF and WebP have them."""

    def __init__(self):
        self.value, self.count = 0, 0

    def put(self, value, count):
        self.value |= value << self.count
        self.count += count

    def bytes(self):
        return self.value.to_bytes(-(-self.count // 8), "little")


# GIF


def gif(canvas, frame, data, offset=(0, 0)):
    """A GIF of two colours with one frame, whose LZW data is given."""
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    return head + b"," + struct.pack("<HHHHB", *offset, *frame, 0) + b"\x02" + blocks + b"\x00;"


def lzw(pixels):
    """GIF's LZW data of so many pixels of colour 0, as short as can be: each code is one pixel longer than the last."""
    clear, end, bits = 4, 5, Bits()
    bits.put(clear, 3)
    size, code, run = 3, end, 0
    while pixels > 0:
        # Code 0 is one pixel; 6 is two, 7 is three, until there are 4096 codes. The last code is then used for all.
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
    """35 bytes: a canvas and a frame of 50 megapixels, and data of a single pixel."""
    return gif((WIDTH, HEIGHT), (WIDTH, HEIGHT), b"\x44\x01")


def gif_frame():
    """The same with a frame that lies beside the canvas' corner, so that a decoder keeps both."""
    return gif((WIDTH, HEIGHT), (WIDTH - 1, HEIGHT - 1), b"\x44\x01", offset=(1, 1))


def gif_coded():
    """All pixels are there."""
    return gif((WIDTH, HEIGHT), (WIDTH, HEIGHT), lzw(WIDTH * HEIGHT))


def gif_zeros():
    """Files with a side that is zero."""
    sizes = [((0, 10), (0, 10)), ((10, 0), (10, 0)), ((0, 0), (0, 0)), ((10, 10), (0, 10)), ((10, 10), (10, 0))]
    sizes += [((10, 10), (0, 0)), ((0, 0), (10, 10)), ((0, 10), (10, 10)), ((10, 0), (10, 10))]
    return [gif(canvas, frame, lzw(100)) for canvas, frame in sizes]


# PNG


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size, depth, colour, data, interlaced=False, before=b""):
    """A PNG file, whose image data is given."""
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + data + chunk(b"IEND", b"")


def rows(width, height, bits):
    """The image data of a black PNG; each row is filtered in the way that takes longest to undo (Paeth)."""
    row = b"\x04" + bytes((width * bits + 7) // 8)
    return chunk(b"IDAT", repeated(row, height))


def small_png(before=b"", idats=b""):
    return png((8, 8), 8, 0, idats + chunk(b"IDAT", zlib.compress(bytes(9 * 8))), before=before)


def png_1bit():
    return png((WIDTH, HEIGHT), 1, 0, rows(WIDTH, HEIGHT, 1))


def png_rgba16():
    """8 bytes a pixel, the most that PNG has."""
    return png((WIDTH, HEIGHT), 16, 6, rows(WIDTH, HEIGHT, 64))


def png_interlaced():
    """Grey, in Adam7's seven passes."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    packer, data = zlib.compressobj(9), []
    for x, y, dx, dy in passes:
        row = bytes(1 + -(-(WIDTH - x) // dx))
        data += [packer.compress(row) for _ in range(-(-(HEIGHT - y) // dy))]
    return png((WIDTH, HEIGHT), 8, 0, chunk(b"IDAT", b"".join(data) + packer.flush()), interlaced=True)


def zeros(packed):
    """A zlib stream of zeros, so long that it takes about `packed` bytes."""
    block = 16 << 20
    return repeated(bytes(block), packed // len(zeros_once(block)))


def png_icc():
    """A picture of 8 pixels a side whose colour profile is 4 GB of zeros."""
    return small_png(before=chunk(b"iCCP", b"x\0\0" + zeros(4 << 20)))


def png_ztxt():
    """The same with a text."""
    return small_png(before=chunk(b"zTXt", b"x\0\0" + zeros(4 << 20)))


def png_idat():
    """A small picture whose data comes after 800,000 pieces without any."""
    return small_png(idats=chunk(b"IDAT", b"") * 800_000)


# BMP


def bmp(data, compression=1):
    """A BMP with eight bits a pixel and two colours, run-length coded."""
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, compression, len(data), 0, 0, 2, 2)
    start = 14 + len(head) + 8
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + bytes(8) + data


def bmp_rle():
    """No run at all, only the end."""
    return bmp(b"\x00\x01")


def bmp_rle_full():
    """Runs that cover all pixels."""
    runs, rest = divmod(WIDTH, 255)
    row = b"\xff\x01" * runs + (bytes([rest, 1]) if rest else b"") + b"\x00\x00"
    return bmp(row * HEIGHT + b"\x00\x01")


# TIFF


def tiff(fields, data):
    """A TIFF with one picture, from the numbers of each tag. The data begin at `DATA_AT`."""
    body = bytearray(b"II*\0\0\0\0\0" + data)
    entries = []
    for tag, values in sorted(fields.items()):
        kind, values = (3, values) if tag in (258, 259, 262, 277, 338) else (4, values)
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            body += bytes(len(body) % 2)
            place = struct.pack("<I", len(body))
            body += packed
        else:
            place = packed.ljust(4, b"\0")
        entries.append(struct.pack("<HHI", tag, kind, len(values)) + place)
    body += bytes(len(body) % 2)
    body[4:8] = struct.pack("<I", len(body))
    return bytes(body) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


# Their names in the standard.
SIZE, DEPTH, COMPRESSION, COLOUR, SAMPLES, ALPHA = (256, 257), 258, 259, 262, 277, 338
DATA_AT = 8
STRIP_AT, STRIP_ROWS, STRIP_BYTES = 273, 278, 279
TILE_SIZE, TILE_AT, TILE_BYTES = (322, 323), 324, 325


def picture(width, height, compression):
    """The fields of a picture with four samples of 16 bits."""
    size = dict(zip(SIZE, [[width], [height]]))
    return {**size, DEPTH: [16] * 4, COMPRESSION: [compression], COLOUR: [2], SAMPLES: [4], ALPHA: [2]}


def packbits(length):
    """Zeros in runs of 128."""
    return b"\x81\x00" * -(-length // 128)


def tiff_strips(compression=8):
    """A hundred strips, which are all the same few bytes of the file: deflate (8) or PackBits (32773)."""
    height = -(-HEIGHT // 100)
    length = height * WIDTH * 8
    data = zlib.compress(bytes(length), 9) if compression == 8 else packbits(length)
    count = -(-HEIGHT // height)
    strips = {STRIP_AT: [DATA_AT] * count, STRIP_BYTES: [len(data)] * count, STRIP_ROWS: [height]}
    return tiff(picture(WIDTH, HEIGHT, compression) | strips, data)


def tiff_tiles(width=10, height=10, tile=(16384, 16384)):
    """A picture of ten pixels a side in one tile of 16,384 a side, all there."""
    data = repeated(bytes(8 * tile[0]), tile[1])
    count = -(-width // tile[0]) * -(-height // tile[1])
    sizes = dict(zip(TILE_SIZE, [[tile[0]], [tile[1]]]))
    tiles = {TILE_AT: [DATA_AT] * count, TILE_BYTES: [len(data)] * count}
    return tiff(picture(width, height, 8) | sizes | tiles, data)


def tiff_wide_tiles():
    """A picture one pixel wide and 16,384 high. Each row has a tile of a million pixels; all are in the same bytes."""
    return tiff_tiles(1, LONG, (1 << 20, 1))


def tiff_jpeg():
    """A grey picture ten pixels wide and 100 high, of whose rows each is a JPEG of 268 megapixels: the same one."""
    data = jpeg_baseline(16384, 16384)
    fields = dict(zip(SIZE, [[10], [100]])) | {DEPTH: [8], COMPRESSION: [7], COLOUR: [1], SAMPLES: [1]}
    strips = {STRIP_AT: [DATA_AT] * 100, STRIP_BYTES: [len(data)] * 100, STRIP_ROWS: [1]}
    return tiff(fields | strips, data)


# WebP


def webp(width, height, bits):
    """A lossless WebP file from what comes after its size."""
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
    """Simple codes of one symbol each, which then takes no bit in the picture."""
    for symbol in symbols:
        long = symbol > 1
        put_all(bits, (1, 1), (0, 1), (long, 1), (symbol, 8 if long else 1))


def webp_lossless():
    """50 megapixels of one colour: no bit is spent on a pixel. Three transforms have to be undone."""
    bits = Bits()
    # Prediction with the predictor that takes longest, in blocks of 512 pixels a side, and no colour cache.
    put_all(bits, (1, 1), (0, 2), (7, 3), (0, 1))
    put_symbols(bits, 11, 0, 0, 0, 0)
    # Colours by other colours.
    put_all(bits, (1, 1), (1, 2), (7, 3), (0, 1))
    put_symbols(bits, 1, 0, 0, 0, 0)
    # Green was subtracted. Then no further transform, no colour cache, one group of codes.
    put_all(bits, (1, 1), (2, 2), (0, 1), (0, 1), (0, 1))
    put_symbols(bits, 0, 0, 0, 0, 0)
    return webp(WIDTH, HEIGHT, bits)


def webp_groups():
    """One pixel, and 65,536 groups of five codes. Each code takes 12 bytes here and a table of 4 KB in a decoder."""
    # A code with lengths 1, 2, … 9, 10, 10. A code before it has these lengths: 1 to 4 in four bits, others in three.
    order = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10]
    lengths = {length: 4 if length < 5 else 3 for length in range(1, 11)}
    code = Bits()
    put_all(code, (0, 1), (len(order) - 4, 4), *((lengths.get(length, 0), 3) for length in order))
    # Eleven lengths follow.
    put_all(code, (1, 1), (1, 3), (11 - 2, 4))
    for length in [*range(1, 11), 10]:
        place, bits = (length - 5, 3) if length > 4 else (12 + length - 1, 4)
        # The bits of a code come from its highest on.
        code.put(int(f"{place:0{bits}b}"[::-1], 2), bits)
    groups = Bits()
    put_all(groups, *[(code.value, code.count)] * 5)
    for _ in range(16):
        groups.put(groups.value, groups.count)
    # No transform, no colour cache, groups by blocks: the only one has number 65,535, in red and green.
    bits = Bits()
    put_all(bits, (0, 1), (0, 1), (1, 1), (0, 3), (0, 1))
    put_symbols(bits, 255, 255, 0, 0, 0)
    bits.put(groups.value, groups.count)
    bits.put(0, 64)
    return webp(1, 1, bits)


def webp_frames(count=200_000):
    """An animation of frames of 50 bytes, each with a lossless picture that has the rest of the file for its data."""
    frame = bytes.fromhex("414e4d46 2a000000 000000000000 ff3f00 ff0900 000000 00")
    picture = b"VP8L" + struct.pack("<I", 0x7FFFFFFF) + bytes.fromhex("2fffff7f02 1188888808 5555555555")
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes.fromhex("02000000 ff3f00 ff0900")
    body = b"WEBP" + canvas + (frame + picture) * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


# JPEG


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(data)) + data


def jpeg(kind, width, height, scans):
    """A grey JPEG. Its Huffman tables have one code, a 0: no difference (DC), and a symbol for AC."""
    symbol = 0 if kind == 0xC0 else 0xE0
    one = bytes([1] + [0] * 15)
    tables = segment(0xDB, bytes([0]) + b"\x01" * 64) + segment(0xC4, b"\x00" + one + b"\x00")
    tables += segment(0xC4, b"\x10" + one + bytes([symbol]))
    frame = segment(kind, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00")
    return b"\xff\xd8" + tables + frame + b"".join(scans) + b"\xff\xd9"


def scan(first, last, high, low, bits):
    """A scan whose data are so many zero bits."""
    return segment(0xDA, bytes([1, 1, 0, first, last, high << 4 | low])) + bytes(-(-bits // 8))


def blocks(width, height):
    return -(-width // 8) * -(-height // 8)


def jpeg_baseline(width=WIDTH, height=HEIGHT):
    """Two bits a block."""
    return jpeg(0xC0, width, height, [scan(0, 63, 0, 0, 2 * blocks(width, height))])


def jpeg_progressive(width=WIDTH, height=HEIGHT):
    """99 scans, in the order that the standard asks for: the DC coefficients in one, then seven bands of the others,
    each bit by bit. What a scan says is that 16,384 blocks have nothing, again and again."""
    count = blocks(width, height)
    band_bits = 15 * -(-count // 16384)
    scans = [scan(0, 0, 0, 1, count)]
    for first in range(1, 64, 9):
        scans.append(scan(first, first + 8, 0, 13, band_bits))
        scans += [scan(first, first + 8, low + 1, low, band_bits) for low in reversed(range(13))]
    return jpeg(0xC2, width, height, scans)


def jpeg_progressive_dc():
    """As many scans as there can be of the DC coefficients alone, which are decoded at any size."""
    count = blocks(WIDTH, HEIGHT)
    scans = [scan(0, 0, 0, 13, count)] + [scan(0, 0, low + 1, low, count) for low in reversed(range(13))]
    return jpeg(0xC2, WIDTH, HEIGHT, scans)
