#!/usr/bin/python3
"""A client that works without pause over one connection and checks every reply: load.py PROTOCOL HOST PORT. On each line
of stdin it prints a line of JSON: operations and the longest time of one since the last report, and the first error."""
import hashlib
import json
import random
import select
import socket
import sys
import time


class Wrong(Exception):
    pass


class Line:
    """The connection as lines."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(100)
        self.reader = self.socket.makefile("rb")

    def ask(self, text):
        self.socket.sendall(text)
        return self.line()

    def line(self):
        line = self.reader.readline()
        if not line.endswith(b"\n"):
            raise Wrong("the connection was closed")
        return line.rstrip(b"\r\n")


def expect(have, want, about):
    if have != want:
        raise Wrong(f"{about}: got {have[:120]!r}, not {want[:120]!r}")


class Redis:
    """Writes a key, reads one back, counts on from what it found."""

    def __init__(self, line):
        self.line, self.model, self.counted = line, {}, 0

    def command(self, *words):
        parts = [b"*%d\r\n" % len(words)] + [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        reply = self.line.ask(b"".join(parts))
        if reply.startswith(b"$") and reply != b"$-1":
            return self.line.line()
        return reply

    def step(self, n):
        key, value = b"key:%d" % random.randrange(2000), b"%d:" % n + b"x" * random.randrange(300)
        expect(self.command(b"SET", key, value), b"+OK", "SET")
        self.model[key] = value
        key = random.choice(list(self.model)) if n % 50 == 0 else key
        expect(self.command(b"GET", key), self.model[key], f"GET {key}")
        self.counted = self.counted + 1 if self.counted else int(self.command(b"INCR", b"counter")[1:]) + 1
        expect(self.command(b"INCR", b"counter"), b":%d" % self.counted, "INCR")


class Memcached:
    def __init__(self, line):
        self.line, self.model = line, {}

    def step(self, n):
        key, value = b"key-%d" % random.randrange(2000), b"%d:" % n + b"y" * random.randrange(300)
        expect(self.line.ask(b"set %s 7 0 %d\r\n%s\r\n" % (key, len(value), value)), b"STORED", "set")
        self.model[key] = value
        key = random.choice(list(self.model)) if n % 50 == 0 else key
        want = self.model[key]
        expect(self.line.ask(b"get %s\r\n" % key), b"VALUE %s 7 %d" % (key, len(want)), f"get {key}")
        expect(self.line.line(), want, f"get {key}")
        expect(self.line.line(), b"END", "get")


class Lines:
    """server.py threads: a checksum over all lines so far."""

    def __init__(self, line):
        self.line, self.digest = line, hashlib.sha256()

    def step(self, n):
        text = b"line %d %d\n" % (n, random.getrandbits(64))
        self.digest.update(text)
        expect(self.line.ask(text), self.digest.hexdigest().encode(), "checksum")


class Sqlite:
    def __init__(self, line):
        self.line, self.count, self.total = line, 0, 0

    def step(self, n):
        number = random.randrange(1 << 20)
        self.count += 1
        self.total += number
        expect(self.line.ask(b"%d\n" % number), b"%d %d" % (self.count, self.total), "count and sum")


class Hash:
    """goroutines.go: FNV-1a of the line."""

    def __init__(self, line):
        self.line = line

    def step(self, n):
        text, value = b"line %d" % n, 0xcbf29ce484222325
        for byte in text:
            value = (value ^ byte) * 0x100000001b3 & 0xffffffffffffffff
        expect(self.line.ask(text + b"\n"), b"%d" % value, "hash")


PROTOCOLS = {"redis": Redis, "memcached": Memcached, "lines": Lines, "sqlite": Sqlite, "hash": Hash}


def main(protocol, host, port):
    error, operations, longest, n = None, 0, 0.0, 0
    client = PROTOCOLS[protocol](Line(host, port))
    while True:
        if select.select([sys.stdin], [], [], None if error else 0)[0]:
            if not sys.stdin.readline():
                return
            print(json.dumps({"operations": operations, "longest_ms": longest * 1000, "error": error}), flush=True)
            operations, longest = 0, 0.0
        if error:
            continue
        began = time.monotonic()
        try:
            client.step(n)
        except (Wrong, OSError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        n += 1
        operations += 1
        longest = max(longest, time.monotonic() - began)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
