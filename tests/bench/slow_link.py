"""Bench `slow-link`: a program of 1 GiB that stores 50,000 words a second at random places moves over a link of 125 MB/s
(tbf), with several budgets for the bases of deltas and several ways to compress. The limit is the time that its memory
alone takes on that link as it is. One word of eight of that memory is random, the others are zeros: it packs well."""
import itertools

from bench_record import markdown, progress, spread, told
from godwit import Hosts, Program, move

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


def add_options(parser):
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--stores", type=int, default=50000)
    parser.add_argument("--caches", default="16M,64M,256M,512M,1G")
    parser.add_argument("--compress", default="none,auto")
    parser.add_argument("--rate", default="1gbit", help="of the link, as tc reads it")


def run(arguments):
    if arguments.quick:
        arguments.runs, arguments.mib, arguments.stores, arguments.caches = 1, 128, 5000, "16M,160M"
    limit = arguments.mib * 2**20 / bytes_per_second(arguments.rate)
    kinds = list(itertools.product(arguments.caches.split(","), arguments.compress.split(",")))
    moves = {kind: [] for kind in kinds}
    with Hosts("A", "B") as hosts:
        hosts["A"].rate(arguments.rate)
        for _ in range(arguments.runs):
            for cache, compress in kinds:  # in turn, so that a busy minute is not one budget's
                done = one_move(hosts, arguments, cache, compress)
                moves[cache, compress].append(done)
                progress(f"slow-link cache {cache}, compress {compress}: {done['total_ms'] / 1e3:.2f} s, {len(done['rounds'])} rounds")
    return {"mib": arguments.mib, "stores_per_s": arguments.stores, "rate": arguments.rate, "limit_s": limit,
            "moves": [{"cache": cache, "compress": compress, "completed": done} for (cache, compress), done in moves.items()]}


def table(result):
    rows = []
    for one in result["moves"]:
        done = one["completed"]
        seconds = spread([move["total_ms"] / 1e3 for move in done])
        median = {what: spread([move["pages"][what] for move in done])["median"] for what in ("xbzrle", "raw")}
        rows.append([one["cache"], one["compress"], f"{told(seconds)} s", f"{seconds['median'] / result['limit_s']:.2f}",
                     f"{spread([len(move['rounds']) for move in done])['median']:.0f}",
                     f"{spread([move['bytes']['wire'] / 2**20 for move in done])['median']:.0f} MiB",
                     f"{median['xbzrle']:.0f}", f"{median['raw']:.0f}",
                     f"{spread([move['packed']['pages'] for move in done])['median']:.0f}",
                     f"{told(spread([move['downtime_ms'] for move in done]), 1)} ms"])
    return f"{result['mib']} MiB, {result['stores_per_s']} stores a second, {result['rate']}; limit {result['limit_s']:.2f} s\n\n" + markdown(
        ["cache", "compress", "total", "of the limit", "rounds", "on the wire", "deltas", "raw", "packed", "downtime"], rows)
