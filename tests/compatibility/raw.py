"""Kafka's wire and its record batches, field by field: bytes that no library would send can be put together."""

import socket
import struct

NOW_MS = 1_700_000_000_000
PATIENCE_S = 60


def i8(value):
    return struct.pack(">b", value)


def i16(value):
    return struct.pack(">h", value)


def i32(value):
    return struct.pack(">i", value)


def i64(value):
    return struct.pack(">q", value)


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def zigzag(value):
    return varint((value << 1) ^ (value >> 63))


def text(value):
    return i16(-1) if value is None else i16(len(value)) + value


def ctext(value):
    return varint(0) if value is None else varint(len(value) + 1) + value


def blob(value):
    return i32(len(value)) + value


def array(*elements):
    return i32(len(elements)) + b"".join(elements)


def carray(*elements):
    return varint(len(elements) + 1) + b"".join(elements)


TAGS = b"\0"


class Answer:
    """What a broker answered, taken apart from front to back."""

    def __init__(self, data, flexible):
        self.data, self.flexible = data, flexible

    def take(self, form):
        size = struct.calcsize(form)
        (value,), self.data = struct.unpack(form, self.data[:size]), self.data[size:]
        return value

    def i8(self):
        return self.take(">b")

    def i16(self):
        return self.take(">h")

    def i32(self):
        return self.take(">i")

    def i64(self):
        return self.take(">q")

    def varint(self):
        value, shift = 0, 0
        while True:
            byte = self.take("B")
            value, shift = value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    def bytes(self, length):
        if length < 0:
            return None
        value, self.data = self.data[:length], self.data[length:]
        return value

    def text(self):
        return self.bytes(self.varint() - 1 if self.flexible else self.i16())

    def blob(self):
        return self.bytes(self.varint() - 1 if self.flexible else self.i32())

    def count(self):
        return self.varint() - 1 if self.flexible else self.i32()

    def tags(self):
        for _ in range(self.varint() if self.flexible else 0):
            self.varint()
            self.bytes(self.varint())


class Client:
    def __init__(self, broker):
        host, _, port = broker.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), PATIENCE_S)

    def close(self):
        self.socket.close()

    def call(self, key, version, body, flexible=False, client_id=b"odd"):
        """An answer behind its header."""
        request = i16(key) + i16(version) + i32(7) + text(client_id) + (TAGS if flexible else b"") + body
        self.socket.sendall(i32(len(request)) + request)
        answer = Answer(self.read(Answer(self.read(4), False).i32()), flexible)
        assert answer.i32() == 7, "the correlation id"
        if flexible and key != 18:
            answer.tags()
        return answer

    def read(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise ConnectionError("closed")
            data += part
        return data


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# One record without a key, "x" is its value: compressed by zstd 1.5.
ZSTD_RECORD = bytes.fromhex("28b52ffd2008410000" + "0e00000001027800")


def batch(attributes=0, records=None, max_timestamp=NOW_MS, producer=(-1, -1, -1), spoil=0, timestamp=NOW_MS):
    record = b"\0" + zigzag(0) + zigzag(0) + zigzag(-1) + zigzag(1) + b"x" + zigzag(0)
    records = records or zigzag(len(record)) + record
    checked = i16(attributes) + i32(0) + i64(timestamp) + i64(max_timestamp)
    checked += i64(producer[0]) + i16(producer[1]) + i32(producer[2]) + i32(1) + records
    crc = struct.pack(">I", crc32c(checked) ^ spoil)
    return i64(0) + i32(9 + len(checked)) + i32(-1) + b"\2" + crc + checked
