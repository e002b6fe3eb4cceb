// A process goes on as another process of the same host, through an image that is never on a disk:
//
//     build/examples/in_memory
//
// It writes its memory all the while; rounds of pre-copy go into the image until the rest is small, then it
// is frozen, and its copy is built from the image. The last lines say that it is the same process that goes
// on.
#include <fmt/format.h>

#include <godwit/godwit.h>
#include <cstdio>

#include "examples/writer.h"

namespace godwit {
namespace {

double to_ms(Nanos t) {
  return to_seconds(t) * 1e3;
}

Status move(examples::Writer& writer) {
  migration::MemoryImage image;
  migration::CheckpointOptions checkpoint;
  checkpoint.pid = writer.pid();
  checkpoint.path = "memory";
  checkpoint.sink = &image;
  checkpoint.on_progress = [](const migration::Progress& p) {
    fmt::print("round {}: {} pages, expected downtime {:.1f} ms\n", p.round, p.pages,
               to_ms(p.expected_downtime));
  };
  const migration::Report report = TRY(migration::checkpoint(checkpoint));
  fmt::print("frozen for {:.1f} ms at the end of {} rounds; the image holds {:.1f} MB\n",
             to_ms(report.downtime.total()), report.rounds.size(),
             static_cast<double>(image.bytes_written()) / 1e6);

  migration::MemoryImage::Source source(image);
  migration::RestoreOptions restore;
  restore.path = "memory";
  restore.source = &source;
  restore.on_running = [](pid_t pid, pid_t inner) {
    fmt::print("it runs as pid {} ({} inside)\n", pid, inner);
  };
  writer.moved_to(TRY(migration::restore(restore)));
  return {};
}

int run() {
  examples::Writer writer({});
  if (!writer.works_on(1000)) return 1;
  const examples::Tidings before = writer.tidings();
  const Status moved = move(writer);
  if (!moved.ok()) {
    fmt::print(stderr, "in_memory: {}\n", moved.error().message());
    return 1;
  }
  const bool well = writer.works_on(20000);
  const examples::Tidings after = writer.tidings();
  fmt::print("pages written {} -> {}, checked {} -> {}, wrong {}\n", before.writes, after.writes,
             before.checked, after.checked, after.wrong);
  return well && after.writes > before.writes ? 0 : 1;
}

}  // namespace
}  // namespace godwit

int main() {
  return godwit::run();
}
