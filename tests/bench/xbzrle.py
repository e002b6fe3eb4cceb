"""Bench `xbzrle`: a page in the codec (xbzrle_bench.cc), as a share of memcmp and memcpy of the same pages in the same run."""
from bench_record import markdown, rows_of, told
from godwit import BUILD


def add_options(parser):
    pass


def run(arguments):
    return {"rows": rows_of([BUILD / "tests/bench/xbzrle_bench"] + ["--quick"] * arguments.quick)}


def speed(row, what):
    """GB/s of page bytes, and beside it the share of its yardstick."""
    if what not in row:
        return "–"
    share = next((told(row[key]) for key in (f"{what} of memcmp", f"{what} of memcpy") if key in row), "")
    return f"{4096 / row[what]['median']:.{2 if row[what]['median'] > 1000 else 1}f}" + (f" = {share}" if share else "")


def table(result):
    columns = ("memcmp", "memcpy", "encode", "page path", "decode")
    mixes = [[row["size"], row["row"], f"{row['delta bytes']:.0f}", *(speed(row, what) for what in columns)]
             for row in result["rows"] if row["row"] != "rest"]
    rest = ("is_zero", "base_hash", "first send")
    others = [[row["size"], *(speed(row, what) for what in ("memcmp", "memcpy", *rest))] for row in result["rows"] if row["row"] == "rest"]
    return "\n".join(["GB/s of page bytes = share of memcmp (decode: of memcpy), quartiles", "",
                      markdown(["", "change of the page", "delta, bytes", *columns], mixes), "",
                      markdown(["", "memcmp", "memcpy", *rest], others)])
