"""What benches make of their figures: medians with their spread, tables to paste, JSON to keep."""
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys


def spread(values):
    ordered = sorted(values)
    low, _, high = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else ordered * 3
    return {"median": statistics.median(ordered), "p25": low, "p75": high, "least": ordered[0], "most": ordered[-1], "runs": len(ordered)}


def told(values, digits=2):
    """A spread as it stands in a table."""
    low, high = (values.get(name, values[other]) for name, other in (("least", "p25"), ("most", "p75")))
    return f"{values['median']:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def progress(line):
    print(line, file=sys.stderr, flush=True)


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def rows_of(argv):
    """The rows that a bench in C++ prints (tests/bench/figures.h)."""
    return [json.loads(line) for line in subprocess.run(list(map(str, argv)), check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()]


def publish(results, path, **more):
    """All results of one run with what they depend on."""
    record = {"kernel": platform.release(), "cpus": os.cpu_count(), "load": os.getloadavg(), **more, "benches": results}
    pathlib.Path(path).write_text(json.dumps(record) + "\n")
