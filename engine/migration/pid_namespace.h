// In which pid namespace a process goes on.
#pragma once

#include <cstdint>

namespace godwit::migration {

enum class PidNamespace : uint8_t {
  kInvalid = 0,
  kAuto,  ///< this host's if the pids are free there, else a new one
  kHost,
  kNew,
};

}  // namespace godwit::migration
