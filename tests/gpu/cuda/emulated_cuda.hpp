// Runs CUDA kernels on the CPU, each thread a coroutine: slow, but every index, barrier and exchange between lanes is the
// kernel's own. Blocks run one after the other, or together if they must. x86-64 only.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#define EMULATED
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 { unsigned x, y, z; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) Pack { uint32_t x, y, z, w; };
struct alignas(8) Octet { uint32_t x, y; };
struct alignas(8) uint2 { uint32_t x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static dim3 threadIdx, blockIdx, gridDim;
using std::max;
using std::min;

namespace emulation {
constexpr int STACK = 1 << 17, MOST = 1 << 11, NAMED_BARRIERS = 16;
struct Barrier {
    int arrived = 0;
    uint64_t passed = 0;
};
struct Fiber {
    void* stack_pointer;
    const uint64_t* awaited;  // null: may run
    uint64_t seen;
    bool ended;
};
struct Meeting {  // of the lanes of a mask; who writes for the next one disturbs nobody who still reads
    Barrier barrier;
    uint32_t mask;
    uint64_t posted[2][32][8];
};
struct Warp {
    std::deque<Meeting> meetings;  // which stay where they are as others come
};
static int current, alive;
static int current_block();
static Fiber fibers[MOST];
static Warp warps[MOST / 32];
struct Block {
    Barrier barriers[NAMED_BARRIERS];  // the first is that of all threads
    int alive;
    std::vector<char> memory;
};
static Block blocks[MOST / 32];
static int threads_of_block;
static int current_block() { return current / threads_of_block; }
static Block& block() { return blocks[current_block()]; }
static void* scheduler;
static char* stacks;  // one after the other, of all threads that may be at once
static void (*entry)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
static uint64_t parameters[16];

extern "C" void switch_context(void** save, void* load);
asm(R"(
.text
switch_context:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");

inline void wait(Barrier& barrier, int expected) {
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        ++barrier.passed;
        return;
    }
    fibers[current].awaited = &barrier.passed;
    fibers[current].seen = barrier.passed;
    const int own = current;
    switch_context(&fibers[own].stack_pointer, scheduler);
}
inline Meeting& meeting(uint32_t mask) {
    auto& meetings = warps[current / 32].meetings;
    for (Meeting& found : meetings)
        if (found.mask == mask) return found;
    meetings.push_back({{}, mask, {}});
    return meetings.back();
}
// Posts numbers, waits for the lanes of the mask, and reads theirs.
template <class Read> auto exchange(uint32_t mask, const uint64_t* own, int count, Read read) {
    Meeting& with = meeting(mask);
    auto& posted = with.posted[with.barrier.passed % 2];
    for (int i = 0; i < count; ++i) posted[current % 32][i] = own[i];
    wait(with.barrier, __builtin_popcount(mask));
    return read(posted);
}
static void run() {
    const uint64_t* p = parameters;
    entry(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13], p[14], p[15]);
    fibers[current].ended = true;
    --alive;
    Barrier& all = block().barriers[0];
    if (--block().alive == all.arrived && all.arrived) {
        all.arrived = 0;
        ++all.passed;
    }
    const int own = current;
    switch_context(&fibers[own].stack_pointer, scheduler);
}
// Runs `count` blocks together; they are numbered from `first` on.
static void run_blocks(int count, int threads, dim3 first, int shared) {
    const int all = count * threads;
    if (all > MOST) std::abort();
    threads_of_block = threads;
    for (int i = 0; i < all; ++i) {
        char* top = stacks + (size_t)(i + 1) * STACK;
        top = (char*)((uintptr_t)top & ~(uintptr_t)15) - 8;
        void** sp = (void**)top;
        *--sp = (void*)run;
        for (int j = 0; j < 6; ++j) *--sp = nullptr;
        fibers[i] = {sp, nullptr, 0, false};
    }
    for (int i = 0; i < (all + 31) / 32; ++i) warps[i].meetings.clear();
    for (int i = 0; i < count; ++i) {
        for (Barrier& barrier : blocks[i].barriers) barrier = {};
        blocks[i].alive = threads;
        blocks[i].memory.assign(shared + 1024, 0x5a);
    }
    alive = all;
    while (alive) {
        bool moved = false;
        for (current = 0; current < all; ++current) {
            Fiber& fiber = fibers[current];
            if (fiber.ended || (fiber.awaited && *fiber.awaited == fiber.seen)) continue;
            fiber.awaited = nullptr;
            threadIdx = {(unsigned)(current % threads), 0, 0};
            blockIdx = {first.x + current / threads, first.y, first.z};
            moved = true;
            switch_context(&scheduler, fiber.stack_pointer);
        }
        if (!moved) {
            std::fprintf(stderr, "deadlock: threads wait for one another\n");
            std::abort();
        }
    }
}
// Lets all others go on; for who looks again and again.
static void give_way() {
    const int own = current;
    switch_context(&fibers[own].stack_pointer, scheduler);
}
template <class T> uint64_t bits(T value) {
    uint64_t out = 0;
    std::memcpy(&out, &value, sizeof value);
    return out;
}
template <class T> T value_of(uint64_t bits) {
    T out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
}  // namespace emulation

extern "C" size_t stack_bytes() { return (size_t)emulation::MOST * emulation::STACK; }
extern "C" void emulate(
    char* stacks, void* kernel, int x, int y, int z, int threads, const uint64_t* parameters, int count, int shared, bool together) {
    using namespace emulation;
    emulation::stacks = stacks;
    entry = (decltype(entry))kernel;
    for (int i = 0; i < count; ++i) emulation::parameters[i] = parameters[i];
    gridDim = {(unsigned)x, (unsigned)y, (unsigned)z};
    if (together) return run_blocks(x, threads, {0, 0, 0}, shared);
    for (unsigned k = 0; k < gridDim.z; ++k)
        for (unsigned j = 0; j < gridDim.y; ++j)
            for (unsigned i = 0; i < gridDim.x; ++i) run_blocks(1, threads, {i, j, k}, shared);
}

inline void __syncthreads() { emulation::wait(emulation::block().barriers[0], emulation::block().alive); }
inline void __syncwarp() {
    const uint64_t nothing = 0;
    emulation::exchange(0xffffffffu, &nothing, 1, [](auto&) { return 0; });
}
inline void __threadfence() {}
template <class T> T __shfl_sync(uint32_t mask, T value, int lane) {
    const uint64_t own = emulation::bits(value);
    return emulation::exchange(mask, &own, 1, [&](auto& posted) { return emulation::value_of<T>(posted[lane][0]); });
}
template <class T> T __shfl_xor_sync(uint32_t mask, T value, int step) { return __shfl_sync(mask, value, (threadIdx.x & 31) ^ step); }
template <class T> T __shfl_up_sync(uint32_t mask, T value, int step) {
    const int lane = threadIdx.x & 31;
    return __shfl_sync(mask, value, lane >= step ? lane - step : lane);
}
template <class F> uint32_t over_lanes(uint32_t mask, uint64_t own, F each) {
    return emulation::exchange(mask, &own, 1, [&](auto& posted) {
        uint32_t result = 0;
        for (int lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) result = each(result, lane, posted[lane][0]);
        return result;
    });
}
inline uint32_t __ballot_sync(uint32_t mask, bool on) {
    return over_lanes(mask, on, [](uint32_t r, int lane, uint64_t v) { return v ? r | 1u << lane : r; });
}
inline uint32_t __match_any_sync(uint32_t mask, uint32_t value) {
    return over_lanes(mask, value, [&](uint32_t r, int lane, uint64_t v) { return v == value ? r | 1u << lane : r; });
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value) {
    return over_lanes(mask, value, [](uint32_t r, int, uint64_t v) { return r + (uint32_t)v; });
}
inline int __ffs(uint32_t mask) { return __builtin_ffs((int)mask); }
template <class T> T atomicMin(T* at, T value) {
    T before = *at;
    *at = min(before, value);
    return before;
}
template <class T> T atomicAdd(T* at, T value) {
    T before = *at;
    *at += value;
    return before;
}
template <class T> T atomicOr(T* at, T value) {
    T before = *at;
    *at |= value;
    return before;
}
inline uint32_t add_acquire_release(uint32_t* at, uint32_t count) { return atomicAdd(at, count); }
template <class T> T __ldcg(const T* at) { return *at; }
template <class T> void __stcg(T* at, T value) { *at = value; }
inline float __uint_as_float(uint32_t v) { return emulation::value_of<float>(v); }
inline uint32_t __float_as_uint(float v) { return (uint32_t)emulation::bits(v); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __expf(float v) { return std::exp(v); }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline uint32_t __float2uint_rz(float v) { return (uint32_t)v; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }

inline const uint16_t* other_half(const uint16_t* address);
inline Pack load_tokens(const uint16_t* address) {
    Pack v;
    if ((uintptr_t)address % 8) std::abort();
    std::memcpy(&v.x, address, 8);
    std::memcpy(&v.z, other_half(address), 8);
    return v;
}
inline Pack load_weights(const uint16_t* address) { return load_tokens(address); }
inline Octet load_weights(const unsigned char* address) {
    Octet v;
    if ((uintptr_t)address % 8) std::abort();
    std::memcpy(&v, address, 8);
    return v;
}
inline Pack load_pack(const uint16_t* address) {
    Pack v;
    if ((uintptr_t)address % 16) std::abort();
    std::memcpy(&v, address, 16);
    return v;
}
inline void load_pack_instead(Pack& v, bool there, const uint16_t* address) { if (there) v = load_pack(address); }
inline Pack load_pack_if(bool there, const uint16_t* address) { return there ? load_pack(address) : Pack{}; }
inline void multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    const uint64_t own[6] = {a0, a1, a2, a3, b0, b1};
    const int lane = threadIdx.x & 31;
    emulation::exchange(0xffffffffu, own, 6, [&](auto& posted) {
        auto half = [](uint64_t pair, int k) { return (double)__uint_as_float((uint32_t)(k & 1 ? pair >> 16 : pair) << 16); };
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
            double sum = d[i];
            for (int k = 0; k < 16; ++k)
                sum += half(posted[row % 8 * 4 + k % 8 / 2][(row >= 8) + 2 * (k >= 8)], k) *
                       half(posted[column * 4 + k % 8 / 2][4 + (k >= 8)], k);
            d[i] = (float)sum;
        }
        return 0;
    });
}
inline uint32_t pair(float first, float second) {
    auto rounded = [](float value) {
        const uint32_t bits = __float_as_uint(value);
        return value != value ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    };
    return rounded(first) | rounded(second) << 16;
}
inline uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
    auto half = [](uint32_t pair, int i) { return __uint_as_float(i ? pair & 0xffff0000u : pair << 16); };
    return pair(std::fmaf(half(a, 0), half(b, 0), half(c, 0)), std::fmaf(half(a, 1), half(b, 1), half(c, 1)));
}
inline float exp2_fast(float value) { return std::exp2(value); }
inline uint32_t transposed(uint32_t value) {
    const uint64_t own = value;
    const int lane = threadIdx.x & 31, group = lane / 4, quad = lane % 4;
    return emulation::exchange(0xffffffffu, &own, 1, [&](auto& posted) {
        auto of = [&](int row) { return (uint32_t)posted[row * 4 + group / 2][0] >> group % 2 * 16 & 0xffffu; };
        return of(quad * 2) | of(quad * 2 + 1) << 16;
    });
}
inline Pack load_transposed(const uint16_t* row) {
    if ((uintptr_t)row % 16) std::abort();
    const uint64_t own = (uint64_t)row;
    const int lane = threadIdx.x & 31, group = lane / 4, quad = lane % 4;
    return emulation::exchange(0xffffffffu, &own, 1, [&](auto& posted) {
        auto of = [&](int i) {
            auto at = [&](int j) { return (uint32_t)((const uint16_t*)posted[i * 8 + j][0])[group]; };
            return at(quad * 2) | at(quad * 2 + 1) << 16;
        };
        return Pack{of(0), of(1), of(2), of(3)};
    });
}
inline void copy_early(uint16_t* to, const uint16_t* from, bool there) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) std::abort();
    if (there)
        std::memcpy(to, from, 16);
    else
        std::memset(to, 0, 16);
}
inline void wait_for_copies() {}
inline void prefetch(const uint16_t* from, int numbers) {
    if ((uintptr_t)from % 16 || numbers <= 0 || numbers % 8) std::abort();
}
inline void* block_memory();
#define SHARED_MEMORY(name) Pack* const name = (Pack*)block_memory()
inline void let_next_start() {}
inline void wait_for_previous() {}

// What compute capability 9.0 has besides: a copy is there at once, and so is a product.
struct Signal {
    int arrivals, missing, bytes;
    uint64_t given;
};
inline void prepare(Signal* signal, int arrivals) { *signal = {arrivals, arrivals, 0, 0}; }
inline void show_signals() {}
inline void happened(Signal* signal, int arrivals, int bytes) {
    signal->missing -= arrivals;
    signal->bytes += bytes;
    if (signal->missing < 0) std::abort();
    if (signal->missing || signal->bytes) return;
    signal->missing = signal->arrivals;
    ++signal->given;
}
inline void arrive(Signal* signal) { happened(signal, 1, 0); }
inline void arrive_expecting(Signal* signal, int bytes) { happened(signal, 1, bytes); }
inline bool is_given(const Signal* signal, uint32_t parity) {
    if (signal->given % 2 != parity) return true;
    emulation::give_way();
    return false;
}
inline void copy_to_shared(void* to, const void* from, int bytes, Signal* signal) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || bytes % 16) std::abort();
    std::memcpy(to, from, bytes);
    happened(signal, 0, -bytes);
}
inline uint64_t read_once() { return 0; }
inline void copy_to_shared(void* to, const void* from, int bytes, Signal* signal, uint64_t) {
    copy_to_shared(to, from, bytes, signal);
}
template <int> void fewer_registers() {}
template <int> void more_registers() {}
struct Operand {
    const unsigned char* at;
    int unit;
    void move(int bytes) { at += bytes; }
    float number(int row, int column) const {
        const auto offset = (uintptr_t)at % 512;
        if (offset != 0 && offset != 32) std::abort();
        column += offset / 2;
        const unsigned char* chunk = at - offset + row / 8 * unit + row % 8 * 64 + ((column / 8) ^ (row / 2 % 4)) * 16;
        return __uint_as_float((uint32_t)((const uint16_t*)chunk)[column % 8] << 16);
    }
};
inline void begin_multiplying() {}
inline void end_multiplying() {}
template <int> void wait_for_products() {}
// The 16 numbers are added up in the order in which `multiply` is given them.
template <size_t N> void multiply_wide(float (&d)[N], const Operand& a, const Operand& b) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 % 4;
    for (int i = 0; i < (int)N; ++i) {
        const int row = warp * 16 + lane / 4 + (i % 4 >= 2 ? 8 : 0), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        double sum = d[i];
        for (int k = 0; k < 16; ++k) {
            const int at = k % 8 / 2 * 4 + k / 8 * 2 + k % 2;
            sum += (double)a.number(row, at) * (double)b.number(column, at);
        }
        d[i] = (float)sum;
    }
}

// What the persistent kernel has besides.
constexpr uint32_t PATIENCE = 100000;
inline Pack load_shared(const uint16_t* address) { return load_tokens(address); }
inline Octet load_shared(const unsigned char* address) { return load_weights(address); }
inline uint32_t load_acquire(const uint32_t* at) {
    emulation::give_way();
    return *at;
}
inline uint32_t draw(uint32_t* from) { return atomicAdd(from, 1u); }
inline void add_release(uint32_t* at, uint32_t count) { *at += count; }
inline unsigned long long device_clock() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
template <int ID, int COUNT> void meet_at() { emulation::wait(emulation::block().barriers[ID], COUNT); }
inline void stop_the_device() {
    std::fprintf(stderr, "a wait does not end\n");
    std::abort();
}
inline void* block_memory() {
    return (void*)(((uintptr_t)emulation::block().memory.data() + 1023) & ~(uintptr_t)1023);
}
