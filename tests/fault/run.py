#!/usr/bin/python3
"""The fault suite: engines killed and links cut at random instants, streams damaged on their way. Afterwards exactly one
copy runs, it is right, and nothing is left over. `run.py [WORD...]`: only the parts whose names hold one of the words. The
parts run beside each other, as many at once as there are processors.

Seeded: GODWIT_SEED repeats a run's instants as far as a machine can. GODWIT_FAULT_ROUNDS: how many kills of each engine
(300; a third of it for cuts)."""
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE)]
import lacking  # noqa: E402
import malformed  # noqa: E402
import proxied  # noqa: E402
import strangers  # noqa: E402
from godwit import (PATIENCE, PORT, Engine, Failure, Hosts, Program, Tap, await_empty, difference, footprint,  # noqa: E402
                    migrate, receive, state_of, sweep)

ROUNDS = int(os.environ.get("GODWIT_FAULT_ROUNDS", "300"))
SEED = int(os.environ.get("GODWIT_SEED", "20260101"))
SERVICE = "10.77.0.100"  # an address that moves along in some rounds
EVERY = 4                # ... in each of so many
IMPATIENT = ("--link-timeout", "0.5")


def rest(seconds):
    """Let time pass up to a random instant; nothing is waited for."""
    select.select([], [], [], seconds)


def network(host):
    """The network settings of a host that a move of an address touches, line by line, without the address itself."""
    text = host.net("sh", "-c", "ip -o addr; ip rule; ip route show table all; nft list ruleset; iptables-save; "
                    "grep -rs . /proc/sys/net/ipv4/conf/eth0 /proc/sys/net/ipv4/conf/all /proc/sys/net/ipv4/ip_forward").stdout
    lines = (re.sub(r"\[\d+:\d+\]", "", line) for line in text.splitlines() if not line.startswith("#"))
    return sorted(line for line in lines if SERVICE not in line)


def has_service(host):
    return SERVICE in host.net("ip", "-o", "addr").stdout


class Victim:
    """The program that is nearly moved again and again, and what it must still be afterwards."""

    def __init__(self, host):
        self.program = Program(host, "everything", ["small"])
        self.program.check()
        self.before = footprint(self.program.outer())

    @property
    def pid(self):
        return self.program.pid

    def verify(self):
        """It runs on its host, untraced, with the mappings, descriptors and threads it had, and all it holds is right."""
        outer = self.program.outer()
        if outer is None:
            raise Failure(f"the original is gone: {self.program.log()}")
        self.program.check()
        if traces := difference(self.before, footprint(outer)):
            raise Failure(f"traces in the original: {traces}")

    def close(self):
        self.program.close()


class Arena:
    """Hosts A and B, a victim on A, and how long an undisturbed move takes."""

    def __init__(self):
        self.hosts, self.victim = Hosts("A", "B"), None
        self.hosts.__enter__()
        try:
            self.prepare()
        except BaseException:
            self.close()
            raise

    def prepare(self):
        self.a, self.b = self.hosts["A"], self.hosts["B"]
        self.a.net("ip", "addr", "add", f"{SERVICE}/24", "dev", "eth0")
        self.fresh_victim()
        self.durations = {with_address: self.measure(with_address) for with_address in (False, True)}
        # The tools may leave empty tables behind their first use.
        with receive(self.b), migrate(self.a, self.victim.pid, self.b, *self.words(0), env={"GODWIT_FAULT": "freeze@1:error"}) as sender:
            if sender.finish() != 1:
                raise Failure(sender.said())
        await_empty(self.b)
        self.networks = [network(host) for host in (self.a, self.b)]

    def measure(self, with_address):
        """How long an undisturbed move takes, the median of three, in s, with the start of the engine and a little more."""
        times = []
        for _ in range(3):
            with receive(self.b), migrate(self.a, self.victim.pid, self.b, *self.words(0 if with_address else 1)) as sender:
                began = time.monotonic()
                if sender.events.until("completed") is None:
                    raise Failure(sender.said())
                times.append(time.monotonic() - began)
                if sender.finish() != 0:
                    raise Failure(sender.said())
            self.fresh_victim()
            self.take_service_back()
        return sorted(times)[1] * 1.1

    def instant(self, chance, number):
        """A random instant of the move of this round."""
        return chance.uniform(0, self.durations[bool(self.words(number))])

    @staticmethod
    def words(number):
        """An address moves along in some rounds."""
        return ("--move-address", f"{SERVICE}/24@eth0") if number % EVERY == 0 else ()

    @staticmethod
    def channels(number):
        """Several in every other round, whatever the machine."""
        return ("--channels", "3" if number % 2 else "1")

    def verify_network(self, fate):
        """The address is where the process is, and only there; nothing else has changed."""
        here, there = (self.b, self.a) if fate == "moved" else (self.a, self.b)
        if not has_service(here) or has_service(there):
            raise Failure(f"{SERVICE}: {has_service(self.a)} on A, {has_service(self.b)} on B")
        for host, before in zip((self.a, self.b), self.networks):
            if (now := network(host)) != before:
                raise Failure(f"network of {host.name}: lost {set(before) - set(now)}, new {set(now) - set(before)}")

    def take_service_back(self):
        if has_service(self.b):
            self.b.net("ip", "addr", "del", f"{SERVICE}/24", "dev", "eth0")
        if not has_service(self.a):
            self.a.net("ip", "addr", "add", f"{SERVICE}/24", "dev", "eth0")

    def fresh_victim(self):
        if self.victim:
            self.victim.close()
        sweep(self.a, self.b)
        self.victim = Victim(self.a)

    def settle(self, receivers=()):
        """Wait until the fate is decided: "original" or "moved". `receivers`: pids on B that may stay."""
        end = time.monotonic() + PATIENCE
        while True:
            original, copy = self.a.outer(self.victim.pid), self.b.outer(self.victim.pid)
            helpers = [pid for pid in self.a.pids() if pid != self.victim.pid]
            others = [pid for pid in self.b.pids() if pid not in receivers and pid != self.victim.pid]
            running = original is not None and state_of(original) in tuple("SRD")
            if not helpers and not others:
                if running and copy is None:
                    return "original"
                if original is None and copy is not None and state_of(copy) in tuple("SRD"):
                    return "moved"
                if original is not None and state_of(original) == "T":
                    return "stopped"
            if original is None and copy is None:
                raise Failure("no copy is left")
            if time.monotonic() > end:
                raise Failure(f"undecided: original {original and state_of(original)}, copy {copy and state_of(copy)}, beside them "
                              f"{helpers} on A, {others} on B")
            rest(0.003)

    def decide(self):
        """In doubt: a person looks where it runs and decides; afterwards one copy runs."""
        verdict = "--discard" if self.b.outer(self.victim.pid) is not None else "--resume"
        with Engine(self.a, "resolve", self.victim.pid, verdict) as engine:
            if engine.finish() != 0:
                raise Failure(f"in doubt, and: {engine.said()}")
        return self.settle_any()

    def settle_any(self):
        receivers = [pid for pid in self.b.pids() if pid != self.victim.pid]
        return self.settle(receivers)

    def conclude(self, fate, round_number, with_address=False):
        """Verify whoever runs. The victim must be on A again for the next round."""
        if fate == "stopped":
            fate = self.decide()
        try:
            if fate == "original":
                self.victim.verify()
            else:
                self.victim.program.host = self.b
                self.victim.program.check()
            if with_address:
                self.verify_network(fate)
            if fate == "moved":
                self.fresh_victim()
                self.take_service_back()
        except Failure as failure:
            raise Failure(f"round {round_number}, seed {SEED}, {fate}: {failure}") from None
        return fate

    def close(self):
        if self.victim:
            self.victim.close()
        self.hosts.__exit__(None, None, None)


def kill_source(arena, more=(), wanted=ROUNDS):
    """kill -9 of `migrate` at random instants, until so many of them came before COMMIT."""
    chance, before, rounds = random.Random(SEED), 0, 0
    receiver = receive(arena.b)
    try:
        while before < wanted:
            rounds += 1
            if rounds > 3 * wanted:
                raise Failure(f"only {before} of {rounds} kills came before COMMIT")
            with migrate(arena.a, arena.victim.pid, arena.b, *arena.words(rounds), *arena.channels(rounds), *more) as sender:
                rest(arena.instant(chance, rounds))
                sender.process.kill()
                sender.process.wait(PATIENCE)
            fate = arena.conclude(arena.settle([receiver.process.pid]), rounds, arena.words(rounds))
            before += fate == "original"
            if receiver.process.poll() is not None or not arena.b.outer(receiver.process.pid):
                if receiver.crashed():
                    raise Failure(f"round {rounds}: the receiver: {receiver.said()}")
                receiver.close()
                receiver = receive(arena.b)
    finally:
        receiver.close()
    return f"{before} kills before COMMIT, {rounds - before} after"


def kill_source_sync(arena):
    """With the tracker whose handler the victim's threads wait for: its end must free them."""
    return kill_source(arena, ("--tracker", "uffd-sync"), max(3, ROUNDS // 3))


def kill_destination(arena):
    """kill -9 of `receive` at random instants; a new one comes up at once, and the source finds out by itself."""
    chance, before, rounds = random.Random(SEED + 1), 0, 0
    while before < ROUNDS:
        rounds += 1
        if rounds > 3 * ROUNDS:
            raise Failure(f"only {before} of {rounds} kills came before COMMIT")
        first = receive(arena.b)
        with migrate(arena.a, arena.victim.pid, arena.b, *IMPATIENT, *arena.words(rounds), *arena.channels(rounds)) as sender:
            rest(arena.instant(chance, rounds))
            first.process.kill()
            first.close()
            with receive(arena.b) as second:
                code = sender.finish()
                if sender.crashed():
                    raise Failure(f"round {rounds}: {sender.said()}")
                fate = arena.settle([second.process.pid])
                said = sender.said()
                if (code == 0) != (fate == "moved") or (code == 7) != (fate == "stopped"):
                    raise Failure(f"round {rounds}: exit code {code}, but {fate}: {said}")
                fate = arena.conclude(fate, rounds, arena.words(rounds))
        await_empty(arena.b)
        before += fate == "original"
    return f"{before} kills before COMMIT, {rounds - before} after"


THROTTLED = ("--downtime-limit", "0", "--max-rounds", "1000000", "--cache", "0", "--throttle", "auto", "--throttle-initial", "80")


def kill_throttled(arena):
    """kill -9 of `migrate` while it lets the victim stand for most of its time, all of it or the threads that write."""
    chance, throttled, rounds = random.Random(SEED + 3), 0, max(4, ROUNDS // 5)
    receiver = receive(arena.b)
    try:
        for number in range(rounds):
            limit = ("--dirty-limit", "64k") if number % 2 else ()
            with migrate(arena.a, arena.victim.pid, arena.b, *THROTTLED, *limit) as sender:
                while (event := sender.events.until("progress")) is not None and not event["cpu-throttle-percentage"]:
                    pass
                throttled += event is not None
                # The engine must not wait for us to read on: a pipe takes some hundred rounds.
                rest(chance.uniform(0, 0.15))
                sender.process.kill()
                sender.process.wait(PATIENCE)
            if (fate := arena.conclude(arena.settle([receiver.process.pid]), number)) != "original":
                raise Failure(f"round {number}: {fate}")
    finally:
        receiver.close()
    if throttled < rounds:
        raise Failure(f"only {throttled} of {rounds} were throttled")
    return f"{rounds} kills"


REJECT = ("INPUT", "-p", "tcp", "-m", "multiport", "--ports", str(PORT), "-j", "REJECT", "--reject-with", "tcp-reset")


def cut(arena, how):
    """Cut the link at B: its cable, or by a firewall that resets what comes. Gives what mends it."""
    if how == "reset":
        arena.b.net("iptables", "-w", "-I", *REJECT)
        return lambda: arena.b.net("iptables", "-w", "-D", *REJECT)
    arena.hosts.link(arena.b, False)
    return lambda: arena.hosts.link(arena.b, True)


def cut_link(arena):
    """The link cut at random instants: for a moment, until the source has given up, by resets."""
    chance, rounds = random.Random(SEED + 2), max(3, ROUNDS // 3)
    fates = {"original": 0, "moved": 0, "stopped": 0}
    for number in range(rounds):
        how = ("moment", "reset", "reset", "long", "reset")[number % 5]
        with (receive(arena.b, *IMPATIENT) as receiver,
              migrate(arena.a, arena.victim.pid, arena.b, *IMPATIENT, *arena.channels(number)) as sender):
            rest(arena.instant(chance, 1))
            mend = cut(arena, how)
            try:
                if how == "long" or how == "reset" and number % 2:
                    sender.finish()
                else:
                    rest(chance.uniform(0.01, 0.25))
            finally:
                mend()
            code = sender.finish()
            if sender.crashed() or receiver.crashed() or receiver.process.poll() is not None:
                raise Failure(f"round {number}: {sender.said()}\n{receiver.said()}")
            fate = arena.settle([receiver.process.pid])
            if (code == 0) != (fate == "moved") or (code == 7) != (fate == "stopped"):
                raise Failure(f"round {number}: exit code {code}, but {fate}: {sender.said()}")
            fates[fate] += 1
            arena.conclude(fate, number)
        await_empty(arena.b)
    return f"{rounds} cuts: {fates['original']} stayed, {fates['moved']} moved all the same, {fates['stopped']} decided by a person"


# Where an engine can be made to die or fail by name (GODWIT_FAULT), on which side.
SOURCE_POINTS = ("arm", "armed-inside", "describe-source", "round", "barrier", "freeze", "frozen", "last-pass", "prepared",
                 "before-commit", "after-commit")
DESTINATION_POINTS = ("describe", "layout", "finish-state", "destination-prepared", "destination-commit")
# With an address that moves along.
SOURCE_ADDRESS_POINTS = ("address.setting", "address.rule", "address.route", "address.armed", "address.frozen",
                         "address.handover", "address.commit", "address.finish")
DESTINATION_ADDRESS_POINTS = ("address.claim",)
AFTER_COMMIT = ("after-commit", "destination-commit", "address.commit", "address.finish", "address.claim")


def at_point(arena, side, point, how):
    """One engine dies or fails at a named point: the rules hold there too."""
    fault = {"GODWIT_FAULT": f"{point}@1:{how}"}
    words = arena.words(0 if point.startswith("address.") else 1)
    with receive(arena.b, env=fault if side == "destination" else None) as receiver:
        with migrate(arena.a, arena.victim.pid, arena.b, *IMPATIENT, *words, env=fault if side == "source" else None) as sender:
            second = None
            try:
                if side == "destination" and how == "kill":
                    receiver.process.wait(PATIENCE)
                    second = receive(arena.b)
                code = sender.finish()
                if how == "kill" and (code if side == "source" else receiver.process.returncode) != -signal.SIGKILL:
                    raise Failure(f"nobody died at {point}: {sender.said()}\n{receiver.said()}")
                keepers = [engine.process.pid for engine in (receiver, second) if engine]
                fate = arena.settle(keepers)
                if point not in AFTER_COMMIT and fate != "original":
                    raise Failure(f"{fate}, though it came before COMMIT: {sender.said()}")
                arena.conclude(fate, point, words)
            finally:
                if second:
                    second.close()
    await_empty(arena.b)


def start(tap, name):
    """An arena, or None when it does not even come about, which is a failed test."""
    made = []
    return made[0] if tap.run(f"{name}/undisturbed", lambda: made.append(Arena())) else None


def in_arena(name, function):
    def part(tap):
        arena = start(tap, name)
        if arena:
            try:
                tap.run(name, function, arena)
            finally:
                arena.close()
    return part


def points(tap):
    arena = start(tap, "points")
    if not arena:
        return
    try:
        for side, names in (("source", SOURCE_POINTS + SOURCE_ADDRESS_POINTS),
                            ("destination", DESTINATION_POINTS + DESTINATION_ADDRESS_POINTS)):
            for point in names:
                for how in ("kill", "error"):
                    if not tap.run(f"points/{side}/{point}/{how}", at_point, arena, side, point, how):
                        arena.fresh_victim()
                        arena.take_service_back()
    finally:
        arena.close()


# The longest first, so that the last ones do not run alone.
PARTS = {
    "kill-destination": in_arena("kill-destination", kill_destination),
    "malformed-forward": lambda tap: proxied.run(tap, "forward"),
    "kill-source": in_arena("kill-source", kill_source),
    "kill-source-uffd-sync": in_arena("kill-source-uffd-sync", kill_source_sync),
    "malformed-backward": lambda tap: proxied.run(tap, "backward"),
    "kill-throttled": in_arena("kill-throttled", kill_throttled),
    "cut-link": in_arena("cut-link", cut_link),
    "malformed-images-0": lambda tap: malformed.run(tap, 0, 2),
    "malformed-images-1": lambda tap: malformed.run(tap, 1, 2),
    "points": points,
    "lacking": lacking.run,
    "malformed-guests": proxied.run_guests,
    "strangers-crowds": strangers.run_crowds,
    "strangers-on-their-way": strangers.run_on_their_way,
    "strangers": strangers.run,
}


class Parts:
    """Runs parts in processes of their own, some at once, and adds up what they say."""

    def __init__(self, names):
        self.names, self.sums, self.lock = list(names), [0, 0, 0], threading.Lock()

    def run(self):
        workers = [threading.Thread(target=self._work) for _ in range(min(len(self.names), os.cpu_count() or 2))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print("{} passed, {} failed, {} skipped".format(*self.sums), flush=True)
        return 1 if self.sums[1] or not self.sums[0] else 0

    def _work(self):
        while True:
            with self.lock:
                if not self.names:
                    return
                name = self.names.pop(0)
            self._part(name)

    def _part(self, name):
        part = subprocess.Popen([sys.executable, str(HERE / "run.py"), "--part", name], stdout=subprocess.PIPE, text=True)
        sums = None
        for line in part.stdout:
            found = re.fullmatch(r"(\d+) passed, (\d+) failed, (\d+) skipped\n", line)
            if found:
                sums = [int(number) for number in found.groups()]
            else:
                with self.lock:
                    print(line, end="", flush=True)
        part.wait()
        with self.lock:
            if sums is None:
                print(f"not ok fault {name} ended without a sum", flush=True)
            for index, number in enumerate(sums or [0, 1, 0]):
                self.sums[index] += number


def main(words):
    if words[:1] == ["--part"]:
        tap = Tap("fault")
        PARTS[words[1]](tap)
        return tap.finish()
    return Parts(name for name in PARTS if not words or any(word in name for word in words)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
