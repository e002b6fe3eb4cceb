#!/usr/bin/python3
"""A TCP proxy that damages one thing once, in one direction of the first conversation that gets so far:

    proxy.py LISTEN TARGET forward|backward BYTE flip|swallow|repeat|cut|noise       at a byte, whatever is there
    proxy.py LISTEN TARGET forward|backward TYPE:NTH DAMAGE SEED                     the n-th record of a type
    proxy.py LISTEN TARGET forward|backward watch                                    nothing; "type count" lines at the end

A damage with "right" in its name makes the checksum and the numbers of all that follows right again, so that it gets past
them. The word "done" is printed when it has happened."""
import os
import pathlib
import random
import socket
import struct
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from stream import HEADER, RECORD, Record, framed, renumber  # noqa: E402

listen, target, direction, place = sys.argv[1:5]
what = sys.argv[5] if len(sys.argv) > 5 else ""
chance = random.Random(sys.argv[6] if len(sys.argv) > 6 else 0)
lock = threading.Lock()
passed = 0
seen = {}  # record type: how many
done = False


def tell_done():
    global done
    done = True
    print("done", flush=True)


def damaged_bytes(data):
    """The bytes to pass on instead of these; None: cut both ways."""
    global passed
    with lock:
        at, passed = int(place) - passed, passed + len(data)
        if done or not 0 <= at < len(data):
            return data
        tell_done()
    if what == "flip":
        return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1:]
    if what == "swallow":
        return data[:at] + data[at + 100:]
    if what == "repeat":
        return data[:at] + data[max(0, at - 100):]
    if what == "noise":
        return data[:at] + os.urandom(64) + data[at + 64:]
    return None


def flipped(data):
    changed = bytearray(data)
    at = chance.randrange(len(changed))
    changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


def shape(record, header):
    """What goes out for the record: (bytes or records, whether the conversation is cut behind it)."""
    raw, payload = framed(record, header), record.payload
    noise = chance.randbytes(max(1, len(payload)))
    return {
        "ends before it": lambda: (b"", True),
        "ends in its header": lambda: (raw[:RECORD // 2], True),
        "ends in its payload": lambda: (raw[:RECORD + len(payload) // 2], True),
        "header flipped": lambda: (flipped(raw[:RECORD]) + payload, False),
        "payload flipped": lambda: (raw[:RECORD] + flipped(payload or b"\0"), False),
        "payload flipped, right": lambda: ([record.copy(payload=flipped(payload or b"\0"))], False),
        "half of it, right": lambda: ([record.copy(payload=payload[:len(payload) // 2])], False),
        "noise, right": lambda: ([record.copy(payload=noise)], False),
        "too long": lambda: ([record.copy(length=0x10000000)], True),
        "immense": lambda: ([record.copy(length=0xffffffff)], True),
        "twice": lambda: (raw + raw, False),
        "twice, right": lambda: ([record, record], False),
        "left out": lambda: (b"", False),
        "left out, right": lambda: ([], False),
        "unknown, right": lambda: ([record.copy(kind=0x4711)], False),
    }[what]()


class Records:
    """One direction of a conversation, as records."""

    def __init__(self):
        self.rest, self.header, self.shift, self.held = b"", None, 0, None

    def feed(self, data):
        """The bytes to pass on, and whether to cut then."""
        self.rest += data
        out = []
        if self.header is None:
            if len(self.rest) < HEADER:
                return b"", False
            self.header, self.rest = self.rest[:HEADER], self.rest[HEADER:]
            out.append(self.header)
        while len(self.rest) >= RECORD:
            kind, length, sequence, checksum = struct.unpack_from("<IIII", self.rest)
            if len(self.rest) < RECORD + length:
                break
            record = Record(kind, sequence, self.rest[RECORD:RECORD + length])
            self.rest = self.rest[RECORD + length:]
            new, cut = self.one(record)
            out.append(new)
            if cut:
                return b"".join(out), True
        return b"".join(out), False

    def one(self, record):
        with lock:
            seen[record.kind] = number = seen.get(record.kind, 0) + 1
            hit = not done and f"{record.kind}:{number}" == place
            if hit:
                tell_done()
        if self.held:  # "behind its successor": now both
            (first, self.held) = (self.held, None)
            return self.renumbered([record, first.copy()], first.sequence), False
        if not hit:
            return self.renumbered([record], record.sequence), False
        if what == "behind its successor, right":
            self.held = record
            return b"", False
        new, cut = shape(record, self.header)
        if isinstance(new, list):
            self.shift += len(new) - 1
            new = b"".join(framed(one, self.header) for one in renumber(new, record.sequence))
        return new, cut

    def renumbered(self, records, first):
        return b"".join(framed(one, self.header) for one in renumber(records, first + self.shift))


def pump(source, sink, mine):
    records = Records() if ":" in place or place == "watch" else None
    try:
        while data := source.recv(1 << 18):
            cut = False
            if mine and records:
                data, cut = records.feed(data)
            elif mine:
                data = damaged_bytes(data)
                cut = data is None
            if data:
                sink.sendall(data)
            if cut:
                break
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    if place == "watch" and mine:
        with lock:
            print(*(f"{kind}:{count}" for kind, count in sorted(seen.items())), flush=True)


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


server = socket.create_server(address(listen))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    try:
        other = socket.create_connection(address(target))
    except OSError:  # nobody listens there now
        client.close()
        continue
    for end in (client, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=pump, args=(client, other, direction == "forward"), daemon=True).start()
    threading.Thread(target=pump, args=(other, client, direction == "backward"), daemon=True).start()
