// Takes records off a byte source and proves each one: length, checksum, sequence, known type. Everything
// read is untrusted. Stage: source -> RecordReader -> decoder. One reader per stream, used by one thread at a
// time.
#pragma once

#include <google/protobuf/message.h>

#include <memory>

#include "engine/model/record_stream.h"
#include "engine/wire/record.h"
#include "engine/wire/stream_header.h"

namespace godwit::wire {

class RecordReader {
 public:
  /// Borrows `source`, which must outlive the reader.
  explicit RecordReader(ByteSource& source) : source_(source) {}

  /// Reads the stream header; once, before next(). Errors: Corrupt, Unsupported (another major version),
  /// the source's.
  Result<StreamHeader> start();

  /// The next record that this build knows; unknown optional ones are skipped. Blocks. Every error names the
  /// record. Errors: Corrupt (checksum, sequence, length), Unsupported (unknown mandatory type), and the
  /// source's, PeerGone when the stream ends without an `end` record. After an error the stream is not usable
  /// any more.
  Result<Record> next();

  [[nodiscard]] const StreamHeader& header() const { return header_; }
  [[nodiscard]] uint64_t skipped() const { return skipped_; }

 private:
  Result<Record> read_record();
  Status read_payload(uint32_t length);
  [[nodiscard]] Status judge(const RecordHeader& header, RecordType type) const;

  ByteSource& source_;
  StreamHeader header_;
  uint64_t seed_ = 0;
  uint32_t sequence_ = 0;
  uint64_t skipped_ = 0;
  std::unique_ptr<std::byte[]> buffer_;
  size_t capacity_ = 0;
};

/// Fills `message`, which must be the one that record_type.h names for the record. Errors: Corrupt.
Status parse_into(const Record& record, google::protobuf::Message& message);

template <typename T>
Result<T> parse(const Record& record) {
  T message;
  TRY(parse_into(record, message));
  return message;
}

/// The next record, which has to be a `type`. Errors: Corrupt when it is another (an `abort` becomes the
/// peer's own error, see abort_error), else as next().
Result<Record> expect(RecordReader& reader, RecordType type);

}  // namespace godwit::wire
