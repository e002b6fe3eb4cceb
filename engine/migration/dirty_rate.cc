#include "engine/migration/dirty_rate.h"

#include <algorithm>

#include "engine/migration/write_watch.h"

namespace godwit::migration {
namespace {

constexpr Nanos kSample = std::chrono::seconds(1);

}  // namespace

double DirtyRate::pages_per_second() const {
  double pages = 0;
  Nanos time{};
  for (const DirtySample& sample : samples) {
    pages += static_cast<double>(sample.pages);
    time += sample.interval;
  }
  return time > Nanos{} ? pages / to_seconds(time) : 0;
}

double DirtyRate::most() const {
  double most = 0;
  for (const DirtySample& sample : samples) {
    const double seconds = to_seconds(sample.interval);
    most = std::max(most, static_cast<double>(sample.pages) / seconds);
  }
  return most;
}

Result<DirtyRate> measure_dirty_rate(const DirtyRateOptions& options) {
  const auto watch = TRY(WriteWatch::begin(options.pid, {options.tracker, options.cancelled}));
  DirtyRate rate;
  rate.pid = options.pid;
  rate.tracker = watch->tracker();
  rate.populated = TRY(watch->written()).pages;
  for (unsigned i = 0; i < options.seconds; ++i) {
    TRY(watch->wait(kSample));
    const WrittenPages written = TRY(watch->written());
    rate.samples.push_back({written.pages, written.interval});
  }
  return rate;
}

}  // namespace godwit::migration
