// Instructions that a process has anyway, for the calls that are made before a scratch area exists and after
// it is gone. Private to tracee.
#pragma once

#include "engine/model/vma.h"
#include "engine/tracee/memory.h"

namespace godwit::tracee {

struct Gadgets {
  RemoteAddr syscall;      ///< `syscall`; 0 if none was found
  RemoteAddr syscall_ret;  ///< `syscall; ret`; 0 if none
  RemoteAddr restorer;     ///< `mov $15, %rax; syscall`: what a signal handler returns to; 0 if none
  [[nodiscard]] bool complete() const { return syscall_ret != RemoteAddr() && restorer != RemoteAddr(); }
};

/// Searches the code of files (libc first) and the vdso. What was found in a file is remembered by device and
/// inode: about 1 ms the first time, some us later. Thread-safe. Errors: as Memory::read().
Result<Gadgets> find_gadgets(const Memory& memory, const Layout& layout);

}  // namespace godwit::tracee
