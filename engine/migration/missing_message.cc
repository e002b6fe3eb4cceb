#include "engine/migration/missing_message.h"

#include "engine/base/units.h"

namespace godwit::migration {
namespace {

/// Runs of one message: a run takes at most 20 bytes, and a record 16 MiB.
constexpr int kMostRuns = 500'000;
constexpr uint64_t kLastPage = kUserSpaceEnd >> kPageShift;

}  // namespace

Status each_missing_message(const std::vector<AddressRange>& ranges,
                            const std::function<Status(const wire::Missing&)>& each) {
  wire::Missing message;
  uint64_t end = 0;
  for (const AddressRange& range : ranges) {
    if (message.runs_size() == 2 * kMostRuns) {
      message.set_more(true);
      TRY(each(message));
      message.Clear();
      end = 0;
    }
    message.add_runs((range.start.value() >> kPageShift) - end);
    message.add_runs(range.pages());
    end = range.end.value() >> kPageShift;
  }
  return each(message);
}

Result<std::vector<AddressRange>> to_ranges(const wire::Missing& message) {
  const auto corrupt = [] {
    return fail(ErrorKind::kCorrupt, "read a list of missing pages", "missing",
                "it names what is no memory of a process");
  };
  if (message.process() != 0 || message.runs_size() % 2 != 0) return corrupt();
  std::vector<AddressRange> ranges;
  uint64_t page = 0;
  for (int i = 0; i < message.runs_size(); i += 2) {
    const uint64_t gap = message.runs(i), length = message.runs(i + 1);
    if (gap > kLastPage - page || length == 0 || length > kLastPage - page - gap) return corrupt();
    page += gap;
    ranges.push_back(range_of(page << kPageShift, (page + length) << kPageShift));
    page += length;
  }
  return ranges;
}

}  // namespace godwit::migration
