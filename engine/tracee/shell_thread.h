// What ShellThread tells the code that it runs; for the sources of the shell alone.
#pragma once

namespace godwit::tracee {

/// Of the ShellThread that calls; nullptr on any other thread.
struct ShellThreadContext {
  /// Read end of a pipe whose only write end is in the engine's ordinary table: it ends when the engine does.
  /// -1 once a shell was spawned.
  int lifeline = -1;
};
ShellThreadContext* shell_thread_context();

}  // namespace godwit::tracee
