#include "engine/migration/job.h"

#include "engine/migration/control_protocol.h"
#include "engine/migration/control_server.h"

namespace godwit::migration {
namespace {

Result<std::string> ask(pid_t job, const Request& request) {
  return parse_answer(TRY(ask_job(job_path(job), encode(request))));
}

Wish wish_of(JobRequest request) {
  switch (request) {
    case JobRequest::kCancel:
      return Wish::kCancel;
    case JobRequest::kPause:
      return Wish::kPause;
    case JobRequest::kResume:
      return Wish::kResume;
    case JobRequest::kFreezeNow:
      return Wish::kFreezeNow;
    case JobRequest::kInvalid:
      break;
  }
  return Wish::kInvalid;
}

}  // namespace

Result<std::string> job_status(pid_t job) {
  return ask(job, {Wish::kStatus, {}});
}

Status request_of_job(pid_t job, JobRequest request) {
  TRY(ask(job, {wish_of(request), {}}));
  return {};
}

Status change_job(pid_t job, const Changes& changes) {
  TRY(ask(job, {Wish::kSet, changes}));
  return {};
}

}  // namespace godwit::migration
