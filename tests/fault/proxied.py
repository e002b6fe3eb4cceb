"""Damage between two living engines: a proxy in the middle damages a record of each type in each way, or whatever is at a
byte, in either direction. And guests that speak something else to `receive`, or a version of the future."""
import os
import pathlib
import random
import re
import struct
import subprocess

from godwit import (PORT, Engine, Failure, Hosts, Program, await_empty, difference, engine, environment, footprint, receive,
                    state_of, sweep)
from stream import HEADER, framed, Record, with_version

HERE = pathlib.Path(__file__).resolve().parent
SEED = int(os.environ.get("GODWIT_SEED", "20260101"))
ROUNDS = max(8, int(os.environ.get("GODWIT_FAULT_ROUNDS", "300")) // 8)
# Silence is what some of this ends in; nobody here needs ten seconds to answer.
IMPATIENT = ("--link-timeout", "0.25")
DAMAGES = ("ends before it", "ends in its header", "ends in its payload", "header flipped", "payload flipped",
           "payload flipped, right", "half of it, right", "noise, right", "too long", "immense", "twice", "twice, right",
           "left out", "left out, right", "unknown, right", "behind its successor, right")


class Pair:
    """Two hosts and a victim on the first, again and again."""

    def __init__(self):
        self.hosts = Hosts("A", "B")
        self.hosts.__enter__()
        self.a, self.b, self.victim = self.hosts["A"], self.hosts["B"], None

    def fresh(self):
        if self.victim is None:
            sweep(self.a, self.b)
            self.victim = Program(self.a, "everything", ["small"])
            self.victim.check()
        return self.victim

    def drop(self):
        if self.victim:
            self.victim.close()
            self.victim = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.drop()
        self.hosts.__exit__(None, None, None)


def through_proxy(pair, words, wrong_word):
    """One move through the proxy; afterwards one copy runs and the exit code told the truth. `wrong_word`: the damage was
    made to look right, so a copy that moved may be wrong; any other must be right. Gives the fate and the proxy's words."""
    a, b, victim = pair.a, pair.b, pair.fresh()
    before = footprint(victim.outer())
    proxy = a.popen(["/usr/bin/python3", "-I", str(HERE / "proxy.py"), "127.0.0.1:5000", f"{b.address}:{PORT}", *words],
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        if proxy.stdout.read(6) != b"ready\n":
            raise Failure("the proxy does not start")
        with receive(b, *IMPATIENT) as receiver, Engine(a, "migrate", victim.pid, "127.0.0.1:5000", *IMPATIENT) as sender:
            code = sender.finish()
            if sender.crashed() or receiver.crashed() or receiver.process.poll() is not None:
                raise Failure(f"{sender.said()}\n{receiver.said()}")
            if code == 0:
                fate = "moved"
                if wrong_word is None:
                    victim.host = b
                    victim.check()
                    await_empty(a, [proxy.pid])
                pair.drop()
                sweep(b)
            else:
                fate = stayed(pair, sender, receiver, code, before, proxy)
        proxy.kill()
        return fate, proxy.stdout.read().decode()
    finally:
        proxy.close()


def stayed(pair, sender, receiver, code, before, proxy):
    """The move failed: the original is as it was, and nothing is on the destination. In doubt it is stopped."""
    victim = pair.victim
    if sender.last().get("event") != "failed" or not sender.last().get("message"):
        raise Failure(f"no clear word: {sender.said()}")
    if code == 7:
        if state_of(victim.outer()) != "T":
            raise Failure(f"in doubt, and the original is not stopped: {sender.said()}")
        pair.drop()
        sweep(pair.b)
        return "in doubt"
    await_empty(pair.b, [receiver.process.pid])
    await_empty(pair.a, [victim.pid, proxy.pid])
    victim.check()
    if traces := difference(before, footprint(victim.outer())):
        raise Failure(f"traces in the original: {traces}; {sender.said()}")
    return "stayed"


def tally(fates):
    return f"{sum(fates.values())} damaged moves: " + ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))


def bytes_of(direction):
    """Whatever is at a random byte: most of it near the beginning, where the conversation is; the rest in the pages."""
    chance, fates = random.Random(SEED + len(direction)), {}
    with Pair() as pair:
        for number in range(ROUNDS):
            most = 1500 if direction == "backward" else 4000 if number % 2 else 1_200_000
            what, at = ("flip", "swallow", "repeat", "cut", "noise")[number % 5], chance.randrange(most)
            try:
                fate, words = through_proxy(pair, [direction, str(at), what], None)
            except Failure as failure:
                raise Failure(f"{what} at byte {at} {direction}: {failure}") from None
            fate += "" if "done" in words else " undisturbed"
            fates[fate] = fates.get(fate, 0) + 1
    return tally(fates)


def records_of(direction):
    """A record of each type of a conversation, in each way."""
    chance, fates = random.Random(SEED + len(direction)), {}
    with Pair() as pair:
        fate, words = through_proxy(pair, [direction, "watch"], None)
        kinds = [word.split(":") for word in words.split()]
        if fate != "moved" or len(kinds) < 5:
            raise Failure(f"watching: {fate}, {words}")
        for kind, count in kinds:
            for what in DAMAGES:
                # The number of rounds varies, so not the last ones of those that come with each.
                place = f"{kind}:{chance.randint(1, min(int(count), 2))}"
                for _ in range(5):  # an impatient engine on a busy machine may give up before the record comes
                    try:
                        wrong = what if "right" in what else None
                        fate, words = through_proxy(pair, [direction, place, what, str(chance.randrange(1 << 30))], wrong)
                    except Failure as failure:
                        raise Failure(f"record {place} {direction} {what}: {failure}") from None
                    if "done" in words:
                        break
                if "done" not in words:
                    raise Failure(f"record {place} {direction} {what}: it never came, {fate}")
                fates[fate] = fates.get(fate, 0) + 1
    return f"{len(kinds)} types, {tally(fates)}"


SAY = """import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.sendall(bytes.fromhex(sys.argv[3]))
s.shutdown(1)
s.settimeout(60)
try:
    while data := s.recv(65536): sys.stdout.buffer.write(data)
except ConnectionError: pass
"""


def say(host, to, data):
    """What `receive` answers to these bytes."""
    guest = host.popen(["/usr/bin/python3", "-I", "-c", SAY, to.address, str(PORT), data.hex()], stdout=subprocess.PIPE)
    try:
        answer = b""
        while more := guest.stdout.read(65536):
            answer += more
        if guest.wait(60) != 0:
            raise Failure(f"the guest could not speak to receive: {data[:40]!r}")
        return answer
    finally:
        guest.close()


def a_header(major, minor):
    plain = b"GODWIT\r\n" + struct.pack("<HHHH", 1, 0, 0, 1) + bytes(range(16)) + bytes(8)
    return with_version(plain, major, minor)


def strangers():
    """Guests that are no engines: receive survives all of them, and then still serves a real one."""
    chance = random.Random(SEED)
    guests = [b"", b"GET / HTTP/1.0\r\n\r\n", b"GODWIT\r\n", b"GODWIT\r\n" + bytes(32), b"\x16\x03\x01" + chance.randbytes(500)]
    guests += [chance.randbytes(chance.randrange(2000)) for _ in range(20)]
    with Hosts("A", "B") as hosts:
        a, b = hosts["A"], hosts["B"]
        with receive(b) as receiver:
            for guest in guests:
                say(a, b, guest)
                if receiver.process.poll() is not None:
                    raise Failure(f"receive ended after {guest[:40]!r}: {receiver.said()}")
            with Program(a, "memory", ["anon"]) as moved:
                sender = a.run([engine(), "migrate", moved.pid, f"{b.address}:{PORT}", "--insecure"], env=environment())
                if sender.returncode:
                    raise Failure(sender.stderr)
                moved.host = b
                moved.check()
            if receiver.crashed():
                raise Failure(receiver.said())


def our_version():
    """Of the stream, as the engine's header says it."""
    header = (pathlib.Path(__file__).resolve().parents[2] / "engine/wire/stream_header.h").read_text()
    return ".".join(re.search(rf"kWire{part} = (\d+);", header)[1] for part in ("Major", "Minor"))


OURS = our_version()


def future_source():
    """An engine of the next major version comes to `receive`: it is told which versions the two are."""
    with Hosts("A", "B") as hosts:
        with receive(hosts["B"]) as receiver:
            answer = say(hosts["A"], hosts["B"], a_header(2, 0) + framed(Record(1, 0, b""), a_header(2, 0)))
            if len(answer) < HEADER or b"2.0" not in answer[HEADER:] or OURS.encode() not in answer[HEADER:]:
                raise Failure(f"its answer: {answer!r}")
            failed = receiver.events.until("failed")
            if "2.0" not in str(failed) or OURS not in str(failed) or failed.get("kind") != "unsupported":
                raise Failure(f"its event: {failed}")


FUTURE = """import socket, sys
server = socket.create_server(("127.0.0.1", 5000))
print("ready", flush=True)
client = server.accept()[0]
client.sendall(bytes.fromhex(sys.argv[1]))
while client.recv(65536): pass
"""


def future_destination():
    """`migrate` to a destination of the next major version: refused with both named, the original untouched."""
    with Pair() as pair:
        victim = pair.fresh()
        before = footprint(victim.outer())
        server = pair.a.popen(["/usr/bin/python3", "-I", "-c", FUTURE, a_header(2, 0).hex()], stdout=subprocess.PIPE)
        try:
            server.stdout.read(6)
            with Engine(pair.a, "migrate", victim.pid, "127.0.0.1:5000") as sender:
                code, last = sender.finish(), sender.last()
                if code != 3 or "2.0" not in str(last) or OURS not in str(last):
                    raise Failure(sender.said())
            await_empty(pair.a, [victim.pid, server.pid])
        finally:
            server.close()
        victim.check()
        if traces := difference(before, footprint(victim.outer())):
            raise Failure(f"traces in the original: {traces}")


def run_guests(tap):
    tap.run("malformed/strangers", strangers)
    tap.run("malformed/future-source", future_source)
    tap.run("malformed/future-destination", future_destination)


def run(tap, direction):
    tap.run(f"malformed/bytes-{direction}", bytes_of, direction)
    tap.run(f"malformed/records-{direction}", records_of, direction)
