// A decode step of up to 8 tokens in one kernel, for compute capability 9.0: one block a multiprocessor, all at once.
//
// Weights are read in units of 8 rows, in the order in which they are needed: a layer's QKV, OUTPUT, GATE_UP and DOWN,
// then the next layer's, at last the HEAD. Of each phase most units are given to the blocks in turns; the rest, which
// evens out that some read faster than others, is drawn from one global counter. In each block one thread, the producer,
// has its units copied into a ring in shared memory. It waits for nothing that is computed, so that it runs ahead into
// later phases until the ring is full: memory is read on and on.
//
// Eight warps, the consumers, multiply: each has its hands of every unit, as in products.cu. Their sums go to three more
// warps, which add them up in the order of the warps and finish them, so that consumers never wait for one another
// between two units. A phase begins when all units of the one before are finished: each phase has a counter of them, to
// which a block adds its own once, for it takes long until what was written can be seen by others.
// Attention is no phase of weights: the blocks share the heads and splits of the rows, see attention.cu.
//
// Which block computes what is chance; no bit depends on it, and every bit is that of the kernels one by one.
#ifdef TOKENS_OF_STEP
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
constexpr int SLOT = WARPS * 4 * TILE * 2;  // bytes of a place in the ring: a hand of each warp, or two of codes
constexpr int SCALES = QUANTIZED ? 32 : 0;  // bytes behind it: the scales of the unit's rows
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
    static constexpr int count = ceil_div(M::n, 8);
    static constexpr int hands = M::tiles / (WARPS * M::hand), together = QUANTIZED && hands % 2 == 0 ? 2 : 1;
    static constexpr int chunks = hands / together;                          // places in the ring of a unit
    static constexpr int chunk = WARPS * M::hand * together * TILE * BYTES;  // bytes
    static_assert(M::tiles % (WARPS * M::hand) == 0, "every warp has the same share");
};

struct Header { int unit, next_phase; };  // where a unit begins: which it is; where it ends: the phase of the block's next

template <int TOKENS> struct Sums {  // of a unit, on the way from the consumers to a finisher
    float2 partial[WARPS][TOKENS][4], x[TOKENS][4], next_norm[4], row_scale[QUANTIZED ? 4 : 1];
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

// --- the producer -----------------------------------------------------------------------------------------------------

struct Work {  // of the blocks in a phase
    const char* matrix;
    u32 unit, chunk;   // bytes
    int chunks;
    u32 scales;        // bytes from the matrix on
    int given, drawn;  // units: given to each block, drawn by all together
};

// The units of a block: in each phase those that are given to it, then those it draws.
struct Schedule {
    const Memory& memory;
    u32* const tickets;
    int phase = 0, unit = 0, left = 0;  // which is next, and how many more are given
    Work work = {};
    u32 number, passed = 0;  // of all units that are drawn: this block's next one, and how many earlier phases had

    __device__ __forceinline__ Schedule(const Memory& memory)
        : memory(memory), tickets(counter(memory, TICKETS)), number(draw(tickets)) { begin_phase(); }
    // Goes on to the next unit, and to the next phase in which there is one.
    __device__ __forceinline__ void step() {
        if (left) --left, unit += gridDim.x;
        else if (!take_drawn()) passed += work.drawn, ++phase, begin_phase();
    }
    // A number is drawn when the one before is needed, and needed when it must have come. Drawn earlier, it might be one too
    // many for this block when all wait for the last.
    __device__ __forceinline__ bool take_drawn() {
        if (number - passed >= (u32)work.drawn) return false;
        unit = work.given * (int)gridDim.x + (int)(number - passed);
        number = draw(tickets);
        return true;
    }
    __device__ __forceinline__ void begin_phase() {
        for (; phase < NO_PHASE; passed += work.drawn, ++phase) {
            const int layer = phase / 4;
            if (phase == LAST) work = work_of<HEAD>(0);
            else switch (phase % 4) {
                case QKV: work = work_of<QKV>(layer); break;
                case OUTPUT: work = work_of<OUTPUT>(layer); break;
                case GATE_UP: work = work_of<GATE_UP>(layer); break;
                default: work = work_of<DOWN>(layer);
            }
            unit = blockIdx.x, left = work.given - 1;
            if (work.given || take_drawn()) break;
        }
        if (!work.given) left = 0;
    }
    template <int KIND> __device__ __forceinline__ Work work_of(int layer) const {
        using U = Units<KIND>;
        using M = Matrix<KIND>;
        const int given = U::count * GIVEN / 8 / (int)gridDim.x;
        return {(const char*)memory.matrix[KIND] + layer * memory.layer, M::tiles * TILE * BYTES, U::chunk, U::chunks,
                (u32)((const char*)scales_of((const Weight*)0, M::n, M::tiles) - (const char*)0), given,
                U::count - given * (int)gridDim.x};
    }
};

template <int TOKENS> __device__ __forceinline__ void produce(Workspace<TOKENS>& block) {
    u32* words = block.memory.last_words;
    const u64 policy = read_once();
    Schedule schedule(block.memory);
    block.first_phase = schedule.phase;
    arrive(&block.begun);
    const int places = block.places();
    int stage = 0, landed = 0, flying = 0;
    u32 parity = 0, landed_parity = 0;
    while (schedule.phase != NO_PHASE) {
        const Work work = schedule.work;
        const int unit = schedule.unit, most = schedule.phase == *(volatile int*)&block.phase ? URGENT : EARLY;
        const char* from = work.matrix + (i64)unit * work.unit;
        for (int chunk = 0; chunk < work.chunks; ++chunk, from += work.chunk) {
            for (; flying >= most; --flying) {
                wait(block.full[landed], landed_parity, words, 1);
                if (++landed == places) landed = 0, landed_parity ^= 1;
            }
            ++flying;
            wait(block.empty[stage], parity ^ 1, words, 2);
            const bool begins = chunk == 0, ends = chunk == work.chunks - 1;
            copy_to_shared(block.ring[stage].bytes, from, work.chunk, &block.full[stage], policy);
            if (QUANTIZED && begins)
                copy_to_shared(
                    block.ring[stage].bytes + SLOT, work.matrix + work.scales + unit * SCALES, SCALES, &block.full[stage],
                    policy);
            if (begins) block.headers[stage].unit = unit;
            if (ends) {
                schedule.step();
                block.headers[stage].next_phase = schedule.phase;
            }
            arrive_expecting(&block.full[stage], work.chunk + (begins ? SCALES : 0));
            if (++stage == places) stage = 0, parity ^= 1;
        }
    }
    add_release(counter(block.memory, ENDED), 1);
}

// --- consumers --------------------------------------------------------------------------------------------------------

struct Consumer {  // one thread's; all but the position in the ring is the same throughout
    int lane, warp, group, quad, places;
    int stage, unit, first_unit, next_phase;  // units are counted; the first one of the phase
    u32 parity;
};
__device__ __forceinline__ void meet() { meet_at<1, CONSUMERS>(); }

// Waits until the phase before has left all that this one reads.
template <int TOKENS>
__device__ __forceinline__ void enter(Workspace<TOKENS>& block, const u32* awaited, u32 count, int phase, int moment) {
    if (threadIdx.x == 0) {
        wait(awaited, count, block.memory.last_words, 0x100 + phase);
        block.phase = phase;
        look_at_clock(block.memory, moment);
    }
    meet();
}

template <int KIND, int TOKENS>
__device__ __forceinline__ Pack load_input(const bf16* input, const Consumer& own, int i) {
    if (own.group >= TOKENS) return {0, 0, 0, 0};
    return load_tokens(input + Matrix<KIND>::place(own.warp, i) * TILE);
}

// A word that is known when all of it has been read.
__device__ __forceinline__ u32 witness(const Pack& numbers) { return numbers.x ^ numbers.z; }
__device__ __forceinline__ u32 witness(const Octet& codes) { return codes.x; }

struct Unit {  // while it is multiplied: what a finisher is given of it besides the sums
    int number;
    float2 row_scale, x, next_norm;
};

// `last`: it is the block's last one of the phase.
template <int TOKENS>
__device__ __forceinline__ void hand_over(
    Workspace<TOKENS>& block, Consumer& own, int phase, const Unit& unit, bool last, float2 sum) {
    const int slot = own.unit % SUMS;
    Sums<TOKENS>& to = block.sums[slot];
    wait(block.taken[slot], (own.unit / SUMS & 1) ^ 1, block.memory.last_words, 5);
    __syncwarp();
    if (own.group < TOKENS) to.partial[own.warp][own.group][own.quad] = sum;
    if (own.warp == 0) {
        if (own.group < TOKENS) to.x[own.group][own.quad] = unit.x;
        if (own.group == 0) to.next_norm[own.quad] = unit.next_norm;
        if (QUANTIZED && own.group == 0) to.row_scale[own.quad] = unit.row_scale;
        if (own.lane == 0) to.phase = phase, to.unit = unit.number, to.all = last ? own.unit + 1 - own.first_unit : 0;
    }
    ++own.unit;
    __syncwarp();
    if (own.lane == 0) arrive(&block.summed[slot]);
}

// All units of a phase that this block has; the first one is known to be there.
template <int KIND, int TOKENS>
__device__ __forceinline__ void multiply_units(
    Workspace<TOKENS>& block, Consumer& own, const u32* awaited, u32 count, const bf16* input, int layer) {
    using M = Matrix<KIND>;
    constexpr int CHUNKS = Units<KIND>::chunks, HAND = M::hand * Units<KIND>::together, OWN = CHUNKS * HAND;
    constexpr bool kept = OWN <= 32;                  // in registers, from unit to unit
    constexpr int AHEAD = kept ? CHUNKS : 16 / HAND;  // chunks whose input is in registers
    const Memory& memory = block.memory;
    const int phase = KIND == HEAD ? LAST : 4 * layer + KIND;
    const float* next_norm = !M::residual ? nullptr
        : KIND == OUTPUT ? (const float*)((const char*)memory.inner_norm + layer * memory.layer)
        : layer + 1 < LAYERS ? (const float*)((const char*)memory.input_norm + (layer + 1) * memory.layer) : memory.final_norm;
    enter(block, awaited, count, phase, FIRST_PHASE + layer * PHASES + (KIND == QKV || KIND == HEAD ? 0 : KIND + 1));
    own.first_unit = own.unit;
    input += in_tiles(own.group, own.quad * 4, M::tiles);
    Pack a[AHEAD * HAND];
    if constexpr (kept)
#pragma unroll
        for (int i = 0; i < OWN; ++i) a[i] = load_input<KIND, TOKENS>(input, own, i);
    Squares squares;
    if (M::normed && own.warp < TOKENS) squares = load_squares(memory.squares + (i64)own.warp * HIDDEN_UNITS);
    bool scaled = !M::normed || own.warp >= TOKENS;
    const u32 nothing = gridDim.y - 1;
    do {
        if constexpr (!kept)
#pragma unroll
            for (int i = 0; i < AHEAD * HAND; ++i) a[i] = load_input<KIND, TOKENS>(input, own, i);
        wait(block.full[own.stage], own.parity, memory.last_words, 3);
        Unit unit = {block.headers[own.stage].unit};
        if (QUANTIZED && own.warp == 0) unit.row_scale = ((const float2*)(block.ring[own.stage].bytes + SLOT))[own.quad];
        if (M::residual && own.warp == 0) {
            const int column = unit.number * 8 + own.quad * 2;
            if (own.group < TOKENS) {
                const float* at = memory.x + (i64)own.group * HIDDEN_PADDED + column;
                unit.x = make_float2(__ldcg(at), __ldcg(at + 1));
            }
            if (column < HIDDEN) unit.next_norm = make_float2(next_norm[column], next_norm[column + 1]);
        }
        float sum[4] = {};
        for (int first = 0; first < CHUNKS; first += AHEAD)
#pragma unroll
            for (int ahead = 0; ahead < AHEAD; ++ahead) {
                const int chunk = first + ahead;
                if (!kept && chunk >= CHUNKS) break;
                if (chunk) wait(block.full[own.stage], own.parity, memory.last_words, 4);
                __syncwarp();
                const Weight* tile = (const Weight*)block.ring[own.stage].bytes + in_tile(own.group, own.quad);
                decltype(load_shared(tile)) loaded[HAND];
#pragma unroll
                for (int i = 0; i < HAND; ++i) loaded[i] = load_shared(tile + M::place(own.warp, i) * TILE);
#pragma unroll
                for (int i = 0; i < HAND; ++i) {
                    const Pack& with = a[ahead * HAND + i];
                    const Pack b = widened(loaded[i]);
                    multiply(sum, with.x, 0, with.y, 0, b.x, b.y);
                    multiply(sum, with.z, 0, with.w, 0, b.z, b.w);
                }
                if constexpr (!kept)
#pragma unroll
                    for (int i = 0; i < HAND; ++i)
                        if (chunk + AHEAD < CHUNKS)
                            a[ahead * HAND + i] = load_input<KIND, TOKENS>(input, own, (chunk + AHEAD) * HAND + i);
                if (chunk == CHUNKS - 1) own.next_phase = block.headers[own.stage].next_phase;
                // A copy into a place that is given away may overtake reads that are on their way, which no barrier waits
                // for: so who gives it away depends on what was read, as far as the compiler knows.
                u32 read = chunk ? 0 : __float_as_uint(unit.row_scale.x);
#pragma unroll
                for (int i = 0; i < HAND; ++i) read ^= witness(loaded[i]);
                __syncwarp();
                if (own.lane == (int)(read & nothing)) arrive(&block.empty[own.stage]);
                if (++own.stage == own.places) own.stage = 0, own.parity ^= 1;
            }
        if (!scaled) {  // in the shadow of the first unit
            const float scale = norm_scale(squares);
            if (own.lane == 0) block.scale[KIND == GATE_UP][own.warp] = scale;
            scaled = true;
        }
        hand_over(block, own, phase, unit, own.next_phase != phase, make_float2(sum[0], sum[1]));
    } while (own.next_phase == phase);
}

// The residual stream begins: each token in one block.
template <int TOKENS> __device__ __forceinline__ void embed_tokens(Workspace<TOKENS>& block) {
    const Memory& memory = block.memory;
    for (int token = blockIdx.x; token < TOKENS; token += gridDim.x) {
        const int row = block.rows[token], id = row < 0 ? 0 : memory.drawn[2 * row];
        begin_residual(memory.table, id, token, memory.input_norm, memory.x, memory.input, memory.squares);
        meet();
        if (threadIdx.x == 0) add_release(counter(memory, EMBEDDED), 1);
    }
}

template <int TOKENS> __device__ __forceinline__ void consume(Workspace<TOKENS>& block) {
    const Memory& memory = block.memory;
    Consumer own = {};
    own.lane = threadIdx.x & 31;
    own.warp = threadIdx.x >> 5;
    own.group = own.lane >> 2;
    own.quad = own.lane & 3;
    own.places = block.places();
    if (threadIdx.x == 0) look_at_clock(memory, BEGUN);
    embed_tokens(block);
    wait(block.begun, 0, memory.last_words, 6);
    own.next_phase = block.first_phase;
    const int all = block.shares(), sharing = min(all, (int)gridDim.x);
    for (int layer = 0; layer < LAYERS; ++layer) {
        const int phase = 4 * layer;
        const bf16* cache = memory.cache + (i64)layer * 2 * KV_HEADS * HEAD_STRIDE;
        if (own.next_phase == phase + QKV)
            multiply_units<QKV>(
                block, own, counter(memory, layer ? phase - 1 : EMBEDDED), layer ? Units<DOWN>::count : TOKENS, memory.input, layer);
        if (blockIdx.x < all) {
            const Attention attention = {memory.qkv, cache, memory.attended, memory.partials, memory.arrivals};
            // The next share is on its way to L2 while one is attended to.
            auto attend = [&](const Share& share, Stream& stream, int next) {
                if (next < all && threadIdx.x == 0) prefetch(cache, share_of(block.rows, block.positions, next));
                attend_share(block.attending(), attention, share, stream, threadIdx.x, [] { meet(); });
            };
            // What earlier steps have left is asked for before all of this one's is there.
            const Share first = share_of(block.rows, block.positions, blockIdx.x);
            Stream stream = stream_of(cache, first, 1, threadIdx.x);
            stream.ask();
            enter(block, counter(memory, phase + QKV), Units<QKV>::count, phase + QKV, FIRST_PHASE + layer * PHASES + 1);
            stream.ask_for_newest(1);
            attend(first, stream, blockIdx.x + gridDim.x);
            for (int index = blockIdx.x + gridDim.x; index < all; index += gridDim.x) {
                const Share share = share_of(block.rows, block.positions, index);
                Stream stream = stream_of(cache, share, 0, threadIdx.x);
                stream.ask();
                meet();  // what is shared is read
                attend(share, stream, index + gridDim.x);
            }
            meet();  // what was attended to is written
            if (threadIdx.x == 0) add_release(counter(memory, NO_PHASE + layer), 1);
        }
        if (own.next_phase == phase + OUTPUT)
            multiply_units<OUTPUT>(block, own, counter(memory, NO_PHASE + layer), sharing, memory.attended, layer);
        if (own.next_phase == phase + GATE_UP)
            multiply_units<GATE_UP>(block, own, counter(memory, phase + OUTPUT), Units<OUTPUT>::count, memory.input, layer);
        if (own.next_phase == phase + DOWN)
            multiply_units<DOWN>(block, own, counter(memory, phase + GATE_UP), Units<GATE_UP>::count, memory.inner, layer);
    }
    if (own.next_phase == LAST)
        multiply_units<HEAD>(block, own, counter(memory, LAST - 1), Units<DOWN>::count, memory.input, LAYERS);
    for (int i = 0; i < FINISHERS; ++i) hand_over(block, own, NO_PHASE, {}, false, {0, 0});
}

// --- finishers --------------------------------------------------------------------------------------------------------

template <int KIND, int TOKENS>
__device__ __forceinline__ void finish_unit(Workspace<TOKENS>& block, const Sums<TOKENS>& sums, int layer) {
    using M = Matrix<KIND>;
    const Memory& memory = block.memory;
    const int lane = threadIdx.x & 31, token = lane / 4, pair = lane % 4, column = sums.unit * 8 + pair * 2;
    const bool here = token < TOKENS && column < M::n;
    const int safe = token < TOKENS ? token : 0;
    float2 sum = sums.partial[0][safe][pair];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) {
        sum.x = __fadd_rn(sum.x, sums.partial[warp][safe][pair].x);
        sum.y = __fadd_rn(sum.y, sums.partial[warp][safe][pair].y);
    }
    const float* bias = KIND == HEAD ? nullptr : memory.bias[KIND];
    if (bias) bias = (const float*)((const char*)bias + layer * memory.layer);
    Given given = {block.scale[KIND == GATE_UP][safe], bias != nullptr, {0, 0}, block.rows[safe], block.positions[safe],
                   {0, 0}, sums.x[safe][pair], sums.next_norm[pair], sums.row_scale[QUANTIZED ? pair : 0]};
    if (bias) given.bias = bias_of<KIND>(bias, column);
    if (KIND == QKV && !QK_NORM) given.turn = turn_of(memory.rope, given.position, column);
    const Target target = {
        KIND == QKV ? (void*)memory.qkv : KIND == GATE_UP ? (void*)memory.inner : KIND == HEAD ? (void*)memory.logits : (void*)memory.x,
        memory.input, memory.squares, memory.cache + (i64)layer * 2 * KV_HEADS * HEAD_STRIDE};
    finish<KIND>(sum, given, target, token, column, here);
}

// The step is whole: each row is a token longer, and all counters begin anew.
template <int TOKENS> __device__ __forceinline__ void end_step(Workspace<TOKENS>& block) {
    const Memory& memory = block.memory;
    look_at_clock(memory, FIRST_PHASE + LAYERS * PHASES + 1);
    for (int token = 0; token < TOKENS; ++token) memory.positions[token] = block.positions[token] + 1;
    wait(counter(memory, ENDED), gridDim.x, memory.last_words, 8);  // nobody draws any more
    for (int which = 0; which < COUNTERS; ++which) *counter(memory, which) = 0;
}

template <int TOKENS> __device__ __forceinline__ void finish_units(Workspace<TOKENS>& block) {
    const Memory& memory = block.memory;
    const int lane = threadIdx.x & 31;
    for (int unit = threadIdx.x / 32 - WARPS - 1;; unit += FINISHERS) {
        const int slot = unit % SUMS;
        const Sums<TOKENS>& sums = block.sums[slot];
        wait(block.summed[slot], unit / SUMS & 1, memory.last_words, 7);
        __syncwarp();
        const int phase = sums.phase, all = sums.all, layer = phase / 4, kind = phase == LAST ? HEAD : phase % 4;
        if (phase == NO_PHASE) break;
        switch (kind) {
            case QKV: finish_unit<QKV>(block, sums, layer); break;
            case OUTPUT: finish_unit<OUTPUT>(block, sums, layer); break;
            case GATE_UP: finish_unit<GATE_UP>(block, sums, layer); break;
            case DOWN: finish_unit<DOWN>(block, sums, layer); break;
            default: finish_unit<HEAD>(block, sums, layer);
        }
        __syncwarp();
        if (lane == 0) {
            arrive(&block.taken[slot]);
            if (all) {  // those of the other finishers are written when their places are given away
                for (int other = unit - 1; other > unit - FINISHERS && other >= 0; --other)
                    wait(block.taken[other % SUMS], other / SUMS & 1, memory.last_words, 9);
                if (kind != HEAD) add_release(counter(memory, phase), all);
                else if (add_acquire_release(counter(memory, LAST), all) == Units<HEAD>::count - all)
                    end_step(block);
            }
        }
        __syncwarp();
    }
}

// ----------------------------------------------------------------------------------------------------------------------

template <int TOKENS> __device__ __forceinline__ void decode(const Memory* memory) {
    static_assert(sizeof(Workspace<TOKENS>) <= SHARED_OF_BLOCK, "a block has so much shared memory");
    Workspace<TOKENS>& block = *(Workspace<TOKENS>*)block_memory();
    for (int i = threadIdx.x; i < (int)(sizeof(Memory) / 8); i += THREADS) ((u64*)&block.memory)[i] = ((const u64*)memory)[i];
    if (threadIdx.x < TOKENS) {
        block.rows[threadIdx.x] = memory->rows[threadIdx.x];
        block.positions[threadIdx.x] = memory->positions[threadIdx.x];
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < block.stages; ++i) prepare(&block.full[i], 1), prepare(&block.empty[i], WARPS);
        for (int i = 0; i < SUMS; ++i) prepare(&block.summed[i], WARPS), prepare(&block.taken[i], 1);
        prepare(&block.begun, 1);
        block.phase = 0;
        show_signals();
    }
    __syncthreads();
    const int warp = threadIdx.x / 32;
    if (warp < WARPS) {
        more_registers<224>();
        consume(block);
    } else {
        fewer_registers<56>();
        if (warp > WARPS) finish_units(block);
        else if (threadIdx.x % 32 == 0) produce(block);
    }
}

#ifdef CLOCKED
#define KERNEL clocked
#else
#define KERNEL decode
#endif
#define NAMED(name, tokens) name##_##tokens
#define DECODE(name, tokens)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAMED(name, tokens)(const Memory* memory) {                \
        decode<tokens>(memory);                                                                                        \
    }
DECODE(KERNEL, TOKENS_OF_STEP)
#endif
