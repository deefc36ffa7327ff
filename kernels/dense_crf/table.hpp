// Lattice vertices by key. Keys that fit beside a row number in 64 bits take the fast table; wider ones another.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "dense_crf/keys.hpp"
#include "dense_crf/passes.hpp"
#include "common/memory.hpp"

namespace amn::dense_crf {

constexpr uint32_t no_row = UINT32_MAX;

template <int Words>
struct Key {
    std::array<uint64_t, Words> word{};
    // The default of std::array calls memcmp: a tenth of a whole call at 12 megapixels.
    bool operator==(const Key& other) const {
        uint64_t difference = 0;
        for (int i = 0; i < Words; ++i) difference |= word[i] ^ other.word[i];
        return difference == 0;
    }
    Key& operator+=(const Key& other) {
        for (int i = 0; i < Words; ++i) word[i] += other.word[i];
        return *this;
    }
    uint64_t hash() const { return lattice::hash_of<Words>(word.data(), Words); }
};

// An array that grows, from the pool.
template <class T>
class Growing {
public:
    static constexpr size_t slack = 64;  // readable items beyond the last: loops take 64 at a time
    explicit Growing(size_t capacity) : items_(capacity + slack), capacity_(capacity) {}
    void push(const T& item) {
        if (size_ == capacity_) {
            Buffer<T> larger(2 * capacity_ + slack);
            std::memcpy(static_cast<void*>(larger.data()), items_.data(), size_ * sizeof(T));
            items_ = std::move(larger);
            capacity_ *= 2;
        }
        items_[size_++] = item;
    }
    size_t size() const { return size_; }
    const T& operator[](size_t i) const { return items_[i]; }
    const T* data() const { return items_.data(); }

private:
    Buffer<T> items_;
    size_t capacity_, size_ = 0;
};

// Where the fields of a key lie, and what a step along each axis adds to it.
template <int Words>
struct PackingOf {
    std::array<int, 32> word{}, shift{};
    std::array<int32_t, 32> bias{};     // added to quotients: fields are never negative, margin included
    std::array<Key<Words>, 33> step{};  // to the next vertex along an axis, where the remainder is below d
    std::array<Key<Words>, 33> wrap{};  // the same from remainder d, which wraps to 0
    uint64_t remainder_mask = 0;
    int bits = 0;     // in use, of a key of one word
    int id_bits = 0;  // what a row number needs
};

// Keys of one word, and row numbers beside them in the slots: a look-up touches one cache line.
class PackedTable {
public:
    using KeyType = Key<1>;
    using Packing = PackingOf<1>;

    PackedTable(const Packing& packing, size_t expected)
        : id_bits_(packing.id_bits), id_mask_((uint64_t{1} << packing.id_bits) - 1), keys_(expected) {
        resize(std::bit_width(2 * expected - 1));
    }
    // Where the search for a key starts: known early, it can be fetched early.
    uint64_t start(const KeyType& key) const { return key.hash() >> shift_; }
    void fetch(uint64_t at) const { __builtin_prefetch(&slots_[at]); }
    int hash_shift() const { return shift_; }
    // Insertion and search of many keys from one loop, with the table's state in registers.
    struct View {
        const uint64_t* slots;
        uint64_t mask, id_mask;
        int id_bits;
        void fetch(uint32_t at) const { __builtin_prefetch(&slots[at]); }
        // The key's row if its first slot has it, else no_row.
        bool at_once(uint64_t key, uint32_t at, uint32_t& row) const {
            row = static_cast<uint32_t>(slots[at] & id_mask);
            return slots[at] >> id_bits == key;
        }
        uint32_t find(uint64_t key, uint64_t at) const {
            for (;; at = (at + 1) & mask) {
                const uint64_t slot = slots[at];
                const bool found = slot >> id_bits == key;
                // Whether a neighbour exists is unpredictable, so that is no branch; one slot is likely to tell.
                if (found | (slot == empty)) [[likely]]
                    return static_cast<uint32_t>(slot & id_mask) | (static_cast<uint32_t>(found) - 1);
            }
        }
    };
    View view() const { return {slots_.data(), mask_, id_mask_, id_bits_}; }
    // The key's row; a new one gets the next number.
    [[gnu::noinline]] uint32_t insert(const KeyType& key, uint64_t at) {
        for (;; at = (at + 1) & mask_) {
            const uint64_t slot = slots_[at];
            if (slot >> id_bits_ == key.word[0]) return static_cast<uint32_t>(slot & id_mask_);
            if (slot == empty) break;
        }
        const uint32_t row = static_cast<uint32_t>(keys_.size());
        slots_[at] = key.word[0] << id_bits_ | row;
        keys_.push(key);
        return row;
    }
    // Makes room for `more` keys: positions from `start` hold until the next call.
    void reserve(size_t more) {
        while (2 * (keys_.size() + more) > mask_) grow();
    }
    // Counts a row that has no key of its own.
    void skip(const KeyType& key) { keys_.push(key); }
    size_t size() const { return keys_.size(); }
    const KeyType& key(size_t row) const { return keys_[row]; }
    static constexpr bool packed = true;

private:
    static constexpr uint64_t empty = ~uint64_t{0};  // no key has all its bits set

    void resize(int log_slots) {
        shift_ = 64 - log_slots;
        mask_ = (uint64_t{1} << log_slots) - 1;
        slots_ = Buffer<uint64_t>();
        slots_ = Buffer<uint64_t>(mask_ + 1);
        std::memset(slots_.data(), 0xff, (mask_ + 1) * sizeof(uint64_t));
    }
    void grow() {
        const Buffer<uint64_t> old = std::move(slots_);
        const uint64_t old_slots = mask_ + 1;
        resize(64 - shift_ + 2);
        for (uint64_t i = 0; i < old_slots; ++i) {
            if (old[i] == empty) continue;
            uint64_t at = KeyType{{old[i] >> id_bits_}}.hash() >> shift_;
            while (slots_[at] != empty) at = (at + 1) & mask_;
            slots_[at] = old[i];
        }
    }

    int id_bits_, shift_ = 0;
    uint64_t id_mask_, mask_ = 0;
    Buffer<uint64_t> slots_;
    Growing<KeyType> keys_;
};

// Keys of any number of words.
template <int Words>
class WideTable {
public:
    using KeyType = Key<Words>;
    using Packing = PackingOf<Words>;

    WideTable(const Packing&, size_t expected) : keys_(expected) { resize(std::bit_width(2 * expected - 1)); }
    uint64_t start(const KeyType& key) const { return key.hash() >> shift_; }
    void fetch(uint64_t at) const { __builtin_prefetch(&slots_[at]); }
    uint32_t insert(const KeyType& key, uint64_t at) {
        at = locate(key, at);
        if (slots_[at] != no_row) return slots_[at];
        const uint32_t row = static_cast<uint32_t>(keys_.size());
        slots_[at] = row;
        keys_.push(key);
        return row;
    }
    uint32_t find(const KeyType& key, uint64_t at) const { return slots_[locate(key, at)]; }
    void reserve(size_t more) {
        while (2 * (keys_.size() + more) > mask_) grow();
    }
    void skip(const KeyType& key) { keys_.push(key); }
    size_t size() const { return keys_.size(); }
    const KeyType& key(size_t row) const { return keys_[row]; }
    static constexpr bool packed = false;

private:
    uint64_t locate(const KeyType& key, uint64_t at) const {
        while (slots_[at] != no_row && !(keys_[slots_[at]] == key)) at = (at + 1) & mask_;
        return at;
    }
    void resize(int log_slots) {
        shift_ = 64 - log_slots;
        mask_ = (uint64_t{1} << log_slots) - 1;
        slots_ = Buffer<uint32_t>();
        slots_ = Buffer<uint32_t>(mask_ + 1);
        std::memset(slots_.data(), 0xff, (mask_ + 1) * sizeof(uint32_t));
    }
    void grow() {
        const Buffer<uint32_t> old = std::move(slots_);
        const uint64_t old_slots = mask_ + 1;
        resize(64 - shift_ + 2);
        for (uint64_t i = 0; i < old_slots; ++i) {
            if (old[i] == no_row) continue;
            uint64_t at = keys_[old[i]].hash() >> shift_;
            while (slots_[at] != no_row) at = (at + 1) & mask_;
            slots_[at] = old[i];
        }
    }

    int shift_ = 0;
    uint64_t mask_ = 0;
    Buffer<uint32_t> slots_;
    Growing<KeyType> keys_;
};

}  // namespace amn::dense_crf
