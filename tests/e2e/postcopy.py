"""Post-copy: programs that run at the destination before all of their memory has come, and verify it themselves.

    run.py postcopy
"""
from godwit import Engine, Failure, Program, await_empty, migrate, receive

# Slow enough that the program meets missing pages, fast enough for a test.
SLOWLY = ("--bandwidth", "16M", "--compress", "none")


def said(completed):
    post = completed["postcopy"] or {}
    if not post:
        return f"downtime {completed['downtime_ms']:.1f} ms, nothing was missing"
    return f"downtime {completed['downtime_ms']:.1f} ms, {post['missing']} missing, {post['faults']} faults of {post['fault_median_us']} us, " \
           f"p99 {post['fault_p99_us']} us, resident after {post['resident_ms']:.0f} ms"


def there_and_back(a, b, name, words, options=(), some_missing=False):
    """A check while pages are missing or just came, and one afterwards, on both ways."""
    notes = []
    with Program(a, name, words) as moved:
        pid = moved.pid
        for destination in (b, a):
            source = moved.host
            completed = moved.move_to(destination, "--postcopy-after", "1", *options)
            if moved.pid != pid:
                raise Failure(f"pid {moved.pid} on {destination.name}, was {pid}")
            moved.check()
            moved.check()
            await_empty(source)
            if some_missing and not (completed["postcopy"] and completed["postcopy"]["missing"]):
                raise Failure(f"nothing was missing: {completed}")
            notes.append(said(completed))
    return "; ".join(notes)


def check_while_missing(a, b, name, words, options):
    """The program is asked as soon as it runs there, while most is still missing."""
    with Program(a, name, words) as moved, receive(b, "--once") as receiver:
        source = a.outer(moved.pid)
        with migrate(a, moved.pid, b, "--postcopy-after", "1", *options) as sender:
            running = receiver.events.until("running")
            if running is None:
                raise Failure(f"{sender.said()}\n{receiver.said()}")
            moved.host, moved.pid = b, running["pid"]
            moved.check()
            if sender.finish() != 0 or receiver.finish() != 0 or sender.crashed() or receiver.crashed():
                raise Failure(f"{sender.said()}\n{receiver.said()}")
            completed = sender.last()
        if a.outer(source):
            raise Failure("the original is still there")
        moved.check()
        await_empty(a)
        return said(completed)


def on_command(a, b):
    """`godwit postcopy JOB` ends a migration that never would: the program writes faster than the link."""
    with Program(a, "heartbeat", ["64", "200"]) as moved, receive(b, "--once") as receiver:
        with migrate(a, moved.pid, b, "--bandwidth", "40M", "--downtime-limit", "1", "--max-rounds", "100000") as sender:
            sender.events.until("progress")
            sender.events.until("progress")
            with Engine(a, "postcopy", moved.pid) as wish:
                if wish.finish() != 0:
                    raise Failure(wish.said())
            running = receiver.events.until("running")
            if running is None:
                raise Failure(f"{sender.said()}\n{receiver.said()}")
            moved.host, moved.pid = b, running["pid"]
            if sender.finish() != 0 or receiver.finish() != 0:
                raise Failure(f"{sender.said()}\n{receiver.said()}")
            completed = sender.last()
        moved.check()
        if not completed["postcopy"]["missing"]:
            raise Failure(f"nothing was missing: {completed}")
        return said(completed)


def on_timeout(a, b):
    with Program(a, "heartbeat", ["64", "200"]) as moved:
        completed = moved.move_to(b, "--bandwidth", "40M", "--downtime-limit", "1", "--max-rounds", "3", "--on-timeout", "postcopy")
        moved.check()
        if not completed["postcopy"]["missing"]:
            raise Failure(f"nothing was missing: {completed}")
        return said(completed)


def refused_with_verify(a, b):
    with Program(a, "heartbeat", ["8", "0"]) as held, receive(b, "--once"):
        with migrate(a, held.pid, b, "--postcopy", "--verify") as sender:
            if sender.finish() != 2 or "--verify" not in sender.said():
                raise Failure(sender.said())
        held.check()


def plan_postcopy(plan):
    quick = (("everything", [], False), ("memory", ["anon", "sparse", "protections", "private_file", "shared_file", "twins", "memfd",
                                                    "brk", "stack", "flags", "guard", "seal", "huge"], False),
             ("threads", ["registers", "crew", "join", "robust", "handler", "many"], False), ("churn", [], False),
             ("signals", ["handlers", "pending", "others", "itimers", "timers"], False), ("inflight", [], False),
             ("heartbeat", ["64", "100"], True))
    for name, words, some in quick:
        plan.test(f"postcopy/{name}", there_and_back, name, words, (), some)
        plan.test(f"postcopy/{name} over a slow link", there_and_back, name, words, SLOWLY, some)
    plan.test("postcopy/heartbeat over two channels", there_and_back, "heartbeat", ["64", "100"], ("--channels", "2", "--compress", "lz4"), True)
    plan.test("postcopy/hugetlb", there_and_back, "hugetlb", ["anon", "protections", "holes", "emptied", "shared", "memfd", "unmapped"], (), False,
              huge_pages=50)
    plan.test("postcopy/asked while pages are missing", check_while_missing, "heartbeat", ["64", "400"], ("--bandwidth", "20M", "--compress", "none"))
    plan.test("postcopy/on command", on_command)
    plan.test("postcopy/on timeout", on_timeout)
    plan.test("postcopy/refused with --verify", refused_with_verify)
