#include "engine/wire/printer.h"

#include <fmt/format.h>

#include <memory>

#include "engine/wire/packed_batch.h"
#include "engine/wire/page_batch_reader.h"
#include "engine/wire/record_reader.h"

namespace godwit::wire {

namespace {

std::string describe_pages(const Record& record) {
  Result<PageBatchReader> opened = PageBatchReader::open(record);
  if (!opened.ok()) return "malformed: " + opened.error().message();
  PageBatchReader& batch = opened.value();
  std::string text = record.type == RecordType::kPages ? fmt::format("process {}", batch.process())
                                                       : fmt::format("object {}", batch.object());
  text += fmt::format(", {} runs:", batch.entries());
  while (const auto entry = batch.next())
    text += fmt::format(" {} {}{}", entry->range(), to_string(entry->encoding),
                        entry->payload.empty() ? "" : fmt::format(" {}", entry->payload.size()));
  return text;
}

/// What is packed in it, too: the length on the stream stands in front of this.
std::string describe_packed(const Record& record) {
  Unpacker unpacker;
  Result<Record> within = unpacker.unpack(record);
  if (!within.ok()) return "malformed: " + within.error().message();
  const auto header = load<PackedHeader>(record.payload.data());
  return fmt::format("{} of {} {} bytes: {}", to_string(static_cast<Packing>(+header.packing)),
                     record_name(within->type), +header.length, describe_pages(*within));
}

std::string describe_room(const RoomState& state, const PrintOptions& options) {
  const std::string text = options.print_room ? options.print_room(state) : "";
  return fmt::format("room {}, process {}: {}", state.room(), state.process(),
                     text.empty() ? fmt::format("{} bytes", state.payload().size()) : text);
}

std::string describe_message(const Record& record, const PrintOptions& options) {
  const RecordInfo* info = find_record(record.type);
  if (info == nullptr || info->prototype == nullptr) return "unknown";
  const std::unique_ptr<google::protobuf::Message> message(info->prototype().New());
  if (Status parsed = parse_into(record, *message); !parsed.ok())
    return "malformed: " + parsed.error().message();
  if (message->GetDescriptor() == RoomState::descriptor())
    return describe_room(static_cast<const RoomState&>(*message), options);
  return message->ShortDebugString();
}

std::string describe_body(const Record& record, const PrintOptions& options) {
  switch (record.type) {
    case RecordType::kPages:
    case RecordType::kObjectPages:
      return describe_pages(record);
    case RecordType::kPacked:
      return describe_packed(record);
    default:
      return describe_message(record, options);
  }
}

}  // namespace

std::string describe(const Record& record, const PrintOptions& options) {
  std::string text =
      fmt::format("{} {} {} bytes", record.sequence, record_name(record.type), record.payload.size());
  const std::string body = describe_body(record, options);
  if (!body.empty()) text += ": " + body;
  if (options.max_line > 0 && text.size() > options.max_line) {
    const size_t cut = text.size() - options.max_line;
    text.resize(options.max_line);
    text += fmt::format("... ({} more)", cut);
  }
  return text;
}

Status print_stream(ByteSource& source, const std::function<void(std::string_view)>& line,
                    const PrintOptions& options) {
  RecordReader reader(source);
  const StreamHeader header = TRY(reader.start());
  line(fmt::format("godwit stream, version {}.{}, channel {} of {}, session {}", header.major, header.minor,
                   header.channel, header.channels, to_hex(header.session)));
  for (RecordType last = RecordType::kInvalid; last != RecordType::kEnd;) {
    const Record record = TRY(reader.next());
    line(describe(record, options));
    last = record.type;
  }
  return {};
}

}  // namespace godwit::wire
