// Long loops call check_interrupt(): on the thread that Python called from, it lets Python handle pending signals a few
// times a second. Without Python, and on other threads, it does nothing.
#pragma once

#include <chrono>

namespace amn {

// Handles what is pending; throws if the loop has to stop (KeyboardInterrupt). Set by the binding for the time of a call.
inline thread_local void (*interrupt_handler)() = nullptr;
inline thread_local std::chrono::steady_clock::time_point next_interrupt_check;

inline void check_interrupt() {
    if (!interrupt_handler) return;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_interrupt_check) return;
    next_interrupt_check = now + std::chrono::milliseconds(100);
    interrupt_handler();
}

}  // namespace amn
