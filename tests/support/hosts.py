#!/usr/bin/python3
"""Hosts made of namespaces, joined by a switch: two or three machines on one kernel.

A host is a network, mount, pid and uts namespace (and a time namespace where a clock offset is asked for) with a
small init of its own: this very file, run with --init. The init adopts and reaps orphans and starts processes when
the test asks over a socket. When the test goes, however it goes, that socket closes, the init ends, and the kernel
kills what is left in the pid namespace. The switch is a host too, whose network namespace holds the bridge; nothing
is ever added to the network of the machine itself.

Hosts share the root file system, so a path is the same file on all of them; each has a /run/godwit of its own.

    with Hosts("A", "B") as hosts:
        a, b = hosts["A"], hosts["B"]
        print(a.run(["ip", "-br", "addr"]).stdout)
"""
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

NS_GET_PARENT = 0xb702  # linux/nsfs.h


class HostError(Exception):
    """A host could not be made, or a process on it could not be started."""


# ---- the init of a host (runs as pid 1 inside; one thread) ------------------------------------------------------

def _child(request, fds):
    """After fork: become the program that was asked for. Never returns."""
    try:
        os.setsid()
        for target, fd in enumerate(fds[:3]):
            os.dup2(fd, target)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.chdir(request["cwd"])
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"cannot run {request['argv'][0]}: {error}\n".encode())
    os._exit(127)


def _start(request, fds, watched):
    pid = os.fork()
    if pid == 0:
        _child(request, fds)
    for fd in fds[:3]:
        os.close(fd)
    os.write(fds[3], f"pid {pid}\n".encode())
    watched[pid] = fds[3]


def _reap(watched):
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        status_fd = watched.pop(pid, None)
        if status_fd is not None:
            try:
                os.write(status_fd, f"exit {os.waitstatus_to_exitcode(status)}\n".encode())
            except BrokenPipeError:
                pass
            os.close(status_fd)


def _mount(*argv):
    subprocess.run(["mount", *argv], check=True)


def _init(control_fd, first_pid):
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    _mount("--make-rprivate", "/")
    os.makedirs("/run/godwit", exist_ok=True)
    _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run/godwit")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if first_pid:
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(first_pid - 1))
    awake_read, awake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(awake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    watched = {}
    control.send(b"ready")
    while True:
        readable, _, _ = select.select([control, awake_read], [], [])
        if awake_read in readable:
            os.read(awake_read, 4096)
            _reap(watched)
        if control in readable:
            message, fds, _, _ = socket.recv_fds(control, 1 << 20, 4)
            for fd in fds:  # recv_fds ignores MSG_CMSG_CLOEXEC
                os.set_inheritable(fd, False)
            if not message:
                os._exit(0)
            _start(json.loads(message), fds, watched)


# ---- a process on a host ---------------------------------------------------------------------------------------

class HostProcess:
    """A process started on a host. `pid` is what the host sees, `outer` what the machine sees."""

    def __init__(self, host, pid, status_fd, stdout, stderr):
        self.host, self.pid, self._status_fd = host, pid, status_fd
        self.stdout, self.stderr = stdout, stderr
        self.returncode = None
        self.outer = host.outer(pid)

    def wait(self, timeout=None):
        """The exit code (negative: the signal). Raises TimeoutError."""
        if self.returncode is None:
            if not select.select([self._status_fd], [], [], timeout)[0]:
                raise TimeoutError(f"pid {self.pid} on {self.host.name} still runs after {timeout} s")
            text = os.read(self._status_fd, 64).decode()
            self.returncode = int(text.split()[1]) if text.startswith("exit") else -signal.SIGKILL
            os.close(self._status_fd)
        return self.returncode

    def poll(self):
        if self.returncode is None and select.select([self._status_fd], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def kill(self, number=signal.SIGKILL):
        if self.poll() is None and self.outer:
            try:
                os.kill(self.outer, number)
            except ProcessLookupError:
                pass

    def close(self):
        """Kill, reap, and close the pipes."""
        self.kill()
        if self.returncode is None:
            self.wait(20)
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()


class Completed:
    def __init__(self, argv, returncode, stdout, stderr):
        self.argv, self.returncode, self.stdout, self.stderr = argv, returncode, stdout, stderr


# ---- a host ----------------------------------------------------------------------------------------------------

class Host:
    def __init__(self, name, address=None, first_pid=0, clock_offset=0):
        self.name, self.address, self.clock_offset = name, address, clock_offset
        self._control, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        if clock_offset:
            argv += ["--time", "--monotonic", str(clock_offset), "--boottime", str(clock_offset)]
        argv += ["/usr/bin/python3", "-I", os.path.abspath(__file__), "--init", str(inside.fileno()), str(first_pid)]
        self._unshare = subprocess.Popen(argv, pass_fds=[inside.fileno()], env={"PATH": PATH},
                                         stdin=subprocess.DEVNULL, start_new_session=True)
        inside.close()
        self._control.settimeout(30)
        try:
            if self._control.recv(16) != b"ready":
                raise HostError(f"host {name}: its init ended before it was ready")
        except BaseException:
            self.close()
            raise
        self.init = _only_child(self._unshare.pid)
        self._pidns = os.stat(f"/proc/{self.init}/ns/pid").st_ino
        self._netns = os.stat(f"/proc/{self.init}/ns/net").st_ino
        self.run(["hostname", f"godwit-{name.lower()}"], check=True)

    # -- processes

    def popen(self, argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=None, cwd="/", env=None):
        """Start a process as a child of the host's init, in a session of its own. stdout and stderr: an fd, a file,
        subprocess.PIPE, or nothing."""
        opened, streams, fds = [], [None, None], [stdin if stdin is not None else os.open("/dev/null", os.O_RDWR)]
        if stdin is None:
            opened.append(fds[0])
        for index, where in enumerate((stdout, stderr)):
            if where == subprocess.PIPE:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                streams[index] = os.fdopen(reader, "rb", buffering=0)
                opened.append(writer)
            elif where == subprocess.DEVNULL:
                writer = fds[0]
            elif where == subprocess.STDOUT:
                writer = fds[1]
            else:
                writer = where if isinstance(where, int) else where.fileno()
            fds.append(writer)
        status_read, status_write = os.pipe2(os.O_CLOEXEC)
        request = {"argv": [str(word) for word in argv], "cwd": str(cwd),
                   "env": {"PATH": PATH, "LANG": "C.UTF-8", **(env or {})}}
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], fds + [status_write])
        finally:
            for fd in opened + [status_write]:
                os.close(fd)
        if not select.select([status_read], [], [], 30)[0]:
            raise HostError(f"host {self.name}: its init did not start {argv[0]}")
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(status_read, 1)
            if not byte:
                raise HostError(f"host {self.name}: its init ended")
            line += byte
        return HostProcess(self, int(line.split()[1]), status_read, *streams)

    def run(self, argv, timeout=120, check=False, cwd="/", env=None):
        """Run to its end; stdout and stderr as text."""
        process = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env=env)
        texts = _read_all([process.stdout, process.stderr], timeout)
        try:
            if texts is None:
                raise TimeoutError(f"{' '.join(map(str, argv))} on {self.name} still runs after {timeout} s")
            process.wait(timeout)
        finally:
            process.close()
        if check and process.returncode:
            raise HostError(f"{' '.join(map(str, argv))} on {self.name} ended with {process.returncode}: {texts[1]}")
        return Completed(argv, process.returncode, *texts)

    def outer(self, pid):
        """The machine's pid of the host's `pid`; None when there is no such process."""
        for outer, inner in self._pids():
            if inner == pid:
                return outer
        return None

    def pid_of(self, outer):
        """The host's pid of the machine's `outer`; None when it is not on this host."""
        return next((inner for other, inner in self._pids() if other == outer), None)

    def pids(self):
        """Every process on the host except its init, in pid namespaces below it too, as {host's pid: machine's pid}."""
        return {inner: outer for outer, inner in self._pids() if inner != 1}

    def _pids(self):
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/status") as status:
                    numbers = next(line for line in status if line.startswith("NSpid:")).split()[1:]
                if len(numbers) >= 2 and self._holds(f"/proc/{entry}/ns/pid"):
                    yield int(entry), int(numbers[1])
            except (FileNotFoundError, ProcessLookupError, PermissionError, StopIteration):
                continue

    def _holds(self, path):
        """Whether the pid namespace is the host's, or below it."""
        if os.stat(path).st_ino == self._pidns:
            return True
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                parent = fcntl.ioctl(fd, NS_GET_PARENT)
                os.close(fd)
                fd = parent
                if os.fstat(fd).st_ino == self._pidns:
                    return True
        except PermissionError:  # no namespace of ours is above it
            return False
        finally:
            os.close(fd)

    # -- network: run on the machine, in the host's network namespace only

    def net(self, *argv, check=True):
        """A command in the host's network namespace that sees the machine's pids."""
        return subprocess.run(["nsenter", f"--net=/proc/{self.init}/ns/net", *map(str, argv)], check=check,
                              capture_output=True, text=True)

    def rate(self, rate):
        """Limit what the host sends: "1gbit", or None for no limit."""
        self.net("tc", "qdisc", "del", "dev", "eth0", "root", check=False)
        if rate:
            self.net("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256k", "latency", "50ms")

    def close(self):
        self._control.close()
        try:
            self._unshare.wait(20)
        except subprocess.TimeoutExpired:
            self._unshare.kill()
            self._unshare.wait()

    def leftovers(self):
        """What is still alive of a closed host: machine pids in one of its namespaces."""
        alive = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                spaces = [os.stat(f"/proc/{entry}/ns/{kind}").st_ino for kind in ("pid", "net")]
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if self._pidns in spaces or self._netns in spaces:
                alive.append(int(entry))
        return alive


def _only_child(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return int(children.read().split()[0])


def _read_all(streams, timeout):
    """The text of each stream, or None when the time is over."""
    parts = {stream: [] for stream in streams}
    still, end = list(streams), time.monotonic() + timeout
    while still:
        ready = select.select(still, [], [], max(0, end - time.monotonic()))[0]
        if not ready:
            return None
        for stream in ready:
            data = stream.read(1 << 16)
            if data:
                parts[stream].append(data)
            else:
                still.remove(stream)
    return [b"".join(parts[stream]).decode(errors="replace") for stream in streams]


class Hosts:
    """The hosts of one test and the switch between them. The n-th host has 10.77.0.n/24 on eth0."""

    def __init__(self, *names, clock_offsets=None, rate=None):
        self._names, self._clock_offsets, self._rate = names, clock_offsets or {}, rate
        self._hosts, self._switch = {}, None

    def __enter__(self):
        try:
            self._switch = Host("switch")
            self._switch.net("ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
            self._switch.net("ip", "link", "set", "br0", "up")
            for number, name in enumerate(self._names, 1):
                # Each host counts its pids from elsewhere, so a moved process finds its pid free.
                host = Host(name, f"10.77.0.{number}", number * 4000, self._clock_offsets.get(name, 0))
                self._hosts[name] = host
                self._join(number, host)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _join(self, number, host):
        port = f"port{number}"
        self._switch.net("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.init)
        self._switch.net("ip", "link", "set", port, "master", "br0", "up")
        host.port = port
        for key in ("all", "default", "eth0"):
            host.net("sysctl", "-qw", f"net.ipv6.conf.{key}.accept_dad=0", check=False)
        host.net("ip", "link", "set", "eth0", "up")
        host.net("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.rate(self._rate)

    def __getitem__(self, name):
        return self._hosts[name]

    def __iter__(self):
        return iter(self._hosts.values())

    @property
    def switch(self):
        """The host whose bridge joins the others."""
        return self._switch

    def link(self, host, up):
        """Plug or pull the cable of a host at the switch: frames vanish, as with a dead link."""
        self._switch.net("ip", "link", "set", host.port, "up" if up else "down")

    def __exit__(self, *_):
        everyone = [*self._hosts.values(), *filter(None, [self._switch])]
        for host in everyone:
            host.close()
        left = [pid for host in everyone for pid in host.leftovers()]
        if left:
            raise HostError(f"processes outlive their hosts: {left}")


def _self_test():
    with Hosts("A", "B", clock_offsets={"B": 100000}) as hosts:
        a, b = hosts["A"], hosts["B"]
        assert a.run(["hostname"], check=True).stdout == "godwit-a\n"
        sleeper = a.popen(["sh", "-c", "sleep 1000 & exec sleep 2000"])
        inner = a.run(["ps", "-eo", "pid,args"], check=True).stdout
        assert "--init" in inner and "sleep 2000" in inner and str(sleeper.pid) in inner, inner
        assert b.run(["pgrep", "sleep"]).returncode == 1
        assert a.pid_of(sleeper.outer) == sleeper.pid and sleeper.pid > 4000
        uptime = [float(host.run(["cat", "/proc/uptime"]).stdout.split()[0]) for host in (a, b)]
        assert uptime[1] - uptime[0] > 99000, uptime
        assert a.run(["false"]).returncode == 1
        sleeper.kill()
        assert sleeper.wait(5) == -9
    assert not os.path.exists(f"/proc/{a.init}")
    print("hosts: PASS")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--init"]:
        _init(int(sys.argv[2]), int(sys.argv[3]))
    _self_test()
