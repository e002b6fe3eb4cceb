// Objects of shared memory (memfds, shared anonymous memory), and files that were deleted while they are
// open: carried once by content, whatever maps or opens them. Source: find them and read them. Destination:
// make them, before anything maps or opens them.
#pragma once

#include <vector>

#include "engine/base/fd.h"
#include "engine/state/context.h"
#include "engine/wire/rooms_memory.pb.h"

namespace godwit::state {

struct ObjectSource {
  wire::MemoryObject info;
  Fd fd;  ///< open for reading in this engine; the object lives at least as long
};

/// Whether `vma` maps such an object; its id is object_key(vma.device, vma.inode).
bool shows_object(const Vma& vma);

/// Whether `file` is open without a name that could lead to it, so that it is carried as an object, under the
/// id object_of().
bool is_unnamed_file(const OpenFile& file);
uint64_t object_of(const struct stat& status);

/// All objects that `layout` maps or `files` has open. Any thread, the process may run.
/// Errors: TargetGone. An object whose mapping vanished meanwhile is left out.
Result<std::vector<ObjectSource>> find_objects(const tracee::Process& process, const Layout& layout,
                                               const std::vector<OpenFile>& files);

/// Makes the object and enters it in context.objects; one that is there gets this size. Shell thread. Errors:
/// System.
Status create_object(BuildContext& context, const wire::MemoryObject& object);
/// Until trim_objects() it reaches to `end` at least, however long it is on the source: while that runs, its
/// size and the pages of a private mapping are not of one moment, and none may lie behind the end. Shell
/// thread.
Status fit_object(BuildContext& context, uint64_t id, uint64_t end);
/// All pages have arrived: each object gets its size. Shell thread.
Status trim_objects(BuildContext& context);
/// Closes the shell's descriptors of all objects: the mappings and memfds of the process hold them now.
void close_objects(BuildContext& context);

/// The shell's descriptor of an object that `subject` is made of. Errors: Corrupt when there is none.
Result<int> descriptor_of(const BuildContext& context, uint64_t id, const std::string& subject);

/// A descriptor of this engine for an object of the shell with (outer) pid `shell`: for writing its contents.
Result<Fd> open_object(pid_t shell, const SharedObject& object);

}  // namespace godwit::state
