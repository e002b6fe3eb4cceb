#!/usr/bin/python3
"""Bench `throughput`: pre-copy of 1 GiB between two hosts while the program runs, against raw TCP over the same wire in the
same run, alternating. Prints the ratio, and one JSON object; passes or fails on nothing.

A virtual machine's host may take free pages away; then the first touch of each costs ten times as much, or nothing, by
chance. So before each measurement as much memory as it needs is touched and given back; --cold leaves that out.

throughput.py [--runs N] [--mib N] [--channels N] [--cold] [--json FILE]"""
import argparse
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from bench_record import publish  # noqa: E402
from godwit import BUILD, Failure, Hosts, Program, move  # noqa: E402


def warm(mib):
    """Makes the host give this machine pages for the copy, and some more."""
    subprocess.run([str(BUILD / "tests" / "bench" / "raw_tcp"), "touch", str(2 * mib + 256)], check=True)


def raw_tcp(hosts, mib, *keep):
    """GB/s of a plain sender with 1 MiB writes and a plain receiver (tests/bench/raw_tcp.c), which throws it away or keeps
    it in fresh memory."""
    a, b = hosts["A"], hosts["B"]
    tool = str(BUILD / "tests" / "bench" / "raw_tcp")
    sink = b.popen([tool, "receive", "5001", *keep], stdout=subprocess.PIPE)
    try:
        if sink.stdout.read(6) != b"ready\n":
            raise Failure("raw_tcp does not listen")
        return float(a.run([tool, "send", b.address, "5001", str(mib)], check=True).stdout)
    finally:
        sink.close()


def precopy(hosts, mib, channels, prepare):
    """GB/s of the first round: every page of a program that holds that much and runs on meanwhile. Whole pages."""
    a, b = hosts["A"], hosts["B"]
    with Program(a, "heartbeat", [str(mib), "0"]) as moved:
        prepare(mib)
        completed, _ = move(a, b, moved.pid, "--channels", str(channels), "--compress", "none")
        moved.host = b
        moved.check()
    first = completed["rounds"][0]
    return {"gb_per_s": first["pages"] * 4096 / first["duration_us"] / 1e3, "wire_gb_per_s": first["bytes"] / first["duration_us"] / 1e3,
            "seconds": first["duration_us"] / 1e6, "total_ms": completed["total_ms"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--json", help="write the JSON here instead of to stdout")
    arguments = parser.parse_args()
    raw, kept, rounds = [], [], []
    prepare = (lambda mib: None) if arguments.cold else warm
    with Hosts("A", "B") as hosts:
        for _ in range(arguments.runs):
            prepare(arguments.mib)
            raw.append(raw_tcp(hosts, arguments.mib))
            prepare(arguments.mib)
            kept.append(raw_tcp(hosts, arguments.mib, str(arguments.mib)))
            rounds.append(precopy(hosts, arguments.mib, arguments.channels, prepare))
            print(f"raw TCP {raw[-1]:.2f} GB/s, into fresh memory {kept[-1]:.2f} GB/s, pre-copy {rounds[-1]['gb_per_s']:.2f} GB/s of memory, "
                  f"{rounds[-1]['wire_gb_per_s']:.2f} GB/s on the wire", flush=True)
    ratios, to_kept = ([one["gb_per_s"] / base for one, base in zip(rounds, yardstick)] for yardstick in (raw, kept))
    print(f"pre-copy of {arguments.mib} MiB: {statistics.median(ratios):.2f} of raw TCP (median of {len(ratios)}, "
          f"{min(ratios):.2f}..{max(ratios):.2f}), {statistics.median(to_kept):.2f} of raw TCP into fresh memory "
          f"({min(to_kept):.2f}..{max(to_kept):.2f})")
    publish("throughput", {"mib": arguments.mib, "ratio": statistics.median(ratios), "ratios": ratios, "raw_gb_per_s": raw,
                           "kept_ratios": to_kept, "kept_gb_per_s": kept, "precopy": rounds}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
