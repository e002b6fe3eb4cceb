#include "engine/wire/record_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "engine/base/units.h"
#include "engine/wire/state.pb.h"

namespace godwit::wire {

namespace {

/// Up to here a payload is copied behind its header so that the sink sees one write.
constexpr size_t kGather = 16_KiB;

Error too_large(RecordType type, size_t size, size_t limit, uint32_t sequence, uint16_t channel) {
  return fail(ErrorKind::kUnsupported, fmt::format("writing {} bytes", size),
              record_subject(sequence, type, channel),
              fmt::format("this record may carry at most {} bytes", limit));
}

}  // namespace

RecordWriter::RecordWriter(ByteSink& sink, const StreamHeader& header)
    : sink_(sink), header_(header), seed_(checksum_seed(header)) {}

Status RecordWriter::start() {
  return sink_.write(encode(header_));
}

std::span<std::byte> RecordWriter::scratch(size_t size) {
  if (scratch_size_ < size) {
    scratch_size_ = std::max(size, kGather + sizeof(RecordHeader));
    scratch_ = std::make_unique_for_overwrite<std::byte[]>(scratch_size_);
  }
  return {scratch_.get(), size};
}

Status RecordWriter::write(RecordType type, std::span<const std::byte> payload) {
  const RecordInfo* info = find_record(type);
  CHECK(info != nullptr);
  if (payload.size() > info->max_payload)
    return too_large(type, payload.size(), info->max_payload, sequence_, header_.channel);
  return write_typed(static_cast<uint32_t>(type), payload);
}

Status RecordWriter::write_optional(uint32_t type, std::span<const std::byte> payload) {
  if (payload.size() > kMaxUnknownPayload)
    return too_large(static_cast<RecordType>(type), payload.size(), kMaxUnknownPayload, sequence_,
                     header_.channel);
  return write_typed(type | kOptionalBit, payload);
}

Status RecordWriter::write_typed(uint32_t type_word, std::span<const std::byte> payload) {
  if (payload.size() <= kGather) {
    const std::span<std::byte> record = scratch(sizeof(RecordHeader) + payload.size());
    std::copy(payload.begin(), payload.end(), record.begin() + sizeof(RecordHeader));
    return write_framed(type_word, record);
  }
  RecordHeader header{type_word, static_cast<uint32_t>(payload.size()), sequence_, uint32_t{0}};
  header.checksum = record_checksum(seed_, header, payload);
  TRY(sink_.write(std::as_bytes(std::span(&header, 1))));
  TRY(sink_.write(payload));
  ++sequence_;
  return {};
}

Status RecordWriter::write_framed(uint32_t type_word, std::span<std::byte> record) {
  const std::span<std::byte> payload = record.subspan(sizeof(RecordHeader));
  RecordHeader header{type_word, static_cast<uint32_t>(payload.size()), sequence_, uint32_t{0}};
  header.checksum = record_checksum(seed_, header, payload);
  std::memcpy(record.data(), &header, sizeof header);
  TRY(sink_.write(record));
  ++sequence_;
  return {};
}

Status RecordWriter::write_message(RecordType type, const google::protobuf::Message& message) {
  const RecordInfo* info = find_record(type);
  CHECK(info != nullptr && info->prototype != nullptr);
  CHECK(info->prototype().GetDescriptor() == message.GetDescriptor());
  const size_t size = message.ByteSizeLong();
  if (size > info->max_payload) return too_large(type, size, info->max_payload, sequence_, header_.channel);
  const std::span<std::byte> record = scratch(sizeof(RecordHeader) + size);
  message.SerializeWithCachedSizesToArray(reinterpret_cast<uint8_t*>(record.data() + sizeof(RecordHeader)));
  return write_framed(static_cast<uint32_t>(type), record);
}

Status RecordWriter::write_batch(PageBatchWriter& batch) {
  if (batch.empty()) return {};
  TRY(write_framed(static_cast<uint32_t>(batch.type()), batch.finish()));
  batch.clear();
  return {};
}

Status RecordWriter::finish() {
  End end;
  end.set_records(sequence_);
  TRY(write_message(RecordType::kEnd, end));
  return sink_.flush();
}

}  // namespace godwit::wire
