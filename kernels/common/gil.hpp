// Releases Python's global lock for the time of a kernel's call.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#include "common/interrupt.hpp"

namespace amn {

class GilRelease {
public:
    GilRelease() : outer_(current_), state_(PyEval_SaveThread()) {
        current_ = this;
        next_interrupt_check = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
        interrupt_handler = is_main_thread() ? &handle_signals : nullptr;
    }
    GilRelease(const GilRelease&) = delete;
    GilRelease& operator=(const GilRelease&) = delete;
    ~GilRelease() {
        interrupt_handler = nullptr;
        current_ = outer_;
        acquire();
    }

    // Called once, from the module's initialisation.
    static void remember_main_thread() {
        main_ = pybind11::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
    }

private:
    static bool is_main_thread() { return PyThread_get_thread_ident() == main_; }

    // Before Python 3.14 a daemon thread that asks for the lock of an interpreter that has ended is unwound, which would
    // end the process from within a destructor. It sleeps until the process ends instead, as from 3.14 on.
    void acquire() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }

    static void handle_signals() {
        GilRelease& self = *current_;
        self.acquire();
        if (PyErr_CheckSignals() != 0) {
            pybind11::error_already_set raised;
            self.state_ = PyEval_SaveThread();
            throw raised;
        }
        self.state_ = PyEval_SaveThread();
    }

    inline static thread_local GilRelease* current_ = nullptr;
    inline static unsigned long main_ = 0;
    GilRelease* outer_;
    PyThreadState* state_;
};

}  // namespace amn
