#include "engine/wire/record_reader.h"

#include <fmt/format.h>
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstring>

#include "engine/base/log.h"
#include "engine/base/units.h"
#include "engine/wire/layout_messages.h"

namespace godwit::wire {

namespace {

/// A length is only a claim until its bytes have come: memory grows in these steps as they do.
constexpr size_t kGrowth = 2_MiB;

Error corrupt(std::string operation, std::string subject, std::string remedy = {}) {
  return fail(ErrorKind::kCorrupt, std::move(operation), std::move(subject), std::move(remedy));
}

/// The source's error with the record in front of its own subject (a peer's address, a file).
Error name_record(Error error, std::string subject) {
  error.subject =
      error.subject.empty() ? std::move(subject) : fmt::format("{} from {}", subject, error.subject);
  return error;
}

}  // namespace

Result<StreamHeader> RecordReader::start() {
  StreamHeaderBytes bytes;
  Status got = source_.read(bytes);
  if (!got.ok()) return name_record(got.take_error(), "stream header");
  header_ = TRY(decode(bytes));
  seed_ = checksum_seed(header_);
  return header_;
}

Result<Record> RecordReader::next() {
  while (true) {
    Record record = TRY(read_record());
    if (record.type != RecordType::kInvalid) return record;
    ++skipped_;
  }
}

Status RecordReader::judge(const RecordHeader& header, RecordType type) const {
  const RecordInfo* info = find_record(type);
  const uint32_t limit = info != nullptr ? info->max_payload : kMaxUnknownPayload;
  if (header.length > limit)
    return corrupt(
        fmt::format("reading a payload of {} bytes, at most {} are allowed", +header.length, limit),
        record_subject(sequence_, type, header_.channel));
  return {};
}

Status RecordReader::read_payload(uint32_t length) {
  for (size_t have = 0; have < length;) {
    const size_t step = std::min(kGrowth, length - have);
    if (capacity_ < have + step) {
      const size_t larger = std::max(have + step, std::min<size_t>(capacity_ * 2, length));
      auto grown = std::make_unique_for_overwrite<std::byte[]>(larger);
      if (have > 0) std::memcpy(grown.get(), buffer_.get(), have);
      buffer_ = std::move(grown);
      capacity_ = larger;
    }
    TRY(source_.read({buffer_.get() + have, step}));
    have += step;
  }
  return {};
}

/// One record of the stream, proven; type kInvalid stands for an unknown optional one.
Result<Record> RecordReader::read_record() {
  RecordHeader header;
  Status got = source_.read(std::as_writable_bytes(std::span(&header, 1)));
  if (!got.ok()) return name_record(got.take_error(), record_subject(sequence_, header_.channel));

  const auto type = static_cast<RecordType>(header.type & ~kOptionalBit);
  TRY(judge(header, type));
  const std::string_view hint = "the stream was damaged on its way";
  got = read_payload(header.length);
  if (!got.ok()) return name_record(got.take_error(), record_subject(sequence_, type, header_.channel));

  // ORDER: the checksum comes first, so that damage is called damage and not an unknown type or a lost
  // record.
  const std::span<const std::byte> payload(buffer_.get(), header.length);
  if (record_checksum(seed_, header, payload) != header.checksum)
    return corrupt("checking the checksum", record_subject(sequence_, type, header_.channel),
                   std::string(hint));
  if (header.sequence != sequence_)
    return corrupt(fmt::format("expecting record {}, found record {}", sequence_, +header.sequence),
                   record_subject(sequence_, type, header_.channel),
                   "records were lost, repeated or reordered");

  Record record{type, sequence_++, header_.channel, payload};
  if (find_record(type) != nullptr) return record;
  if ((header.type & kOptionalBit) == 0)
    return fail(ErrorKind::kUnsupported, fmt::format("reading record type {}", static_cast<uint32_t>(type)),
                record.name(), "the other engine is newer; use the same version on both sides");
  record.type = RecordType::kInvalid;
  return record;
}

namespace {

/// What libprotobuf would print: a parse that fails is our error to report, not a line on the user's screen.
void log_protobuf(google::protobuf::LogLevel, const char* file, int line, const std::string& message) {
  log_debug("protobuf, {}:{}: {}", file, line, message);
}

}  // namespace

Status parse_into(const Record& record, google::protobuf::Message& message) {
  const RecordInfo* info = find_record(record.type);
  if (info == nullptr || info->prototype == nullptr ||
      info->prototype().GetDescriptor() != message.GetDescriptor())
    return corrupt(fmt::format("expecting a message {}", message.GetTypeName()), record.name());
  static const auto kPrinter = google::protobuf::SetLogHandler(log_protobuf);
  (void)kPrinter;
  if (!message.ParseFromArray(record.payload.data(), static_cast<int>(record.payload.size())))
    return corrupt(fmt::format("parsing a message {}", message.GetTypeName()), record.name());
  return {};
}

Result<Record> expect(RecordReader& reader, RecordType type) {
  const Record record = TRY(reader.next());
  if (record.type == type) return record;
  if (record.type == RecordType::kAbort) return to_error(TRY(parse<Abort>(record)));
  return corrupt(fmt::format("expecting a record {}", record_name(type)), record.name());
}

}  // namespace godwit::wire
