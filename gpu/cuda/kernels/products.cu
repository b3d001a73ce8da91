// The five matrix products of a model, on tensor cores, each with the work that comes before and after it.
//
// A block computes a few units, of 8 rows of the matrix each, for up to 64 tokens, and then the next few. Its 8 warps
// share K among them: the tiles of a unit are dealt to the warps in hands of up to 4, in turns, and the warps' sums are
// added in their order. That order depends on K alone: a token's bits are the same among 8, 16, 32 or 64 tokens, so the
// same in decode and in prefill.
//
// The root mean square of a norm comes after the product: the kernel that wrote the residual stream left x times the
// norm's weight in bfloat16, and the sum of squares of each 8 numbers of x.
//
// A product starts while kernels before it still run. What they do not write it reads before it waits: as many weights as
// there are registers for, biases and norms, and the rows and positions of the tokens (see `embed`).
enum Kind { QKV, OUTPUT, GATE_UP, DOWN, HEAD };

constexpr int WARPS = 8;

template <int KIND> struct Matrix {
    static constexpr bool normed = KIND == QKV || KIND == GATE_UP || KIND == HEAD;
    static constexpr bool residual = KIND == OUTPUT || KIND == DOWN;
    static constexpr int n = KIND == QKV ? QKV_WIDTH : KIND == GATE_UP ? 2 * INTERMEDIATE : KIND == HEAD ? VOCAB : HIDDEN;
    static constexpr int k = KIND == OUTPUT ? HEADS * HEAD_DIM : KIND == DOWN ? INTERMEDIATE : HIDDEN;
    static constexpr int tiles = ceil_div(k, 32);
    static constexpr int hand = tiles % 32 == 0 ? 4 : tiles % 24 == 0 ? 3 : tiles % 16 == 0 ? 2 : 1;
    static constexpr int most = ceil_div(tiles, WARPS);  // tiles of a warp; where hands are of one, some have one less
    // Where the i-th tile of a warp lies, and how many it has.
    __device__ static constexpr int place(int warp, int i) { return (i / hand * WARPS + warp) * hand + i % hand; }
    __device__ static constexpr int count(int warp) { return tiles % WARPS == 0 ? most : ceil_div(tiles - warp, WARPS); }
};

// What becomes of a sum: of two neighbouring columns of a token.
struct Given {  // what the last step needs besides; each is read where there is time
    float scale;               // of the token, where the input is normed
    bool biased;
    float2 bias;
    int row, position;         // of the token
    float2 turn;               // cosine and sine, where rotary embeddings are next
    float2 x, next_norm;       // where the residual stream is added to
    float2 row_scale;          // of the columns, where weights are codes
};
struct Target {
    void* output;
    bf16* next_input;          // the residual stream, for the next norm
    float* next_squares;
    bf16* cache;
};
template <int KIND> __device__ __forceinline__ float2 bias_of(const float* bias, int column) {
    if (column >= Matrix<KIND>::n) return {0, 0};
    return make_float2(bias[column], column + 1 < Matrix<KIND>::n ? bias[column + 1] : 0.0f);
}
// With adapters, each token has a bias of its own, of the kernel before.
template <int KIND> __device__ __forceinline__ float2 added_to(const float* added, int token, int column, bool here) {
    const float* at = added + (u32)(token * Matrix<KIND>::n + column);  // it has fewer than 2^31 numbers
    if (!here) return {0, 0};
    return make_float2(__ldcg(at), column + 1 < Matrix<KIND>::n ? __ldcg(at + 1) : 0.0f);
}
template <int KIND, class W> __device__ __forceinline__ float2 row_scale_of(const W* matrix, int column) {
    return *(const float2*)(scales_of(matrix, Matrix<KIND>::n, Matrix<KIND>::tiles) + column);
}
__device__ __forceinline__ float2 turn_of(const float* table, int position, int column) {
    const float* at = table + (i64)position * HEAD_DIM + column % HEAD_DIM / 2;
    return make_float2(at[0], at[HALF]);
}

// All lanes of a warp come here; four in a row have the eight columns of a unit. `here`: there is such a token and column.
template <int KIND>
__device__ __forceinline__ void finish(float2 sum, const Given& given, const Target& target, int token, int column, bool here) {
    using M = Matrix<KIND>;
    const bool both = here && column + 1 < M::n;
    if (QUANTIZED) {
        sum.x = __fmul_rn(sum.x, given.row_scale.x);
        sum.y = __fmul_rn(sum.y, given.row_scale.y);
    }
    if (M::normed) {
        sum.x = __fmul_rn(sum.x, given.scale);
        sum.y = __fmul_rn(sum.y, given.scale);
    }
    if (given.biased) {
        sum.x = __fadd_rn(sum.x, given.bias.x);
        sum.y = __fadd_rn(sum.y, given.bias.y);
    }

    if (KIND == QKV && !QK_NORM) {  // rows 2 i and 2 i + 1 of a query or key head are its numbers i and i + HALF
        if (!here || given.row < 0) return;
        const int kept = column / HEAD_DIM - HEADS, within = column % HEAD_DIM, i = within / 2;
        bf16* to = target.cache + given.row * ROW_STRIDE + (i64)kept * HEAD_STRIDE + (i64)given.position * HEAD_DIM;
        if (kept < KV_HEADS) sum = turned(sum.x, sum.y, given.turn);
        if (kept < 0) {  // queries take the 1 / sqrt(head_dim), and the base of exp2
            float* query = (float*)target.output + (i64)token * QKV_WIDTH + (kept + HEADS) * HEAD_DIM + i;
            query[0] = __fmul_rn(sum.x, ATTENTION_SCALE);
            query[HALF] = __fmul_rn(sum.y, ATTENTION_SCALE);
        } else {
            const bool key = kept < KV_HEADS;
            to[key ? i : within] = to_bf16(sum.x);
            to[key ? i + HALF : within + 1] = to_bf16(sum.y);
        }
    } else if (KIND == QKV) {
        float* to = (float*)target.output + (i64)token * QKV_WIDTH + column;
        if (here) to[0] = sum.x;
        if (both) to[1] = sum.y;
    } else if (KIND == GATE_UP) {  // rows 2 i and 2 i + 1 are those of gate and up
        const float gate = sum.x / (1.0f + __expf(-sum.x));
        if (here) ((bf16*)target.output)[in_tiles(token, column / 2, INNER_TILES)] = to_bf16(__fmul_rn(gate, sum.y));
    } else if (KIND == HEAD) {
        if (here && given.row >= 0) ((float*)target.output)[(i64)given.row * VOCAB + column] = sum.x;
        if (both && given.row >= 0) ((float*)target.output)[(i64)given.row * VOCAB + column + 1] = sum.y;
    } else {
        float* x = (float*)target.output + (i64)token * HIDDEN_PADDED + column;
        bf16* to = target.next_input + in_tiles(token, column, HIDDEN_TILES);
        float square = 0;
        sum = make_float2(__fadd_rn(given.x.x, sum.x), __fadd_rn(given.x.y, sum.y));
        const bf16 first = to_bf16(__fmul_rn(sum.x, given.next_norm.x)), second = to_bf16(__fmul_rn(sum.y, given.next_norm.y));
        if (both) {
            *(float2*)x = sum;
            *(u32*)to = first | (u32)second << 16;
            square = __fadd_rn(__fmul_rn(sum.x, sum.x), __fmul_rn(sum.y, sum.y));
        } else if (here) {
            *x = sum.x;
            *to = first;
            square = __fmul_rn(sum.x, sum.x);
        }
        square = __fadd_rn(square, __shfl_xor_sync(ALL_LANES, square, 1));
        square = __fadd_rn(square, __shfl_xor_sync(ALL_LANES, square, 2));
        if (here && column % 8 == 0) target.next_squares[(i64)token * HIDDEN_UNITS + column / 8] = square;
    }
}

// The root mean square of a token's residual stream, inverted; by a whole warp, each lane with its share of the squares.
struct Squares { float of[ceil_div(HIDDEN_UNITS, 32)]; };
__device__ __forceinline__ Squares load_squares(const float* squares) {
    Squares read;
#pragma unroll
    for (int i = 0; i < ceil_div(HIDDEN_UNITS, 32); ++i) {
        const int unit = i * 32 + (int)(threadIdx.x & 31);
        read.of[i] = unit < HIDDEN_UNITS ? __ldcg(squares + unit) : 0.0f;
    }
    return read;
}
__device__ __forceinline__ float norm_scale(const Squares& squares) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < ceil_div(HIDDEN_UNITS, 32); ++i) sum = __fadd_rn(sum, squares.of[i]);
    return rsqrtf(warp_sum(sum) / HIDDEN + EPS);
}

template <int KIND, int TOKENS> struct Block {
    using M = Matrix<KIND>;
    // Units share what is read of the tokens, unless there would be too few blocks for the device.
    static constexpr int units = TOKENS == 32 && M::n >= 8192 ? 4 : TOKENS > 16 || M::n >= 2048 ? 2 : 1;
    static constexpr bool loops = M::n >= 2048;
    // How many blocks a multiprocessor has at once, and how much of the weights each lane of them has in flight.
    static constexpr int resident = TOKENS > 16 ? 1 : KIND == HEAD && TOKENS == 8 ? 3 : 2;
    static constexpr int packs = TOKENS == 64 ? 4 : TOKENS == 16 || (KIND == HEAD && TOKENS == 8) ? 8 : 16;
    // Of codes, which are half the bytes, twice as many: where few are in flight, and there are registers for more.
    static constexpr bool twice = QUANTIZED && (TOKENS == 64 || (TOKENS == 32 && KIND != DOWN));
    static constexpr int hands = packs * (twice ? 2 : 1) / units / M::hand;
    static constexpr int ahead = hands ? (hands * M::hand < M::most ? hands * M::hand : M::most) : M::hand == 4 ? 2 : M::hand;
    // Tiles of the tokens in flight; DOWN, which adds to the residual stream besides, has no registers for more than 2.
    static constexpr int near = TOKENS == 8 && KIND != DOWN && ahead % 4 == 0 ? 4 : ahead % 3 == 0 ? 3 : ahead % 2 == 0 ? 2 : 1;
    static_assert(ahead % near == 0, "a tile and its place in the registers stay together");
    static constexpr int groups = TOKENS / 8, tiles = ceil_div(TOKENS, 16);
    static constexpr int pairs = units * TOKENS * 4;      // of numbers that a block computes
    static constexpr int buffers = TOKENS <= 16 ? 2 : 1;  // for the warps' sums
};

// Calls work(item, token, column, here) for the pairs of numbers that are this thread's.
template <int KIND, int TOKENS, class Work>
__device__ __forceinline__ void for_pairs(int pass, int first_token, int tokens, Work&& work) {
    using B = Block<KIND, TOKENS>;
    constexpr int n = Matrix<KIND>::n;
#pragma unroll
    for (int item = threadIdx.x; item < B::pairs; item += WARPS * 32) {
        const int token = first_token + item / 4 % TOKENS, column = (pass * B::units + item / (TOKENS * 4)) * 8 + item % 4 * 2;
        work(item, token, column, token < tokens && column < n);
    }
}

template <int KIND, int TOKENS>
__device__ __forceinline__ void product(
    int tokens, const Weight* weights, const float* bias, const bf16* input, const float* squares, void* output,
    const float* next_norm, bf16* next_input, float* next_squares, const int* pick, const int* rows, int* positions,
    const float* table, bf16* cache) {
    using M = Matrix<KIND>;
    using B = Block<KIND, TOKENS>;
    constexpr int UNITS = B::units, AHEAD = B::ahead, NEAR = B::near, GROUPS = B::groups;
    constexpr int PASSES = ceil_div(M::n, 8 * UNITS);
    const Target target = {output, next_input, next_squares, cache};
    __shared__ float2 partial[B::buffers][WARPS][B::pairs];
    __shared__ float scale[TOKENS];
    __shared__ int row_of[TOKENS], position_of[TOKENS];
    // What the end of the product takes is read well before: cosine and sine, or x; the next norm; the bias.
    __shared__ float2 with[KIND == QKV || M::residual ? B::pairs : 1], norms[M::residual ? B::pairs : 1];
    __shared__ float2 biases[KIND == HEAD ? 1 : B::pairs];
    __shared__ float2 row_scales[B::buffers][QUANTIZED ? UNITS * 4 : 1];

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = lane >> 2, quad = lane & 3;
    const int first_token = blockIdx.y * TOKENS, count = M::count(warp);
    const int slots = round_up(count, AHEAD);

    let_next_start();
    const Weight* mine = weights + in_tile(group, quad) + warp * M::hand * TILE;
    auto of_pass = [&](int pass) { return mine + (i64)pass * (UNITS * M::tiles * TILE); };
    decltype(load_weights(weights)) w[AHEAD][UNITS];
    auto read_weights = [&](decltype(load_weights(weights)) (&to)[UNITS], const Weight* at, int pass) {
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            if (M::n % (8 * UNITS) && (pass * UNITS + unit) * 8 >= M::n) continue;
            to[unit] = load_weights(at + unit * (M::tiles * TILE));
        }
    };
#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
        if (i < count) read_weights(w[i], of_pass(blockIdx.x) + M::place(0, i) * TILE, blockIdx.x);

    if ((KIND == QKV || KIND == HEAD) && threadIdx.x < TOKENS) {
        const int token = first_token + threadIdx.x;
        row_of[threadIdx.x] = token < tokens ? rows[token] : -1;
        if (KIND == QKV) position_of[threadIdx.x] = token < tokens ? positions[token] : 0;
    }
    auto prepare = [&](int pass, int buffer) {
        for_pairs<KIND, TOKENS>(pass, first_token, tokens, [&](int item, int token, int column, bool here) {
            if (KIND != HEAD && !ADAPTED && bias) biases[item] = bias_of<KIND>(bias, column);
            if (M::residual && here) norms[item] = make_float2(next_norm[column], next_norm[column + 1]);
            if (KIND == QKV && !QK_NORM && here) with[item] = turn_of(table, positions[token], column);
            if (QUANTIZED && here && item / 4 % TOKENS == 0)
                row_scales[buffer][item / (TOKENS * 4) * 4 + item % 4] = row_scale_of<KIND>(weights, column);
        });
    };
    prepare(blockIdx.x, 0);
    // While this kernel sums and finishes, memory would rest: what attention will read of long rows is sent on its way then,
    // a share a lane, of all blocks in turns.
    bool early = false;
    Share wanted;
    if (KIND == QKV && TOKENS == 8 && warp == 0) {
        __syncwarp();
        const int index = blockIdx.x + lane * gridDim.x;
        if (index < min(count_shares(row_of, position_of, TOKENS), EARLY_SHARES)) {
            wanted = share_of(row_of, position_of, index);
            early = wanted.length > SPLIT;
        }
    }
    wait_for_previous();
    if (early) prefetch(cache, wanted);

    // The last product of a decode step: each row is one token longer, and nothing else in the step asks for that now.
    if (KIND == HEAD && positions && blockIdx.x == 0 && blockIdx.y == 0)
        for (int token = threadIdx.x; token < tokens; token += WARPS * 32) positions[token] += 1;

    // Lane (group, quad) holds numbers of weight row `group` and of tokens `group`, `group` + 8, ...
    const bf16* from[GROUPS];
#pragma unroll
    for (int i = 0; i < GROUPS; ++i) {
        const int token = first_token + i * 8 + group;
        const int source = token >= tokens ? -1 : KIND == HEAD && pick ? pick[token] : token;
        from[i] = source < 0 ? nullptr : input + in_tiles(source, quad * 4, M::tiles) + warp * M::hand * TILE;
    }
    Pack a[NEAR][GROUPS];
    auto read_tokens = [&](Pack (&to)[GROUPS], int offset) {
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            to[g] = {0, 0, 0, 0};
            if (from[g]) to[g] = load_tokens(from[g] + offset);
        }
    };
#pragma unroll
    for (int i = 0; i < NEAR; ++i)
        if (i < count) read_tokens(a[i], M::place(0, i) * TILE);

#pragma unroll 1
    for (int pass = blockIdx.x, buffer = 0; pass < PASSES; pass = B::loops ? pass + gridDim.x : PASSES, buffer ^= B::buffers - 1) {
        const bool first = !B::loops || pass == (int)blockIdx.x, more = B::loops && pass + (int)gridDim.x < PASSES;
        if (!first) prepare(pass, buffer);
        if (M::residual)
            for_pairs<KIND, TOKENS>(pass, first_token, tokens, [&](int item, int token, int column, bool here) {
                if (here) with[item] = __ldcg((const float2*)((const float*)output + (i64)token * HIDDEN_PADDED + column));
            });
        if (ADAPTED && KIND != HEAD)
            for_pairs<KIND, TOKENS>(pass, first_token, tokens, [&](int item, int token, int column, bool here) {
                biases[item] = added_to<KIND>(bias, token, column, here);
            });
        if (M::normed && first)
            for (int token = warp; token < TOKENS && first_token + token < tokens; token += WARPS) {
                const int source = KIND == HEAD && pick ? pick[first_token + token] : first_token + token;
                const float found = norm_scale(load_squares(squares + (i64)source * HIDDEN_UNITS));
                if (lane == 0) scale[token] = found;
            }

        float sums[B::tiles][UNITS][4] = {};
#pragma unroll 1
        for (int done = 0; done < slots; done += AHEAD) {
            const bool ends = done + AHEAD >= slots;
            const int left = !ends ? count - done - AHEAD : more ? count : 0;  // tiles to come, here or in the next pass
            const int next_pass = ends ? pass + gridDim.x : pass, here = M::place(0, done) * TILE;
            const int there = ends ? 0 : M::place(0, done + AHEAD) * TILE;
            const Weight* next = of_pass(next_pass) + there;
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                Pack(&now)[GROUPS] = a[j % NEAR];
                if (done + j < count)
#pragma unroll
                    for (int unit = 0; unit < UNITS; ++unit)
#pragma unroll
                        for (int t = 0; t < B::tiles; ++t) {
                            const Pack low = now[t * 2], high = TOKENS == 8 ? Pack{0, 0, 0, 0} : now[(t * 2 + 1) % GROUPS];
                            const Pack b = widened(w[j][unit]);
                            multiply(sums[t][unit], low.x, high.x, low.y, high.y, b.x, b.y);
                            multiply(sums[t][unit], low.z, high.z, low.w, high.w, b.z, b.w);
                        }
                if (j < left) read_weights(w[j], next + M::place(0, j) * TILE, next_pass);
                if (j + NEAR < AHEAD) {
                    if (done + j + NEAR < count) read_tokens(now, here + M::place(0, j + NEAR) * TILE);
                } else {
                    if (j + NEAR - AHEAD < left) read_tokens(now, there + M::place(0, j + NEAR - AHEAD) * TILE);
                }
            }
        }
#pragma unroll
        for (int t = 0; t < B::tiles; ++t)
#pragma unroll
            for (int unit = 0; unit < UNITS; ++unit) {
                float2* to = partial[buffer][warp] + (unit * TOKENS + t * 16 + group) * 4 + quad;
                to[0] = make_float2(sums[t][unit][0], sums[t][unit][1]);
                if (TOKENS > 8) to[32] = make_float2(sums[t][unit][2], sums[t][unit][3]);
            }
        __syncthreads();

        for_pairs<KIND, TOKENS>(pass, first_token, tokens, [&](int item, int token, int column, bool here) {
            const int local = item / 4 % TOKENS;
            float2 sum = partial[buffer][0][item];
#pragma unroll
            for (int other = 1; other < WARPS; ++other) {
                sum.x = __fadd_rn(sum.x, partial[buffer][other][item].x);
                sum.y = __fadd_rn(sum.y, partial[buffer][other][item].y);
            }
            Given given = {scale[local], KIND != HEAD && bias, {0, 0}, row_of[local], position_of[local], {0, 0}, {0, 0}, {0, 0}, {0, 0}};
            if (QUANTIZED) given.row_scale = row_scales[buffer][item / (TOKENS * 4) * 4 + item % 4];
            if (given.biased) given.bias = biases[item];
            if (KIND == QKV) given.turn = with[item];
            if (M::residual) given.x = with[item], given.next_norm = norms[item];
            finish<KIND>(sum, given, target, token, column, here);
        });
        if (B::buffers == 1 && more) __syncthreads();  // all sums are read
    }
}

#define PRODUCT(name, kind, most)                                                                                      \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, Block<kind, most>::resident) name##_##most(               \
        i64 tokens, const Weight* weights, const float* bias, const bf16* input, const float* squares, void* output,   \
        const float* next_norm, bf16* next_input, float* next_squares, const int* pick, const int* rows,               \
        int* positions, const float* table, bf16* cache) {                                                             \
        product<kind, most>(                                                                                           \
            (int)tokens, weights, bias, input, squares, output, next_norm, next_input, next_squares, pick, rows,       \
            positions, table, cache);                                                                                  \
    }
#define PRODUCTS(name, kind) PRODUCT(name, kind, 8) PRODUCT(name, kind, 16) PRODUCT(name, kind, 32) PRODUCT(name, kind, 64)

// Eight numbers of a row of the embedding table.
__device__ __forceinline__ void read_embedding(const bf16* table, int id, int unit, float (&value)[8]) {
    unpack(load_pack(table + in_tiles(id, unit * 8, HIDDEN_TILES)), value);
}
__device__ __forceinline__ void read_embedding(const unsigned char* table, int id, int unit, float (&value)[8]) {
    const float scale = scales_of(table, VOCAB, HIDDEN_TILES)[id];
    const u32* words = (const u32*)table + word_at(id, unit * 8, HIDDEN_TILES);
    unpack(widened(Octet{__ldcg(words), __ldcg(words + 2)}), value);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = __fmul_rn(value[i], scale);
}

// The residual stream begins: x is a row of the embedding table, which lies in the tiles of the head. By 256 threads.
__device__ __forceinline__ void begin_residual(
    const Weight* table, int id, i64 token, const float* next_norm, float* x, bf16* next_input, float* next_squares) {
    for (int unit = threadIdx.x; unit < HIDDEN_UNITS; unit += 256) {
        float value[8], square = 0;
        read_embedding(table, id, unit, value);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int column = unit * 8 + i;
            x[token * HIDDEN_PADDED + column] = value[i];
            next_input[in_tiles(token, column, HIDDEN_TILES)] = to_bf16(__fmul_rn(value[i], next_norm[column]));
            square = __fadd_rn(square, __fmul_rn(value[i], value[i]));
        }
        next_squares[token * HIDDEN_UNITS + unit] = square;
    }
}
