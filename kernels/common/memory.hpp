// Work memory that outlives a call: fresh pages cost more than the arithmetic on them. Blocks go back to a shared list
// and serve the next call of about their size.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "common/huge_pages.hpp"

namespace amn {

class Pool {
public:
    static Pool& shared() {
        static Pool& pool = created();
        return pool;
    }

    // A block of at least `bytes`, 64-byte aligned; sets `bytes` to its size.
    void* take(size_t& bytes) {
        bytes = (bytes + 4095) / 4096 * 4096;
        {
            const std::lock_guard lock(mutex_);
            const auto block = free_.lower_bound(bytes);
            if (block != free_.end() && block->first <= 2 * bytes + (1 << 16)) {
                void* data = block->second;
                bytes = block->first;
                kept_ -= bytes;
                free_.erase(block);
                return data;
            }
        }
        void* data = ::operator new(bytes, alignment(bytes));
        if (bytes <= most_in_huge_pages) advise_huge_pages(data, bytes);
        return data;
    }

    void give(void* data, size_t bytes) {
        {
            const std::lock_guard lock(mutex_);
            if (kept_ + bytes <= limit) {
                free_.emplace(bytes, data);
                kept_ += bytes;
                return;
            }
        }
        ::operator delete(data, alignment(bytes));
    }

    void clear() {
        const std::lock_guard lock(mutex_);
        for (const auto& [bytes, data] : free_) ::operator delete(data, alignment(bytes));
        free_.clear();
        kept_ = 0;
    }

    static constexpr size_t limit = size_t{256} << 20;  // more than this is not kept

private:
    // Never destroyed: arrays given to Python may outlive static objects. A fork waits until no thread is inside the pool,
    // and its child gets the mutex free.
    static Pool& created() {
        auto* pool = new Pool;
#if !defined(_WIN32)
        pthread_atfork([] { shared().mutex_.lock(); }, [] { shared().mutex_.unlock(); },
                       [] { shared().mutex_.unlock(); });
#endif
        return *pool;
    }

    // A process's first call at 3 labels, 375 x 500, takes 72 ms with huge pages and 85 without. Of the much larger
    // blocks that 81 labels need, the system may spend longer on making room (840 ms) than the pages save (670 ms without).
    static constexpr size_t most_in_huge_pages = size_t{16} << 20;
    static std::align_val_t alignment(size_t bytes) {
        return std::align_val_t{bytes < huge_page ? size_t{64} : huge_page};
    }

    std::mutex mutex_;
    std::multimap<size_t, void*> free_;
    size_t kept_ = 0;
};

// An uninitialised array from the pool.
template <class T>
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t count) : bytes_(count * sizeof(T)), data_(static_cast<T*>(Pool::shared().take(bytes_))) {}
    Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(bytes_, other.bytes_);
        std::swap(data_, other.data_);
        return *this;
    }
    ~Buffer() {
        if (data_) Pool::shared().give(data_, bytes_);
    }
    T* data() const { return data_; }
    T& operator[](size_t i) const { return data_[i]; }
    explicit operator bool() const { return data_ != nullptr; }
    T* release() { return std::exchange(data_, nullptr); }
    size_t bytes() const { return bytes_; }

private:
    size_t bytes_ = 0;
    T* data_ = nullptr;
};

}  // namespace amn
