// A bench for convergence: a generator of dirty pages is moved to another process of this host by a policy of
// your choice, and each round is drawn:
//
//     build/examples/harness --memory 512M --hot 32M --rate 200M --locality 0.9 --entropy 0.3
//         --policy default|rounds=N|limit --bandwidth 300M --downtime-limit 50
//
// A policy is a function from what the rounds measured to a decision; write another one beside the three
// here.
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <godwit/godwit.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <string>

#include "examples/writer.h"

namespace godwit {
namespace {

using migration::Decision;
using migration::Limits;
using migration::Policy;
using migration::Situation;

// ---- policies

/// So many rounds, whatever they bring.
Policy after_rounds(uint32_t rounds) {
  return [rounds](const Situation& now, const Limits&) {
    return now.last.round + 1 >= rounds ? Decision::kFreeze : Decision::kContinue;
  };
}

/// As soon as the limit is met: what hypervisors do.
Decision at_the_limit(const Situation& now, const Limits& limits) {
  if (now.ahead.downtime <= limits.downtime) return Decision::kFreeze;
  return now.last.round + 1 >= limits.max_rounds ? Decision::kGiveUp : Decision::kContinue;
}

Result<Policy> policy_of(const std::string& name) {
  if (name == "default") return Policy(migration::decide);
  if (name == "limit") return Policy(at_the_limit);
  if (name.starts_with("rounds=")) return after_rounds(static_cast<uint32_t>(std::stoul(name.substr(7))));
  return fail(ErrorKind::kUsage, "choose a policy", name, "give default, limit or rounds=N");
}

// ---- the other end

/// Receives one process, in a child of this one.
class Receiver {
 public:
  Receiver() {
    if (::pipe(words_) != 0) std::exit(1);
    child_ = ::fork();
    if (child_ == 0) serve();
    port_ = hear();
  }
  ~Receiver() {
    ::kill(child_, SIGTERM);
    ::waitpid(child_, nullptr, 0);
  }
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;

  [[nodiscard]] int port() const { return port_; }
  /// Of the process, once it runs there.
  [[nodiscard]] pid_t pid() const { return hear(); }

 private:
  [[noreturn]] void serve() {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    migration::ReceiveOptions options;
    options.listen = "127.0.0.1:0";
    options.on_listening = [&](const std::string&, uint16_t port) { say(port); };
    options.on_running = [&](pid_t pid, pid_t) { say(pid); };
    const Status served = migration::receive(options);
    if (!served.ok()) fmt::print(stderr, "harness: {}\n", served.error().message());
    ::_exit(served.ok() ? 0 : 1);
  }
  void say(int number) const {
    if (::write(words_[1], &number, sizeof number) != sizeof number) ::_exit(1);
  }
  [[nodiscard]] int hear() const {
    int number = 0;
    if (::read(words_[0], &number, sizeof number) != sizeof number) std::exit(1);
    return number;
  }

  int words_[2] = {-1, -1};
  pid_t child_ = 0;
  int port_ = 0;
};

// ---- drawing

std::string bar(double part, size_t width) {
  return std::string(static_cast<size_t>(std::clamp(part, 0.0, 1.0) * static_cast<double>(width)), '#');
}

/// Tells of each round what the policy was told, and what it said.
Policy drawn(Policy policy) {
  fmt::print("{:>5} {:>9} {:>9} {:>9} {:>11}  {:<9} {}\n", "round", "pages", "MB sent", "ms", "expected ms",
             "decision", "pages written, against the first round");
  double most = 0;
  return [policy = std::move(policy), most](const Situation& now, const Limits& limits) mutable {
    const Decision decision = policy(now, limits);
    most = std::max(most, static_cast<double>(now.last.pages));
    fmt::print("{:>5} {:>9} {:>9.1f} {:>9.1f} {:>11.1f}  {:<9} |{:<40}|\n", now.last.round, now.last.pages,
               static_cast<double>(now.last.wire_bytes) / 1e6, to_seconds(now.last.duration) * 1e3,
               to_seconds(now.ahead.downtime) * 1e3, to_string(decision),
               bar(static_cast<double>(now.last.pages) / most, 40));
    return decision;
  };
}

void draw(const migration::Downtime& downtime) {
  fmt::print("downtime {:.2f} ms\n", to_seconds(downtime.total()) * 1e3);
  for (const auto& [name, time] : downtime.parts())
    fmt::print("  {:<7} {:>7.2f} ms |{:<40}|\n", name, to_seconds(time) * 1e3,
               bar(to_seconds(time) / to_seconds(downtime.total()), 40));
}

struct Arguments {
  examples::Pattern pattern;
  std::string policy = "default";
  uint64_t bandwidth = 0;
  double downtime_ms = 300;
};

Status move(const Arguments& arguments, examples::Writer& writer, const Receiver& receiver) {
  migration::MigrateOptions options;
  options.pid = writer.pid();
  options.link.destination = fmt::format("127.0.0.1:{}", receiver.port());
  options.link.bandwidth = arguments.bandwidth;
  options.limits.downtime = from_seconds(arguments.downtime_ms / 1e3);
  options.policy = drawn(TRY(policy_of(arguments.policy)));
  const migration::Report report = TRY(migration::migrate(options));
  writer.moved_to(receiver.pid());
  draw(report.downtime);
  fmt::print("pages: {} sent, {} as deltas, {} zero, {} whole; {:.1f} MB on the wire in {:.0f} ms\n",
             report.pages.sent, report.pages.xbzrle, report.pages.zero, report.pages.raw,
             static_cast<double>(report.wire_bytes) / 1e6, to_seconds(report.total) * 1e3);
  return {};
}

int run(const Arguments& arguments) {
  const Receiver receiver;
  examples::Writer writer(arguments.pattern);
  if (!writer.works_on(1000)) return 1;
  const Status moved = move(arguments, writer, receiver);
  if (!moved.ok()) fmt::print(stderr, "harness: {}\n", moved.error().message());
  const bool well = writer.works_on(20000);
  const examples::Tidings now = writer.tidings();
  fmt::print("{} pages checked since the beginning, {} wrong\n", now.checked, now.wrong);
  return moved.ok() && well ? 0 : 1;
}

}  // namespace
}  // namespace godwit

int main(int argc, char** argv) {
  godwit::Arguments arguments;
  CLI::App app("moves a generator of dirty pages by a policy of convergence, and draws its rounds");
  auto& pattern = arguments.pattern;
  const CLI::AsSizeValue size(false);
  app.add_option("--memory", pattern.memory, "bytes it holds")->transform(size)->capture_default_str();
  app.add_option("--hot", pattern.hot, "bytes of its hot set")->transform(size)->capture_default_str();
  app.add_option("--rate", pattern.bytes_per_second, "bytes of pages written a second")->transform(size);
  app.add_option("--locality", pattern.locality, "part of the writes that go to the hot set")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--entropy", pattern.entropy, "part of a page that a write changes, with random bytes")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--policy", arguments.policy, "default, limit or rounds=N")->capture_default_str();
  app.add_option("--bandwidth", arguments.bandwidth, "bytes a second")->transform(size);
  app.add_option("--downtime-limit", arguments.downtime_ms, "ms")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return godwit::run(arguments);
}
