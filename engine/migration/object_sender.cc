#include "engine/migration/object_sender.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>

#include "engine/codec/zero_page.h"

namespace godwit::migration {
namespace {

constexpr uint64_t kZeros = 0;

uint64_t hash_of(std::span<const std::byte, kPageSize> page) {
  if (codec::is_zero_page(page)) return kZeros;
  return std::max<uint64_t>(1, XXH3_64bits(page.data(), page.size()));
}

}  // namespace

Result<ObjectSender> ObjectSender::create(wire::RecordWriter& writer, BatchSender& sender) {
  return ObjectSender(writer, sender, TRY(wire::PageBatchWriter::create()));
}

Status ObjectSender::announce(std::vector<state::ObjectSource> objects, bool frozen) {
  wire::MemoryObjects news;
  for (state::ObjectSource& object : objects) {
    const auto known = known_.find(object.info.id());
    if (known != known_.end()) {
      const uint64_t told = known->second.source.info.size();
      if (told == object.info.size() || (told > object.info.size() && !frozen)) continue;
    }
    *news.add_objects() = object.info;
    const size_t pages = page_ceil(object.info.size()) >> kPageShift;
    if (known == known_.end()) {
      const uint64_t id = object.info.id();
      known_.emplace(id, Known{std::move(object), std::vector<uint64_t>(pages, kZeros)});
    } else {
      known->second.source.info.set_size(object.info.size());
      known->second.hashes.resize(pages, kZeros);
    }
  }
  if (news.objects().empty()) return {};
  wire::RoomState record;
  record.set_room("memory-objects");
  record.set_payload(news.SerializeAsString());
  return writer_->write_message(wire::RecordType::kDescription, record);
}

Result<uint64_t> ObjectSender::pass() {
  uint64_t pages = 0;
  for (auto& [id, known] : known_) TRY(pass_object(known, pages));
  TRY(writer_->flush());
  return pages;
}

Status ObjectSender::pass_object(Known& known, uint64_t& pages) {
  batch_.begin_object(known.source.info.id());
  const uint64_t size = known.hashes.size() << kPageShift;
  for (uint64_t offset = 0; offset < size; offset += buffer_.size()) {
    const size_t bytes = std::min<uint64_t>(buffer_.size(), size - offset);
    TRY(pass_chunk(known, offset, bytes, pages));
  }
  TRY(sender_->write(batch_));
  return {};
}

Status ObjectSender::pass_chunk(Known& known, uint64_t offset, size_t bytes, uint64_t& pages) {
  const BatchSender::Filling filling(*sender_);
  std::fill_n(buffer_.begin(), bytes, std::byte{0});
  size_t got = 0;
  while (got < bytes) {
    const ssize_t n =
        ::pread(known.source.fd.get(), buffer_.data() + got, bytes - got, static_cast<off_t>(offset + got));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return fail_errno("read a shared memory object", fmt::format("object {:#x}", known.source.info.id()));
    if (n == 0)
      break;  // the last page may be partial, or the object shrank: zeros, and announce() tells the size
    got += static_cast<size_t>(n);
  }
  for (size_t at = 0; at < bytes; at += kPageSize) {
    const std::span<const std::byte, kPageSize> page(buffer_.data() + at, kPageSize);
    uint64_t& sent = known.hashes[(offset + at) >> kPageShift];
    const uint64_t hash = hash_of(page);
    if (hash == sent) continue;
    const auto append = [&] {
      return hash == kZeros ? batch_.append_zero(offset + at, 1) : batch_.append_raw(offset + at, page);
    };
    if (!append()) {
      TRY(sender_->write(batch_));
      CHECK(append());
    }
    sent = hash;
    ++pages;
  }
  return {};
}

}  // namespace godwit::migration
