"""Real programs that move under load: a server on A, a client on a third host that checks every reply over one
connection, a move to B and back with the service address."""
import json
import os
import pathlib
import select
import subprocess
import tempfile
import time

from godwit import PATIENCE, Engine, Failure, Host, Hosts, await_empty, footprint, move, program

HERE = pathlib.Path(__file__).resolve().parent
SERVICE = "10.77.0.100"
SERVERS = {
    "redis": (6379, "redis", ["redis-server", "--bind", "0.0.0.0", "--port", "6379", "--protected-mode", "no", "--save", "",
                              "--appendonly", "no", "--daemonize", "no", "--dir", "{dir}"]),
    "memcached": (11211, "memcached", ["memcached", "-l", "0.0.0.0", "-p", "11211", "-u", "nobody", "-m", "64", "-U", "0"]),
    "python": (7001, "lines", ["/usr/bin/python3", "-I", str(HERE / "server.py"), "threads", "7001", "{dir}"]),
    "sqlite": (7002, "sqlite", ["/usr/bin/python3", "-I", str(HERE / "server.py"), "sqlite", "7002", "{dir}"]),
    "goroutines": (7000, "hash", [program("goroutines"), "{dir}"]),
}


class Client:
    """tests/e2e/load.py on a host: works without pause, tells what it saw when asked."""

    def __init__(self, host, protocol, address, port):
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._ask = os.fdopen(writer, "wb", buffering=0)
        try:
            self.process = host.popen(["/usr/bin/python3", "-I", str(HERE / "load.py"), protocol, address, str(port)],
                                      stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        finally:
            os.close(reader)

    def report(self):
        """What it saw since the last report: {"operations", "longest_ms"}. Raises Failure on any error it saw."""
        self._ask.write(b"report\n")
        line, end = b"", time.monotonic() + PATIENCE
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise Failure("the client is silent: it waits for a reply")
            data = self.process.stdout.read(4096)
            if not data:
                raise Failure(f"the client ended: {line.decode(errors='replace')}")
            line += data
        try:
            report = json.loads(line)
        except ValueError:
            raise Failure(f"the client: {line.decode(errors='replace')}") from None
        if report.get("error"):
            raise Failure(f"the client: {report['error']} after {report['operations']} operations")
        return report

    def close(self):
        self.process.close()
        self._ask.close()


def _start(host, name, directory):
    port, protocol, argv = SERVERS[name]
    with open(directory / "log", "ab") as log:
        server = host.popen([word.format(dir=directory) for word in argv], stdout=log, stderr=log, cwd=directory)
    end = time.monotonic() + PATIENCE
    while host.run(["/usr/bin/python3", "-I", "-c",
                    f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"]).returncode:
        if server.poll() is not None or time.monotonic() > end:
            raise Failure(f"{name} does not start: {(directory / 'log').read_text(errors='replace')[-800:]}")
    return server, protocol, port


def _worked(client, least=50):
    """At least that many further operations, all right."""
    report = client.report()
    longest, operations = report["longest_ms"], report["operations"]
    while operations < least:
        report = client.report()
        longest, operations = max(longest, report["longest_ms"]), operations + report["operations"]
    return longest


def move_under_load(name, more=()):
    with tempfile.TemporaryDirectory(prefix="godwit-app-") as text, Hosts("A", "B", "client") as hosts:
        directory = pathlib.Path(text)
        directory.chmod(0o777)
        a, b, third = hosts["A"], hosts["B"], hosts["client"]
        a.net("ip", "addr", "add", f"{SERVICE}/24", "dev", "eth0")
        server, protocol, port = _start(a, name, directory)
        client = Client(third, protocol, SERVICE, port)
        try:
            _worked(client)
            notes = []
            for source, destination in ((a, b), (b, a)):
                # However slow the machine is just now: times are for the benchmarks.
                completed, pid = move(source, destination, server.pid, "--move-address", f"{SERVICE}/24@eth0",
                                      "--downtime-limit", "3000", *more)
                if pid != server.pid:
                    raise Failure(f"pid {pid} on {destination.name}, was {server.pid}")
                left = source.run(["ss", "-Htan", "src", SERVICE], check=True).stdout.strip()
                if left:
                    raise Failure(f"a connection is alive on {source.name} beside its copy: {left}")
                longest = _worked(client)
                notes.append(f"downtime {completed['downtime_ms']:.1f} ms, longest reply {longest:.1f} ms")
                await_empty(source, but=())
            return "; ".join(notes)
        finally:
            client.close()


def checkpoint_app(name):
    """Refused while a client is connected, as it would not wait; the client sees no error. Without one: to a file and
    left running, to a file, restored in a fresh pid namespace, and it serves a new client."""
    with tempfile.TemporaryDirectory(prefix="godwit-app-") as text, Hosts("A", "client") as hosts:
        directory = pathlib.Path(text)
        directory.chmod(0o777)
        a, third = hosts["A"], hosts["client"]
        server, protocol, port = _start(a, name, directory)
        client = Client(third, protocol, a.address, port)
        image = str(directory / "image")
        try:
            _worked(client)
            with Engine(a, "checkpoint", server.pid, image, "--leave-running") as engine:
                if engine.finish() != 3:
                    raise Failure(f"not refused: {engine.said()}")
            _worked(client)
        finally:
            client.close()
        _wait_for_no_connection(a, port)
        for words in (["--leave-running"], []):
            before = footprint(server.outer)["tids"]
            with Engine(a, "checkpoint", server.pid, image, *words) as engine:
                if engine.finish() != 0:
                    raise Failure(engine.said())
            # It may have started some of its own since.
            if words and not set(before) <= set(footprint(server.outer)["tids"]):
                raise Failure("threads of it are gone")
        await_empty(a)
        with Hosts("fresh", "client") as later:
            fresh = later["fresh"]
            with Engine(fresh, "restore", image) as engine:
                if engine.finish() != 0:
                    raise Failure(engine.said())
            client = Client(later["client"], protocol, fresh.address, port)
            try:
                _worked(client)
            finally:
                client.close()


def _wait_for_no_connection(host, port):
    end = time.monotonic() + PATIENCE
    while host.run(["ss", "-Htn", "state", "established", "state", "close-wait", f"sport = :{port}"], check=True).stdout.strip():
        if time.monotonic() > end:
            raise Failure("the server keeps the connection of a client that left")


__all__ = ["Host", "move_under_load", "checkpoint_app"]
