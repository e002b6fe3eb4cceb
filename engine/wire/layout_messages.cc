#include "engine/wire/layout_messages.h"

#include <fmt/format.h>

#include <algorithm>

namespace godwit::wire {

namespace {

constexpr uint32_t kProtBits = 7;  // PROT_READ | PROT_WRITE | PROT_EXEC
constexpr uint32_t kProtectionKeys = 16;
// KERNEL: the vsyscall page is the one mapping that maps shows above the end of user space.
constexpr uint64_t kVsyscallStart = 0xffffffffff600000;

Result<AddressRange> checked_range(uint64_t start, uint64_t end) {
  const bool vsyscall = start == kVsyscallStart && end == kVsyscallStart + kPageSize;
  const bool aligned = start % kPageSize == 0 && end % kPageSize == 0;
  if (!aligned || start >= end || (end > kUserSpaceEnd && !vsyscall))
    return fail(ErrorKind::kCorrupt, "reading a range of addresses", fmt::format("{:x}-{:x}", start, end));
  return range_of(start, end);
}

template <typename T>
Status check_order(const std::vector<T>& sorted, AddressRange (*range)(const T&)) {
  for (size_t i = 1; i < sorted.size(); ++i)
    if (range(sorted[i - 1]).overlaps(range(sorted[i])))
      return fail(ErrorKind::kCorrupt, "reading overlapping areas",
                  fmt::format("{} and {}", range(sorted[i - 1]), range(sorted[i])));
  return {};
}

}  // namespace

VmaMessage to_message(const Vma& vma) {
  VmaMessage message;
  message.set_start(vma.range.start.value());
  message.set_end(vma.range.end.value());
  message.set_prot(static_cast<uint32_t>(vma.prot));
  message.set_shared(vma.shared);
  message.set_kind(static_cast<uint32_t>(vma.kind));
  message.set_offset(vma.offset);
  message.set_device(vma.device);
  message.set_inode(vma.inode);
  message.set_path(vma.path);
  message.set_flags(vma.flags);
  message.set_protection_key(static_cast<uint32_t>(vma.protection_key));
  message.set_huge_page(vma.huge_page);
  return message;
}

RangeMessage to_message(AddressRange range) {
  RangeMessage message;
  message.set_start(range.start.value());
  message.set_end(range.end.value());
  return message;
}

Result<AddressRange> to_range(const RangeMessage& message) {
  return checked_range(message.start(), message.end());
}

namespace {

bool is_of_huge_pages(const VmaMessage& message) {
  return message.huge_page() == kHugePageSize && (message.start() | message.end()) % kHugePageSize == 0 &&
         message.offset() % kHugePageSize == 0;
}

}  // namespace

Result<Vma> to_vma(const VmaMessage& message) {
  Vma vma;
  vma.range = TRY(checked_range(message.start(), message.end()));
  const auto bad = [&](std::string what) {
    return fail(ErrorKind::kCorrupt, std::move(what), fmt::format("area {}", vma.range));
  };
  if (message.kind() == 0 || message.kind() > static_cast<uint32_t>(VmaKind::kUnsupported))
    return bad(fmt::format("reading kind {} of a mapping", message.kind()));
  if ((message.prot() & ~kProtBits) != 0) return bad(fmt::format("reading protection {:#x}", message.prot()));
  if (message.protection_key() >= kProtectionKeys)
    return bad(fmt::format("reading protection key {}", message.protection_key()));
  if (message.offset() % kPageSize != 0)
    return bad(fmt::format("reading file offset {:#x}", message.offset()));
  if (message.huge_page() != 0 && !is_of_huge_pages(message))
    return bad(fmt::format("reading pages of {} bytes", message.huge_page()));
  if (message.path().find('\0') != std::string::npos) return bad("reading a path with a NUL byte");
  vma.prot = static_cast<int>(message.prot());
  vma.shared = message.shared();
  vma.kind = static_cast<VmaKind>(message.kind());
  vma.offset = message.offset();
  vma.device = message.device();
  vma.inode = message.inode();
  vma.path = message.path();
  vma.flags = message.flags();
  vma.protection_key = static_cast<int>(message.protection_key());
  vma.huge_page = message.huge_page();
  return vma;
}

Result<Layout> to_layout(const LayoutMessage& message) {
  Layout layout;
  layout.reserve(static_cast<size_t>(message.areas_size()));
  for (const VmaMessage& area : message.areas()) layout.push_back(TRY(to_vma(area)));
  std::sort(layout.begin(), layout.end(),
            [](const Vma& a, const Vma& b) { return a.range.start < b.range.start; });
  TRY(check_order<Vma>(layout, [](const Vma& vma) { return vma.range; }));
  return layout;
}

Result<std::vector<AddressRange>> to_ranges(
    const google::protobuf::RepeatedPtrField<RangeMessage>& messages) {
  std::vector<AddressRange> ranges;
  ranges.reserve(static_cast<size_t>(messages.size()));
  for (const RangeMessage& message : messages) ranges.push_back(TRY(to_range(message)));
  std::sort(ranges.begin(), ranges.end(), [](AddressRange a, AddressRange b) { return a.start < b.start; });
  TRY(check_order<AddressRange>(ranges, [](const AddressRange& range) { return range; }));
  return ranges;
}

constexpr uint32_t kErrnoLimit = 4096;  // linux/err.h: MAX_ERRNO, excluded

Abort to_message(const Error& error) {
  Abort message;
  message.set_kind(static_cast<uint32_t>(error.kind));
  message.set_operation(error.operation);
  message.set_subject(error.subject);
  message.set_error_number(static_cast<uint32_t>(error.err));
  message.set_remedy(error.remedy);
  return message;
}

Error to_error(const Abort& message) {
  const bool known = message.kind() > 0 && message.kind() <= static_cast<uint32_t>(ErrorKind::kUntrusted);
  Error error =
      fail(known ? static_cast<ErrorKind>(message.kind()) : ErrorKind::kSystem,
           fmt::format("the other engine: {}", message.operation()), message.subject(), message.remedy());
  if (message.error_number() < kErrnoLimit) error.err = static_cast<int>(message.error_number());
  return error;
}

}  // namespace godwit::wire
