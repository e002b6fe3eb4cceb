"""Bench `throughput`: pre-copy of 1 GiB between two hosts while the program runs, over one and more channels, against raw
TCP over the same wire in the same run, in turn; and encrypted, with --tls psk,certificates.

A virtual machine's host may take free pages away; then the first touch of each costs ten times as much, or nothing, by
chance. So before each measurement as much memory as it needs is touched and given back; --cold leaves that out."""
import subprocess

from bench_record import markdown, progress, spread, told
from godwit import BUILD, Failure, Hosts, Program, move, secured


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


def precopy(hosts, mib, how, prepare):
    """GB/s of the first round: every page of a program that holds that much and runs on meanwhile. Whole pages. `how`:
    channels, and "psk" or "certificates" behind them for TLS."""
    channels, _, tls = how.partition(" ")
    a, b = hosts["A"], hosts["B"]
    with Program(a, "heartbeat", [str(mib), "0"]) as moved:
        prepare(mib)
        with secured(tls):
            completed, _ = move(a, b, moved.pid, "--channels", channels, "--compress", "none")
        moved.host = b
        moved.check()
    first = completed["rounds"][0]
    return {"gb_per_s": first["pages"] * 4096 / first["duration_us"] / 1e3, "wire_gb_per_s": first["bytes"] / first["duration_us"] / 1e3,
            "seconds": first["duration_us"] / 1e6, "total_ms": completed["total_ms"]}


def add_options(parser):
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--channels", default="1,2,4,auto")
    parser.add_argument("--tls", default="psk", help="psk, certificates, both with a comma, or nothing")
    parser.add_argument("--cold", action="store_true", default=False)


def run(arguments):
    if arguments.quick:
        arguments.runs, arguments.mib = 3, 256
    raw, kept = [], []
    plain = arguments.channels.split(",")
    rounds = {how: [] for channels in plain for how in [channels] + [f"{channels} {tls}" for tls in arguments.tls.split(",") if tls]}
    prepare = (lambda mib: None) if arguments.cold else warm
    with Hosts("A", "B") as hosts:
        for _ in range(arguments.runs):
            prepare(arguments.mib)
            raw.append(raw_tcp(hosts, arguments.mib))
            prepare(arguments.mib)
            kept.append(raw_tcp(hosts, arguments.mib, str(arguments.mib)))
            for channels, done in rounds.items():
                done.append(precopy(hosts, arguments.mib, channels, prepare))
            progress(f"throughput: raw TCP {raw[-1]:.2f} GB/s, into fresh memory {kept[-1]:.2f} GB/s, pre-copy "
                     + ", ".join(f"{done[-1]['gb_per_s']:.2f} ({channels})" for channels, done in rounds.items()))
    return {"mib": arguments.mib, "raw_gb_per_s": raw, "kept_gb_per_s": kept, "precopy": rounds}


def table(result):
    raw, kept = result["raw_gb_per_s"], result["kept_gb_per_s"]
    rows = [["raw TCP, thrown away", told(spread(raw)), "1", ""], ["raw TCP, kept in fresh memory", told(spread(kept)), "", "1"]]
    for channels, done in result["precopy"].items():
        speeds = [one["gb_per_s"] for one in done]
        name, _, tls = channels.partition(" ")
        rows.append([f"pre-copy, --channels {name}" + (f", TLS ({tls})" if tls else ""), told(spread(speeds)),
                     *(told(spread([speed / base for speed, base in zip(speeds, yardstick)])) for yardstick in (raw, kept))])
    return f"{result['mib']} MiB; ratios are of the same turn\n\n" + markdown(["", "GB/s", "of raw TCP", "of raw TCP into fresh memory"], rows)
