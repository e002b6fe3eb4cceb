#include "engine/migration/job.h"

#include "engine/migration/control_protocol.h"
#include "engine/migration/control_server.h"

namespace godwit::migration {
namespace {

Result<std::string> ask(pid_t job, const Request& request) {
  return parse_answer(TRY(ask_job(job_path(job), encode(request))));
}

Status tell(pid_t job, const Request& request) {
  TRY(ask(job, request));
  return {};
}

}  // namespace

Result<std::string> job_status(pid_t job) {
  return ask(job, {Wish::kStatus, {}});
}

Status cancel_job(pid_t job) {
  return tell(job, {Wish::kCancel, {}});
}

Status pause_job(pid_t job) {
  return tell(job, {Wish::kPause, {}});
}

Status resume_job(pid_t job) {
  return tell(job, {Wish::kResume, {}});
}

Status freeze_job_now(pid_t job) {
  return tell(job, {Wish::kFreezeNow, {}});
}

Status postcopy_job_now(pid_t job) {
  return tell(job, {Wish::kPostcopy, {}});
}

Status change_job(pid_t job, const Changes& changes) {
  return tell(job, {Wish::kSet, changes});
}

}  // namespace godwit::migration
