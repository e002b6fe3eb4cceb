#include "engine/wire/stream_header.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <bit>
#include <cstring>

#include "engine/base/xxh3.h"
#include "engine/wire/little_endian.h"

namespace godwit::wire {

namespace {

// The carriage return and the line feed show a transfer that took the stream for text.
constexpr std::array<char, 8> kMarker{'G', 'O', 'D', 'W', 'I', 'T', '\r', '\n'};

struct RawHeader {
  std::array<char, 8> marker;
  Le16 major;
  Le16 minor;
  Le16 channel;
  Le16 channels;
  SessionId session;
  Le32 reserved;
  Le32 checksum;
};
static_assert(sizeof(RawHeader) == kStreamHeaderSize && alignof(RawHeader) == 1);

uint32_t checksum_of(const RawHeader& raw) {
  return static_cast<uint32_t>(XXH3_64bits(&raw, offsetof(RawHeader, checksum)));
}

}  // namespace

StreamHeaderBytes encode(const StreamHeader& header) {
  RawHeader raw{kMarker,         header.major,   header.minor, header.channel,
                header.channels, header.session, uint32_t{0},  uint32_t{0}};
  raw.checksum = checksum_of(raw);
  return std::bit_cast<StreamHeaderBytes>(raw);
}

Result<StreamHeader> decode(const StreamHeaderBytes& bytes) {
  const auto raw = std::bit_cast<RawHeader>(bytes);
  if (raw.marker != kMarker)
    return fail(ErrorKind::kCorrupt, "reading the marker", "stream header",
                "this is no godwit stream; is the other end godwit?");
  if (checksum_of(raw) != raw.checksum)
    return fail(ErrorKind::kCorrupt, "checking the checksum", "stream header",
                "the stream was damaged on its way");
  if (raw.major != kWireMajor)
    return fail(
        ErrorKind::kUnsupported, fmt::format("reading wire version {}.{}", +raw.major, +raw.minor),
        "stream header",
        fmt::format("this engine speaks version {}.{}; use engines of the same major version on both sides",
                    kWireMajor, kWireMinor));
  if (raw.channels == 0 || raw.channel >= raw.channels)
    return fail(ErrorKind::kCorrupt,
                fmt::format("reading channel index {} of {}", +raw.channel, +raw.channels), "stream header");
  return StreamHeader{raw.major, raw.minor, raw.channel, raw.channels, raw.session};
}

Result<SessionId> new_session_id() {
  SessionId id;
  // KERNEL: up to 256 bytes come whole once the pool is seeded, which it is when a process can be migrated.
  if (::getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size()))
    return fail_errno("getrandom", "a new session id");
  return id;
}

std::string to_hex(const SessionId& session) {
  std::string text;
  for (const std::byte b : session) text += fmt::format("{:02x}", static_cast<unsigned>(b));
  return text;
}

uint64_t checksum_seed(const StreamHeader& header) {
  return XXH3_64bits_withSeed(header.session.data(), header.session.size(), header.channel);
}

}  // namespace godwit::wire
