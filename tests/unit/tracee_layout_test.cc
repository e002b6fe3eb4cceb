#include <gtest/gtest.h>
#include <sys/mman.h>

#include <random>

#include "engine/tracee/process.h"

namespace godwit::tracee {
namespace {

constexpr std::string_view kMaps =
    "00400000-00452000 r-xp 00001000 fe:00 173521      /usr/bin/a program\n"
    "00651000-00652000 r--p 00051000 fe:00 173521      /usr/bin/a program\n"
    "00e03000-00e24000 rw-p 00000000 00:00 0           [heap]\n"
    "35b1800000-35b1820000 rw-s 00000000 103:05 135522 /usr/lib/x.so\n"
    "7f0000000000-7f0000001000 ---p 00000000 00:00 0 \n"
    "7f0000001000-7f0000002000 rw-s 00000000 00:01 12  /dev/zero (deleted)\n"
    "7f0000002000-7f0000003000 rw-s 00000000 00:01 13  /memfd:name (deleted)\n"
    "7f0000003000-7f0000004000 rw-p 00000000 00:01 13  /memfd:name (deleted)\n"
    "7f0000004000-7f0000005000 rw-s 00000000 00:01 14  /drm mm object (deleted)\n"
    "7f0000005000-7f0000006000 rw-s 00000000 00:01 15  /SYSV00000000 (deleted)\n"
    "7f0000006000-7f0000007000 rw-s 00000000 00:06 16  /dev/kvm\n"
    "7f0000007000-7f0000008000 rw-p 00000000 00:06 5   /dev/zero\n"
    "7f0000008000-7f0000009000 rw-s 00000000 00:1a 7   /dev/shm/x\n"
    "7f0000009000-7f000000a000 rw-s 00000000 00:1a 8   /dev/shm/y (deleted)\n"
    "7f000000a000-7f000000b000 rw-s 00000000 00:0f 9   anon_inode:[io_uring]\n"
    "7f000000b000-7f000000c000 r--p 00000000 fe:00 10  /tmp/gone (deleted)\n"
    "7f000000c000-7f000000d000 rw-p 00000000 00:00 0   [anon:name]\n"
    "7f000000d000-7f000000e000 rw-s 00000000 00:0e 11  /anon_hugepage (deleted)\n"
    "7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0   [stack]\n"
    "7ffe00030000-7ffe00034000 r--p 00000000 00:00 0   [vvar]\n"
    "7ffe00034000-7ffe00036000 r--p 00000000 00:00 0   [vvar_vclock]\n"
    "7ffe00036000-7ffe00038000 r-xp 00000000 00:00 0   [vdso]\n"
    "7ffe00039000-7ffe0003a000 --xp 00000000 00:00 0   [uprobes]\n"
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n";

TEST(ParseLayout, TellsTheKindOfEveryArea) {
  const auto layout = parse_layout(kMaps);
  ASSERT_TRUE(layout.ok()) << layout.error().message();
  using enum VmaKind;
  const VmaKind expected[] = {
      kFilePrivate, kFilePrivate, kAnonymous,   kFileShared, kAnonymous,  kShmem, kShmem,       kFilePrivate,
      kShmem,       kUnsupported, kUnsupported, kAnonymous,  kFileShared, kShmem, kUnsupported, kFilePrivate,
      kAnonymous,   kShmem,       kAnonymous,   kVdso,       kVdso,       kVdso,  kUnsupported, kVsyscall};
  ASSERT_EQ(layout.value().size(), std::size(expected));
  for (size_t i = 0; i < std::size(expected); ++i)
    EXPECT_EQ(layout.value()[i].kind, expected[i]) << i << " " << layout.value()[i].path;
}

TEST(ParseLayout, ReadsEveryFieldOfALine) {
  const auto layout = parse_layout(kMaps);
  ASSERT_TRUE(layout.ok());
  const Vma& code = layout.value()[0];
  EXPECT_EQ(code.range, range_of(0x400000, 0x452000));
  EXPECT_EQ(code.prot, PROT_READ | PROT_EXEC);
  EXPECT_FALSE(code.shared);
  EXPECT_EQ(code.offset, 0x1000U);
  EXPECT_EQ(code.device, uint64_t{0xfe} << 32);
  EXPECT_EQ(code.inode, 173521U);
  EXPECT_EQ(code.path, "/usr/bin/a program");
  const Vma& shared = layout.value()[3];
  EXPECT_TRUE(shared.shared);
  EXPECT_EQ(shared.device, uint64_t{0x103} << 32 | 5);
  EXPECT_EQ(layout.value()[4].prot, PROT_NONE);
  EXPECT_EQ(layout.value()[4].path, "");
}

TEST(ParseLayout, TakesFlagsAndKeysFromSmaps) {
  const auto layout = parse_layout(
      "1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nProtectionKey:         3\nVmFlags: rd wr mr mw me ac sd "
      "\n"
      "2000-3000 rw-s 00000000 00:0e 5 /memfd:huge (deleted)\nVmFlags: rd wr sh ht\n"
      "3000-4000 rw-s 00000000 00:0e 5 /tmp/x\nVmFlags: rd wr io pf\n"
      "4000-5000 r--p 00000000 00:00 0 [vvar]\nVmFlags: rd mr io pf de dd\n");
  ASSERT_TRUE(layout.ok()) << layout.error().message();
  EXPECT_EQ(layout.value()[0].flags, "rd wr mr mw me ac sd");
  EXPECT_EQ(layout.value()[0].protection_key, 3);
  EXPECT_EQ(layout.value()[0].kind, VmaKind::kAnonymous);
  EXPECT_EQ(layout.value()[1].kind, VmaKind::kUnsupported) << "of no size that is carried";
  EXPECT_EQ(layout.value()[2].kind, VmaKind::kUnsupported);
  EXPECT_EQ(layout.value()[3].kind, VmaKind::kVdso);
}

TEST(ParseLayout, TakesTheSizeOfHugePagesFromSmaps) {
  const auto layout = parse_layout(
      "200000-400000 rw-p 00000000 00:0f 5 /anon_hugepage (deleted)\nKernelPageSize:     2048 kB\n"
      "VmFlags: rd wr mr mw me de ht\n"
      "400000-600000 rw-s 00000000 00:0f 6 /anon_hugepage (deleted)\nKernelPageSize:     2048 kB\n"
      "VmFlags: rd wr sh ht\n"
      "600000-800000 rw-p 00200000 00:0f 7 /memfd:x (deleted)\nKernelPageSize:     2048 kB\nVmFlags: ht\n"
      "800000-a00000 rw-s 00000000 00:2a 8 /mnt/huge/file\nKernelPageSize:     2048 kB\nVmFlags: ht\n"
      "40000000-80000000 rw-p 00000000 00:10 9 /anon_hugepage (deleted)\nKernelPageSize: 1048576 kB\n"
      "VmFlags: ht\n"
      "90000000-90001000 rw-p 00000000 00:00 0 \nKernelPageSize:        4 kB\nVmFlags: rd\n");
  ASSERT_TRUE(layout.ok()) << layout.error().message();
  using enum VmaKind;
  const std::pair<VmaKind, uint64_t> expected[] = {{kAnonymous, 2_MiB},      {kShmem, 2_MiB},
                                                   {kFilePrivate, 2_MiB},    {kUnsupported, 2_MiB},
                                                   {kUnsupported, 1024_MiB}, {kAnonymous, 0}};
  ASSERT_EQ(layout.value().size(), std::size(expected));
  for (size_t i = 0; i < std::size(expected); ++i)
    EXPECT_EQ(std::pair(layout.value()[i].kind, layout.value()[i].huge_page), expected[i]) << i;
}

TEST(ParseLayout, RefusesWhatIsNotALayout) {
  for (const std::string_view bad :
       {"nonsense\n", "1000-2000\n", "2000-1000 rw-p 00000000 00:00 0\n", "1001-2000 rw-p 00000000 00:00 0\n",
        "1000-2000 rwqp 00000000 00:00 0\n", "1000-2000 rw-x 00000000 00:00 0\n",
        "1000-2000 rw-p x 00:00 0\n", "1000-2000 rw-p 00000000 0000 0\n", "1000-2000 rw-p 00000000 00:00 z\n",
        "Size: 4 kB\n", "1000-3000 rw-p 00000000 00:00 0\n2000-4000 rw-p 00000000 00:00 0\n", "\n",
        "11111111111111111-2000 rw-p 00000000 00:00 0\n",
        "1000-2000 rw-p 00000000 00:00 0\nProtectionKey: x\n",
        "1000-2000 rw-p 00000000 00:00 0\nKernelPageSize: big\n"}) {
    const auto layout = parse_layout(bad);
    ASSERT_FALSE(layout.ok()) << bad;
    EXPECT_EQ(layout.error().kind, ErrorKind::kCorrupt) << bad;
  }
  EXPECT_TRUE(parse_layout("").ok());
}

TEST(ParseLayout, SurvivesEveryCutAndDamage) {
  for (size_t size = 0; size <= kMaps.size(); ++size) (void)parse_layout(kMaps.substr(0, size)).ok();
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string text(kMaps);
    for (int hits = 0; hits < 3; ++hits) text[random() % text.size()] = static_cast<char>(random());
    const auto layout = parse_layout(text);
    if (!layout.ok()) continue;
    RemoteAddr last;
    for (const Vma& vma : layout.value()) {
      ASSERT_LE(last, vma.range.start);
      ASSERT_FALSE(vma.range.empty());
      last = vma.range.end;
    }
  }
}

constexpr std::string_view kStat =
    "4711 (a (b) c) S 1 4711 4710 34817 -1 4194560 1 0 2 0 3 4 0 0 20 0 1 0 123456 8192 200 "
    "18446744073709551615 "
    "4194304 4333568 140730000000 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 6295552 6300000 14680064 140730000100 "
    "140730000110 "
    "140730000110 140730000200 0\n";

TEST(ParseStat, ReadsWhatFollowsTheLastParenthesis) {
  const auto stat = parse_stat(kStat);
  ASSERT_TRUE(stat.ok()) << stat.error().message();
  EXPECT_EQ(stat.value().comm, "a (b) c");
  EXPECT_EQ(stat.value().state, 'S');
  EXPECT_EQ(stat.value().ppid, 1);
  EXPECT_EQ(stat.value().pgrp, 4711);
  EXPECT_EQ(stat.value().session, 4710);
  EXPECT_EQ(stat.value().tty, 34817);
  EXPECT_EQ(stat.value().flags, 4194560U);
  EXPECT_EQ(stat.value().start_time, 123456U);
  EXPECT_EQ(stat.value().start_code, 4194304U);
  EXPECT_EQ(stat.value().end_code, 4333568U);
  EXPECT_EQ(stat.value().start_stack, 140730000000U);
  EXPECT_EQ(stat.value().start_data, 6295552U);
  EXPECT_EQ(stat.value().end_data, 6300000U);
  EXPECT_EQ(stat.value().start_brk, 14680064U);
  EXPECT_EQ(stat.value().arg_start, 140730000100U);
  EXPECT_EQ(stat.value().arg_end, 140730000110U);
  EXPECT_EQ(stat.value().env_start, 140730000110U);
  EXPECT_EQ(stat.value().env_end, 140730000200U);
}

TEST(ParseStat, RefusesWhatIsNotAStat) {
  for (const std::string_view bad : {"", "1 a S 1", "1 (a) S 1 2 3", "1 )a( S", "1 (a"}) {
    const auto stat = parse_stat(bad);
    ASSERT_FALSE(stat.ok()) << bad;
    EXPECT_EQ(stat.error().kind, ErrorKind::kCorrupt);
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string text(kStat);
    for (int hits = 0; hits < 3; ++hits) text[random() % text.size()] = static_cast<char>(random());
    (void)parse_stat(text.substr(0, random() % text.size())).ok();
  }
}

}  // namespace
}  // namespace godwit::tracee
