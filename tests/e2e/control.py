"""What a person can say and ask while a migration runs: godwit status, set, cancel, pause, resume, freeze-now. Migrations
are held back by limits that they would not meet in an hour, and let go by a word."""
import select
import time

from godwit import PATIENCE, Engine, Failure, Program, await_empty, difference, footprint, migrate, receive

CRAWL = ("--bandwidth", "1M")                            # an hour for the first round
ENDLESS = ("--downtime-limit", "0", "--max-rounds", "1000")


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
    with Program(a, "heartbeat", ["64", "20"]) as program:
        before = footprint(program.outer())
        with receive(b, "--once"), migrate(a, program.pid, b, *CRAWL) as sender:
            await_status(a, program.pid, sender, "bulk round", in_bulk)
            say(a, "cancel", program.pid)
            stayed(program, before, sender, b, 5)
        if sender.last().get("kind") != "cancelled":
            raise Failure(sender.said())


def timeout_in_bulk(a, b):
    """A timeout that is set while the first round crawls ends it there, with the code of a migration out of its limits."""
    with Program(a, "heartbeat", ["64"]) as program:
        before = footprint(program.outer())
        with receive(b, "--once"), migrate(a, program.pid, b, *CRAWL) as sender:
            await_status(a, program.pid, sender, "bulk round", in_bulk)
            say(a, "set", program.pid, "--timeout", "0.001")
            stayed(program, before, sender, b, 4)


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
    with Program(a, "heartbeat", ["64"]) as program:
        before = footprint(program.outer())
        with receive(b, "--once"), migrate(a, program.pid, b, "--bandwidth", "4M") as sender:
            await_status(a, program.pid, sender, "bulk round", in_bulk)
            say(a, "pause", program.pid)
            if not status(a, program.pid)["paused"]:
                raise Failure("not paused")
            say(a, "cancel", program.pid)
            stayed(program, before, sender, b, 5)


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
        program.move_to(b)
        program.check()


TESTS = (status_and_bandwidth, cancel_in_bulk, timeout_in_bulk, pause_and_freeze, pause_in_bulk, limits_live, forced,
         stale_socket)
