// godwit's command line: reads the arguments and opens one verb.
#include <CLI/CLI.hpp>

#include "cli/exit_code.h"
#include "cli/verbs.h"

namespace {

using godwit::cli::Arguments;

void add_limits(CLI::App& verb, godwit::cli::LimitArguments& limits) {
  verb.add_option("--downtime-limit", limits.downtime_limit_ms,
                  "freeze when this many milliseconds are enough (300)")
      ->check(CLI::Range(0.0, 1e9));
  verb.add_option("--timeout", limits.timeout_s, "give up after this many seconds; 0: never (0)")
      ->check(CLI::Range(0.0, 1e9));
  verb.add_option("--max-rounds", limits.max_rounds, "give up after this many rounds (30)")
      ->check(CLI::Range(2, 1000000));
  verb.add_option("--on-timeout", limits.on_timeout,
                  "at these two limits: cancel; force: freeze whatever the downtime; or postcopy: run there "
                  "first, send the rest then (cancel)")
      ->check(CLI::IsMember({"cancel", "force", "postcopy"}));
  verb.add_option("--throttle", limits.throttle,
                  "auto: stop the process for a growing part of its time while it writes faster than it is "
                  "sent (off)")
      ->check(CLI::IsMember({"off", "auto"}));
  const CLI::Range percent(1, 99);
  verb.add_option("--throttle-initial", limits.throttle_initial, "percent at first (20)")->check(percent);
  verb.add_option("--throttle-increment", limits.throttle_increment, "and more at each step (10)")
      ->check(percent);
  verb.add_option("--throttle-max", limits.throttle_max, "at most (99)")->check(percent);
  verb.add_option("--dirty-limit", limits.dirty_limit,
                  "bytes a second (k, M, G) that a thread may write anew once the process writes faster than "
                  "it is sent; slows only those that write more; 0: none (0)");
}

void add_bandwidth(CLI::App& verb, godwit::cli::LimitArguments& limits) {
  verb.add_option("--bandwidth", limits.bandwidth,
                  "bytes per second at most (k, M, G), but for the freeze; 0: no limit (0)");
}

void add_credentials(CLI::App& verb, Arguments& a) {
  verb.add_option("--psk-file", a.psk_file, "TLS by a key that both hosts have (`godwit keygen --psk FILE`)");
  verb.add_option(
      "--tls-ca", a.tls_ca,
      "TLS by certificates: whom this CA signed is trusted (`godwit keygen --ca DIR --host NAME`)");
  verb.add_option("--tls-cert", a.tls_certificate, "the certificate of this host");
  verb.add_option("--tls-key", a.tls_key, "its key");
}

void add_link(CLI::App& verb, Arguments& a) {
  add_credentials(verb, a);
  verb.add_flag("--insecure", a.insecure, "plain TCP beyond this host: the stream holds the process' memory");
  verb.add_option("--move-address", a.move_addresses, "ADDR/LEN@DEV: a service address that moves along");
}

void add_link_timeout(CLI::App& verb, Arguments& a, const char* what) {
  verb.add_option("--link-timeout", a.link_timeout_s, what)
      ->capture_default_str()
      ->check(CLI::Range(0.05, 3600.0));
}

void add_tracker(CLI::App& verb, Arguments& a, const std::vector<std::string>& trackers) {
  verb.add_option(
          "--tracker", a.tracker,
          "how writes are seen: ebpf (uffd, and BPF tells where to look), uffd (Linux 6.7), uffd-sync "
          "(5.14: each first write to a page waits for godwit), or auto: the first that this kernel has")
      ->capture_default_str()
      ->check(CLI::IsMember(trackers));
}

void add_mover_tracker(CLI::App& verb, Arguments& a) {
  add_tracker(verb, a, {"auto", "ebpf", "uffd", "uffd-sync"});
}

void add_verify(CLI::App& verb, Arguments& a) {
  verb.add_flag("--verify", a.verify,
                "hash all memory while it is frozen, and let no copy run that differs; lengthens the freeze");
}

void add_report(CLI::App& verb, Arguments& a) {
  verb.add_option("--report", a.report, "write what was measured to this file, as a page for a browser");
}

void add_compress(CLI::App& verb, Arguments& a) {
  verb.add_option("--compress", a.compress,
                  "whole pages: none, lz4, zstd, or auto: by what the last ones cost, where that is faster")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "none", "lz4", "zstd"}));
}

void add_postcopy(CLI::App& verb, Arguments& a) {
  verb.add_flag(
      "--postcopy", a.postcopy.postcopy,
      "let it run at the destination as soon as a further round does not pay, and send the rest then, "
      "what it touches first; if the source host dies in that time, the process is lost");
  verb.add_option("--postcopy-after", a.postcopy.after,
                  "the same after so many rounds (a number; 0: nothing goes before that can follow), or "
                  "after a time: 500ms, 2s");
  verb.add_option("--reconnect", a.postcopy.reconnect_s,
                  "seconds to try again when the link breaks while pages are missing")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6));
}

void add_migrate(CLI::App& app, Arguments& a, int (**verb)(const Arguments&)) {
  CLI::App* migrate = app.add_subcommand("migrate", "move a running process to another host");
  migrate->add_option("PID", a.pid)->required();
  migrate->add_option("HOST", a.host, "HOST[:PORT] of `godwit receive`")->required();
  add_limits(*migrate, a.limits);
  add_bandwidth(*migrate, a.limits);
  add_link(*migrate, a);
  add_link_timeout(*migrate, a,
                   "seconds of silence after which the link is cut; answers may take 6 times that, and after "
                   "COMMIT a lost peer is asked for 3 times that");
  migrate
      ->add_option("--channels", a.channels,
                   "connections, each with a thread of its own at both ends: auto or 1 to 16")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto"}) | CLI::Range(1, 16));
  migrate->add_option("--cache", a.cache, "memory for pages that deltas are made against")
      ->capture_default_str();
  add_compress(*migrate, a);
  migrate->add_option("--hook", a.hooks, "directory of programs: pre-freeze, frozen, resumed, aborted");
  add_postcopy(*migrate, a);
  add_mover_tracker(*migrate, a);
  add_verify(*migrate, a);
  add_report(*migrate, a);
  migrate->callback([verb] { *verb = godwit::cli::migrate; });
}

void add_receive(CLI::App& app, Arguments& a, int (**verb)(const Arguments&)) {
  CLI::App* receive = app.add_subcommand("receive", "wait for processes and let them run here");
  receive->add_option("--listen", a.listen, "ADDR[:PORT]")->capture_default_str();
  receive->add_flag("--once", a.once, "end after one process");
  add_credentials(*receive, a);
  receive->add_flag("--insecure", a.insecure, "plain TCP on an address that is not loopback");
  receive->add_option("--pid-namespace", a.pid_namespace, "auto, host or new")->capture_default_str();
  add_link_timeout(
      *receive, a,
      "seconds of silence after which the link is cut; a prepared process waits for COMMIT twice that");
  receive->add_option("--hook", a.hooks, "directory of programs: pre-resume, resumed, aborted");
  receive->callback([verb] { *verb = godwit::cli::receive; });
}

void add_image_verbs(CLI::App& app, Arguments& a, int (**verb)(const Arguments&)) {
  CLI::App* checkpoint = app.add_subcommand("checkpoint", "write a running process to a file");
  checkpoint->add_option("PID", a.pid)->required();
  checkpoint->add_option("FILE", a.file)->required();
  checkpoint->add_flag("--leave-running", a.leave_running, "the process goes on after it");
  add_limits(*checkpoint, a.limits);
  add_mover_tracker(*checkpoint, a);
  add_verify(*checkpoint, a);
  add_report(*checkpoint, a);
  add_compress(*checkpoint, a);
  checkpoint->callback([verb] { *verb = godwit::cli::checkpoint; });
  CLI::App* restore = app.add_subcommand("restore", "let the process of a file run");
  restore->add_option("FILE", a.file)->required();
  restore->add_option("--pid-namespace", a.pid_namespace, "auto, host or new")->capture_default_str();
  restore->callback([verb] { *verb = godwit::cli::restore; });
  CLI::App* inspect = app.add_subcommand("inspect", "print the records of a stream");
  inspect->add_option("STREAM", a.file)->required();
  inspect->callback([verb] { *verb = godwit::cli::inspect; });
}

void add_questions(CLI::App& app, Arguments& a, int (**verb)(const Arguments&)) {
  CLI::App* check =
      app.add_subcommand("check", "say whether a process can move, and why not; touches nothing");
  check->add_option("PID", a.pid)->required();
  check->add_option("--to", a.host, "HOST[:PORT]: ask that host as well");
  add_link(*check, a);
  check->callback([verb] { *verb = godwit::cli::check; });
  CLI::App* rate = app.add_subcommand(
      "dirty-rate", "measure how fast a process writes memory anew; it runs on, nothing is left in it");
  rate->add_option("PID", a.pid)->required();
  rate->add_option("--seconds", a.seconds, "how long, a sample each")
      ->capture_default_str()
      ->check(CLI::Range(1, 3600));
  add_tracker(*rate, a, {"auto", "uffd", "uffd-sync"});
  rate->callback([verb] { *verb = godwit::cli::dirty_rate; });
  CLI::App* resolve = app.add_subcommand("resolve", "decide about an original that is stopped in doubt");
  resolve->add_option("PID", a.pid)->required();
  resolve->add_flag("--resume", a.resume, "it runs nowhere else: let it go on");
  resolve->add_flag("--discard", a.discard, "it runs elsewhere: end it");
  resolve->callback([verb] { *verb = godwit::cli::resolve; });
  CLI::App* keygen = app.add_subcommand(
      "keygen", "make a pre-shared key, or a small CA and the certificate of a host; overwrites nothing");
  keygen->add_option("--psk", a.psk_file, "write a new key here, for both hosts");
  keygen->add_option("--ca", a.ca_folder,
                     "DIR: ca.pem and ca.key, made if they are not there; a host needs ca.pem, not ca.key");
  keygen->add_option("--host", a.host_name, "NAME: write NAME.pem and NAME.key there");
  keygen->add_option("--days", a.days, "how long the certificate of the host is good")
      ->capture_default_str()
      ->check(CLI::Range(1, 36500));
  keygen->callback([verb] { *verb = godwit::cli::keygen; });
  CLI::App* probe = app.add_subcommand("probe", "say what this kernel offers");
  probe->callback([verb] { *verb = godwit::cli::probe; });
}

void add_control(CLI::App& app, Arguments& a, int (**verb)(const Arguments&)) {
  CLI::App* status = app.add_subcommand("status", "tell how far the migrations of this host are");
  status->add_option("JOB", a.pid, "the pid that is being migrated; without it: all");
  status->callback([verb] { *verb = godwit::cli::status; });
  CLI::App* set = app.add_subcommand("set", "change the limits of a migration that is under way");
  set->add_option("JOB", a.pid)->required();
  add_limits(*set, a.limits);
  add_bandwidth(*set, a.limits);
  set->callback([verb] { *verb = godwit::cli::set; });
  const auto add = [&](const char* name, const char* what, int (*function)(const Arguments&)) {
    CLI::App* one = app.add_subcommand(name, what);
    one->add_option("JOB", a.pid)->required();
    one->callback([verb, function] { *verb = function; });
  };
  add("cancel", "end a migration; the original runs on", godwit::cli::cancel);
  add("pause", "let a migration send nothing for a while; tracking goes on", godwit::cli::pause);
  add("resume", "let it go on", godwit::cli::resume);
  add("postcopy", "let it run at the destination after this round, and send the rest then",
      godwit::cli::postcopy);
  add("freeze-now", "go to the freeze after this round, whatever the downtime", godwit::cli::freeze_now);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  int (*verb)(const Arguments&) = nullptr;
  CLI::App app("godwit moves a running process to another host and stops it for a few milliseconds only");
  app.set_version_flag("--version", "godwit 0.1.0");
  app.add_flag("--json", arguments.json, "one JSON object a line");
  app.fallthrough();
  app.require_subcommand(1);
  add_migrate(app, arguments, &verb);
  add_receive(app, arguments, &verb);
  add_image_verbs(app, arguments, &verb);
  add_questions(app, arguments, &verb);
  add_control(app, arguments, &verb);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : godwit::cli::kUsage;
  }
  return verb(arguments);
}
