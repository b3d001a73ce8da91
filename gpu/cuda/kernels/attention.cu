// Attention over what the cache holds; before it, where heads are normalised, rotary embedding and the cache's write.
#if QK_NORM && !defined TOKENS_OF_STEP
// One warp a head: normalise it, turn it by its position, and put keys and values into the cache.
extern "C" __global__ void __launch_bounds__(128) rope(
    i64 tokens, float* qkv, const float* table, const float* query_norm, const float* key_norm, const int* rows,
    const int* positions, bf16* cache) {
    let_next_start();
    wait_for_previous();
    const int lane = threadIdx.x & 31, head = blockIdx.x * 4 + (threadIdx.x >> 5);
    const i64 token = blockIdx.y;
    const int row = rows[token];
    if (row < 0 || head >= HEADS + 2 * KV_HEADS) return;
    const int position = positions[token], kept = head - HEADS;  // keys come first, then values
    float* v = qkv + token * QKV_WIDTH + (i64)head * HEAD_DIM;
    bf16* to = cache + row * ROW_STRIDE + (i64)kept * HEAD_STRIDE + (i64)position * HEAD_DIM;
    if (kept >= KV_HEADS) {
        for (int i = lane; i < HEAD_DIM; i += 32) to[i] = to_bf16(v[i]);
        return;
    }
    const float* norm = kept < 0 ? query_norm : key_norm;
    float sum = 0;
    for (int i = lane; i < HEAD_DIM; i += 32) sum = __fadd_rn(sum, __fmul_rn(v[i], v[i]));
    const float scale = rsqrtf(warp_sum(sum) / HEAD_DIM + EPS);
    for (int i = lane; i < HALF; i += 32) {
        const float a = __fmul_rn(__fmul_rn(v[i], scale), norm[i]);
        const float b = __fmul_rn(__fmul_rn(v[i + HALF], scale), norm[i + HALF]);
        const float2 pair = turned(a, b, table, position, i);
        if (kept < 0) {
            v[i] = __fmul_rn(pair.x, ATTENTION_SCALE);
            v[i + HALF] = __fmul_rn(pair.y, ATTENTION_SCALE);
        } else {
            to[i] = to_bf16(pair.x);
            to[i + HALF] = to_bf16(pair.y);
        }
    }
}
#endif

// The one order in which a token attends, whoever computes it. Positions are cut into blocks of 64, always at the same
// places. A block leaves, for each query head, the largest score m, the sum l of exp2(score - m), and the sum o of the
// values weighed so: the state of the block. States of the 8 blocks of a split are merged from the first to the last,
// then states of splits. To merge with the state of nothing changes no bit, so what is wholly masked may be left out.
//
// Tensor cores do the sums of a block. A dot product is the same whichever operand holds the queries: a step has the
// few query heads of a key head as 8 columns, a prompt has 16 pairs of token and head as rows. Where the numbers of a
// key, or the positions of a block, lie in an instruction is the same in both.
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int BLOCK_POSITIONS = 64, SPLIT_BLOCKS = 8;
constexpr int SPLIT = BLOCK_POSITIONS * SPLIT_BLOCKS;
constexpr int MAX_SPLITS = ceil_div(CAPACITY, SPLIT);
constexpr int STRETCHES = ceil_div(HEAD_DIM, 32);  // of a key: two instructions each, a lane has 8 numbers of them
constexpr int SPANS = ceil_div(HEAD_DIM, 64);      // of a value
#define NOTHING __uint_as_float(0xff800000u)

struct State { float m, l, o; };

// What scores are told from: with no score at all every weight is exp2(-inf).
__device__ __forceinline__ float base(float largest) { return largest == NOTHING ? 0.0f : largest; }
__device__ __forceinline__ float weighed(float score, float base) { return exp2_fast(__fsub_rn(score, base)); }
__device__ __forceinline__ float merged(float into, float keep, float other, float take) {
    return __fmaf_rn(other, take, __fmul_rn(into, keep));
}
__device__ __forceinline__ void merge(State& into, State other) {
    const float m = fmaxf(into.m, other.m), keep = weighed(into.m, base(m)), take = weighed(other.m, base(m));
    into.m = m;
    into.l = merged(into.l, keep, other.l, take);
    into.o = merged(into.o, keep, other.o, take);
}
// A zero has no sign here: it depends on how many states of nothing were merged.
__device__ __forceinline__ float attended_to(float o, float share) { return __fmul_rn(__fadd_rn(o, 0.0f), share); }

__device__ __forceinline__ Pack packed(const float* v) {
    const float4 a = __ldcg((const float4*)v), b = __ldcg((const float4*)v + 1);
    return {pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w)};
}

// --- a step: a warp has a block, for up to 8 query heads that share its keys -------------------------------------

constexpr int MOST_QUERIES = 1024 / HEAD_DIM < 8 ? 1024 / HEAD_DIM : 8;
constexpr int PARTS = ceil_div(GROUP, MOST_QUERIES);  // of the heads that share a key
constexpr int QUERIES = ceil_div(GROUP, PARTS);
constexpr int ATTENDING = SPLIT_BLOCKS * 32;  // threads
constexpr int ELEMENTS = ceil_div(QUERIES * HEAD_DIM, ATTENDING);

// Lane (group, quad) has numbers 8 quad to 8 quad + 7 of each stretch of query `group`.
struct Queries { Pack stretch[STRETCHES]; };

// Lane (group, quad) has m and l of queries 2 quad and 2 quad + 1, and of these the numbers 8 group to 8 group + 7 of
// each span: o[span][i] is number 2 i of both, then number 2 i + 1 of both.
struct BlockState { float m[2], l[2], o[SPANS][4][4]; };

struct BlockStates {  // of a split, in shared memory
    float m[SPLIT_BLOCKS][QUERIES], l[SPLIT_BLOCKS][QUERIES];
    float o[SPLIT_BLOCKS][QUERIES][HEAD_DIM + 4];
};

// Where keys and values are. Who keeps a position elsewhere than in the cache gives that address instead of `here`.
struct Cached {
    const bf16 *keys, *values;
    __device__ const bf16* key(int position, const bf16* here) const { return here; }
    __device__ const bf16* value(int position, const bf16* here) const { return here; }
};

__device__ __forceinline__ Queries read_queries(const float* queries, int count) {
    const int lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
    Queries read;
#pragma unroll
    for (int i = 0; i < STRETCHES; ++i) {
        const int number = i * 32 + quad * 8;
        read.stretch[i] = {0, 0, 0, 0};
        if (group < count && number < HEAD_DIM) read.stretch[i] = packed(queries + group * HEAD_DIM + number);
    }
    return read;
}

// The state of the block that begins at `first`, for a token that sees `length` positions.
template <class Source>
__device__ __forceinline__ BlockState attend_block(const Queries& queries, const Source& source, int first, int length) {
    const int lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
    // Keys, then values, in the order in which they are needed: so many are on their way at any time.
    constexpr int KEYS = STRETCHES * 8, ALL = KEYS + SPANS * 16, AHEAD = 16;
    Pack on_their_way[AHEAD] = {};
    const bf16* keys = source.keys + (i64)(first + group) * HEAD_DIM + quad * 8;
    const bf16* values = source.values + (i64)(first + quad * 2) * HEAD_DIM + group * 8;
    const int key_left = length - first - group, value_left = length - first - quad * 2;
    auto read = [&](int i) -> Pack {
        if (i < KEYS) {
            const int on = i % 8 * 8, number = i / 8 * 32;
            const bool there = on < key_left && number + quad * 8 < HEAD_DIM;
            return load_pack_if(there, source.key(first + group + on, keys + on * HEAD_DIM + number));
        }
        const int j = i - KEYS, on = j % 16 / 2 * 8 + j % 2, number = j / 16 * 64;
        const bool there = on < value_left && number + group * 8 < HEAD_DIM;
        return load_pack_if(there, source.value(first + quad * 2 + on, values + on * HEAD_DIM + number));
    };
    auto take = [&](int i) -> Pack {
        const Pack taken = on_their_way[i % AHEAD];
        if (i + AHEAD < ALL) on_their_way[i % AHEAD] = read(i + AHEAD);
        return taken;
    };
#pragma unroll
    for (int i = 0; i < (AHEAD < ALL ? AHEAD : ALL); ++i) on_their_way[i] = read(i);

    float score[4][4] = {};  // of positions 16 i + group, two queries, and 8 positions on
#pragma unroll
    for (int stretch = 0; stretch < STRETCHES; ++stretch) {
        const Pack query = queries.stretch[stretch];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Pack a = take(stretch * 8 + i * 2), b = take(stretch * 8 + i * 2 + 1);
            multiply(score[i], a.x, b.x, a.y, b.y, query.x, query.y);
            multiply(score[i], a.z, b.z, a.w, b.w, query.z, query.w);
        }
    }
    BlockState state = {{NOTHING, NOTHING}, {}, {}};
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int query = 0; query < 2; ++query) {
            float& it = score[i / 2][i % 2 * 2 + query];
            if (i * 8 >= key_left) it = NOTHING;
            state.m[query] = fmaxf(state.m[query], it);
        }
#pragma unroll
    for (int query = 0; query < 2; ++query) {
        float& m = state.m[query];
#pragma unroll
        for (int step = 4; step < 32; step *= 2) m = fmaxf(m, __shfl_xor_sync(ALL_LANES, m, step));
        const float from = base(m);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float& it = score[i / 2][i % 2 * 2 + query];
            it = weighed(it, from);
            sum = __fadd_rn(sum, it);
        }
#pragma unroll
        for (int step = 4; step < 32; step *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, step));
        state.l[query] = sum;
    }
    u32 weights[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) weights[i] = transposed(pair(score[i / 2][i % 2 * 2], score[i / 2][i % 2 * 2 + 1]));
#pragma unroll
    for (int span = 0; span < SPANS; ++span)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = KEYS + (span * 4 + i) * 4;
            const Pack a = take(at), b = take(at + 1), c = take(at + 2), d = take(at + 3);
            auto each = [&](float(&o)[4], u32 a, u32 b, u32 c, u32 d) {
                multiply(o, lows(a, b), highs(a, b), lows(c, d), highs(c, d), weights[i * 2], weights[i * 2 + 1]);
            };
            each(state.o[span][0], a.x, b.x, c.x, d.x);
            each(state.o[span][1], a.y, b.y, c.y, d.y);
            each(state.o[span][2], a.z, b.z, c.z, d.z);
            each(state.o[span][3], a.w, b.w, c.w, d.w);
        }
    return state;
}

__device__ __forceinline__ void leave(const BlockState& state, BlockStates& shared, int block) {
    const int lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int query = quad * 2 + i;
        if (query >= QUERIES) continue;
        if (group == 0) {
            shared.m[block][query] = state.m[i];
            shared.l[block][query] = state.l[i];
        }
#pragma unroll
        for (int span = 0; span < SPANS; ++span) {
            const int number = span * 64 + group * 8;
            if (number >= HEAD_DIM) continue;
            float4* to = (float4*)&shared.o[block][query][number];
            auto& o = state.o[span];
            to[0] = {o[0][i], o[0][i + 2], o[1][i], o[1][i + 2]};
            to[1] = {o[2][i], o[2][i + 2], o[3][i], o[3][i + 2]};
        }
    }
}

// Calls each(i, query, number) for the elements of [QUERIES, HEAD_DIM] that are those of a thread.
template <class Each> __device__ __forceinline__ void for_elements(int thread, Each each) {
#pragma unroll
    for (int i = 0; i < ELEMENTS; ++i) {
        const int element = thread + i * ATTENDING;
        if (element < QUERIES * HEAD_DIM) each(i, element / HEAD_DIM, element % HEAD_DIM);
    }
}

// The state of a split, of the elements of a thread, in `state`; all ATTENDING threads call, a warp for each block, and
// `barrier` lets none of them on before all have come.
template <class Source, class Barrier>
__device__ __forceinline__ void attend_split(
    const Queries& queries, const Source& source, int split, int length, int thread, BlockStates& shared,
    Barrier barrier, State (&state)[ELEMENTS]) {
    const int first = split * SPLIT, blocks = min(ceil_div(length - first, BLOCK_POSITIONS), SPLIT_BLOCKS);
    const int block = thread / 32;
    if (block < blocks) leave(attend_block(queries, source, first + block * BLOCK_POSITIONS, length), shared, block);
    barrier();
    for_elements(thread, [&](int i, int query, int number) {
        state[i] = {NOTHING, 0, 0};
#pragma unroll
        for (int block = 0; block < SPLIT_BLOCKS; ++block)
            if (block < blocks)
                merge(state[i], {shared.m[block][query], shared.l[block][query], shared.o[block][query][number]});
    });
}

// The states of splits that other blocks of threads computed: [QUERIES, MAX_SPLITS, HEAD_DIM + 2].
__device__ __forceinline__ i64 split_at(int query, int split) {
    return ((i64)query * MAX_SPLITS + split) * (HEAD_DIM + 2);
}
__device__ __forceinline__ void leave_split(const State (&state)[ELEMENTS], float* partials, int split, int thread) {
    for_elements(thread, [&](int i, int query, int number) {
        float* to = partials + split_at(query, split);
        __stcg(to + number, state[i].o);
        if (number == 0) {
            __stcg(to + HEAD_DIM, state[i].m);
            __stcg(to + HEAD_DIM + 1, state[i].l);
        }
    });
}
__device__ __forceinline__ void merge_splits(State (&total)[ELEMENTS], const float* partials, int splits, int thread) {
    constexpr int AT_ONCE = 8;
    for_elements(thread, [&](int i, int query, int number) {
        total[i] = {NOTHING, 0, 0};
        for (int first = 0; first < splits; first += AT_ONCE) {
            State state[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                const float* from = partials + split_at(query, first + j);
                state[j] = {NOTHING, 0, 0};
                if (first + j < splits) state[j] = {__ldcg(from + HEAD_DIM), __ldcg(from + HEAD_DIM + 1), __ldcg(from + number)};
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) merge(total[i], state[j]);
        }
    });
}

struct Attending {  // in shared memory
    BlockStates states;
    int splits, last;
};
struct Attention { const float* qkv; const bf16* cache; bf16* attended; float* partials; int* arrivals; };  // of a layer
struct Part { int token, row, length, index; };  // heads of a token that share a key head

__device__ __forceinline__ Cached cached(const bf16* cache, const Part& what) {
    const bf16* keys = cache + what.row * ROW_STRIDE + (i64)(what.index / PARTS) * HEAD_STRIDE;
    return {keys, keys + KV_HEADS * HEAD_STRIDE};
}
// Sends the blocks of a split on their way to L2.
__device__ __forceinline__ void prefetch_split(const Cached& source, int split, int length, int thread) {
    const i64 first = ((i64)split * SPLIT + thread / 32 * BLOCK_POSITIONS) * HEAD_DIM, end = (i64)length * HEAD_DIM;
    for (int i = thread % 32 * 64; i < BLOCK_POSITIONS * HEAD_DIM; i += 32 * 64)
        if (first + i < end) prefetch(source.keys + first + i);
    for (int i = thread % 32 * 64; i < BLOCK_POSITIONS * HEAD_DIM; i += 32 * 64)
        if (first + i < end) prefetch(source.values + first + i);
}

// One split of a part, by ATTENDING threads. Who comes last of a part's splits merges what all have left.
template <class Barrier>
__device__ __forceinline__ void attend_part(
    Attending& shared, const Attention& memory, const Part& what, int split, int thread, Barrier barrier) {
    const int part = what.index % PARTS, first_head = what.index / PARTS * GROUP + part * QUERIES;
    const int count = min(QUERIES, GROUP - part * QUERIES);
    if (thread == 0) shared.splits = ceil_div(what.length, SPLIT);
    const Queries queries = read_queries(memory.qkv + (i64)what.token * QKV_WIDTH + (i64)first_head * HEAD_DIM, count);
    State state[ELEMENTS];
    attend_split(queries, cached(memory.cache, what), split, what.length, thread, shared.states, barrier, state);
    if (shared.splits > 1) {
        const i64 place = (i64)what.token * KV_HEADS * PARTS + what.index;
        float* left = memory.partials + place * QUERIES * MAX_SPLITS * (HEAD_DIM + 2);
        leave_split(state, left, split, thread);
        __threadfence();
        barrier();
        if (thread == 0) {
            int* arrived = memory.arrivals + place;
            shared.last = atomicAdd(arrived, 1) == shared.splits - 1;
            if (shared.last) *arrived = 0;
            __threadfence();
        }
        barrier();
        if (!shared.last) return;
        merge_splits(state, left, shared.splits, thread);
    }
    for_elements(thread, [&](int i, int query, int number) {
        if (query < count)
            memory.attended[in_tiles(what.token, (first_head + query) * HEAD_DIM + number, ATTENDED_TILES)] =
                to_bf16(attended_to(state[i].o, 1.0f / state[i].l));
    });
}

#ifndef TOKENS_OF_STEP
// Grid: as many splits as the longest row may have, heads of keys times PARTS, tokens.
extern "C" __global__ void __launch_bounds__(ATTENDING, ELEMENTS > 2 ? 1 : 2) attention_step(
    i64 tokens, const float* qkv, const bf16* cache, const int* rows, const int* positions, bf16* attended,
    float* partials, int* arrivals) {
    __shared__ Attending shared;
    let_next_start();
    const int token = blockIdx.z, row = rows[token];  // no kernel writes them
    Part what = {token, row, __ldcg(positions + token) + 1, (int)blockIdx.y};
    // Where the row ends may be wrong before all else is there: that does no harm to what is only on its way.
    if (row >= 0) prefetch_split(cached(cache, what), blockIdx.x, what.length, threadIdx.x);
    wait_for_previous();
    what.length = __ldcg(positions + token) + 1;
    if (row < 0 || (int)blockIdx.x * SPLIT >= what.length) return;
    attend_part(
        shared, {qkv, cache, attended, partials, arrivals}, what, blockIdx.x, threadIdx.x, [] { __syncthreads(); });
}

// --- a prompt: a warp has 16 pairs of token and query head, its block of threads shares what it reads of the cache ---

constexpr int SHARES = HEAD_DIM > 128 ? 4 : 1;  // of the numbers of a value, a warp each: there are not registers for all
constexpr int TILE_PAIRS = SHARES > 1 ? 16 : 128;
constexpr int TILE_WARPS = TILE_PAIRS / 16 * SHARES, TILE_THREADS = TILE_WARPS * 32;
constexpr int TILE_PARTS = ceil_div(GROUP, TILE_PAIRS);
constexpr int TILE_HEADS = ceil_div(GROUP, TILE_PARTS);
constexpr int TILE_TOKENS = TILE_PAIRS / TILE_HEADS;
constexpr int STAGES = SHARES > 1 ? 1 : 2;
constexpr int COLUMNS = ceil_div(HEAD_DIM, SHARES * 16);  // of 16 numbers of a value, a warp's
constexpr int KEY_STRIDE = STRETCHES * 32;
constexpr bool PADDED = COLUMNS * SHARES % 4;
constexpr int VALUE_STRIDE = COLUMNS * SHARES * 16 + (PADDED ? 8 : 0);
constexpr int STAGE_PACKS = BLOCK_POSITIONS * (KEY_STRIDE + VALUE_STRIDE) / 8;

// No two lanes that read at once meet in a bank: they read two rows of keys, and eight rows of values.
__device__ __forceinline__ int key_at(int position, int number) {
    return position * KEY_STRIDE + (KEY_STRIDE % 64 ? number : number ^ (position & 1) * 32);
}
__device__ __forceinline__ int value_at(int position, int number) {
    return position * VALUE_STRIDE + (PADDED ? number : number ^ (position & 7) * 8);
}

// Grid: heads of keys times TILE_PARTS, tiles of TILE_TOKENS tokens. Tokens of a row lie together, and ascend.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) attention_prompt(
    i64 tokens, const float* qkv, const bf16* cache, const int* rows, const int* positions, bf16* attended) {
    SHARED_MEMORY(memory);
    __shared__ int row_of[TILE_TOKENS], position_of[TILE_TOKENS], end_of[TILE_TOKENS];  // the tokens of a row end there
    __shared__ int token_of[TILE_PAIRS], sight_of[TILE_PAIRS];  // of pairs; no token and no position are -1
    __shared__ int least_sight[TILE_WARPS], most_sight[TILE_WARPS];
    let_next_start();
    wait_for_previous();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = lane >> 2, quad = lane & 3;
    const int head = blockIdx.x / TILE_PARTS, first_head = blockIdx.x % TILE_PARTS * TILE_HEADS;
    const int first_token = (gridDim.y - 1 - blockIdx.y) * TILE_TOKENS;  // the last tokens have the most to do
    for (int i = threadIdx.x; i < TILE_TOKENS; i += TILE_THREADS) {
        const bool there = first_token + i < (int)tokens;
        row_of[i] = there ? rows[first_token + i] : -1;
        position_of[i] = there ? positions[first_token + i] : -1;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TILE_PAIRS; i += TILE_THREADS) {
        const int token = i / TILE_HEADS;
        const bool there = token < TILE_TOKENS && first_head + i % TILE_HEADS < GROUP && row_of[token] >= 0;
        token_of[i] = there ? token : -1;
        if (i < TILE_TOKENS) {
            int end = i + 1;
            while (end < TILE_TOKENS && row_of[end] == row_of[i]) ++end;
            end_of[i] = end;
        }
    }
    __syncthreads();
    auto pair_of = [&](int i) { return warp / SHARES * 16 + i * 8 + group; };
    const int first_column = warp % SHARES * COLUMNS;
    auto number_of = [&](int i) { return (head * GROUP + first_head + pair_of(i) % TILE_HEADS) * HEAD_DIM; };
    auto read_query = [&](int i, int stretch) -> Pack {
        const int number = stretch * 32 + quad * 8, token = token_of[pair_of(i)];
        if (token < 0 || number >= HEAD_DIM) return {0, 0, 0, 0};
        return packed(qkv + (i64)(first_token + token) * QKV_WIDTH + number_of(i) + number);
    };
    Pack* query = memory + STAGES * STAGE_PACKS + threadIdx.x;  // what a lane has of each stretch, of both rows
#pragma unroll
    for (int i = 0; i < STRETCHES * 2; ++i) query[i * TILE_THREADS] = read_query(i % 2, i / 2);

    // States of the split and of all splits before it, of rows `group` and `group` + 8. Their m and l lie in one register
    // of four lanes: m of both rows, then l of both.
    const float empty = quad < 2 ? NOTHING : 0.0f;
    float split_m_l = empty, split_o[COLUMNS * 2][4] = {}, total_m_l = empty, total_o[COLUMNS * 2][4] = {};
    auto of_lane = [&](float m_l, int which) { return __shfl_sync(ALL_LANES, m_l, group * 4 + which); };
    auto merge_m_l = [&](float& into, const float* m, const float* l, float* keep, float* take) {
        const float old_m[2] = {of_lane(into, 0), of_lane(into, 1)}, old_l[2] = {of_lane(into, 2), of_lane(into, 3)};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float both = fmaxf(old_m[i], m[i]);
            keep[i] = weighed(old_m[i], base(both));
            take[i] = weighed(m[i], base(both));
            if (quad == i) into = both;
            if (quad == i + 2) into = merged(old_l[i], keep[i], l[i], take[i]);
        }
    };

    for (int first = 0; first < TILE_TOKENS; first = end_of[first]) {  // tokens of one row
        if (row_of[first] < 0) continue;
        auto last_position = [&] { return position_of[end_of[first] - 1]; };
        constexpr int PACKS = BLOCK_POSITIONS * (HEAD_DIM / 8);
        auto fetch = [&](int block) {
            const bf16* keys = cache + row_of[first] * ROW_STRIDE + head * HEAD_STRIDE;
            const bf16* values = keys + KV_HEADS * HEAD_STRIDE;
            bf16* key_to = (bf16*)(memory + block % STAGES * STAGE_PACKS);
            bf16* value_to = key_to + BLOCK_POSITIONS * KEY_STRIDE;
#pragma unroll 1
            for (int j = 0; j < ceil_div(PACKS, TILE_THREADS); ++j) {
                const int i = j * TILE_THREADS + threadIdx.x;
                if (PACKS % TILE_THREADS && i >= PACKS) break;
                const int within = i / (HEAD_DIM / 8), number = i % (HEAD_DIM / 8) * 8;
                const int position = block * BLOCK_POSITIONS + within;
                const bool there = position <= last_position();  // what lies behind may be anything, NaN as well
                const i64 from = (i64)(there ? position : 0) * HEAD_DIM + number;
                copy_early(key_to + key_at(within, number), keys + from, there);
                copy_early(value_to + value_at(within, number), values + from, there);
            }
        };
        int least = CAPACITY, most = -1;  // of what pairs of a warp see last
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int token = token_of[pair_of(i)], sight = token >= first && token < end_of[first] ? position_of[token] : -1;
            sight_of[pair_of(i)] = sight;
            if (token >= 0) least = min(least, sight);
            most = max(most, sight);
        }
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
            least = min(least, __shfl_xor_sync(ALL_LANES, least, step));
            most = max(most, __shfl_xor_sync(ALL_LANES, most, step));
        }
        least_sight[warp] = least;
        most_sight[warp] = most;
        __syncthreads();  // what is shared is read
        fetch(0);
        bool more = true;
        for (int block = 0; more; ++block) {
            more = (block + 1) * BLOCK_POSITIONS <= last_position();
            wait_for_copies();
            __syncthreads();
            if (STAGES > 1 && more) fetch(block + 1);
            const bf16* key_from = (const bf16*)(memory + block % STAGES * STAGE_PACKS);
            const bf16* value_from = key_from + BLOCK_POSITIONS * KEY_STRIDE;
            const int position = block * BLOCK_POSITIONS;
            if (position <= most_sight[warp]) {
                float score[8][4] = {};
#pragma unroll
                for (int stretch = 0; stretch < STRETCHES; ++stretch) {
                    const Pack a = query[stretch * 2 * TILE_THREADS], b = query[(stretch * 2 + 1) * TILE_THREADS];
                    const int number = stretch * 32 + quad * 8;
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        Pack key = {0, 0, 0, 0};
                        if (number < HEAD_DIM) key = *(const Pack*)(key_from + key_at(i * 8 + group, number));
                        multiply(score[i], a.x, b.x, a.y, b.y, key.x, key.y);
                        multiply(score[i], a.z, b.z, a.w, b.w, key.z, key.w);
                    }
                }
                if (position + BLOCK_POSITIONS - 1 > least_sight[warp]) {
                    const int sees[2] = {sight_of[pair_of(0)], sight_of[pair_of(1)]};
#pragma unroll
                    for (int i = 0; i < 32; ++i)
                        if (position + i / 4 * 8 + quad * 2 + i % 2 > sees[i / 2 % 2]) score[i / 4][i % 4] = NOTHING;
                }
                float m[2], l[2], keep[2], take[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float largest = NOTHING, sum[2] = {};
#pragma unroll
                    for (int j = 0; j < 16; ++j) largest = fmaxf(largest, score[j / 2][i * 2 + j % 2]);
                    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
                    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
                    const float from = base(largest);
#pragma unroll
                    for (int j = 0; j < 16; ++j) {
                        float& it = score[j / 2][i * 2 + j % 2];
                        it = weighed(it, from);
                        sum[j % 2] = __fadd_rn(sum[j % 2], it);
                    }
                    float all = __fadd_rn(sum[0], sum[1]);
                    all = __fadd_rn(all, __shfl_xor_sync(ALL_LANES, all, 1));
                    all = __fadd_rn(all, __shfl_xor_sync(ALL_LANES, all, 2));
                    m[i] = largest;
                    l[i] = all;
                }
                merge_m_l(split_m_l, m, l, keep, take);
                u32 weights[4][4];
#pragma unroll
                for (int i = 0; i < 16; ++i)
                    weights[i / 4][i % 4] = pair(score[i / 2][i % 2 * 2], score[i / 2][i % 2 * 2 + 1]);
                if (tokens < 0) return;  // never: the compiler mixes what is above and below, and is short of registers
#pragma unroll
                for (int i = 0; i < COLUMNS; ++i) {
                    float sum[2][4] = {};
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const Pack v = load_transposed(
                            value_from + value_at(j * 16 + lane % 16, (first_column + i) * 16 + lane / 16 * 8));
                        const u32(&w)[4] = weights[j];
                        multiply(sum[0], w[0], w[1], w[2], w[3], v.x, v.y);
                        multiply(sum[1], w[0], w[1], w[2], w[3], v.z, v.w);
                    }
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        float& it = split_o[i * 2 + j / 4][j % 4];
                        it = merged(it, keep[j / 2 % 2], sum[j / 4][j % 4], take[j / 2 % 2]);
                    }
                }
            }
            if (block % SPLIT_BLOCKS == SPLIT_BLOCKS - 1 || !more) {
                const float m[2] = {of_lane(split_m_l, 0), of_lane(split_m_l, 1)};
                const float l[2] = {of_lane(split_m_l, 2), of_lane(split_m_l, 3)};
                float keep[2], take[2];
                merge_m_l(total_m_l, m, l, keep, take);
                split_m_l = empty;
#pragma unroll
                for (int i = 0; i < COLUMNS * 2; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        total_o[i][j] = merged(total_o[i][j], keep[j / 2], split_o[i][j], take[j / 2]);
                        split_o[i][j] = 0;
                    }
            }
            if (STAGES == 1) {
                __syncthreads();
                if (more) fetch(block + 1);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int token = token_of[pair_of(i)];
        const float share = 1.0f / of_lane(total_m_l, i + 2);
        if (token < 0) continue;
#pragma unroll
        for (int j = 0; j < COLUMNS * 2; ++j) {
            const int number = first_column * 16 + j * 8;
            const float* of = total_o[j] + i * 2;
            if (number < HEAD_DIM)
                *(u32*)(attended + in_tiles(first_token + token, number_of(i) + number + quad * 2, ATTENDED_TILES)) =
                    pair(attended_to(of[0], share), attended_to(of[1], share));
        }
    }
}
#endif
