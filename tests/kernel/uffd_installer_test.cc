// page_installer against real processes: every way a page can arrive, and none that could block for ever.
#include <gmock/gmock.h>

#include <random>
#include <thread>

#include "engine/base/files.h"
#include "tests/kernel/uffd_target.h"
#include "uffd/page_installer.h"

namespace godwit::uffd {
namespace {

using test::map_apart;
using test::map_pages;
using test::pages_at;
using test::Target;
using test::touch;

constexpr size_t kPages = 96;

std::vector<std::byte> random_pages(size_t pages, uint32_t seed) {
  std::vector<std::byte> bytes(pages * kPageSize);
  std::mt19937 random(seed);
  for (std::byte& b : bytes) b = std::byte(random());
  return bytes;
}

/// A process with one anonymous area of kPages, in its fresh phase unless said otherwise.
class PageInstallerTest : public testing::Test {
 protected:
  PageInstaller make(Target& target, const std::vector<AddressRange>& fresh) {
    auto installer = PageInstaller::create(target.pid());
    EXPECT_TRUE(installer.ok());
    auto uffd = Uffd::adopt(target.make_uffd(), 0);
    EXPECT_TRUE(uffd.ok()) << (uffd.ok() ? "" : uffd.error().message());
    installer->begin_fresh(uffd.take());
    EXPECT_TRUE(installer->register_fresh(fresh).ok());
    return installer.take();
  }
  static void install(const PageInstaller& installer, AddressRange range, std::span<const std::byte> bytes) {
    const Status status = installer.install_run(range, bytes);
    ASSERT_TRUE(status.ok()) << status.error().message();
  }
  static void zero(const PageInstaller& installer, AddressRange range, Absent absent) {
    const Status status = installer.install_zeros(range, absent);
    ASSERT_TRUE(status.ok()) << status.error().message();
  }
  static std::vector<std::byte> read(const PageInstaller& installer, const std::vector<RemoteAddr>& pages) {
    std::vector<std::byte> out(pages.size() * kPageSize, std::byte{0xee});
    const Status status = installer.read_pages(pages, out);
    EXPECT_TRUE(status.ok()) << status.error().message();
    return out;
  }
  static void put(std::vector<std::byte>& image, size_t first, std::span<const std::byte> bytes) {
    std::copy(bytes.begin(), bytes.end(), image.begin() + static_cast<ssize_t>(first * kPageSize));
  }

  Target target_{
      {[](auto& c) { c.a = map_apart(kPages); },
       [](auto& c) { ::mprotect(reinterpret_cast<void*>(c.a.load()), 5 * kPageSize, PROT_READ); }}};
  AddressRange area() { return pages_at(target_.control().a, 0, kPages); }
};

TEST_F(PageInstallerTest, FirstArrivalsLaterOnesAndZerosInAnyMixture) {
  target_.run(0);
  const uint64_t base = target_.control().a;
  PageInstaller installer = make(target_, {area()});
  std::vector<std::byte> image(kPages * kPageSize);
  const auto step = [&](size_t first, size_t count, uint32_t seed) {
    const auto bytes = random_pages(count, seed);
    install(installer, pages_at(base, first, count), bytes);
    put(image, first, bytes);
  };
  step(10, 5, 1);
  step(20, 1, 2);
  step(5, 30, 3);  // missing and present ones by turns
  step(5, 30, 4);  // all present
  zero(installer, pages_at(base, 12, 4), Absent::kZero);
  put(image, 12, std::vector<std::byte>(4 * kPageSize));
  zero(installer, pages_at(base, 60, 20), Absent::kZero);
  step(70, 2, 5);
  installer.end_fresh();
  step(69, 4, 6);
  EXPECT_EQ(target_.read(area()), image);
}

TEST_F(PageInstallerTest, ZerosThatAreAbsentAnywayMakeNoPage) {
  target_.run(0);
  const uint64_t base = target_.control().a;
  PageInstaller installer = make(target_, {area()});
  install(installer, pages_at(base, 3, 1), random_pages(1, 1));
  zero(installer, area(), Absent::kZero);
  installer.end_fresh();
  zero(installer, area(), Absent::kZero);
  PageScanner scanner = PageScanner::create(target_.pid(), 1).take();
  PageRegions found;
  ASSERT_TRUE(scanner.scan(area(), {0, 0, uapi::kPageIsPresent, 0}, found).ok());
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].start, base + 3 * kPageSize);
  EXPECT_EQ(found[0].end, base + 4 * kPageSize);
}

TEST_F(PageInstallerTest, BasesAreReadWithoutTouchingMissingPages) {
  target_.run(0);
  const uint64_t base = target_.control().a;
  PageInstaller installer = make(target_, {area()});
  const auto bytes = random_pages(3, 7);
  install(installer, pages_at(base, 4, 3), bytes);
  std::vector<RemoteAddr> wanted;
  for (const size_t page : {3, 4, 5, 6, 50}) wanted.push_back(RemoteAddr(base + page * kPageSize));
  std::vector<std::byte> expected(wanted.size() * kPageSize);
  put(expected, 1, bytes);
  EXPECT_EQ(read(installer, wanted), expected);
  installer.end_fresh();
  EXPECT_EQ(read(installer, wanted), expected);
}

TEST_F(PageInstallerTest, ScatteredPagesArriveWhereverTheyLie) {
  target_.run(0);
  const uint64_t base = target_.control().a;
  PageInstaller installer = make(target_, {area()});
  install(installer, pages_at(base, 4, 3), random_pages(3, 7));
  Target::Control& c = target_.control();
  std::vector<RemoteAddr> pages;
  for (const size_t page : {1, 4, 6, 7, 60}) pages.push_back(RemoteAddr(base + page * kPageSize));
  for (unsigned seed = 0; seed < 2; ++seed) {  // missing or present; then all present, tracked no more
    const auto bytes = random_pages(pages.size(), 20 + seed);
    const Status status = installer.install_scattered(pages, bytes);
    ASSERT_TRUE(status.ok()) << status.error().message();
    EXPECT_EQ(read(installer, pages), bytes);
    installer.end_fresh();
  }
  // An area that the process itself may not write.
  target_.run(1);
  const auto bytes = random_pages(pages.size(), 30);
  const Status status = installer.install_scattered(pages, bytes);
  ASSERT_TRUE(status.ok()) << status.error().message();
  EXPECT_EQ(read(installer, pages), bytes);
  EXPECT_EQ(c.a, base);
}

TEST_F(PageInstallerTest, ManyScatteredBasesAreReadInBatches) {
  Target target({[](auto& c) {
    c.a = map_apart(4096);
    for (size_t i = 0; i < 4096; i++) *reinterpret_cast<uint64_t*>(c.a + i * kPageSize) = i;
  }});
  target.run(0);
  PageInstaller installer = PageInstaller::create(target.pid()).take();
  std::vector<RemoteAddr> wanted;
  for (size_t i = 0; i < 4096; i += 3) wanted.push_back(RemoteAddr(target.control().a + i * kPageSize));
  const auto bytes = read(installer, wanted);
  for (size_t i = 0; i < wanted.size(); i++) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + i * kPageSize, sizeof value);
    ASSERT_EQ(value, 3 * i);
  }
}

TEST_F(PageInstallerTest, AreasThatTheProcessMayNotWriteOrRead) {
  Target target({[](auto& c) {
    c.a = map_apart(kPages);
    ::mprotect(reinterpret_cast<void*>(c.a + 8 * kPageSize), 8 * kPageSize, PROT_READ);
    ::mprotect(reinterpret_cast<void*>(c.a + 16 * kPageSize), 8 * kPageSize, PROT_NONE);
  }});
  target.run(0);
  const uint64_t base = target.control().a;
  PageInstaller installer = make(target, {pages_at(base, 0, 8), pages_at(base, 8, 8), pages_at(base, 16, 8),
                                          pages_at(base, 24, kPages - 24)});
  std::vector<RemoteAddr> wanted;
  for (size_t i = 0; i < kPages; i++) wanted.push_back(RemoteAddr(base + i * kPageSize));
  for (uint32_t round = 0; round < 3; round++) {
    if (round == 2) installer.end_fresh();
    const auto bytes = random_pages(kPages, round);
    install(installer, pages_at(base, 0, kPages), bytes);
    EXPECT_EQ(read(installer, wanted), bytes);
  }
}

TEST_F(PageInstallerTest, OneRegisteredRangeOverSeveralAreas) {
  Target target({[](auto& c) {
    c.a = map_apart(kPages);
    ::mprotect(reinterpret_cast<void*>(c.a + 8 * kPageSize), 8 * kPageSize, PROT_READ);
  }});
  target.run(0);
  const uint64_t base = target.control().a;
  PageInstaller installer = make(target, {pages_at(base, 0, kPages)});
  const auto bytes = random_pages(kPages, 1);
  install(installer, pages_at(base, 0, kPages), bytes);
  installer.end_fresh();
  EXPECT_EQ(target.read(pages_at(base, 0, kPages)), bytes);
}

TEST_F(PageInstallerTest, HugePageAreasAreLeftToTheirFaults) {
  Target target({[](auto& c) {
    const uint64_t room = map_pages(2048);
    c.a = (room + 2_MiB - 1) & ~(2_MiB - 1);
    ::madvise(reinterpret_cast<void*>(c.a.load()), 2_MiB, MADV_HUGEPAGE);
  }});
  target.run(0);
  const AddressRange range = pages_at(target.control().a, 0, 512);
  PageInstaller installer = make(target, {});
  const auto bytes = random_pages(512, 1);
  install(installer, range, bytes);
  EXPECT_EQ(target.read(range), bytes);
  PageScanner scanner = PageScanner::create(target.pid(), 1).take();
  PageRegions found;
  ASSERT_TRUE(scanner.scan(range, {0, 0, uapi::kPageIsPresent, uapi::kPageIsHuge}, found).ok());
  const std::string modes = read_file("/sys/kernel/mm/transparent_hugepage/enabled").take();
  if (modes.find("[never]") != std::string::npos) GTEST_SKIP() << "transparent huge pages are off: " << modes;
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].categories, uapi::kPageIsHuge);
}

TEST_F(PageInstallerTest, PrivateFilesCannotBeRegisteredAndKeepTheirOwnPages) {
  const Fd file(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  const auto text = random_pages(8, 9);
  ASSERT_EQ(::write(file.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  Target target({[&](auto& c) {
    c.a = map_apart(8, MAP_PRIVATE, file.get());
    ::mprotect(reinterpret_cast<void*>(c.a.load()), 8 * kPageSize, PROT_READ | PROT_EXEC);
  }});
  target.run(0);
  const uint64_t base = target.control().a;
  PageInstaller installer = make(target, {pages_at(base, 0, 8)});
  auto image = text;
  const auto changed = random_pages(2, 10);
  install(installer, pages_at(base, 2, 2), changed);
  put(image, 2, changed);
  zero(installer, pages_at(base, 5, 2), Absent::kOther);
  put(image, 5, std::vector<std::byte>(2 * kPageSize));
  installer.end_fresh();
  EXPECT_EQ(target.read(pages_at(base, 0, 8)), image);
}

TEST_F(PageInstallerTest, PagesThatASharedObjectHoldsAlready) {
  const Fd memfd(::memfd_create("shared", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memfd.get(), 8 * kPageSize), 0);
  const auto old = random_pages(1, 3);
  ASSERT_EQ(::pwrite(memfd.get(), old.data(), old.size(), 2 * kPageSize), static_cast<ssize_t>(old.size()));
  Target target({[&](auto& c) { c.a = map_apart(8, MAP_SHARED, memfd.get()); }});
  target.run(0);
  const uint64_t base = target.control().a;
  PageInstaller installer = make(target, {pages_at(base, 0, 8)});
  auto image = random_pages(8, 1);
  install(installer, pages_at(base, 0, 6), std::span(image).first(6 * kPageSize));
  ASSERT_EQ(::pwrite(memfd.get(), old.data(), old.size(), 7 * kPageSize), static_cast<ssize_t>(old.size()));
  zero(installer, pages_at(base, 6, 2), Absent::kOther);
  put(image, 6, std::vector<std::byte>(2 * kPageSize));
  installer.end_fresh();
  EXPECT_EQ(target.read(pages_at(base, 0, 8)), image);
}

TEST_F(PageInstallerTest, ThreadsInstallToDisjointRanges) {
  constexpr size_t kEach = 2048;
  Target target({[](auto& c) { c.a = map_apart(2 * kEach); }});
  target.run(0);
  const uint64_t base = target.control().a;
  PageInstaller installer = make(target, {pages_at(base, 0, 2 * kEach)});
  const auto bytes = random_pages(2 * kEach, 1);
  const auto work = [&](size_t first) {
    for (size_t i = 0; i < kEach; i += 64) {
      install(installer, pages_at(base, first + i, 64),
              std::span(bytes).subspan((first + i) * kPageSize, 64 * kPageSize));
    }
  };
  std::thread other(work, kEach);
  work(0);
  other.join();
  installer.end_fresh();
  EXPECT_EQ(target.read(pages_at(base, 0, 2 * kEach)), bytes);
}

TEST_F(PageInstallerTest, ErrorsSayWhatToDo) {
  target_.run(0);
  const uint64_t base = target_.control().a;
  PageInstaller installer = make(target_, {area()});
  const auto bytes = random_pages(1, 1);
  const Status unmapped =
      installer.install_run(pages_at(base, kPages, 1), bytes);  // map_apart leaves a hole there
  ASSERT_FALSE(unmapped.ok());
  EXPECT_EQ(unmapped.error().kind, ErrorKind::kSystem);
  target_.kill();
  EXPECT_EQ(installer.install_run(pages_at(base, 0, 1), bytes).error().kind, ErrorKind::kTargetGone);
  installer.end_fresh();
  EXPECT_EQ(installer.install_run(pages_at(base, 0, 1), bytes).error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(PageInstaller::create(4194999).error().kind, ErrorKind::kTargetGone);
}

}  // namespace
}  // namespace godwit::uffd
