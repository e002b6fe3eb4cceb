// Which pages a child of this program writes, looked at five times a second:
//
//     build/examples/track_writes [LOOKS]
//
// Each line is a look at the child's memory from its first page to its last; the darker, the more of it was
// written since the look before. The hot set is the dark part on the left.
#include <fmt/format.h>

#include <godwit/godwit.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "examples/writer.h"

namespace godwit {
namespace {

using migration::WrittenPages;
using migration::WrittenSpan;

constexpr size_t kColumns = 64;

/// The area with the most pages: at the first look all of them are told.
WrittenSpan largest(const WrittenPages& written) {
  return *std::max_element(
      written.spans.begin(), written.spans.end(),
      [](const WrittenSpan& a, const WrittenSpan& b) { return a.end - a.start < b.end - b.start; });
}

std::string picture(const WrittenPages& written, WrittenSpan area) {
  constexpr std::string_view kShades = " .:-=+*#%@";
  const double column = static_cast<double>(area.end - area.start) / kColumns;
  std::vector<double> bytes(kColumns);
  for (const WrittenSpan& span : written.spans) {
    for (uint64_t at = std::max(span.start, area.start); at < std::min(span.end, area.end); at += kPageSize)
      bytes[static_cast<size_t>(static_cast<double>(at - area.start) / column)] +=
          static_cast<double>(kPageSize);
  }
  std::string line;
  for (const double part : bytes)
    line += kShades[std::min(kShades.size() - 1,
                             static_cast<size_t>(part / column * static_cast<double>(kShades.size())))];
  return line;
}

Status watch(const examples::Writer& writer, int looks) {
  const auto watched = TRY(migration::WriteWatch::begin(writer.pid()));
  const WrittenPages all = TRY(watched->written());
  const WrittenSpan area = largest(all);
  fmt::print("pid {} holds {} pages; the largest area has {}\n", writer.pid(), all.pages,
             (area.end - area.start) / kPageSize);
  for (int i = 0; i < looks; ++i) {
    TRY(watched->wait(std::chrono::milliseconds(200)));
    const WrittenPages written = TRY(watched->written());
    fmt::print("|{}| {} pages in {:.0f} ms\n", picture(written, area), written.pages,
               to_seconds(written.interval) * 1e3);
  }
  return {};
}

int run(int looks) {
  examples::Pattern pattern;
  pattern.bytes_per_second = 20 << 20;
  const examples::Writer writer(pattern);
  if (!writer.works_on(1000)) return 1;
  const Status watched = watch(writer, looks);
  if (!watched.ok()) fmt::print(stderr, "track_writes: {}\n", watched.error().message());
  return watched.ok() && writer.works_on(1000) ? 0 : 1;
}

}  // namespace
}  // namespace godwit

int main(int argc, char** argv) {
  return godwit::run(argc > 1 ? std::atoi(argv[1]) : 10);
}
