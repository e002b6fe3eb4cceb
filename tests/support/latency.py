"""Latency on the link between two hosts, without netem: their ports leave the bridge, and a relay (tests/bench/delay_relay.c)
passes each frame on after half the round trip."""
import contextlib
import subprocess

from godwit import BUILD, Failure


@contextlib.contextmanager
def delayed(hosts, rtt_ms):
    """Inside, a round trip between the two hosts takes `rtt_ms` more. 0 leaves the link alone."""
    if not rtt_ms:
        yield
        return
    ports = [host.port for host in hosts]
    if len(ports) != 2:
        raise Failure("a relay joins two hosts")
    switch = hosts.switch
    relay = subprocess.Popen(["nsenter", f"--net=/proc/{switch.init}/ns/net", str(BUILD / "tests/bench/delay_relay"), *ports,
                              str(int(rtt_ms * 500))], stdout=subprocess.PIPE)
    try:
        if relay.stdout.read(6) != b"ready\n":
            raise Failure("delay_relay does not start")
        for port in ports:
            switch.net("ip", "link", "set", port, "nomaster")
        yield
    finally:
        for port in ports:
            switch.net("ip", "link", "set", port, "master", "br0", check=False)
        relay.kill()
        relay.wait()
