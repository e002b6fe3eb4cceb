// The pure parts of the descriptor rooms: parsers, the table of unknown kinds, comparing files.
#include <elf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include <cstring>
#include <fstream>

#include "engine/state/epoll_info.h"
#include "engine/state/file_facts.h"
#include "engine/state/multicast.h"
#include "engine/state/regular_file.h"
#include "engine/state/room.h"
#include "engine/state/unclaimed.h"
#include "engine/state/unix_address.h"

namespace godwit::state {
namespace {

OpenFile open_file(std::string link, mode_t mode = 0) {
  OpenFile file;
  file.descriptors.push_back({7, false});
  file.link = std::move(link);
  file.status.st_mode = mode;
  file.status.st_nlink = 1;
  return file;
}

const DescriptorRoom* claimant(const OpenFile& file) {
  for (const auto& room : descriptor_rooms())
    if (room.claims(file)) return &room;
  return nullptr;
}

TEST(EpollInfo, ReadsEveryEntry) {
  const auto entries = parse_epoll_info(
      "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1060\n"
      "tfd:        5 events:       1d data:         ffffffffffffffff  pos:0 ino:2b1c sdev:8\n"
      "tfd:       12 events: c0000019 data:                0  pos:100 ino:424 sdev:e\n");
  ASSERT_TRUE(entries.ok());
  ASSERT_EQ(entries.value().size(), 2U);
  EXPECT_EQ(entries.value()[0].number, 5);
  EXPECT_EQ(entries.value()[0].events, 0x1dU);
  EXPECT_EQ(entries.value()[0].data, ~uint64_t{0});
  EXPECT_EQ(entries.value()[0].inode, 0x2b1cU);
  EXPECT_EQ(entries.value()[1].number, 12);
  EXPECT_EQ(entries.value()[1].events, 0xc0000019U);
  EXPECT_EQ(entries.value()[1].inode, 0x424U);
}

TEST(EpollInfo, NamesALineThatMakesNoSense) {
  const auto entries = parse_epoll_info("tfd: 5 events: zz\n");
  ASSERT_FALSE(entries.ok());
  EXPECT_EQ(entries.error().kind, ErrorKind::kCorrupt);
  EXPECT_NE(entries.error().message().find("zz"), std::string::npos);
}

TEST(Igmp, GroupsBelongToTheInterfaceAbove) {
  const auto groups = parse_igmp(
      "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"
      "1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"
      "4\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n");
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].interface, 1U);
  EXPECT_EQ(groups[1].interface, 4U);
  EXPECT_EQ(groups[1].address, std::string("\xe0\x00\x00\xfb", 4));
}

TEST(Igmp, Version6) {
  const auto groups =
      parse_igmp6("2    eth0            ff020000000000000000000000000001     1 0000000C 0\nrubbish\n");
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].interface, 2U);
  EXPECT_EQ(groups[0].address.size(), 16U);
  EXPECT_EQ(static_cast<unsigned char>(groups[0].address[0]), 0xff);
  EXPECT_EQ(groups[0].address[15], 1);
}

TEST(UnixAddress, PathsAreTerminatedAndAbstractNamesAreNot) {
  sockaddr_un address{};
  const auto path = fill_unix_address("/run/x", "s", address);
  ASSERT_TRUE(path.ok());
  EXPECT_EQ(path.value(), offsetof(sockaddr_un, sun_path) + 7);
  const std::string abstract("\0name", 5);
  const auto length = fill_unix_address(abstract, "s", address);
  ASSERT_TRUE(length.ok());
  EXPECT_EQ(length.value(), offsetof(sockaddr_un, sun_path) + 5);
  EXPECT_EQ(to_text(abstract), "@name");
}

TEST(UnixAddress, RefusesWhatDoesNotFit) {
  sockaddr_un address{};
  EXPECT_EQ(fill_unix_address(std::string(109, 'x'), "s", address).error().kind, ErrorKind::kCorrupt);
  EXPECT_EQ(fill_unix_address("", "s", address).error().kind, ErrorKind::kCorrupt);
  EXPECT_TRUE(fill_unix_address(std::string(108, 'x'), "s", address).ok());
}

struct Claim {
  OpenFile file;
  std::string_view room;
};

OpenFile socket_file(int domain, int type, int protocol) {
  OpenFile file = open_file("socket:[9]", S_IFSOCK | 0777);
  file.socket = SocketKind{domain, type, protocol};
  return file;
}

TEST(Claims, EveryKindHasItsRoom) {
  OpenFile null = open_file("/dev/null", S_IFCHR | 0666);
  null.status.st_rdev = makedev(1, 3);
  OpenFile memfd = open_file("/memfd:x (deleted)", S_IFREG | 0777);
  memfd.status.st_nlink = 0;
  const Claim claims[] = {
      {null, "device-file"},
      {memfd, "memfd"},
      {open_file("/memfd:x", S_IFREG | 0644), "regular-file"},
      {open_file("/etc/passwd", S_IFREG | 0644), "regular-file"},
      {open_file("/etc", S_IFDIR | 0755), "regular-file"},
      {open_file("pipe:[4]", S_IFIFO | 0600), "pipe"},
      {open_file("anon_inode:[eventfd]"), "eventfd"},
      {open_file("anon_inode:[timerfd]"), "timerfd"},
      {open_file("anon_inode:[signalfd]"), "signalfd"},
      {open_file("anon_inode:[eventpoll]"), "epoll"},
      {socket_file(AF_UNIX, SOCK_SEQPACKET, 0), "unix-socket"},
      {socket_file(AF_INET6, SOCK_DGRAM, IPPROTO_UDP), "udp"},
      {socket_file(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), "udp"},
  };
  for (const Claim& claim : claims) {
    const auto* room = claimant(claim.file);
    ASSERT_NE(room, nullptr) << claim.file.link;
    EXPECT_EQ(room->name, claim.room) << claim.file.link;
  }
}

TEST(Unclaimed, KindsAreNamed) {
  OpenFile tty = open_file("/dev/pts/3", S_IFCHR | 0620);
  tty.status.st_rdev = makedev(136, 3);
  OpenFile dri = open_file("/dev/dri/card0", S_IFCHR | 0660);
  dri.status.st_rdev = makedev(226, 0);
  OpenFile secret = open_file("/secretmem (deleted)", S_IFREG);
  secret.status.st_nlink = 0;
  const std::pair<OpenFile, std::string> expected[] = {
      {open_file("anon_inode:inotify"), "inotify"},
      {open_file("anon_inode:[fanotify]"), "fanotify"},
      {open_file("anon_inode:[io_uring]"), "io_uring"},
      {open_file("anon_inode:[userfaultfd]"), "userfaultfd"},
      {open_file("anon_inode:[perf_event]"), "perf event"},
      {open_file("anon_inode:bpf-map"), "eBPF map"},
      {open_file("anon_inode:[pidfd]"), "pidfd"},
      {open_file("anon_inode:[something new]"), "not known"},
      {open_file("net:[4026531840]", S_IFREG), "network namespace"},
      {open_file("/run/fifo", S_IFIFO | 0600), "named pipe"},
      {tty, "terminal"},
      {dri, "device (226:0)"},
      {secret, "secret memory"},
      {socket_file(AF_NETLINK, SOCK_RAW, 0), "netlink"},
      {socket_file(AF_PACKET, SOCK_RAW, 0), "packet socket"},
      {socket_file(AF_INET, SOCK_DGRAM, IPPROTO_ICMP), "ping"},
      {socket_file(40, SOCK_STREAM, 0), "vsock"},
      {socket_file(99, SOCK_STREAM, 1), "family 99"},
  };
  for (const auto& [file, words] : expected) {
    EXPECT_EQ(claimant(file), nullptr) << file.link;
    const Finding finding = describe_unclaimed(file);
    EXPECT_NE(finding.what.find(words), std::string::npos) << finding.what;
    EXPECT_TRUE(finding.fatal);
    EXPECT_FALSE(finding.why.empty());
    EXPECT_FALSE(finding.remedy.empty());
    EXPECT_EQ(finding.subject, file.subject());
  }
}

TEST(CollectPaths, WhatIsOnlyReadAndWhatMayBeWritten) {
  const auto opened = [](std::string path, int flags) {
    OpenFile file = open_file(std::move(path), S_IFREG);
    file.flags = flags;
    return file;
  };
  const std::vector<OpenFile> files = {opened("/b", O_RDONLY),   opened("/a", O_RDONLY),
                                       opened("/b", O_RDONLY),   opened("/log", O_WRONLY | O_APPEND),
                                       opened("/db", O_RDONLY),  opened("/db", O_RDWR),
                                       open_file("/d", S_IFDIR), open_file("pipe:[1]", S_IFIFO)};
  EXPECT_EQ(collect_paths(files), (std::vector<std::string>{"/a", "/b"}));
  EXPECT_EQ(collect_written_paths(files), (std::vector<std::string>{"/db", "/log"}));
}

// ---- file facts
// --------------------------------------------------------------------------------------------------

std::vector<std::byte> elf_with_note(uint32_t claimed_payload) {
  std::vector<std::byte> image(sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr) + sizeof(Elf64_Nhdr) + 4 + 8);
  Elf64_Ehdr elf{};
  std::memcpy(elf.e_ident, ELFMAG, SELFMAG);
  elf.e_ident[EI_CLASS] = ELFCLASS64;
  elf.e_phoff = sizeof elf;
  elf.e_phnum = 1;
  Elf64_Phdr segment{};
  segment.p_type = PT_NOTE;
  segment.p_offset = sizeof elf + sizeof segment;
  segment.p_filesz = sizeof(Elf64_Nhdr) + 12;
  const Elf64_Nhdr note{4, claimed_payload, NT_GNU_BUILD_ID};
  auto* to = image.data();
  std::memcpy(to, &elf, sizeof elf);
  std::memcpy(to + sizeof elf, &segment, sizeof segment);
  std::memcpy(to + segment.p_offset, &note, sizeof note);
  std::memcpy(to + segment.p_offset + sizeof note, "GNU\0ABCDEFGH", 12);
  return image;
}

TEST(BuildId, IsTheNotesPayload) {
  EXPECT_EQ(find_build_id(elf_with_note(8)), "ABCDEFGH");
}

TEST(BuildId, IsNotReadBeyondTheFile) {
  EXPECT_EQ(find_build_id(elf_with_note(9)), "");
  EXPECT_EQ(find_build_id(elf_with_note(0xfffffff0)), "");
  const auto whole = elf_with_note(8);
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_EQ(find_build_id(std::span(whole).first(size)), "") << size;
}

class FileFacts : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    const std::string path = testing::TempDir() + "/godwit_facts_" + name;
    std::ofstream(path) << text;
    return path;
  }
};

TEST_F(FileFacts, SameContentsStandForEachOther) {
  const auto a = file_facts(write("a", "hello"));
  const auto b = file_facts(write("b", "hello"));
  const auto c = file_facts(write("c", "hellO"));
  const auto d = file_facts(write("d", "hello!"));
  ASSERT_TRUE(a.ok() && b.ok() && c.ok() && d.ok());
  EXPECT_EQ(a.value().hash().size(), 16U);
  EXPECT_EQ(difference(a.value(), b.value()), "");
  EXPECT_EQ(difference(a.value(), c.value()), "other contents");
  EXPECT_EQ(difference(a.value(), d.value()), "size 6 here, 5 there");
}

TEST_F(FileFacts, AProgramHasItsBuildId) {
  const auto self = file_facts("/proc/self/exe");
  ASSERT_TRUE(self.ok());
  EXPECT_EQ(self.value().build_id().empty(), !self.value().hash().empty());
  EXPECT_EQ(difference(self.value(), self.value()), "");
}

TEST_F(FileFacts, WhatIsNoFileIsRefused) {
  EXPECT_EQ(file_facts("/dev/null").error().kind, ErrorKind::kUnsupported);
  EXPECT_EQ(file_facts("/nothing/here").error().err, ENOENT);
}

}  // namespace
}  // namespace godwit::state
