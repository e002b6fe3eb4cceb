#include "engine/migration/checkpoint.h"

#include <fmt/format.h>

#include "engine/base/warm_memory.h"
#include "engine/migration/clock_sync.h"
#include "engine/migration/control_server.h"
#include "engine/migration/guardian.h"
#include "engine/migration/huge_pages.h"
#include "engine/migration/inventory.h"
#include "engine/migration/memory_image.h"
#include "engine/migration/precopy.h"
#include "engine/migration/rebuild.h"
#include "engine/model/record_stream.h"
#include "engine/state/host_facts.h"
#include "engine/transport/file.h"

namespace godwit::migration {
namespace {

/// The first bytes of an image. KERNEL: the offsets of a time namespace are set before a process enters it,
/// so a reader needs them first; but they are known last, at the freeze, and the clocks must not go back
/// behind it.
Status rewrite_head(ImageSink& sink, const wire::StreamHeader& header, const wire::Inventory& inventory,
                    uint64_t size) {
  MemoryImage head;
  wire::RecordWriter writer(head, header);
  TRY(writer.start());
  TRY(writer.write_message(wire::RecordType::kInventory, inventory));
  if (head.bytes_written() != size)
    return fail(ErrorKind::kBug, "rewrite an image", "its inventory", "it has another size");
  return sink.rewrite(0, head.bytes());
}

Status write_image(const CheckpointOptions& options, const tracee::Process& process,
                   const state::Intent& intent, Guardian& guardian, Control& control, ImageSink& sink,
                   Report& report) {
  TRY(judge(TRY(check_here(process, intent)), options.on_findings));

  wire::StreamHeader header;
  header.session = TRY(wire::new_session_id());
  wire::RecordWriter writer(sink, header);
  TRY(writer.start());
  auto inventory = TRY(take_inventory(process));
  TRY(add_clock_values(process, inventory));
  TRY(writer.write_message(wire::RecordType::kInventory, inventory));
  const uint64_t head_size = sink.bytes_written();

  PrecopyOptions settings;
  settings.tracker = options.tracker;
  settings.progress = options.on_progress;
  settings.verify = options.verify;
  settings.policy = options.policy;
  settings.compress = options.compress;
  settings.on_frozen = [&] { return add_clock_values(process, inventory); };
  auto precopy = TRY(Precopy::create(process, intent, {&writer}, control, std::move(settings), {}));
  guardian.touching();
  TRY(precopy->arm());
  TRY(precopy->describe());
  TRY(precopy->rounds());
  TRY(precopy->freeze_at_good_instant([] { return Status(); }, [&] { return precopy->thaw(); }));
  TRY(rewrite_head(sink, header, inventory, head_size));
  TRY(writer.finish());
  report = precopy->report();
  if (options.leave_running) {
    TRY(precopy->thaw());
    return sink.finish();
  }
  // ORDER: the image is safe before the original goes.
  TRY(sink.finish());
  return precopy->kill();
}

/// What was captured on this kernel, or on one that went down since: clocks go on from the checkpoint.
void continue_clocks(wire::Inventory& inventory) {
  inventory.set_monotonic_offset(inventory.monotonic_offset() - read_clock(CLOCK_MONOTONIC).count());
  inventory.set_boottime_offset(inventory.boottime_offset() - read_clock(CLOCK_BOOTTIME).count());
}

Status begin(Rebuild& rebuild, const wire::Record& record) {
  auto inventory = TRY(wire::parse<wire::Inventory>(record));
  state::Findings findings = state::compare_hosts(inventory.facts(), TRY(state::collect_host_facts()));
  if (auto found = judge_huge_pages(inventory.huge_pages())) findings.push_back(std::move(*found));
  TRY(judge(findings, {}));
  continue_clocks(inventory);
  return rebuild.begin(inventory);
}

}  // namespace

Result<Report> checkpoint(const CheckpointOptions& options) {
  TRY(choose_tracker(options.tracker));
  Guardian guardian = TRY(Guardian::start(options.pid, {}));
  warm_memory();
  const auto process = TRY(tracee::Process::open(options.pid));
  state::Intent intent;
  intent.to_file = true;
  std::optional<transport::FileSink> file;
  if (options.sink == nullptr) file.emplace(TRY(transport::FileSink::create(options.path)));
  ImageSink& sink = file ? *file : *options.sink;
  Control control(options.pid, options.limits, std::nullopt, options.cancelled);
  const auto server = TRY(ControlServer::start(control, job_path(options.pid)));
  control.publish([&](Statistics& s) { s.destination = options.path; });
  Report report;
  const Nanos started = monotonic_now();
  TRY(write_image(options, process, intent, guardian, control, sink, report));
  report.total = monotonic_now() - started;
  report.wire_bytes = sink.bytes_written();
  return report;
}

Result<pid_t> restore(const RestoreOptions& options) {
  std::optional<transport::FileSource> file;
  if (options.source == nullptr) file.emplace(TRY(transport::FileSource::open(options.path)));
  wire::RecordReader reader(file ? *file : *options.source);
  TRY(reader.start());
  Rebuild rebuild(options.pid_namespace);
  for (;;) {
    const wire::Record record = TRY(reader.next());
    if (record.type == wire::RecordType::kEnd) break;
    if (record.type == wire::RecordType::kInventory)
      TRY(begin(rebuild, record));
    else
      TRY(rebuild.take(record));
  }
  if (!rebuild.prepared())
    return fail(ErrorKind::kCorrupt, "restore", options.path,
                "the image ends before the process is complete");
  TRY(rebuild.resume());
  if (options.on_running) options.on_running(rebuild.pid(), rebuild.inner_pid());
  return rebuild.pid();
}

}  // namespace godwit::migration
