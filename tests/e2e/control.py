"""What a person can say and ask while a migration runs: godwit status, set, cancel, pause, resume, freeze-now. Migrations
are held back by limits that they would not meet in an hour, and let go by a word."""
import contextlib
import json
import pathlib
import re
import select
import tempfile
import threading
import time
import xml.dom.minidom

import godwit
from godwit import PATIENCE, Engine, Failure, Program, await_empty, difference, footprint, receive

PLAIN = ("--compress", "none")                           # or a limited bandwidth would not hold back what is easily packed
CRAWL = ("--bandwidth", "1M", *PLAIN)                    # an hour for the first round
ENDLESS = ("--downtime-limit", "0", "--max-rounds", "1000000", *PLAIN)


def migrate(*arguments):
    """A migration whose events are read as they come: hundreds of rounds fill a pipe."""
    engine = godwit.migrate(*arguments)

    def read():
        with contextlib.suppress(ValueError):            # closed under us: the test ended with its engine killed
            engine.events.rest(1e6)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def finish(timeout=PATIENCE):
        reader.join(timeout)
        if reader.is_alive():
            raise Failure(f"it does not end: {engine.said()}")
        return engine.process.wait(timeout)

    engine.finish = finish
    return engine


def say(host, verb, *words, code=0):
    """One word to an engine; the events that it answered."""
    with Engine(host, verb, *words) as engine:
        if engine.finish() != code or engine.crashed():
            raise Failure(f"{verb} {words}: exit code {engine.process.poll()}, not {code}: {engine.said()}")
        return engine.events.seen


def status(host, pid):
    """What `status JOB` says, or None when there is no such job (any more)."""
    with Engine(host, "status", pid) as engine:
        if engine.finish() == 0:
            return engine.last()
        if engine.last().get("kind") not in ("refused",):
            raise Failure(engine.said())
        return None


def await_status(host, pid, sender, what, holds):
    """Ask until the answer holds."""
    end = time.monotonic() + PATIENCE
    while True:
        now = status(host, pid)
        if now is not None and holds(now):
            return now
        if sender.process.poll() is not None:
            raise Failure(f"it ended before {what}: {sender.said()}")
        if time.monotonic() > end:
            raise Failure(f"no {what}: {now}")
        select.select([], [], [], 0.02)


@contextlib.contextmanager
def held_in_bulk(a, b, code, *options, heartbeat=("64",)):
    """A migration in its first round, which the block is to end with that code: (pid, sender)."""
    with Program(a, "heartbeat", list(heartbeat)) as program:
        before = footprint(program.outer())
        with receive(b, "--once"), migrate(a, program.pid, b, *options) as sender:
            await_status(a, program.pid, sender, "bulk round", in_bulk)
            yield program.pid, sender
            stayed(program, before, sender, b, code)


def in_bulk(now):
    return now["status"] == "active" and now["round"] == 0 and now["ram"]["transferred"] > 1 << 20


def arrived(program, sender, receiver, destination):
    """The migration ends well; the program is right where it is now."""
    code = sender.finish()
    running = receiver.events.until("running")
    if code != 0 or running is None or sender.crashed() or receiver.crashed():
        raise Failure(f"{sender.said()}\n{receiver.said()}")
    receiver.finish()
    source, program.host, program.pid = program.host, destination, running["pid"]
    program.check()
    await_empty(source)


def stayed(program, before, sender, destination, code):
    """The migration ends with that code; the original is as it was and runs."""
    if sender.finish() != code or sender.crashed():
        raise Failure(f"exit code {sender.process.poll()}, not {code}: {sender.said()}")
    if traces := difference(before, footprint(program.outer())):
        raise Failure(f"traces in the original: {traces}")
    program.check()
    await_empty(program.host, [program.pid])
    await_empty(destination)


def status_and_bandwidth(a, b):
    """Status tells how far it is; a bandwidth that is raised holds at once, within the first round."""
    with Program(a, "heartbeat", ["64"]) as program:
        with receive(b, "--once") as receiver, migrate(a, program.pid, b, *CRAWL) as sender:
            pid = program.pid
            first = await_status(a, pid, sender, "bulk round", in_bulk)
            later = await_status(a, pid, sender, "progress",
                                 lambda now: now["ram"]["transferred"] > first["ram"]["transferred"])
            if first["job"] != pid or first["ram"]["total"] < 64 << 20 or first["parameters"]["max-bandwidth"] != 1 << 20:
                raise Failure(f"status: {first}")
            if not 0 < later["ram"]["remaining"] < first["ram"]["remaining"] or later["total-time"] <= first["total-time"]:
                raise Failure(f"status: {first}, then {later}")
            if [event["job"] for event in say(a, "status")] != [pid]:
                raise Failure(f"all jobs: {say(a, 'status')}")
            say(a, "set", pid, "--bandwidth", "0")
            arrived(program, sender, receiver, b)
            if say(a, "status") or status(a, pid) is not None:
                raise Failure("the job is still listed")


def cancel_in_bulk(a, b):
    with held_in_bulk(a, b, 5, *CRAWL, heartbeat=("64", "20")) as (pid, sender):
        say(a, "cancel", pid)
    if sender.last().get("kind") != "cancelled":
        raise Failure(sender.said())


def timeout_in_bulk(a, b):
    """A timeout that is set while the first round crawls ends it there, with the code of a migration out of its limits."""
    with held_in_bulk(a, b, 4, *CRAWL) as (pid, _):
        say(a, "set", pid, "--timeout", "0.001")


def pause_and_freeze(a, b):
    """Paused between rounds nothing is collected, resumed it goes on; freeze-now ends a migration that would not end."""
    with Program(a, "heartbeat", ["16", "20"]) as program:
        with receive(b, "--once") as receiver, migrate(a, program.pid, b, *ENDLESS) as sender:
            pid = program.pid
            await_status(a, pid, sender, "third round", lambda now: now["round"] >= 3)
            say(a, "pause", pid)
            still = await_status(a, pid, sender, "rest", lambda now: now["paused"] and now["ram"]["remaining"] == 0)
            for _ in range(10):
                now = status(a, pid)
                if now["ram"]["dirty-sync-count"] > still["ram"]["dirty-sync-count"] + 1:
                    raise Failure(f"paused: {still}, and then {now}")
            still = now
            program.check()
            if status(a, pid)["ram"]["dirty-sync-count"] != still["ram"]["dirty-sync-count"]:
                raise Failure("it does not rest")
            say(a, "resume", pid)
            await_status(a, pid, sender, "further rounds", lambda now: now["round"] > still["round"] + 2)
            say(a, "freeze-now", pid)
            arrived(program, sender, receiver, b)


def pause_in_bulk(a, b):
    """Paused in the middle of the first round, and cancelled there."""
    with held_in_bulk(a, b, 5, "--bandwidth", "4M") as (pid, _):
        say(a, "pause", pid)
        if not status(a, pid)["paused"]:
            raise Failure("not paused")
        say(a, "cancel", pid)


def limits_live(a, b):
    """Every limit can be changed, a change is told, nonsense is refused; a raised downtime limit ends the rounds."""
    with Program(a, "heartbeat", ["16", "20"]) as program:
        with receive(b, "--once") as receiver, migrate(a, program.pid, b, *ENDLESS) as sender:
            pid = program.pid
            await_status(a, pid, sender, "third round", lambda now: now["round"] >= 3)
            say(a, "set", pid, "--timeout", "1000", "--on-timeout", "force", "--max-rounds", "999", "--throttle-initial", "5",
                "--throttle-increment", "7", "--throttle-max", "50", "--dirty-limit", "2M", "--bandwidth", "1G", "--throttle", "off")
            expected = {"downtime-limit": 0, "max-bandwidth": 1 << 30, "max-rounds": 999, "timeout": 1000, "on-timeout": "force",
                        "auto-converge": False, "cpu-throttle-initial": 5, "cpu-throttle-increment": 7, "max-cpu-throttle": 50,
                        "dirty-limit": 2 << 20}
            if (found := status(a, pid)["parameters"]) != expected:
                raise Failure(f"parameters: {found}")
            say(a, "set", pid, "--bandwidth", "much", code=2)
            say(a, "set", pid, "--throttle-max", "100", code=2)
            say(a, "set", pid + 1, "--bandwidth", "1M", code=3)
            if status(a, pid)["parameters"] != expected:
                raise Failure("a refused set changed something")
            say(a, "set", pid, "--downtime-limit", "10000", "--dirty-limit", "0")
            arrived(program, sender, receiver, b)


def forced(a, b):
    """Out of rounds and above the downtime limit: `force` freezes all the same."""
    with Program(a, "heartbeat", ["16", "20"]) as program:
        words = ("--downtime-limit", "0", "--max-rounds", "4", "--on-timeout", "force")
        with receive(b, "--once") as receiver, migrate(a, program.pid, b, *words) as sender:
            arrived(program, sender, receiver, b)
        if len(sender.last()["rounds"]) < 4:
            raise Failure(sender.said())


def stale_socket(a, b):
    """A socket that a killed engine left behind is no job, and is in nobody's way."""
    with Program(a, "heartbeat", ["16"]) as program:
        with receive(b, "--once"), migrate(a, program.pid, b, *CRAWL) as sender:
            await_status(a, program.pid, sender, "bulk round", in_bulk)
            with Engine(a, "migrate", program.pid, "127.0.0.1:1") as second:
                if second.finish() != 3:
                    raise Failure(f"two engines for one process: {second.said()}")
            sender.process.kill()
            sender.process.wait(PATIENCE)
        await_empty(a, [program.pid])
        await_empty(b)
        if say(a, "status") or status(a, program.pid) is not None:
            raise Failure("a dead job is listed")
        if "job." in (left := a.run(["ls", "/run/godwit"]).stdout):
            raise Failure(f"left behind: {left}")
        program.move_to(b)
        program.check()


def rates(program):
    """What the program gets done, after a check: tests/programs/writers.c tells what the numbers are."""
    program.check()
    return json.loads((program.directory / f"rates.{program.round}").read_text())


CLOSED = ("--throttle", "auto", "--throttle-initial", "90", "--throttle-max", "90")  # a check still gets done


def closed(now):
    return now["cpu-throttle-percentage"] >= 90


def throttle_converges(a, b):
    """A program that writes faster than the link is slowed until it can be moved, and is as fast as before afterwards.
    Without the throttle it does not get there in as many rounds."""
    with Program(a, "writers", ["32"]) as program:
        free = rates(program)["pages_alone"]
        before = footprint(program.outer())
        limits = ("--bandwidth", "64M", "--cache", "0", "--downtime-limit", "100", *PLAIN)
        with receive(b, "--once"), migrate(a, program.pid, b, *limits, "--max-rounds", "8") as sender:
            stayed(program, before, sender, b, 4)
        with receive(b, "--once") as receiver, migrate(a, program.pid, b, *limits, "--throttle", "auto") as sender:
            arrived(program, sender, receiver, b)
            last = sender.last()
        after = rates(program)["pages_alone"]
        steps = [event["cpu-throttle-percentage"] for event in last["rounds"]]
        if not 20 <= last["cpu-throttle-percentage"] <= 99 or steps != sorted(steps) or steps[0] != 0 or 20 not in steps:
            raise Failure(f"the throttle's steps: {steps}")
        if after < free / 4:
            raise Failure(f"{after:.0f} pages/s after the move, {free:.0f} before")
        return f"{len(steps)} rounds, throttled by {steps}; {free:.0f} pages/s before, {after:.0f} after"


def throttled(a, b, program, words, end):
    """Closes the throttle, looks how fast the program is, lets `end` end it, and looks again."""
    free = rates(program)
    with receive(b, "--once") as receiver, migrate(a, program.pid, b, *ENDLESS, "--cache", "0", *words) as sender:
        await_status(a, program.pid, sender, "throttle", lambda now: closed(now) or now["dirty-limit-in-force"])
        rates(program)  # until the throttle has found out who writes, and how much
        slow = rates(program)
        end(sender, receiver)
    return free, slow, rates(program)


def expect_back(free, slow, after):
    fast, again = free["pages_alone"], after["pages_alone"]
    if slow["pages"] > fast / 2:
        raise Failure(f"not throttled: {slow} of {free}")
    if again < 3 * slow["pages"] or again < fast / 4:
        raise Failure(f"still throttled: {after}, {slow} meanwhile, {free} before")
    return f"pages/s: {fast:.0f}, throttled {slow['pages']:.0f}, afterwards {again:.0f}"


def throttle_ends_with_a_kill(a, b):
    """kill -9 of the engine in the middle of the throttle: nothing slows or traces the program any more."""
    with Program(a, "writers", ["32"]) as program:
        program.check()
        before = footprint(program.outer())

        def kill(sender, _):
            sender.process.kill()
            sender.process.wait(PATIENCE)
            await_empty(a, [program.pid])

        told = expect_back(*throttled(a, b, program, (*CLOSED, "--bandwidth", "64M"), kill))
        if traces := difference(before, footprint(program.outer())):
            raise Failure(f"traces in the original: {traces}")
        await_empty(b)
        return told


def throttle_ends_with_a_cancel(a, b):
    with Program(a, "writers", ["32"]) as program:
        program.check()
        before = footprint(program.outer())

        def cancel(sender, _):
            say(a, "cancel", program.pid)
            stayed(program, before, sender, b, 5)

        return expect_back(*throttled(a, b, program, (*CLOSED, "--bandwidth", "64M"), cancel))


def throttle_opens_live(a, b):
    """`set --throttle off` opens it at once; the migration goes on."""
    with Program(a, "writers", ["32"]) as program:
        def open_it(sender, receiver):
            say(a, "set", program.pid, "--throttle", "off")
            await_status(a, program.pid, sender, "an open throttle", lambda now: now["cpu-throttle-percentage"] == 0)

        free = rates(program)
        with receive(b, "--once") as receiver, migrate(a, program.pid, b, *ENDLESS, "--cache", "0", *CLOSED, "--bandwidth",
                                                       "64M") as sender:
            await_status(a, program.pid, sender, "throttle", closed)
            slow = rates(program)
            open_it(sender, receiver)
            told = expect_back(free, slow, rates(program))
            say(a, "set", program.pid, "--bandwidth", "0", "--downtime-limit", "60000")
            arrived(program, sender, receiver, b)
        return told


def dirty_limit_slows_the_writers(a, b, more=()):
    """The thread that writes is held to a small part of what it wrote, the one that only counts goes on."""
    with Program(a, "writers", ["32"]) as program:
        def release(sender, receiver):
            say(a, "set", program.pid, "--bandwidth", "0", "--downtime-limit", "60000")
            arrived(program, sender, receiver, b)

        free, slow, after = throttled(a, b, program, ("--dirty-limit", "4M", "--bandwidth", "64M", *more), release)
        if slow["counts_alone"] < free["counts_alone"] / 4:
            raise Failure(f"the thread that does not write was slowed too: {slow} of {free}")
        return expect_back(free, slow, after) + f"; counts/s: {free['counts_alone']:.0f}, meanwhile {slow['counts_alone']:.0f}"


def dirty_limit_with_uffd_sync(a, b):
    """The faults that a handler answers are counted too, one for each page."""
    return dirty_limit_slows_the_writers(a, b, ("--tracker", "uffd-sync"))


def throttled_calls(a, b):
    """What was in flight ends when it should, with all the stands of a throttle in between."""
    with Program(a, "inflight") as program:
        with receive(b, "--once") as receiver, migrate(a, program.pid, b, *ENDLESS, "--throttle", "auto", "--throttle-initial",
                                                       "90") as sender:
            begun = await_status(a, program.pid, sender, "throttle", closed)
            await_status(a, program.pid, sender, "further rounds", lambda now: now["round"] >= begun["round"] + 100)
            say(a, "freeze-now", program.pid)
            arrived(program, sender, receiver, b)


def dirty_rate(a, _):
    """Measures a known rate, leaves nothing behind, also when it is killed; two at once are refused."""
    with Program(a, "heartbeat", ["64", "20"]) as program:
        program.check()
        before = footprint(program.outer())
        found = say(a, "dirty-rate", program.pid, "--seconds", "2")[-1]
        # 20 MiB/s of random pages of 64 MiB, some twice; beside them what the heart itself writes.
        if found["status"] != "measured" or not 5 <= found["dirty-rate"] <= 40 or found["total"] < 64 << 20:
            raise Failure(f"{found}")
        if traces := difference(before, footprint(program.outer())):
            raise Failure(f"traces: {traces}")
        with Engine(a, "dirty-rate", program.pid, "--seconds", "1000") as engine:
            await_status(a, program.pid, engine, "measurement", lambda now: now["status"] == "measuring")
            say(a, "dirty-rate", program.pid, code=3)
            say(a, "cancel", program.pid)
            if engine.finish() != 5:
                raise Failure(engine.said())
        with Engine(a, "dirty-rate", program.pid, "--seconds", "1000") as engine:
            await_status(a, program.pid, engine, "measurement", lambda now: now["status"] == "measuring")
            engine.process.kill()
            engine.process.wait(PATIENCE)
        await_empty(a, [program.pid])
        if traces := difference(before, footprint(program.outer())):
            raise Failure(f"traces after a kill: {traces}")
        program.check()
        again = say(a, "dirty-rate", program.pid)[-1]
        if not 5 <= again["dirty-rate"] <= 40:
            raise Failure(f"{again}")
        return f"{found['dirty-rate']:.1f} MiB/s of 20"


def report_page(a, b):
    """--report: a page whose pictures are well-formed, with a column for each round."""
    with Program(a, "heartbeat", ["16", "20"]) as moved, tempfile.NamedTemporaryFile(suffix=".html") as page:
        completed = moved.move_to(b, "--report", page.name)
        text = pathlib.Path(page.name).read_text()
        pictures = re.findall("<svg.*?</svg>", text, re.S)
        for picture in pictures:
            xml.dom.minidom.parseString(picture)
        if len(pictures) != 3 or text.count("<tr><td>") != len(completed["rounds"]):
            raise Failure(f"{len(pictures)} pictures, {len(completed['rounds'])} rounds: {text}")
        moved.check()


TESTS = (report_page, status_and_bandwidth, cancel_in_bulk, timeout_in_bulk, pause_and_freeze, pause_in_bulk, limits_live, forced,
         stale_socket, throttle_converges, throttle_ends_with_a_kill, throttle_ends_with_a_cancel, throttle_opens_live,
         dirty_limit_slows_the_writers, dirty_limit_with_uffd_sync, throttled_calls, dirty_rate)
