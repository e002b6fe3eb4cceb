// Makes one area here of what is one area on the source. Place in the pipeline: destination, after a layout
// was followed. Thread: the control lane's, no pages in flight.
//
// KERNEL: two neighbours that both hold pages have an anon_vma each, and are then never merged. When the
// source mapped something new over several older areas under way, the parts that the destination kept stay
// areas of their own; the program sees it when it calls mremap over the whole, which is EFAULT across areas.
#pragma once

#include <functional>

#include "engine/base/result.h"
#include "engine/model/vma.h"
#include "uffd/page_installer.h"

namespace godwit::migration {

/// Of every anonymous area of `wanted` that consists of several areas in process `pid`, the largest stays;
/// `renew` maps the place of each other one anew, empty, so that it merges, and gets its pages back. Errors:
/// those of `renew`, of reading and installing.
Status join_areas(pid_t pid, const Layout& wanted, const uffd::PageInstaller& installer,
                  const std::function<Status(AddressRange)>& renew);

}  // namespace godwit::migration
