// Drawing a token, by the letter of gpu/sampling.py: its steps have the same numbers here.
struct Sampling {        // of one row; thresholds are computed on the host, in exact arithmetic
    float scale;         // rn32(log2(e) / temperature), clamped; 0 is greedy
    int top_k;           // 0 is off
    u64 top_p;           // P = floor(top_p * 2^64), where top_p is on
    u32 min_weight;      // ceil(min_p * 2^30)
    u32 has_top_p;
    u64 seed;
};

constexpr int DRAWERS = 1024;
constexpr int DRAWING_WARPS = DRAWERS / 32;
constexpr int SHARE = round_up(ceil_div(VOCAB, LOGIT_SHARES), DRAWERS);      // of the vocabulary: what a block looks through
constexpr int AT_ONCE = 8;  // logits that a thread reads together
constexpr u32 PLUS_INFINITY = 0xff800000u, MINUS_INFINITY = 0x007fffffu, NOT_A_NUMBER = 0xffffffffu;

// Ascending as the logits are; both zeros alike, NaN above all.
__device__ __forceinline__ u32 ordered(float logit) {
    u32 bits = __float_as_uint(logit);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return NOT_A_NUMBER;
    if (bits == 0x80000000u) bits = 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Step 3.
__device__ __forceinline__ u32 weight_of(float logit, float largest, float scale) {
    const float z = __fmul_rn(__fsub_rn(logit, largest), scale);
    if (!(z >= -31.0f)) return 0;
    const float n = rintf(z), f = __fsub_rn(z, n);
    float p = 0x1.44400ap-13f;
    p = __fadd_rn(__fmul_rn(p, f), 0x1.5f08a0p-10f);
    p = __fadd_rn(__fmul_rn(p, f), 0x1.3b2a1cp-7f);
    p = __fadd_rn(__fmul_rn(p, f), 0x1.c6af6cp-5f);
    p = __fadd_rn(__fmul_rn(p, f), 0x1.ebfbe0p-3f);
    p = __fadd_rn(__fmul_rn(p, f), 0x1.62e430p-1f);
    p = __fadd_rn(__fmul_rn(p, f), 1.0f);
    return __float2uint_rz(__fmul_rn(p, __uint_as_float((u32)((int)n + 30 + 127) << 23)));
}

__device__ __forceinline__ u64 random_bits(u64 seed, u32 position) {
    u32 x0 = position, x1 = 0, x2 = 0, x3 = 0, k0 = (u32)seed, k1 = (u32)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const u64 a = (u64)0xD2511F53u * x0, b = (u64)0xCD9E8D57u * x2;
        x0 = (u32)(b >> 32) ^ x1 ^ k0;
        x1 = (u32)b;
        x2 = (u32)(a >> 32) ^ x3 ^ k1;
        x3 = (u32)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (u64)x1 << 32 | x0;
}

__device__ __forceinline__ u64 larger(u64 a, u64 b) { return a > b ? a : b; }

// Counts an amount for a number, a whole warp at a time: lanes of the same number are added up first.
__device__ __forceinline__ void count(u64* amounts, bool counts, u32 number, u32 amount) {
    const u32 counting = __ballot_sync(ALL_LANES, counts);
    if (!counts) return;
    const u32 peers = __match_any_sync(counting, number);
    const u64 sum = (u64)__reduce_add_sync(peers, amount & 0xffffu) + ((u64)__reduce_add_sync(peers, amount >> 16) << 16);
    if ((int)(threadIdx.x & 31) == __ffs(peers) - 1) atomicAdd(amounts + number, sum);
}

// Sums a number of each thread over the block; `scratch` holds those of the warps afterwards.
__device__ __forceinline__ u64 block_sum(u64 value, u64 (&scratch)[DRAWING_WARPS]) {
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = value;
    __syncthreads();
    u64 total = 0;
    for (int warp = 0; warp < DRAWING_WARPS; ++warp) total += scratch[warp];
    return total;
}

// Calls work(i, logit) for every `stride`-th i, with -inf beyond the vocabulary.
template <class Work> __device__ __forceinline__ void for_logits(const float* logits, int first, int end, int stride, Work&& work) {
    for (; first < end; first += AT_ONCE * stride) {
        float logit[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) {
            const int i = first + j * stride;
            logit[j] = i < end && i < VOCAB ? __ldcg(logits + i) : __uint_as_float(0xff800000u);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j)
            if (first + j * stride < end) work(first + j * stride, logit[j]);
    }
}

// The largest of a number of each thread; `scratch` may be used again after the next barrier.
__device__ __forceinline__ u64 block_largest(u64 best, u64 (&scratch)[DRAWING_WARPS]) {
    for (int step = 16; step; step >>= 1) best = larger(best, __shfl_xor_sync(ALL_LANES, best, step));
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = best;
    __syncthreads();
    for (int other = 0; other < DRAWING_WARPS; ++other) best = larger(best, scratch[other]);
    return best;
}

// A row is drawn in stages, in each of which LOGIT_SHARES blocks look through its logits, a share each; the one that comes
// last goes on alone to the end of the stage. A threshold is found in three: the upper bits of it, then those below.
enum Stage { LARGEST, TOP_K, TOP_P = TOP_K + 3, DRAW = TOP_P + 3 };
constexpr int BINS = 2 * DRAWERS;
template <int STAGE> struct Digit {
    static constexpr bool of_weights = STAGE >= TOP_P;  // of 31 bits; keys have 32
    static constexpr int pass = (STAGE - TOP_K) % 3;
    static constexpr int shift = pass == 0 ? 21 - of_weights : pass == 1 ? 10 - of_weights : 0;
    static constexpr int above = pass == 1 ? 21 - of_weights : 10 - of_weights;  // where the known bits begin
    static constexpr u32 known = pass == 0 ? 0 : ALL_LANES << above;
};

struct Progress {  // of a row, from stage to stage
    u64 best;      // the largest logit's key, and below it the complement of its index
    u64 needed;    // what the bits of the threshold that are not known yet must amount to
    u32 least_key, least_weight;
};
struct Drawing {  // what the threads of a block share
    u64 scratch[DRAWING_WARPS], amounts[BINS];
    bool last;
};
struct Row {
    const float* logits;
    Sampling sampling;
    u64 *of_shares, *amounts;
    Progress* progress;
    int *arrivals, *drawn;
    u32 position;
};

// Whether all shares are done, and this block has to go on: it sees what the others wrote.
__device__ __forceinline__ bool all_are_done(Drawing& block, const Row& row) {
    if (LOGIT_SHARES > 1) {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            block.last = atomicAdd(row.arrivals, 1) == LOGIT_SHARES - 1;
            if (block.last) *row.arrivals = 0;
            __threadfence();
        }
    }
    __syncthreads();
    return LOGIT_SHARES == 1 || block.last;
}
__device__ __forceinline__ int fault_of(u64 best) {
    const u32 key = (u32)(best >> 32);
    return key == NOT_A_NUMBER ? 1 : key == PLUS_INFINITY ? 2 : key == MINUS_INFINITY ? 3 : 0;
}
__device__ __forceinline__ u32 weight_in(const Row& row, u32 least_key, float largest, float logit) {
    return ordered(logit) < least_key ? 0 : weight_of(logit, largest, row.sampling.scale);
}

// Steps 1 and 2: the largest logit, of the lowest index.
__device__ __forceinline__ void find_largest(Drawing& block, const Row& row) {
    u64 best = 0;
    for_logits(row.logits, blockIdx.x * SHARE + threadIdx.x, (blockIdx.x + 1) * SHARE, DRAWERS, [&](int i, float logit) {
        if (i < VOCAB) best = larger(best, (u64)ordered(logit) << 32 | (u32)~i);
    });
    best = block_largest(best, block.scratch);
    if (LOGIT_SHARES > 1) {
        if (threadIdx.x == 0) row.of_shares[blockIdx.x] = best;
        if (!all_are_done(block, row)) return;
        best = block_largest(threadIdx.x < LOGIT_SHARES ? __ldcg(row.of_shares + threadIdx.x) : 0, block.scratch);
    }
    if (threadIdx.x) return;
    const int fault = fault_of(best), index = (int)~(u32)best;
    *row.progress = {best, 0, 0, 0};
    if (fault || row.sampling.scale == 0) {
        if (!fault) row.drawn[0] = index;
        row.drawn[1] = fault ? index << 2 | fault : 0;
    }
}

// Steps 4 and 5: some bits of the key of the top_k-th largest logit, or of the largest weight at which the sum of all that
// are no smaller reaches the mass.
template <int STAGE> __device__ __forceinline__ void narrow(Drawing& block, const Row& row) {
    using D = Digit<STAGE>;
    const bool on = D::of_weights ? row.sampling.has_top_p : 0 < row.sampling.top_k && row.sampling.top_k < VOCAB;
    if (!on) return;
    const float largest = row.logits[(int)~(u32)__ldcg(&row.progress->best)];
    const u32 least_key = __ldcg(&row.progress->least_key), least_weight = __ldcg(&row.progress->least_weight);
    for (int bin = threadIdx.x; bin < BINS; bin += DRAWERS) block.amounts[bin] = 0;
    __syncthreads();
    for_logits(row.logits, blockIdx.x * SHARE + threadIdx.x, (blockIdx.x + 1) * SHARE, DRAWERS, [&](int i, float logit) {
        if (D::of_weights) {
            const u32 weight = weight_in(row, least_key, largest, logit);
            count(block.amounts, weight && (weight & D::known) == least_weight, (weight & ~D::known) >> D::shift, weight);
        } else {
            const u32 key = ordered(logit);
            count(block.amounts, i < VOCAB && (key & D::known) == least_key, (key & ~D::known) >> D::shift, 1);
        }
    });
    if (LOGIT_SHARES > 1) {
        __syncthreads();
        for (int bin = threadIdx.x; bin < BINS; bin += DRAWERS)
            if (block.amounts[bin]) atomicAdd(row.amounts + bin, block.amounts[bin]);
    }
    if (!all_are_done(block, row)) return;

    // Each thread has two bins, the largest numbers first.
    const int bin = BINS - 1 - 2 * threadIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 upper = block.amounts[bin], lower = block.amounts[bin - 1];
    if (LOGIT_SHARES > 1) {
        upper = __ldcg(row.amounts + bin);
        lower = __ldcg(row.amounts + bin - 1);
        row.amounts[bin] = row.amounts[bin - 1] = 0;
    }
    u64 running = upper + lower;
    for (int step = 1; step < 32; step *= 2) {
        const u64 before = __shfl_up_sync(ALL_LANES, running, step);
        if (lane >= step) running += before;
    }
    if (lane == 31) block.scratch[warp] = running;
    __syncthreads();
    u64 total = 0;
    for (int other = 0; other < DRAWING_WARPS; ++other) {
        if (other < warp) running += block.scratch[other];
        total += block.scratch[other];
    }
    u64 needed = __ldcg(&row.progress->needed);
    if (STAGE == TOP_K) needed = row.sampling.top_k;
    if (STAGE == TOP_P) {
        needed = __umul64hi(total, row.sampling.top_p) + (total * row.sampling.top_p != 0);
        if (needed == 0) needed = 1;
    }
    const u64 before = running - upper - lower;
    __syncthreads();  // all have read what is needed
    if (before < needed && needed <= running) {
        const bool in_upper = needed <= before + upper;
        row.progress->needed = needed - before - (in_upper ? 0 : upper);
        u32& least = D::of_weights ? row.progress->least_weight : row.progress->least_key;
        least = (D::of_weights ? least_weight : least_key) | (u32)(in_upper ? bin : bin - 1) << D::shift;
    }
}

// Steps 6 and 7: the part of the vocabulary in which the running sum of weights passes the target, parted again and again.
__device__ __forceinline__ void draw(Drawing& block, const Row& row) {
    const float largest = row.logits[(int)~(u32)__ldcg(&row.progress->best)];
    const u32 least_key = __ldcg(&row.progress->least_key);
    u32 least_weight = __ldcg(&row.progress->least_weight);
    if (least_weight < row.sampling.min_weight) least_weight = row.sampling.min_weight;
    auto kept = [&](float logit) -> u32 {
        const u32 weight = weight_in(row, least_key, largest, logit);
        return weight < least_weight ? 0 : weight;
    };
    u64 total = 0;
    for_logits(row.logits, blockIdx.x * SHARE + threadIdx.x, (blockIdx.x + 1) * SHARE, DRAWERS, [&](int, float logit) {
        total += kept(logit);
    });
    total = block_sum(total, block.scratch);
    if (LOGIT_SHARES > 1) {
        if (threadIdx.x == 0) row.of_shares[blockIdx.x] = total;
        if (!all_are_done(block, row)) return;
        total = 0;
        for (int share = 0; share < LOGIT_SHARES; ++share) total += __ldcg(row.of_shares + share);
    }
    u64 target = __umul64hi(random_bits(row.sampling.seed, row.position), total);
    int begin = 0;
    if (LOGIT_SHARES > 1)
        for (u64 sum; target >= (sum = __ldcg(row.of_shares + begin / SHARE)); begin += SHARE) target -= sum;

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int end = min(begin + SHARE, VOCAB), part;
    do {  // each warp sums up a part of it, until that is no longer than a warp
        part = round_up(ceil_div(end - begin, DRAWING_WARPS), 32);
        u64 sum = 0;
        for_logits(row.logits, begin + warp * part + lane, min(begin + (warp + 1) * part, end), 32, [&](int, float logit) {
            sum += kept(logit);
        });
        block_sum(sum, block.scratch);
        for (int other = 0; target >= block.scratch[other]; ++other) {
            target -= block.scratch[other];
            begin += part;
        }
        end = min(begin + part, end);
    } while (part > 32);
    if (warp) return;
    u64 running = begin + lane < end ? kept(__ldcg(row.logits + begin + lane)) : 0;
    for (int step = 1; step < 32; step *= 2) {
        const u64 left = __shfl_up_sync(ALL_LANES, running, step);
        if (lane >= step) running += left;
    }
    if (lane == __ffs(__ballot_sync(ALL_LANES, running > target)) - 1) {
        row.drawn[0] = begin + lane;
        row.drawn[1] = 0;
    }
}

// Stages `first` to `last` of each row, of which a row leaves out what it does not ask for; more than one only where a
// block has a whole row. `drawn` is [rows, 2]: the token, and what is wrong with the logits (0 if nothing).
extern "C" __global__ void __launch_bounds__(DRAWERS, 1) sample(
    i64 tokens, i64 first, i64 last, const float* logits, const float* penalised, const Penalties* penalties,
    const Sampling* sampling, const int* rows, const int* positions, int* drawn, u64* of_shares, u64* amounts, Progress* progress, int* arrivals) {
    __shared__ Drawing block;
    let_next_start();
    wait_for_previous();
    const int token = blockIdx.y, of = rows[token];
    if (of < 0) return;
    const Row row = {
        (penalties[of].flags & PENALISED ? penalised : logits) + (i64)of * VOCAB, sampling[of], of_shares + token * LOGIT_SHARES, amounts + (i64)token * BINS,
        progress + token, arrivals + token, drawn + 2 * of, (u32)positions[token]};
    for (int stage = (int)first; stage <= (int)last; ++stage) {
        if (stage > LARGEST && (row.sampling.scale == 0 || fault_of(__ldcg(&row.progress->best)))) return;
        switch (stage) {
            case LARGEST: find_largest(block, row); break;
            case TOP_K: narrow<TOP_K>(block, row); break;
            case TOP_K + 1: narrow<TOP_K + 1>(block, row); break;
            case TOP_K + 2: narrow<TOP_K + 2>(block, row); break;
            case TOP_P: narrow<TOP_P>(block, row); break;
            case TOP_P + 1: narrow<TOP_P + 1>(block, row); break;
            case TOP_P + 2: narrow<TOP_P + 2>(block, row); break;
            default: draw(block, row);
        }
        __syncthreads();
    }
}
