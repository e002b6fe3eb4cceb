#!/usr/bin/python3
"""The engine and the programs it moves, as the tests see them: start them on a host, talk to them, read what they say."""
import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hosts import Host, HostError, Hosts  # noqa: E402, F401 (for those who import this)

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("GODWIT_BUILD", ROOT / "build")).resolve()
PORT = 4639
# How long anything may take before the test calls it stuck; sanitizers and a loaded machine are slow.
SAID = 20000 if os.environ.get("GODWIT_LOG") else 1500  # bytes of an engine's stderr in a report
PATIENCE = float(os.environ.get("GODWIT_PATIENCE", "120"))


class Failure(Exception):
    """What a test found wrong."""


def engine():
    return os.environ.get("GODWIT", str(BUILD / "cli" / "godwit"))


def with_tracker(verb, words):
    """GODWIT_TRACKER: the tracker of every migration, checkpoint and measurement that names none itself."""
    chosen = os.environ.get("GODWIT_TRACKER")
    if not chosen or verb not in ("migrate", "checkpoint", "dirty-rate") or "--tracker" in words:
        return words
    return (*words, "--tracker", chosen)


def program(name):
    return str(BUILD / "tests" / "programs" / name)


def environment(more=None):
    """What the engine gets from our own environment: fault points and the sanitizers' options."""
    kept = {key: value for key, value in os.environ.items() if key.endswith("SAN_OPTIONS") or key == "GODWIT_LOG"}
    return {**kept, **(more or {})}


class Events:
    """The lines of --json, parsed as they come. A line that is no JSON is kept as text."""

    def __init__(self, process):
        self.process, self.seen, self._rest, self._end = process, [], b"", False

    def next(self, timeout=PATIENCE):
        """The next event, or None at the end of the stream."""
        end = time.monotonic() + timeout
        while b"\n" not in self._rest and not self._end:
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise Failure(f"no word from the engine in {timeout} s; so far {self.seen[-3:]}\n{stand(self.process.host)}")
            data = self.process.stdout.read(65536)
            self._rest += data
            self._end = not data
        if not self._rest:
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            event = json.loads(line)
        except ValueError:
            event = {"event": "text", "text": line.decode(errors="replace")}
        self.seen.append(event)
        return event

    def until(self, name, timeout=PATIENCE):
        """The next event of that name; None when the stream ends before."""
        while (event := self.next(timeout)) is not None:
            if event.get("event") == name:
                return event
        return None

    def rest(self, timeout=PATIENCE):
        while self.next(timeout) is not None:
            pass
        return self.seen


class Engine:
    """One run of the engine with --json on a host. stderr goes to a file, so that it never blocks."""

    def __init__(self, host, verb, *words, env=None, json_events=True):
        self.errors = tempfile.TemporaryFile()
        argv = [engine(), verb, *map(str, with_tracker(verb, words))] + (["--json"] if json_events else [])
        self.process = host.popen(argv, stdout=subprocess.PIPE, stderr=self.errors, env=environment(env))
        self.argv, self.host, self.events = argv, host, Events(self.process)

    def finish(self, timeout=PATIENCE):
        """Wait for its end; the exit code."""
        self.events.rest(timeout)
        try:
            return self.process.wait(timeout)
        except TimeoutError as error:
            raise Failure(f"{' '.join(self.argv[1:])}: {error}") from None

    def last(self):
        return self.events.seen[-1] if self.events.seen else {}

    def said(self):
        """For a report of a failure: its last event and the end of its stderr."""
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace")
        return f"{' '.join(self.argv[1:])} -> {self.process.poll()}; {json.dumps(self.last())} {text[-SAID:].strip()}"

    def crashed(self):
        """Whether it died of a signal other than a kill of ours, or a sanitizer spoke."""
        self.errors.seek(0)
        text = self.errors.read()
        return (self.process.poll() or 0) < 0 and self.process.returncode != -signal.SIGKILL or b"Sanitizer" in text \
            or b"runtime error:" in text

    def close(self):
        self.process.close()
        self.errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


SECURITY = ("--psk-file", "--tls-ca", "--tls-cert", "--tls-key", "--insecure")


class Keys:
    """A folder of keys and certificates, made by `godwit keygen`, gone with the process."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="godwit-keys-")
        self.folder = pathlib.Path(self._folder.name)

    @staticmethod
    def keygen(*words):
        made = subprocess.run([engine(), "keygen", *map(str, words)], env={**os.environ, **environment()}, capture_output=True,
                              text=True, check=False)
        if made.returncode:
            raise Failure(f"keygen {words}: {made.stderr}")

    def psk(self, name="psk"):
        """Words for both sides."""
        path = self.folder / name
        if not path.exists():
            self.keygen("--psk", path)
        return ("--psk-file", path)

    def certificates(self, name, ca="ca"):
        """Words for the host of that name."""
        folder = self.folder / ca
        if not (folder / f"{name}.pem").exists():
            self.keygen("--ca", folder, "--host", name)
        return ("--tls-ca", folder / "ca.pem", "--tls-cert", folder / f"{name}.pem", "--tls-key", folder / f"{name}.key")


_keys = None


def security(host, words):
    """What the engines of a test get: GODWIT_TLS=psk or certificates, else plain TCP; nothing where the test says it
    itself."""
    global _keys
    if any(word in SECURITY for word in words):
        return ()
    chosen = os.environ.get("GODWIT_TLS", "")
    if not chosen:
        return ("--insecure",)
    _keys = _keys or Keys()
    return _keys.psk() if chosen == "psk" else _keys.certificates(host.name.lower())


@contextlib.contextmanager
def secured(how):
    """Engines within: "psk", "certificates", or "" for plain TCP."""
    before = os.environ.get("GODWIT_TLS", "")
    os.environ["GODWIT_TLS"] = how
    try:
        yield
    finally:
        os.environ["GODWIT_TLS"] = before


def receive(host, *words, env=None):
    """A receiver that listens. Its `running` event tells the pid of what it got."""
    receiver = Engine(host, "receive", "--listen", f"{host.address}:{PORT}", *security(host, words), *words, env=env)
    if receiver.events.until("listening") is None:
        text = receiver.said()
        receiver.close()
        raise Failure(f"receive does not listen: {text}")
    return receiver


def migrate(source, pid, destination, *words, env=None):
    return Engine(source, "migrate", pid, f"{destination.address}:{PORT}", *security(source, words), *words, env=env)


def move(source, destination, pid, *words):
    """Move a process; returns the `completed` event and the pid on the destination. Raises Failure."""
    with receive(destination, "--once") as receiver:
        with migrate(source, pid, destination, *words) as sender:
            code = sender.finish()
            if code != 0:
                await_end(receiver)
                raise Failure(sender.said() + "\n" + receiver.said())
            running = receiver.events.until("running")
            if receiver.finish() != 0 or running is None:
                raise Failure("the receiver: " + receiver.said())
            if sender.crashed() or receiver.crashed():
                raise Failure(sender.said() + "\n" + receiver.said())
            completed = sender.last()
    if completed.get("event") != "completed":
        raise Failure(f"the last event is {completed}")
    if outer := source.outer(pid):
        await_gone(outer, f"the original, pid {pid} on {source.name},")
    return completed, running["pid"]


def await_end(receiver):
    """After a failure: what the other side says of it comes at its end, if that comes soon."""
    try:
        receiver.finish(10)
    except Failure:
        pass


def await_gone(outer, what):
    """Wait for the end of a process of which we know only the machine's pid."""
    try:
        fd = os.pidfd_open(outer)
    except ProcessLookupError:
        return
    try:
        if not select.select([fd], [], [], PATIENCE)[0]:
            raise Failure(f"{what} still runs")
    finally:
        os.close(fd)


class Program:
    """A test program on a host, spoken to by files in its directory (tests/programs/program.h)."""

    def __init__(self, host, name, words=(), directory=None, env=None):
        self.host, self.name, self.round = host, name, 0
        self._own = directory is None
        self.directory = pathlib.Path(directory or tempfile.mkdtemp(prefix="godwit-"))
        self.directory.chmod(0o777)
        with open(self.directory / "log", "ab") as log:
            self.process = host.popen([program(name), self.directory, *words], stdout=log, stderr=log, env=env)
        self.pid = self.process.pid
        try:
            self.await_file("ready")
            ready = (self.directory / "ready").read_text()
            if not ready.strip().isdigit():
                raise Failure(f"{name} could not prepare: {ready}")
        except BaseException:
            self.close()
            raise

    def outer(self):
        return self.host.outer(self.pid)

    def await_file(self, name, timeout=PATIENCE):
        """Until the file is there. The program itself may be on another host by now, so: by its pid there."""
        end = time.monotonic() + timeout
        path = self.directory / name
        while not path.exists():
            outer = self.outer()
            if outer is None or _is_zombie(outer):
                if path.exists():
                    break
                raise Failure(f"{self.name} {self.pid} is no more on {self.host.name}: {self.log()}")
            if time.monotonic() > end:
                raise Failure(f"{self.name} {self.pid} on {self.host.name} is silent: {_state(outer)}")
            select.select([], [], [], 0.002)  # the protocol's own pace: files cannot be waited for across hosts

    def check(self):
        """Ask the program whether all is still there. Raises Failure with its reasons."""
        self.round += 1
        (self.directory / f"check.{self.round}").touch()
        self.await_file(f"result.{self.round}")
        result = (self.directory / f"result.{self.round}").read_text()
        if not result.startswith("PASS"):
            raise Failure(f"{self.name}, look {self.round}: {result.strip()}")

    def move_to(self, destination, *words):
        completed, pid = move(self.host, destination, self.pid, *words)
        self.host, self.pid = destination, pid
        return completed

    def log(self):
        try:
            return (self.directory / "log").read_text(errors="replace")[-500:].strip()
        except OSError:
            return ""

    def close(self):
        """End it wherever it is."""
        outer = self.outer()
        if outer:
            try:
                os.kill(outer, signal.SIGKILL)
                await_gone(outer, self.name)
            except ProcessLookupError:
                pass
        self.process.close()
        if self._own:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _is_zombie(outer):
    return _field(outer, "State:").startswith("Z")


def _field(outer, name):
    try:
        with open(f"/proc/{outer}/status") as status:
            return next((line.split(None, 1)[1].strip() for line in status if line.startswith(name)), "")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _state(outer):
    try:
        with open(f"/proc/{outer}/wchan") as wchan:
            return f"state {_field(outer, 'State:')}, tracer {_field(outer, 'TracerPid:')}, in {wchan.read()}"
    except OSError:
        return "gone"


def stand(host):
    """Where every thread on a host stands, for a report of something that hangs."""
    lines = []
    for pid, outer in host.pids().items():
        for tid in os.listdir(f"/proc/{outer}/task"):
            words = []
            for name in ("comm", "wchan", "syscall", "stack"):
                try:
                    with open(f"/proc/{outer}/task/{tid}/{name}") as file:
                        words.append(" ".join(file.read().split())[:400])
                except OSError:
                    words.append("-")
            with open(f"/proc/{outer}/task/{tid}/status") as status:
                keys = ("State:", "TracerPid:", "SigPnd:", "ShdPnd:", "SigBlk:")
                words += [" ".join(line.split()) for line in status if line.startswith(keys)]
            lines.append(f"{host.name} {pid} ({outer}) {tid}: " + "; ".join(words))
    return "\n".join(lines)


def footprint(outer):
    """What must not change for a process whose move failed: mappings, descriptors, threads; and that nobody traces it.
    Neighbours of one kind count as one mapping, as the kernel may join them whenever it likes."""
    base, maps = f"/proc/{outer}", []
    with open(f"{base}/maps") as lines:
        for line in lines:
            words = line.split(None, 5)
            start, end = (int(part, 16) for part in words[0].split("-"))
            kind = (words[1], words[5].strip() if len(words) > 5 else "", words[4])
            if maps and maps[-1][1] == start and maps[-1][2] == kind and words[4] == "0":
                maps[-1][1] = end
            else:
                maps.append([start, end, kind])
    return {"maps": [f"{start:x}-{end:x} {' '.join(kind)}" for start, end, kind in maps],
            "fds": sorted(f"{fd} {os.readlink(f'{base}/fd/{fd}')}" for fd in os.listdir(f"{base}/fd")),
            "tids": sorted(os.listdir(f"{base}/task"), key=int), "tracer": _field(outer, "TracerPid:")}


def difference(before, after):
    """What differs between two footprints, as text; empty when they are alike."""
    lines = []
    for part, old in before.items():
        new = after[part]
        if old != new and isinstance(old, list):
            lines += [f"{part}: lost {line}" for line in old if line not in new] + [f"{part}: new {line}" for line in new if line not in old]
        elif old != new:
            lines.append(f"{part}: {old}, now {new}")
    return "; ".join(lines)


def state_of(outer):
    """The letter: R, S, T (stopped), t (traced), Z; empty when it is gone."""
    return _field(outer, "State:")[:1]


POOL = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


class HugePages:
    """`count` more pages of hugetlbfs on this machine, as long as it lasts; all hosts share them. `missing` says why not."""

    def __init__(self, count):
        self.count, self.before, self.missing = count, None, ""

    def __enter__(self):
        if not self.count:
            return self
        try:
            self.before = int(POOL.read_text())
            POOL.write_text(str(self.before + self.count))
            got = int(POOL.read_text()) - self.before
        except OSError as error:
            got, self.missing = 0, f"huge pages of 2048 kB cannot be reserved: {error}"
        if got < self.count:
            self.missing = self.missing or f"the kernel gave {got} of {self.count} huge pages of 2048 kB"
        return self

    def __exit__(self, *_):
        if self.before is not None:
            POOL.write_text(str(self.before))


def await_empty(host, but=(), timeout=PATIENCE):
    """Until nothing but `but` (pids) runs on a host. A dead one that is not reaped yet still has its pid: it counts, unless
    an engine that may stay will reap it."""
    end = time.monotonic() + timeout
    while left := {pid: outer for pid, outer in host.pids().items() if pid not in but and not (but and _is_zombie(outer))}:
        if time.monotonic() > end:
            names = [f"{pid} {_field(outer, 'Name:')}, {_state(outer)}" for pid, outer in left.items()]
            raise Failure(f"left over on {host.name}: {names}")
        select.select([], [], [], 0.005)


def sweep(*hosts):
    """Kill all that is left on hosts, so that one test's mess is not the next one's."""
    for host in hosts:
        for outer in host.pids().values():
            try:
                os.kill(outer, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await_empty(host)


def known_gaps(suite):
    """What tests/expected-skips says of a suite: 'SUITE NAME # gap: WHY' is run, and its failure is told as a skip."""
    gaps = {}
    for line in (pathlib.Path(__file__).resolve().parents[1] / "expected-skips").read_text().splitlines():
        test, _, why = line.partition(" # gap: ")
        if why and test.startswith(suite + " "):
            gaps[test[len(suite) + 1:].strip()] = why
    return gaps


class Tap:
    """The results of a suite: TAP lines, and at the end 'N passed, N failed, N skipped'."""

    def __init__(self, suite):
        self.suite, self.passed, self.failed, self.skipped = suite, 0, 0, 0
        self.gaps = known_gaps(suite)

    def run(self, name, function, *arguments):
        """One test: passes unless it raises. It may return a note."""
        began = time.monotonic()
        try:
            note = function(*arguments)
        except Exception as error:  # noqa: BLE001 (whatever it is, the other tests still run)
            if name in self.gaps:
                self.skip(name, f"known gap: {self.gaps[name]}: {str(error).splitlines()[0][:200]}")
                return False
            self.failed += 1
            text = str(error) if isinstance(error, (Failure, HostError)) else "".join(traceback.format_exception(error))
            print(f"not ok {self.suite} {name} ({time.monotonic() - began:.1f} s)", *text.splitlines(), sep="\n  # ", flush=True)
            return False
        self.passed += 1
        print(f"ok {self.suite} {name} ({time.monotonic() - began:.1f} s)" + (f" # {note}" if note else ""), flush=True)
        return True

    def skip(self, name, reason):
        self.skipped += 1
        print(f"skip {self.suite} {name} # {reason}", flush=True)

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped", flush=True)
        return 1 if self.failed or not self.passed else 0
