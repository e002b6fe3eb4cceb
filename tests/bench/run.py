#!/usr/bin/python3
"""The one runner of the benches. Each measures its subject and the limit or the alternative that it is read against in the
same run, prints what it does to stderr and a table to stdout: medians, and in parentheses the spread. No figure passes or
fails; a bench that could not run is told of, and the exit code is 1.

    tests/bench/run.py [NAME...] [--quick] [--json FILE] [options of the benches named]

Without a name all run. A bench is a module with add_options(parser), run(arguments) -> result, table(result) -> text."""
import argparse
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent / "e2e")]
import blackout  # noqa: E402
import mapping_cache  # noqa: E402
import postcopy_bench  # noqa: E402
import slow_link  # noqa: E402
import tax  # noqa: E402
import throughput  # noqa: E402
import tracker  # noqa: E402
import xbzrle  # noqa: E402
from bench_record import publish  # noqa: E402
from godwit import Failure  # noqa: E402

BENCHES = {"xbzrle": xbzrle, "tracker": tracker, "mapping-cache": mapping_cache, "blackout": blackout, "throughput": throughput,
           "slow-link": slow_link, "postcopy": postcopy_bench, "tax": tax}


def parse(words):
    names = [word for word in words if word in BENCHES]
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", default=False, help="fewer and smaller runs: a look, not a figure")
    parser.add_argument("--json", default=None, help="write all samples there")
    parser.add_argument("--help", "-h", action="store_true", default=False)
    common, rest = parser.parse_known_args([word for word in words if word not in BENCHES])
    chosen = {}
    for name in names or BENCHES:
        own = argparse.ArgumentParser(prog=f"run.py {name}", description=BENCHES[name].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                      parents=[parser], add_help=False)
        BENCHES[name].add_options(own)
        if common.help:
            own.print_help()
        else:
            # An option belongs to one bench: with several, each is given what it knows.
            chosen[name], unknown = own.parse_known_args(words_without(names, words))
            if unknown and len(names) == 1:
                own.error(f"unknown: {' '.join(unknown)}")
    return common, chosen


def words_without(names, words):
    return [word for word in words if word not in names]


def main():
    common, chosen = parse(sys.argv[1:])
    results, failed = {}, []
    for name, arguments in chosen.items():
        try:
            results[name] = BENCHES[name].run(arguments)
        except Failure as failure:
            failed.append(name)
            print(f"{name}: {failure}", file=sys.stderr)
            continue
        print(f"\n## {name}\n\n{BENCHES[name].table(results[name])}", flush=True)
        if common.json:  # after each, so that an interrupted run keeps what it has
            publish(results, common.json, quick=common.quick)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
