#include "engine/tracee/signal_frame.h"

#include <cpuid.h>

#include <algorithm>
#include <cstring>

namespace godwit::tracee {
namespace {

// asm/sigcontext.h, asm/ucontext.h
struct SigContext {
  uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
  uint16_t cs, gs, fs, ss;
  uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
};
static_assert(sizeof(SigContext) == 256);

struct Frame {  // struct rt_sigframe
  uint64_t restorer;
  uint64_t flags, link;
  uint64_t stack_pointer;
  uint32_t stack_flags, stack_pad;
  uint64_t stack_size;
  SigContext context;
  uint64_t mask;
  std::byte info[128];
};
static_assert(sizeof(Frame) == 440);

constexpr uint64_t kUcFpXstate = 1, kUcSigcontextSs = 2, kUcStrictRestoreSs = 4;
/// KERNEL: an unknown mode makes do_sigaltstack() fail with EINVAL, which restore_altstack() ignores: no
/// change.
constexpr uint32_t kNoSuchStackMode = 0x100;

// The legacy area ends with 48 bytes for software, asm/sigcontext.h: struct _fpx_sw_bytes.
struct SoftwareBytes {
  uint32_t magic1, extended_size;
  uint64_t features;
  uint32_t xstate_size, padding[7];
};
static_assert(sizeof(SoftwareBytes) == 48);
constexpr size_t kSoftwareBytes = 464, kHeader = 512, kFirstExtended = 576;
constexpr uint32_t kMagic1 = 0x46505853, kMagic2 = 0x46505845;
constexpr size_t kXstateOffset = 504;  // in the frame: with `at` = 8 mod 64, a multiple of 64
constexpr unsigned kTileData = 18;     // AMX: the one feature that a thread must ask for

template <typename T>
T load(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

/// The size of the standard format that holds `features`; 0 if the CPU does not say.
size_t size_of_features(uint64_t features) {
  size_t size = kFirstExtended;
  for (unsigned i = 2; i < 63; ++i) {
    if ((features >> i & 1) == 0) continue;
    unsigned length = 0, offset = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(0xd, i, &length, &offset, &ecx, &edx) == 0 || length == 0) return 0;
    size = std::max<size_t>(size, size_t{offset} + length);
  }
  return size;
}

void fill_context(SigContext& to, const user_regs_struct& from) {
  to.r8 = from.r8, to.r9 = from.r9, to.r10 = from.r10, to.r11 = from.r11;
  to.r12 = from.r12, to.r13 = from.r13, to.r14 = from.r14, to.r15 = from.r15;
  to.rdi = from.rdi, to.rsi = from.rsi, to.rbp = from.rbp, to.rbx = from.rbx;
  to.rdx = from.rdx, to.rax = from.rax, to.rcx = from.rcx, to.rsp = from.rsp;
  to.rip = from.rip, to.eflags = from.eflags;
  to.cs = static_cast<uint16_t>(from.cs);
  to.ss = static_cast<uint16_t>(from.ss);
}

}  // namespace

Result<std::vector<std::byte>> build_signal_frame(uint64_t at, uint64_t restorer,
                                                  const user_regs_struct& general, uint64_t signal_mask,
                                                  std::span<const std::byte> xstate) {
  if (at % 64 != 8)
    return fail(ErrorKind::kBug, "build a signal frame", "address not 8 off a multiple of 64");
  if (xstate.size() < kFirstExtended)
    return fail(ErrorKind::kUnsupported, "build a signal frame", "a CPU without XSAVE");
  // KERNEL: PTRACE_GETREGSET leaves the features of the CPU in the software bytes. Those of a thread that
  // never asked for AMX are fewer, and a frame larger than the thread's own is taken for one without xstate.
  uint64_t features = load<uint64_t>(xstate, kSoftwareBytes);
  if ((load<uint64_t>(xstate, kHeader) >> kTileData & 1) == 0) features &= ~(uint64_t{1} << kTileData);
  const size_t size = size_of_features(features);
  if (size == 0 || size > xstate.size() || kXstateOffset + size + sizeof kMagic2 > kLargestFrame)
    return fail(ErrorKind::kUnsupported, "build a signal frame", "the xstate",
                "cpuid does not explain its size");

  std::vector<std::byte> bytes(kXstateOffset + size + sizeof kMagic2);
  Frame frame{};
  frame.restorer = restorer;
  frame.flags = kUcFpXstate | kUcSigcontextSs | kUcStrictRestoreSs;
  frame.stack_flags = kNoSuchStackMode;
  frame.mask = signal_mask;
  fill_context(frame.context, general);
  frame.context.fpstate = at + kXstateOffset;
  std::memcpy(bytes.data(), &frame, sizeof frame);

  const SoftwareBytes software{.magic1 = kMagic1,
                               .extended_size = static_cast<uint32_t>(size + sizeof kMagic2),
                               .features = features,
                               .xstate_size = static_cast<uint32_t>(size)};
  std::byte* area = bytes.data() + kXstateOffset;
  std::memcpy(area, xstate.data(), size);
  std::memcpy(area + kSoftwareBytes, &software, sizeof software);
  std::memcpy(area + size, &kMagic2, sizeof kMagic2);
  return bytes;
}

}  // namespace godwit::tracee
