#!/usr/bin/env python3
"""Prints the headers that godwit/godwit.h needs, itself first: those that are installed. Fails if one of them needs
anything but the standard library and the kernel's headers."""
import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1])
OWN = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
FOREIGN = re.compile(r"^\s*#\s*include\s+<((?:fmt|spdlog|google|liburing|bpf|openssl|nlohmann)[^>]*)>", re.M)


def needed(name, found):
    if name in found:
        return
    found.append(name)
    text = (ROOT / name).read_text()
    for library in FOREIGN.findall(text):
        sys.exit(f"{name} is public, and includes <{library}>")
    for other in OWN.findall(text):
        needed(other, found)


headers = []
needed("engine/godwit/godwit.h", headers)
print("\n".join(headers))
