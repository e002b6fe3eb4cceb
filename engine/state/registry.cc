// All rooms, in order. A new kind of process state is a line here.
#include <array>

#include "engine/state/address_space.h"
#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/state/process_rooms.h"
#include "engine/state/room.h"

namespace godwit::state {

std::span<const Room> rooms() {
  static const std::array kRooms = {
      kAddressSpaceRoom,
      kMemoryLocksRoom,
      Room{"descriptors", true, check_descriptors, capture_descriptors, prepare_descriptors,
           finish_descriptors, false},
      kProcessRoom,
      kThreadsRoom,
      kTimersRoom,
      kSignalsRoom,
      kCredentialsRoom,
  };
  return kRooms;
}

std::span<const DescriptorRoom> descriptor_rooms() {
  static const std::array kRooms = {
      device_file_room(), memfd_room(), regular_file_room(), pipe_room(), eventfd_room(), timerfd_room(),
      signalfd_room(),    epoll_room(), unix_socket_room(),  udp_room(),  tcp_room(),
  };
  return kRooms;
}

}  // namespace godwit::state
