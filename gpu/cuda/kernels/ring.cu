// What a block of the kernel of a whole step has in shared memory, and how its warps wait for one another.
#ifndef EMULATED
constexpr u32 PATIENCE = 4000000;  // looks before a wait is taken for endless: seconds

// Never after a place is given away: hence the clobber.
__device__ __forceinline__ Pack load_shared(const bf16* address) {
    Pack v;
    const u32 at = in_shared(address);
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.z), "=r"(v.w) : "r"(at ^ 32) : "memory");
    return v;
}
__device__ __forceinline__ Octet load_shared(const unsigned char* address) {
    Octet v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(in_shared(address)) : "memory");
    return v;
}
__device__ __forceinline__ u32 load_acquire(const u32* at) {
    u32 v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
// Nobody waits for the number before it is used, as with atomicAdd, which asks for those of the whole warp at once.
__device__ __forceinline__ u32 draw(u32* from) {
    u32 v;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(v) : "l"(from) : "memory");
    return v;
}
__device__ __forceinline__ void add_release(u32* at, u32 count) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(count) : "memory");
}
template <int ID, int COUNT> __device__ __forceinline__ void meet_at() {
    __syncwarp();
    asm volatile("barrier.sync %0, %1;" ::"r"(ID), "r"(COUNT) : "memory");
}
__device__ __forceinline__ u64 device_clock() {  // nanoseconds
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now) :: "memory");
    return now;
}
__device__ __forceinline__ void stop_the_device() {
    __threadfence_system();
    __trap();
}
#endif

constexpr int BYTES = sizeof(Weight);
constexpr int EIGHTS = QUANTIZED ? 2 : 1;   // a unit has 8 rows of numbers, or 16 of codes: then rows fill the larger operand
constexpr int SLOT = WARPS * 4 * TILE * BYTES * EIGHTS;  // bytes of a place in the ring: a hand of each warp of each eight
constexpr int SCALES = QUANTIZED ? 32 * EIGHTS : 0;      // bytes behind it: the scales of the unit's rows
constexpr int PAIRS = 4 * EIGHTS;           // of columns
constexpr int URGENT = 3, EARLY = 2;  // copies in flight, for this phase and later ones: deep queues slow all else
constexpr int GIVEN = 7;          // eighths of the units of a phase that are not drawn
constexpr int FINISHERS = 3;      // warps
constexpr int SUMS = 4;           // units whose sums may wait for a finisher
constexpr int CONSUMERS = WARPS * 32;
constexpr int THREADS = CONSUMERS + 32 + FINISHERS * 32;
static_assert(CONSUMERS == ATTENDING, "consumers attend to a share together");
constexpr int COUNTER = 32;       // counters lie 128 bytes apart
constexpr int LAST = 4 * LAYERS;  // the phase of the head; those of a layer are 4 layer + kind
constexpr int NO_PHASE = LAST + 1;

// The one parameter: where all memory lies. What a layer has lies `layer` bytes behind what the layer before has.
struct Memory {
    const Weight *table, *matrix[5];
    const float *bias[4], *inner_norm, *input_norm, *final_norm;
    i64 layer;
    float *x, *squares, *qkv, *logits, *partials;
    bf16 *input, *attended, *inner, *cache;
    const float* rope;
    const int *drawn, *rows;
    int* positions;
    u32 *arrivals, *counters, *last_words;
    u64* clocks;
};
// The clocks, if the kernel is made to look at them: when the step began, each phase began in the first block, it ended.
enum { BEGUN, FIRST_PHASE };
constexpr int PHASES = 5;  // of a layer, attention included
// The counters: of finished units of each phase; of each layer's finished shares of attention; and these.
enum { TICKETS = NO_PHASE + LAYERS, EMBEDDED, ENDED, COUNTERS };

template <int KIND> struct Units {
    using M = Matrix<KIND>;
    static constexpr int count = ceil_div(M::n, 8 * EIGHTS);
    static constexpr int chunks = M::tiles / (WARPS * M::hand);   // places in the ring of a unit
    static constexpr int chunk = WARPS * M::hand * TILE * BYTES;  // bytes of each eight
    static_assert(M::tiles % (WARPS * M::hand) == 0, "every warp has the same share");
};

struct Header { int unit, next_phase; };  // where a unit begins: which it is; where it ends: the phase of the block's next

template <int TOKENS> struct Sums {  // of a unit, on the way from the consumers to a finisher
    float2 partial[WARPS][TOKENS][PAIRS], x[TOKENS][PAIRS], next_norm[PAIRS], row_scale[QUANTIZED ? PAIRS : 1];
    int phase, unit;
    int all;  // units that the block has had of the phase, if this is its last one, else 0
};

template <int TOKENS> struct Workplaces {  // of all but the ring
    Sums<TOKENS> sums[SUMS];
    Memory memory;
    Signal summed[SUMS], taken[SUMS], begun;
    float scale[2][TOKENS];
    int rows[TOKENS], positions[TOKENS];
    int phase;       // in which the consumers are
    int first_phase;
};
struct alignas(128) Place { unsigned char bytes[SLOT + SCALES]; };
constexpr int OF_ATTENTION = ceil_div(sizeof(Attending), sizeof(Place));  // places
template <int TOKENS> struct Workspace : Workplaces<TOKENS> {  // the ring has all the memory that is left
    static constexpr int least = sizeof(Workplaces<TOKENS>) + alignof(Place);
    static constexpr int stages = (SHARED_OF_BLOCK - least) / (int)(sizeof(Place) + sizeof(Header) + 2 * sizeof(Signal));
    Signal full[stages], empty[stages];
    Place ring[stages];
    Header headers[stages];

    __device__ __forceinline__ int shares() const { return count_shares(this->rows, this->positions, TOKENS); }
    // Blocks that attend do so in the last places of the ring.
    __device__ __forceinline__ int places() const { return (int)blockIdx.x < shares() ? stages - OF_ATTENTION : stages; }
    __device__ __forceinline__ Attending& attending() { return *(Attending*)&ring[stages - OF_ATTENTION]; }
};

// --- waiting ----------------------------------------------------------------------------------------------------------

// A wait that does not end is a mistake, or blocks that are not on the device together: say so and stop.
__device__ __noinline__ void give_up(u32* last_words, u32 where) {
    last_words[0] = where;
    last_words[1] = blockIdx.x;
    last_words[2] = threadIdx.x;
    stop_the_device();
}
__device__ __forceinline__ void wait(const Signal& signal, u32 parity, u32* last_words, u32 where) {
    for (u32 looks = 0; !is_given(&signal, parity);)
        if (++looks == PATIENCE) give_up(last_words, where);
}
__device__ __forceinline__ void wait(const u32* counter, u32 count, u32* last_words, u32 where) {
    for (u32 looks = 0; load_acquire(counter) < count;)
        if (++looks == PATIENCE) give_up(last_words, where);
}
__device__ __forceinline__ u32* counter(const Memory& memory, int which) { return memory.counters + which * COUNTER; }
__device__ __forceinline__ void look_at_clock(const Memory& memory, int moment) {
#ifdef CLOCKED
    atomicMin(memory.clocks + moment, device_clock());
#endif
}
