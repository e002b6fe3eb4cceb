#!/usr/bin/python3
"""Bench `slow-link`: a program of 1 GiB that stores 50,000 words a second at random places moves over a link of 125 MB/s
(tbf), with several budgets for the bases of deltas. The limit is the time that its memory alone takes on that link. Passes
or fails on nothing.

slow_link.py [--runs N] [--mib N] [--stores N] [--caches LIST] [--json FILE]"""
import argparse
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from bench_record import publish  # noqa: E402
from godwit import Hosts, Program, move  # noqa: E402

LINK = 125e6


def one_move(hosts, arguments, cache):
    a, b = hosts["A"], hosts["B"]
    with Program(a, "heartbeat", [str(arguments.mib), "0", str(arguments.stores)]) as moved:
        completed, _ = move(a, b, moved.pid, "--cache", cache, "--max-rounds", "100")
        moved.host = b
        moved.check()
    return completed


def shape(host):
    host.run(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "20ms"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--stores", type=int, default=50000)
    parser.add_argument("--caches", default="16M,64M,256M,512M,1100M")
    parser.add_argument("--json", help="write the JSON here instead of to stdout")
    arguments = parser.parse_args()
    limit = arguments.mib * 2**20 / LINK
    caches = arguments.caches.split(",")
    moves = {cache: [] for cache in caches}
    with Hosts("A", "B") as hosts:
        shape(hosts["A"])
        for _ in range(arguments.runs):
            for cache in caches:
                done = one_move(hosts, arguments, cache)
                moves[cache].append(done)
                print(f"cache {cache}: {done['total_ms'] / 1e3:.2f} s, {done['total_ms'] / 1e3 / limit:.2f} of the link's limit, "
                      f"{len(done['rounds'])} rounds, {done['bytes']['wire'] / 2**20:.0f} MiB, downtime {done['downtime_ms']:.1f} ms, "
                      f"{done['pages']['xbzrle']} deltas, {done['pages']['raw']} raw", flush=True)
    for cache in caches:
        seconds = [done["total_ms"] / 1e3 for done in moves[cache]]
        print(f"cache {cache:>6}: {statistics.median(seconds):.2f} s ({min(seconds):.2f}..{max(seconds):.2f}), "
              f"{statistics.median(seconds) / limit:.2f} of {limit:.1f} s")
    publish("slow_link", {"mib": arguments.mib, "stores_per_s": arguments.stores, "limit_s": limit,
                          "total_s": {cache: [done["total_ms"] / 1e3 for done in moves[cache]] for cache in caches},
                          "completed": moves}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
