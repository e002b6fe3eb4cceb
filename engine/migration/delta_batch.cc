#include "engine/migration/delta_batch.h"

#include <fmt/format.h>

#include "engine/codec/decoder.h"

namespace godwit::migration {
namespace {

constexpr size_t kPages = 128;  ///< at once; half a MiB of bases

}  // namespace

Status DeltaBatch::add(RemoteAddr at, std::span<const std::byte> payload) {
  if (pages_.size() == kPages || (!pages_.empty() && at <= pages_.back())) TRY(flush());
  pages_.push_back(at);
  payloads_.push_back(payload);
  return {};
}

Status DeltaBatch::flush() {
  if (pages_.empty()) return {};
  static thread_local std::vector<std::byte> room(kPages * kPageSize);
  const std::span<std::byte> bytes = std::span(room).first(pages_.size() * kPageSize);
  TRY(installer_.read_pages(pages_, bytes));
  for (size_t i = 0; i < pages_.size(); ++i) {
    const std::span<std::byte, kPageSize> page(bytes.data() + i * kPageSize, kPageSize);
    Status decoded = codec::decode_page(codec::PageEncoding::kXbzrle, payloads_[i], page);
    if (decoded.ok()) continue;
    Error error = decoded.take_error();
    error.subject = fmt::format("page {}{}{}", pages_[i], error.subject.empty() ? "" : ": ", error.subject);
    return error;
  }
  TRY(installer_.install_scattered(pages_, bytes));
  pages_.clear();
  payloads_.clear();
  return {};
}

}  // namespace godwit::migration
