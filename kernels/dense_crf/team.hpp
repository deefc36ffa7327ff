// A few threads that work in step.
#pragma once

#include <barrier>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace amn::dense_crf {

struct Member {
    int index, count;
    std::barrier<>* barrier;
    void sync() const {
        if (barrier) barrier->arrive_and_wait();
    }
};

// Runs work(member) on `threads` threads, the caller among them. `work` must not throw between two syncs.
template <class Work>
void run_team(int threads, Work work) {
    if (threads <= 1) {
        work(Member{0, 1, nullptr});
        return;
    }
    std::barrier<> barrier(threads);
    std::vector<std::jthread> others;
    others.reserve(threads - 1);
    for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { work(Member{t, threads, &barrier}); });
    work(Member{0, threads, &barrier});
}

// Runs task(i) for i < count; each thread takes every threads-th one. The first exception is rethrown.
template <class Task>
void run_tasks(int threads, int count, Task task) {
    std::exception_ptr failure;
    std::mutex mutex;
    run_team(threads < count ? threads : count, [&](const Member& me) {
        try {
            for (int i = me.index; i < count; i += me.count) task(i);
        } catch (...) {
            const std::lock_guard lock(mutex);
            failure = std::current_exception();
        }
    });
    if (failure) std::rethrow_exception(failure);
}

}  // namespace amn::dense_crf
