// A skeleton, opened and loaded. For the loaders of this folder.
#pragma once

#include <cerrno>
#include <memory>

namespace godwit::ebpf {

template <typename Skeleton>
using Program = std::unique_ptr<Skeleton, void (*)(Skeleton*)>;

/// `configure(Skeleton&)` comes before the kernel sees it. Null with errno where the kernel does not take it.
template <typename Skeleton, typename Configure>
Program<Skeleton> load_program(const Configure& configure) {
  Program<Skeleton> program(Skeleton::open(), &Skeleton::destroy);
  if (!program) return program;
  configure(*program);
  const int failed = Skeleton::load(program.get());
  if (failed == 0) return program;
  program.reset();
  errno = -failed;
  return program;
}

template <typename Skeleton>
Program<Skeleton> load_program() {
  return load_program<Skeleton>([](Skeleton&) {});
}

}  // namespace godwit::ebpf
