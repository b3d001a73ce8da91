// The products of many tokens, at the speed of the tensor cores of compute capability 9.0.
//
// A block computes tiles of 64 tokens a warpgroup and some rows of the matrix, one after the other. One warp has the copy
// engine bring weights, another the tokens, a hand of tiles (see products.cu) at a time, stage by stage ahead of those who
// multiply. These add up a run of hands in registers, and the eight runs in the order in which products.cu adds the sums
// of its warps: every bit is the same.
#if defined(EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int WIDE_MEMORY = 227 * 1024;  // bytes of shared memory of a block
constexpr int RUNS = 8;

#ifndef EMULATED
// Shared memory that a block is launched with.
__device__ __forceinline__ unsigned char* wide_memory() {
    extern __shared__ __align__(1024) unsigned char memory[];
    return memory;
}
__device__ __forceinline__ u32 in_shared(const void* address) { return (u32)__cvta_generic_to_shared(address); }

// A signal is given when all have arrived, and all bytes that were expected; then it waits for the next time.
struct alignas(8) Signal { u64 state; };
__device__ __forceinline__ void prepare(Signal* signal, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(in_shared(signal)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void show_signals() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void arrive(Signal* signal) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(in_shared(signal)) : "memory");
}
__device__ __forceinline__ void arrive_expecting(Signal* signal, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(in_shared(signal)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_for(Signal* signal, u32 parity) {
    u32 given;
    do {
        asm volatile("{\n.reg .pred given;\nmbarrier.try_wait.parity.shared::cta.b64 given, [%1], %2;\nselp.u32 %0, 1, 0, given;\n}"
                     : "=r"(given) : "r"(in_shared(signal)), "r"(parity) : "memory");
    } while (!given);
}
__device__ __forceinline__ void copy_to_shared(void* to, const void* from, int bytes, Signal* signal) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(in_shared(to)), "l"(from), "r"(bytes), "r"(in_shared(signal)) : "memory");
}
// Blocks of a cluster: which one this is, a meeting of all their threads, and the shared memory of others.
__device__ __forceinline__ int place_in_cluster() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
}
__device__ __forceinline__ void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
__device__ __forceinline__ u32 in_block(const void* address, int block) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(in_shared(address)), "r"(block));
    return there;
}
__device__ __forceinline__ float2 read_in(const float* address, int block) {
    float2 v;
    asm volatile("ld.shared::cluster.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(in_block(address, block)) : "memory");
    return v;
}
template <int N> __device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// Rows in shared memory, 8 of them in each unit of tiles, units so many bytes apart.
struct Operand {
    u64 words;
    __device__ __forceinline__ Operand(const void* at, int unit)
        : words((u64)((in_shared(at) & 0x3ffffu) >> 4) | 1ull << 16 | (u64)(unit >> 4) << 32 | 2ull << 62) {}
    __device__ __forceinline__ void move(int bytes) { words += bytes >> 4; }
};
__device__ __forceinline__ void begin_multiplying() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_multiplying() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
// d += a b for 64 tokens and 16 columns, by the four warps of a warpgroup: a lane has the numbers that it has of `multiply`.
__device__ __forceinline__ void multiply_wide(float (&d)[16], Operand a, Operand b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
                 "%16, %17, 1, 1, 1, 0, 0;"
                 : SIXTEEN(0) : "l"(a.words), "l"(b.words));
}
__device__ __forceinline__ void multiply_wide(float (&d)[32], Operand a, Operand b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "%32, %33, 1, 1, 1, 0, 0;"
                 : SIXTEEN(0), SIXTEEN(16) : "l"(a.words), "l"(b.words));
}
__device__ __forceinline__ void multiply_wide(float (&d)[64], Operand a, Operand b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "%64, %65, 1, 1, 1, 0, 0;"
                 : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48) : "l"(a.words), "l"(b.words));
}
#endif

template <int KIND, int GROUPS, int ROWS> struct Wide {
    static constexpr int tokens = 64 * GROUPS, token_units = tokens / 8, units = ROWS / 8;
    static constexpr int tiles = Matrix<KIND>::tiles, hand = Matrix<KIND>::hand, hands = tiles / hand;
    static constexpr int unit = hand * TILE * (int)sizeof(bf16);  // bytes of a hand of a unit
    static constexpr int stage = (token_units + units) * unit;
    static constexpr int most = (WIDE_MEMORY - 1024) / stage, stages = most < 16 ? most : 16;
    static constexpr int threads = 128 * (GROUPS + 1);
    static constexpr int registers = GROUPS == 1 ? 240 : GROUPS == 2 ? 232 : 160;
    __device__ static constexpr int hands_of(int run) { return (hands - run + RUNS - 1) / RUNS; }
    __device__ static constexpr int place(int run, int i) { return (i * RUNS + run) * hand; }
};

// Which stage is next, and whether it is an even or odd time.
template <int STAGES> struct Turn {
    int stage = 0;
    u32 parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

template <int KIND, int GROUPS, int ROWS>
__device__ __forceinline__ void wide_product(
    int tokens, const bf16* weights, const float* bias, const bf16* input, const float* scales, void* output,
    const float* next_norm, bf16* next_input, float* next_squares, const int* rows, const int* positions,
    const float* table, bf16* cache) {
    using M = Matrix<KIND>;
    using W = Wide<KIND, GROUPS, ROWS>;
    unsigned char* memory = wide_memory();
    Signal* full = (Signal*)(memory + W::stages * W::stage);
    Signal* empty = full + W::stages;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int columns = ceil_div(tokens, W::tokens), blocks = columns * ceil_div(M::n, ROWS);

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < W::stages; ++stage) {
            prepare(full + stage, 2);
            prepare(empty + stage, GROUPS * 4);
        }
        show_signals();
    }
    __syncthreads();
    let_next_start();
    Turn<W::stages> turn;
    if (warp < 4) {
        give_registers<24>();
        if (warp < 2) {  // weights may be read before the kernels before this one are done
            if (warp == 1) wait_for_previous();
            const bf16* source = warp == 0 ? weights : input;
            const int share = warp == 0 ? W::units : W::token_units;
            const int all = ceil_div(warp == 0 ? M::n : tokens, 8);
            for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
                const int first = (warp == 0 ? block / columns : block % columns) * share;
                const int count = min(share, all - first);
                const bf16* from = source + ((i64)first + lane) * W::tiles * TILE;
                for (int run = 0; run < RUNS; ++run)
                    for (int i = 0; i < W::hands_of(run); ++i, turn.next()) {
                        wait_for(empty + turn.stage, turn.parity ^ 1);
                        if (lane == 0) arrive_expecting(full + turn.stage, count * W::unit);
                        __syncwarp();
                        unsigned char* to = memory + turn.stage * W::stage + (warp == 0 ? W::token_units : 0) * W::unit;
                        for (int unit = lane; unit < count; unit += 32)
                            copy_to_shared(
                                to + unit * W::unit, from + ((i64)(unit - lane) * W::tiles + W::place(run, i)) * TILE, W::unit,
                                full + turn.stage);
                    }
            }
        }
    } else {
        take_registers<W::registers>();
        wait_for_previous();
        const int group = lane >> 2, quad = lane & 3, warpgroup = warp / 4 - 1;
        auto let_go = [&](int stage) {
            __syncwarp();
            if (lane == 0) arrive(empty + stage);
        };
#pragma unroll 1
        for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
            float total[ROWS / 2], sum[ROWS / 2];
#pragma unroll 1
            for (int run = 0; run < RUNS; ++run) {
#pragma unroll
                for (int i = 0; i < ROWS / 2; ++i) sum[i] = 0;
                int busy = -1;  // the stage that is still being read
#pragma unroll 1
                for (int i = 0; i < W::hands_of(run); ++i, turn.next()) {
                    const unsigned char* at = memory + turn.stage * W::stage;
                    Operand a{at + warpgroup * 8 * W::unit, W::unit}, b{at + W::token_units * W::unit, W::unit};
                    wait_for(full + turn.stage, turn.parity);
                    begin_multiplying();
#pragma unroll
                    for (int step = 0; step < 2 * W::hand; ++step) {
                        multiply_wide(sum, a, b);
                        const int bytes = step % 2 ? TILE * 2 - 32 : 32;
                        a.move(bytes);
                        b.move(bytes);
                    }
                    end_multiplying();
                    wait_for_products<1>();
                    if (busy >= 0) let_go(busy);
                    busy = turn.stage;
                }
                wait_for_products<0>();
                if (busy >= 0) let_go(busy);
#pragma unroll
                for (int i = 0; i < ROWS / 2; ++i) total[i] = run == 0 ? sum[i] : __fadd_rn(total[i], sum[i]);
            }

            constexpr int BATCH = 4;  // units whose memory is read together
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int token = block % columns * W::tokens + (warp - 4) * 16 + half * 8 + group;
                const int row = KIND == QKV && token < tokens ? rows[token] : -1;
                const int position = KIND == QKV && row >= 0 ? positions[token] : 0;
                const float scale = M::normed && token < tokens ? __ldcg(scales + token) : 1;
#pragma unroll
                for (int first = 0; first < ROWS / 8; first += BATCH) {
                    Given given[BATCH];
                    int column = block / columns * ROWS + first * 8 + quad * 2;
                    asm volatile("" : "+r"(column));  // or addresses of all batches would take registers at once
                    auto here = [&](int unit) { return token < tokens && (M::n % ROWS == 0 || column + unit * 8 < M::n); };
                    auto both = [&](int unit) { return here(unit) && (M::n % 2 == 0 || column + unit * 8 + 1 < M::n); };
#pragma unroll
                    for (int unit = 0; unit < BATCH; ++unit)
                        given[unit] = given_for<KIND>(
                            here(unit), both(unit), token, column + unit * 8, position, bias, output, next_norm, table);
#pragma unroll
                    for (int unit = 0; unit < BATCH; ++unit) {
                        float2 sum = make_float2(total[(first + unit) * 4 + half * 2], total[(first + unit) * 4 + half * 2 + 1]);
                        if (M::normed) sum = make_float2(__fmul_rn(sum.x, scale), __fmul_rn(sum.y, scale));
                        finish<KIND>(
                            sum, given[unit], here(unit), both(unit), token, column + unit * 8, row, position, output,
                            next_input, next_squares, cache);
                    }
                }
            }
        }
    }
}

// Few tiles: eight blocks, a cluster, take a run each of a tile, and then each a share of its tokens.
template <int KIND, int GROUPS, int ROWS> struct Split {
    using W = Wide<KIND, GROUPS, ROWS>;
    static constexpr int tokens = W::tokens / RUNS;  // that a block finishes
    static constexpr int width = ROWS + 8;           // of a row of sums in shared memory, against bank conflicts
    static constexpr int most = (WIDE_MEMORY - 1024 - W::tokens * width * 4) / W::stage, stages = most < 8 ? most : 8;
    static constexpr int items = tokens * ROWS / 2, each = ceil_div(items, W::threads);
};

template <int KIND, int GROUPS, int ROWS>
__device__ __forceinline__ void split_product(
    int tokens, const bf16* weights, const float* bias, const bf16* input, const float* squares, void* output,
    const float* next_norm, bf16* next_input, float* next_squares, const int* rows, const int* positions,
    const float* table, bf16* cache) {
    using M = Matrix<KIND>;
    using W = Wide<KIND, GROUPS, ROWS>;
    using S = Split<KIND, GROUPS, ROWS>;
    unsigned char* memory = wide_memory();
    float* sums = (float*)(memory + S::stages * W::stage);
    Signal* full = (Signal*)(sums + W::tokens * S::width);
    Signal* empty = full + S::stages;
    float* scale = (float*)(empty + S::stages);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
    const int run = place_in_cluster(), block = blockIdx.x / RUNS, columns = ceil_div(tokens, W::tokens);
    const int first_token = block % columns * W::tokens, first_row = block / columns * ROWS;

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < S::stages; ++stage) {
            prepare(full + stage, 2);
            prepare(empty + stage, GROUPS * 4);
        }
        show_signals();
    }
    __syncthreads();
    let_next_start();
    Turn<S::stages> turn;
    if (warp == 0 || warp == 1) {
        if (warp == 1) wait_for_previous();
        const int first = (warp == 0 ? first_row : first_token) / 8;
        const int count = min(warp == 0 ? W::units : W::token_units, ceil_div(warp == 0 ? M::n : tokens, 8) - first);
        const bf16* from = (warp == 0 ? weights : input) + ((i64)first + lane) * W::tiles * TILE;
        for (int i = 0; i < W::hands_of(run); ++i, turn.next()) {
            wait_for(empty + turn.stage, turn.parity ^ 1);
            if (lane == 0) arrive_expecting(full + turn.stage, count * W::unit);
            __syncwarp();
            unsigned char* to = memory + turn.stage * W::stage + ((warp == 0 ? W::token_units : 0) + lane) * W::unit;
            if (lane < count) copy_to_shared(to, from + W::place(run, i) * TILE, W::unit, full + turn.stage);
        }
    } else if (warp < 4) {
        wait_for_previous();
        if (M::normed)
            for (int local = warp - 2; local < S::tokens; local += 2) {
                const int token = first_token + run * S::tokens + local;
                const float found = token < tokens ? scale_of(squares + (i64)token * HIDDEN_UNITS, lane) : 0;
                if (lane == 0) scale[local] = found;
            }
    } else {
        float sum[ROWS / 2];
#pragma unroll
        for (int i = 0; i < ROWS / 2; ++i) sum[i] = 0;
#pragma unroll 1
        for (int i = 0; i < W::hands_of(run); ++i, turn.next()) {
            const unsigned char* at = memory + turn.stage * W::stage;
            Operand a{at + (warp / 4 - 1) * 8 * W::unit, W::unit}, b{at + W::token_units * W::unit, W::unit};
            wait_for(full + turn.stage, turn.parity);
            begin_multiplying();
#pragma unroll
            for (int step = 0; step < 2 * W::hand; ++step) {
                multiply_wide(sum, a, b);
                const int bytes = step % 2 ? TILE * 2 - 32 : 32;
                a.move(bytes);
                b.move(bytes);
            }
            end_multiplying();
            wait_for_products<0>();
            __syncwarp();
            if (lane == 0) arrive(empty + turn.stage);
        }
        float* to = sums + ((warp - 4) * 16 + group) * S::width + quad * 2;
#pragma unroll
        for (int unit = 0; unit < ROWS / 8; ++unit) {
            *(float2*)(to + unit * 8) = make_float2(sum[unit * 4], sum[unit * 4 + 1]);
            *(float2*)(to + 8 * S::width + unit * 8) = make_float2(sum[unit * 4 + 2], sum[unit * 4 + 3]);
        }
    }
    wait_for_previous();

    auto local_of = [&](int i) { return (int)(i * W::threads + threadIdx.x) / 4 % S::tokens; };
    auto token_of = [&](int i) { return first_token + run * S::tokens + local_of(i); };
    auto unit_of = [&](int i) { return (int)(i * W::threads + threadIdx.x) / (4 * S::tokens); };
    auto column_of = [&](int i) { return first_row + unit_of(i) * 8 + quad * 2; };
    auto here = [&](int i) { return token_of(i) < tokens && column_of(i) < M::n; };
    auto both = [&](int i) { return here(i) && (M::n % 2 == 0 || column_of(i) + 1 < M::n); };
    Given given[S::each];
    int row[S::each], position[S::each];
#pragma unroll
    for (int i = 0; i < S::each; ++i) {
        const bool known = KIND == QKV && token_of(i) < tokens && unit_of(i) < ROWS / 8;
        row[i] = known ? rows[token_of(i)] : -1;
        position[i] = known && row[i] >= 0 ? positions[token_of(i)] : 0;
        if (unit_of(i) < ROWS / 8)
            given[i] = given_for<KIND>(here(i), both(i), token_of(i), column_of(i), position[i], bias, output, next_norm, table);
    }
    meet_cluster();
#pragma unroll
    for (int i = 0; i < S::each; ++i) {
        if (unit_of(i) >= ROWS / 8) break;  // for whole warps
        const float* at = sums + (run * S::tokens + local_of(i)) * S::width + unit_of(i) * 8 + quad * 2;
        float2 part[RUNS];
#pragma unroll
        for (int other = 0; other < RUNS; ++other) part[other] = read_in(at, other);
        float2 sum = part[0];
#pragma unroll
        for (int other = 1; other < RUNS; ++other)
            sum = make_float2(__fadd_rn(sum.x, part[other].x), __fadd_rn(sum.y, part[other].y));
        if (M::normed) sum = make_float2(__fmul_rn(sum.x, scale[local_of(i)]), __fmul_rn(sum.y, scale[local_of(i)]));
        finish<KIND>(
            sum, given[i], here(i), both(i), token_of(i), column_of(i), row[i], position[i], output, next_input, next_squares,
            cache);
    }
    meet_cluster();  // others may still read this block's sums
}

#define WIDE(name, groups, work, squares)                                                                              \
    extern "C" __global__ void __launch_bounds__(128 * (groups + 1), 1) name(                                          \
        i64 tokens, const bf16* weights, const float* bias, const bf16* input, const float* squares, void* output,     \
        const float* next_norm, bf16* next_input, float* next_squares, const int*, const int* rows,                    \
        const int* positions, const float* table, bf16* cache) {                                                       \
        work(                                                                                                          \
            (int)tokens, weights, bias, input, squares, output, next_norm, next_input, next_squares, rows, positions,  \
            table, cache);                                                                                             \
    }
#define WIDES(name, kind)                                                                                              \
    WIDE(name##_wide, 2, (wide_product<kind, 2, 128>), scales)                                                         \
    WIDE(name##_split_1, 1, (split_product<kind, 1, 128>), squares)                                                    \
    WIDE(name##_split_2, 2, (split_product<kind, 2, 128>), squares)
WIDES(qkv, QKV)
WIDES(output, OUTPUT)
WIDES(gate_up, GATE_UP)
WIDES(down, DOWN)

// What the numbers of a token are scaled by, see products.cu.
extern "C" __global__ void __launch_bounds__(256) scales(i64 tokens, const float* squares, float* scales) {
    let_next_start();
    wait_for_previous();
    const int token = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (token >= tokens) return;
    const float scale = scale_of(squares + (i64)token * HIDDEN_UNITS, lane);
    if (lane == 0) scales[token] = scale;
}
#endif
