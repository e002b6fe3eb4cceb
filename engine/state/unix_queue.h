// What waits to be received on a unix socket: looked at without taking it, and put into another socket.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace godwit::state {

/// Datagrams, or pieces of a stream, in order. The queue stays as it is. Uses SO_PEEK_OFF, which is put back.
/// KERNEL: an empty datagram that was looked at once is skipped by later looks; receiving still gives it.
/// Errors: Retry when descriptors are under way in it (SCM_RIGHTS), or a datagram whose sender has a name.
Result<std::vector<std::string>> peek_unix_queue(int fd, int type, const std::string& subject);

/// Who the receiver will be told sent it (SCM_CREDENTIALS), when it asks.
struct Credentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};

/// Sends the pieces from `sender` without blocking; its send buffer is made large for that and put back.
/// `to`: sun_path of the receiver, or empty when connected. `credentials`: null for none.
Status fill_unix_queue(int sender, std::string_view to, const std::vector<std::string_view>& pieces,
                       const Credentials* credentials, const std::string& subject);

}  // namespace godwit::state
