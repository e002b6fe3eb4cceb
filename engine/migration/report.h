// What a migration measured: filled by the source, printed by the CLI. docs/performance.md defines each part.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/migration/convergence.h"
#include "engine/migration/page_counts.h"

namespace godwit::migration {

/// The blackout as the source sees it, from the first interrupt to the peer's word that it runs; the parts
/// add up.
struct Downtime {
  Nanos freeze{};  ///< until every thread stands still
  Nanos scan{};    ///< finding what is dirty
  Nanos pages{};   ///< reading, encoding and sending it
  Nanos state{};   ///< capturing and sending registers and kernel objects
  Nanos commit{};  ///< waiting until the peer has everything in place, making the stop permanent, sending
                   ///< COMMIT
  Nanos resume{};  ///< until the peer says that it runs

  struct Part {
    const char* name;
    Nanos time;
  };
  /// In the order in which they begin.
  [[nodiscard]] std::array<Part, 6> parts() const {
    return {{{"freeze", freeze},
             {"scan", scan},
             {"pages", pages},
             {"state", state},
             {"commit", commit},
             {"resume", resume}}};
  }
  [[nodiscard]] Nanos total() const { return freeze + scan + pages + state + commit + resume; }
};

/// Of a process that ran before all of its memory had come.
struct PostcopyReport {
  uint64_t missing_pages = 0;  ///< at the switch
  uint64_t requests = 0;       ///< that came here
  uint64_t already_sent = 0;   ///< of them, for pages under way
  uint64_t prefetched = 0;     ///< pages sent beside those asked for
  uint64_t reconnects = 0;
  uint64_t faults = 0;  ///< from here on as the destination counted
  uint64_t zero_faults = 0;
  uint64_t duplicates = 0, dropped = 0;  ///< pages that came for nothing
  Nanos median{}, p99{}, longest{};      ///< of the faults, from the kernel's word to the page
  std::vector<Nanos> worst;              ///< the longest, longest first
  Nanos resident{};                      ///< from the resume until nothing was missing
};

struct Report {
  int pid = 0;
  std::string tracker;  ///< "ebpf", "uffd" or "uffd-sync"
  size_t channels = 0;
  Nanos total{};
  Nanos frozen_at{};  ///< CLOCK_REALTIME of the first interrupt, for a look into the program's own log
  Downtime downtime;
  std::vector<RoundStats> rounds;
  PageCounts pages;
  PackedCounts packed;
  uint64_t object_pages = 0;         ///< pages of shared memory that were sent
  uint64_t objects_read_frozen = 0;  ///< bytes of shared memory that the freeze had to read, whatever it sent
  /// Not empty: why it read all shared memory, whether anybody could have written to it or not.
  std::string objects_read_because;
  uint64_t verified_pages = 0;  ///< compared by hash before COMMIT
  uint64_t raw_bytes = 0;
  uint64_t wire_bytes = 0;
  /// Not empty: why relative sleeps and other waits began their time anew instead of going on for what was
  /// left.
  std::string restarts_anew;
  /// Not empty: why the freeze looked at all memory, instead of only at what a log of writes named.
  std::string scanned_because;
  uint32_t bad_instants = 0;      ///< freezes undone because something could not be captured at that moment
  unsigned throttle_percent = 0;  ///< the most that the process was slowed by
  std::optional<PostcopyReport> postcopy;
};

/// Told after every round and at every change of phase.
struct Progress {
  const char* phase = "";
  uint32_t round = 0;
  uint64_t pages = 0;
  uint64_t wire_bytes = 0;
  double bytes_per_second = 0;
  double dirty_pages_per_second = 0;
  Nanos expected_downtime{};
  ThrottleLevel throttle;
};
using OnProgress = std::function<void(const Progress&)>;

}  // namespace godwit::migration
