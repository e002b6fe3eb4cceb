"""Strangers at `receive`: wrong keys, expired and foreign certificates, plain TCP, streams that are truncated, changed or
reordered on their way, peers that dawdle, and many at once. Each is refused with a clear line, exit code 6, the original
runs on untouched, and a migration beside it goes through."""
import contextlib
import re
import select
import socket
import subprocess
import threading
import time

from godwit import (PATIENCE, PORT, Engine, Failure, Hosts, Keys, Program, await_empty, difference, footprint, migrate, receive,
                    state_of)

IMPATIENT = ("--link-timeout", "2")


def expired(keys):
    """Words for a host whose certificate was good until yesterday."""
    words = keys.certificates("late", "ca")
    stem = keys.folder / "ca" / "late"
    ca = keys.folder / "ca" / "ca"
    request = subprocess.run(["openssl", "req", "-new", "-key", f"{stem}.key", "-subj", "/O=godwit/CN=late"], check=True,
                             capture_output=True)
    subprocess.run(["openssl", "x509", "-req", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-days", "-1", "-out", f"{stem}.pem"],
                   input=request.stdout, check=True, capture_output=True)
    return words


class Scene:
    """Two hosts, a receiver on B, a victim on A that must stay as it is, and keys."""

    def __init__(self, words):
        self.keys, self.words = Keys(), words

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            hosts = stack.enter_context(Hosts("A", "B", "C"))
            self.c = hosts["C"]  # where strangers come from
            self.a, self.b = hosts["A"], hosts["B"]
            self.receiver = stack.enter_context(receive(self.b, *self.words(self.keys), *IMPATIENT))
            self.victim = stack.enter_context(Program(self.a, "memory", ["anon"]))
            self.victim.check()
            self.before = footprint(self.victim.outer())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *all_of_it):
        return self._stack.__exit__(*all_of_it)

    def refused(self, words, *lines, to=None):
        """A move with these words: refused within its time, and both sides say why."""
        target = to or f"{self.b.address}:{PORT}"
        with Engine(self.a, "migrate", self.victim.pid, target, *words, *IMPATIENT) as sender:
            code, said = sender.finish(), sender.last().get("message", "")
            if code != 6 or not re.search(lines[0], said):
                raise Failure(f"not {lines[0]!r}: {sender.said()}")
            if sender.crashed():
                raise Failure(sender.said())
        if len(lines) > 1:
            event = self.receiver.events.until("failed")
            if not re.search(lines[1], event.get("message", "")):
                raise Failure(f"the receiver: not {lines[1]!r}: {event}")
        if state_of(self.victim.outer()) not in "SR" or (traces := difference(self.before, footprint(self.victim.outer()))):
            raise Failure(f"the original: {state_of(self.victim.outer())}, {traces}")

    def passes(self, *words):
        """And an honest one gets through."""
        with Program(self.a, "memory", ["anon"]) as moved, migrate(self.a, moved.pid, self.b, *words) as sender:
            if sender.finish() != 0 or self.receiver.process.poll() is not None:
                raise Failure(f"{sender.said()}\n{self.receiver.said()}")
            moved.host = self.b
            moved.check()


def wrong_keys():
    with Scene(lambda keys: keys.psk()) as scene:
        keys = scene.keys
        scene.refused(keys.psk("other"), "another pre-shared key", "another pre-shared key")
        scene.refused(keys.certificates("a"), "accepts other credentials", "does not have the pre-shared key")
        scene.refused(("--insecure",), "accepts TLS only", "speaks plain TCP")
        scene.refused((), "plain TCP beyond this host.*--psk-file.*--insecure")
        scene.passes(*keys.psk())


def wrong_certificates():
    with Scene(lambda keys: keys.certificates("b")) as scene:
        keys = scene.keys
        scene.refused(keys.certificates("a", "foreign"), "CN = b .*not signed by our CA.*use certificates of one CA",
                      "does not know the CA")
        scene.refused(keys.psk(), "this side has a pre-shared key", "does not know the CA|shows no certificate")
        scene.refused(expired(keys), "our own certificate .*CN = late.*expired")
        scene.passes(*keys.certificates("a"))


def stock_client(scene, *words):
    """What `openssl s_client` with these words makes the receiver say."""
    client = scene.a.popen(["openssl", "s_client", "-connect", f"{scene.b.address}:{PORT}", "-quiet", *words])
    try:
        return scene.receiver.events.until("failed").get("message", "")
    finally:
        client.close()


def stock_clients():
    """Others than ours, which would show what ours does not even send."""
    with Scene(lambda keys: keys.certificates("b")) as scene:
        folder = scene.keys.folder / "ca"
        expired(scene.keys)
        for words, line in ((("-cert", folder / "late.pem", "-key", folder / "late.key"), "CN = late .*has expired.*keygen"),
                            ((), "shows no certificate"), (("-tls1_2",), "does not speak TLS 1.3")):
            if not re.search(line, said := stock_client(scene, *words)):
                raise Failure(f"openssl s_client {words}: {said}, not {line!r}")
        scene.passes(*scene.keys.certificates("a"))


def plain_receiver():
    with Scene(lambda keys: ("--insecure",)) as scene:
        scene.refused(scene.keys.psk(), "speaks plain TCP.*start `godwit receive` there with --psk-file", "it speaks TLS")
        scene.passes("--insecure")


def open_door():
    """To listen beyond loopback, with nothing that keeps strangers out, must be said."""
    with Hosts("A") as hosts:
        a = hosts["A"]
        with Engine(a, "receive", "--listen", f"{a.address}:{PORT}") as engine:
            if engine.finish() != 6 or "--insecure" not in engine.last().get("message", ""):
                raise Failure(engine.said())


# ---- between two living engines: records of TLS changed on their way

def tls_records(data):
    """(whole records, the rest)"""
    records = []
    while len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[3:5], "big"):
        size = 5 + int.from_bytes(data[3:5], "big")
        records.append(data[:size])
        data = data[size:]
    return records, data


class Tamper:
    """A proxy in the network of a host that does something to the n-th encrypted record of the source, once."""

    def __init__(self, what, at):
        self.what, self.at, self.done, self.count, self.held = what, at, False, 0, None

    def change(self, record):
        """The records to pass on, or None to cut."""
        if self.held is not None:
            record, self.held = record + self.held, None
            return record
        if record[0] != 23 or self.done:
            return record
        self.count += 1
        if self.count != self.at:
            return record
        self.done = True
        if self.what == "change":
            return record[:-1] + bytes([record[-1] ^ 1])
        if self.what == "leave out":
            return b""
        if self.what == "repeat":
            return record + record
        if self.what == "reorder":
            self.held = record
            return b""
        return None  # truncate

    def carry(self, source, target):
        """Both directions of one connection."""
        rest = b""
        while True:
            for ready in select.select([source, target], [], [])[0]:
                try:
                    data = ready.recv(65536)
                except ConnectionError:
                    data = b""
                if not data:
                    return
                if ready is source:
                    records, rest = tls_records(rest + data)
                    changed = [self.change(record) for record in records]
                    if None in changed:
                        target.sendall(b"".join(changed[:changed.index(None)]))
                        return
                    data = b"".join(changed)
                try:
                    (target if ready is source else source).sendall(data)
                except ConnectionError:
                    return


def enter_network(host):
    """A listening socket, and a function that connects, both in the network of the host."""
    made = {}

    def inside():
        # setns(2) is of the calling thread alone.
        import ctypes
        with open(f"/proc/{host.init}/ns/net", encoding="ascii") as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        made["server"] = socket.create_server(("127.0.0.1", 5000))
        made["targets"] = [socket.socket() for _ in range(64)]

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    return made["server"], made["targets"]


def tampered(what, at):
    """A proxy between source and destination; gives what the source says, after the original was looked at."""
    with Scene(lambda keys: keys.psk()) as scene:
        server, targets = enter_network(scene.a)
        tamper = Tamper(what, at)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    source = server.accept()[0]
                    target = targets.pop()
                    target.connect((scene.b.address, PORT))
                    try:
                        tamper.carry(source, target)
                    finally:
                        source.close()
                        target.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            with Engine(scene.a, "migrate", scene.victim.pid, "127.0.0.1:5000", *scene.keys.psk(), *IMPATIENT, "--channels", "1",
                        "--max-rounds", "5") as sender:
                code = sender.finish()
                if not tamper.done:
                    raise Failure(f"there was no record {at}: {sender.said()}")
                if code not in (1, 6) or sender.crashed() or scene.receiver.crashed() or scene.receiver.process.poll() is not None:
                    raise Failure(f"{what} {at}: {sender.said()}\n{scene.receiver.said()}")
                told = scene.receiver.events.until("failed").get("message", "")
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
            for target in targets:
                target.close()
        wanted = "was cut" if what == "truncate" else "changed on its way, left out, repeated or reordered"
        if wanted not in told:
            raise Failure(f"{what} {at}: the receiver says {told}")
        scene.victim.check()
        await_empty(scene.b, [scene.receiver.process.pid])
        scene.passes(*scene.keys.psk())


def on_their_way():
    count = 0
    for what in ("change", "leave out", "repeat", "reorder", "truncate"):
        for at in (3, 12):
            tampered(what, at)
            count += 1
    return f"{count} streams"


# ---- many, and slow ones

CROWD = """import select, socket, sys, time
where, what, count = (sys.argv[1], int(sys.argv[2])), sys.argv[3], int(sys.argv[4])
# The beginning of a handshake that is long enough to never end, byte by byte.
HELLO = bytes.fromhex("1603014000" "01003ffc" "0303") + bytes(16000)
crowd, opened, sent = [], 0, {}
end = time.monotonic() + float(sys.argv[5])
print("ready", flush=True)
while time.monotonic() < end:
    while opened < count and len(crowd) < 500:
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(where)
        crowd.append(s)
        opened += 1
    time.sleep(0.02)
    for s in select.select([], crowd, [], 0)[1]:
        try:
            if what == "drip":
                sent[s] = sent.get(s, 0) + s.send(HELLO[sent.get(s, 0):][:1])
        except OSError:
            pass
    for s in select.select(crowd, [], [], 0)[0]:
        try:
            gone = not s.recv(1000)
        except OSError:
            gone = True
        if gone:
            crowd.remove(s)
            sent.pop(s, None)
            s.close()
    if opened == count and what == "silent" and not crowd:
        break
print(opened, len(crowd), flush=True)
"""


def resident(outer):
    with open(f"/proc/{outer}/status", encoding="ascii") as status:
        text = status.read()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]), int(re.search(r"Threads:\s+(\d+)", text)[1])


def crowd(what, count, seconds):
    """Strangers in a crowd; meanwhile migrations pass, and neither memory nor threads of the receiver grow with them."""
    with Scene(lambda keys: keys.psk()) as scene:
        words = scene.keys.psk()
        scene.passes(*words)
        outer = scene.receiver.process.outer
        before, most, threads, moved = resident(outer)[0], 0, 0, 0
        guests = scene.c.popen(["/usr/bin/python3", "-I", "-c", CROWD, scene.b.address, str(PORT), what, str(count), str(seconds)],
                               stdout=subprocess.PIPE)
        try:
            guests.stdout.read(6)
            end = time.monotonic() + PATIENCE
            while guests.poll() is None and time.monotonic() < end:
                scene.passes(*words)
                moved += 1
                now = resident(outer)
                most, threads = max(most, now[0]), max(threads, now[1])
            opened = int(guests.stdout.read().split()[0])
        finally:
            guests.close()
        if opened < count or moved < 1:
            raise Failure(f"{opened} of {count} strangers came, {moved} migrations passed")
        # 32 strangers of some 200 kB each, and what the allocator keeps of their threads.
        if most - before > 40_000 or threads > 60:
            raise Failure(f"the receiver grew from {before} to {most} kB, {threads} threads")
        return f"{opened} strangers, {moved} migrations beside them, {before} to {most} kB, {threads} threads at most"


def run(tap):
    tap.run("strangers/wrong-keys", wrong_keys)
    tap.run("strangers/wrong-certificates", wrong_certificates)
    tap.run("strangers/stock-clients", stock_clients)
    tap.run("strangers/plain-receiver", plain_receiver)
    tap.run("strangers/open-door", open_door)


def run_crowds(tap):
    tap.run("strangers/silent", crowd, "silent", 2000, 60)
    tap.run("strangers/slow-loris", crowd, "drip", 500, 12)


def run_on_their_way(tap):
    tap.run("strangers/on-their-way", on_their_way)
