#include "engine/migration/object_sender.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "engine/base/log.h"

namespace godwit::migration {

Result<ObjectSender> ObjectSender::create(wire::RecordWriter& writer, BatchSender& sender) {
  return ObjectSender(writer, sender, TRY(wire::PageBatchWriter::create()));
}

ReadableObject ObjectSender::file_of(const Known& known) {
  return {known.source.fd.get(), fmt::format("object {:#x}", known.source.info.id())};
}

Status ObjectSender::announce(std::vector<state::ObjectSource> objects, bool frozen) {
  if (!objects.empty() && !frozen) prepare();
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
      known_.emplace(id, Known{std::move(object), std::vector<uint64_t>(pages, kZeros), {}, {}});
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

/// Not in a freeze: what is new there has to be read anyway.
void ObjectSender::prepare() {
  if (scan_) return;
  scan_.emplace();
  auto watch = ObjectWatch::create();
  if (watch.ok())
    watch_.emplace(watch.take());
  else
    blind_ = watch.error().message();
}

Status ObjectSender::look() {
  if (!watch_ || known_.empty()) return {};
  std::vector<int> fds;
  for (const auto& [id, known] : known_) fds.push_back(known.source.fd.get());
  const auto looks = TRY(watch_->look(fds));
  auto look = looks.begin();
  for (auto& [id, known] : known_) known.now = *look++;
  return {};
}

void ObjectSender::distrust() {
  for (auto& [id, known] : known_) {
    // What is unchanged need not be read, and is as good as before.
    if (known.now && !(known.read_as_of && is_unchanged(*known.read_as_of, *known.now))) known.now.reset();
  }
}

Result<ObjectSender::Pass> ObjectSender::pass(bool frozen) {
  Pass done;
  for (auto& [id, known] : known_) {
    const std::optional<ObjectLook> now = std::exchange(known.now, std::nullopt);
    const std::string_view why = now && known.read_as_of ? why_changed(*known.read_as_of, *now)
                                                         : "nothing vouches for the last reading";
    if (why.empty()) continue;
    log_debug("object {:#x} is read{}: {}", id, frozen ? " in the freeze" : "", why);
    known.read_as_of.reset();
    batch_.begin_object(id);
    TRY(frozen && scan_ ? pass_differing(known, done) : pass_all(known, done));
    TRY(sender_->write(batch_));
    known.read_as_of = now;
  }
  TRY(writer_->flush());
  return done;
}

/// Little of it will be sent: it is searched with all cores, and what is found is read again.
Status ObjectSender::pass_differing(Known& known, Pass& pass) {
  const ReadableObject file = file_of(known);
  const ObjectScan::Found found = TRY(scan_->find_differing(file, known.hashes));
  pass.bytes += found.bytes;
  const std::span<std::byte, kPageSize> page(buffer_.data(), kPageSize);
  for (const uint64_t number : found.pages) {
    TRY(read_object(file, number << kPageShift, page));
    TRY(send_page(known, number << kPageShift, page, pass));
  }
  return {};
}

Status ObjectSender::pass_all(Known& known, Pass& pass) {
  const ReadableObject file = file_of(known);
  // Pages that were sent and are holes now have become zeros.
  const auto hole = [&](uint64_t begin, uint64_t end) -> Status {
    static constexpr std::array<std::byte, kPageSize> kZeroPage{};
    for (uint64_t at = begin; at < end; at += kPageSize)
      if (known.hashes[at >> kPageShift] != kZeros) TRY(send_page(known, at, kZeroPage, pass));
    return {};
  };
  const auto data = [&](uint64_t begin, uint64_t end) -> Status {
    for (uint64_t at = begin; at < end; at += buffer_.size())
      TRY(pass_chunk(known, file, at, std::min<uint64_t>(buffer_.size(), end - at), pass));
    return {};
  };
  return visit_extents(file, 0, known.hashes.size() << kPageShift, hole, data);
}

Status ObjectSender::pass_chunk(Known& known, const ReadableObject& file, uint64_t offset, size_t bytes,
                                Pass& pass) {
  const BatchSender::Filling filling(*sender_);
  const std::span chunk(buffer_.data(), bytes);
  TRY(read_object(file, offset, chunk));
  pass.bytes += bytes;
  for (size_t at = 0; at < bytes; at += kPageSize)
    TRY(send_page(known, offset + at, chunk.subspan(at).first<kPageSize>(), pass));
  return {};
}

/// If it differs from what the destination holds.
Status ObjectSender::send_page(Known& known, uint64_t offset, std::span<const std::byte, kPageSize> page,
                               Pass& pass) {
  uint64_t& sent = known.hashes[offset >> kPageShift];
  const uint64_t hash = hash_page(page);
  if (hash == sent) return {};
  const auto append = [&] {
    return hash == kZeros ? batch_.append_zero(offset, 1) : batch_.append_raw(offset, page);
  };
  if (!append()) {
    TRY(sender_->write(batch_));
    CHECK(append());
  }
  sent = hash;
  ++pass.pages;
  return {};
}

}  // namespace godwit::migration
