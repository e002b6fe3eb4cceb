"""Bench `blackout`: what a program notices of its move. The heartbeat program stamps CLOCK_REALTIME every 0.2 ms; it is
moved back and forth between two hosts, one line for each load. The blackout is the pause that it sees around the freeze.

--only takes names of LOADS, e.g. "1 GiB, 1000 hot pages"; 8 GiB, which needs 17 GiB of free memory, is measured only if named."""
import dataclasses
import json
import time

from bench_record import markdown, progress, spread, told
from godwit import Failure, Hosts, Program, secured
from latency import delayed


@dataclasses.dataclass(frozen=True)
class Load:
    name: str
    touched: int            # MiB
    dirty: int = 0          # MiB/s, pages rewritten
    hot: int = 0            # pages, each rewritten every 2 ms
    held: int = 0           # MiB of a memfd that it never maps
    tls: str = ""           # "psk" or "certificates"
    rtt_ms: float = 0       # added to the hosts' link
    named_only: bool = False

    def words(self):
        return [str(self.touched), str(self.dirty), "0", str(self.hot), str(self.held)]


LOADS = [
    Load("1 MiB", 1),
    Load("64 MiB", 64),
    Load("64 MiB and a memfd of 2 GiB, never mapped", 64, held=2048),
    Load("1 GiB", 1024),
    Load("4 GiB", 4096),
    Load("8 GiB", 8192, named_only=True),
    Load("1 GiB, 200 MiB/s", 1024, dirty=200),
    Load("1 GiB, 1000 hot pages", 1024, hot=1000),
    Load("64 MiB, 1 ms round trip", 64, rtt_ms=1),
    Load("64 MiB, TLS", 64, tls="psk"),
    Load("1 GiB, TLS", 1024, tls="psk"),
    Load("1 GiB, 1000 hot pages, TLS", 1024, hot=1000, tls="psk"),
]
SETTLE = 3  # seconds: what the last move freed goes back to the host of this virtual machine
PARTS = ("freeze", "scan", "pages", "state", "commit", "resume")


def pauses(moved):
    """Between the last two looks: (begin, end, length), all in ms of CLOCK_REALTIME."""
    beats = json.loads((moved.directory / f"beats.{moved.round}").read_text())
    return [(beat["at_ns"] / 1e6 - beat["ms"], beat["at_ns"] / 1e6, beat["ms"]) for beat in beats["pauses"]]


def blackout(moved, completed):
    """The pause that the freeze made; the others are the machine's, whose two cores both engines share with the program."""
    frozen = completed["frozen_at_ms"]
    return max(length for begin, end, length in pauses(moved) if begin < frozen + completed["downtime_ms"] and end > frozen)


def measure(hosts, load, runs):
    """`runs` moves of one program back and forth. Its pauses without a move are the machine's own."""
    a, b = hosts["A"], hosts["B"]
    rows, failed = [], []
    with Program(a, "heartbeat", load.words()) as moved:
        moved.check()
        moved.check()  # the span between the two: no move in it, but a verification of all memory
        still = max(length for _, _, length in pauses(moved))
        for _ in range(runs):
            time.sleep(SETTLE)
            moved.check()
            try:
                completed = moved.move_to(b if moved.host is a else a)
            except Failure as failure:  # such as a program that writes faster than a busy machine sends
                failed.append(str(failure))
                progress(f"blackout {load.name}: a move failed: {str(failure)[:400]}")
                continue
            moved.check()
            rows.append({"pause_ms": blackout(moved, completed), "downtime_ms": completed["downtime_ms"], "total_ms": completed["total_ms"],
                         "downtime": completed["downtime"], "rounds": len(completed["rounds"]), "wire": completed["bytes"]["wire"],
                         "objects_frozen": completed["bytes"]["objects_frozen"]})
    if not rows:
        raise Failure(f"no move of {load.name} succeeded")
    return {"load": dataclasses.asdict(load), "failed": failed, "still_ms": still, "pause_ms": spread([row["pause_ms"] for row in rows]),
            "downtime_ms": spread([row["downtime_ms"] for row in rows]), "total_ms": spread([row["total_ms"] for row in rows]),
            "parts_us": {part: spread([row["downtime"][part] for row in rows]) for part in PARTS},
            "rounds": spread([row["rounds"] for row in rows]), "raw": rows}


def add_options(parser):
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", action="append", help="the name of a load; may be repeated")


def chosen(arguments):
    names = {load.name: load for load in LOADS}
    for name in arguments.only or []:
        if name not in names:
            raise SystemExit(f"blackout: no load {name!r}; there are {', '.join(map(repr, names))}")
    if arguments.only:
        return [names[name] for name in arguments.only]
    return [load for load in LOADS if not load.named_only and not (arguments.quick and load.touched > 1024)]


def run(arguments):
    results = []
    with Hosts("A", "B") as hosts:
        for load in chosen(arguments):
            try:
                with delayed(hosts, load.rtt_ms), secured(load.tls):
                    results.append(measure(hosts, load, 3 if arguments.quick else arguments.runs))
                progress(f"blackout {load.name}: {told(results[-1]['pause_ms'])} ms")
            except Failure as failure:
                progress(f"blackout: {failure}")
    return {"loads": results}


def table(result):
    rows = [[one["load"]["name"] + (f" ({len(one['failed'])} moves failed)" if one["failed"] else ""), f"{told(one['pause_ms'])} ms", f"{told(one['downtime_ms'])} ms",
             *(f"{one['parts_us'][part]['median'] / 1e3:.2f}" for part in PARTS), f"{one['still_ms']:.2f}",
             f"{one['rounds']['median']:.0f}"] for one in result["loads"]]
    return markdown(["touched, rewritten", "pause seen", "downtime", *PARTS, "longest pause without a move", "rounds"], rows)
