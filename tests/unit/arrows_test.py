#!/usr/bin/env python3
"""Arrows run downward only: base <- model <- {tracee codec wire transport address uffd ebpf} <- state <- migration
<- godwit <- {cli, examples}. Siblings do not include each other, and of the engine cli and examples see godwit.h alone.
Also holds sources to 600 lines and headers to 250, and hashes to the fast header."""
import pathlib
import re
import sys

LAYERS = [["engine/base"], ["engine/model"],
          ["engine/tracee", "engine/codec", "engine/wire", "engine/transport", "engine/address", "uffd", "ebpf"],
          ["engine/state"], ["engine/migration"], ["engine/godwit"], ["cli", "examples"]]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
USERS = ("cli", "examples")


def room_of(path):
    return next((room for room in RANK if path == room or path.startswith(room + "/")), None)


def main(root):
    wrong, seen = [], 0
    for room in RANK:
        for source in sorted((root / room).rglob("*")):
            if source.suffix not in (".h", ".cc", ".c"):
                continue
            seen += 1
            text = source.read_text()
            name = str(source.relative_to(root))
            limit = 250 if source.suffix == ".h" else 600
            if text.count("\n") > limit:
                wrong.append(f"{name}: {text.count(chr(10))} lines, at most {limit}")
            if "#include <xxhash.h>" in text and name != "engine/base/xxh3.h":
                wrong.append(f"{name}: includes xxhash.h, whose calls are slow: take engine/base/xxh3.h")
            for target in INCLUDE.findall(text):
                other = room_of(target)
                if other and other != room and RANK[other] >= RANK[room]:
                    wrong.append(f"{name}: includes {target}, which does not stand below it")
                elif other and other != room and room in USERS:
                    wrong.append(f"{name}: includes {target}, and may use godwit/godwit.h alone")
    for line in wrong:
        print(line)
    print(f"{seen} files, {len(wrong)} wrong arrows or sizes")
    return 1 if wrong or not seen else 0


sys.exit(main(pathlib.Path(sys.argv[1])))
