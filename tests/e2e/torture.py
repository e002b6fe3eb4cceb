#!/usr/bin/python3
"""The torture of memory: a program that changes its mappings and contents at random (tests/programs/torture.c), moved
back and forth, each time with another seed, over every combination of delta cache and channels.

    run.py torture                      GODWIT_MOVES moves (by default a few)
    torture.py SEED [CACHE CHANNELS [WORD...]]   one seed again, 2 moves or GODWIT_MOVES; the words go to the program
    torture.py walk FIRST MOVES          that many moves, each of a seed of its own and, by it, of another combination of
                                         tracker, compression, delta cache and channels; a line for each wrong one with
                                         the command that repeats it, a summary at the end. GODWIT_MOVES: moves a seed.
    torture.py again SEED                one seed of a walk

GODWIT_TRACKER=uffd-sync: with that tracker (in a walk: with no other). In a walk, GODWIT_POSTCOPY=1 or 0: all moves by
post-copy, or none; else a third.
"""
import collections
import itertools
import os
import pathlib
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent / "support")]
from godwit import Failure, Hosts, HugePages, Program, await_empty, await_gone, migrate, receive, stand, sweep  # noqa: E402

CACHES = ("0", "64M", "256k")
CHANNELS = (1, 2, 4)
MOVES_A_SEED = 2
REFUSALS = 20
# Three threads with two areas of two pages, on both hosts, and copies that children make; 24 more for --verify's looks.
HUGE_PAGES = 64
WALKED = tuple(itertools.product(("auto", "uffd", "uffd-sync"), ("none", "lz4", "zstd"), ("0", "64M"), ("1", "2", "4")))


def variant(seed):
    """The seed decides the rest: how many threads, which of the costly operations, how fast the link, how to compress."""
    words = [str(seed), str(1 + seed % 3)]
    compress = ["--compress", ("auto", "lz4", "none", "zstd")[seed // 4 % 4]]
    return words, compress + (["--bandwidth", "40M", "--downtime-limit", "2000"] if seed % 4 == 3 else [])


def report_of(moved):
    try:
        return (moved.directory / "report").read_text()
    except OSError:
        return ""


def patiently(moved, move, refusals=None):
    """What the program does to its files, a ring or a child of a moment may refuse a move: it runs on, and a later one is not."""
    for _ in range(REFUSALS):
        try:
            return move()
        except Failure as failure:
            if '"kind": "refused"' not in str(failure):
                raise
            if refusals is not None:
                refusals[str(failure).partition('"operation": "')[2].partition('"')[0]] += 1
            moved.check()
    return move()


def move_and_look(moved, a, b, moves, downtimes, cache, channels, link):
    for number in range(moves):
        here, there = (a, b) if number % 2 == 0 else (b, a)
        completed = patiently(moved, lambda: moved.move_to(there, "--cache", cache, "--channels", channels, "--verify", *link))
        downtimes.append(completed["downtime_ms"])
        moved.check()
        await_empty(here)


def one_seed(a, b, seed, cache, channels, moves=MOVES_A_SEED, more=()):
    """Back and forth; raises Failure with the command that repeats it. Returns the downtimes."""
    words, link = variant(seed)
    downtimes = []
    report, ended = "", None
    try:
        with Program(a, "torture", [*words, *more]) as moved:
            try:
                move_and_look(moved, a, b, moves, downtimes, cache, channels, link)
            except Failure as failure:
                if "silent" in str(failure):
                    raise Failure(f"{failure}\n{stand(moved.host)}") from None
                raise
            finally:
                report, ended = report_of(moved), moved.process.poll()
    except Failure as failure:
        sweep(a, b)
        tracker = os.environ.get("GODWIT_TRACKER")
        again = f"{f'GODWIT_TRACKER={tracker} ' if tracker else ''}tests/e2e/torture.py {seed} {cache} {channels} {' '.join(more)}"
        raise Failure(f"seed {seed}, cache {cache}, {channels} channels, move {len(downtimes) + 1}: {failure}\n"
                      f"{'' if ended is None else f'its first process ended: {ended}'}\n{report}"
                      f"again: {again}") from None
    return downtimes


def walked(seed):
    """Options and threads of a seed of a walk: all combinations within 54 seeds, 1 to 3 threads within 324. It freezes after
    a few rounds, whatever is written still: a move is short, and its last pass has much to do."""
    tracker, compress, cache, channels = WALKED[seed % len(WALKED)]
    tracker = os.environ.get("GODWIT_TRACKER", tracker)
    options = ["--tracker", tracker, "--compress", compress, "--cache", cache, "--channels", channels]
    # A third by post-copy, of those one half over a link so slow that much happens to memory that is not there yet.
    post = os.environ.get("GODWIT_POSTCOPY", str(int(seed // 5 % 3 == 0))) == "1"
    rounds = seed * 2654435761 // 128 % 5
    if post:
        options += ["--postcopy-after", str(rounds % 4)] + (["--bandwidth", "24M"] if seed % 2 else [])
    else:
        options += ["--max-rounds", str(2 + rounds), "--on-timeout", "force", "--verify"]
    return options, [str(seed), str((1, 1, 2, 1, 1, 3)[seed // len(WALKED) % 6])]


class Walk:
    """Moves between two hosts whose receivers stay: one for all moves, until something goes wrong."""

    def __init__(self, a, b):
        self.hosts, self.receivers = (a, b), {}
        self.downtimes, self.refusals, self.wrong = [], collections.Counter(), []

    def close(self):
        for receiver in self.receivers.values():
            receiver.close()
        self.receivers = {}
        sweep(*self.hosts)

    def receiver(self, host):
        if host not in self.receivers:
            self.receivers[host] = receive(host)
        return self.receivers[host]

    def move(self, moved, options):
        source, there = moved.host, self.hosts[moved.host is self.hosts[0]]
        receiver = self.receiver(there)
        with migrate(source, moved.pid, there, *options) as sender:
            if sender.finish() != 0 or sender.crashed() or receiver.crashed():
                raise Failure(sender.said() + "\n" + receiver.said())
            completed, original = sender.last(), source.outer(moved.pid)
            if completed["postcopy"] and completed["postcopy"]["reconnects"]:
                raise Failure(f"a link broke: {sender.said()}\n{receiver.said()}")
        running = receiver.events.until("running")
        if running is None:
            raise Failure(receiver.said())
        if original:
            await_gone(original, f"the original, pid {moved.pid} on {source.name},")
        moved.host, moved.pid = there, running["pid"]
        return completed

    def one_seed(self, seed, moves):
        options, words = walked(seed)
        report, done = "", 0
        try:
            with Program(self.hosts[0], "torture", words) as moved:
                try:
                    for done in range(moves):
                        self.downtimes.append(patiently(moved, lambda: self.move(moved, options), self.refusals)["downtime_ms"])
                        moved.check()
                except Failure as failure:
                    stuck = "silent" in str(failure) or "no word" in str(failure)
                    heard = "\n".join(receiver.said() for receiver in self.receivers.values())
                    where = "\n".join(stand(host) for host in self.hosts) if stuck else ""
                    raise Failure(f"{failure}\n{heard}\n{where}") from None
                finally:
                    report = report_of(moved)
        except Failure as failure:
            self.wrong.append(seed)
            self.close()
            print(f"WRONG seed {seed}, {' '.join(options)}, move {done + 1}: {failure}\n{report}"
                  f"again: tests/e2e/torture.py again {seed}", flush=True)


def walk(first, moves):
    """Prints as it goes; returns how many seeds went wrong."""
    a_seed = int(os.environ.get("GODWIT_MOVES", "1"))
    began, seed = time.monotonic(), first
    with HugePages(HUGE_PAGES) as reserved, Hosts("A", "B") as hosts:
        if reserved.missing:
            print(f"without hugetlbfs: {reserved.missing}")
        walking = Walk(hosts["A"], hosts["B"])
        while len(walking.downtimes) < moves and len(walking.wrong) <= moves:
            walking.one_seed(seed, a_seed)
            seed += 1
            if (seed - first) % 50 == 0:
                print(f"{len(walking.downtimes)} moves, seeds {first}..{seed - 1}, {len(walking.wrong)} wrong, "
                      f"{len(walking.downtimes) / (time.monotonic() - began) * 60:.0f} moves a minute", flush=True)
        walking.close()
    times = sorted(walking.downtimes) or [0]
    print(f"{len(walking.downtimes)} moves of seeds {first}..{seed - 1} in {time.monotonic() - began:.0f} s; downtime median "
          f"{times[len(times) // 2]:.1f} ms, longest {times[-1]:.1f} ms; {len(walking.wrong)} wrong: {walking.wrong}; "
          f"refused and tried again: {dict(walking.refusals)}")
    return len(walking.wrong)


def many_seeds(a, b, cache, channels, first, moves):
    """`moves` moves with seeds from `first` on."""
    seeds = range(first, first + max(1, moves // MOVES_A_SEED))
    downtimes = sorted(time for seed in seeds for time in one_seed(a, b, seed, cache, channels))
    return f"seeds {seeds[0]}..{seeds[-1]}, {len(downtimes)} moves, downtime median " \
           f"{downtimes[len(downtimes) // 2]:.1f} ms, longest {downtimes[-1]:.1f} ms"


def plan_torture(plan, moves):
    """Each combination has seeds of its own; GODWIT_SEED moves them all."""
    base = int(os.environ.get("GODWIT_SEED", "1"))
    combinations = list(itertools.product(CACHES, CHANNELS))
    share = max(MOVES_A_SEED, -(-moves // len(combinations)))
    for number, (cache, channels) in enumerate(combinations):
        plan.test(f"torture --cache {cache} --channels {channels}", many_seeds, cache, channels, base + number * share, share, huge_pages=HUGE_PAGES)


def main(argv):
    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    if argv[0] == "walk":
        return min(1, walk(int(argv[1]), int(argv[2])))
    if argv[0] == "again":
        return min(1, walk(int(argv[1]), 1))
    seed, cache, channels = int(argv[0]), (argv[1:2] or ["64M"])[0], int((argv[2:3] or ["1"])[0])
    with HugePages(HUGE_PAGES), Hosts("A", "B") as hosts:
        try:
            times = one_seed(hosts["A"], hosts["B"], seed, cache, channels, int(os.environ.get("GODWIT_MOVES", MOVES_A_SEED)), argv[3:])
        except Failure as failure:
            print(failure)
            return 1
    print(f"seed {seed}: {len(times)} moves, downtimes {', '.join(f'{time:.1f}' for time in times)} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
