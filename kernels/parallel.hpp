// Threads by argument. The work is cut into pieces that depend on its size alone, never on the number of threads, and
// each piece writes its own results: the same bits come out whoever did which piece.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace amn {

// Calls work(piece) for every piece in [0, pieces), on at most `threads` threads. Each thread makes its own `work` by
// make_work(), which may hold buffers. The first exception is rethrown.
template <class MakeWork>
void parallel_for(std::int64_t pieces, int threads, const MakeWork& make_work) {
    if (threads > pieces) threads = static_cast<int>(pieces);
    if (pieces == 0) return;
    if (threads <= 1) {
        auto work = make_work();
        for (std::int64_t piece = 0; piece < pieces; ++piece) work(piece);
        return;
    }
    std::atomic<std::int64_t> next{0};
    std::exception_ptr error;
    std::mutex guard;
    auto run = [&] {
        try {
            auto work = make_work();
            for (std::int64_t piece; (piece = next.fetch_add(1)) < pieces;) work(piece);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard);
            if (!error) error = std::current_exception();
            next = pieces;
        }
    };
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(threads - 1));
    try {
        for (int i = 1; i < threads; ++i) others.emplace_back(run);
    } catch (const std::system_error&) {
        // The machine has no thread to spare; those that started and this one do all the work.
    }
    run();
    for (auto& thread : others) thread.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace amn
