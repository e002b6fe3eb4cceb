#!/usr/bin/python3
"""Bench `slow-link`: a program of 1 GiB that stores 50,000 words a second at random places moves over a link of 125 MB/s
(tbf), with several budgets for the bases of deltas and several ways to compress. The limit is the time that its memory
alone takes on that link as it is. One word of eight of that memory is random, the others are zeros: it packs well. Passes or
fails on nothing.

slow_link.py [--runs N] [--mib N] [--stores N] [--caches LIST] [--compress LIST] [--rate TC_RATE] [--json FILE]"""
import argparse
import itertools
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from bench_record import publish  # noqa: E402
from godwit import Hosts, Program, move  # noqa: E402

UNITS = {"kbit": 125, "mbit": 125e3, "gbit": 125e6}


def bytes_per_second(rate):
    unit = next(unit for unit in UNITS if rate.endswith(unit))
    return float(rate.removesuffix(unit)) * UNITS[unit]


def one_move(hosts, arguments, cache, compress):
    a, b = hosts["A"], hosts["B"]
    with Program(a, "heartbeat", [str(arguments.mib), "0", str(arguments.stores)]) as moved:
        completed, _ = move(a, b, moved.pid, "--cache", cache, "--compress", compress, "--max-rounds", "100")
        moved.host = b
        moved.check()
    return completed


def shape(host, rate):
    host.run(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "20ms"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--stores", type=int, default=50000)
    parser.add_argument("--caches", default="16M,64M,256M,512M,1100M")
    parser.add_argument("--compress", default="none,auto")
    parser.add_argument("--rate", default="1gbit", help="of the link, as tc reads it")
    parser.add_argument("--json", help="write the JSON here instead of to stdout")
    arguments = parser.parse_args()
    limit = arguments.mib * 2**20 / bytes_per_second(arguments.rate)
    kinds = list(itertools.product(arguments.caches.split(","), arguments.compress.split(",")))
    moves = {f"cache {cache}, compress {compress}": [] for cache, compress in kinds}
    with Hosts("A", "B") as hosts:
        shape(hosts["A"], arguments.rate)
        for _ in range(arguments.runs):
            for (cache, compress), (name, done_before) in zip(kinds, moves.items()):
                done = one_move(hosts, arguments, cache, compress)
                done_before.append(done)
                print(f"{name}: {done['total_ms'] / 1e3:.2f} s, {done['total_ms'] / 1e3 / limit:.2f} of the link's limit, "
                      f"{len(done['rounds'])} rounds, {done['bytes']['wire'] / 2**20:.0f} MiB, downtime {done['downtime_ms']:.1f} ms, "
                      f"{done['pages']['xbzrle']} deltas, {done['pages']['raw']} raw, {done['packed']['pages']} packed", flush=True)
    for name, done in moves.items():
        seconds = [one["total_ms"] / 1e3 for one in done]
        print(f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f}..{max(seconds):.2f}), "
              f"{statistics.median(seconds) / limit:.2f} of {limit:.1f} s")
    publish("slow_link", {"mib": arguments.mib, "stores_per_s": arguments.stores, "limit_s": limit,
                          "rate": arguments.rate,
                          "total_s": {name: [one["total_ms"] / 1e3 for one in done] for name, done in moves.items()},
                          "completed": moves}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
