"""A godwit stream as a list of records that can be damaged with care (docs/wire-format.md): checksums can be made right
again, so that a damage gets past them and meets what reads the payload."""
import ctypes
import struct

HEADER, RECORD = 40, 16
OPTIONAL = 0x80000000

_xxh = ctypes.CDLL("libxxhash.so.0")
_xxh.XXH3_64bits_withSeed.restype = ctypes.c_uint64
_xxh.XXH3_64bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]


def hash64(data, seed=0):
    return _xxh.XXH3_64bits_withSeed(data, len(data), seed)


class Record:
    def __init__(self, kind, sequence, payload, checksum=None, length=None):
        self.kind, self.sequence, self.payload = kind, sequence, payload
        self.checksum = checksum  # None: the right one
        self.length = length      # None: the payload's

    def copy(self, **changes):
        fields = {"kind": self.kind, "sequence": self.sequence, "payload": self.payload, "checksum": self.checksum,
                  "length": self.length}
        return Record(**{**fields, **changes})


def checksum_of(record, header):
    """The right checksum of a record in the stream of that header."""
    length = len(record.payload) if record.length is None else record.length
    seed = hash64(header[16:32], struct.unpack_from("<H", header, 12)[0])
    return hash64(record.payload, hash64(struct.pack("<III", record.kind, length, record.sequence), seed)) & 0xffffffff


def framed(record, header):
    """The bytes of a record."""
    length = len(record.payload) if record.length is None else record.length
    checksum = checksum_of(record, header) if record.checksum is None else record.checksum
    return struct.pack("<IIII", record.kind, length, record.sequence, checksum) + record.payload


def with_version(header, major, minor):
    """The header of an engine of another version, with a right checksum."""
    head = header[:8] + struct.pack("<HH", major, minor) + header[12:36]
    return head + struct.pack("<I", hash64(head) & 0xffffffff)


class Stream:
    def __init__(self, data):
        self.header, self.records, at = data[:HEADER], [], HEADER
        while at < len(data):
            kind, length, sequence, checksum = struct.unpack_from("<IIII", data, at)
            payload = data[at + RECORD:at + RECORD + length]
            record = Record(kind, sequence, payload)
            if self._checksum(record) != checksum:
                raise ValueError(f"record {sequence} of type {kind} at {at}: not the checksum of docs/wire-format.md")
            self.records.append(record)
            at += RECORD + length

    def _checksum(self, record):
        return checksum_of(record, self.header)

    def bytes(self, records=None, header=None):
        return b"".join([header or self.header] + [framed(record, self.header) for record in
                                                   (self.records if records is None else records)])

    def version(self, major, minor):
        return with_version(self.header, major, minor)


def renumber(records, first=0):
    return [record.copy(sequence=(first + number) & 0xffffffff) for number, record in enumerate(records)]
