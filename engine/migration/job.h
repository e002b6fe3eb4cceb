// A migration under way as anybody on its host may see and steer it, through its control socket
// (docs/control.md). Each call is one question and one answer; none waits for what it asks for. Any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/migration/convergence.h"

namespace godwit::migration {

/// What a `set` names; all else stays as it is.
struct Changes {
  std::optional<Nanos> downtime;
  std::optional<uint64_t> bandwidth;  ///< bytes a second, 0: none
  std::optional<uint32_t> max_rounds;
  std::optional<Nanos> timeout;  ///< since the start, 0: none
  std::optional<OnTimeout> on_timeout;
  std::optional<bool> throttle;
  std::optional<unsigned> throttle_initial, throttle_increment, throttle_maximum;
  std::optional<uint64_t> dirty_limit;  ///< bytes a second, 0: none
};

Limits changed_by(Limits limits, const Changes& changes);

/// The jobs of this host: pids that are being migrated. Errors: System.
Result<std::vector<pid_t>> list_jobs();
/// A JSON object, as docs/control.md describes it. Errors of this and the others: Refused when there is no
/// such job, or it is past the point where this can be asked; Denied, Timeout.
Result<std::string> job_status(pid_t job);
Status cancel_job(pid_t job);
Status pause_job(pid_t job);
Status resume_job(pid_t job);
Status freeze_job_now(pid_t job);
/// As freeze_job_now(), by post-copy.
Status postcopy_job_now(pid_t job);
Status change_job(pid_t job, const Changes& changes);

}  // namespace godwit::migration
