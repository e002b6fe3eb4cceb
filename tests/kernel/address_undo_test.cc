// What an address move leaves behind when it does not end well: nothing. Aborted at every stage, and killed
// (SIGKILL) at every named instant and at random ones, after which another process undoes it from the text
// alone.
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <random>

#include "engine/base/pidfd.h"
#include "tests/kernel/address_fixture.h"

namespace godwit::address {
namespace {

constexpr const char* kEndOfText = "end\n";

Departure departure(const std::string& service, const std::string& gateway) {
  return {ServiceAddress::parse(service).take(), IpAddress::parse(gateway).take()};
}

const std::vector<Departure>& both_families() {
  static const std::vector<Departure> departures = {departure("10.77.0.100/24@eth0", "10.77.0.2"),
                                                    departure("fd77::100/64@eth0", "fd77::2")};
  return departures;
}

Status walk_to(AddressMoveSource& move, MoveStage stage) {
  if (stage >= MoveStage::kPrepared) TRY(move.prepare());
  if (stage >= MoveStage::kArmed) TRY(move.arm());
  if (stage >= MoveStage::kFrozen) TRY(move.freeze());
  if (stage >= MoveStage::kHandedOver) TRY(move.handover());
  if (stage >= MoveStage::kCommitted) TRY(move.commit());
  if (stage >= MoveStage::kFinished) TRY(move.finish());
  return {};
}

/// The child of the kill tests: moves (and gives back, or completes) the addresses until it is killed.
int run_mover(int text_fd, const std::string& mode) {
  const auto report = [](const Error& error) {
    fmt::print(stderr, "mover: {}\n", error.message());
    return 1;
  };
  do {
    auto planned = AddressMoveSource::plan(both_families());
    if (!planned.ok()) return report(planned.error());
    const auto move = planned.take();
    const std::string text = move->undo_record().to_text() + kEndOfText;
    if (::write(text_fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) return 1;
    const bool completes = mode == "complete";
    if (Status walked = walk_to(*move, completes ? MoveStage::kFinished : MoveStage::kHandedOver);
        !walked.ok()) {
      return report(walked.error());
    }
    if (completes) return 0;
    if (Status aborted = move->abort(); !aborted.ok()) return report(aborted.error());
  } while (mode == "forever");
  return 0;
}

/// KERNEL: the route to an IPv6 address of our own comes a moment after the address.
void add_more_addresses(const test::NetworkHost& host) {
  (void)host.run(
      "ip addr add fd77::100/64 dev eth0 nodad && ip addr add 10.77.0.150/24 dev eth0 label eth0:x && "
      "until ip -6 route show table local | grep -q 'fd77::100 '; do sleep 0.01; done");
}

class AddressUndoing : public AddressTest {
 protected:
  void SetUp() override {
    AddressTest::SetUp();
    if (IsSkipped()) return;
    start_service("10.77.0.100/24@eth0");
    add_more_addresses(host(0));
    before_ = look_of(host(0));
  }
  void expect_as_before(const std::string& when) { EXPECT_EQ(look_of(host(0)), before_) << when; }
  void expect_alive() {
    EXPECT_TRUE(client_->wait_for(256 * 1024)) << "the connection must outlive it";
    EXPECT_EQ(server_->complaint(), "");
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(counters_of(host(i)).resets_sent, 0u) << host(i).name;
  }
  /// Starts the mover on host 0 and kills it after `delay`, unless the fault point does so first. Its last
  /// text.
  std::string kill_mover(const std::string& fault, const char* mode, int delay_ms);

  std::string before_;
};

std::string AddressUndoing::kill_mover(const std::string& fault, const char* mode, int delay_ms) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  const Fd reader(ends[0]);
  Fd writer(ends[1]);
  const test::AsHost inside(host(0).network.get());
  const pid_t child = ::fork();
  if (child == 0) {
    if (!fault.empty()) ::setenv("GODWIT_FAULT", fault.c_str(), 1);
    ::execl("/proc/self/exe", "mover", "--mover", std::to_string(writer.get()).c_str(), mode, nullptr);
    ::_exit(127);
  }
  writer.reset();
  const PidFd process = PidFd::open(child).take();
  pollfd wait{process.get(), POLLIN, 0};
  ::poll(&wait, 1, delay_ms);
  EXPECT_OK(process.send_signal(SIGKILL));
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status)) << fault << ": the mover ended by itself, status " << status;
  std::string text;
  char buffer[4096];
  while (const ssize_t got = ::read(reader.get(), buffer, sizeof(buffer)))
    text.append(buffer, static_cast<size_t>(got));
  const size_t end = text.rfind(kEndOfText);
  if (end == std::string::npos) return {};
  const size_t begin = text.rfind("godwit-address-undo", end);
  return text.substr(begin, end - begin);
}

TEST_F(AddressUndoing, AbortAtEachStagePutsAllBack) {
  for (int stage = static_cast<int>(MoveStage::kPlanned); stage <= static_cast<int>(MoveStage::kHandedOver);
       ++stage) {
    {
      const test::AsHost inside(host(0).network.get());
      auto move = AddressMoveSource::plan(both_families());
      ASSERT_OK(move);
      ASSERT_OK(walk_to(**move, static_cast<MoveStage>(stage)));
      if (stage == static_cast<int>(MoveStage::kHandedOver)) {
        EXPECT_NE(look_of(host(0)), before_);
      }
      ASSERT_OK((*move)->abort());
      ASSERT_OK((*move)->abort());  // again: nothing happens
    }
    expect_as_before(fmt::format("stage {}", stage));
    expect_alive();
  }
}

TEST_F(AddressUndoing, UndoAfterAKillAtEachNamedInstant) {
  const std::vector<std::string> faults = {"address.setting@1", "address.setting@4", "address.route@1",
                                           "address.route@2",   "address.rule@1",    "address.rule@2",
                                           "address.armed",     "address.frozen",    "address.handover@1",
                                           "address.handover@2"};
  for (const std::string& fault : faults) {
    const std::string text = kill_mover(fault, "once", -1);
    Result<AddressUndo> what = AddressUndo::from_text(text);
    ASSERT_OK(what);
    const test::AsHost inside(host(0).network.get());
    EXPECT_OK(undo(*what));
    EXPECT_OK(undo(*what));  // a guardian may be killed and begin again
    expect_as_before(fault);
    expect_alive();
  }
}

TEST_F(AddressUndoing, UndoAfterAKillAtARandomInstant) {
  std::mt19937 random(std::random_device{}());
  for (int i = 0; i < 12; ++i) {
    const int delay = static_cast<int>(random() % 250);
    const std::string text = kill_mover("", "forever", delay);
    if (!text.empty()) {
      Result<AddressUndo> what = AddressUndo::from_text(text);
      ASSERT_OK(what);
      const test::AsHost inside(host(0).network.get());
      EXPECT_OK(undo(*what));
    }
    expect_as_before(fmt::format("killed after {} ms", delay));
    expect_alive();
  }
}

TEST_F(AddressUndoing, DepartAfterAKillCompletesTheMove) {
  client_->finish();
  server_.reset();
  (void)host(0).run("ip addr del fd77::100/64 dev eth0 && ip addr del 10.77.0.100/24 dev eth0");
  const std::string gone = look_of(host(0));
  for (const char* fault : {"address.handover@2", "address.commit", "address.finish"}) {
    (void)host(0).run("ip addr del 10.77.0.150/24 dev eth0 && ip addr add 10.77.0.100/24 dev eth0");
    add_more_addresses(host(0));
    Result<AddressUndo> what = AddressUndo::from_text(kill_mover(fault, "complete", -1));
    ASSERT_OK(what);
    const test::AsHost inside(host(0).network.get());
    EXPECT_OK(depart(*what));
    EXPECT_EQ(look_of(host(0)), gone) << fault;
  }
}

TEST_F(AddressUndoing, APrimaryAddressLeavesItsSecondariesAlone) {
  client_->finish();
  server_.reset();
  // 10.77.0.1 is the primary of 10.77.0.100 and .150: removed carelessly, it would take them along.
  const test::AsHost inside(host(0).network.get());
  auto move = AddressMoveSource::plan({departure("10.77.0.1/24@eth0", "10.77.0.2")});
  ASSERT_OK(move);
  ASSERT_OK(walk_to(**move, MoveStage::kFinished));
  const std::string look = host(0).run("ip -4 -o addr show dev eth0");
  EXPECT_EQ(look.find("10.77.0.1/"), std::string::npos) << look;
  EXPECT_NE(look.find("10.77.0.100/"), std::string::npos) << look;
  EXPECT_NE(look.find("10.77.0.150/"), std::string::npos) << look;
}

TEST_F(AddressUndoing, ForwardingForAllDevicesIsPutBack) {
  const test::AsHost inside(host(0).network.get());
  (void)host(0).run("echo 1 > /proc/sys/net/ipv6/conf/lo/forwarding");
  const std::string before = look_of(host(0));
  AddressUndo what;
  what.sysctls = plan_forwarding_for_all().take();
  for (const SysctlChange& change : what.sysctls) ASSERT_OK(apply(change));
  EXPECT_EQ(trim(read_file("/proc/sys/net/ipv6/conf/all/forwarding").take()), "1");
  EXPECT_EQ(trim(read_file("/proc/sys/net/ipv6/conf/eth0/accept_ra").take()), "2");
  EXPECT_OK(undo(what));
  EXPECT_EQ(look_of(host(0)), before);
}

TEST_F(AddressUndoing, PlanRefusesWhatCannotWork) {
  const test::AsHost inside(host(0).network.get());
  const auto kind = [](std::vector<Departure> departures) {
    auto move = AddressMoveSource::plan(departures);
    return move.ok() ? ErrorKind::kInvalid : move.error().kind;
  };
  EXPECT_EQ(kind({}), ErrorKind::kUsage);
  EXPECT_EQ(kind({departure("10.77.0.99/24@eth0", "10.77.0.2")}), ErrorKind::kUsage) << "not ours";
  EXPECT_EQ(kind({departure("10.77.0.100/24@eth9", "10.77.0.2")}), ErrorKind::kUsage) << "no such device";
  EXPECT_EQ(kind({departure("10.77.0.100/24@eth0", "10.77.0.1")}), ErrorKind::kUsage) << "to ourselves";
  EXPECT_EQ(kind({departure("10.77.0.100/24@eth0", "fd77::2")}), ErrorKind::kUsage) << "two families";
  EXPECT_EQ(kind({departure("10.77.0.1/24@eth0", "10.77.0.2"), departure("10.77.0.100/24@eth0", "10.77.0.2"),
                  departure("10.77.0.150/24@eth0", "10.77.0.2")}),
            ErrorKind::kRefused)
      << "no address would be left to reach the destination from";
  const auto other = AddressMoveSource::plan(both_families());
  ASSERT_OK(other);
  EXPECT_EQ(kind(both_families()), ErrorKind::kRetry) << "one move at a time";
  const auto claim = AddressMoveDestination::plan({both_families()[0].service});
  ASSERT_FALSE(claim.ok());
  EXPECT_EQ(claim.error().kind, ErrorKind::kRefused) << "the destination has it already";
}

TEST_F(AddressUndoing, ADestinationGivesUpWhatItClaimed) {
  const std::string before = look_of(host(1));
  const test::AsHost inside(host(1).network.get());
  auto move = AddressMoveDestination::plan({both_families()[0].service, both_families()[1].service});
  ASSERT_OK(move);
  const std::string text = move->undo_record().to_text();
  ASSERT_OK(move->claim());
  EXPECT_NE(look_of(host(1)), before);
  ASSERT_OK(undo(AddressUndo::from_text(text).take()));
  EXPECT_EQ(look_of(host(1)), before);
}

}  // namespace

int mover_main(int text_fd, const char* mode) {
  return run_mover(text_fd, mode);
}

}  // namespace godwit::address

int main(int argc, char** argv) {
  if (argc == 4 && std::string_view(argv[1]) == "--mover") {
    return godwit::address::mover_main(std::atoi(argv[2]), argv[3]);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
