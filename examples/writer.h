// A process of its own that writes its memory in a chosen pattern and checks all of it without end: what the
// examples watch and move. It tells how it fares in a file, so that whoever moved it can see that it still
// runs and that nothing was lost.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace godwit::examples {

struct Pattern {
  size_t memory = size_t{64} << 20;      ///< bytes, all of them written once
  size_t hot = size_t{4} << 20;          ///< bytes of the hot set, at the beginning of the memory
  double locality = 0.9;                 ///< part of the writes that go to the hot set
  uint64_t bytes_per_second = 50 << 20;  ///< of pages written anew
  double entropy = 0.1;                  ///< part of a page that a write changes, with random bytes
};

/// As it says of itself.
struct Tidings {
  uint64_t writes = 0;   ///< pages, since it began
  uint64_t checked = 0;  ///< pages found to hold what was written
  uint64_t wrong = 0;
};

class Writer {
 public:
  /// Forks it; it is told to end when this process does, or when it was moved and this one is destroyed.
  explicit Writer(const Pattern& pattern);
  ~Writer();
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// It goes on as another process, which is to be ended instead.
  void moved_to(pid_t pid) { pid_ = pid; }
  [[nodiscard]] Tidings tidings() const;
  /// Blocks until it has checked `pages` more; false if it found a wrong one, or does nothing for ten
  /// seconds.
  [[nodiscard]] bool works_on(uint64_t pages) const;

 private:
  std::string path_;
  int fd_ = -1;
  pid_t pid_ = 0;
};

}  // namespace godwit::examples
