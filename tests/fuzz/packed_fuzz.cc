// Fuzzes what unpacks a peer's batches. The first byte of the input picks what the rest is:
//   0  the payload of a `packed` record
//   1  packing, length (3 bytes), packed bytes: the header is made here, so that the fuzzer gets past it
//   2  packing, a payload        packed and unpacked again: it comes back, and is shorter
// The corpus in tests/fuzz/corpus/packed replays in the unit tests.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "engine/wire/packed_batch.h"
#include "engine/wire/page_batch.h"
#include "engine/wire/page_batch_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace godwit;
using namespace godwit::wire;
using Input = std::span<const std::byte>;

void require(bool holds) {
  if (!holds) std::abort();
}

void unpack(Input payload) {
  Unpacker unpacker;
  const Record record{RecordType::kPacked, 1, 0, payload};
  Result<Record> within = unpacker.unpack(record);
  if (!within.ok()) {
    require(within.error().kind == ErrorKind::kCorrupt || within.error().kind == ErrorKind::kUnsupported);
    return;
  }
  require(within->payload.size() <= kBatchRecord &&
          within->payload.size() + sizeof(PackedHeader) > payload.size());
  Result<PageBatchReader> batch = PageBatchReader::open(*within);
  if (!batch.ok()) return;
  while (batch->next()) {
  }
}

void unpack_framed(Input input) {
  if (input.size() < 4) return;
  const uint32_t length = std::to_integer<uint32_t>(input[1]) | std::to_integer<uint32_t>(input[2]) << 8 |
                          std::to_integer<uint32_t>(input[3]) << 16;
  const PackedHeader header{static_cast<uint32_t>(RecordType::kPages),
                            uint32_t{1} + std::to_integer<uint32_t>(input[0]) % 2, length, uint32_t{0}};
  std::vector<std::byte> payload(sizeof header + input.size() - 4);
  std::memcpy(payload.data(), &header, sizeof header);
  std::copy(input.begin() + 4, input.end(), payload.begin() + sizeof header);
  unpack(payload);
}

void round_trip(Input input) {
  if (input.empty()) return;
  const auto packing = static_cast<Packing>(1 + std::to_integer<uint32_t>(input[0]) % 2);
  const std::vector<std::byte> before(input.begin() + 1, input.end());
  Packer packer;
  const auto packed = packer.pack(packing, RecordType::kObjectPages, before);
  if (packed.empty()) return;
  require(packed.size() < before.size());
  Unpacker unpacker;
  Result<Record> within = unpacker.unpack({RecordType::kPacked, 1, 0, packed});
  require(within.ok() && within->type == RecordType::kObjectPages);
  require(std::equal(within->payload.begin(), within->payload.end(), before.begin(), before.end()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto input = std::as_bytes(std::span(data, size));
  if (input.empty()) return 0;
  switch (data[0] % 3) {
    case 0:
      unpack(input.subspan(1));
      break;
    case 1:
      unpack_framed(input.subspan(1));
      break;
    default:
      round_trip(input.subspan(1, std::min(input.size() - 1, kBatchRecord)));
  }
  return 0;
}
