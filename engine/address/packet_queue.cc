#include "engine/address/packet_queue.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/address/attributes.h"
#include "engine/base/files.h"

namespace godwit::address {
namespace {

constexpr uint16_t kFirstNumber = 26000;  // far from the small numbers people write by hand
constexpr unsigned kNumbers = 1024;
constexpr uint32_t kQueueLength = 65536;  // packets; a TCP window of 64 MiB in segments of 1 KiB
constexpr int kSocketBuffer = 64 << 20;   // bytes; one notice takes about 1 KiB of it
constexpr size_t kNoticeSize = 512;       // bytes; a notice without payload is about 120
constexpr size_t kBatch = 64;

using Buffer = std::array<char, 256>;

nlmsghdr* put_header(Buffer& buffer, int type, uint16_t number) {
  nlmsghdr* header = mnl_nlmsg_put_header(buffer.data());
  header->nlmsg_type = static_cast<uint16_t>((NFNL_SUBSYS_QUEUE << 8) | type);
  header->nlmsg_flags = NLM_F_REQUEST;
  auto* generic = static_cast<nfgenmsg*>(mnl_nlmsg_put_extra_header(header, sizeof(nfgenmsg)));
  generic->nfgen_family = AF_UNSPEC;
  generic->version = NFNETLINK_V0;
  generic->res_id = htons(number);
  return header;
}

/// Nothing for a message that is no packet, such as the complaint about a verdict on a packet that is gone.
bool read_notice(const char* data, size_t size, QueuedPacket& packet) {
  const auto* message = reinterpret_cast<const nlmsghdr*>(data);
  if (!mnl_nlmsg_ok(message, static_cast<int>(size))) return false;
  if (message->nlmsg_type != ((NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_PACKET)) return false;
  const auto* payload = static_cast<const std::byte*>(mnl_nlmsg_get_payload(message));
  packet = {};
  bool found = false;
  for_each_attribute(std::span(payload, mnl_nlmsg_get_payload_len(message)), sizeof(nfgenmsg),
                     [&](int type, std::span<const std::byte> bytes) {
                       if (type == NFQA_PACKET_HDR && bytes.size() >= sizeof(nfqnl_msg_packet_hdr)) {
                         packet.id = ntohl(read_u32(bytes));  // its first field
                         found = true;
                       }
                       if (type == NFQA_IFINDEX_INDEV) packet.in_device = ntohl(read_u32(bytes));
                     });
  return found;
}

}  // namespace

void PacketQueue::Close::operator()(mnl_socket* socket) const {
  mnl_socket_close(socket);
}

int PacketQueue::fd() const {
  return mnl_socket_get_fd(socket_.get());
}

Result<int> PacketQueue::configure(uint16_t number) {
  Buffer buffer{};
  nlmsghdr* header = put_header(buffer, NFQNL_MSG_CONFIG, number);
  header->nlmsg_flags |= NLM_F_ACK;
  const nfqnl_msg_config_cmd command{NFQNL_CFG_CMD_BIND, 0, htons(AF_UNSPEC)};
  mnl_attr_put(header, NFQA_CFG_CMD, sizeof(command), &command);
  const nfqnl_msg_config_params params{0, NFQNL_COPY_META};
  mnl_attr_put(header, NFQA_CFG_PARAMS, sizeof(params), &params);
  mnl_attr_put_u32(header, NFQA_CFG_QUEUE_MAXLEN, htonl(kQueueLength));
  // KERNEL: without the GSO flag the kernel cuts every large (GRO) packet into segments before it queues
  // them. FAIL_OPEN stays off: an overflowing packet let through to a frozen socket after its state was read
  // would be acknowledged here and never reach the destination; a dropped one is sent again.
  mnl_attr_put_u32(header, NFQA_CFG_MASK, htonl(NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN));
  mnl_attr_put_u32(header, NFQA_CFG_FLAGS, htonl(NFQA_CFG_F_GSO));
  if (mnl_socket_sendto(socket_.get(), header, header->nlmsg_len) < 0) {
    return fail_errno("configure packet queue", std::to_string(number));
  }
  alignas(nlmsghdr) std::array<char, 1024> reply;
  const ssize_t got = mnl_socket_recvfrom(socket_.get(), reply.data(), reply.size());
  if (got < 0) return fail_errno("configure packet queue", std::to_string(number));
  const auto* message = reinterpret_cast<const nlmsghdr*>(reply.data());
  if (!mnl_nlmsg_ok(message, static_cast<int>(got)) || message->nlmsg_type != NLMSG_ERROR) {
    return fail(ErrorKind::kSystem, "configure packet queue", std::to_string(number),
                "the kernel did not acknowledge");
  }
  return -static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(message))->error;
}

Result<PacketQueue> PacketQueue::bind_free() {
  mnl_socket* socket = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC);
  if (socket == nullptr) return fail_errno("open netfilter socket", "NETLINK_NETFILTER");
  PacketQueue queue(socket);
  if (mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0)
    return fail_errno("bind netfilter socket", "nfnetlink");
  const int size = kSocketBuffer;
  if (::setsockopt(queue.fd(), SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0) {
    return fail_errno("SO_RCVBUFFORCE", "packet queue socket");
  }
  const auto start = static_cast<unsigned>(::getpid());
  int err = EBUSY;
  for (unsigned i = 0; i < kNumbers; ++i) {
    queue.number_ = static_cast<uint16_t>(kFirstNumber + (start + i) % kNumbers);
    err = TRY(queue.configure(queue.number_));
    if (err == 0) return queue;
    if (err != EBUSY && err != EPERM && err != EEXIST) break;
  }
  return fail_errno("bind packet queue", std::to_string(queue.number_), err == EINVAL ? EOPNOTSUPP : err);
}

Result<size_t> PacketQueue::receive(std::span<QueuedPacket> packets) {
  const size_t wanted = std::min(packets.size(), kBatch);
  alignas(nlmsghdr) std::array<std::array<char, kNoticeSize>, kBatch> buffers;
  std::array<iovec, kBatch> pieces;
  std::array<mmsghdr, kBatch> messages{};
  for (size_t i = 0; i < wanted; ++i) {
    pieces[i] = {buffers[i].data(), buffers[i].size()};
    messages[i].msg_hdr.msg_iov = &pieces[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  const int got = ::recvmmsg(fd(), messages.data(), static_cast<unsigned>(wanted), MSG_DONTWAIT, nullptr);
  if (got < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOBUFS)) return size_t{0};
  if (got < 0) return fail_errno("read packet queue", std::to_string(number_));
  size_t count = 0;
  for (size_t i = 0; i < static_cast<size_t>(got); ++i) {
    if (read_notice(buffers[i].data(), messages[i].msg_len, packets[count])) ++count;
  }
  return count;
}

Status PacketQueue::verdict(int type, uint32_t id, uint32_t verdict) {
  Buffer buffer{};
  nlmsghdr* header = put_header(buffer, type, number_);
  const nfqnl_msg_verdict_hdr what{htonl(verdict), htonl(id)};
  mnl_attr_put(header, NFQA_VERDICT_HDR, sizeof(what), &what);
  if (mnl_socket_sendto(socket_.get(), header, header->nlmsg_len) < 0) {
    return fail_errno("send packet verdict", fmt::format("queue {} packet {}", number_, id));
  }
  return {};
}

// KERNEL: the batch form takes every waiting packet with an id up to this one, in the order of the queue, and
// reinjects them inside the system call.
Status PacketQueue::accept_through(uint32_t id) {
  return verdict(NFQNL_MSG_VERDICT_BATCH, id, NF_ACCEPT);
}

Status PacketQueue::drop(uint32_t id) {
  return verdict(NFQNL_MSG_VERDICT, id, NF_DROP);
}

Result<uint64_t> PacketQueue::dropped_by_kernel() const {
  const std::string table = TRY(read_file("/proc/thread-self/net/netfilter/nfnetlink_queue"));
  for (const std::string_view line : split(table, '\n')) {
    const auto columns =
        split(line, ' ');  // number portid waiting mode range dropped user_dropped sequence 1
    if (columns.size() < 7 || parse_number(columns[0]) != uint64_t{number_}) continue;
    return parse_number(columns[5]).value_or(0) + parse_number(columns[6]).value_or(0);
  }
  return fail(ErrorKind::kSystem, "look up packet queue", std::to_string(number_), "it is no longer bound");
}

}  // namespace godwit::address
