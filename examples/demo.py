"""The demo behind examples/demo: hosts A, B and client made of namespaces, a redis that moves, a client that watches."""
import argparse
import json
import os
import pathlib
import select
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from godwit import BUILD, PATIENCE, Failure, Hosts, migrate, receive  # noqa: E402

SERVICE, PORT = "10.77.0.100", 6379


class Client:
    """examples/demo_client on the third host."""

    def __init__(self, host, mib):
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._ask = os.fdopen(writer, "wb", buffering=0)
        try:
            self.process = host.popen([BUILD / "examples" / "demo_client", SERVICE, PORT, mib], stdin=reader,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        finally:
            os.close(reader)
        if (text := self._line()) != "filled":
            raise Failure(f"the client: {text}")

    def _line(self):
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
                raise Failure("the client waits for a reply for ever")
            data = self.process.stdout.read(4096)
            if not data:
                raise Failure(f"the client ended: {line.decode(errors='replace')}")
            line += data
        return line.decode().strip()

    def report(self):
        self._ask.write(b"report\n")
        return json.loads(self._line())

    def close(self):
        self.process.close()
        self._ask.close()


def start_redis(host, directory):
    with open(f"{directory}/redis.log", "ab") as log:
        server = host.popen(["redis-server", "--bind", "0.0.0.0", "--port", PORT, "--protected-mode", "no", "--save", "",
                             "--appendonly", "no", "--dir", directory], stdout=log, stderr=log)
    end = time.monotonic() + PATIENCE
    while host.run(["redis-cli", "ping"]).stdout.strip() != "PONG":
        if server.poll() is not None or time.monotonic() > end:
            raise Failure(f"redis does not start: {pathlib.Path(directory, 'redis.log').read_text()[-500:]}")
    return server.pid


def identity(host, pid):
    """What proves that it is the same process: pid, start of its code, command line, redis's own run id and data."""
    outer = host.outer(pid)
    if outer is None:
        raise Failure(f"pid {pid} does not run on {host.name}")
    stat = pathlib.Path(f"/proc/{outer}/stat").read_text().rsplit(")", 1)[1].split()
    info = dict(line.split(":", 1) for line in host.run(["redis-cli", "info"], check=True).stdout.splitlines() if ":" in line)
    return {"pid": pid, "start_code": stat[23], "start_stack": stat[25], "start_data": stat[42],
            "cmdline": pathlib.Path(f"/proc/{outer}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip(),
            "run_id": info["run_id"], "keys": host.run(["redis-cli", "dbsize"], check=True).stdout.strip(),
            "memory": info["used_memory_human"]}


def one_move(source, destination, pid, client, say):
    client.report()  # begins a new interval
    before = client.report()["operations"]
    with receive(destination, "--once") as receiver:
        with migrate(source, pid, destination, "--move-address", f"{SERVICE}/24@eth0") as sender:
            code = sender.finish()
            if code != 0:
                raise Failure(sender.said() + "\n" + receiver.said())
            done = sender.last()
        running = receiver.events.until("running")
        if receiver.finish() != 0 or running is None:
            raise Failure(receiver.said())
    seen = client.report()
    while seen["operations"] < before + 100:
        more = client.report()
        longer = max(seen, more, key=lambda report: report["longest_pause_ms"])
        seen = {**longer, **{what: seen[what] + more[what] for what in ("operations", "errors", "wrong")}}
        if more["errors"]:
            break
    say(f"{source.name} -> {destination.name}: {len(done['rounds'])} rounds in {done['total_ms']:.0f} ms, "
        f"{done['bytes']['raw'] / 2**20:.0f} MiB of pages as {done['bytes']['wire'] / 2**20:.0f} MiB on the wire")
    say(f"  downtime {done['downtime_ms']:.2f} ms: " + ", ".join(f"{part} {us / 1000:.2f}" for part, us in done["downtime"].items()))
    after = seen["longest_pause_began_ms"] - done["frozen_at_ms"]
    freeze = -seen["longest_pause_ms"] <= after <= done["downtime_ms"]
    when = "the freeze" if freeze else f"{abs(after):.0f} ms {'after' if after > 0 else 'before'} the freeze began"
    say(f"  client: longest pause {seen['longest_pause_ms']:.2f} ms ({when}), {seen['operations']} operations, {seen['errors']} errors, "
        f"{seen['wrong']} wrong replies")
    return {"from": source.name, "to": destination.name, "pid": running["pid"], "migration": done, "client": seen}


def demo(arguments, say):
    with tempfile.TemporaryDirectory(prefix="godwit-demo-") as directory, Hosts("A", "B", "client") as hosts:
        a, b = hosts["A"], hosts["B"]
        a.net("ip", "addr", "add", f"{SERVICE}/24", "dev", "eth0")
        pid = start_redis(a, directory)
        say(f"Three hosts: A {a.address}, B {b.address}, client {hosts['client'].address}; redis on A serves {SERVICE}:{PORT}.")
        client = Client(hosts["client"], arguments.mib)
        try:
            begun = identity(a, pid)
            say(f"It is pid {pid} and holds {begun['memory']} in {begun['keys']} keys; the client writes and reads without pause.")
            moves, here, there = [], a, b
            for _ in range(arguments.moves):
                moves.append(one_move(here, there, pid, client, say))
                now = identity(there, pid)
                if now | {"memory": ""} != begun | {"memory": ""}:
                    raise Failure(f"it is not what it was: {now}, was {begun}")
                if here.outer(pid) is not None:
                    raise Failure(f"pid {pid} is still on {here.name}")
                say(f"  on {there.name} now: pid {now['pid']}, code at {int(now['start_code']):#x}, run id {now['run_id'][:12]}..., "
                    f"{now['keys']} keys: all as before; none of it left on {here.name}")
                here, there = there, here
        finally:
            client.close()
    pauses = [move["client"]["longest_pause_ms"] for move in moves]
    errors, wrong = (sum(move["client"][what] for move in moves) for what in ("errors", "wrong"))
    say(f"{len(moves)} moves: longest client pause, median {statistics.median(pauses):.2f} ms (most {max(pauses):.2f}); "
        f"{errors} errors, {wrong} wrong replies, one connection throughout.")
    return {"moves": moves, "identity": begun, "median_longest_pause_ms": statistics.median(pauses), "errors": errors,
            "wrong": wrong}, errors == wrong == 0


def main():
    parser = argparse.ArgumentParser(prog="examples/demo", description=__doc__)
    parser.add_argument("--moves", type=int, default=2, help="how many, there and back in turn (default 2)")
    parser.add_argument("--mib", type=int, default=1024, help="how much redis holds (default 1024)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the story")
    arguments = parser.parse_args()
    try:
        result, good = demo(arguments, (lambda text: None) if arguments.json else lambda text: print(text, flush=True))
    except Failure as failure:
        print(f"The demo failed: {failure}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(result, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
