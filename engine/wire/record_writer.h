// Frames records onto a byte sink: header, checksum, sequence number. Never sends: the sink does.
// Stage: encoder -> RecordWriter -> sink. One writer per stream, used by one thread at a time.
#pragma once

#include <google/protobuf/message.h>

#include <memory>
#include <span>

#include "engine/model/record_stream.h"
#include "engine/wire/page_batch_writer.h"
#include "engine/wire/record.h"
#include "engine/wire/record_type.h"
#include "engine/wire/stream_header.h"

namespace godwit::wire {

class RecordWriter {
 public:
  /// Borrows `sink`, which must outlive the writer. `header` goes out with start().
  RecordWriter(ByteSink& sink, const StreamHeader& header);

  /// Writes the stream header. Once, before the first record. Errors: the sink's.
  Status start();

  /// One record. `payload` is copied or sent before the call returns. A payload beyond the type's limit is
  /// refused before a byte is written. Errors: Unsupported (too large), the sink's.
  Status write(RecordType type, std::span<const std::byte> payload);

  /// One record with `message`, which must be the one that record_type.h names for `type`.
  /// Errors: Unsupported (too large), the sink's.
  Status write_message(RecordType type, const google::protobuf::Message& message);

  /// The batch as one record straight from its buffer, and empties it; nothing if it is empty already.
  Status write_batch(PageBatchWriter& batch);

  /// A record that a reader may skip if it does not know `type`. For experiments and newer minor versions.
  Status write_optional(uint32_t type, std::span<const std::byte> payload);

  /// The `end` record, then flush. The stream is complete; nothing may follow.
  Status finish();

  Status flush() { return sink_.flush(); }
  [[nodiscard]] uint32_t records() const { return sequence_; }
  [[nodiscard]] const StreamHeader& header() const { return header_; }

 private:
  Status write_typed(uint32_t type_word, std::span<const std::byte> payload);
  /// `record` begins with room for the header; the payload is in place behind it.
  Status write_framed(uint32_t type_word, std::span<std::byte> record);
  std::span<std::byte> scratch(size_t size);

  ByteSink& sink_;
  StreamHeader header_;
  uint64_t seed_;
  uint32_t sequence_ = 0;
  std::unique_ptr<std::byte[]> scratch_;
  size_t scratch_size_ = 0;
};

}  // namespace godwit::wire
