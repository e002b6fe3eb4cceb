#include "engine/state/unclaimed.h"

#include <fmt/format.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include <array>
#include <string_view>

namespace godwit::state {
namespace {

struct Kind {
  std::string_view pattern;  ///< the link begins with it
  const char* what;
  const char* why;
  const char* remedy;
};

constexpr const char* kInKernel = "its state lives in this kernel alone and cannot be read out";
constexpr const char* kClose = "close it before the migration";

constexpr std::array kLinks = {
    Kind{"anon_inode:inotify", "an inotify instance", "its watches and unread events cannot be carried over",
         kClose},
    Kind{"anon_inode:[fanotify]", "a fanotify group", "its marks cannot be carried over", kClose},
    Kind{"anon_inode:[io_uring]", "an io_uring",
         "requests in flight and registered buffers belong to this kernel",
         "start the program without io_uring (sysctl kernel.io_uring_disabled=2 makes most fall back)"},
    Kind{"anon_inode:[userfaultfd]", "a userfaultfd", "its registered ranges cannot be carried over", kClose},
    Kind{"anon_inode:[perf_event]", "a perf event", "it counts on this host's processors",
         "stop profiling first"},
    Kind{"anon_inode:bpf-map", "an eBPF map", kInKernel, "close it, or let the program load it again after"},
    Kind{"anon_inode:bpf-prog", "an eBPF program", kInKernel,
         "close it, or let the program load it again after"},
    Kind{"anon_inode:bpf", "an eBPF object", kInKernel, "close it, or let the program load it again after"},
    Kind{"anon_inode:btf", "an eBPF type description", kInKernel, kClose},
    Kind{"anon_inode:[pidfd]", "a pidfd", "the process it refers to stays on this host", kClose},
    Kind{"pidfd:[", "a pidfd", "the process it refers to stays on this host", kClose},
    Kind{"anon_inode:kvm", "a KVM virtual machine", kInKernel,
         "migrate the guest with its virtual machine monitor"},
    Kind{"anon_inode:seccomp notify", "a seccomp listener", kInKernel, kClose},
    Kind{"anon_inode:[landlock-ruleset]", "a Landlock ruleset", kInKernel, kClose},
    Kind{"anon_inode:[fscontext]", "a mount being configured", kInKernel, kClose},
    Kind{"anon_inode:sync_file", "a GPU fence", "it belongs to a device of this host", kClose},
    Kind{"anon_inode:[aio]", "an asynchronous I/O context", kInKernel, kClose},
    Kind{"anon_inode:[vfio", "a device passed through", "the device stays on this host", kClose},
    Kind{"/dmabuf:", "a DMA buffer", "it belongs to a device of this host", kClose},
    Kind{"/secretmem", "secret memory", "the kernel hides its contents from everybody else", kClose},
    Kind{"mnt:[", "a handle of a mount namespace", "the namespace stays on this host", kClose},
    Kind{"net:[", "a handle of a network namespace", "the namespace stays on this host", kClose},
    Kind{"pid:[", "a handle of a pid namespace", "the namespace stays on this host", kClose},
    Kind{"user:[", "a handle of a user namespace", "the namespace stays on this host", kClose},
    Kind{"uts:[", "a handle of a UTS namespace", "the namespace stays on this host", kClose},
    Kind{"ipc:[", "a handle of an IPC namespace", "the namespace stays on this host", kClose},
    Kind{"time:[", "a handle of a time namespace", "the namespace stays on this host", kClose},
    Kind{"cgroup:[", "a handle of a cgroup namespace", "the namespace stays on this host", kClose},
};

struct Family {
  int domain;
  int type;  ///< 0: any
  const char* what;
};

constexpr std::array kFamilies = {
    Family{AF_NETLINK, 0, "a netlink socket"},
    Family{AF_PACKET, 0, "a packet socket"},
    Family{AF_INET, SOCK_RAW, "a raw IPv4 socket"},
    Family{AF_INET6, SOCK_RAW, "a raw IPv6 socket"},
    Family{AF_INET, SOCK_DGRAM, "an ICMP (ping) socket"},
    Family{AF_INET6, SOCK_DGRAM, "an ICMPv6 (ping) socket"},
    Family{AF_INET, SOCK_SEQPACKET, "an SCTP socket"},
    Family{AF_INET6, SOCK_SEQPACKET, "an SCTP socket"},
    Family{AF_VSOCK, 0, "a vsock socket"},
    Family{AF_ALG, 0, "a kernel crypto socket"},
    Family{AF_XDP, 0, "an AF_XDP socket"},
    Family{AF_BLUETOOTH, 0, "a bluetooth socket"},
    Family{AF_CAN, 0, "a CAN socket"},
    Family{AF_KEY, 0, "an IPsec key socket"},
    Family{AF_TIPC, 0, "a TIPC socket"},
};

// Majors from Documentation/admin-guide/devices.txt.
constexpr unsigned kTtyMajor = 4;
constexpr unsigned kTtyAuxMajor = 5;
constexpr unsigned kPtsFirst = 136;
constexpr unsigned kPtsLast = 143;

Finding describe_socket(const OpenFile& file) {
  Finding out{"descriptors", file.subject(), "a socket of unknown kind", "it cannot be carried over", kClose,
              true};
  if (!file.socket) return out;
  const SocketKind& kind = *file.socket;
  out.what =
      fmt::format("a socket of family {}, type {}, protocol {}", kind.domain, kind.type, kind.protocol);
  for (const Family& family : kFamilies)
    if (family.domain == kind.domain && (family.type == 0 || family.type == kind.type))
      out.what = family.what;
  if (kind.protocol == IPPROTO_SCTP) out.what = "an SCTP socket";
  if (kind.protocol == 262) out.what = "a multipath TCP socket";  // linux/in.h: IPPROTO_MPTCP
  return out;
}

Finding describe_device(const OpenFile& file) {
  const unsigned major_number = major(file.status.st_rdev);
  const bool tty = major_number == kTtyMajor || major_number == kTtyAuxMajor ||
                   (major_number >= kPtsFirst && major_number <= kPtsLast);
  if (tty)
    return {"descriptors",
            file.subject(),
            "a terminal",
            "the terminal stays on this host",
            "start the program detached from it: setsid PROGRAM </dev/null >LOG 2>&1",
            true};
  const char* kind = S_ISBLK(file.status.st_mode) ? "a block device" : "a device";
  return {"descriptors",
          file.subject(),
          fmt::format("{} ({}:{})", kind, major_number, minor(file.status.st_rdev)),
          "the device and what it knows of the process stay on this host",
          kClose,
          true};
}

}  // namespace

Finding describe_unclaimed(const OpenFile& file) {
  if (S_ISSOCK(file.status.st_mode)) return describe_socket(file);
  if (S_ISCHR(file.status.st_mode) || S_ISBLK(file.status.st_mode)) return describe_device(file);
  if (S_ISFIFO(file.status.st_mode))
    return {"descriptors",
            file.subject(),
            "a named pipe",
            "whoever opens the other end does so on this host",
            "close it, or use a unix socket or a plain pipe instead",
            true};
  for (const Kind& kind : kLinks)
    if (file.link.starts_with(kind.pattern))
      return {"descriptors", file.subject(), kind.what, kind.why, kind.remedy, true};
  return {"descriptors",
          file.subject(),
          "a kind of descriptor that is not known",
          "what it holds cannot be carried over",
          kClose,
          true};
}

}  // namespace godwit::state
