#!/usr/bin/python3
"""Bench `blackout`: what a program notices of its move. The heartbeat program stamps CLOCK_REALTIME every 0.2 ms; it is
moved between two hosts with 1 MiB, 64 MiB, 1 GiB and 4 GiB touched and idle, with 200 MiB/s rewritten at 1 GiB, and with
64 MiB and a memfd of 2 GiB that it never maps. The blackout is the pause that it sees around the freeze. Prints a table and
one JSON object; passes or fails on nothing.

blackout.py [--runs N] [--only TOUCHED[+DIRTY[+HELD]]] [--json FILE]"""
import argparse
import json
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from bench_record import publish  # noqa: E402
from godwit import Hosts, Program  # noqa: E402

# MiB touched, MiB/s rewritten, MiB of a memfd
SIZES = [(1, 0, 0), (64, 0, 0), (64, 0, 2048), (1024, 0, 0), (4096, 0, 0), (1024, 200, 0)]
SETTLE = 3  # seconds: what the last move freed goes back to the host of this virtual machine
PARTS = ("freeze", "scan", "pages", "state", "commit", "resume")


def spread(values):
    values = sorted(values)
    return {"median": statistics.median(values), "least": values[0], "most": values[-1],
            "quartiles": statistics.quantiles(values, n=4)[::2] if len(values) > 1 else values * 2, "runs": len(values)}


def pauses(moved):
    """Between the last two looks: (begin, end, length), all in ms of CLOCK_REALTIME."""
    beats = json.loads((moved.directory / f"beats.{moved.round}").read_text())
    return [(beat["at_ns"] / 1e6 - beat["ms"], beat["at_ns"] / 1e6, beat["ms"]) for beat in beats["pauses"]]


def blackout(moved, completed):
    """The pause that the freeze made; the others are the machine's, whose two cores both engines share with the program."""
    frozen = completed["frozen_at_ms"]
    return max(length for begin, end, length in pauses(moved) if begin < frozen + completed["downtime_ms"] and end > frozen)


def measure(hosts, touched, dirty, held, runs):
    """`runs` moves of one program back and forth. Its pauses without a move are the machine's own."""
    a, b = hosts["A"], hosts["B"]
    rows = []
    with Program(a, "heartbeat", [str(touched), str(dirty), "0", str(held)]) as moved:
        moved.check()
        moved.check()  # the span between the two: no move in it, but a verification of all memory
        still = max(length for _, _, length in pauses(moved))
        for _ in range(runs):
            time.sleep(SETTLE)
            moved.check()
            completed = moved.move_to(b if moved.host is a else a)
            moved.check()
            rows.append({"pause_ms": blackout(moved, completed), "downtime_ms": completed["downtime_ms"], "total_ms": completed["total_ms"],
                         "objects_frozen": completed["bytes"]["objects_frozen"], "downtime": completed["downtime"], "rounds": len(completed["rounds"]), "wire": completed["bytes"]["wire"]})
    return {"touched_mib": touched, "dirty_mib_per_s": dirty, "held_mib": held, "still_ms": still, "pause_ms": spread([row["pause_ms"] for row in rows]),
            "downtime_ms": spread([row["downtime_ms"] for row in rows]), "total_ms": spread([row["total_ms"] for row in rows]),
            "parts_us": {part: statistics.median(row["downtime"][part] for row in rows) for part in PARTS},
            "rounds": statistics.median(row["rounds"] for row in rows), "raw": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", help="e.g. 64 or 1024+200")
    parser.add_argument("--json", help="write the JSON here instead of to stdout")
    arguments = parser.parse_args()
    results = []
    print(f"{'touched':>9} {'dirty':>9} {'memfd':>8} | {'pause ms: median (least..most)':>32} | {'downtime ms':>22} | parts, median us: {' '.join(PARTS)}")
    with Hosts("A", "B") as hosts:
        for touched, dirty, held in SIZES:
            names = (f"{touched}+{dirty}+{held}", "" if held else f"{touched}+{dirty}", "" if held or dirty else str(touched))
            if arguments.only and arguments.only not in names:
                continue
            one = measure(hosts, touched, dirty, held, arguments.runs)
            results.append(one)
            pause, down = one["pause_ms"], one["downtime_ms"]
            print(f"{touched:>5} MiB {dirty:>4} MiB/s {held:>4} MiB | {pause['median']:>12.2f} ({pause['least']:.2f}..{pause['most']:.2f})"
                  f" still {one['still_ms']:.2f} | {down['median']:>8.2f} ({down['least']:.2f}..{down['most']:.2f}) | "
                  + " ".join(f"{one['parts_us'][part]:.0f}" for part in PARTS), flush=True)
    publish("blackout", {"results": results}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
