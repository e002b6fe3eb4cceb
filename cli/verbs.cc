#include "cli/verbs.h"

#include <fmt/format.h>
#include <signal.h>

#include <godwit/godwit.h>
#include <atomic>
#include <fstream>

#include "cli/events.h"
#include "cli/exit_code.h"
#include "cli/html_report.h"
#include "cli/limit_options.h"

namespace godwit::cli {
namespace {

constexpr const char* kDefaultPort = "4639";

std::atomic<bool> cancelled = false;

/// The first SIGINT or SIGTERM asks the engine to stop in order; it does within a round. A second one is the
/// default.
void cancel_on_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { cancelled.store(true); };
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

/// "host" gets the default port; "[::1]" and "::1" too.
std::string with_port(std::string host) {
  if (host.ends_with(']') || host.find(':') == std::string::npos) return host + ":" + kDefaultPort;
  if (host.find(':') != host.rfind(':') && !host.starts_with('[')) return "[" + host + "]:" + kDefaultPort;
  return host;
}

Result<migration::Limits> limits_of(const Arguments& arguments) {
  return migration::changed_by({}, TRY(changes_of(arguments.limits)));
}

Result<std::shared_ptr<const transport::Credentials>> credentials_of(const Arguments& arguments) {
  return transport::load_credentials(
      {arguments.tls_ca, arguments.tls_certificate, arguments.tls_key, arguments.psk_file});
}

Result<migration::LinkOptions> link_of(const Arguments& arguments) {
  migration::LinkOptions link;
  link.destination = arguments.host.empty() ? "" : with_port(arguments.host);
  link.channels = arguments.channels == "auto" ? 0 : std::stoul(arguments.channels);
  link.insecure = arguments.insecure;
  link.credentials = TRY(credentials_of(arguments));
  link.dead_after = from_seconds(arguments.link_timeout_s);
  link.bandwidth = TRY(changes_of(arguments.limits)).bandwidth.value_or(0);
  return link;
}

Result<migration::PidNamespace> pid_namespace_of(const std::string& name) {
  if (name == "auto") return migration::PidNamespace::kAuto;
  if (name == "host") return migration::PidNamespace::kHost;
  if (name == "new") return migration::PidNamespace::kNew;
  return fail(ErrorKind::kUsage, "read --pid-namespace", name, "give auto, host or new");
}

/// The process has moved; a report that cannot be written does not change that.
void write_report(const Arguments& arguments, const migration::Report& report) {
  if (arguments.report.empty()) return;
  std::ofstream file(arguments.report);
  file << html_report(report);
  if (!file.flush()) fmt::print(stderr, "godwit: the report was not written to {}\n", arguments.report);
}

Result<migration::Compression> compression_of(const std::string& name) {
  if (name == "auto") return migration::Compression::kAuto;
  if (name == "none") return migration::Compression::kNone;
  if (name == "lz4") return migration::Compression::kLz4;
  if (name == "zstd") return migration::Compression::kZstd;
  return fail(ErrorKind::kUsage, "read --compress", name, "give auto, none, lz4 or zstd");
}

Result<migration::TrackerKind> tracker_of(const std::string& name) {
  for (const auto kind : {migration::TrackerKind::kAuto, migration::TrackerKind::kEbpf,
                          migration::TrackerKind::kUffd, migration::TrackerKind::kUffdSync}) {
    if (name == to_string(kind)) return kind;
  }
  return fail(ErrorKind::kUsage, "read --tracker", name, "give auto, ebpf, uffd or uffd-sync");
}

Status try_migrate(const Arguments& arguments, const Events& events) {
  migration::MigrateOptions options;
  options.pid = arguments.pid;
  options.link = TRY(link_of(arguments));
  options.limits = TRY(limits_of(arguments));
  options.limits.postcopy = TRY(postcopy_of(arguments.postcopy));
  options.reconnect = from_seconds(arguments.postcopy.reconnect_s);
  options.tracker = TRY(tracker_of(arguments.tracker));
  options.verify = arguments.verify;
  options.cache_bytes = TRY(parse_size(arguments.cache, "--cache"));
  options.compress = TRY(compression_of(arguments.compress));
  options.move_addresses = arguments.move_addresses;
  options.hooks = arguments.hooks;
  options.on_progress = [&](const migration::Progress& p) { events.progress(p); };
  options.on_findings = [&](const state::Findings& f) { events.findings(f); };
  options.on_completed = [&](const migration::Report& r) {
    events.completed(r);
    write_report(arguments, r);
  };
  options.cancelled = &cancelled;
  TRY(migration::migrate(options));
  return {};
}

Status try_receive(const Arguments& arguments, const Events& events) {
  migration::ReceiveOptions options;
  options.listen = with_port(arguments.listen);
  options.once = arguments.once;
  options.insecure = arguments.insecure;
  options.credentials = TRY(credentials_of(arguments));
  options.pid_namespace = TRY(pid_namespace_of(arguments.pid_namespace));
  options.hooks = arguments.hooks;
  options.dead_after = from_seconds(arguments.link_timeout_s);
  options.on_listening = [&](const std::string& address, uint16_t port) { events.listening(address, port); };
  options.on_running = [&](pid_t pid, pid_t inner) { events.running(pid, inner); };
  if (!arguments.once) options.on_failed = [&](const Error& error) { events.failed(error, ""); };
  options.cancelled = &cancelled;
  return migration::receive(std::move(options));
}

Status try_checkpoint(const Arguments& arguments, const Events& events) {
  migration::CheckpointOptions options;
  options.pid = arguments.pid;
  options.path = arguments.file;
  options.leave_running = arguments.leave_running;
  options.limits = TRY(limits_of(arguments));
  options.tracker = TRY(tracker_of(arguments.tracker));
  options.verify = arguments.verify;
  options.compress = TRY(compression_of(arguments.compress));
  options.on_progress = [&](const migration::Progress& p) { events.progress(p); };
  options.on_findings = [&](const state::Findings& f) { events.findings(f); };
  options.cancelled = &cancelled;
  const migration::Report report = TRY(migration::checkpoint(options));
  events.completed(report);
  write_report(arguments, report);
  return {};
}

Status try_restore(const Arguments& arguments, const Events& events) {
  migration::RestoreOptions options;
  options.path = arguments.file;
  options.pid_namespace = TRY(pid_namespace_of(arguments.pid_namespace));
  options.on_running = [&](pid_t pid, pid_t inner) { events.running(pid, inner); };
  TRY(migration::restore(options));
  return {};
}

Status try_check(const Arguments& arguments, const Events& events) {
  const auto findings =
      TRY(migration::check(arguments.pid, TRY(link_of(arguments)), arguments.move_addresses));
  events.findings(findings);
  for (const state::Finding& finding : findings) {
    if (finding.fatal)
      return fail(ErrorKind::kRefused, "check", fmt::format("pid {}", arguments.pid),
                  "see the findings above; nothing was touched");
  }
  if (!arguments.json) fmt::print("pid {} can move\n", arguments.pid);
  return {};
}

Status try_dirty_rate(const Arguments& arguments, const Events& events) {
  migration::DirtyRateOptions options;
  options.pid = arguments.pid;
  options.seconds = arguments.seconds;
  options.tracker = TRY(tracker_of(arguments.tracker));
  options.cancelled = &cancelled;
  events.dirty_rate(TRY(migration::measure_dirty_rate(options)));
  return {};
}

Status try_keygen(const Arguments& arguments) {
  const bool psk = !arguments.psk_file.empty();
  if (psk == !arguments.ca_folder.empty() || arguments.ca_folder.empty() != arguments.host_name.empty())
    return fail(ErrorKind::kUsage, "keygen", "--psk, --ca, --host",
                "give --psk FILE, or --ca DIR and --host NAME");
  if (psk) {
    TRY(transport::make_psk(arguments.psk_file));
  } else {
    TRY(transport::make_host_certificate(arguments.ca_folder, arguments.host_name, arguments.days));
  }
  return {};
}

}  // namespace

int keygen(const Arguments& arguments) {
  const Events events(arguments.json);
  return events.finish(try_keygen(arguments), "");
}

int migrate(const Arguments& arguments) {
  cancel_on_signals();
  const Events events(arguments.json);
  const Status status = try_migrate(arguments, events);
  const bool stopped = !status.ok() && status.error().kind == ErrorKind::kInDoubt;
  return events.finish(status, stopped ? "stopped" : "running");
}

int receive(const Arguments& arguments) {
  cancel_on_signals();
  const Events events(arguments.json);
  return events.finish(try_receive(arguments, events), "");
}

int check(const Arguments& arguments) {
  const Events events(arguments.json);
  return events.finish(try_check(arguments, events), "running");
}

int resolve(const Arguments& arguments) {
  const Events events(arguments.json);
  if (arguments.resume == arguments.discard)
    return events.finish(fail(ErrorKind::kUsage, "resolve", fmt::format("pid {}", arguments.pid),
                              "give --resume or --discard"),
                         "");
  return events.finish(migration::resolve(arguments.pid, arguments.resume), "");
}

int checkpoint(const Arguments& arguments) {
  cancel_on_signals();
  const Events events(arguments.json);
  return events.finish(try_checkpoint(arguments, events), "running");
}

int dirty_rate(const Arguments& arguments) {
  cancel_on_signals();
  const Events events(arguments.json);
  return events.finish(try_dirty_rate(arguments, events), "running");
}

int restore(const Arguments& arguments) {
  const Events events(arguments.json);
  return events.finish(try_restore(arguments, events), "");
}

int inspect(const Arguments& arguments) {
  const Events events(arguments.json);
  const auto print = [](std::string_view line) { fmt::print("{}\n", line); };
  return events.finish(migration::inspect(arguments.file, print), "");
}

}  // namespace godwit::cli
