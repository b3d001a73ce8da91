// Attention of a step: a warp has a block, for up to 8 query heads that share its keys.
constexpr int MOST_QUERIES = 1024 / HEAD_DIM < 8 ? 1024 / HEAD_DIM : 8;
constexpr int PARTS = ceil_div(GROUP, MOST_QUERIES);  // of the heads that share a key
constexpr int QUERIES = ceil_div(GROUP, PARTS);
constexpr int ATTENDING = SPLIT_BLOCKS * 32;  // threads
constexpr int ELEMENTS = ceil_div(QUERIES * HEAD_DIM, ATTENDING);
constexpr int RESIDENT = (QUERIES * HEAD_DIM > 512 ? 256 : 512) / ATTENDING;  // blocks of a multiprocessor, at least

// Lane (group, quad) has numbers 8 quad to 8 quad + 7 of each stretch of query `group`.
struct Queries { Pack stretch[STRETCHES]; };

// Lane (group, quad) has m and l of queries 2 quad and 2 quad + 1, and of these the numbers 8 group to 8 group + 7 of
// each span: o[span][i] is number 2 i of both, then number 2 i + 1 of both.
struct BlockState { float m[2], l[2], o[SPANS][4][4]; };

struct BlockStates {  // of a split, in shared memory
    float m[SPLIT_BLOCKS][QUERIES], l[SPLIT_BLOCKS][QUERIES];
    float o[SPLIT_BLOCKS][QUERIES][HEAD_DIM + 4];
};

constexpr i64 VALUES = KV_HEADS * HEAD_STRIDE;  // from a key in the cache to its value

// The keys, then the values, of the block that begins at `first`, for a token that sees `length` positions: in the order
// in which they are needed, and so many at a time on their way to this lane.
struct Stream {
    static constexpr int AHEAD = 16;
    static constexpr int KEYS = STRETCHES * 8, ALL = KEYS + SPANS * 16;
    Pack on_their_way[AHEAD];
    const bf16* keys;  // from this lane's first one on
    int left;          // positions

    // Of a head, whose keys lie at `head`.
    __device__ __forceinline__ Stream(const bf16* head, int first, int length) {
        const int lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
        keys = head + (i64)(first + group) * HEAD_DIM + quad * 8;
        left = length - first - group;
    }
    // Calls with whether the i-th is there for a lane, at which position from the lane's first one on, and where.
    template <class Each> __device__ __forceinline__ auto at(int i, Each each) const {
        const int lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
        if (i < KEYS) {
            const int on = i % 8 * 8, number = i / 8 * 32;
            return each(number + quad * 8 < HEAD_DIM, on - left, keys + on * HEAD_DIM + number);
        }
        const int j = i - KEYS, on = j % 16 / 2 * 8 + j % 2 + quad * 2 - group, number = j / 16 * 64 + (group - quad) * 8;
        return each(j / 16 * 64 + group * 8 < HEAD_DIM, on - left, keys + VALUES + on * HEAD_DIM + number);
    }
    __device__ __forceinline__ Pack read(int i) const {
        return at(i, [](bool there, int behind, const bf16* from) { return load_pack_if(there && behind < 0, from); });
    }
    __device__ __forceinline__ void ask() {
#pragma unroll
        for (int i = 0; i < (AHEAD < ALL ? AHEAD : ALL); ++i) on_their_way[i] = read(i);
    }
    // So many positions have been written since the others were asked for.
    __device__ __forceinline__ void ask_for_newest(int count) {
        left += count;
#pragma unroll
        for (int i = 0; i < (AHEAD < ALL ? AHEAD : ALL); ++i)
            at(i, [&](bool there, int behind, const bf16* from) {
                load_pack_instead(on_their_way[i], there && behind < 0 && behind >= -count, from);
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
            if (i * 8 >= stream.left) it = NOTHING;
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
    constexpr int AHEAD = 8;  // are on their way
    for_elements(thread, [&](int i, int query, int number) {
        auto read = [&](int split) -> State {
            if (split >= splits) return {NOTHING, 0, 0};
            const float* from = partials + split_at(query, split);
            const float2 m_l = __ldcg((const float2*)(from + HEAD_DIM));
            return {m_l.x, m_l.y, __ldcg(from + number)};
        };
        total[i] = {NOTHING, 0, 0};
        State state[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) state[j] = read(j);
        for (int first = 0; first < splits; first += AHEAD)
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                merge(total[i], state[j]);
                state[j] = read(first + AHEAD + j);
            }
    });
}

struct Attention { const float* qkv; const bf16* cache; bf16* attended; float* partials; u32* arrivals; };  // of a layer
// A share of it: one split, of the heads of a token that have a part of the heads that share a key.
struct Share { int token, row, length, part, split; };

__device__ __forceinline__ const bf16* keys_of(const bf16* cache, const Share& share) {
    return cache + share.row * ROW_STRIDE + (i64)(share.part / PARTS) * HEAD_STRIDE;
}
// Sends what a share reads of the cache on its way to L2: asked by one thread.
__device__ __forceinline__ void prefetch(const bf16* cache, const Share& share) {
    const int first = share.split * SPLIT, count = min(share.length - first, SPLIT) * HEAD_DIM;
    const bf16* keys = keys_of(cache, share) + (i64)first * HEAD_DIM;
    prefetch(keys, count);
    prefetch(keys + VALUES, count);
}
// What this thread's warp reads of a share, of which so many positions are still to be written.
__device__ __forceinline__ Stream stream_of(const bf16* cache, const Share& share, int unwritten, int thread) {
    return Stream(keys_of(cache, share), share.split * SPLIT + thread / 32 * BLOCK_POSITIONS, share.length - unwritten);
}

// The shares of all tokens, in the order in which blocks take them.
__device__ __forceinline__ int shares_of(int row, int position) {
    return row < 0 ? 0 : ceil_div(position + 1, SPLIT) * KV_HEADS * PARTS;
}
__device__ __forceinline__ int count_shares(const int* rows, const int* positions, int tokens) {
    int count = 0;
    for (int token = 0; token < tokens; ++token) count += shares_of(rows[token], positions[token]);
    return count;
}
__device__ __forceinline__ Share share_of(const int* rows, const int* positions, int index) {
    int token = 0;
    for (int here; index >= (here = shares_of(rows[token], positions[token])); ++token) index -= here;
    const int length = positions[token] + 1, splits = ceil_div(length, SPLIT);
    return {token, rows[token], length, index / splits, index % splits};
}
constexpr int EARLY_SHARES = (24 << 20) / (SPLIT * HEAD_DIM * 4);  // the L2 cache has room for, besides all else

struct Attending {  // in shared memory
    BlockStates states;
    int last;
};

// One share, by ATTENDING threads, whose streams have been asked for. Who comes last of the splits of a part merges what
// all have left.
template <class Barrier>
__device__ __forceinline__ void attend_share(
    Attending& shared, const Attention& memory, const Share& share, Stream& stream, int thread, Barrier barrier) {
    const int part = share.part % PARTS, first_head = share.part / PARTS * GROUP + part * QUERIES;
    const int count = min(QUERIES, GROUP - part * QUERIES), splits = ceil_div(share.length, SPLIT);
    const Queries queries = read_queries(memory.qkv + (i64)share.token * QKV_WIDTH + (i64)first_head * HEAD_DIM, count);
    State state[ELEMENTS];
    attend_split(queries, stream, share.split, share.length, thread, shared.states, barrier, state);
    if (splits > 1) {
        const i64 place = (i64)share.token * KV_HEADS * PARTS + share.part;
        float* left = memory.partials + place * QUERIES * MAX_SPLITS * (HEAD_DIM + 2);
        leave_split(state, left, share.split, thread);
        barrier();
        if (thread == 0) {
            u32* arrived = memory.arrivals + place;
            shared.last = add_acquire_release(arrived, 1) == (u32)splits - 1;
            if (shared.last) *arrived = 0;
        }
        barrier();
        if (!shared.last) return;
        merge_splits(state, left, splits, thread);
    }
    for_elements(thread, [&](int i, int query, int number) {
        if (query < count)
            memory.attended[in_tiles(share.token, (first_head + query) * HEAD_DIM + number, ATTENDED_TILES)] =
                to_bf16(attended_to(state[i].o, 1.0f / state[i].l));
    });
}
