"""Damage between two living engines: a proxy in the middle flips bits, swallows, repeats and cuts, in either direction.
And guests that speak something else to `receive`."""
import os
import pathlib
import random
import subprocess

from godwit import PORT, Engine, Failure, Hosts, Program, await_empty, difference, engine, environment, footprint, receive, sweep

HERE = pathlib.Path(__file__).resolve().parent
SEED = int(os.environ.get("GODWIT_SEED", "20260101"))
ROUNDS = max(8, int(os.environ.get("GODWIT_FAULT_ROUNDS", "300")) // 5)


def damaged_move(a, b, victim, what, direction, at):
    """One move through the proxy. The original stays, as it was; or, when the damage hit nothing that mattered, it moved."""
    before = footprint(victim.outer())
    proxy = a.popen(["/usr/bin/python3", "-I", str(HERE / "proxy.py"), "127.0.0.1:5000", f"{b.address}:{PORT}", direction,
                     str(at), what], stdout=subprocess.PIPE)
    try:
        if proxy.stdout.read(6) != b"ready\n":
            raise Failure("the proxy does not start")
        with receive(b) as receiver, Engine(a, "migrate", victim.pid, "127.0.0.1:5000", "--timeout", "10") as sender:
            code = sender.finish()
            if sender.crashed() or receiver.crashed() or receiver.process.poll() is not None:
                raise Failure(f"{sender.said()}\n{receiver.said()}")
            if code == 0:
                return "moved"
            if code == 7:
                return "in doubt"
            if sender.last().get("event") != "failed" or not sender.last().get("message"):
                raise Failure(f"no clear word: {sender.said()}")
            await_empty(b, [receiver.process.pid])
        await_empty(a, [victim.pid, proxy.pid])
        victim.check()
        if traces := difference(before, footprint(victim.outer())):
            raise Failure(f"traces in the original: {traces}")
        return "stayed"
    finally:
        proxy.close()


def damaged_moves(direction):
    chance, fates = random.Random(SEED + len(direction)), {}
    with Hosts("A", "B") as hosts:
        a, b = hosts["A"], hosts["B"]
        victim = None
        try:
            for number in range(ROUNDS):
                if victim is None:
                    victim = Program(a, "everything")
                    victim.check()
                # Most of it near the beginning, where the conversation is; the rest anywhere in the pages.
                most = 4000 if number % 2 else 20_000_000
                if direction == "backward":
                    most = 1500  # all that the destination has to say
                what, at = ("flip", "swallow", "repeat", "cut", "noise")[number % 5], chance.randrange(most)
                try:
                    fate = damaged_move(a, b, victim, what, direction, at)
                except Failure as failure:
                    raise Failure(f"{what} at byte {at} {direction}: {failure}") from None
                fates[fate] = fates.get(fate, 0) + 1
                if fate != "stayed":
                    victim.close()
                    victim = None
                    sweep(a, b)
        finally:
            if victim:
                victim.close()
    return f"{ROUNDS} damaged moves: " + ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))


def strangers():
    """Guests that are no engines: receive survives all of them, and then still serves a real one."""
    chance = random.Random(SEED)
    guests = [b"", b"GET / HTTP/1.0\r\n\r\n", b"GODWIT\r\n", b"GODWIT\r\n" + bytes(32), b"\x16\x03\x01" + chance.randbytes(500)]
    guests += [chance.randbytes(chance.randrange(2000)) for _ in range(20)]
    with Hosts("A", "B") as hosts:
        a, b = hosts["A"], hosts["B"]
        with receive(b) as receiver:
            for guest in guests:
                script = ("import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10); "
                          "s.sendall(bytes.fromhex(sys.argv[3])); s.shutdown(1); s.settimeout(60)\n"
                          "try:\n  while s.recv(65536): pass\nexcept ConnectionError: pass")
                a.run(["/usr/bin/python3", "-I", "-c", script, b.address, str(PORT), guest.hex()], check=True)
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


def run(tap):
    tap.run("malformed/strangers", strangers)
    for direction in ("forward", "backward"):
        tap.run(f"malformed/{direction}", damaged_moves, direction)
