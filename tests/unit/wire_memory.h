// Bytes in memory as a sink and a source, and a stream written in one go: what the tests of the wire share.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "engine/model/record_stream.h"
#include "engine/wire/record_writer.h"

namespace godwit::wire {

using Bytes = std::vector<std::byte>;

class MemorySink final : public ByteSink {
 public:
  Status write(std::span<const std::byte> bytes) override {
    data.insert(data.end(), bytes.begin(), bytes.end());
    ++writes;
    return {};
  }
  Status flush() override {
    ++flushes;
    return {};
  }
  Bytes data;
  int writes = 0;
  int flushes = 0;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::span<const std::byte> bytes) : bytes_(bytes) {}
  Status read(std::span<std::byte> into) override {
    if (into.size() > bytes_.size()) return fail(ErrorKind::kPeerGone, "receiving", "memory");
    if (!into.empty()) std::memcpy(into.data(), bytes_.data(), into.size());
    bytes_ = bytes_.subspan(into.size());
    return {};
  }
  [[nodiscard]] size_t left() const { return bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
};

/// The header of every test stream: channel 2 of 4, session 00 01 .. 0f.
inline StreamHeader test_header() {
  StreamHeader header;
  header.channel = 2;
  header.channels = 4;
  for (size_t i = 0; i < header.session.size(); ++i) header.session[i] = static_cast<std::byte>(i);
  return header;
}

/// A stream that `body` writes, without its `end` record.
inline Bytes written(const std::function<void(RecordWriter&)>& body) {
  MemorySink sink;
  RecordWriter writer(sink, test_header());
  CHECK(writer.start().ok());
  body(writer);
  return sink.data;
}

inline Bytes filled(size_t size, int value) {
  return Bytes(size, static_cast<std::byte>(value));
}

}  // namespace godwit::wire
