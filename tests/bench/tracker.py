"""Bench `tracker`: what it costs to find what a process has written, by each tracker (tracker_bench.cc): a round over memory
size and pages written, single looks per GiB, and what a first write costs the process."""
from bench_record import markdown, rows_of, told
from godwit import BUILD


def add_options(parser):
    pass


def run(arguments):
    return {"rows": rows_of([BUILD / "tests/bench/tracker_bench"] + ["--quick"] * arguments.quick)}


def table(result):
    rounds = [row for row in result["rows"] if row["row"] == "round"]
    written = sorted({row["written"] for row in rounds})
    cells = {(row["tracker"], row["MiB"], row["written"]): row["us"] for row in rounds}
    by_size = [[f"`{name}`", f"{mib:.0f} MiB", *(f"{told(cells[name, mib, count], 0)} us" if (name, mib, count) in cells else "–" for count in written)]
               for name, mib in dict.fromkeys(key[:2] for key in cells)]
    looks = [[row["row"], f"{row['threads']:.0f}", f"{told(row['us a GiB'], 0)} us"] for row in result["rows"] if "us a GiB" in row]
    writes = [[row["row"], f"{told(row['ns a write'], 0)} ns"] for row in result["rows"] if "ns a write" in row]
    return "\n\n".join([markdown(["a round", "memory", *(f"{count:.0f} pages written" for count in written)], by_size),
                        markdown(["a look", "threads", "per GiB"], looks), markdown(["a first write", ""], writes)])
