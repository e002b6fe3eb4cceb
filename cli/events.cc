#include "cli/events.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/exit_code.h"
#include "cli/milliseconds.h"

namespace godwit::cli {
namespace {

using nlohmann::ordered_json;

void print_json(const ordered_json& object) {
  fmt::print("{}\n", object.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
  std::fflush(stdout);
}

ordered_json to_json(const state::Finding& f) {
  return {{"event", "finding"}, {"room", f.room},     {"subject", f.subject}, {"what", f.what},
          {"why", f.why},       {"remedy", f.remedy}, {"fatal", f.fatal}};
}

ordered_json to_json(const migration::Downtime& downtime) {
  ordered_json parts;
  for (const auto& part : downtime.parts()) parts[part.name] = to_micros(part.time);
  return parts;
}

ordered_json to_json(const migration::RoundStats& r) {
  return {{"round", r.round},
          {"pages", r.pages},
          {"zero", r.travelled.zero},
          {"xbzrle", r.travelled.xbzrle},
          {"raw", r.travelled.raw},
          {"unchanged", r.travelled.unchanged},
          {"bytes", r.wire_bytes},
          {"interval_us", to_micros(r.interval)},
          {"duration_us", to_micros(r.duration)},
          {"scan_us", to_micros(r.scan)},
          {"guided", r.guided},
          {"cpu-throttle-percentage", r.throttle_percent}};
}

ordered_json to_json(const migration::PostcopyReport& p) {
  ordered_json worst = ordered_json::array();
  for (const Nanos wait : p.worst) worst.push_back(to_micros(wait));
  return {{"missing", p.missing_pages},
          {"faults", p.faults},
          {"zero_faults", p.zero_faults},
          {"requests", p.requests},
          {"already_sent", p.already_sent},
          {"prefetched", p.prefetched},
          {"duplicates", p.duplicates},
          {"dropped", p.dropped},
          {"fault_median_us", to_micros(p.median)},
          {"fault_p99_us", to_micros(p.p99)},
          {"fault_worst_us", worst},
          {"resident_ms", to_ms(p.resident)},
          {"reconnects", p.reconnects}};
}

}  // namespace

void Events::listening(const std::string& address, uint16_t port) const {
  if (json_)
    print_json({{"event", "listening"}, {"address", address}, {"port", port}});
  else
    fmt::print("listening on {}:{}\n", address, port);
  std::fflush(stdout);
}

void Events::running(pid_t pid, pid_t inner_pid) const {
  if (json_)
    print_json({{"event", "running"}, {"pid", inner_pid}, {"host_pid", pid}});
  else
    fmt::print("pid {} is running\n", inner_pid);
  std::fflush(stdout);
}

void Events::findings(const state::Findings& findings) const {
  for (const state::Finding& finding : findings) {
    if (json_) {
      print_json(to_json(finding));
    } else {
      fmt::print("{} {}\n", finding.fatal ? "cannot move:" : "note:", state::to_line(finding));
    }
  }
  std::fflush(stdout);
}

void Events::progress(const migration::Progress& p) const {
  if (json_) {
    print_json({{"event", "progress"},
                {"phase", p.phase},
                {"round", p.round},
                {"pages", p.pages},
                {"wire_bytes", p.wire_bytes},
                {"bytes_per_second", p.bytes_per_second},
                {"dirty_pages_per_second", p.dirty_pages_per_second},
                {"expected_downtime_us", to_micros(p.expected_downtime)},
                {"cpu-throttle-percentage", p.throttle.cpu_percent}});
    return;
  }
  if (::isatty(STDERR_FILENO) == 0) return;
  fmt::print(stderr,
             "\r{} round {}: {} pages, {:.0f} MB/s, {:.0f} pages/s written, expected downtime {:.1f} ms{}   ",
             p.phase, p.round, p.pages, p.bytes_per_second / 1e6, p.dirty_pages_per_second,
             to_ms(p.expected_downtime),
             p.throttle.cpu_percent > 0 ? fmt::format(", throttled by {} %", p.throttle.cpu_percent) : "");
  std::fflush(stderr);
}

void Events::dirty_rate(const migration::DirtyRate& rate) const {
  constexpr double kMebi = 1 << 20;
  const auto bytes = [](double pages) { return pages * static_cast<double>(kPageSize); };
  if (!json_) {
    fmt::print("pid {} writes {:.0f} pages/s anew, {:.1f} MB/s; at most {:.0f} pages/s; it holds {:.1f} MB\n",
               rate.pid, rate.pages_per_second(), bytes(rate.pages_per_second()) / 1e6, rate.most(),
               bytes(static_cast<double>(rate.populated)) / 1e6);
    return;
  }
  ordered_json samples = ordered_json::array();
  for (const migration::DirtySample& sample : rate.samples)
    samples.push_back({{"pages", sample.pages}, {"duration_us", to_micros(sample.interval)}});
  print_json({{"event", "dirty-rate"},
              {"status", "measured"},
              {"pid", rate.pid},
              {"tracker", to_string(rate.tracker)},
              {"calc-time", rate.samples.size()},
              {"dirty-rate", bytes(rate.pages_per_second()) / kMebi},
              {"dirty-pages-rate", rate.pages_per_second()},
              {"most-dirty-pages-rate", rate.most()},
              {"total", rate.populated * kPageSize},
              {"samples", samples}});
}

void Events::completed(const migration::Report& r) const {
  if (!json_) {
    const auto& d = r.downtime;
    if (::isatty(STDERR_FILENO) != 0) fmt::print(stderr, "\n");
    fmt::print("pid {} moved in {:.1f} ms over {} rounds, {} pages, {} bytes on the wire\n", r.pid,
               to_ms(r.total), r.rounds.size(), r.pages.sent, r.wire_bytes);
    fmt::print("downtime {:.2f} ms:", to_ms(d.total()));
    const char* separator = " ";
    for (const auto& part : d.parts())
      fmt::print("{}{} {:.2f}", std::exchange(separator, ", "), part.name, to_ms(part.time));
    fmt::print("\n");
    if (r.packed.bytes > 0)
      fmt::print("{} pages packed to {:.0f} %, {} batches by lz4, {} by zstd\n", r.packed.pages,
                 100 * static_cast<double>(r.packed.wire) / static_cast<double>(r.packed.bytes), r.packed.lz4,
                 r.packed.zstd);
    if (r.postcopy)
      fmt::print(
          "{} pages were missing when it ran, all there after {:.0f} ms; {} faults, median {} us, p99 {} "
          "us\n",
          r.postcopy->missing_pages, to_ms(r.postcopy->resident), r.postcopy->faults,
          to_micros(r.postcopy->median), to_micros(r.postcopy->p99));
    if (r.throttle_percent > 0) fmt::print("throttled by up to {} %\n", r.throttle_percent);
    std::fflush(stdout);
    if (!r.restarts_anew.empty())
      fmt::print(stderr, "godwit: sleeps and other waits of pid {} began their time anew: {}\n", r.pid,
                 r.restarts_anew);
    return;
  }
  ordered_json rounds = ordered_json::array();
  for (const auto& round : r.rounds) rounds.push_back(to_json(round));
  const ordered_json bytes = {
      {"raw", r.raw_bytes}, {"wire", r.wire_bytes}, {"objects_frozen", r.objects_read_frozen}};
  const ordered_json postcopy = r.postcopy ? to_json(*r.postcopy) : ordered_json();
  print_json({{"event", "completed"},
              {"pid", r.pid},
              {"tracker", r.tracker},
              {"channels", r.channels},
              {"total_ms", to_ms(r.total)},
              {"downtime_ms", to_ms(r.downtime.total())},
              {"frozen_at_ms", to_ms(r.frozen_at)},
              {"downtime", to_json(r.downtime)},
              {"rounds", rounds},
              {"pages",
               {{"sent", r.pages.sent},
                {"zero", r.pages.zero},
                {"xbzrle", r.pages.xbzrle},
                {"raw", r.pages.raw},
                {"unchanged", r.pages.unchanged},
                {"discarded", r.pages.discarded},
                {"objects", r.object_pages},
                {"verified", r.verified_pages}}},
              {"packed",
               {{"lz4", r.packed.lz4},
                {"zstd", r.packed.zstd},
                {"pages", r.packed.pages},
                {"bytes", r.packed.bytes},
                {"wire", r.packed.wire}}},
              {"bytes", bytes},
              {"postcopy", postcopy},
              {"cpu-throttle-percentage", r.throttle_percent},
              {"bad_instants", r.bad_instants},
              {"restarts_anew", r.restarts_anew},
              {"scanned_because", r.scanned_because},
              {"objects_read_because", r.objects_read_because}});
}

void Events::failed(const Error& error, const std::string& original) const {
  if (!json_) {
    fmt::print(stderr, "godwit: {}\n", error.message());
    if (!original.empty()) fmt::print(stderr, "godwit: the original is {}\n", original);
    return;
  }
  ordered_json line = {
      {"event", "failed"},        {"kind", to_string(error.kind)}, {"operation", error.operation},
      {"subject", error.subject}, {"message", error.message()},    {"remedy", error.remedy}};
  if (!original.empty()) line["original"] = original;
  print_json(line);
}

int Events::finish(const Status& status, const std::string& original) const {
  if (status.ok()) return kDone;
  failed(status.error(), original);
  return exit_code(status.error().kind);
}

}  // namespace godwit::cli
