"""Post-copy under fire: engines killed and links cut while pages are missing. The program verifies its memory itself; asked
for what has not come it waits, and never says that something else is there. Afterwards one copy runs, or one is stopped
with its original beside it, until a person decides."""
import contextlib
import os
import select
import signal
import time

from godwit import PATIENCE, Engine, Failure, Hosts, Program, await_empty, await_gone, migrate, receive, state_of, sweep

WORDS = ["48", "0"]
# Nothing goes before the switch, and then slowly: some two seconds in which pages are missing.
SLOWLY = ("--postcopy-after", "0", "--bandwidth", "20M", "--compress", "none", "--link-timeout", "0.5")
SWIFTLY = ("--link-timeout", "0.5")


def rest(seconds):
    select.select([], [], [], seconds)


def await_state(outer, letter):
    end = time.monotonic() + PATIENCE
    while state_of(outer) != letter:
        if time.monotonic() > end:
            raise Failure(f"pid {outer} is {state_of(outer) or 'gone'}, not {letter}")
        rest(0.01)


class Move:
    """A move under way, by post-copy. With `once` over, the receiver stays until it is told."""

    def __init__(self, stack, hosts, more=(), sender_fault=None, receiver_fault=None):
        fault = lambda what: {"GODWIT_FAULT": what} if what else None  # noqa: E731
        self.a, self.b = a, b = hosts["A"], hosts["B"]
        self.program = stack.enter_context(Program(a, "heartbeat", WORDS))
        self.original = self.program.outer()
        self.receiver = stack.enter_context(receive(b, *SWIFTLY, env=fault(receiver_fault)))
        self.sender = stack.enter_context(migrate(a, self.program.pid, b, *SLOWLY, *more, env=fault(sender_fault)))
        self.original_pid = self.program.pid

    def await_copy(self):
        running = self.receiver.events.until("running")
        if running is None:
            raise Failure(f"{self.sender.said()}\n{self.receiver.said()}")
        self.program.host, self.program.pid = self.b, running["pid"]
        return self.program.outer()

    def finish(self):
        """It arrives in the end, and is right; the original is gone."""
        if self.sender.finish() != 0 or self.sender.crashed() or self.receiver.crashed():
            raise Failure(f"{self.sender.said()}\n{self.receiver.said()}")
        completed = self.sender.last()
        self.program.check()
        await_gone(self.original, "the original")
        await_empty(self.a)
        return completed

    def ask_in_vain(self):
        """Asked, the program looks at all of its memory: it waits for what is missing, and says nothing."""
        self.program.round += 1
        (self.program.directory / f"check.{self.program.round}").touch()
        rest(1)
        result = self.program.directory / f"result.{self.program.round}"
        if result.exists():
            raise Failure(f"it has an answer without its memory: {result.read_text()[:200]}")

    def discard(self):
        """The original waits, stopped, for a person."""
        await_state(self.original, "T")
        with Engine(self.a, "resolve", self.original_pid, "--discard") as wish:
            if wish.finish() != 0:
                raise Failure(wish.said())
        await_gone(self.original, "the original")
        await_empty(self.a)


def healed(hosts, sender_fault=None, receiver_fault=None):
    with contextlib.ExitStack() as stack:
        move = Move(stack, hosts, (), sender_fault, receiver_fault)
        move.await_copy()
        completed = move.finish()
        if not completed["postcopy"]["reconnects"]:
            raise Failure(f"the link was never made anew: {completed['postcopy']}")
        return f"{completed['postcopy']['reconnects']} times anew"


def cut_thrice(hosts):
    """The link goes for longer than both bear, three times; meanwhile the program is asked, and answers when it is whole."""
    with contextlib.ExitStack() as stack:
        move = Move(stack, hosts)
        move.await_copy()
        for _ in range(3):
            rest(0.3)
            hosts.link(hosts["B"], False)
            rest(1.2)
            hosts.link(hosts["B"], True)
            rest(0.3)
        completed = move.finish()
        if not completed["postcopy"]["reconnects"]:
            raise Failure(f"the link was never made anew: {completed['postcopy']}")
        return f"{completed['postcopy']['reconnects']} times anew"


def kill_source(hosts):
    with contextlib.ExitStack() as stack:
        move = Move(stack, hosts, sender_fault="push@3:kill")
        copy = move.await_copy()
        move.sender.finish()
        await_state(move.original, "T")
        move.ask_in_vain()
        if not state_of(copy) or state_of(copy) in "TZ":
            raise Failure(f"the copy is {state_of(copy) or 'gone'}")
        move.discard()


def kill_destination(hosts, how):
    """The copy is stopped, with nobody else to answer its faults, and its memory is not made up."""
    with contextlib.ExitStack() as stack:
        move = Move(stack, hosts, ("--reconnect", "1"), receiver_fault="pushed-pages@3:kill" if how == "kill" else None)
        copy = move.await_copy()
        if how == "terminate":
            os.kill(move.receiver.process.outer, signal.SIGTERM)
        move.receiver.finish()
        await_state(copy, "T")
        if move.sender.finish() != 7:
            raise Failure(f"not in doubt: {move.sender.said()}")
        # Even let go on, it waits.
        os.kill(copy, signal.SIGCONT)
        move.ask_in_vain()
        move.discard()


def link_stays_cut(hosts):
    """Past --reconnect the original stays, stopped; the copy runs, but for the threads that wait."""
    with contextlib.ExitStack() as stack:
        move = Move(stack, hosts, ("--reconnect", "1"))
        copy = move.await_copy()
        rest(0.2)
        hosts.link(hosts["B"], False)
        try:
            if move.sender.finish() != 7:
                raise Failure(f"not in doubt: {move.sender.said()}")
        finally:
            hosts.link(hosts["B"], True)
        move.ask_in_vain()
        if not state_of(copy) or state_of(copy) in "TZ":
            raise Failure(f"the copy is {state_of(copy) or 'gone'}")
        move.discard()


def copy_dies(hosts):
    """Nobody needs its pages any more: the original goes, too."""
    with contextlib.ExitStack() as stack:
        move = Move(stack, hosts)
        os.kill(move.await_copy(), signal.SIGKILL)
        if move.sender.finish() != 0:
            raise Failure(f"{move.sender.said()}\n{move.receiver.said()}")
        await_gone(move.original, "the original")


TESTS = {
    "source cannot push": lambda hosts: healed(hosts, sender_fault="push@3:error"),
    "source cannot answer": lambda hosts: healed(hosts, sender_fault="request@2:error"),
    "destination cannot take what is pushed": lambda hosts: healed(hosts, receiver_fault="pushed-pages@3:error"),
    "destination cannot take what it asked for": lambda hosts: healed(hosts, receiver_fault="urgent-pages@2:error"),
    "link cut three times": cut_thrice,
    "link stays cut": link_stays_cut,
    "source killed": kill_source,
    "destination killed": lambda hosts: kill_destination(hosts, "kill"),
    "destination ends": lambda hosts: kill_destination(hosts, "terminate"),
    "copy killed": copy_dies,
}


def run(tap):
    with Hosts("A", "B") as hosts:
        for name, test in TESTS.items():
            tap.run(f"lacking/{name}", test, hosts)
            sweep(hosts["A"], hosts["B"])
