// Attention of a prompt: a warp has 16 pairs of token and query head, a block shares what it reads of the cache.
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
        int sight[2], least = CAPACITY, most = -1;  // of what pairs of a warp see last
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int token = token_of[pair_of(i)];
            sight[i] = token >= first && token < end_of[first] ? position_of[token] : -1;
            if (token >= 0) least = min(least, sight[i]);
            most = max(most, sight[i]);
        }
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
            least = min(least, __shfl_xor_sync(ALL_LANES, least, step));
            most = max(most, __shfl_xor_sync(ALL_LANES, most, step));
        }
        __syncthreads();  // what is shared is read
#pragma unroll
        for (int i = 0; i < 2; ++i) sight_of[pair_of(i)] = sight[i];
        least_sight[warp] = least;
        most_sight[warp] = most;
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
