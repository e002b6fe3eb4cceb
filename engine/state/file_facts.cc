#include "engine/state/file_facts.h"

#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>

#include "engine/base/fd.h"
#include "engine/base/units.h"
#include "engine/base/xxh3.h"

namespace godwit::state {
namespace {

constexpr size_t kHeadBytes = 64_KiB;  // the linker puts the note into the first pages
constexpr size_t kChunk = 1_MiB;
constexpr int64_t kSecond = 1'000'000'000;

template <typename T>
std::optional<T> at(std::span<const std::byte> bytes, uint64_t offset) {
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

/// Notes are a header, a name and a payload, each padded to four bytes.
std::string build_id_of_notes(std::span<const std::byte> notes) {
  using namespace std::string_view_literals;
  constexpr std::string_view kGnu = "GNU\0"sv;  // with its end, as a note has it
  const auto padded = [](uint64_t size) { return (size + 3) & ~uint64_t{3}; };
  for (uint64_t offset = 0;;) {
    const auto note = at<Elf64_Nhdr>(notes, offset);
    if (!note) return {};
    const uint64_t name = offset + sizeof *note;
    const uint64_t payload = name + padded(note->n_namesz);
    if (payload > notes.size() || notes.size() - payload < note->n_descsz) return {};
    const auto* text = reinterpret_cast<const char*>(notes.data());
    if (note->n_type == NT_GNU_BUILD_ID && std::string_view(text + name, note->n_namesz) == kGnu)
      return {text + payload, note->n_descsz};
    offset = payload + padded(note->n_descsz);
  }
}

Result<size_t> read_some(const Fd& fd, std::span<std::byte> out, const std::string& path) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = ::read(fd.get(), out.data() + done, out.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read", path);
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

struct HashFree {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

Result<std::string> hash_contents(const Fd& fd, const std::string& path) {
  if (::lseek(fd.get(), 0, SEEK_SET) != 0) return fail_errno("lseek", path);
  const std::unique_ptr<XXH3_state_t, HashFree> state(XXH3_createState());
  XXH3_128bits_reset(state.get());
  const std::unique_ptr<std::byte[]> buffer(new std::byte[kChunk]);
  for (;;) {
    const size_t got = TRY(read_some(fd, {buffer.get(), kChunk}, path));
    if (got == 0) break;
    XXH3_128bits_update(state.get(), buffer.get(), got);
  }
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state.get()));
  return std::string(reinterpret_cast<const char*>(digest.digest), sizeof digest.digest);
}

Status add_contents(const Fd& fd, const std::string& path, wire::FileFact& fact) {
  std::array<std::byte, kHeadBytes> head;
  const size_t got = TRY(read_some(fd, head, path));
  fact.set_build_id(find_build_id({head.data(), got}));
  if (fact.build_id().empty() && fact.size() <= kLargestHashedFile)
    fact.set_hash(TRY(hash_contents(fd, path)));
  return {};
}

}  // namespace

std::string find_build_id(std::span<const std::byte> head) {
  const auto elf = at<Elf64_Ehdr>(head, 0);
  if (!elf || std::memcmp(elf->e_ident, ELFMAG, SELFMAG) != 0 || elf->e_ident[EI_CLASS] != ELFCLASS64)
    return {};
  for (uint64_t i = 0; i < elf->e_phnum; ++i) {
    const auto segment = at<Elf64_Phdr>(head, elf->e_phoff + i * sizeof(Elf64_Phdr));
    if (!segment) return {};
    if (segment->p_type != PT_NOTE || segment->p_offset > head.size()) continue;
    const uint64_t size = std::min<uint64_t>(segment->p_filesz, head.size() - segment->p_offset);
    if (std::string id = build_id_of_notes(head.subspan(segment->p_offset, size)); !id.empty()) return id;
  }
  return {};
}

Result<wire::FileFact> file_facts(const std::string& path) {
  struct stat status {};
  // Not opened before this is known: to open a named pipe or a device may block, or do something.
  if (::stat(path.c_str(), &status) != 0) return fail_errno("stat", path);
  if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode))
    return fail(ErrorKind::kUnsupported, "compare a file", path, "it is neither a file nor a directory");
  wire::FileFact fact;
  fact.set_path(path);
  fact.set_mode(status.st_mode);
  fact.set_mtime(status.st_mtim.tv_sec * kSecond + status.st_mtim.tv_nsec);
  if (S_ISDIR(status.st_mode)) return fact;
  fact.set_size(static_cast<uint64_t>(status.st_size));
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (!fd.valid()) return fail_errno("open", path);
  TRY(add_contents(fd, path, fact));
  return fact;
}

std::string difference(const wire::FileFact& theirs, const wire::FileFact& ours) {
  if ((theirs.mode() & S_IFMT) != (ours.mode() & S_IFMT)) return "it is another type of file";
  if (S_ISDIR(ours.mode())) return {};
  if (theirs.size() != ours.size()) return fmt::format("size {} here, {} there", ours.size(), theirs.size());
  if (theirs.build_id() != ours.build_id()) return "another build id";
  if (!theirs.hash().empty() && !ours.hash().empty())
    return theirs.hash() == ours.hash() ? "" : "other contents";
  if (theirs.build_id().empty() && theirs.mtime() != ours.mtime()) return "another modification time";
  return {};
}

}  // namespace godwit::state
