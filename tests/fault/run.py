#!/usr/bin/python3
"""The fault suite: engines killed and links cut at random instants, streams damaged on their way. Afterwards exactly one
copy runs, it is right, and nothing is left over. `run.py [kill-source|kill-destination|cut|malformed|points ...]`.

Seeded: GODWIT_SEED repeats a run's instants as far as a machine can. GODWIT_FAULT_ROUNDS: how many kills of each engine
(300; a third of it for cuts)."""
import os
import pathlib
import random
import select
import signal
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE)]
import malformed  # noqa: E402
import proxied  # noqa: E402
from godwit import (PATIENCE, Engine, Failure, Hosts, Program, Tap, await_empty, difference, footprint,  # noqa: E402
                    migrate, move, receive, state_of, sweep)

ROUNDS = int(os.environ.get("GODWIT_FAULT_ROUNDS", "300"))
SEED = int(os.environ.get("GODWIT_SEED", "20260101"))


def rest(seconds):
    """Let time pass up to a random instant; nothing is waited for."""
    select.select([], [], [], seconds)


class Victim:
    """The program that is nearly moved again and again, and what it must still be afterwards."""

    def __init__(self, host):
        self.program = Program(host, "everything")
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
        self.hosts = Hosts("A", "B")
        self.hosts.__enter__()
        self.a, self.b = self.hosts["A"], self.hosts["B"]
        self.victim = None
        self.moved = 0
        self.fresh_victim()
        completed, _ = move(self.a, self.b, self.victim.pid)
        self.duration = completed["total_ms"] / 1000 * 1.1 + 0.01  # s, with the start of the engine
        self.fresh_victim()

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

    def conclude(self, fate, round_number):
        """Verify whoever runs. The victim must be on A again for the next round."""
        if fate == "stopped":
            fate = self.decide()
        try:
            if fate == "original":
                self.victim.verify()
            else:
                self.moved += 1
                self.victim.program.host = self.b
                self.victim.program.check()
                self.fresh_victim()
        except Failure as failure:
            raise Failure(f"round {round_number}, seed {SEED}, {fate}: {failure}") from None
        return fate

    def close(self):
        if self.victim:
            self.victim.close()
        self.hosts.__exit__(None, None, None)


def kill_source(arena):
    """kill -9 of `migrate` at random instants, until ROUNDS of them came before COMMIT."""
    chance, before, rounds = random.Random(SEED), 0, 0
    receiver = receive(arena.b)
    try:
        while before < ROUNDS:
            rounds += 1
            if rounds > 3 * ROUNDS:
                raise Failure(f"only {before} of {rounds} kills came before COMMIT")
            with migrate(arena.a, arena.victim.pid, arena.b) as sender:
                rest(chance.uniform(0, arena.duration))
                sender.process.kill()
                sender.process.wait(PATIENCE)
            fate = arena.conclude(arena.settle([receiver.process.pid]), rounds)
            before += fate == "original"
            if receiver.process.poll() is not None or not arena.b.outer(receiver.process.pid):
                if receiver.crashed():
                    raise Failure(f"round {rounds}: the receiver: {receiver.said()}")
                receiver.close()
                receiver = receive(arena.b)
    finally:
        receiver.close()
    return f"{before} kills before COMMIT, {rounds - before} after"


def kill_destination(arena):
    """kill -9 of `receive` at random instants; a new one comes up at once, and the source finds out by itself."""
    chance, before, rounds = random.Random(SEED + 1), 0, 0
    while before < ROUNDS:
        rounds += 1
        if rounds > 3 * ROUNDS:
            raise Failure(f"only {before} of {rounds} kills came before COMMIT")
        first = receive(arena.b)
        with migrate(arena.a, arena.victim.pid, arena.b) as sender:
            rest(chance.uniform(0, arena.duration))
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
                fate = arena.conclude(fate, rounds)
        await_empty(arena.b)
        before += fate == "original"
    return f"{before} kills before COMMIT, {rounds - before} after"


def cut_link(arena):
    """The cable of B pulled at random instants: mostly for a moment, sometimes until the source gives up."""
    chance, rounds = random.Random(SEED + 2), max(1, ROUNDS // 3)
    fates, long_cuts = {"original": 0, "moved": 0, "stopped": 0}, max(1, rounds // 25)
    for number in range(rounds):
        with receive(arena.b) as receiver, migrate(arena.a, arena.victim.pid, arena.b) as sender:
            rest(chance.uniform(0, arena.duration))
            arena.hosts.link(arena.b, False)
            try:
                if number % 25 == 24 and long_cuts:
                    code = sender.finish()
                else:
                    rest(chance.uniform(0.02, 0.6))
            finally:
                arena.hosts.link(arena.b, True)
            code = sender.finish()
            if sender.crashed() or receiver.crashed():
                raise Failure(f"round {number}: {sender.said()}\n{receiver.said()}")
            fate = arena.settle([receiver.process.pid])
            if (code == 0) != (fate == "moved") or (code == 7) != (fate == "stopped"):
                raise Failure(f"round {number}: exit code {code}, but {fate}: {sender.said()}")
            fates[arena.conclude(fate, number)] += 1
        await_empty(arena.b)
    return f"{rounds} cuts: {fates['original']} stayed, {fates['moved']} moved all the same"


# Where an engine can be made to die or fail by name (GODWIT_FAULT), on which side.
SOURCE_POINTS = ("arm", "armed-inside", "describe-source", "round", "barrier", "freeze", "frozen", "last-pass", "prepared",
                 "before-commit", "after-commit")
DESTINATION_POINTS = ("describe", "layout", "finish-state", "destination-prepared", "destination-commit")


def at_point(arena, side, point, how):
    """One engine dies or fails at a named point: the rules hold there too."""
    fault = {"GODWIT_FAULT": f"{point}@1:{how}"}
    with receive(arena.b, env=fault if side == "destination" else None) as receiver:
        with migrate(arena.a, arena.victim.pid, arena.b, env=fault if side == "source" else None) as sender:
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
                if point not in ("after-commit", "destination-commit") and fate != "original":
                    raise Failure(f"{fate}, though it came before COMMIT: {sender.said()}")
                arena.conclude(fate, point)
            finally:
                if second:
                    second.close()
    await_empty(arena.b)


def main(words):
    tap = Tap("fault")
    chosen = lambda name: not words or any(word in name for word in words)  # noqa: E731
    if chosen("malformed"):
        malformed.run(tap)
        proxied.run(tap)
    for name, function in (("kill-source", kill_source), ("kill-destination", kill_destination), ("cut-link", cut_link)):
        if chosen(name):
            arena = Arena()
            try:
                tap.run(name, function, arena)
            finally:
                arena.close()
    if chosen("points"):
        arena = Arena()
        try:
            for side, points in (("source", SOURCE_POINTS), ("destination", DESTINATION_POINTS)):
                for point in points:
                    for how in ("kill", "error"):
                        if not tap.run(f"points/{side}/{point}/{how}", at_point, arena, side, point, how):
                            arena.fresh_victim()
        finally:
            arena.close()
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
