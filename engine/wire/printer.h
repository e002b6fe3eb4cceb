// A stream as text, one line a record: what `godwit inspect` shows of an image. One thread.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "engine/model/record_stream.h"
#include "engine/wire/record.h"
#include "engine/wire/state.pb.h"

namespace godwit::wire {

struct PrintOptions {
  size_t max_line = 0;  ///< cut longer lines and say by how much; 0 for never
  /// Text for a room's payload; without it its size is printed. The registry of state/ knows the rooms'
  /// messages.
  std::function<std::string(const RoomState&)> print_room;
};

/// One line for one record: "12 pages 1065000 bytes: process 0, 3 runs: 0x1000-0x9000 raw 32768, ...".
std::string describe(const Record& record, const PrintOptions& options = {});

/// Reads `source` to its `end` record; `line` is called for the stream header and each record, without a
/// newline. Errors: as RecordReader, after the lines of every record before the bad one.
Status print_stream(ByteSource& source, const std::function<void(std::string_view)>& line,
                    const PrintOptions& options = {});

}  // namespace godwit::wire
