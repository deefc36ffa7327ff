// Threads. Work is divided by its size alone, never by the number of threads, and each piece writes its own results, so
// that results are bit-identical for any thread count.
//
// Threads are started for each call and joined before it returns: nothing survives that a fork could break. If the system
// refuses a thread, the work runs on those that started.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "common/interrupt.hpp"

namespace amn {

// Starts up to `count` threads that run body(index), index from 1. Returns those that the system granted.
template <class Body>
std::vector<std::thread> start_threads(int count, const Body& body) {
    std::vector<std::thread> threads;
    if (count <= 0) return threads;
    threads.reserve(static_cast<std::size_t>(count));
    try {
        for (int i = 1; i <= count; ++i) threads.emplace_back([&body, i] { body(i); });
    } catch (const std::system_error&) {  // no thread to spare
    }
    return threads;
}

// Calls work(piece) for every piece in [0, pieces), on at most `threads` threads. Each thread makes its own `work` by
// make_work(), which may hold buffers. Rethrows the first exception, after all threads have stopped. The caller checks
// for an interrupt (Ctrl-C) between pieces.
template <class MakeWork>
void parallel_for(std::int64_t pieces, int threads, const MakeWork& make_work) {
    if (threads > pieces) threads = static_cast<int>(pieces);
    if (pieces == 0) return;
    if (threads <= 1) {
        auto work = make_work();
        for (std::int64_t piece = 0; piece < pieces; ++piece) {
            check_interrupt();
            work(piece);
        }
        return;
    }
    std::atomic<std::int64_t> next{0};
    std::exception_ptr error;
    std::mutex guard;
    const auto run = [&](int) {
        try {
            auto work = make_work();
            for (;;) {
                check_interrupt();  // before a piece is taken: others may wait for a piece that was
                const std::int64_t piece = next.fetch_add(1);
                if (piece >= pieces) break;
                work(piece);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard);
            if (!error) error = std::current_exception();
            next = pieces;
        }
    };
    auto others = start_threads(threads - 1, run);
    run(0);
    for (auto& thread : others) thread.join();
    if (error) std::rethrow_exception(error);
}

// What the members of a team share.
struct Team {
    int count;
    std::barrier<> barrier;
    std::atomic<bool> stopped{false};
    std::exception_ptr interrupt;

    explicit Team(int members) : count(members), barrier(members) {}
};

// A thread of a team; 0 is the caller.
struct Member {
    int index, count;
    Team* team;

    void sync() const {
        if (count > 1) team->barrier.arrive_and_wait();
    }
    // Whether an interrupt has ended the work: what remains until the next sync() may be skipped.
    bool stopped() const {
        if (index == 0 && !team->stopped.load(std::memory_order_relaxed)) {
            try {
                check_interrupt();
            } catch (...) {
                team->interrupt = std::current_exception();
                team->stopped = true;
            }
        }
        return left();
    }
    // The same between two syncs that no stopped() parts: all members get the same answer and may leave together.
    bool left() const { return team->stopped.load(std::memory_order_relaxed); }
};

// Runs work(member) on at most `threads` threads in step, the caller among them. Members begin when the number of
// threads that the system grants is known: the barrier counts exactly those. `work` must not throw; an interrupt that it
// was told of by stopped() is thrown here.
template <class Work>
void run_team(int threads, const Work& work) {
    std::optional<Team> team;
    std::atomic<Team*> ready{nullptr};
    const auto others = [&](int index) {
        ready.wait(nullptr);
        Team* const mine = ready;
        work(Member{index, mine->count, mine});
    };
    auto started = start_threads(threads - 1, others);
    team.emplace(static_cast<int>(started.size()) + 1);
    ready = &*team;
    ready.notify_all();
    work(Member{0, team->count, &*team});
    for (auto& thread : started) thread.join();
    if (team->interrupt) std::rethrow_exception(team->interrupt);
}

}  // namespace amn
