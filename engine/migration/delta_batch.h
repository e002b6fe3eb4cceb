// The deltas of a page record, taken together: their bases are read, and the new pages installed, by a few
// calls for all. Place in the pipeline: rebuild -> delta_batch -> page_installer. One a record; several
// threads may have one each, for disjoint pages.
#pragma once

#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/remote_addr.h"
#include "uffd/page_installer.h"

namespace godwit::migration {

class DeltaBatch {
 public:
  explicit DeltaBatch(const uffd::PageInstaller& installer) : installer_(installer) {}

  /// `payload` must live until the next flush(). Errors as flush().
  Status add(RemoteAddr at, std::span<const std::byte> payload);
  /// Everything added is in place afterwards. Errors: Corrupt, naming the page: a delta against another base,
  /// or a malformed one; those of the installer.
  Status flush();

 private:
  const uffd::PageInstaller& installer_;
  std::vector<RemoteAddr> pages_;
  std::vector<std::span<const std::byte>> payloads_;
};

}  // namespace godwit::migration
