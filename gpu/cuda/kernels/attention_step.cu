// Attention of a step: a warp has a block, for up to 8 query heads that share its keys.
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

struct Cached { const bf16 *keys, *values; };  // of a head, from position 0 on

// The keys, then the values, of the block that begins at `first`, for a token that sees `length` positions: in the order
// in which they are needed, and so many at a time on their way to this lane.
struct Stream {
#ifdef TOKENS_OF_STEP
    static constexpr int AHEAD = HEAD_DIM > 64 ? 32 : 16;
#else
    static constexpr int AHEAD = 16;
#endif
    static constexpr int KEYS = STRETCHES * 8, ALL = KEYS + SPANS * 16;
    Pack on_their_way[AHEAD];
    const bf16 *keys, *values;
    int keys_left, values_left;  // positions from this lane's first one on
    bool asked = false;

    __device__ __forceinline__ Stream(const Cached& source, int first, int length) {
        const int lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
        keys = source.keys + (i64)(first + group) * HEAD_DIM + quad * 8;
        values = source.values + (i64)(first + quad * 2) * HEAD_DIM + group * 8;
        keys_left = length - first - group;
        values_left = length - first - quad * 2;
    }
    // Calls with whether the i-th is there for a lane, at which position from the lane's first one on, and where.
    template <class Each> __device__ __forceinline__ auto at(int i, Each each) const {
        const int lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
        if (i < KEYS) {
            const int on = i % 8 * 8, number = i / 8 * 32;
            return each(number + quad * 8 < HEAD_DIM, on - keys_left, keys + on * HEAD_DIM + number);
        }
        const int j = i - KEYS, on = j % 16 / 2 * 8 + j % 2, number = j / 16 * 64;
        return each(number + group * 8 < HEAD_DIM, on - values_left, values + on * HEAD_DIM + number);
    }
    __device__ __forceinline__ Pack read(int i) const {
        return at(i, [](bool there, int behind, const bf16* from) { return load_pack_if(there && behind < 0, from); });
    }
    __device__ __forceinline__ void ask() {
#pragma unroll
        for (int i = 0; i < (AHEAD < ALL ? AHEAD : ALL); ++i) on_their_way[i] = read(i);
        asked = true;
    }
    // The token's own position has been written since the others were asked for.
    __device__ __forceinline__ void ask_for_newest() {
        ++keys_left, ++values_left;
#pragma unroll
        for (int i = 0; i < (AHEAD < ALL ? AHEAD : ALL); ++i)
            at(i, [&](bool there, int behind, const bf16* from) {
                load_pack_instead(on_their_way[i], there && behind == -1, from);
            });
    }
    __device__ __forceinline__ Pack take(int i) {
        const Pack taken = on_their_way[i % AHEAD];
        if (i + AHEAD < ALL) on_their_way[i % AHEAD] = read(i + AHEAD);
        return taken;
    }
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

// The state of a block, whose stream has been asked for.
__device__ __forceinline__ BlockState attend_block(const Queries& queries, Stream& stream) {
    float score[4][4] = {};  // of positions 16 i + group, two queries, and 8 positions on
#pragma unroll
    for (int stretch = 0; stretch < STRETCHES; ++stretch) {
        const Pack query = queries.stretch[stretch];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Pack a = stream.take(stretch * 8 + i * 2), b = stream.take(stretch * 8 + i * 2 + 1);
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
            if (i * 8 >= stream.keys_left) it = NOTHING;
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
            const int at = Stream::KEYS + (span * 4 + i) * 4;
            const Pack a = stream.take(at), b = stream.take(at + 1), c = stream.take(at + 2), d = stream.take(at + 3);
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
template <class Barrier>
__device__ __forceinline__ void attend_split(
    const Queries& queries, Stream& stream, int split, int length, int thread, BlockStates& shared, Barrier barrier,
    State (&state)[ELEMENTS]) {
    const int blocks = min(ceil_div(length - split * SPLIT, BLOCK_POSITIONS), SPLIT_BLOCKS), block = thread / 32;
    if (block < blocks) leave(attend_block(queries, stream), shared, block);
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

// What this thread's warp reads of a split, for a token that sees so many positions.
__device__ __forceinline__ Stream stream_of(const Attention& memory, const Part& what, int split, int length, int thread) {
    return Stream(cached(memory.cache, what), split * SPLIT + thread / 32 * BLOCK_POSITIONS, length);
}

// One split of a part, by ATTENDING threads; their streams may have been asked for already. Who comes last of a part's
// splits merges what all have left.
template <class Barrier>
__device__ __forceinline__ void attend_part(
    Attending& shared, const Attention& memory, const Part& what, int split, Stream& stream, int thread, Barrier barrier) {
    const int part = what.index % PARTS, first_head = what.index / PARTS * GROUP + part * QUERIES;
    const int count = min(QUERIES, GROUP - part * QUERIES);
    if (thread == 0) shared.splits = ceil_div(what.length, SPLIT);
    const Queries queries = read_queries(memory.qkv + (i64)what.token * QKV_WIDTH + (i64)first_head * HEAD_DIM, count);
    if (!stream.asked) stream.ask();
    State state[ELEMENTS];
    attend_split(queries, stream, split, what.length, thread, shared.states, barrier, state);
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
