// The scratch area inside a process that calls are injected into: where it lies, what lies in it, how it is
// known. Private to tracee.
//
//   0x00000  header: the magic by which a later engine knows it; the stub's code
//   0x01000  stack: used only if this engine died before it could block signals, by a handler on top of the
//   stub 0x21000  signal frame: the thread's own registers, mask and xstate, for rt_sigreturn 0x25000  calls
//   (64 bytes each), then data
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "engine/model/address_range.h"
#include "engine/model/vma.h"

namespace godwit::tracee {

/// Far from where the kernel, compilers and runtimes put things, so that it never merges with a neighbour. A
/// hint only.
constexpr uint64_t kScratchHint = 0x676f'6477'0000;  // "godw"
/// An odd number of pages, so that the area is known by its size even before anything is written to it.
constexpr uint64_t kScratchSize = 0x8f000;

constexpr uint64_t kStubOffset = 0x100;
constexpr uint64_t kFrameArea = 0x21000;
constexpr uint64_t kVectorOffset = 0x25000;
constexpr uint64_t kVectorSize = kScratchSize - kVectorOffset;  // 424 KiB

constexpr std::array<char, 16> kScratchMagic = {'g', 'o', 'd', 'w', 'i', 't', ' ', 's',
                                                'c', 'r', 'a', 't', 'c', 'h', ' ', '1'};

/// One call as the stub reads it.
struct StubCall {
  uint64_t nr;
  uint64_t args[6];
  int64_t result;
};
static_assert(sizeof(StubCall) == 64);

/// Registers on entry: rbx = calls, r12 = their number, r13 = signal to raise (0: none), rsp = frame + 8.
std::span<const std::byte> stub_code();
/// The offset in the code at which the thread stops when the signal is delivered.
uint64_t stub_raised_offset();

/// Has `vma` the looks of a scratch area? Unless it lies at the hint, the magic must confirm it.
bool may_be_scratch(const Vma& vma);

}  // namespace godwit::tracee
