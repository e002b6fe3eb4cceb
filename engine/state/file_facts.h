// Is a file on one host the file of the same name on the other? By its build id if it is an ELF file that has
// one, or else by a hash of its contents. Any thread; blocks on the disk: before the migration, never in a
// freeze.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/wire/state.pb.h"

namespace godwit::state {

/// Contents beyond this size are not hashed: size and modification time must do.
constexpr uint64_t kLargestHashedFile = uint64_t{256} << 20;

/// Size, mode, mtime, and build id or (XXH3, 128 bits) hash. Hashing: about 1 GB/s from a warm cache.
/// Errors: System as errno says; Unsupported for what is neither a file nor a directory.
Result<wire::FileFact> file_facts(const std::string& path);

/// Empty when `ours` can stand for `theirs`; otherwise what differs: "size 12 here, 13 there".
std::string difference(const wire::FileFact& theirs, const wire::FileFact& ours);

/// The GNU build id note of an ELF64 image; empty if there is none. Pure: `head` is the beginning of the
/// file, and the note must lie within it.
std::string find_build_id(std::span<const std::byte> head);

}  // namespace godwit::state
