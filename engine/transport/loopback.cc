#include "engine/transport/loopback.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <vector>

namespace godwit::transport {

/// One direction: a ring of bytes between a writer and a reader, either of which may leave.
class Pipe {
 public:
  enum class Side : uint8_t { kOpen, kClosed, kCancelled };

  explicit Pipe(size_t capacity) : ring_(capacity) { CHECK(capacity > 0); }

  Status write(std::span<const std::byte> bytes) {
    std::unique_lock lock(mutex_);
    while (!bytes.empty()) {
      changed_.wait(lock, [&] { return used_ < ring_.size() || !both_open(); });
      TRY(may_write());
      const size_t at = (begin_ + used_) % ring_.size();
      const size_t n = std::min({bytes.size(), ring_.size() - used_, ring_.size() - at});
      std::copy_n(bytes.begin(), n, ring_.begin() + static_cast<ptrdiff_t>(at));
      used_ += n;
      bytes = bytes.subspan(n);
      changed_.notify_all();
    }
    return {};
  }

  Status check_writer() {
    const std::lock_guard lock(mutex_);
    return may_write();
  }

  Status read(std::span<std::byte> bytes) {
    std::unique_lock lock(mutex_);
    while (!bytes.empty()) {
      changed_.wait(lock, [&] { return used_ > 0 || !both_open(); });
      TRY(may_read());
      const size_t n = std::min({bytes.size(), used_, ring_.size() - begin_});
      std::copy_n(ring_.begin() + static_cast<ptrdiff_t>(begin_), n, bytes.begin());
      begin_ = (begin_ + n) % ring_.size();
      used_ -= n;
      bytes = bytes.subspan(n);
      changed_.notify_all();
    }
    return {};
  }

  void leave_writer(Side how) { leave(writer_, how); }
  void leave_reader(Side how) { leave(reader_, how); }

 private:
  [[nodiscard]] bool both_open() const { return writer_ == Side::kOpen && reader_ == Side::kOpen; }

  [[nodiscard]] Status may_write() const {
    if (writer_ == Side::kCancelled) return fail(ErrorKind::kCancelled, "sending", "memory");
    if (!both_open()) return fail(ErrorKind::kPeerGone, "sending: the connection is closed", "memory");
    return {};
  }

  [[nodiscard]] Status may_read() const {
    if (reader_ == Side::kCancelled) return fail(ErrorKind::kCancelled, "receiving", "memory");
    if (reader_ == Side::kClosed || used_ == 0)
      return fail(ErrorKind::kPeerGone, "receiving: the connection is closed", "memory");
    return {};
  }

  void leave(Side& side, Side how) {
    {
      const std::lock_guard lock(mutex_);
      if (side == Side::kOpen) side = how;
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::byte> ring_;
  size_t begin_ = 0;
  size_t used_ = 0;
  Side writer_ = Side::kOpen;
  Side reader_ = Side::kOpen;
};

Status LoopbackEnd::write(std::span<const std::byte> bytes) {
  return out_->write(bytes);
}
Status LoopbackEnd::flush() {
  return out_->check_writer();
}
Status LoopbackEnd::read(std::span<std::byte> bytes) {
  return in_->read(bytes);
}

void LoopbackEnd::close() {
  out_->leave_writer(Pipe::Side::kClosed);
  in_->leave_reader(Pipe::Side::kClosed);
}

void LoopbackEnd::cancel() {
  out_->leave_writer(Pipe::Side::kCancelled);
  in_->leave_reader(Pipe::Side::kCancelled);
}

Loopback make_loopback(size_t capacity) {
  const auto there = std::make_shared<Pipe>(capacity);
  const auto back = std::make_shared<Pipe>(capacity);
  Loopback link;
  link.a = std::make_unique<LoopbackEnd>(there, back);
  link.b = std::make_unique<LoopbackEnd>(back, there);
  return link;
}

}  // namespace godwit::transport
