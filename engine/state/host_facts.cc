#include "engine/state/host_facts.h"

#include <cpuid.h>
#include <fmt/format.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstring>

#include "engine/base/files.h"
#include "engine/base/kernel_features.h"
#include "engine/base/units.h"
#include "engine/base/xxh3.h"

namespace godwit::state {
namespace {

struct LeafName {
  uint32_t leaf, subleaf;
  bool ecx, edx, ebx, eax;  // registers that are feature bits
};
// Intel SDM volume 2, CPUID: registers that hold feature flags which user code may act on.
constexpr LeafName kFeatureLeaves[] = {
    {1, 0, true, true, false, false},          {7, 0, true, true, true, false},
    {7, 1, false, true, false, true},          {0xd, 1, false, false, false, true},
    {0x80000001, 0, true, true, false, false},
};

/// Bits of leaf 1 that belong to the host and its state, not to what programs may use: OSXSAVE, hypervisor,
/// x2apic, ...
constexpr uint32_t kLeaf1EcxIgnored =
    1u << 31 | 1u << 21 | 1u << 24 | 1u << 3 | 1u << 5 | 1u << 6 | 1u << 15 | 1u << 18;

uint64_t read_xcr0() {
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

void add_cpu(wire::HostFacts& facts) {
  for (const LeafName& name : kFeatureLeaves) {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(name.leaf, name.subleaf, &a, &b, &c, &d) == 0) continue;
    auto* leaf = facts.add_cpuid();
    leaf->set_leaf(name.leaf);
    leaf->set_subleaf(name.subleaf);
    if (name.eax) leaf->set_eax(a);
    if (name.ebx) leaf->set_ebx(b);
    if (name.ecx) leaf->set_ecx(name.leaf == 1 ? c & ~kLeaf1EcxIgnored : c);
    if (name.edx) leaf->set_edx(d);
  }
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(1, 0, &a, &b, &c, &d) != 0 && (c & bit_OSXSAVE) != 0) facts.set_xcr0(read_xcr0());
  if (__get_cpuid_count(kXsaveLeaf, 0, &a, &b, &c, &d) != 0) facts.set_xsave_size(b);
}

/// The vdso of this engine is the kernel's, as every process has it.
std::string hash_vdso() {
  const auto* start = reinterpret_cast<const char*>(::getauxval(AT_SYSINFO_EHDR));
  if (start == nullptr) return {};
  auto maps = read_file("/proc/self/maps");
  if (!maps.ok()) return {};
  for (const std::string_view line : split(*maps, '\n')) {
    if (!line.ends_with("[vdso]")) continue;
    const auto range = split(line.substr(0, line.find(' ')), '-');
    const auto from = parse_number(range[0], 16), to = parse_number(range[1], 16);
    if (!from || !to) return {};
    const uint64_t hash = XXH3_64bits(start, *to - *from);
    return std::string(reinterpret_cast<const char*>(&hash), sizeof hash);
  }
  return {};
}

Finding host_finding(std::string what, std::string why, std::string remedy, bool fatal = true) {
  return {"host", "the destination host", std::move(what), std::move(why), std::move(remedy), fatal};
}

const wire::CpuidLeaf* find_leaf(const wire::HostFacts& facts, const wire::CpuidLeaf& wanted) {
  for (const auto& leaf : facts.cpuid()) {
    if (leaf.leaf() == wanted.leaf() && leaf.subleaf() == wanted.subleaf()) return &leaf;
  }
  return nullptr;
}

void compare_cpus(const wire::HostFacts& source, const wire::HostFacts& destination, Findings& findings) {
  static const wire::CpuidLeaf kNone;
  for (const auto& has : source.cpuid()) {
    const wire::CpuidLeaf* leaf = find_leaf(destination, has);
    const wire::CpuidLeaf& offers = leaf != nullptr ? *leaf : kNone;
    const auto lacks = [&](const char* reg, uint32_t ours, uint32_t theirs) {
      if ((ours & ~theirs) == 0) return;
      findings.push_back(
          host_finding(fmt::format("its CPU lacks features (leaf {:#x}.{} {} bits {:#x})", has.leaf(),
                                   has.subleaf(), reg, ours & ~theirs),
                       "the program may have chosen code that uses them",
                       fmt::format("move to a CPU like {}, or start the program with those features masked",
                                   source.cpu_model())));
    };
    lacks("eax", has.eax(), offers.eax());
    lacks("ebx", has.ebx(), offers.ebx());
    lacks("ecx", has.ecx(), offers.ecx());
    lacks("edx", has.edx(), offers.edx());
  }
  if ((source.xcr0() & ~destination.xcr0()) != 0 || source.xsave_size() != destination.xsave_size())
    findings.push_back(host_finding(
        fmt::format("its register state differs (xcr0 {:#x}, {} bytes; here {:#x}, {} bytes)",
                    destination.xcr0(), destination.xsave_size(), source.xcr0(), source.xsave_size()),
        "vector registers would not fit", "move to a CPU of the same generation"));
}

}  // namespace

Result<wire::HostFacts> collect_host_facts() {
  wire::HostFacts facts;
  utsname name{};
  if (::uname(&name) != 0) return fail_errno("uname", "this host");
  facts.set_kernel_release(name.release);
  facts.set_machine(name.machine);
  facts.set_host_name(name.nodename);
  facts.set_page_size(static_cast<uint32_t>(::sysconf(_SC_PAGESIZE)));
  facts.set_processors(static_cast<uint32_t>(::sysconf(_SC_NPROCESSORS_ONLN)));
  add_cpu(facts);
  facts.set_vdso_hash(hash_vdso());
  facts.set_has_time_namespace(kernel_features().time_namespace);
  if (auto boot = read_file("/proc/sys/kernel/random/boot_id"); boot.ok())
    facts.set_boot_id(std::string(trim(*boot)));
  if (auto cpu = read_file("/proc/cpuinfo"); cpu.ok()) {
    const auto model = field(*cpu, "model name");
    if (model)
      facts.set_cpu_model(std::string(trim(model->substr(std::min(model->find(':') + 1, model->size())))));
  }
  const auto memory = TRY(read_file("/proc/meminfo"));
  const auto kib = [&](std::string_view key) {
    const auto text = field(memory, key).value_or("0 kB");
    return parse_number(text.substr(0, text.find(' '))).value_or(0) * 1024;
  };
  facts.set_memory_total(kib("MemTotal:"));
  facts.set_memory_available(kib("MemAvailable:"));
  for (const auto& feature : kernel_features().list()) {
    if (feature.available) facts.add_kernel_features(feature.name);
  }
  if (auto pid_max = read_file("/proc/sys/kernel/pid_max"); pid_max.ok())
    facts.set_pid_max(parse_number(trim(*pid_max)).value_or(0));
  return facts;
}

Findings compare_hosts(const wire::HostFacts& source, const wire::HostFacts& destination) {
  Findings findings;
  if (source.machine() != destination.machine() || source.page_size() != destination.page_size()) {
    findings.push_back(host_finding(
        fmt::format("it is a {} with pages of {} bytes", destination.machine(), destination.page_size()),
        "machine code and memory do not fit", "move between hosts of one architecture"));
    return findings;
  }
  compare_cpus(source, destination, findings);
  if (source.vdso_hash() != destination.vdso_hash())
    findings.push_back(host_finding(fmt::format("its vdso differs (kernel {}, here {})",
                                                destination.kernel_release(), source.kernel_release()),
                                    "the program holds addresses of functions inside the vdso",
                                    "run the same kernel build on both hosts"));
  if (!destination.has_time_namespace())
    findings.push_back(host_finding("its kernel has no time namespaces", "CLOCK_MONOTONIC would jump",
                                    "use a kernel with CONFIG_TIME_NS"));
  return findings;
}

}  // namespace godwit::state
