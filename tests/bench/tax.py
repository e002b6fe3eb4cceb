#!/usr/bin/python3
"""Bench `tax`: what a program loses of its own work while it is migrated, by tracker.

The program `writers` writes pages as fast as it can: the worst case, each page a fault after every round. Its pages a
second and the time of a batch of 64 pages are measured untracked and, in the same process, during rounds without end; the
link is held at --bandwidth, so that rounds come as on a network. What is compared is what it would do without competition
for the processors (tests/programs/writers.c), for both engines run on them, too."""
import argparse
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent / "e2e")]
from bench_record import publish  # noqa: E402
from control import ENDLESS, await_status, migrate, rates, say  # noqa: E402
from godwit import Hosts, Program, receive  # noqa: E402

TRACKERS = ("uffd", "uffd-sync")


def median(samples, what):
    return statistics.median(sample[what] for sample in samples)


def taxed(hosts, tracker, arguments):
    """What the program does before and after, and while it is tracked."""
    a, b = hosts["A"], hosts["B"]
    with Program(a, "writers", [str(arguments.mib)]) as program:
        rates(program)  # its memory is warm then
        free = [rates(program) for _ in range(arguments.samples)]
        words = (*ENDLESS, "--tracker", tracker, "--bandwidth", arguments.bandwidth, "--cache", "0")
        with receive(b, "--once"), migrate(a, program.pid, b, *words) as sender:
            await_status(a, program.pid, sender, "the third round", lambda now: now["round"] >= 3)
            tracked = [rates(program) for _ in range(arguments.samples)]
            say(a, "cancel", program.pid)
            sender.finish()
        free += [rates(program) for _ in range(arguments.samples)]
    return free, tracked


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--bandwidth", default="125M")
    parser.add_argument("--json", help="write the JSON here instead of to stdout")
    arguments = parser.parse_args()
    results = {}
    with Hosts("A", "B") as hosts:
        for tracker in TRACKERS:
            free, tracked = taxed(hosts, tracker, arguments)
            ratios = [one["pages_alone"] / median(free, "pages_alone") for one in tracked]
            results[tracker] = {"free": free, "tracked": tracked, "throughput": statistics.median(ratios)}
            print(f"{tracker}: {statistics.median(ratios):.2f} of its throughput ({min(ratios):.2f}..{max(ratios):.2f}); "
                  f"64 pages take {median(free, 'batch_p50_us'):.0f} us untracked (p99 {median(free, 'batch_p99_us'):.0f}), "
                  f"{median(tracked, 'batch_p50_us'):.0f} us tracked (p99 {median(tracked, 'batch_p99_us'):.0f})", flush=True)
    publish("tax", {"mib": arguments.mib, "bandwidth": arguments.bandwidth, "trackers": results}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
