#include "engine/migration/lane.h"

#include <algorithm>

#include "engine/codec/zero_page.h"

namespace godwit::migration {

Result<std::unique_ptr<Lane>> Lane::create(BatchSender& sender, size_t cache_bytes) {
  auto batch = TRY(wire::PageBatchWriter::create());
  auto encoder = TRY(codec::PageEncoder::create(cache_bytes));
  return std::unique_ptr<Lane>(new Lane(sender, std::move(batch), std::move(encoder)));
}

void Lane::begin_round(bool bulk, bool last) {
  sender_.set_goal(last ? PackingGoal::kLatency : PackingGoal::kThroughput);
  if (!bulk) encoder_.begin_round();
  batch_.begin(0);
}

Status Lane::send_first(const tracee::Memory& memory, AddressRange range) {
  const BatchSender::Filling filling(sender_);
  if (sender_.is_slow()) return send_encoded(memory, {&range, 1}, codec::KeepBase::kIfRoom);
  return send_whole(memory, range);
}

Status Lane::send_again(const tracee::Memory& memory, std::span<const AddressRange> ranges, bool last) {
  const BatchSender::Filling filling(sender_);
  return send_encoded(memory, ranges, last ? codec::KeepBase::kNo : codec::KeepBase::kYes);
}

/// Read straight to where it is sent from.
Status Lane::send_whole(const tracee::Memory& memory, AddressRange range) {
  if (batch_.room().size() < range.size()) TRY(write_batch());
  TRY(memory.read_ranges(std::span(&range, 1), batch_.room().first(range.size())));
  for (size_t at = 0; at < range.size(); at += kPageSize)
    (void)sent_.is_known(range.start + at, codec::PageView(batch_.room().data() + at, kPageSize));
  return place(range.start, range.pages());
}

/// What was read to the front of the batch's room becomes runs of zero and of raw pages.
Status Lane::place(RemoteAddr at, size_t pages) {
  while (pages > 0) {
    std::span<std::byte> room = batch_.room();
    const auto is_zero = [&](size_t i) {
      return codec::is_zero_page(
          std::span<const std::byte, kPageSize>(room.data() + i * kPageSize, kPageSize));
    };
    const bool zero = is_zero(0);
    size_t run = 1;
    while (run < pages && is_zero(run) == zero) ++run;
    const bool placed = zero ? batch_.append_zero(at.value(), run) : batch_.commit_raw(at.value(), run);
    if (!placed) {
      // The table is full: what was read moves to the front of an empty batch.
      std::copy_n(room.data(), pages * kPageSize, staging_.data());
      TRY(write_batch());
      std::copy_n(staging_.data(), pages * kPageSize, batch_.room().data());
      continue;
    }
    (zero ? counts_.zero : counts_.raw) += run;
    pages -= run;
    at = at + run * kPageSize;
    // Raw pages stay where they were read; behind zeros the rest moves up over them.
    if (zero && pages > 0)
      std::copy_n(room.data() + run * kPageSize, pages * kPageSize, batch_.room().data());
  }
  return {};
}

Status Lane::send_encoded(const tracee::Memory& memory, std::span<const AddressRange> ranges,
                          codec::KeepBase keep) {
  size_t size = 0;
  for (const AddressRange& range : ranges) size += range.size();
  TRY(memory.read_ranges(ranges, std::span(staging_).first(size)));
  const std::byte* bytes = staging_.data();
  for (const AddressRange& range : ranges) {
    for (RemoteAddr at = range.start; at < range.end; at = at + kPageSize, bytes += kPageSize)
      TRY(encode(at, codec::PageView(bytes, kPageSize), keep));
  }
  return {};
}

Status Lane::encode(RemoteAddr at, codec::PageView bytes, codec::KeepBase keep) {
  if (sent_.is_known(at, bytes)) {
    ++counts_.unchanged;
    return {};
  }
  const bool full = batch_.room().size() < codec::kMaxPayload || batch_.entries() == wire::kBatchEntries;
  if (full) TRY(write_batch());
  const codec::EncodedPage encoded = encoder_.encode({{0, at}, bytes, keep, false}, batch_.room());
  CHECK(commit(at, encoded));
  count(encoded.encoding);
  return {};
}

bool Lane::commit(RemoteAddr at, codec::EncodedPage encoded) {
  switch (encoded.encoding) {
    case codec::PageEncoding::kZero:
      return batch_.append_zero(at.value(), 1);
    case codec::PageEncoding::kRaw:
      return batch_.commit_raw(at.value(), 1);
    case codec::PageEncoding::kXbzrle:
      return batch_.commit_encoded(wire::PageEncoding::kXbzrle, at.value(), 1, encoded.size);
    default:
      return true;  // unchanged: nothing travels
  }
}

void Lane::count(codec::PageEncoding encoding) {
  counts_.zero += encoding == codec::PageEncoding::kZero;
  counts_.raw += encoding == codec::PageEncoding::kRaw;
  counts_.xbzrle += encoding == codec::PageEncoding::kXbzrle;
  counts_.unchanged += encoding == codec::PageEncoding::kUnchanged;
}

Status Lane::write_batch() {
  wire_bytes_ += TRY(sender_.write(batch_));
  return {};
}

Status Lane::flush() {
  TRY(write_batch());
  return sender_.flush();
}

}  // namespace godwit::migration
