// The scratch area of a shell: a mapping that engine and shell share, so that a batch is placed and its
// results are read by plain memory access. The shell inherits it by fork at the address where the engine has
// it; it may later move in the shell, while the engine's own view stays. Shell's thread only.
#pragma once

#include <cstdint>
#include <optional>

#include "engine/base/result.h"
#include "engine/model/vma.h"
#include "engine/tracee/batch.h"

namespace godwit::tracee {

/// A place of `size` bytes in the middle of the largest hole of `layout`, `margin` away from every area;
/// nothing if no hole is that large. Pure.
std::optional<RemoteAddr> find_hole(const Layout& layout, uint64_t size, uint64_t margin);

class ShellScratch {
 public:
  static constexpr uint64_t kSize = 1 << 20;
  static constexpr size_t kCallsPerRound = 4096;
  static constexpr size_t kMaxData = 512 << 10;

  /// Maps it into this engine, far from where programs usually have memory, with the stub in place.
  static Result<ShellScratch> create();
  ShellScratch(ShellScratch&& other) noexcept;
  ShellScratch& operator=(ShellScratch&&) = delete;
  ~ShellScratch();

  /// Where the shell has it.
  [[nodiscard]] AddressRange range() const { return {place_, place_ + kSize}; }
  void moved_to(RemoteAddr place) { place_ = place; }

  [[nodiscard]] RemoteAddr stub() const { return place_; }
  [[nodiscard]] RemoteAddr calls() const;
  [[nodiscard]] RemoteAddr data_address(uint32_t offset) const;
  [[nodiscard]] RemoteAddr done_word() const;
  [[nodiscard]] RemoteAddr stack_top() const;

  // The engine's side. `count` calls of the batch from `first` on, data first.
  void put_data(Batch& batch);
  void put_calls(Batch& batch, size_t first, size_t count);
  void take_results(Batch& batch, size_t first, size_t count) const;
  void take_data(Batch& batch) const;
  [[nodiscard]] bool done() const;

 private:
  explicit ShellScratch(std::byte* view);
  std::byte* view_;
  RemoteAddr place_;
};

}  // namespace godwit::tracee
