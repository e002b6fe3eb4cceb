"""Bench `tax`: what a program loses of its own work while it is migrated, by tracker.

The program `writers` writes pages as fast as it can: the worst case, each page a fault after every round. Its pages a
second and the time of a batch of 64 pages are measured untracked and, in the same process, during rounds without end; the
link is held at --bandwidth, so that rounds come as on a network. What is compared is what it would do without competition
for the processors (tests/programs/writers.c), for both engines run on them, too."""
from bench_record import markdown, progress, spread, told
from control import ENDLESS, await_status, migrate, rates, say
from godwit import Hosts, Program, receive

TRACKERS = ("uffd", "uffd-sync")


def median(samples, what):
    return spread([sample[what] for sample in samples])["median"]


def taxed(hosts, tracker, arguments):
    """What the program does before and after, and while it is tracked."""
    a, b = hosts["A"], hosts["B"]
    with Program(a, "writers", [str(arguments.mib)]) as program:
        rates(program)  # its memory is warm then
        free = [rates(program) for _ in range(arguments.samples)]
        words = (*ENDLESS, "--tracker", tracker, "--bandwidth", arguments.bandwidth, "--cache", "0")
        with receive(b, "--once"), migrate(a, program.pid, b, *words) as sender:
            await_status(a, program.pid, sender, "the third round", lambda now: now["round"] >= 3)
            tracked = [rates(program) for _ in range(arguments.samples)]
            say(a, "cancel", program.pid)
            sender.finish()
        free += [rates(program) for _ in range(arguments.samples)]
    return free, tracked


def add_options(parser):
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--bandwidth", default="125M")


def run(arguments):
    arguments.samples = 3 if arguments.quick else arguments.samples
    trackers = {}
    with Hosts("A", "B") as hosts:
        for tracker in TRACKERS:
            free, tracked = taxed(hosts, tracker, arguments)
            shares = spread([one["pages_alone"] / median(free, "pages_alone") for one in tracked])
            trackers[tracker] = {"free": free, "tracked": tracked, "throughput": shares}
            progress(f"tax {tracker}: {told(shares)} of its throughput")
    return {"mib": arguments.mib, "bandwidth": arguments.bandwidth, "trackers": trackers}


def table(result):
    rows = [[f"`{name}`", told(one["throughput"]), *(f"{median(one[when], what):.0f} us" for what in ("batch_p50_us", "batch_p99_us")
                                                  for when in ("free", "tracked"))] for name, one in result["trackers"].items()]
    return markdown(["tracker", "of its throughput", "64 pages untracked, median", "tracked", "p99 untracked", "tracked"], rows)
