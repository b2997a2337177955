"""The attacks: the behaviour of the attackers and the data that they send."""

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
# Default limit of the server's memory growth during an attack, megabytes.
MAX_GROWTH = 400
# Limit for attacks whose images are decoded, megabytes: three quarters of --max-decoded-bytes-in-flight.
DECODED_GROWTH = 768

CLASSIFY = "/v1/classify"
INFER = "/v2/models/ghostnetv2-cifar10/infer"
FEATURES = "/v1/features?levels=c1,c2,c3,c4,c5&size=640"
MAPS = "/v1/features?levels=c5"
GRPC_CLASSIFY = "/ghostserve.v1.InferenceService/Classify"
GRPC_FEATURES = "/ghostserve.v1.InferenceService/ExtractFeatures"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
# Size of the largest body or message that the server reads, bytes, less a margin for its framing.
LARGE = (32 << 20) - 1024
# The first field of an inference request: the model's name.
MODEL = h2.field(1, b"ghostnetv2-cifar10")


class AttackedServer:
    """The server from an attacker's view, and the outcomes of the attacker's requests."""

    def __init__(self, server):
        self.port, self.pid = server.port, server.process.pid
        # Counts by outcome. The threads of an attack share them.
        self.outcomes, self.lock = collections.Counter(), threading.Lock()

    def record(self, outcome, times=1):
        with self.lock:
            self.outcomes[outcome] += times


Attack = collections.namedtuple("Attack", "description prepare run growth seconds model maps allowed strict")


def attack(description, prepare, run, growth=MAX_GROWTH, seconds=0, model=None, maps=False, allowed=None, strict=False):
    """Defines an attack. `prepare` creates the data, and `run` sends it until its process is ended.

    `growth`: limit of the memory growth, megabytes. `seconds`: shortest duration. `model`: None for the embedded model.
    `maps`: ordinary clients also request feature maps. `allowed`: outcomes that the attackers may get; by default all
    except internal errors. `strict`: no ordinary request may fail.
    """
    return Attack(description, prepare, run, growth, seconds, model, maps, allowed, strict)


# Attackers. Each is called in the attackers' process with the server and the prepared data, and need not return.


def in_threads(count, work):
    """An attacker that calls `work` in several threads."""

    def run(target, prepared):
        for index in range(count):
            threading.Thread(target=work, args=(target, prepared, index), daemon=True).start()

    return run


def label(status, body):
    """Returns a status with the first error code in the body, if there is one."""
    code = re.search(rb'"code":\s*"(\w+)"', body)
    return f"{status} {code[1].decode()}" if code else str(status)


def posts(count=32):
    """An attacker that posts requests (path, content type, body) in a loop."""

    def work(target, requests, index):
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30, source_address=(ATTACKER, 0))
        for number in itertools.count(index):
            path, kind, body = requests[number % len(requests)]
            try:
                try:
                    connection.request("POST", path, body, {"content-type": kind})
                except (BrokenPipeError, ConnectionResetError):
                    # The server may answer before it has read the whole body.
                    pass
                response = connection.getresponse()
                outcome = label(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection.close()
            target.record(outcome)
            if outcome != "200":
                time.sleep(0.01)

    return in_threads(count, work)


def calls(path, count=4):
    """An attacker that makes gRPC calls in a loop, one message each."""

    def work(target, messages, index):
        connection = None
        for number in itertools.count(index):
            try:
                if connection is None or not connection.open:
                    connection = h2.Connection(target.port, ATTACKER)
                outcome = connection.call(path, messages[number % len(messages)])
            except OSError as error:
                outcome = type(error).__name__
            target.record(outcome)
            if outcome != "grpc 0":
                time.sleep(0.01)

    return in_threads(count, work)


class SlowConnection:
    """One connection of `slow_connections`."""

    def __init__(self, port):
        self.sent, self.socket = 0, socket.socket()
        self.socket.setblocking(False)
        self.socket.bind((ATTACKER, 0))
        self.socket.connect_ex(("127.0.0.1", port))

    def step(self, opening, drip, keeps):
        """Sends the next bytes. Returns the outcome if the connection has ended, otherwise None."""
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


def slow_connections(count, opening=b"", drip=b"", keeps=False):
    """An attacker with many connections. Each sends `opening`, then the bytes of `drip`, one per second, repeatedly. A
    connection that ends is opened again. `keeps`: a connection stays open after an answer."""

    def run(target, _):
        connections = [None] * count
        while True:
            start, opened = time.monotonic(), False
            for i, connection in enumerate(connections):
                try:
                    outcome = None
                    if connection is None:
                        connections[i], opened = SlowConnection(target.port), True
                    else:
                        outcome = connection.step(opening, drip, keeps)
                except OSError as error:
                    outcome = type(error).__name__
                if outcome:
                    target.record(outcome)
                    if connection is not None:
                        connection.socket.close()
                        connections[i] = None
            target.outcomes["open"] = count - connections.count(None)
            time.sleep(max(0.05, (0.05 if opened else 1) - (time.monotonic() - start)))

    return run


def slow_reader(target, head_and_body, index):
    """Reads the head of an answer, then one byte per second."""
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
                target.record(status.decode())
                if status == b"200":
                    while connection.recv(1):
                        time.sleep(1)
                    target.record("cut")
        except OSError as error:
            target.record("cut" if status == b"200" else type(error).__name__)
        time.sleep(0.1)


def slow_grpc_reader(target, message, index):
    """Starts calls and never grants more than 65,535 bytes of flow-control window for the answers."""
    connection, streams = None, set()
    while True:
        try:
            if connection is None or not connection.open:
                connection, streams = h2.Connection(target.port, ATTACKER, reads=False), set()
            while len(streams) < 16 and connection.open:
                streams.add(connection.start(GRPC_FEATURES, message))
                target.record("started")
            connection.read(0.5)
            for stream in streams & connection.outcomes.keys():
                target.record(connection.outcomes[stream])
                streams.discard(stream)
        except OSError as error:
            target.record(type(error).__name__)
        time.sleep(0.01)


def rapid_reset(target, _, index):
    """Opens streams and resets each immediately."""
    head = h2.header_block(GRPC_CLASSIFY)
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
                target.record("streams", 100)
            target.record(h2.CLOSED)
        except OSError as error:
            target.record(type(error).__name__)
        time.sleep(0.01)


def continuation(target, _, index):
    """Sends a header block without end: in large frames or in empty ones."""
    name = b"x" * 100
    field_bytes = b"\0" + bytes([len(name)]) + name + b"\x64" + name
    part = (field_bytes * (h2.FRAME // len(field_bytes))) if index % 2 == 0 else b""
    frames = h2.frame(h2.CONTINUATION, 0, 1, part) * (4 if part else 1000)
    while True:
        try:
            connection = h2.Connection(target.port, ATTACKER)
            connection.write(h2.frame(h2.HEADERS, 0, 1, h2.header_block(GRPC_CLASSIFY)))
            while connection.open:
                connection.write(frames)
                connection.read(0)
                target.record("frames", 4 if part else 1000)
            target.record(h2.CLOSED)
        except OSError as error:
            target.record(type(error).__name__)
        time.sleep(0.01)


def hang_up(target, _):
    """Sends SIGHUP, which ends a process that does not handle it."""
    while True:
        try:
            os.kill(target.pid, signal.SIGHUP)
            target.record("signal")
        except ProcessLookupError:
            return
        time.sleep(0.3)


# The data that attackers send.


def form(files):
    """A request (path, content type, body) with several files as multipart/form-data."""
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    body = b"".join(head + file + b"\r\n" for file in files) + b"--b--\r\n"
    return CLASSIFY, "multipart/form-data; boundary=b", body


def image(file, path=CLASSIFY):
    return path, "application/octet-stream", file


def document(text, path=CLASSIFY):
    return path, "application/json", text


def filled(head, item, tail):
    """A JSON text of the largest size, with as many items between `head` and `tail` as fit."""
    return head + b",".join([item] * ((LARGE - len(head) - len(tail)) // (len(item) + 1))) + tail


def names(length):
    """Different texts of four characters, about `length` characters in total."""
    characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for some in itertools.islice(itertools.product(characters, repeat=3), length // 256):
        for last in characters:
            yield "".join(some) + last


# The beginning of a JSON inference request.
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
    """16 MiB of numbers, one byte each, in the shape of an image."""
    side = math.isqrt((16 << 20) // 3)
    shape = varint(1) + varint(side) * 2 + varint(3)
    return tensor(shape, field(4, b"\x01" * (3 * side * side)))


def deep():
    """Nested groups: one message as deep as its size allows, one with many nestings of the allowed depth."""
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
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n" + b"x-header: a value\r\n" * 100
SAFETENSORS = "application/vnd.safetensors"
# These last longer than the server's timeouts, and ordinary clients also request feature maps.
SLOW = {"growth": 600, "seconds": 25, "model": "224", "maps": True}
REFUSED = ("422", "429", "413", "408", "503", "504")


def file(description, create, path=CLASSIFY, **options):
    """An attack that posts one file."""
    return attack(description, lambda: [image(create(), path)], posts(), **options)


ATTACKS = {
    # Images.
    "gif-canvas": attack("32 GIFs of 35 bytes and 50 megapixels", lambda: [form([bombs.gif_canvas()] * 32)], posts()),
    "gif-frame": attack("the same with the frame at an offset", lambda: [form([bombs.gif_frame()] * 32)], posts()),
    "gif-coded": attack(
        "32 complete GIFs of 50 megapixels", lambda: [form([bombs.gif_coded()] * 32)], posts(), DECODED_GROWTH
    ),
    "gif-zero": attack(
        "GIFs with a side of zero", lambda: [image(f) for f in bombs.gif_zeros()], posts(), allowed=REFUSED
    ),
    "png-1bit": file("50 megapixels of one bit", bombs.png_1bit, growth=DECODED_GROWTH),
    "png-rgba16": file("50 megapixels of 64 bits", bombs.png_rgba16, growth=DECODED_GROWTH),
    "png-interlaced": file("50 megapixels in seven passes", bombs.png_interlaced, growth=DECODED_GROWTH),
    "png-icc": file("a colour profile of 4 GB", bombs.png_icc),
    "png-ztxt": file("a text of 4 GB", bombs.png_ztxt),
    "png-idat": file("800,000 empty data chunks", bombs.png_idat),
    "bmp-rle": file("50 megapixels without a run", bombs.bmp_rle, growth=DECODED_GROWTH),
    "bmp-rle-full": file("50 megapixels in runs", bombs.bmp_rle_full, growth=DECODED_GROWTH),
    "tiff-strips": file("the same strip a hundred times", bombs.tiff_strips),
    "tiff-packbits": file("the same with PackBits", lambda: bombs.tiff_strips(32773)),
    "tiff-tiles": file("a small image in a huge tile", bombs.tiff_tiles),
    "tiff-wide-tiles": file("a small image in 16,384 huge tiles", bombs.tiff_wide_tiles),
    "tiff-jpeg": file("a small image in 100 huge JPEGs", bombs.tiff_jpeg),
    "webp-frames": file("200,000 frames that each reach to the end of the file", bombs.webp_frames),
    "webp-groups": file("65,536 groups of codes for one pixel", bombs.webp_groups),
    "webp-lossless": file("50 megapixels without a bit per pixel", bombs.webp_lossless, growth=DECODED_GROWTH),
    "jpeg-progressive": file("50 megapixels, 99 scans", bombs.jpeg_progressive),
    "jpeg-progressive-dc": file(
        "50 megapixels, 14 scans that every scale needs", bombs.jpeg_progressive_dc, growth=DECODED_GROWTH
    ),
    "jpeg-features": file(
        "50 megapixels, 99 scans for a large input",
        lambda: bombs.jpeg_progressive(bombs.LONG, bombs.SHORT),
        "/v1/features?levels=c5&size=640",
    ),
    "jpeg-baseline": file("50 megapixels with two bits per block", bombs.jpeg_baseline),
    # gRPC.
    "grpc-infer-empty": attack(
        "millions of empty inputs, outputs, tensors",
        lambda: [MODEL + (tag + b"\0") * (LARGE // 2) for tag in (b"\x2a", b"\x32", b"\x3a")],
        calls(GRPC_INFER),
    ),
    "grpc-classify-empty": attack("millions of empty images", lambda: [b"\x12\0" * (LARGE // 2)], calls(GRPC_CLASSIFY)),
    "grpc-levels": attack("millions of empty levels", lambda: [b"\x1a\0" * (LARGE // 2)], calls(GRPC_FEATURES)),
    "grpc-infer-parameters": attack("millions of parameters", lambda: [grpc_parameters()], calls(GRPC_INFER)),
    "grpc-infer-shape": attack(
        "millions of dimensions", lambda: [tensor(b"\x01" * (LARGE - 64), b"")], calls(GRPC_INFER)
    ),
    "grpc-infer-contents": attack("millions of small numbers", lambda: [grpc_contents()], calls(GRPC_INFER)),
    "grpc-unknown": attack(
        "millions of unknown fields", lambda: [MODEL + b"\xa0\x06\x01" * (LARGE // 3)], calls(GRPC_INFER)
    ),
    # gRPC answers INTERNAL to messages that cannot be decoded.
    "grpc-deep": attack("nested groups", deep, calls(GRPC_INFER), allowed=(*REFUSED, "grpc")),
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
        "millions of dimensions",
        lambda: [document(filled(INPUT, b"1", b"]}]}"), INFER)],
        posts(8),
    ),
    "json-oip-data": attack(
        "millions of numbers, strings, lists",
        lambda: [
            document(filled(INPUT + b'1],"data":[', item, b"]}]}"), INFER) for item in (b"1", b'""', b"[]")
        ],
        posts(8),
    ),
    "json-nested": attack(
        "nested lists",
        lambda: [
            document(b'{"images":' + b"[" * LARGE),
            document(INPUT + b'1],"data":' + b"[" * (LARGE - 99), INFER),
        ],
        posts(8),
    ),
    "multipart-parts": attack("100,000 empty parts", lambda: [form([b""] * 100_000)], posts(8)),
    # Slow and many connections.
    "slow-uploads": attack(
        "1500 bodies, one byte per second", lambda: None, slow_connections(1500, UPLOAD, b"\0"), seconds=12
    ),
    "slow-heads": attack("1000 heads, one byte per second", lambda: None, slow_connections(1000, drip=HEAD), seconds=7),
    "idle": attack("4500 connections that send nothing", lambda: None, slow_connections(4500), seconds=7),
    "idle-kept": attack(
        "4500 connections that send one request", lambda: None, slow_connections(4500, GET, keeps=True)
    ),
    "slow-readers": attack(
        "feature maps, read one byte per second",
        lambda: features_request(SAFETENSORS),
        in_threads(24, slow_reader),
        **SLOW,
    ),
    "slow-readers-json": attack(
        "the same as JSON", lambda: features_request("application/json"), in_threads(24, slow_reader), **SLOW
    ),
    "h2-slow-readers": attack("the same over gRPC", features_message, in_threads(6, slow_grpc_reader), **SLOW),
    "h2-rapid-reset": attack("streams that are reset immediately", lambda: None, in_threads(4, rapid_reset)),
    "h2-continuation": attack("headers without end", lambda: None, in_threads(4, continuation)),
    # Signals.
    "sighup": attack("SIGHUP", lambda: None, hang_up, strict=True),
}
