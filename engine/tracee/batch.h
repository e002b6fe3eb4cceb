// A vector of system calls for another process to make, with the data they point to. Built without knowing
// where it will run: arguments may name data of the batch (`DataRef`), turned into addresses when a runner
// places the batch in its scratch area. Runners: Injector (a frozen source thread, crash-safe) and Shell (a
// thread being built).
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/remote_addr.h"

namespace godwit::tracee {

/// Bytes inside a batch's data block, by offset.
struct DataRef {
  uint32_t offset = 0;
  uint32_t size = 0;
};

/// An argument: a number, an address of the process, or the address of data in the batch.
struct Arg {
  Arg(std::integral auto v) : value(static_cast<uint64_t>(v)) {}    // NOLINT(google-explicit-constructor)
  Arg(RemoteAddr a) : value(a.value()) {}                           // NOLINT(google-explicit-constructor)
  Arg(DataRef r) : value(r.offset), size(r.size), is_data(true) {}  // NOLINT(google-explicit-constructor)
  Arg() = default;
  uint64_t value = 0;
  uint32_t size = 0;  ///< of the data
  bool is_data = false;
};

struct Call {
  long nr = 0;
  std::array<Arg, 6> args{};
  int64_t result = 0;     ///< as the kernel returns it: -errno on failure; valid after the run
  bool may_fail = false;  ///< otherwise a negative result makes run() fail, naming `what`
  std::string what;       ///< for the error: "open fd 7 (/var/log/x)"
};

class Batch {
 public:
  /// Appends a call; returns its index. All calls run, in order, even after one fails.
  size_t call(long nr, std::initializer_list<Arg> args, std::string what) {
    return append(nr, args, std::move(what), false);
  }
  /// The same for a call whose failure the caller looks at itself, through result().
  size_t call_may_fail(long nr, std::initializer_list<Arg> args, std::string what) {
    return append(nr, args, std::move(what), true);
  }

  /// Zeroed bytes in the data block, 16-byte aligned; kernel writes to them can be read after the run.
  DataRef reserve(size_t size) {
    const size_t offset = (data_.size() + 15) & ~size_t{15};
    data_.resize(offset + size);
    return {static_cast<uint32_t>(offset), static_cast<uint32_t>(size)};
  }
  DataRef put(std::span<const std::byte> bytes) {
    const DataRef ref = reserve(bytes.size());
    if (!bytes.empty()) std::memcpy(data_.data() + ref.offset, bytes.data(), bytes.size());
    return ref;
  }
  template <typename T>
  DataRef put_value(const T& value) {
    return put(std::as_bytes(std::span(&value, 1)));
  }
  DataRef put_string(std::string_view text) {  ///< with its terminating zero
    const std::string copy(text);
    return put(std::as_bytes(std::span(copy.c_str(), copy.size() + 1)));
  }

  /// Makes the 8 bytes at `at` bytes into `where` the address of `target`: a pointer inside a structure.
  void point(DataRef where, size_t at, DataRef target) {
    pointers_.push_back({static_cast<uint32_t>(where.offset + at), target.offset});
  }

  [[nodiscard]] int64_t result(size_t index) const { return calls_[index].result; }
  [[nodiscard]] std::span<const std::byte> bytes(DataRef ref) const {
    return std::span(data_).subspan(ref.offset, ref.size);
  }
  template <typename T>
  [[nodiscard]] T value(DataRef ref) const {
    T out;
    std::memcpy(&out, data_.data() + ref.offset, sizeof out);
    return out;
  }
  [[nodiscard]] bool empty() const { return calls_.empty(); }

  // For runners.
  [[nodiscard]] std::vector<Call>& calls() { return calls_; }
  [[nodiscard]] std::vector<std::byte>& data() { return data_; }
  /// Once the data block's address is known: fills in the pointers made by point().
  void resolve(RemoteAddr data_at) {
    for (const Pointer& pointer : pointers_) {
      const uint64_t address = data_at.value() + pointer.target;
      std::memcpy(data_.data() + pointer.at, &address, sizeof address);
    }
  }

 private:
  size_t append(long nr, std::initializer_list<Arg> args, std::string what, bool may_fail) {
    Call call{.nr = nr, .what = std::move(what)};
    call.may_fail = may_fail;
    size_t i = 0;
    for (const Arg& arg : args) call.args[i++] = arg;
    calls_.push_back(std::move(call));
    return calls_.size() - 1;
  }

  struct Pointer {
    uint32_t at;
    uint32_t target;
  };

  std::vector<Call> calls_;
  std::vector<Pointer> pointers_;
  std::vector<std::byte> data_;
};

/// Who can make a thread run a batch. `tid` must be stopped under this runner's thread.
/// A failed call (unless may_fail) is an Error with the call's `what` as operation and its errno.
/// A batch larger than the scratch area is run in several rounds or refused with Bug; runners state their
/// size.
class BatchRunner {
 public:
  virtual ~BatchRunner() = default;
  virtual Status run(pid_t tid, Batch& batch) = 0;
};

}  // namespace godwit::tracee
