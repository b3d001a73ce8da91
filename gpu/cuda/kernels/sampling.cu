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

struct Tally {
    u64 amount[256];  // by the digit at hand
    u64 above;        // what the digits above the chosen one amount to
    u32 digit;        // the chosen one
};

// Adds amounts to the tally, a whole warp at a time: lanes of the same digit are added up first.
__device__ __forceinline__ void count(Tally& tally, bool counts, u32 digit, u32 amount) {
    const u32 counting = __ballot_sync(ALL_LANES, counts);
    if (!counts) return;
    const u32 peers = __match_any_sync(counting, digit);
    const u64 sum = (u64)__reduce_add_sync(peers, amount & 0xffffu) + ((u64)__reduce_add_sync(peers, amount >> 16) << 16);
    if ((int)(threadIdx.x & 31) == __ffs(peers) - 1) atomicAdd(&tally.amount[digit], sum);
}

// Finds the largest digit down to which the amounts reach what is needed.
__device__ __forceinline__ void choose(Tally& tally, u64 needed) {
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        u64 own = 0;
        for (int i = 0; i < 8; ++i) own += tally.amount[255 - lane * 8 - i];
        u64 running = own;
        for (int step = 1; step < 32; step *= 2) {
            const u64 before = __shfl_up_sync(ALL_LANES, running, step);
            if (lane >= step) running += before;
        }
        const u32 reached = __ballot_sync(ALL_LANES, running >= needed);
        if (lane == __ffs(reached) - 1) {
            u64 above = running - own;
            int digit = 255 - lane * 8;
            while (above + tally.amount[digit] < needed) above += tally.amount[digit--];
            tally.above = above;
            tally.digit = digit;
        }
    }
    __syncthreads();
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

// LOGIT_SHARES blocks a row look for the largest logit; the one that comes last goes on alone. `drawn` is [rows, 2]: the token,
// and what is wrong with the logits (0 if nothing).
extern "C" __global__ void __launch_bounds__(DRAWERS, 1) sample(
    i64 tokens, const float* all_logits, const Sampling* all_sampling, const int* rows, const int* positions,
    int* drawn, u64* largest_of_shares, int* arrivals) {
    __shared__ u64 scratch[DRAWING_WARPS];
    __shared__ Tally tally;
    __shared__ bool last;
    let_next_start();
    wait_for_previous();
    const int token = blockIdx.y, row = rows[token], lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (row < 0) return;
    const float* logits = all_logits + (i64)row * VOCAB;
    const Sampling sampling = all_sampling[row];

    // Steps 1 and 2: the largest logit, of the lowest index.
    u64 best = 0;
    for_logits(logits, blockIdx.x * SHARE + threadIdx.x, (blockIdx.x + 1) * SHARE, DRAWERS, [&](int i, float logit) {
        if (i < VOCAB) best = larger(best, (u64)ordered(logit) << 32 | (u32)~i);
    });
    best = block_largest(best, scratch);
    if (LOGIT_SHARES > 1) {
        u64* found = largest_of_shares + token * LOGIT_SHARES;
        if (threadIdx.x == 0) {
            found[blockIdx.x] = best;
            __threadfence();
            last = atomicAdd(arrivals + token, 1) == LOGIT_SHARES - 1;
            if (last) arrivals[token] = 0;
            __threadfence();
        }
        __syncthreads();
        if (!last) return;
        best = block_largest(threadIdx.x < LOGIT_SHARES ? __ldcg(found + threadIdx.x) : 0, scratch);
    }
    const u32 top = (u32)(best >> 32);
    const int index = (int)~(u32)best;
    const int fault = top == NOT_A_NUMBER ? 1 : top == PLUS_INFINITY ? 2 : top == MINUS_INFINITY ? 3 : 0;
    if (fault || sampling.scale == 0) {
        if (threadIdx.x == 0) {
            if (!fault) drawn[2 * row] = index;
            drawn[2 * row + 1] = fault ? index << 2 | fault : 0;
        }
        return;
    }
    const float largest = logits[index], scale = sampling.scale;
    constexpr int PADDED = round_up(VOCAB, DRAWERS);  // whole warps take part in a tally

    // Step 4: the key of the top_k-th largest logit, digit by digit.
    u32 least_key = 0;
    if (0 < sampling.top_k && sampling.top_k < VOCAB) {
        u64 needed = sampling.top_k;
        for (int shift = 24; shift >= 0; shift -= 8) {
            const u32 known = shift == 24 ? 0 : ALL_LANES << (shift + 8);
            __syncthreads();
            for (int i = threadIdx.x; i < 256; i += DRAWERS) tally.amount[i] = 0;
            __syncthreads();
            for_logits(logits, threadIdx.x, PADDED, DRAWERS, [&](int i, float logit) {
                const u32 key = ordered(logit);
                count(tally, i < VOCAB && (key & known) == least_key, key >> shift & 255, 1);
            });
            __syncthreads();
            choose(tally, needed);
            needed -= tally.above;
            least_key |= tally.digit << shift;
        }
    }
    auto weight = [&](float logit) -> u32 { return ordered(logit) < least_key ? 0 : weight_of(logit, largest, scale); };

    // Step 5: the largest weight at which the sum of all that are no smaller reaches the mass.
    u32 least_weight = 0;
    if (sampling.has_top_p) {
        u64 sum = 0;
        for_logits(logits, threadIdx.x, PADDED, DRAWERS, [&](int, float logit) { sum += weight(logit); });
        const u64 total = block_sum(sum, scratch);
        u64 needed = __umul64hi(total, sampling.top_p) + (total * sampling.top_p != 0);
        if (needed == 0) needed = 1;
        for (int shift = 24; shift >= 0; shift -= 8) {
            const u32 known = shift == 24 ? 0 : ALL_LANES << (shift + 8);
            __syncthreads();
            for (int i = threadIdx.x; i < 256; i += DRAWERS) tally.amount[i] = 0;
            __syncthreads();
            for_logits(logits, threadIdx.x, PADDED, DRAWERS, [&](int, float logit) {
                const u32 own = weight(logit);
                count(tally, own && (own & known) == least_weight, own >> shift & 255, own);
            });
            __syncthreads();
            choose(tally, needed);
            needed -= tally.above;
            least_weight |= tally.digit << shift;
        }
    }
    if (least_weight < sampling.min_weight) least_weight = sampling.min_weight;  // step 6

    // Step 7: each warp sums up its part of the vocabulary; the part in which the running sum passes the target is parted
    // again, until it is no longer than a warp.
    int begin = 0, end = VOCAB, part;
    u64 target;
    do {
        part = round_up(ceil_div(end - begin, DRAWING_WARPS), 32);
        u64 sum = 0;
        for_logits(logits, begin + warp * part + lane, min(begin + (warp + 1) * part, end), 32, [&](int, float logit) {
            const u32 own = weight(logit);
            sum += own < least_weight ? 0 : own;
        });
        const u64 total = block_sum(sum, scratch);
        if (end - begin == VOCAB) target = __umul64hi(random_bits(sampling.seed, positions[token]), total);
        for (int other = 0; target >= scratch[other]; ++other) {
            target -= scratch[other];
            begin += part;
        }
        end = min(begin + part, end);
    } while (part > 32);
    if (warp) return;
    const u32 own = begin + lane < end ? weight(__ldcg(logits + begin + lane)) : 0;
    u64 running = own < least_weight ? 0 : own;
    for (int step = 1; step < 32; step *= 2) {
        const u64 left = __shfl_up_sync(ALL_LANES, running, step);
        if (lane >= step) running += left;
    }
    if (lane == __ffs(__ballot_sync(ALL_LANES, running > target)) - 1) {
        drawn[2 * row] = begin + lane;
        drawn[2 * row + 1] = 0;
    }
}
