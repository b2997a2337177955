"""A small HTTP/2 client for gRPC calls over a raw socket (RFC 9113, RFC 7541). It can misbehave: stop reading, and send
any frame."""

import select
import socket
import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
# Largest payload of a frame, bytes.
FRAME = 16384
# Outcomes of calls that end without a status.
RESET, CLOSED = "reset", "closed"

# Lengths of HPACK's Huffman codes by byte, as digits of base 36. Codes of the same length are consecutive numbers.
LENGTHS = (
    "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6ca"
    "d67777777777777777777777878djde6f56565666577666567655677777fbeds"
    "kmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmolmnnllmlnmnnkmmmnmmn"
    "qqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrq"
)


def huffman_codes():
    """Returns the bytes by (length, code)."""
    codes, code, previous = {}, 0, 0
    for length, byte in sorted((int(digit, 36), byte) for byte, digit in enumerate(LENGTHS)):
        code, previous = code << length - previous, length
        codes[length, code] = byte
        code += 1
    return codes


CODES = huffman_codes()


def huffman_decode(data):
    text, code, length = bytearray(), 0, 0
    for bit in (byte >> i & 1 for byte in data for i in range(7, -1, -1)):
        code, length = code << 1 | bit, length + 1
        if (length, code) in CODES:
            text.append(CODES[length, code])
            code = length = 0
    return bytes(text)


def read_integer(data, at, bits):
    """Reads an HPACK integer with a prefix of `bits` bits. Returns it and the position after it."""
    largest = (1 << bits) - 1
    value, at = data[at] & largest, at + 1
    if value == largest:
        shift, continued = 0, True
        while continued:
            value, continued = value + ((data[at] & 127) << shift), data[at] & 128
            shift, at = shift + 7, at + 1
    return value, at


def read_literal(data, at):
    """Reads an HPACK string. Returns it and the position after it."""
    length, start = read_integer(data, at, 7)
    text = data[start : start + length]
    return (huffman_decode(text) if data[at] & 128 else text), start + length


def decode_header_block(block):
    """Returns the fields with literal names, and `:status`; other fields have their table index as the name. The client
    has forbidden a dynamic table."""
    headers, at = {}, 0
    while at < len(block):
        first = block[at]
        if first & 128:
            index, at = read_integer(block, at, 7)
            if 8 <= index <= 14:
                headers[b":status"] = [b"200", b"204", b"206", b"304", b"400", b"404", b"500"][index - 8]
        elif first & 224 == 32:
            _, at = read_integer(block, at, 5)
        else:
            name, at = read_integer(block, at, 6 if first & 64 else 4)
            if name == 0:
                name, at = read_literal(block, at)
            value, at = read_literal(block, at)
            headers[b":status" if name in range(8, 15) else name] = value
    return headers


def varint(number):
    """Encodes a protobuf varint."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def field(number, data):
    """Encodes a length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def frame(kind, flags, stream, data=b""):
    """Encodes an HTTP/2 frame."""
    return struct.pack(">I", len(data))[1:] + struct.pack(">BBI", kind, flags, stream) + data


def header_block(path):
    """Encodes the header block of a gRPC call; every field is a literal."""
    headers = {b":method": b"POST", b":scheme": b"http", b":path": path.encode(), b":authority": b"localhost"}
    headers |= {b"te": b"trailers", b"content-type": b"application/grpc"}
    return b"".join(b"\0" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in headers.items())


class Connection:
    """A connection to the server. With `reads` false it never acknowledges data, so that the server may send only
    65,535 bytes of answers."""

    def __init__(self, port, source="127.0.0.1", reads=True, timeout=20):
        self.reads, self.timeout = reads, timeout
        self.socket = socket.create_connection(("127.0.0.1", port), timeout, (source, 0))
        self.buffer, self.open, self.next = bytearray(), True, 1
        self.window, self.initial, self.windows = 65535, 65535, {}
        self.blocks, self.outcomes = {}, {}
        # No dynamic header table, no server push.
        settings = struct.pack(">HIHI", 1, 0, 2, 0)
        self.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings))

    def write(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            self.close()

    def close(self):
        self.open = False
        self.socket.close()
        for stream in self.windows.keys() - self.outcomes.keys():
            self.outcomes[stream] = CLOSED

    def start(self, path, message):
        """Starts a call and sends its message within the server's flow-control windows. Returns the stream's number."""
        stream, self.next = self.next, self.next + 2
        self.windows[stream] = self.initial
        self.write(frame(HEADERS, END_HEADERS, stream, header_block(path)))
        self.send(stream, struct.pack(">BI", 0, len(message)), 0)
        self.send(stream, message, END_STREAM)
        return stream

    def send(self, stream, data, flags):
        """Sends data in frames; waits while a flow-control window is full."""
        data, at = memoryview(data), 0
        while self.open and stream not in self.outcomes:
            window = min(self.window, self.windows[stream], 64 * FRAME)
            if window <= 0 < len(data) - at:
                self.read(self.timeout)
                continue
            end = min(at + max(window, 0), len(data))
            self.window -= end - at
            self.windows[stream] -= end - at
            frames = []
            while at < end or not frames:
                piece = data[at : min(at + FRAME, end)]
                at += len(piece)
                frames.append(frame(DATA, flags if at == len(data) else 0, stream, piece))
            self.write(b"".join(frames))
            self.read(0)
            if at == len(data):
                return

    def read(self, timeout):
        """Handles the data that arrives within `timeout` seconds. Closes the connection if nothing arrives within the
        connection's own timeout."""
        if not self.open:
            return
        try:
            if not select.select([self.socket], [], [], timeout)[0]:
                if timeout == self.timeout:
                    self.close()
                return
            data = self.socket.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            return self.close()
        self.buffer += data
        while self.open and len(self.buffer) >= 9:
            length = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + length:
                break
            kind, flags, stream = struct.unpack(">BBI", self.buffer[3:9])
            payload = bytes(self.buffer[9 : 9 + length])
            del self.buffer[: 9 + length]
            self.handle(kind, flags, stream, payload)

    def handle(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == 4:
                    self.windows = {stream: window + value - self.initial for stream, window in self.windows.items()}
                    self.initial = value
            self.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            increment = struct.unpack(">I", payload)[0]
            if stream == 0:
                self.window += increment
            elif stream in self.windows:
                self.windows[stream] += increment
        elif kind == DATA:
            if self.reads and payload:
                increment = struct.pack(">I", len(payload))
                self.write(frame(WINDOW_UPDATE, 0, 0, increment) + frame(WINDOW_UPDATE, 0, stream, increment))
        elif kind == RST_STREAM:
            self.outcomes.setdefault(stream, RESET)
        elif kind == GOAWAY:
            self.close()
        elif kind in (HEADERS, CONTINUATION):
            self.blocks[stream] = self.blocks.get(stream, b"") + payload
            if flags & END_HEADERS:
                self.record_status(stream, decode_header_block(self.blocks.pop(stream)))

    def record_status(self, stream, headers):
        """Records the outcome of a call that headers or trailers contain."""
        if b"grpc-status" in headers:
            self.outcomes.setdefault(stream, f"grpc {headers[b'grpc-status'].decode()}")
        elif headers.get(b":status", b"200") != b"200":
            self.outcomes.setdefault(stream, f"http {headers[b':status'].decode()}")

    def call(self, path, message):
        """Makes a whole call. Returns its outcome: `grpc 0` and so on, or `reset` or `closed`."""
        stream = self.start(path, message)
        while stream not in self.outcomes:
            self.read(self.timeout)
        self.windows.pop(stream, None)
        return self.outcomes.pop(stream)
