// The products of many tokens, at the speed of the tensor cores of compute capability 9.0.
//
// A block computes tiles of 64 tokens a warpgroup and some rows of the matrix, one after the other. Two warps have the
// copy engine bring weights, two the tokens, a hand of tiles (see products.cu) or half a hand at a time, stage by stage
// ahead of those who multiply. These add up a run of hands in registers, and the eight runs in the order in which
// products.cu adds the sums of its warps: every bit is the same.
#if defined(EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int WIDE_MEMORY = 227 * 1024;  // bytes of shared memory of a block
constexpr int RUNS = 8;

#ifndef EMULATED
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
__device__ __forceinline__ void multiply_wide(float (&d)[96], Operand a, Operand b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
                 "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
                 "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95}, "
                 "%96, %97, 1, 1, 1, 0, 0;"
                 : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48), SIXTEEN(64), SIXTEEN(80) : "l"(a.words), "l"(b.words));
}
#endif

template <int KIND, int GROUPS, int ROWS> struct Wide {
    static constexpr int tokens = 64 * GROUPS, token_units = tokens / 8, units = ROWS / 8;
    static constexpr int tiles = Matrix<KIND>::tiles, hand = Matrix<KIND>::hand, hands = tiles / hand;
    static constexpr int part = hand % 2 == 0 && (token_units + units) * hand > 128 ? hand / 2 : hand;  // of a stage
    static constexpr int unit = part * TILE * (int)sizeof(bf16);                                        // bytes
    static constexpr int stage = (token_units + units) * unit;
    static constexpr int most = (WIDE_MEMORY - 1024) / stage, stages = most < 16 ? most : 16;
    static constexpr int registers = 240;  // of a thread that multiplies
    // How many stages a run has, and where the i-th lies.
    __device__ static constexpr int count(int run) { return (hands - run + RUNS - 1) / RUNS * (hand / part); }
    __device__ static constexpr int place(int run, int i) {
        return (i * part / hand * RUNS + run) * hand + i * part % hand;
    }
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
    int tokens, const bf16* weights, const float* bias, const bf16* input, const float* scales, const float* next_norm,
    const int* rows, const int* positions, const float* table, const Target& target) {
    using M = Matrix<KIND>;
    using W = Wide<KIND, GROUPS, ROWS>;
    unsigned char* memory = (unsigned char*)block_memory();
    Signal* full = (Signal*)(memory + W::stages * W::stage);
    Signal* empty = full + W::stages;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int columns = ceil_div(tokens, W::tokens), blocks = columns * ceil_div(M::n, ROWS);

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < W::stages; ++stage) {
            prepare(full + stage, 4);
            prepare(empty + stage, GROUPS * 4);
        }
        show_signals();
    }
    __syncthreads();
    let_next_start();
    Turn<W::stages> turn;
    if (warp < 4) {
        fewer_registers<24>();
        // Two warps bring weights, which may be read before the kernels before this one are done, unless the last of these
        // made them of codes; and two tokens.
        const bool of_weights = warp < 2;
        if (QUANTIZED || !of_weights) wait_for_previous();
        const int share = (of_weights ? W::units : W::token_units) / 2, all = ceil_div(of_weights ? M::n : tokens, 8);
        const int place = (of_weights ? W::token_units : 0) + warp % 2 * share + lane;
#pragma unroll 1
        for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
            const int first = ((of_weights ? block / columns : block % columns) * 2 + warp % 2) * share;
            const int count = max(0, min(share, all - first));
            const bf16* from = (of_weights ? weights : input) + ((i64)first + lane) * W::tiles * TILE;
#pragma unroll 1
            for (int run = 0; run < RUNS; ++run)
#pragma unroll 1
                for (int i = 0; i < W::count(run); ++i, turn.next()) {
                    wait_for(empty + turn.stage, turn.parity ^ 1);
                    if (lane == 0) arrive_expecting(full + turn.stage, count * W::unit);
                    __syncwarp();
                    if (lane < count)  // one lane after the other: hence so many warps
                        copy_to_shared(
                            memory + turn.stage * W::stage + place * W::unit, from + W::place(run, i) * TILE, W::unit,
                            full + turn.stage);
                }
        }
    } else {
        more_registers<W::registers>();
        wait_for_previous();
        const int group = lane >> 2, quad = lane & 3;
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
                for (int i = 0; i < W::count(run); ++i, turn.next()) {
                    const unsigned char* at = memory + turn.stage * W::stage;
                    Operand a{at + (warp / 4 - 1) * 8 * W::unit, W::unit}, b{at + W::token_units * W::unit, W::unit};
                    wait_for(full + turn.stage, turn.parity);
                    begin_multiplying();
#pragma unroll
                    for (int step = 0; step < 2 * W::part; ++step) {
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

            // What is far away is read for a whole row of the tile at once. The compiler is kept from computing the
            // addresses of all columns at the same time: it has no registers for them.
            constexpr int BATCH = 4;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int token = block % columns * W::tokens + (warp - 4) * 16 + half * 8 + group;
                const bool someone = token < tokens;
                Given given{};
                given.biased = bias;
                given.row = KIND == QKV && someone ? rows[token] : -1;
                given.position = KIND == QKV && given.row >= 0 ? positions[token] : 0;
                given.scale = M::normed && someone ? __ldcg(scales + token) : 1;
                const int first_column = block / columns * ROWS + quad * 2;
                float2 far[ROWS / 8];  // x, or cosine and sine
#pragma unroll
                for (int first = 0; first < ROWS / 8; first += BATCH) {
                    int column = first_column + first * 8;
                    asm volatile("" : "+r"(column));
#pragma unroll
                    for (int unit = 0; unit < BATCH; ++unit) {
                        far[first + unit] = make_float2(0, 0);
                        if (!someone || (M::n % ROWS && column + unit * 8 >= M::n)) continue;
                        if (M::residual) {
                            const float* x = (const float*)target.output + (i64)token * HIDDEN_PADDED + column + unit * 8;
                            far[first + unit] = __ldcg((const float2*)x);
                        } else if (KIND == QKV && !QK_NORM) {
                            far[first + unit] = turn_of(table, given.position, column + unit * 8);
                        }
                    }
                }
#pragma unroll
                for (int first = 0; first < ROWS / 8; first += BATCH) {
                    int column = first_column + first * 8;
                    asm volatile("" : "+r"(column));
                    float2 norms[BATCH];
                    auto here = [&](int unit) { return someone && (M::n % ROWS == 0 || column + unit * 8 < M::n); };
#pragma unroll
                    for (int unit = 0; unit < BATCH; ++unit)
                        if (M::residual && here(unit)) norms[unit] = *(const float2*)(next_norm + column + unit * 8);
#pragma unroll
                    for (int unit = 0; unit < BATCH; ++unit) {
                        const int at = (first + unit) * 4 + half * 2;
                        given.x = given.turn = far[first + unit];
                        if (M::residual) given.next_norm = norms[unit];
                        if (QUANTIZED && here(unit)) given.row_scale = row_scale_of<KIND>(weights, column + unit * 8);
                        if (bias)
                            given.bias = ADAPTED ? added_to<KIND>(bias, token, column + unit * 8, here(unit))
                                                 : bias_of<KIND>(bias, column + unit * 8);
                        finish<KIND>(
                            make_float2(total[at], total[at + 1]), given, target, token, column + unit * 8, here(unit));
                    }
                }
            }
        }
    }
}

#define WIDE(name, kind, tokens_of_block, rows_of_block)                                                               \
    extern "C" __global__ void __launch_bounds__(128 + 2 * tokens_of_block, 1)                                         \
    name##_##tokens_of_block##x##rows_of_block(                                                                        \
        i64 tokens, const bf16* weights, const float* bias, const bf16* input, const float* scales, void* output,      \
        const float* next_norm, bf16* next_input, float* next_squares, const int*, const int* rows,                    \
        const int* positions, const float* table, bf16* cache) {                                                       \
        wide_product<kind, tokens_of_block / 64, rows_of_block>(                                                       \
            (int)tokens, weights, bias, input, scales, next_norm, rows, positions, table,                              \
            {output, next_input, next_squares, cache});                                                                \
    }
#endif
