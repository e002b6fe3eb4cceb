// An engine that takes no page fault while the target stands still. A first touch costs half a microsecond on
// a bare machine, but a hundred and more in a virtual one whose host has taken the free memory back (free
// page reporting), and a freeze makes some hundred of them: measured, 1.5 ms of captured state became 6.
#pragma once

namespace godwit {

/// Faults in the engine's code and data, and a heap large enough for a freeze, which malloc then neither
/// returns nor splits by thread. Some milliseconds; what cannot be had is left as it is. After every fork:
/// what a child shares is faulted again. Any thread.
void warm_memory();

}  // namespace godwit
