#!/usr/bin/env python3
"""Packs XBZRLE test vectors into vectors.bin: pack.py DIRECTORY vectors.bin

DIRECTORY holds MANIFEST.tsv (id, kind, slen=, dlen=, ret..., name) and NNN.old, NNN.new, NNN.enc as the reference,
the scalar path of QEMU 10.2.2's migration/xbzrle.c, produced them. Most cases share their old page and differ from
it in a few places, so a pack is the distinct old pages plus, for each case, patches that lead to the new page.

All numbers are little endian:
    "GWXBZ1\\0\\0"  u32 pages  page*  u32 cases  case*
    page = u32 size, bytes
    case = u32 id, u8 kind (1 encode, 2 decode), u32 old page, u32 room, i32 result,
           u16 size + name, u32 patches, patch*, u32 size + delta
    patch = u32 offset, u32 size, bytes
For encode, `room` is the size of the output buffer and `result` the delta's size, 0 (unchanged) or -1 (overflow).
For decode, `result` is the end of the last run, or -1 (malformed), and the new page is what the reference left."""
import pathlib
import struct
import sys


def patches(old, new):
    found, at = [], 0
    while at < len(new):
        if old[at] == new[at]:
            at += 1
            continue
        end = at
        while end < len(new) and old[end] != new[end]:
            end += 1
        if found and at - (found[-1][0] + len(found[-1][1])) < 8:
            at = found.pop()[0]
        found.append((at, new[at:end]))
        at = end
    return found


def sized(fmt, data):
    return struct.pack("<" + fmt, len(data)) + data


def main(directory, out):
    pages, cases = [], []
    for line in (directory / "MANIFEST.tsv").read_text().splitlines():
        if line.startswith("#"):
            continue
        number, kind, _, room, result, *_, name = line.split("\t")
        old, new, delta = ((directory / f"{number}.{part}").read_bytes() for part in ("old", "new", "enc"))
        name = name.split(" (.new = ")[0].encode()
        if old not in pages:
            pages.append(old)
        changes = patches(old, new)
        cases.append(struct.pack("<IBIIi", int(number), {"encode": 1, "decode": 2}[kind], pages.index(old),
                                 int(room.split("=")[1]), int(result.split("=")[1])) +
                     sized("H", name) + struct.pack("<I", len(changes)) +
                     b"".join(struct.pack("<I", at) + sized("I", data) for at, data in changes) +
                     sized("I", delta))
    out.write_bytes(b"GWXBZ1\0\0" + struct.pack("<I", len(pages)) + b"".join(sized("I", p) for p in pages) +
                    struct.pack("<I", len(cases)) + b"".join(cases))
    print(f"{len(cases)} cases over {len(pages)} pages: {out.stat().st_size} bytes")


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
