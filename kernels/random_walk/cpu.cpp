#include "random_walk/cpu.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/instruction_set.hpp"
#include "common/parallel.hpp"
#include "random_walk/rows.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace amn::random_walk {
namespace {

// Behind a nearly closed edge values shrink to denormals, on which x86 is a hundred times slower: counted as 0 here.
class FlushDenormals {
public:
#if defined(__x86_64__) || defined(_M_X64)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    FlushDenormals(const FlushDenormals&) = delete;
    ~FlushDenormals() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t{1} << 24)));
    }
    FlushDenormals(const FlushDenormals&) = delete;
    ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

private:
    uint64_t saved_;
#else
    FlushDenormals() {}
#endif
};

RowFunction row_function(const std::string& instructions) {
    if (!supports(instructions))
        throw std::invalid_argument("this machine has no instruction set '" + instructions + "'");
#ifdef AMN_X86_DISPATCH
    if (instructions == "avx512") return row_avx512;
    if (instructions == "avx2") return row_avx2;
#endif
    return row_baseline;
}

// Up to 4 maps walking together.
class Block {
public:
    Block(const Affinities& a, const Polynomials& polynomials, RowFunction row, int64_t maps, int64_t threads,
          std::atomic<bool>& stop)
        : a_(a), polynomials_(polynomials), row_(row), maps_(maps), threads_(threads), stop_(stop) {
        map_size_ = (a.height + 2 * a.reach) * a.stride + a.left;  // whole cache lines, like stride and left
        // The coefficients of a group's rows stay in cache. On 375 x 500 (26 MB of them) groups of 8 steps take half the
        // time of single steps; on 94 x 125 it makes no difference.
        const int64_t bytes = std::max<int64_t>(a.reach, 1) * a.row_size * static_cast<int64_t>(sizeof(float));
        group_ = std::clamp<int64_t>(kCache / bytes, 1, 8);
        ring_ = threads * group_ + 1;
        maps_of_.assign(static_cast<size_t>(ring_ * maps * map_size_), 0.0F);
        change_.assign(static_cast<size_t>(maps * map_size_), 0.0F);
        result_.assign(static_cast<size_t>(polynomials.count * maps * map_size_), 0.0F);
        weight_.resize(static_cast<size_t>((polynomials.degree + 1) * polynomials.count));
        for (int64_t k = 0; k <= polynomials.degree; ++k) {
            for (int64_t e = 0; e < polynomials.count; ++e) {
                const double c = polynomials.coefficients[e * (polynomials.degree + 1) + k];
                weight_[k * polynomials.count + e] = static_cast<float>(c);
            }
        }
        list_neighbours();
        done_ = std::vector<std::atomic<int64_t>>(static_cast<size_t>(polynomials.degree + 1));
        done_[0] = a.height;
    }

    void run(const float* x, float* out, int64_t out_size) {
        for (int64_t m = 0; m < maps_; ++m) start(x + m * a_.height * a_.width, m);
        const int64_t groups = (polynomials_.degree + group_ - 1) / group_;
        parallel_for(groups, static_cast<int>(threads_), [this] {
            return [this, flush = FlushDenormals()](int64_t group) {
                try {
                    steps(group * group_ + 1);
                } catch (...) {  // Ctrl-C; the other threads must not wait for this one
                    stop_ = true;
                    throw;
                }
            };
        });
        if (stop_) return;
        for (int64_t e = 0; e < polynomials_.count; ++e) {
            for (int64_t m = 0; m < maps_; ++m) finish(e, m, out + e * out_size + m * a_.height * a_.width);
        }
    }

private:
    static constexpr int64_t kCache = 2560 * 1024;

    struct Range {
        double low, high;
        int exponent;  // the map was divided by 2^exponent, so that no step leaves float's range
    };

    void list_neighbours() {
        const int64_t planes = static_cast<int64_t>(a_.offsets.size());
        neighbours_.reserve(static_cast<size_t>(2 * planes));  // lines point into it
        for (int64_t dy = -a_.reach; dy <= a_.reach; ++dy) {
            Line line{dy * a_.stride, neighbours_.data() + neighbours_.size(), nullptr, nullptr};
            for (int64_t dx = -a_.reach; dx <= a_.reach; ++dx) {
                if (dx == 0) line.right = neighbours_.data() + neighbours_.size();
                for (int64_t p = 0; p < planes; ++p) {
                    const Offset o = a_.offsets[p];
                    if (o.dy == dy && o.dx == dx) neighbours_.push_back({p * a_.stride, dx});
                    // The affinity to a neighbour behind lies with that neighbour.
                    if (o.dy == -dy && o.dx == -dx) neighbours_.push_back({p * a_.stride + dy * a_.row_size + dx, dx});
                }
            }
            line.end = neighbours_.data() + neighbours_.size();
            lines_.push_back(line);
        }
    }

    int64_t pixel(int64_t y) const { return (a_.reach + y) * a_.stride + a_.left; }
    float* map(int64_t step) { return maps_of_.data() + step % ring_ * maps_ * map_size_; }

    // t_0 = x (1 - edge)
    void start(const float* x, int64_t m) {
        Range range{INFINITY, -INFINITY, 0};
        for (int64_t i = 0; i < a_.height * a_.width; ++i) {
            const double value = static_cast<double>(x[i]) * a_.open[i];
            range.low = std::min(range.low, value);
            range.high = std::max(range.high, value);
        }
        std::frexp(std::max(std::abs(range.low), std::abs(range.high)), &range.exponent);
        const double scale = std::ldexp(1.0, -range.exponent);
        for (int64_t y = 0; y < a_.height; ++y) {
            float* row = map(0) + m * map_size_ + pixel(y);
            for (int64_t i = y * a_.width, c = 0; c < a_.width; ++i, ++c) {
                row[c] = static_cast<float>(static_cast<double>(x[i]) * a_.open[i] * scale);
                for (int64_t e = 0; e < polynomials_.count; ++e) {
                    result_[(e * maps_ + m) * map_size_ + pixel(y) + c] = weight_[e] * row[c];
                }
            }
        }
        ranges_.push_back(range);
    }

    void finish(int64_t e, int64_t m, float* out) const {
        const Range& range = ranges_[m];
        const double scale = std::ldexp(1.0, range.exponent);
        for (int64_t y = 0; y < a_.height; ++y) {
            const float* row = result_.data() + (e * maps_ + m) * map_size_ + pixel(y);
            for (int64_t i = y * a_.width, c = 0; c < a_.width; ++i, ++c) {
                const double value = static_cast<double>(row[c]) * scale;
                out[i] = static_cast<float>(std::clamp(value, range.low, range.high));
            }
        }
    }

    void step_row(int64_t step, int64_t y) {
        const int64_t at = pixel(y);
        Row row;
        row.lines = lines_.data();
        row.line_count = static_cast<int64_t>(lines_.size());
        row.reach = a_.reach;
        row.columns = a_.columns;
        row.affinities = a_.row(y);
        row.scale = row.affinities + static_cast<int64_t>(a_.offsets.size()) * a_.stride;
        row.maps = maps_;
        row.map_size = map_size_;
        row.now = map(step - 1) + at;
        row.next = map(step) + at;
        row.change = change_.data() + at;
        row.fresh = !polynomials_.chebyshev || step == 1;
        row.results = polynomials_.count;
        row.result_size = maps_ * map_size_;
        row.result = result_.data() + at;
        row.weight = weight_.data() + step * polynomials_.count;
        row_(row);
    }

    // A step needs of the step before only the rows up to `reach` below. So a thread walks down the image with a group
    // of steps, each `reach` rows behind the one before it, and the next thread follows with the next group: the
    // coefficients come from memory once for threads · group steps, and no step waits for a whole image. Groups are
    // taken and finished in order, so that no more than `threads` of them are under way, which is what the ring holds.
    void steps(int64_t first) {
        const int64_t reach = a_.reach;
        const int64_t count = std::min(group_, polynomials_.degree - first + 1);
        for (int64_t tick = 0; tick < a_.height + (count - 1) * reach; ++tick) {
            check_interrupt();
            if (stop_.load(std::memory_order_relaxed)) return;
            if (tick < a_.height) wait(first - 1, std::min(tick + reach + 1, a_.height));
            for (int64_t s = 0; s < count; ++s) {
                const int64_t y = tick - s * reach;
                if (y >= 0 && y < a_.height) step_row(first + s, y);
            }
            const int64_t last = tick - (count - 1) * reach;
            if (last >= 0) done_[first + count - 1].store(last + 1, std::memory_order_release);
        }
    }

    void wait(int64_t step, int64_t rows) const {
        for (int64_t tries = 0; done_[step].load(std::memory_order_acquire) < rows && !stop_; ++tries) {
            if (tries > 64) std::this_thread::yield();
        }
    }

    const Affinities& a_;
    const Polynomials& polynomials_;
    RowFunction row_;
    int64_t maps_, threads_, map_size_, group_, ring_;
    std::atomic<bool>& stop_;
    Numbers maps_of_;  // the latest t_k, in a ring long enough for every step under way
    Numbers change_, result_;
    std::vector<float> weight_;  // (degree + 1, count)
    std::vector<Neighbour> neighbours_;
    std::vector<Line> lines_;
    std::vector<Range> ranges_;
    std::vector<std::atomic<int64_t>> done_;  // rows done of the last step of each group
};

}  // namespace

void walk(const Affinities& affinities, const float* x, int64_t maps, const Polynomials& polynomials, int64_t threads,
          const std::string& instructions, std::atomic<bool>& stop, float* out) {
    constexpr int64_t kMaps = 4;
    const RowFunction row = row_function(instructions.empty() ? best_instruction_set() : instructions);
    const int64_t blocks = (maps + kMaps - 1) / kMaps;
    const int64_t map_size = affinities.height * affinities.width;
    const auto run = [&](int64_t block, int64_t with_threads) {
        const int64_t first = block * kMaps;
        Block(affinities, polynomials, row, std::min(kMaps, maps - first), with_threads, stop)
            .run(x + first * map_size, out + first * map_size, maps * map_size);
    };
    if (blocks >= threads) {
        parallel_for(blocks, static_cast<int>(threads), [&] { return [&](int64_t block) { run(block, 1); }; });
    } else {
        // More than 8 threads on the steps of one image wait for each other.
        for (int64_t block = 0; block < blocks; ++block) run(block, std::min<int64_t>(threads, 8));
    }
}

}  // namespace amn::random_walk
