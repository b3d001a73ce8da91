// The five matrix products of a model, on tensor cores, each with the work that comes before and after it.
//
// A block computes a few units, of 8 rows of the matrix each, for a tile of tokens. Its 8 warps share K among them: the
// tiles of a unit are dealt to the warps in hands of up to 4, in turns, and the warps' sums are added in their order.
// That order depends on K alone: a token's bits are the same in a tile of 16, 32 or 64 tokens, so the same in decode and
// in prefill.
//
// The root mean square of a norm comes after the product: the kernel that wrote the residual stream left x times the
// norm's weight in bfloat16, and the sum of squares of each 8 numbers of x.
enum Kind { QKV, OUTPUT, GATE_UP, DOWN, HEAD };

constexpr int WARPS = 8;

template <int KIND> struct Matrix {
    static constexpr bool normed = KIND == QKV || KIND == GATE_UP || KIND == HEAD;
    static constexpr bool residual = KIND == OUTPUT || KIND == DOWN;
    static constexpr int n = KIND == QKV ? QKV_WIDTH : KIND == GATE_UP ? 2 * INTERMEDIATE : KIND == HEAD ? VOCAB : HIDDEN;
    static constexpr int k = KIND == OUTPUT ? HEADS * HEAD_DIM : KIND == DOWN ? INTERMEDIATE : HIDDEN;
    static constexpr int tiles = ceil_div(k, 32);
    static constexpr int hand = tiles % 32 == 0 ? 4 : tiles % 24 == 0 ? 3 : tiles % 16 == 0 ? 2 : 1;
    // Where the i-th tile of a warp lies, and how many it has.
    __device__ static constexpr int place(int warp, int i) { return (i / hand * WARPS + warp) * hand + i % hand; }
    __device__ static constexpr int count(int warp) { return (tiles - warp * hand + (WARPS - 1) * hand) / (WARPS * hand) * hand; }
};

// What becomes of a sum: of two neighbouring columns of a token.
struct Given {  // what the last step needs besides; each is read where there is time
    float scale;               // of the token, where the input is normed
    const float* bias;         // of the matrix, or null
    int row, position;         // of the token
    float2 x, next_norm;       // where the residual stream is added to
    float2 turn;               // cosine and sine, where the target has no table
};
struct Target {
    void* output;
    bf16* next_input;          // the residual stream, for the next norm
    float* next_squares;
    const float* table;        // of rotary embeddings, or null
    bf16* cache;
};

// All lanes of a warp come here; four in a row have the eight columns of a unit. `here`: there is such a token and column.
template <int KIND>
__device__ __forceinline__ void finish(float2 sum, const Given& given, const Target& target, int token, int column, bool here) {
    using M = Matrix<KIND>;
    const bool both = here && column + 1 < M::n;
    if (M::normed) {
        sum.x = __fmul_rn(sum.x, given.scale);
        sum.y = __fmul_rn(sum.y, given.scale);
    }
    if (given.bias && here) sum.x = __fadd_rn(sum.x, given.bias[column]);
    if (given.bias && both) sum.y = __fadd_rn(sum.y, given.bias[column + 1]);

    if (KIND == QKV && !QK_NORM) {  // rows 2 i and 2 i + 1 of a query or key head are its numbers i and i + HALF
        if (!here || given.row < 0) return;
        const int kept = column / HEAD_DIM - HEADS, within = column % HEAD_DIM, i = within / 2;
        bf16* to = target.cache + given.row * ROW_STRIDE + (i64)kept * HEAD_STRIDE + (i64)given.position * HEAD_DIM;
        if (kept < KV_HEADS)
            sum = target.table ? turned(sum.x, sum.y, target.table, given.position, i) : turned(sum.x, sum.y, given.turn);
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

template <int KIND, int TILES> struct Block {
    // Two units share what is read of the tokens, unless there would be too few blocks for the device.
    static constexpr int units = TILES > 1 || Matrix<KIND>::n >= 8192 ? 2 : 1;
    static constexpr int ahead = TILES == 1 ? 4 : 2;  // tiles of K whose weights are in flight
    static constexpr bool early = TILES == 1 && units == 2;  // the next tiles of the tokens as well: there are registers
    static constexpr int tokens = 16 * TILES;
    static constexpr int pairs = units * 4;
};

template <int KIND, int TILES>
__device__ __forceinline__ void product(
    int tokens, const bf16* weights, const float* bias, const bf16* input, const float* squares, void* output,
    const float* next_norm, bf16* next_input, float* next_squares, const int* pick, const int* rows, int* positions,
    const float* table, bf16* cache) {
    using M = Matrix<KIND>;
    using B = Block<KIND, TILES>;
    constexpr int UNITS = B::units, AHEAD = B::ahead;
    __shared__ float2 partial[WARPS][B::tokens][B::pairs];
    __shared__ float scale[B::tokens];
    __shared__ int row_of[B::tokens], position_of[B::tokens];  // read early, used late

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = lane >> 2, quad = lane & 3;
    const int first_unit = blockIdx.x * UNITS, first_token = blockIdx.y * B::tokens;
    const int count = M::count(warp);

    let_next_start();
    const bf16* mine = weights + in_tiles((i64)first_unit * 8 + group, quad * 4, M::tiles);
    auto weights_of = [&](int unit, int i) {
        return load_weights(mine + ((i64)unit * M::tiles + M::place(warp, i)) * TILE);
    };
    Pack next[AHEAD][UNITS];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit)
            if (i < count) next[i][unit] = weights_of(unit, i);
    wait_for_previous();

    // The last product of a decode step: each row is one token longer, and nothing else in the step asks for that now.
    if (KIND == HEAD && positions && blockIdx.x == 0 && blockIdx.y == 0)
        for (int token = threadIdx.x; token < tokens; token += WARPS * 32) positions[token] += 1;

    if ((KIND == QKV || KIND == HEAD) && threadIdx.x < B::tokens) {
        const int token = first_token + threadIdx.x;
        row_of[threadIdx.x] = token < tokens ? rows[token] : -1;
        if (KIND == QKV) position_of[threadIdx.x] = token < tokens ? positions[token] : 0;
    }
    if (M::normed) {
        for (int token = warp; token < B::tokens; token += WARPS) {
            if (first_token + token >= tokens) break;
            const int source = KIND == HEAD ? pick[first_token + token] : first_token + token;
            const float found = norm_scale(load_squares(squares + (i64)source * HIDDEN_UNITS));
            if (lane == 0) scale[token] = found;
        }
    }

    // Lane (group, quad) holds numbers of weight row `group` and of tokens `group` and `group` + 8.
    const bf16* from[TILES][2];
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = first_token + i * 16 + half * 8 + group;
            const int source = token >= tokens ? -1 : KIND == HEAD ? pick[token] : token;
            from[i][half] = source < 0 ? nullptr : input + in_tiles(source, quad * 4, M::tiles);
        }
    auto read_tokens = [&](Pack (&to)[AHEAD][TILES][2], int first) {
#pragma unroll
        for (int j = 0; j < AHEAD; ++j)
#pragma unroll
            for (int i = 0; i < TILES; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    to[j][i][half] = {0, 0, 0, 0};
                    if (from[i][half] && first + j < count)
                        to[j][i][half] = load_tokens(from[i][half] + M::place(warp, first + j) * TILE);
                }
    };
    float sums[TILES][UNITS][4] = {};
    Pack a[AHEAD][TILES][2], later[AHEAD][TILES][2];
    if (B::early) read_tokens(later, 0);
    for (int done = 0; done < count; done += AHEAD) {
        if (B::early) {
#pragma unroll
            for (int j = 0; j < AHEAD; ++j)
#pragma unroll
                for (int i = 0; i < TILES; ++i)
#pragma unroll
                    for (int half = 0; half < 2; ++half) a[j][i][half] = later[j][i][half];
            read_tokens(later, done + AHEAD);
        } else {
            read_tokens(a, done);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            if (done + j >= count) break;
#pragma unroll
            for (int unit = 0; unit < UNITS; ++unit) {
                const Pack b = next[j][unit];
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    const Pack first = a[j][i][0], second = a[j][i][1];
                    multiply(sums[i][unit], first.x, second.x, first.y, second.y, b.x, b.y);
                    multiply(sums[i][unit], first.z, second.z, first.w, second.w, b.z, b.w);
                }
                if (done + j + AHEAD < count)
                    next[j][unit] = weights_of(unit, done + j + AHEAD);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            partial[warp][i * 16 + group][unit * 4 + quad] = make_float2(sums[i][unit][0], sums[i][unit][1]);
            partial[warp][i * 16 + 8 + group][unit * 4 + quad] = make_float2(sums[i][unit][2], sums[i][unit][3]);
        }
    __syncthreads();

    const Target target = {output, next_input, next_squares, table, cache};
    for (int item = threadIdx.x; item < B::tokens * B::pairs; item += WARPS * 32) {
        const int local = item / B::pairs, pair = item % B::pairs, token = first_token + local;
        const int column = first_unit * 8 + pair * 2;
        float2 sum = partial[0][local][pair];
#pragma unroll
        for (int other = 1; other < WARPS; ++other) {
            sum.x = __fadd_rn(sum.x, partial[other][local][pair].x);
            sum.y = __fadd_rn(sum.y, partial[other][local][pair].y);
        }
        const bool here = token < tokens && column < M::n;
        Given given = {scale[local], bias, row_of[local], position_of[local], {0, 0}, {0, 0}};
        if (M::residual && here) {
            const float* x = (const float*)output + (i64)token * HIDDEN_PADDED + column;
            given.x = make_float2(__ldcg(x), __ldcg(x + 1));
            given.next_norm = make_float2(next_norm[column], next_norm[column + 1]);
        }
        finish<KIND>(sum, given, target, token, column, here);
    }
}

#ifndef TOKENS_OF_STEP  // the kernels one by one
#define PRODUCT(name, kind, tiles)                                                                                     \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) name##_##tiles(                                           \
        i64 tokens, const bf16* weights, const float* bias, const bf16* input, const float* squares, void* output,     \
        const float* next_norm, bf16* next_input, float* next_squares, const int* pick, const int* rows,               \
        int* positions, const float* table, bf16* cache) {                                                             \
        product<kind, tiles>(                                                                                          \
            (int)tokens, weights, bias, input, squares, output, next_norm, next_input, next_squares, pick, rows,       \
            positions, table, cache);                                                                                  \
    }
#define PRODUCTS(name, kind) PRODUCT(name, kind, 1) PRODUCT(name, kind, 2) PRODUCT(name, kind, 4)
PRODUCTS(qkv, QKV)
PRODUCTS(output, OUTPUT)
PRODUCTS(gate_up, GATE_UP)
PRODUCTS(down, DOWN)
PRODUCTS(head, HEAD)
#endif

// The residual stream begins: x is a row of the embedding table, which lies in the tiles of the head. By 256 threads.
__device__ __forceinline__ void begin_residual(
    const bf16* table, int id, i64 token, const float* next_norm, float* x, bf16* next_input, float* next_squares) {
    for (int unit = threadIdx.x; unit < HIDDEN_UNITS; unit += 256) {
        float value[8], square = 0;
        unpack(load_pack(table + in_tiles(id, unit * 8, HIDDEN_TILES)), value);
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
#ifndef TOKENS_OF_STEP
extern "C" __global__ void __launch_bounds__(256) embed(
    i64 tokens, const bf16* table, const int* ids, const int* drawn, const int* rows, const float* next_norm, float* x,
    bf16* next_input, float* next_squares) {
    let_next_start();
    wait_for_previous();
    const int token = blockIdx.x, row = rows[token], id = row < 0 ? 0 : ids ? ids[token] : drawn[2 * row];
    begin_residual(table, id, token, next_norm, x, next_input, next_squares);
}
#endif
