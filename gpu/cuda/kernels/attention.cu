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

// Positions are cut into splits of 256, always at the same places. A split leaves, for each query head, the largest
// score m, the sum l of exp2(score - m), and the sum o of the values weighed so; splits are merged from the first to the
// last. Whether one block does them all or each has its own changes no bit.
constexpr int SPLIT = 256;
constexpr int MAX_SPLITS = ceil_div(CAPACITY, SPLIT);
constexpr int GROUP = HEADS / KV_HEADS;
__host__ __device__ constexpr int divisor(int n, int most) {
    int d = most;
    while (n % d) --d;
    return d;
}
constexpr int SHARING = divisor(GROUP, 4);  // heads of a block that share what is read of the cache
__host__ __device__ constexpr int power_of_two(int n) {
    int p = 1;
    while (p < n) p *= 2;
    return p;
}
constexpr int LANES = power_of_two(HEAD_DIM / 8);  // of a team: 8 numbers of a key each
constexpr int TEAMS = 128 / LANES;                 // of a block; a team takes every TEAMS-th key
constexpr int KEYS = 4;                            // that a team reads at once
template <int QUERIES> constexpr int ELEMENTS = ceil_div(QUERIES * HEAD_DIM, 128);
#define NOTHING __uint_as_float(0xff800000u)

struct State { float m, l, o; };

__device__ __forceinline__ float power(float score, float largest) {
    return score == NOTHING ? 0.0f : exp2f(__fsub_rn(score, largest));
}
__device__ __forceinline__ void merge(State& into, State other) {
    const float m = fmaxf(into.m, other.m), a = power(into.m, m), b = power(other.m, m);
    into.m = m;
    into.l = __fmaf_rn(other.l, b, __fmul_rn(into.l, a));
    into.o = __fmaf_rn(other.o, b, __fmul_rn(into.o, a));
}

template <int QUERIES> struct Shared {
    float m[TEAMS][QUERIES], l[TEAMS][QUERIES];
    float o[TEAMS][QUERIES][HEAD_DIM];
};

// The state of one split, element by element: thread t has elements t, t + 128, ... of [QUERIES, HEAD_DIM].
struct Everyone { __device__ __forceinline__ void operator()() const { __syncthreads(); } };
template <int QUERIES, class Meet = Everyone>
__device__ __forceinline__ void attend_split(
    const float (&query)[QUERIES][8], const bf16* keys, const bf16* values, int first, int length,
    Shared<QUERIES>& shared, State (&state)[ELEMENTS<QUERIES>], Meet meet = {}) {
    const int team = threadIdx.x / LANES, part = threadIdx.x % LANES;
    const bool mine = part * 8 < HEAD_DIM;
    const int end = min(first + SPLIT, length);
    float m[QUERIES], l[QUERIES], o[QUERIES][8];
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) {
        m[q] = NOTHING;
        l[q] = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) o[q][i] = 0;
    }
    const int first_of_warp = first + (threadIdx.x & ~31) / LANES;  // all lanes of a warp make the same turns
    for (int turn = 0; first_of_warp + turn * TEAMS < end; turn += KEYS) {
        Pack k[KEYS], v[KEYS];
        float score[KEYS][QUERIES];
#pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            const int key = first + team + (turn + j) * TEAMS;
            k[j] = v[j] = {0, 0, 0, 0};
            if (mine && key < end) {
                k[j] = load_pack(keys + (i64)key * HEAD_DIM + part * 8);
                v[j] = load_pack(values + (i64)key * HEAD_DIM + part * 8);
            }
        }
#pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            float x[8];
            unpack(k[j], x);
#pragma unroll
            for (int q = 0; q < QUERIES; ++q) {
                float sum = 0;
#pragma unroll
                for (int i = 0; i < 8; ++i) sum = __fmaf_rn(query[q][i], x[i], sum);
#pragma unroll
                for (int step = LANES / 2; step; step >>= 1)
                    sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, step));
                score[j][q] = first + team + (turn + j) * TEAMS < end ? sum : NOTHING;
            }
        }
#pragma unroll
        for (int q = 0; q < QUERIES; ++q) {
            float largest = m[q];
#pragma unroll
            for (int j = 0; j < KEYS; ++j) largest = fmaxf(largest, score[j][q]);
            const float keep = power(m[q], largest);
            m[q] = largest;
            l[q] = __fmul_rn(l[q], keep);
#pragma unroll
            for (int i = 0; i < 8; ++i) o[q][i] = __fmul_rn(o[q][i], keep);
#pragma unroll
            for (int j = 0; j < KEYS; ++j) {
                const float weight = power(score[j][q], largest);
                float x[8];
                unpack(v[j], x);
                l[q] = __fadd_rn(l[q], weight);
#pragma unroll
                for (int i = 0; i < 8; ++i) o[q][i] = __fmaf_rn(weight, x[i], o[q][i]);
            }
        }
    }
    meet();  // what was shared of the split before is read
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) {
        if (part == 0) {
            shared.m[team][q] = m[q];
            shared.l[team][q] = l[q];
        }
        if (mine)
#pragma unroll
            for (int i = 0; i < 8; ++i) shared.o[team][q][part * 8 + i] = o[q][i];
    }
    meet();
#pragma unroll
    for (int e = 0; e < ELEMENTS<QUERIES>; ++e) {
        const int element = threadIdx.x + e * 128, q = element / HEAD_DIM, d = element % HEAD_DIM;
        state[e] = {NOTHING, 0, 0};
        if (element >= QUERIES * HEAD_DIM) continue;
        float largest = NOTHING, sum = 0, out = 0;
        for (int t = 0; t < TEAMS; ++t) largest = fmaxf(largest, shared.m[t][q]);
        for (int t = 0; t < TEAMS; ++t) {
            const float weight = power(shared.m[t][q], largest);
            sum = __fmaf_rn(shared.l[t][q], weight, sum);
            out = __fmaf_rn(shared.o[t][q][d], weight, out);
        }
        state[e] = {largest, sum, out};
    }
}

// Grid: splits that are computed beside one another (1: a block does all), groups of QUERIES heads, tokens.
template <int QUERIES>
__device__ __forceinline__ void attend(
    const float* qkv, const bf16* cache, const int* rows, const int* positions, bf16* attended, float* partials,
    int* arrivals) {
    __shared__ Shared<QUERIES> shared;
    __shared__ int last;
    let_next_start();
    wait_for_previous();
    const i64 token = blockIdx.z;
    const int row = rows[token];
    if (row < 0) return;
    const int length = positions[token] + 1, splits = ceil_div(length, SPLIT);
    if ((int)blockIdx.x >= splits) return;
    const int first_head = blockIdx.y * QUERIES, part = threadIdx.x % LANES;
    const bf16* keys = cache + row * ROW_STRIDE + (i64)(first_head / GROUP) * HEAD_STRIDE;
    const bf16* values = keys + KV_HEADS * HEAD_STRIDE;

    float query[QUERIES][8];
#pragma unroll
    for (int q = 0; q < QUERIES; ++q)
#pragma unroll
        for (int i = 0; i < 8; ++i)
            query[q][i] = part * 8 < HEAD_DIM
                ? __ldcg(qkv + token * QKV_WIDTH + (i64)(first_head + q) * HEAD_DIM + part * 8 + i) : 0.0f;

    State total[ELEMENTS<QUERIES>], state[ELEMENTS<QUERIES>];
#pragma unroll
    for (int e = 0; e < ELEMENTS<QUERIES>; ++e) total[e] = {NOTHING, 0, 0};
    const bool alone = gridDim.x == 1 || splits == 1;
    float* stored = partials + (token * HEADS + first_head) * MAX_SPLITS * (HEAD_DIM + 2);
    for (int split = blockIdx.x; split < splits; split += gridDim.x) {
        attend_split(query, keys, values, split * SPLIT, length, shared, state);
#pragma unroll
        for (int e = 0; e < ELEMENTS<QUERIES>; ++e) {
            const int element = threadIdx.x + e * 128, q = element / HEAD_DIM, d = element % HEAD_DIM;
            if (element >= QUERIES * HEAD_DIM) continue;
            if (alone) {
                merge(total[e], state[e]);
                continue;
            }
            float* to = stored + ((i64)q * MAX_SPLITS + split) * (HEAD_DIM + 2);
            __stcg(to + d, state[e].o);
            if (d == 0) {
                __stcg(to + HEAD_DIM, state[e].m);
                __stcg(to + HEAD_DIM + 1, state[e].l);
            }
        }
    }
    if (!alone) {  // the block that comes last merges what all have left
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            int* arrived = arrivals + token * (HEADS / QUERIES) + blockIdx.y;
            last = atomicAdd(arrived, 1) == min((int)gridDim.x, splits) - 1;
            if (last) *arrived = 0;
            __threadfence();
        }
        __syncthreads();
        if (!last) return;
        for (int split = 0; split < splits; ++split)
#pragma unroll
            for (int e = 0; e < ELEMENTS<QUERIES>; ++e) {
                const int element = threadIdx.x + e * 128, q = element / HEAD_DIM, d = element % HEAD_DIM;
                if (element >= QUERIES * HEAD_DIM) continue;
                const float* from = stored + ((i64)q * MAX_SPLITS + split) * (HEAD_DIM + 2);
                merge(total[e], {__ldcg(from + HEAD_DIM), __ldcg(from + HEAD_DIM + 1), __ldcg(from + d)});
            }
    }
#pragma unroll
    for (int e = 0; e < ELEMENTS<QUERIES>; ++e) {
        const int element = threadIdx.x + e * 128;
        if (element < QUERIES * HEAD_DIM)
            attended[in_tiles(token, first_head * HEAD_DIM + element, ATTENDED_TILES)] = to_bf16(total[e].o / total[e].l);
    }
}

#ifndef TOKENS_OF_STEP
// Heads that share a key share what is read of the cache; where that makes too few blocks, each has one of its own.
extern "C" __global__ void __launch_bounds__(128) attention(
    i64 tokens, const float* qkv, const bf16* cache, const int* rows, const int* positions, bf16* attended,
    float* partials, int* arrivals) {
    attend<SHARING>(qkv, cache, rows, positions, attended, partials, arrivals);
}
extern "C" __global__ void __launch_bounds__(128) attention_apart(
    i64 tokens, const float* qkv, const bf16* cache, const int* rows, const int* positions, bf16* attended,
    float* partials, int* arrivals) {
    attend<1>(qkv, cache, rows, positions, attended, partials, arrivals);
}
#endif
