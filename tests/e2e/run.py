#!/usr/bin/python3
"""The e2e suite: what cases.toml lists, moved for real between hosts. `run.py [WORD...]`: only tests whose name holds
one of the words."""
import contextlib
import mmap
import os
import pathlib
import shutil
import sys
import tempfile
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE)]
import apps  # noqa: E402
import control  # noqa: E402
from godwit import (BUILD, PATIENCE, POOL, PORT, Engine, Failure, Host, Hosts, HugePages, Program, Tap, await_empty, difference, footprint, migrate,  # noqa: E402
                    receive, secured, state_of, sweep, stand)
import installed  # noqa: E402
from postcopy import plan_postcopy  # noqa: E402
from torture import plan_torture  # noqa: E402

SKEW = 86400  # s
# Programs that change their own mappings or threads all the time.
MOVING = ("churn", "goroutines", "heartbeat", "everything", "unmapped")


SYNC = ("--tracker", "uffd-sync")


def there_and_back(a, b, name, words, more=()):
    with Program(a, name, words) as moved:
        pid = moved.pid
        for destination, options in ((b, ()), (a, ("--verify",))):
            completed = moved.move_to(destination, *options, *more)
            if more and completed["tracker"] != more[1]:
                raise Failure(f"asked for {more[1]}, used {completed['tracker']}")
            if options and not completed["pages"]["verified"]:
                raise Failure("--verify compared nothing")
            if moved.pid != pid:
                raise Failure(f"pid {moved.pid} on {destination.name}, was {pid}")
            moved.check()
            await_empty(a if destination is b else b)


def encrypted(a, b, name, words):
    """By a key over three channels, and back by certificates, compressed; deltas both ways."""
    with Program(a, name, words) as moved:
        for destination, tls, options in ((b, "psk", ("--channels", "3")), (a, "certificates", ("--compress", "lz4", "--verify"))):
            with secured(tls):
                completed = moved.move_to(destination, *options)
            if "--channels" in options and completed["channels"] != 3:
                raise Failure(f"three channels were asked for: {completed['channels']}")
            moved.check()
            await_empty(a if destination is b else b)


def encrypted_deltas(a, b):
    """Pages that are written again and again travel as deltas, encrypted like any others."""
    with Program(a, "heartbeat", ["64", "0", "20000"]) as moved, secured("psk"):
        completed = moved.move_to(b, "--channels", "2", "--compress", "none", "--downtime-limit", "5", "--max-rounds", "30", "--on-timeout",
                                  "force")
        moved.check()
        if not completed["pages"]["xbzrle"]:
            raise Failure(f"no deltas: {completed['pages']}")
        return f"{completed['pages']['xbzrle']} deltas"


def restore(host, image, moved):
    with Engine(host, "restore", image.name) as engine:
        if engine.finish() != 0 or engine.crashed():
            raise Failure(engine.said())
    moved.host = host
    moved.check()


def checkpoint(a, _, name, words):
    """Into a file, and from it into a pid namespace in which nothing ran before."""
    fresh = Host("fresh", first_pid=0)
    image = tempfile.NamedTemporaryFile(prefix="godwit-image-")
    try:
        with Program(a, name, words) as moved:
            with Engine(a, "checkpoint", moved.pid, image.name, "--verify") as engine:
                if engine.finish() != 0 or engine.crashed():
                    raise Failure(engine.said())
            await_empty(a)
            restore(fresh, image, moved)
    finally:
        image.close()
        fresh.close()


def leave_running(a, _, name, words):
    """A checkpoint that leaves the program as it was."""
    with tempfile.NamedTemporaryFile(prefix="godwit-image-") as image, Program(a, name, words) as left:
        before = footprint(left.outer())
        with Engine(a, "checkpoint", left.pid, image.name, "--leave-running") as engine:
            if engine.finish() != 0 or engine.crashed():
                raise Failure(engine.said())
        after = footprint(left.outer())
        left.check()
        if name not in MOVING and difference(before, after):
            raise Failure(f"the checkpoint left traces: {difference(before, after)}")


def many_moves(a, b, name, words, moves):
    downtimes = []
    with Program(a, name, words) as moved:
        moved.check()
        for _ in range(moves):
            downtimes.append(moved.move_to(b if moved.host is a else a)["downtime_ms"])
            try:
                moved.check()
            except Failure as failure:
                raise Failure(f"{failure}\n{stand(moved.host)}") from None
    downtimes.sort()
    return f"{moves} moves, downtime median {downtimes[len(downtimes) // 2]:.1f} ms, longest {downtimes[-1]:.1f} ms"


def guided_rounds(a, b):
    """Rounds that look only where write faults were heard carry all that was written: every page is compared. Which
    rounds those are is up to the pace of the program and the link, so it moves until there was one."""
    with Program(a, "heartbeat", ["384", "20"]) as moved:
        for moves in range(1, 31):
            completed = moved.move_to(b if moved.host is a else a, "--tracker", "ebpf", "--bandwidth", "400M", "--verify")
            moved.check()
            if completed["tracker"] != "ebpf" or completed["rounds"][-1]["guided"] or completed["rounds"][0]["guided"]:
                raise Failure(f"the first and the last round look at everything: {completed}")
            if guided := sum(one["guided"] for one in completed["rounds"]):
                return f"{guided} of {len(completed['rounds'])} rounds guided, in move {moves}"
    raise Failure(f"no round was guided: {completed}")


def expect_packed(completed, compress, link):
    """What travelled packed, and whether the bytes on the wire say so."""
    packed, wire, raw = completed["packed"], completed["bytes"]["wire"], completed["bytes"]["raw"]
    used = {name for name in ("lz4", "zstd") if packed[name]}
    wanted = {"none": set(), "lz4": {"lz4"}, "zstd": {"zstd"}}.get(compress)
    if wanted is not None and used != wanted or compress == "auto" and bool(used) != bool(link):
        raise Failure(f"--compress {compress} {link} used {used or 'nothing'}: {packed}")
    if bool(used) != bool(packed["pages"]) or packed["wire"] > packed["bytes"] or packed["wire"] > wire:
        raise Failure(f"counts that make no sense: {packed}, {wire} on the wire")
    if used and wire > raw / 2:
        raise Failure(f"{wire} bytes on the wire for {raw}: {packed}")


def compressed(a, b, compress, link):
    """Moved with each way to pack, over two channels, every page compared; the program's pages pack to a tenth."""
    with Program(a, "heartbeat", ["96", "4"]) as moved:
        completed = moved.move_to(b, "--compress", compress, "--channels", "2", "--verify", "--downtime-limit", "3000", *link)
        moved.check()
        expect_packed(completed, compress, link)
        return f"{completed['packed']['pages']} pages packed, {completed['bytes']['wire'] >> 10} KiB on the wire"


def compressed_image(a, _, compress):
    """An image of packed batches: inspected, and restored; shared memory is in it, too."""
    fresh = Host("fresh", first_pid=0)
    try:
        with tempfile.NamedTemporaryFile(prefix="godwit-image-") as image, Program(a, "memory", ["anon", "memfd", "huge"]) as moved:
            with Engine(a, "checkpoint", moved.pid, image.name, "--compress", compress) as engine:
                if engine.finish() != 0 or not engine.last()["packed"][compress]:
                    raise Failure(engine.said())
            with Engine(fresh, "inspect", image.name) as engine:
                engine.finish()
                lines = [event.get("text", "") for event in engine.events.seen]
            if not any(" packed " in line and f": {compress} of pages " in line and "process 0" in line for line in lines):
                raise Failure(f"inspect tells of no packed record: {[line[:80] for line in lines]}")
            restore(fresh, image, moved)
    finally:
        fresh.close()


def plan_compressed(plan):
    for compress, link in (("none", ()), ("lz4", ()), ("zstd", ()), ("auto", ("--bandwidth", "24M"))):
        plan.test(f"compress/{compress}", compressed, compress, link)
    for compress in ("lz4", "zstd"):
        plan.test(f"compress/image {compress}", compressed_image, compress)


def unmapped(a, b, case, read_again):
    """Memory that no mapping shows, moved while the program works on it. What nobody wrote to since a round read it, the freeze
    does not read; what was written by whatever way, it does."""
    with Program(a, "unmapped", [case]) as moved:
        for destination in (b, a):
            completed = moved.move_to(destination, "--downtime-limit", "3000")
            read, sent = completed["bytes"]["objects_frozen"], completed["pages"]["objects"]
            blind = completed["objects_read_because"]  # this kernel tells nothing: then everything is read
            if bool(read) != (read_again or bool(blind)):
                raise Failure(f"{read} bytes of shared memory were read in the freeze; {blind}")
            if not sent:
                raise Failure("no page of it was sent")
            moved.check()
        return f"{sent} pages sent, {read >> 20} MiB read in the freeze"


def plan_unmapped(plan):
    for case, read_again in (("still", False), ("written", True), ("glimpsed", True), ("deleted", True)):
        plan.test(f"unmapped/{case}", unmapped, case, read_again)


def refused(a, _, name, case, word):
    """check says no, with exit code 3, names what it is and what to do; and the program never noticed."""
    with Program(a, name, [case]) as held:
        before = footprint(held.outer())
        for verb in (("check", held.pid), ("migrate", held.pid, "127.0.0.1:1")):
            with Engine(a, *verb) as engine:
                code = engine.finish()
                engine.errors.seek(0)
                text = " ".join(map(str, engine.events.seen)) + engine.errors.read().decode(errors="replace")
                if code != 3:
                    raise Failure(f"exit code {code}, not 3: {engine.said()}")
            if word.lower() not in text.lower():
                raise Failure(f"{verb[0]} does not name {word!r}: {text}")
            if "remedy" not in text and verb[0] == "check":
                raise Failure(f"no remedy: {text}")
            if traces := difference(before, footprint(held.outer())):
                raise Failure(f"{verb[0]} left traces: {traces}")
            if state_of(held.outer()) not in "SR":
                raise Failure(f"{verb[0]} left it in state {state_of(held.outer())}")
        held.check()


def stays(a, b, name, case, word):
    """migrate finds at the freeze what check cannot see or only warns of: it fails, and the program is as it was."""
    with Program(a, name, [case]) as held:
        held.check()
        before = footprint(held.outer())
        with receive(b, "--once") as receiver, migrate(a, held.pid, b) as sender:
            code = sender.finish()
            said = f"{sender.said()}\n{receiver.said()}"
            if code not in (1, 3, 4) or sender.crashed() or receiver.crashed():
                raise Failure(f"exit code {code}: {said}")
            receiver.finish()
        if word.lower() not in said.lower():
            raise Failure(f"{word!r} is not named: {said}")
        if traces := difference(before, footprint(held.outer())):
            raise Failure(f"migrate left traces: {traces}")
        held.check()
        await_empty(a, [held.pid])
        await_empty(b)


def example(a, _, words):
    """Each runs by itself, and says by its exit code whether all went well."""
    done = a.run([BUILD / "examples" / words[0], *words[1:]], timeout=PATIENCE)
    if done.returncode != 0:
        raise Failure(f"exit code {done.returncode}: {done.stdout} {done.stderr}")
    await_empty(a)


def denied_sync(a, b):
    """An ordinary user's process may not make the userfaultfd that uffd-sync needs: migrate says what to do, and leaves it."""
    if pathlib.Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        raise Failure("needs vm.unprivileged_userfaultfd = 0, the kernel's default")
    with Program(a, "process", ["nobody"]) as held:
        held.check()
        before = footprint(held.outer())
        with receive(b, "--once") as receiver, migrate(a, held.pid, b, *SYNC) as sender:
            code, said = sender.finish(), sender.said()
            if code != 8 or "vm.unprivileged_userfaultfd" not in said or sender.crashed():
                raise Failure(f"exit code {code}, not 8: {said}")
            receiver.finish()
        if traces := difference(before, footprint(held.outer())):
            raise Failure(f"migrate left traces: {traces}")
        held.check()
        await_empty(b)


def too_few_huge_pages(a, b):
    """Three are taken and two to spare: check --to and migrate say how many, and how to get them; nothing was touched."""
    with Program(a, "hugetlb", ["anon"]) as held:
        before = footprint(held.outer())
        with receive(b) as receiver, contextlib.ExitStack() as taken:
            for verb in (("check", held.pid, "--to", f"{b.address}:{PORT}", "--insecure"),
                         ("migrate", held.pid, f"{b.address}:{PORT}", "--insecure")):
                taken.enter_context(take_huge_pages(spare_huge_pages() - 2))
                with Engine(a, *verb) as engine:
                    code = engine.finish()
                    text = " ".join(map(str, engine.events.seen)) + engine.said()
                    if code != 3 or "reserve 3 huge pages of 2048 kB: echo " not in text or "nr_hugepages" not in text:
                        raise Failure(f"exit code {code}: {text}")
            if traces := difference(before, footprint(held.outer())):
                raise Failure(f"the refusal left traces: {traces}")
            if receiver.crashed():
                raise Failure(receiver.said())
        held.check()
        await_empty(b)
        with HugePages(1):
            held.move_to(b, "--verify")
            held.check()


def spare_huge_pages():
    return int((POOL.parent / "free_hugepages").read_text()) - int((POOL.parent / "resv_hugepages").read_text())


def take_huge_pages(count):
    """What others have set aside on this machine; a mapping, or nothing."""
    hugetlb = 0x40000  # asm-generic/mman.h: MAP_HUGETLB
    return mmap.mmap(-1, count << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | hugetlb) if count > 0 else contextlib.nullcontext()


def emptied_before_the_freeze(a, b, more):
    """What was discarded after the last round, and read since, is empty on the other side as well."""
    with tempfile.TemporaryDirectory(prefix="godwit-hooks-") as hooks, Program(a, "hugetlb", ["emptied"]) as moved:
        hook = pathlib.Path(hooks) / "pre-freeze"
        hook.write_text(f"#!/bin/sh\ntouch {moved.directory}/empty\nuntil [ -e {moved.directory}/emptied ]; do sleep 0.01; done\n")
        hook.chmod(0o755)
        moved.move_to(b, "--hook", hooks, *more)
        if not (moved.directory / "emptied").exists():
            raise Failure("the hook did not run")
        moved.check()
        await_empty(a)


class Plan:
    """Names every test, so that those chosen by words run and the rest are not even counted."""

    def __init__(self, words):
        self.words, self.tap = words, Tap("e2e")
        self.pairs = {}

    def hosts(self, skew):
        if skew not in self.pairs:
            pair = Hosts("A", "B", clock_offsets={"B": SKEW} if skew else None)
            pair.__enter__()
            self.pairs[skew] = pair
        return self.pairs[skew]["A"], self.pairs[skew]["B"]

    def test(self, name, function, *arguments, skew=False, needs=None, huge_pages=0):
        if self.words and not any(word in name for word in self.words):
            return
        if needs and not shutil.which(needs):
            self.tap.skip(name, f"{needs} is not installed")
            return
        a, b = self.hosts(skew)
        with HugePages(huge_pages) as reserved:
            if reserved.missing:
                self.tap.skip(name, reserved.missing)
                return
            self.tap.run(name, function, a, b, *arguments)
            sweep(a, b)

    def close(self):
        for pair in self.pairs.values():
            pair.__exit__(None, None, None)


def plan_program(plan, entry):
    name, cases, apart, modes = entry["name"], entry.get("cases", []), entry.get("apart", []), entry["modes"]
    words, needs = cases or entry.get("words", []), entry.get("needs")
    more = {"skew": entry.get("skew", False), "needs": needs, "huge_pages": entry.get("huge_pages", 0)}
    if "there-and-back" in modes:
        for case in cases + apart:
            plan.test(f"{name}/{case} there-and-back", there_and_back, name, [case], **more)
        plan.test(f"{name} there-and-back", there_and_back, name, words, **more)
    if "uffd-sync" in modes:
        plan.test(f"{name} there-and-back uffd-sync", there_and_back, name, words, SYNC, **more)
    if "checkpoint" in modes:
        for chosen in [words] + [[case] for case in apart]:
            title = f"{name}/{chosen[0]}" if chosen != words else name
            plan.test(f"{title} checkpoint", checkpoint, name, chosen, **{**more, "skew": False})
            plan.test(f"{title} checkpoint --leave-running", leave_running, name, chosen, **{**more, "skew": False})
    if "tls" in modes:
        plan.test(f"{name} tls", encrypted, name, words, **more)
    if "many-moves" in modes:
        moves = int(os.environ.get("GODWIT_MOVES", entry["moves"]))
        plan.test(f"{name} {moves} moves", many_moves, name, words, moves, **more)


def main(words):
    cases = tomllib.loads((HERE / "cases.toml").read_text())
    plan = Plan(words)
    try:
        for entry in cases["program"]:
            plan_program(plan, entry)
        for entry in cases["refused"]:
            for case, word in entry["cases"].items():
                plan.test(f"{entry['program']}/{case} refused", refused, entry["program"], case, word)
        for entry in cases["stays"]:
            for case, word in entry["cases"].items():
                plan.test(f"{entry['program']}/{case} stays", stays, entry["program"], case, word)
        plan.test("process/nobody denied uffd-sync", denied_sync)
        plan.test("hugetlb/emptied before the freeze", emptied_before_the_freeze, (), huge_pages=12)
        plan.test("hugetlb/emptied before the freeze, without a cache", emptied_before_the_freeze, ("--cache", "0"), huge_pages=12)
        plan.test("hugetlb/emptied before the freeze uffd-sync", emptied_before_the_freeze, SYNC, huge_pages=12)
        plan.test("hugetlb/anon too few huge pages", too_few_huge_pages, huge_pages=5)
        plan.test("heartbeat guided rounds", guided_rounds)
        plan.test("heartbeat tls deltas", encrypted_deltas)
        for words_of in cases["example"]["run"]:
            plan.test(f"example/{' '.join(words_of)}", example, words_of)
        plan_compressed(plan)
        plan_unmapped(plan)
        for function in control.TESTS:
            plan.test(f"control/{function.__name__}", function)
        plan_postcopy(plan)
        plan_torture(plan, int(os.environ.get("GODWIT_MOVES", cases["torture"]["moves"])))
    finally:
        plan.close()
    if not words or any(word in "library installed" for word in words):
        plan.tap.run("library installed", installed.library_installed)
    for entry in cases["app"]:
        name = f"app/{entry['name']}"
        if words and not any(word in name for word in words):
            continue
        if entry.get("needs") and not shutil.which(entry["needs"]):
            plan.tap.skip(name, f"{entry['needs']} is not installed")
            continue
        plan.tap.run(f"{name} under load", apps.move_under_load, entry["name"])
        plan.tap.run(f"{name} checkpoint", apps.checkpoint_app, entry["name"])
        if "postcopy" in entry.get("modes", []):
            plan.tap.run(f"{name} under load postcopy", apps.move_under_load, entry["name"], ("--postcopy-after", "1"))
        if "uffd-sync" in entry.get("modes", []):
            plan.tap.run(f"{name} under load uffd-sync", apps.move_under_load, entry["name"], SYNC)
        if "tls" in entry.get("modes", []):
            with secured("psk"):
                plan.tap.run(f"{name} under load tls", apps.move_under_load, entry["name"])
    return plan.tap.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
