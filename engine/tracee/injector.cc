#include "engine/tracee/injector.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <csignal>
#include <cstddef>
#include <cstring>

#include <algorithm>
#include <optional>

#include "engine/base/files.h"
#include "engine/tracee/bare_call.h"
#include "engine/tracee/fixups.h"
#include "engine/tracee/leftover.h"
#include "engine/tracee/memory.h"
#include "engine/tracee/restart.h"
#include "engine/tracee/scratch.h"
#include "engine/tracee/signal_frame.h"
#include "engine/tracee/steering.h"

namespace godwit::tracee {
namespace {

/// What of the process decides how calls can be made in it.
struct Facts {
  int signal = 0;  ///< the one that ends a run; 0: system-call stops do, slower
  bool has_seccomp = false;
};

/// The signals that wait for this one thread.
uint64_t pending_of(pid_t tid) {
  uint64_t pending = 0;
  __ptrace_peeksiginfo_args args{.off = 0, .flags = 0, .nr = 1};
  siginfo_t info{};
  for (; ::ptrace(PTRACE_PEEKSIGINFO, tid, &args, &info) == 1; ++args.off)
    pending |= signal_bit(info.si_signo);
  return pending;
}

/// A signal that the kernel throws away if this engine is not there to take it: left at its ignoring default,
/// and pending nowhere, or one that belongs to a signalfd would be taken with it. KERNEL: what the leader
/// does not block is ignored when it is sent to the process; a thread that blocks all signals, as workers do,
/// can have only what was sent to it alone. SIGCONT is the last choice: raising it ends a stop of the
/// process.
int choose_signal(const Frozen& frozen, uint64_t caught) {
  uint64_t taken = caught | frozen.leader().signal_mask;
  bool stopped = false;
  for (const FrozenThread& thread : frozen.threads()) {
    if ((thread.signal_mask & ~taken) != 0) taken |= pending_of(thread.tid);
    stopped |= thread.group_stopped;
  }
  for (const int signal : {SIGURG, SIGWINCH, SIGCHLD, SIGCONT}) {
    if ((taken & signal_bit(signal)) == 0 && (signal != SIGCONT || !stopped)) return signal;
  }
  return 0;
}

Result<Facts> find_facts(const Frozen& frozen) {
  const pid_t pid = frozen.process().pid();
  const std::string status = TRY(frozen.process().status(pid));
  if (field(status, "x86_Thread_features:").value_or("").find("shstk") != std::string_view::npos)
    return fail(ErrorKind::kUnsupported, "inject system calls", fmt::format("pid {}", pid),
                "it has a shadow stack");
  Facts facts;
  facts.has_seccomp = field(status, "Seccomp:").value_or("0") != "0";
  facts.signal =
      choose_signal(frozen, parse_number(field(status, "SigCgt:").value_or(""), 16).value_or(~0ULL));
  return facts;
}

Status map_scratch(const Frozen& frozen, const Memory& memory, const BareSite& site, AddressRange& scratch) {
  const int64_t at = TRY(bare_call(frozen, memory, site, SYS_mmap,
                                   {kScratchHint, kScratchSize, PROT_READ | PROT_WRITE | PROT_EXEC,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, ~0ULL, 0}));
  if (at < 0 && at > -4096)
    return fail_errno("map the scratch area", fmt::format("pid {}", memory.pid()), static_cast<int>(-at));
  scratch = range_of(static_cast<uint64_t>(at), static_cast<uint64_t>(at) + kScratchSize);
  return {};
}

Status write_header(const Memory& memory, RemoteAddr scratch, bool busy) {
  const ScratchHeader header{kScratchMagic, busy ? 1U : 0U};
  return memory.write(scratch, std::as_bytes(std::span(&header, 1)));
}

Status unmap_scratch(const Frozen& frozen, const Memory& memory, const BareSite& site, AddressRange scratch) {
  const int64_t result =
      TRY(bare_call(frozen, memory, site, SYS_munmap, {scratch.start.value(), scratch.size()}));
  if (result == 0) return {};
  return fail_errno("unmap the scratch area", fmt::format("{} of pid {}", scratch, memory.pid()),
                    static_cast<int>(-result));
}

/// Calls that go together into the scratch, with the part of the batch's data that they refer to.
struct Round {
  size_t first = 0, count = 0;
  uint64_t data_begin = 0, data_end = 0;

  [[nodiscard]] uint64_t data_size() const { return data_end - data_begin; }
  [[nodiscard]] uint64_t size() const { return count * sizeof(StubCall) + data_size(); }

  void add(const Call& call) {
    for (const Arg& arg : call.args) {
      if (!arg.is_data) continue;
      const uint64_t begin = arg.value & ~uint64_t{15}, end = arg.value + arg.size;
      const bool first_data = data_size() == 0;
      data_begin = first_data ? begin : std::min(data_begin, begin);
      data_end = first_data ? end : std::max(data_end, end);
    }
    ++count;
  }
};

/// The longest row of calls from `first` on that fits; a count of 0 means that not even one does.
Round next_round(const std::vector<Call>& calls, size_t first) {
  Round round{.first = first};
  while (first + round.count < calls.size()) {
    Round larger = round;
    larger.add(calls[first + round.count]);
    if (larger.size() > kVectorSize) break;
    round = larger;
  }
  return round;
}

/// The round as the stub wants it: calls, then data.
std::vector<std::byte> encode_round(const Round& round, Batch& batch, RemoteAddr vector) {
  std::vector<std::byte> bytes(round.size());
  const RemoteAddr data = vector + round.count * sizeof(StubCall);
  for (size_t i = 0; i < round.count; ++i) {
    const Call& call = batch.calls()[round.first + i];
    StubCall encoded{.nr = static_cast<uint64_t>(call.nr), .args = {}, .result = -EINPROGRESS};
    for (size_t a = 0; a < call.args.size(); ++a) {
      const Arg& arg = call.args[a];
      encoded.args[a] = arg.is_data ? data.value() + (arg.value - round.data_begin) : arg.value;
    }
    std::memcpy(bytes.data() + i * sizeof encoded, &encoded, sizeof encoded);
  }
  if (round.data_size() > 0)
    std::memcpy(bytes.data() + round.count * sizeof(StubCall), batch.data().data() + round.data_begin,
                round.data_size());
  return bytes;
}

void decode_round(const Round& round, std::span<const std::byte> bytes, Batch& batch) {
  for (size_t i = 0; i < round.count; ++i) {
    StubCall call;
    std::memcpy(&call, bytes.data() + i * sizeof call, sizeof call);
    batch.calls()[round.first + i].result = call.result;
  }
  if (round.data_size() > 0)
    std::memcpy(batch.data().data() + round.data_begin, bytes.data() + round.count * sizeof(StubCall),
                round.data_size());
}

Status first_failure(std::span<const Call> calls, pid_t tid) {
  for (const Call& call : calls) {
    if (call.result < 0 && call.result > -4096 && !call.may_fail)
      return fail_errno(call.what, fmt::format("thread {}", tid), static_cast<int>(-call.result));
  }
  return {};
}

Result<uint64_t> peek_register(pid_t tid, size_t offset) {
  errno = 0;
  const long value = ::ptrace(PTRACE_PEEKUSER, tid, offset, nullptr);
  if (errno != 0) return fail_errno("ptrace(PTRACE_PEEKUSER)", fmt::format("thread {}", tid));
  return static_cast<uint64_t>(value);
}

bool is_fault(int signal) {
  return signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE || signal == SIGTRAP ||
         signal == SIGSYS;
}

}  // namespace

struct Injector::State {
  State(Frozen& frozen_in, Memory memory_in, Facts facts_in)
      : frozen(frozen_in), memory(std::move(memory_in)), facts(facts_in) {}

  Frozen& frozen;
  Memory memory;
  Facts facts;
  AddressRange scratch;
  std::optional<BareSite> site;

  // The thread whose way home the frame is.
  pid_t framed_tid = 0;
  user_regs_struct framed{};
  uint64_t framed_mask = 0;
  bool intercepted = false;  // a signal of our kind that was meant for the thread, which blocks it

  Status find_or_map(const Layout* known);
  Status install();
  Status make_frame(const FrozenThread& thread);
  Status run_round(const FrozenThread& thread, StopWaiter& waiter, const Round& round, Batch& batch);
  Status run_stub(pid_t tid, StopWaiter& waiter);
  Result<bool> is_done(pid_t tid, const Stop& stop);
  Status unmap();

  [[nodiscard]] RemoteAddr stub() const { return scratch.start + kStubOffset; }
  [[nodiscard]] RemoteAddr frame() const { return scratch.start + kFrameArea + 8; }
  [[nodiscard]] RemoteAddr vector() const { return scratch.start + kVectorOffset; }
  [[nodiscard]] uint64_t mask() const { return facts.signal == 0 ? ~0ULL : ~signal_bit(facts.signal); }
};

Status Injector::State::find_or_map(const Layout* known) {
  scratch = find_idle_scratch(memory);
  if (!scratch.empty()) return {};
  Layout layout = known == nullptr ? TRY(frozen.process().layout()) : *known;
  const auto leftovers = TRY(bring_threads_home(frozen, memory, layout, facts.has_seccomp));
  TRY(prepare_thread(frozen, frozen.leader(), facts.has_seccomp));
  site = TRY(find_bare_site(frozen, memory, layout));
  if (leftovers.empty()) return map_scratch(frozen, memory, *site, scratch);
  scratch = leftovers.front().scratch;
  for (size_t i = 1; i < leftovers.size(); ++i)
    TRY(unmap_scratch(frozen, memory, *site, leftovers[i].scratch));
  return {};
}

Status Injector::State::install() {
  std::vector<std::byte> head(kStubOffset + stub_code().size());
  const ScratchHeader header{kScratchMagic, 1};
  std::memcpy(head.data(), &header, sizeof header);
  std::ranges::copy(stub_code(), head.begin() + kStubOffset);
  return memory.write(scratch.start, head);
}

Status Injector::State::make_frame(const FrozenThread& thread) {
  const bool same = framed_tid == thread.tid && framed_mask == thread.signal_mask &&
                    std::memcmp(&framed, &thread.original, sizeof framed) == 0;
  if (same) return {};
  TRY(prepare_thread(frozen, thread, facts.has_seccomp));
  const auto xstate = TRY(read_xstate(thread.tid));
  const auto bytes = TRY(
      build_signal_frame(frame().value(), 0, restarted(memory, thread.original), thread.signal_mask, xstate));
  framed_tid = 0;
  TRY(memory.write(frame(), bytes));
  framed_tid = thread.tid;
  framed = thread.original;
  framed_mask = thread.signal_mask;
  return {};
}

/// Is this the stop at the end of the vector?
Result<bool> Injector::State::is_done(pid_t tid, const Stop& stop) {
  const bool candidate =
      facts.signal == 0 ? stop.is_syscall_stop() : stop.is_signal_delivery() && stop.signal() == facts.signal;
  if (!candidate) return false;
  const uint64_t raised = stub().value() + stub_raised_offset();
  if (TRY(peek_register(tid, offsetof(user_regs_struct, rip))) != raised) return false;
  // KERNEL: on the way into a call rip is the same, and rax -ENOSYS.
  return facts.signal != 0 || TRY(peek_register(tid, offsetof(user_regs_struct, rax))) == 0;
}

Status Injector::State::run_stub(pid_t tid, StopWaiter& waiter) {
  int deliver = 0;
  for (;;) {
    const Run how = facts.signal == 0 ? Run::kToSyscallStop : Run::kContinue;
    const Stop stop = TRY(run_to_stop(frozen, tid, waiter, how, deliver));
    if (TRY(is_done(tid, stop))) return {};
    deliver = 0;
    if (!stop.is_signal_delivery()) continue;
    if (is_fault(stop.signal()))
      return fail(ErrorKind::kBug, "run injected calls", fmt::format("thread {}", tid),
                  fmt::format("signal {} inside the stub", stop.signal()));
    // SIGSTOP cannot be blocked: let the process be stopped, this thread goes on. An early signal of the
    // injector's own kind came from somebody else: it is thrown away, as the kernel would do, or kept as
    // pending.
    if (stop.signal() != facts.signal)
      deliver = stop.signal();
    else
      intercepted = true;
  }
}

Status Injector::State::run_round(const FrozenThread& thread, StopWaiter& waiter, const Round& round,
                                  Batch& batch) {
  std::vector<std::byte> bytes = encode_round(round, batch, vector());
  TRY(memory.write(vector(), bytes));
  user_regs_struct general = registers_at(thread.original, stub(), frame() + 8);
  general.rbx = vector().value();
  general.r12 = round.count;
  general.r13 = static_cast<uint64_t>(facts.signal);
  TRY(enter(thread.tid, general, mask()));
  TRY(run_stub(thread.tid, waiter));
  TRY(memory.read(vector(), bytes));
  decode_round(round, bytes, batch);
  return {};
}

Status Injector::State::unmap() {
  if (scratch.empty()) return {};
  if (frozen.find(frozen.process().pid()) == nullptr)
    return fail(ErrorKind::kBug, "unmap the scratch area", fmt::format("pid {}", memory.pid()),
                "the process was thawed or killed before");
  if (!site) {
    TRY(prepare_thread(frozen, frozen.leader(), facts.has_seccomp));
    site = TRY(find_bare_site(frozen, memory, TRY(frozen.process().layout())));
  }
  TRY(unmap_scratch(frozen, memory, *site, scratch));
  scratch = {};
  return {};
}

Injector::Injector(std::unique_ptr<State> state) : state_(std::move(state)) {}
Injector::~Injector() {
  (void)finish();
}

Result<std::unique_ptr<Injector>> Injector::create(Frozen& frozen, const Layout* layout) {
  const Facts facts = TRY(find_facts(frozen));
  auto state = std::make_unique<State>(frozen, TRY(Memory::open(frozen.process().pid())), facts);
  TRY(state->find_or_map(layout));
  std::unique_ptr<Injector> injector(new Injector(std::move(state)));
  TRY(injector->state_->install());
  return injector;
}

Status Injector::run(pid_t tid, Batch& batch) {
  const FrozenThread* thread = state_->frozen.find(tid);
  if (thread == nullptr || state_->scratch.empty())
    return fail(ErrorKind::kBug, "run injected calls", fmt::format("thread {}", tid),
                "not frozen, or finished");
  if (batch.empty()) return {};
  TRY(state_->make_frame(*thread));
  StopWaiter waiter = TRY(StopWaiter::create());
  Status status;
  for (size_t done = 0; status.ok() && done < batch.calls().size();) {
    const Round round = next_round(batch.calls(), done);
    if (round.count == 0) {
      status = fail(ErrorKind::kBug, "run injected calls", batch.calls()[done].what,
                    "its data exceed the scratch area");
      break;
    }
    status = state_->run_round(*thread, waiter, round, batch);
    done += round.count;
  }
  if (!status.ok() && status.error().kind == ErrorKind::kTargetGone) return status;
  TRY(leave(*thread));
  if (std::exchange(state_->intercepted, false) &&
      (thread->signal_mask & signal_bit(state_->facts.signal)) != 0)
    ::syscall(SYS_tgkill, state_->frozen.process().pid(), tid, state_->facts.signal);
  if (!status.ok()) return status;
  return first_failure(batch.calls(), tid);
}

AddressRange Injector::scratch() const {
  return state_->scratch;
}

Status Injector::finish() {
  return state_->unmap();
}

Status Injector::leave_mapped() {
  if (state_->scratch.empty()) return {};
  TRY(write_header(state_->memory, state_->scratch.start, false));
  state_->scratch = {};
  return {};
}

Status remove_leftover_scratch(Frozen& frozen) {
  const Facts facts = TRY(find_facts(frozen));
  const Memory memory = TRY(Memory::open(frozen.process().pid()));
  Layout layout = TRY(frozen.process().layout());
  const auto leftovers = TRY(bring_threads_home(frozen, memory, layout, facts.has_seccomp));
  if (leftovers.empty()) return {};
  TRY(prepare_thread(frozen, frozen.leader(), facts.has_seccomp));
  const BareSite site = TRY(find_bare_site(frozen, memory, layout));
  for (const Leftover& leftover : leftovers) TRY(unmap_scratch(frozen, memory, site, leftover.scratch));
  return {};
}

}  // namespace godwit::tracee
