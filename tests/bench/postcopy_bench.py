"""Bench `postcopy`: a program runs at the destination before all of its memory has come. The heartbeat program stamps
CLOCK_REALTIME every 0.2 ms and is moved back and forth, one line for each load: the blackout as it sees it, the three
longest pauses after the resume, how long a touched page takes to come, and how long until all is there, beside what raw TCP
over the same link takes for as many bytes. `all missing` is --postcopy-after 0: nothing goes before that can follow.

--only takes names of LOADS; those of 4 and 8 GiB are measured only if named."""
import dataclasses
import time

from bench_record import markdown, progress, spread, told
from blackout import SETTLE, pauses
from godwit import Failure, Hosts, Program
from throughput import raw_tcp


@dataclasses.dataclass(frozen=True)
class Load:
    name: str
    touched: int            # MiB
    dirty: int = 0          # MiB/s, pages rewritten
    rounds: str = "1"       # of pre-copy
    named_only: bool = False

    def words(self):
        return [str(self.touched), str(self.dirty)]


SIZES = ((64, "64 MiB", False), (1024, "1 GiB", False), (4096, "4 GiB", True), (8192, "8 GiB", True))
LOADS = [Load(f"{name}{what}", size, dirty, rounds, named) for size, name, named in SIZES
         for what, dirty, rounds in ((", idle, all missing", 0, "0"), (", 200 MiB/s", 200, "1"), (", 200 MiB/s, all missing", 200, "0"))]


def around(moved, completed):
    """(the pause that the freeze made, the three longest that began after it), ms."""
    frozen = completed["frozen_at_ms"]
    end = frozen + completed["downtime_ms"]
    seen = pauses(moved)
    blackout = max(length for begin, until, length in seen if begin < end and until > frozen)
    return blackout, sorted((length for begin, _, length in seen if begin >= end), reverse=True)[:3]


def measure(hosts, load, runs, raw):
    a, b = hosts["A"], hosts["B"]
    rows = []
    with Program(a, "heartbeat", load.words()) as moved:
        for _ in range(runs):
            time.sleep(SETTLE)
            moved.check()
            completed = moved.move_to(b if moved.host is a else a, "--postcopy-after", load.rounds, "--compress", "none")
            post = completed["postcopy"] or {"missing": 0, "faults": 0, "fault_median_us": 0, "fault_p99_us": 0, "resident_ms": 0, "fault_worst_us": []}
            # Before the look, which touches everything.
            moved.check()
            blackout, silences = around(moved, completed)
            rate = post["missing"] * 4096 / (post["resident_ms"] / 1e3) / 1e9 if post["resident_ms"] else 0
            rows.append({"pause_ms": blackout, "downtime_ms": completed["downtime_ms"], "silences_ms": silences, "rate_GBps": rate,
                         "of_raw": rate / raw if raw else 0, **{key: post[key] for key in ("missing", "faults", "fault_median_us", "fault_p99_us",
                                                                                          "fault_worst_us", "resident_ms")}})
    figures = ("pause_ms", "downtime_ms", "missing", "faults", "fault_median_us", "fault_p99_us", "resident_ms", "rate_GBps", "of_raw")
    return {"load": dataclasses.asdict(load), "raw_GBps": raw, **{figure: spread([row[figure] for row in rows]) for figure in figures},
            "silences_ms": sorted((length for row in rows for length in row["silences_ms"]), reverse=True)[:3], "raw": rows}


def add_options(parser):
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", action="append", help="the name of a load; may be repeated")


def chosen(arguments):
    names = {load.name: load for load in LOADS}
    for name in arguments.only or []:
        if name not in names:
            raise SystemExit(f"postcopy: no load {name!r}; there are {', '.join(map(repr, names))}")
    return [names[name] for name in arguments.only] if arguments.only else [load for load in LOADS if not load.named_only]


def run(arguments):
    results = []
    with Hosts("A", "B") as hosts:
        for load in chosen(arguments):
            try:
                results.append(measure(hosts, load, 3 if arguments.quick else arguments.runs, raw_tcp(hosts, 512)))
                progress(f"postcopy {load.name}: {told(results[-1]['pause_ms'])} ms, fault {told(results[-1]['fault_median_us'])} us")
            except Failure as failure:
                progress(f"postcopy {load.name}: {failure}")
    return {"loads": results}


def table(result):
    rows = [[one["load"]["name"], f"{told(one['pause_ms'])} ms", f"{told(one['downtime_ms'])} ms", f"{one['missing']['median']:.0f}",
             f"{one['faults']['median']:.0f}", f"{told(one['fault_median_us'])} us", f"{told(one['fault_p99_us'])} us",
             f"{told(one['resident_ms'])} ms", f"{one['of_raw']['median']:.2f} of {one['raw_GBps']:.2f} GB/s",
             ", ".join(f"{length:.1f}" for length in one["silences_ms"]) + " ms"] for one in result["loads"]]
    return markdown(["touched, rewritten", "pause seen", "downtime", "missing pages", "faults", "fault, median", "fault, p99", "all there after",
                     "rate, of raw TCP", "longest pauses after the resume"], rows)
