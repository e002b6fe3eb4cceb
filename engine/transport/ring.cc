#include "engine/transport/ring.h"

namespace godwit::transport {

void Ring::Exit::operator()(io_uring* ring) const {
  ::io_uring_queue_exit(ring);
  delete ring;
}

Result<Ring> Ring::create(unsigned entries) {
  auto ring = std::make_unique<io_uring>();
  const int rc = ::io_uring_queue_init(entries, ring.get(), 0);
  if (rc < 0) return fail_errno("io_uring_setup", "a ring of this engine", -rc);
  return Ring(ring.release());
}

io_uring_sqe* Ring::next_entry() {
  return ::io_uring_get_sqe(ring_.get());
}

Result<unsigned> Ring::submit() {
  int rc = 0;
  do {
    rc = ::io_uring_submit(ring_.get());
  } while (rc == -EINTR);
  if (rc < 0) return fail_errno("io_uring_enter", "submissions of this engine", -rc);
  return static_cast<unsigned>(rc);
}

Ring::Completion Ring::consume(io_uring_cqe* entry) {
  const Completion done{::io_uring_cqe_get_data64(entry), entry->res};
  ::io_uring_cqe_seen(ring_.get(), entry);
  return done;
}

std::optional<Ring::Completion> Ring::poll() {
  io_uring_cqe* entry = nullptr;
  if (::io_uring_peek_cqe(ring_.get(), &entry) != 0 || entry == nullptr) return std::nullopt;
  return consume(entry);
}

Result<Ring::Completion> Ring::wait() {
  io_uring_cqe* entry = nullptr;
  int rc = 0;
  do {
    rc = ::io_uring_wait_cqe(ring_.get(), &entry);
  } while (rc == -EINTR);
  if (rc < 0) return fail_errno("io_uring_enter", "completions of this engine", -rc);
  return consume(entry);
}

}  // namespace godwit::transport
