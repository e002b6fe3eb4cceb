// The rows of the descriptor rooms, one function a room; registry.cc puts them in order.
#pragma once

#include "engine/state/room.h"

namespace godwit::state {

DescriptorRoom regular_file_room();  ///< regular files, directories, O_PATH
DescriptorRoom device_file_room();   ///< /dev/null and the like
DescriptorRoom memfd_room();
DescriptorRoom pipe_room();
DescriptorRoom eventfd_room();
DescriptorRoom timerfd_room();
DescriptorRoom signalfd_room();
DescriptorRoom epoll_room();
DescriptorRoom unix_socket_room();
DescriptorRoom udp_room();
DescriptorRoom tcp_room();

}  // namespace godwit::state
