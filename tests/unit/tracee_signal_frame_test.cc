#include "engine/tracee/signal_frame.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <cstring>

#include "engine/tracee/restart.h"

namespace godwit::tracee {
namespace {

constexpr uint64_t kAt = 0x10008;

template <typename T>
T load(const std::vector<std::byte>& bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

/// As PTRACE_GETREGSET gives it for a CPU with `features`: its size is that of all of them.
std::vector<std::byte> xstate_of(uint64_t features, size_t size) {
  std::vector<std::byte> xstate(size, std::byte{0x33});
  std::memcpy(xstate.data() + 464, &features, sizeof features);
  const uint64_t in_use = 3;
  std::memcpy(xstate.data() + 512, &in_use, sizeof in_use);
  return xstate;
}

TEST(SignalFrame, HasTheKernelsLayout) {
  user_regs_struct general{};
  general.rip = 0x1111;
  general.rsp = 0x2222;
  general.r8 = 0x3333;
  general.rcx = 0x4444;
  general.cs = 0x33;
  general.ss = 0x2b;
  const auto frame = build_signal_frame(kAt, 0x5555, general, 0x6666, xstate_of(3, 576));
  ASSERT_TRUE(frame.ok()) << frame.error().message();
  const auto& bytes = frame.value();
  EXPECT_EQ(load<uint64_t>(bytes, 0), 0x5555U);
  EXPECT_EQ(load<uint64_t>(bytes, 8), 7U) << "UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS";
  EXPECT_EQ(load<uint64_t>(bytes, 48), 0x3333U) << "r8 is the first of sigcontext";
  EXPECT_EQ(load<uint64_t>(bytes, 48 + 14 * 8), 0x4444U);
  EXPECT_EQ(load<uint64_t>(bytes, 48 + 15 * 8), 0x2222U);
  EXPECT_EQ(load<uint64_t>(bytes, 48 + 16 * 8), 0x1111U);
  EXPECT_EQ(load<uint16_t>(bytes, 48 + 18 * 8), 0x33U);
  EXPECT_EQ(load<uint16_t>(bytes, 48 + 18 * 8 + 6), 0x2bU);
  EXPECT_EQ(load<uint64_t>(bytes, 48 + 256), 0x6666U) << "the mask";
}

TEST(SignalFrame, MarksTheXstateSoThatTheKernelTakesAllOfIt) {
  const auto frame = build_signal_frame(kAt, 0, {}, 0, xstate_of(3, 576));
  ASSERT_TRUE(frame.ok());
  const auto& bytes = frame.value();
  const auto fpstate = load<uint64_t>(bytes, 48 + 23 * 8);
  EXPECT_EQ(fpstate % 64, 0U);
  const size_t at = fpstate - kAt;
  EXPECT_EQ(load<uint8_t>(bytes, at), 0x33U);
  EXPECT_EQ(load<uint32_t>(bytes, at + 464), 0x46505853U);
  EXPECT_EQ(load<uint32_t>(bytes, at + 468), 580U);
  EXPECT_EQ(load<uint64_t>(bytes, at + 472), 3U);
  EXPECT_EQ(load<uint32_t>(bytes, at + 480), 576U);
  EXPECT_EQ(load<uint32_t>(bytes, at + 576), 0x46505845U);
  EXPECT_EQ(bytes.size(), at + 580);
}

TEST(SignalFrame, RefusesWhatItCannotHold) {
  EXPECT_EQ(build_signal_frame(kAt + 8, 0, {}, 0, xstate_of(3, 576)).error().kind, ErrorKind::kBug);
  EXPECT_EQ(build_signal_frame(kAt, 0, {}, 0, std::vector<std::byte>(512)).error().kind,
            ErrorKind::kUnsupported);
  EXPECT_EQ(build_signal_frame(kAt, 0, {}, 0, xstate_of(3 | uint64_t{1} << 60, 576)).error().kind,
            ErrorKind::kUnsupported);
}

TEST(SignalFrame, RestartsACallAsTheKernelWould) {
  user_regs_struct general{};
  general.rip = 0x1002;
  general.orig_rax = SYS_futex;
  for (const int error : {512, 513, 514, 516}) {
    general.rax = static_cast<uint64_t>(-error);
    const auto home = restarted(general);
    EXPECT_EQ(home.rip, 0x1000U);
    EXPECT_EQ(home.rax, uint64_t{SYS_futex});
  }
  for (const int64_t result : {int64_t{-EINTR}, int64_t{-515}, int64_t{0}, int64_t{7}}) {
    general.rax = static_cast<uint64_t>(result);
    EXPECT_EQ(restarted(general).rip, 0x1002U) << result;
  }
  general.orig_rax = ~0ULL;  // not in a system call: rax is the program's own
  general.rax = static_cast<uint64_t>(-512);
  EXPECT_EQ(restarted(general).rip, 0x1002U);
  EXPECT_EQ(restarted(general).rax, static_cast<uint64_t>(-512));
}

}  // namespace
}  // namespace godwit::tracee
