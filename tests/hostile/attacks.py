"""The attacks: what attackers do, and what they send."""

import collections
import http.client
import itertools
import math
import os
import re
import signal
import socket
import threading
import time

import bombs
import h2
from common import PHOTO
from h2 import field, varint

ATTACKER = "127.0.0.2"
# Megabytes that the server may take beside what it had before the attack, unless the attack says otherwise.
MAX_GROWTH = 400
# Of images that are decoded: three quarters of --max-decoded-bytes-in-flight.
DECODED = 768

CLASSIFY = "/v1/classify"
INFER = "/v2/models/ghostnetv2-cifar10/infer"
FEATURES = "/v1/features?levels=c1,c2,c3,c4,c5&size=640"
MAPS = "/v1/features?levels=c5"
GRPC_CLASSIFY = "/ghostserve.v1.InferenceService/Classify"
GRPC_FEATURES = "/ghostserve.v1.InferenceService/ExtractFeatures"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
# The largest bodies and messages that the server reads, less what stands around them.
LARGE = (32 << 20) - 1024
# What an inference request begins with.
MODEL = h2.field(1, b"ghostnetv2-cifar10")


class Target:
    """The server, as an attacker sees it."""

    def __init__(self, server):
        self.port, self.pid = server.port, server.process.pid
        # What came, and how often. The lock is for the threads of an attack.
        self.seen, self.lock = collections.Counter(), threading.Lock()

    def saw(self, what, times=1):
        with self.lock:
            self.seen[what] += times


Attack = collections.namedtuple("Attack", "what prepare run growth seconds model maps allowed strict")


def attack(what, prepare, run, growth=MAX_GROWTH, seconds=0, model=None, maps=False, allowed=None, strict=False):
    """`prepare` makes what is sent, and `run` sends it until it is ended.

    `growth`: megabytes. `seconds`: at least. `maps`: ordinary clients also want feature maps. `allowed`: outcomes that
    the attackers may see, if not all but internal errors. `strict`: no ordinary request may fail.
    """
    return Attack(what, prepare, run, growth, seconds, model, maps, allowed, strict)


# Attackers. Each is called in the attackers' process with the target and what was prepared, and need not return.


def in_threads(count, work):
    """An attacker that does something in several threads."""

    def run(target, prepared):
        for index in range(count):
            threading.Thread(target=work, args=(target, prepared, index), daemon=True).start()

    return run


def label(status, body):
    """A status, with the code of the problem, or of the first image that had one."""
    code = re.search(rb'"code":\s*"(\w+)"', body)
    return f"{status} {code[1].decode()}" if code else str(status)


def posts(count=32):
    """Posts requests in a loop: path, type and body."""

    def work(target, requests, index):
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30, source_address=(ATTACKER, 0))
        for number in itertools.count(index):
            path, kind, body = requests[number % len(requests)]
            try:
                try:
                    connection.request("POST", path, body, {"content-type": kind})
                except (BrokenPipeError, ConnectionResetError):
                    # The server may answer before it has everything.
                    pass
                response = connection.getresponse()
                outcome = label(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection.close()
            target.saw(outcome)
            if outcome != "200":
                time.sleep(0.01)

    return in_threads(count, work)


def calls(path, count=4):
    """Makes calls in a loop: one message each."""

    def work(target, messages, index):
        connection = None
        for number in itertools.count(index):
            try:
                if connection is None or not connection.open:
                    connection = h2.Connection(target.port, ATTACKER)
                outcome = connection.call(path, messages[number % len(messages)])
            except OSError as error:
                outcome = type(error).__name__
            target.saw(outcome)
            if outcome != "grpc 0":
                time.sleep(0.01)

    return in_threads(count, work)


class Member:
    """A connection of a crowd."""

    def __init__(self, port):
        self.sent, self.socket = 0, socket.socket()
        self.socket.setblocking(False)
        self.socket.bind((ATTACKER, 0))
        self.socket.connect_ex(("127.0.0.1", port))

    def step(self, opening, drip, keeps):
        """Sends what is next, and says what became of the connection if it is over."""
        try:
            if opening and self.sent == 0:
                self.socket.send(opening)
            elif drip:
                self.socket.send(drip[self.sent % len(drip)].to_bytes(1, "big"))
            self.sent += 1
            answer = self.socket.recv(4096)
        except BlockingIOError:
            return None
        except OSError as error:
            return type(error).__name__
        status = re.match(rb"HTTP/1.1 (\d+)", answer)
        if status and keeps:
            return None
        return label(status[1].decode(), answer) if status else "closed"


def crowd(count, opening=b"", drip=b"", keeps=False):
    """Many connections that send something at once and then a byte a second, over and over. Those that are cut come
    back. `keeps`: an answer does not end a connection."""

    def run(target, _):
        members = [None] * count
        while True:
            start, new = time.monotonic(), False
            for i, member in enumerate(members):
                try:
                    outcome = None
                    if member is None:
                        members[i], new = Member(target.port), True
                    else:
                        outcome = member.step(opening, drip, keeps)
                except OSError as error:
                    outcome = type(error).__name__
                if outcome:
                    target.saw(outcome)
                    if member is not None:
                        member.socket.close()
                        members[i] = None
            target.seen["open"] = count - members.count(None)
            time.sleep(max(0.05, (0.05 if new else 1) - (time.monotonic() - start)))

    return run


def slow_reader(target, head_and_body, index):
    """Reads the head of an answer, then a byte a second."""
    while True:
        status = b""
        try:
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
                connection.bind((ATTACKER, 0))
                connection.settimeout(30)
                connection.connect(("127.0.0.1", target.port))
                connection.sendall(head_and_body)
                answer = b""
                while not answer.endswith(b"\r\n\r\n"):
                    byte = connection.recv(1)
                    if not byte:
                        raise ConnectionError
                    answer += byte
                status = answer[9:12]
                target.saw(status.decode())
                if status == b"200":
                    while connection.recv(1):
                        time.sleep(1)
                    target.saw("cut")
        except OSError as error:
            target.saw("cut" if status == b"200" else type(error).__name__)
        time.sleep(0.1)


def slow_grpc_reader(target, message, index):
    """Starts calls, and never lets more than 65,535 bytes of the answers come."""
    connection, streams = None, set()
    while True:
        try:
            if connection is None or not connection.open:
                connection, streams = h2.Connection(target.port, ATTACKER, reads=False), set()
            while len(streams) < 16 and connection.open:
                streams.add(connection.start(GRPC_FEATURES, message))
                target.saw("started")
            connection.read(0.5)
            for stream in streams & connection.outcomes.keys():
                target.saw(connection.outcomes[stream])
                streams.discard(stream)
        except OSError as error:
            target.saw(type(error).__name__)
        time.sleep(0.01)


def rapid_reset(target, _, index):
    """Opens streams and resets them at once."""
    head = h2.block(GRPC_CLASSIFY)
    while True:
        try:
            connection = h2.Connection(target.port, ATTACKER)
            for first in itertools.count(1, 200):
                frames = [
                    h2.frame(h2.HEADERS, h2.END_HEADERS, stream, head) + h2.frame(h2.RST_STREAM, 0, stream, bytes(4))
                    for stream in range(first, first + 200, 2)
                ]
                connection.write(b"".join(frames))
                connection.read(0)
                if not connection.open:
                    break
                target.saw("streams", 100)
            target.saw(h2.CLOSED)
        except OSError as error:
            target.saw(type(error).__name__)
        time.sleep(0.01)


def continuation(target, _, index):
    """A header block that does not end: in large frames, or in empty ones."""
    name = b"x" * 100
    one = b"\0" + bytes([len(name)]) + name + b"\x64" + name
    part = (one * (h2.FRAME // len(one))) if index % 2 == 0 else b""
    frames = h2.frame(h2.CONTINUATION, 0, 1, part) * (4 if part else 1000)
    while True:
        try:
            connection = h2.Connection(target.port, ATTACKER)
            connection.write(h2.frame(h2.HEADERS, 0, 1, h2.block(GRPC_CLASSIFY)))
            while connection.open:
                connection.write(frames)
                connection.read(0)
                target.saw("frames", 4 if part else 1000)
            target.saw(h2.CLOSED)
        except OSError as error:
            target.saw(type(error).__name__)
        time.sleep(0.01)


def hang_up(target, _):
    """SIGHUP, which many programs die of."""
    while True:
        try:
            os.kill(target.pid, signal.SIGHUP)
            target.saw("signal")
        except ProcessLookupError:
            return
        time.sleep(0.3)


# What they send.


def form(files):
    """A multipart request."""
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    body = b"".join(head + file + b"\r\n" for file in files) + b"--b--\r\n"
    return CLASSIFY, "multipart/form-data; boundary=b", body


def image(file, path=CLASSIFY):
    return path, "application/octet-stream", file


def document(text, path=CLASSIFY):
    return path, "application/json", text


def filled(head, item, tail):
    """As many items as the largest body has room for."""
    return head + b",".join([item] * ((LARGE - len(head) - len(tail)) // (len(item) + 1))) + tail


def names(length):
    """All texts of four characters, until they would be so long in all."""
    characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for some in itertools.islice(itertools.product(characters, repeat=3), length // 256):
        for last in characters:
            yield "".join(some) + last


# The beginning of a request for inference.
INPUT = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":['


def json_parameters():
    text = ",".join(f'"{name}":1' for name in names(LARGE // 10 * 4))
    return f'{{"inputs":[],"parameters":{{{text}}}}}'.encode()


def grpc_parameters():
    return MODEL + b"".join(b"\x22\x06\x0a\x04" + name.encode() for name in names(LARGE // 8 * 4))


def tensor(shape, contents):
    """An inference request with one input."""
    return MODEL + field(5, field(1, b"image") + field(2, b"UINT8") + field(3, shape) + field(5, contents))


def grpc_contents():
    """16 MiB of numbers, one byte each, with the shape of a picture."""
    side = math.isqrt((16 << 20) // 3)
    shape = varint(1) + varint(side) * 2 + varint(3)
    return tensor(shape, field(4, b"\x01" * (3 * side * side)))


def deep():
    """Groups in groups, as deep as can be, and no deeper than is allowed but often."""
    begin, end = varint(100 << 3 | 3), varint(100 << 3 | 4)
    return [MODEL + begin * (LARGE // 2), MODEL + (begin * 90 + end * 90) * (LARGE // 360)]


def features_request(accept):
    photo = PHOTO.read_bytes()
    head = f"POST {FEATURES} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\ncontent-length: {len(photo)}\r\n\r\n"
    return head.encode() + photo


def features_message():
    return field(2, PHOTO.read_bytes()) + b"".join(field(3, f"c{i}".encode()) for i in range(1, 6)) + size(640)


def size(side):
    return field(5, b"\x08" + varint(side) + b"\x10" + varint(side))


UPLOAD = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n\xff\xd8\xff"
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n" + b"x-header: a value\r\n" * 100
SAFETENSORS = "application/vnd.safetensors"
# These last longer than the server's timeouts, and ordinary clients want feature maps, too.
SLOW = {"growth": 600, "seconds": 25, "model": "224", "maps": True}
REFUSED = ("422", "429", "413", "408", "503", "504")


def file(what, make, path=CLASSIFY, **options):
    """An attack that posts one file."""
    return attack(what, lambda: [image(make(), path)], posts(), **options)


ATTACKS = {
    # Images.
    "gif-canvas": attack("32 GIFs of 35 bytes and 50 megapixels", lambda: [form([bombs.gif_canvas()] * 32)], posts()),
    "gif-frame": attack("the same with an offset", lambda: [form([bombs.gif_frame()] * 32)], posts()),
    "gif-coded": attack("32 whole GIFs of 50 megapixels", lambda: [form([bombs.gif_coded()] * 32)], posts(), DECODED),
    "gif-zero": attack("GIFs of no size", lambda: [image(f) for f in bombs.gif_zeros()], posts(), allowed=REFUSED),
    "png-1bit": file("50 megapixels of one bit", bombs.png_1bit, growth=DECODED),
    "png-rgba16": file("50 megapixels of 64 bits", bombs.png_rgba16, growth=DECODED),
    "png-interlaced": file("50 megapixels in seven passes", bombs.png_interlaced, growth=DECODED),
    "png-icc": file("a colour profile of 4 GB", bombs.png_icc),
    "png-ztxt": file("a text of 4 GB", bombs.png_ztxt),
    "png-idat": file("800,000 pieces of no data", bombs.png_idat),
    "bmp-rle": file("50 megapixels of nothing", bombs.bmp_rle, growth=DECODED),
    "bmp-rle-full": file("50 megapixels in runs", bombs.bmp_rle_full, growth=DECODED),
    "tiff-strips": file("a hundred times the same strip", bombs.tiff_strips),
    "tiff-packbits": file("the same in another compression", lambda: bombs.tiff_strips(32773)),
    "tiff-tiles": file("a small picture in a huge tile", bombs.tiff_tiles),
    "tiff-wide-tiles": file("a small picture in 16,384 huge tiles", bombs.tiff_wide_tiles),
    "tiff-jpeg": file("a small picture in 100 huge JPEGs", bombs.tiff_jpeg),
    "webp-frames": file("200,000 frames that each reach to the end of the file", bombs.webp_frames),
    "webp-groups": file("65,536 groups of codes for one pixel", bombs.webp_groups),
    "webp-lossless": file("50 megapixels of no bits", bombs.webp_lossless, growth=DECODED),
    "jpeg-progressive": file("50 megapixels, 99 scans", bombs.jpeg_progressive),
    "jpeg-progressive-dc": file("50 megapixels, 14 scans for any size", bombs.jpeg_progressive_dc, growth=DECODED),
    "jpeg-features": file(
        "50 megapixels, 99 scans for a large input",
        lambda: bombs.jpeg_progressive(bombs.LONG, bombs.SHORT),
        "/v1/features?levels=c5&size=640",
    ),
    "jpeg-baseline": file("50 megapixels of two bits a block", bombs.jpeg_baseline),
    # gRPC.
    "grpc-infer-empty": attack(
        "millions of empty inputs, outputs, tensors",
        lambda: [MODEL + (tag + b"\0") * (LARGE // 2) for tag in (b"\x2a", b"\x32", b"\x3a")],
        calls(GRPC_INFER),
    ),
    "grpc-classify-empty": attack("millions of empty images", lambda: [b"\x12\0" * (LARGE // 2)], calls(GRPC_CLASSIFY)),
    "grpc-levels": attack("millions of empty levels", lambda: [b"\x1a\0" * (LARGE // 2)], calls(GRPC_FEATURES)),
    "grpc-infer-parameters": attack("millions of parameters", lambda: [grpc_parameters()], calls(GRPC_INFER)),
    "grpc-infer-shape": attack("millions of sides", lambda: [tensor(b"\x01" * (LARGE - 64), b"")], calls(GRPC_INFER)),
    "grpc-infer-contents": attack("millions of small numbers", lambda: [grpc_contents()], calls(GRPC_INFER)),
    "grpc-unknown": attack(
        "millions of unknown fields", lambda: [MODEL + b"\xa0\x06\x01" * (LARGE // 3)], calls(GRPC_INFER)
    ),
    # gRPC has INTERNAL for messages that cannot be read.
    "grpc-deep": attack("groups in groups", deep, calls(GRPC_INFER), allowed=(*REFUSED, "grpc")),
    # JSON and forms.
    "json-empty-images": attack(
        "millions of empty images", lambda: [document(filled(b'{"images":[', b'""', b"]}"))], posts(8)
    ),
    "json-oip-inputs": attack(
        "a million inputs",
        lambda: [document(filled(b'{"inputs":[', b'{"name":"","shape":[],"datatype":""}', b"]}"), INFER)],
        posts(8),
    ),
    "json-oip-outputs": attack(
        "millions of outputs",
        lambda: [document(filled(b'{"inputs":[],"outputs":[', b'{"name":""}', b"]}"), INFER)],
        posts(8),
    ),
    "json-oip-parameters": attack("millions of parameters", lambda: [document(json_parameters(), INFER)], posts(8)),
    "json-oip-shape": attack(
        "millions of sides",
        lambda: [document(filled(INPUT, b"1", b"]}]}"), INFER)],
        posts(8),
    ),
    "json-oip-data": attack(
        "millions of numbers, texts, lists",
        lambda: [
            document(filled(INPUT + b'1],"data":[', item, b"]}]}"), INFER) for item in (b"1", b'""', b"[]")
        ],
        posts(8),
    ),
    "json-nested": attack(
        "lists in lists",
        lambda: [
            document(b'{"images":' + b"[" * LARGE),
            document(INPUT + b'1],"data":' + b"[" * (LARGE - 99), INFER),
        ],
        posts(8),
    ),
    "multipart-parts": attack("100,000 empty parts", lambda: [form([b""] * 100_000)], posts(8)),
    # Slow and many.
    "slow-uploads": attack("1500 bodies, a byte a second", lambda: None, crowd(1500, UPLOAD, b"\0"), seconds=12),
    "slow-heads": attack("1000 heads, a byte a second", lambda: None, crowd(1000, drip=HEAD), seconds=7),
    "idle": attack("4500 connections that send nothing", lambda: None, crowd(4500), seconds=7),
    "idle-kept": attack("4500 that send one request", lambda: None, crowd(4500, ASK, keeps=True)),
    "slow-readers": attack(
        "feature maps, read a byte a second", lambda: features_request(SAFETENSORS), in_threads(24, slow_reader), **SLOW
    ),
    "slow-readers-json": attack(
        "the same as JSON", lambda: features_request("application/json"), in_threads(24, slow_reader), **SLOW
    ),
    "h2-slow-readers": attack("the same by gRPC", features_message, in_threads(6, slow_grpc_reader), **SLOW),
    "h2-rapid-reset": attack("streams that are reset at once", lambda: None, in_threads(4, rapid_reset)),
    "h2-continuation": attack("headers without end", lambda: None, in_threads(4, continuation)),
    # Signals.
    "sighup": attack("SIGHUP", lambda: None, hang_up, strict=True),
}
