"""Every type of record of an image truncated, oversized, reordered, bit-flipped, with its checksum wrong and made right
again: restore answers with an error that names the record, never with a crash, and leaves no process behind."""
import os
import pathlib
import random
import tempfile

from godwit import Engine, Failure, Host, Program, await_empty, sweep
from stream import HEADER, OPTIONAL, RECORD, Record, Stream, renumber

BATCHES = {17, 19, 27}  # pages, object_pages, packed: what memory comes in
SEED = int(os.environ.get("GODWIT_SEED", "20260101"))


def flip(data, chance):
    """One bit of it."""
    changed = bytearray(data)
    at = chance.randrange(len(changed))
    changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


def damages(stream, index, chance):
    """(name, bytes, whether it must fail) for every way to damage one record."""
    records, record = stream.records, stream.records[index]
    head = stream.bytes(records[:index])
    whole = stream.bytes(records[index:index + 1])[HEADER:]
    rest = stream.bytes(records[index + 1:])[HEADER:]
    put = lambda *new: stream.bytes(records[:index] + list(new) + records[index + 1:])  # noqa: E731
    yield "ends before it", head, True
    yield "ends in its header", head + whole[:RECORD // 2], True
    if record.payload:
        yield "ends in its payload", head + whole[:RECORD + len(record.payload) // 2], True
        for n in range(4):
            yield f"a bit of its payload flipped, {n}", head + whole[:RECORD] + flip(record.payload, chance) + rest, True
            yield f"the same with a right checksum, {n}", put(record.copy(payload=flip(record.payload, chance))), False
        yield "half of its payload, all else right", put(record.copy(payload=record.payload[:len(record.payload) // 2])), False
        yield "no payload, all else right", put(record.copy(payload=b"")), False
        yield "noise for a payload, all else right", put(record.copy(payload=chance.randbytes(len(record.payload)))), False
    for n in range(2):
        yield f"a bit of its header flipped, {n}", head + flip(whole[:RECORD], chance) + record.payload + rest, True
    yield "more payload than it should have", put(record.copy(payload=record.payload + b"\xff" * 64)), False
    yield "an immense length", put(record.copy(length=0xffffffff)), True
    yield "a length beyond its limit", put(record.copy(length=0x10000000)), True
    yield "twice", stream.bytes(renumber(records[:index + 1] + records[index:])), False
    yield "twice under one number", stream.bytes(records[:index + 1] + records[index:]), bool(rest)
    yield "left out", stream.bytes(renumber(records[:index] + records[index + 1:])), False
    yield "left out, a gap in the numbers", stream.bytes(records[:index] + records[index + 1:]), bool(rest)
    if index + 1 < len(records):
        swapped = records[:index] + [records[index + 1], record] + records[index + 2:]
        yield "behind its successor", stream.bytes(renumber(swapped)), False
        yield "behind its successor, by number too", stream.bytes(swapped), True
    yield "of a mandatory type that nobody knows", put(record.copy(kind=0x4711)), True
    yield "of type 0", put(record.copy(kind=0)), True


class Image:
    """A good image, its stream, and the files that the process in it has open: a copy that ran for a moment has written to
    them, and the next one must find them as they were."""

    def __init__(self, stream, directory):
        self.stream, self.directory = stream, pathlib.Path(directory)
        self.files = {path: path.read_bytes() for path in self.directory.iterdir() if path.is_file()}

    def renew_files(self):
        for path in self.directory.iterdir():
            if path not in self.files:
                path.unlink()
        for path, contents in self.files.items():
            with open(path, "r+b") as file:
                file.write(contents)
                file.truncate()


def restore(host, image, data, must_fail):
    """Restore a damaged image: no crash, a named record, nothing left over. True: it was refused."""
    image.renew_files()
    with tempfile.NamedTemporaryFile(prefix="godwit-image-") as file:
        file.write(data)
        file.flush()
        with Engine(host, "restore", file.name) as engine:
            code = engine.finish()
            if engine.crashed() or code < 0:
                raise Failure(f"it crashed: {engine.said()}")
            if code == 0:
                sweep(host)
                if must_fail:
                    raise Failure("it was taken for good")
                return False
            failed = engine.last()
            told = f"{failed.get('subject', '')} {failed.get('message', '')}"
            if failed.get("event") != "failed":
                raise Failure(f"exit code {code} without a word: {engine.said()}")
            if must_fail and "record" not in told and "stream" not in told:
                raise Failure(f"the error names no record: {engine.said()}")
            await_empty(host)
            return True


def of_type(host, image, indexes):
    chance, count, refused = random.Random(SEED + indexes[0]), 0, 0
    for index in indexes:
        for name, data, must_fail in damages(image.stream, index, chance):
            try:
                refused += restore(host, image, data, must_fail)
            except Failure as failure:
                raise Failure(f"record {index} {name}: {failure}") from None
            count += 1
    return f"{count} damages, {refused} refused"


def versions(host, image):
    """From the future: another major version is refused with both versions named, a minor one with what may be skipped
    is read."""
    stream = image.stream
    with tempfile.NamedTemporaryFile(prefix="godwit-image-") as file:
        file.write(stream.bytes(header=stream.version(2, 0)))
        file.flush()
        with Engine(host, "restore", file.name) as engine:
            if engine.finish() != 3 or "2.0" not in str(engine.last()):
                raise Failure(f"version 2.0: {engine.said()}")
    await_empty(host)
    newer = Record(0x4711 | OPTIONAL, 0, b"from the future")
    for at in (1, len(stream.records) // 2, len(stream.records) - 1):
        records = renumber(stream.records[:at] + [newer] + stream.records[at:])
        header = stream.version(1, 7)
        if restore(host, image, stream.bytes(records, header), False):
            raise Failure(f"an optional record of an unknown type at {at} was refused")


def chosen_records(stream):
    """{type: the first, a middle and the last record of it}"""
    by_type = {}
    for index, record in enumerate(stream.records):
        by_type.setdefault(record.kind, []).append(index)
    return {kind: sorted({places[0], places[len(places) // 2], places[-1]}) for kind, places in sorted(by_type.items())}


def make_image(directory):
    """An image with all kinds of records: a program with threads, shared memory, files, pipes. Its files stay in
    `directory`, as restoring it needs them."""
    host = Host("origin")
    try:
        with tempfile.NamedTemporaryFile(prefix="godwit-image-") as image:
            with Program(host, "everything", ["small"], directory=directory) as origin:
                with Engine(host, "checkpoint", origin.pid, image.name, "--compress", "lz4") as engine:
                    if engine.finish() != 0:
                        raise Failure(engine.said())
                with open(image.name, "rb") as file:
                    data = file.read()
    finally:
        host.close()
    stream = Stream(data)
    if missing := BATCHES - {record.kind for record in stream.records}:
        raise Failure(f"an image without records of type {missing}")
    return Image(stream, directory)


def run(tap, share, shares):
    """`share` of `shares`: the types are dealt out, so that several of these can run beside each other."""
    with tempfile.TemporaryDirectory(prefix="godwit-malformed-") as directory:
        made = []
        if not tap.run(f"malformed/image-{share}", lambda: made.append(make_image(directory))):
            return
        host = Host("target")
        try:
            run_on(tap, host, made[0], share, shares)
        finally:
            host.close()


def run_on(tap, host, image, share, shares):
    if not tap.run(f"malformed/undamaged-{share}", lambda: restore(host, image, image.stream.bytes(), False) and _fail("refused")):
        return
    tests = [("versions", versions, [])]
    tests += [(f"type-{kind & ~OPTIONAL}", of_type, [indexes]) for kind, indexes in chosen_records(image.stream).items()]
    for name, data in (("empty", b""), ("short", image.stream.header[:20]), ("noise", random.Random(SEED).randbytes(100000)),
                       ("text", b"GET / HTTP/1.1\r\n\r\n" * 10)):
        tests.append((name, no_stream, [data]))
    for name, function, arguments in tests[share::shares]:
        tap.run(f"malformed/{name}", function, host, image, *arguments)
        sweep(host)


def no_stream(host, image, data):
    if not restore(host, image, data, True):
        raise Failure("taken for good")


def _fail(text):
    raise Failure(text)
