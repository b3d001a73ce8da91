// The consumers: eight warps of a block, which multiply what lies in the ring, and attend.

struct Consumer {  // one thread's; all but the position in the ring is the same throughout
    int lane, warp, group, quad, places;
    int stage, unit, first_unit, next_phase;  // units are counted; the first one of the phase
    u32 parity;
};
__device__ __forceinline__ void meet() { meet_at<1, CONSUMERS>(); }

// Waits until the phase before has left all that this one reads.
template <int TOKENS>
__device__ __forceinline__ void enter(Workspace<TOKENS>& block, const u32* awaited, u32 count, int phase, int moment) {
    if (threadIdx.x == 0) {
        wait(awaited, count, block.memory.last_words, 0x100 + phase);
        block.phase = phase;
        look_at_clock(block.memory, moment);
    }
    meet();
}

template <int KIND, int TOKENS>
__device__ __forceinline__ Pack load_input(const bf16* input, const Consumer& own, int i) {
    if (own.group >= TOKENS) return {0, 0, 0, 0};
    return load_tokens(input + Matrix<KIND>::place(own.warp, i) * TILE);
}

// A word that is known when all of it has been read.
__device__ __forceinline__ u32 witness(const Pack& numbers) { return numbers.x ^ numbers.z; }
__device__ __forceinline__ u32 witness(const Octet& codes) { return codes.x; }

struct Unit {  // while it is multiplied: what a finisher is given of it besides the sums
    int number;
    float2 row_scale[EIGHTS], x[EIGHTS], next_norm[EIGHTS];
};

// A tile of the tokens times one of the weights, or two that lie below one another.
__device__ __forceinline__ void multiply_tile(float (&sum)[4], const Pack& a, const Pack (&b)[1]) {
    multiply(sum, a.x, 0, a.y, 0, b[0].x, b[0].y);
    multiply(sum, a.z, 0, a.w, 0, b[0].z, b[0].w);
}
__device__ __forceinline__ void multiply_tile(float (&sum)[4], const Pack& a, const Pack (&b)[2]) {
    multiply(sum, b[0].x, b[1].x, b[0].y, b[1].y, a.x, a.y);
    multiply(sum, b[0].z, b[1].z, b[0].w, b[1].w, a.z, a.w);
}

// `last`: it is the block's last one of the phase.
template <int TOKENS>
__device__ __forceinline__ void hand_over(
    Workspace<TOKENS>& block, Consumer& own, int phase, const Unit& unit, bool last, const float (&sum)[4]) {
    const int slot = own.unit % SUMS;
    Sums<TOKENS>& to = block.sums[slot];
    wait(block.taken[slot], (own.unit / SUMS & 1) ^ 1, block.memory.last_words, 5);
    __syncwarp();
    if (EIGHTS == 1) {
        if (own.group < TOKENS) to.partial[own.warp][own.group][own.quad] = make_float2(sum[0], sum[1]);
    } else
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // of row `group` of either eight, and the tokens 2 quad and 2 quad + 1
            const int token = own.quad * 2 + i % 2;
            if (token < TOKENS) ((float*)to.partial[own.warp][token])[i / 2 * 8 + own.group] = sum[i];
        }
    if (own.warp == 0) {
#pragma unroll
        for (int i = 0; i < EIGHTS; ++i) {
            const int pair = i * 4 + own.quad;
            if (own.group < TOKENS) to.x[own.group][pair] = unit.x[i];
            if (own.group == 0) to.next_norm[pair] = unit.next_norm[i];
            if (QUANTIZED && own.group == 0) to.row_scale[pair] = unit.row_scale[i];
        }
        if (own.lane == 0) to.phase = phase, to.unit = unit.number, to.all = last ? own.unit + 1 - own.first_unit : 0;
    }
    ++own.unit;
    __syncwarp();
    if (own.lane == 0) arrive(&block.summed[slot]);
}

// All units of a phase that this block has; the first one is known to be there.
template <int KIND, int TOKENS>
__device__ __forceinline__ void multiply_units(
    Workspace<TOKENS>& block, Consumer& own, const u32* awaited, u32 count, const bf16* input, int layer) {
    using M = Matrix<KIND>;
    constexpr int CHUNKS = Units<KIND>::chunks, HAND = M::hand, OWN = CHUNKS * HAND;
    constexpr bool kept = OWN <= 32;                  // in registers, from unit to unit
    constexpr int AHEAD = kept ? CHUNKS : 16 / HAND;  // chunks whose input is in registers
    const Memory& memory = block.memory;
    const int phase = KIND == HEAD ? LAST : 4 * layer + KIND;
    const float* next_norm = !M::residual ? nullptr
        : KIND == OUTPUT ? (const float*)((const char*)memory.inner_norm + layer * memory.layer)
        : layer + 1 < LAYERS ? (const float*)((const char*)memory.input_norm + (layer + 1) * memory.layer) : memory.final_norm;
    enter(block, awaited, count, phase, FIRST_PHASE + layer * PHASES + (KIND == QKV || KIND == HEAD ? 0 : KIND + 1));
    own.first_unit = own.unit;
    input += in_tiles(own.group, own.quad * 4, M::tiles);
    Pack a[AHEAD * HAND];
    if constexpr (kept)
#pragma unroll
        for (int i = 0; i < OWN; ++i) a[i] = load_input<KIND, TOKENS>(input, own, i);
    Squares squares;
    if (M::normed && own.warp < TOKENS) squares = load_squares(memory.squares + (i64)own.warp * HIDDEN_UNITS);
    bool scaled = !M::normed || own.warp >= TOKENS;
    const u32 nothing = gridDim.y - 1;
    do {
        if constexpr (!kept)
#pragma unroll
            for (int i = 0; i < AHEAD * HAND; ++i) a[i] = load_input<KIND, TOKENS>(input, own, i);
        wait(block.full[own.stage], own.parity, memory.last_words, 3);
        Unit unit = {block.headers[own.stage].unit};
        if (own.warp == 0)
#pragma unroll
            for (int i = 0; i < EIGHTS; ++i) {
                const int pair = i * 4 + own.quad, column = (unit.number * PAIRS + pair) * 2;
                if (QUANTIZED) unit.row_scale[i] = ((const float2*)(block.ring[own.stage].bytes + SLOT))[pair];
                if (M::residual && column < HIDDEN) {
                    if (own.group < TOKENS) {
                        const float* at = memory.x + (i64)own.group * HIDDEN_PADDED + column;
                        unit.x[i] = make_float2(__ldcg(at), __ldcg(at + 1));
                    }
                    unit.next_norm[i] = make_float2(next_norm[column], next_norm[column + 1]);
                }
            }
        float sum[4] = {};
        for (int first = 0; first < CHUNKS; first += AHEAD)
#pragma unroll
            for (int ahead = 0; ahead < AHEAD; ++ahead) {
                const int chunk = first + ahead;
                if (!kept && chunk >= CHUNKS) break;
                if (chunk) wait(block.full[own.stage], own.parity, memory.last_words, 4);
                __syncwarp();
                const Weight* tile = (const Weight*)block.ring[own.stage].bytes + in_tile(own.group, own.quad);
                decltype(load_shared(tile)) loaded[HAND][EIGHTS];
#pragma unroll
                for (int i = 0; i < HAND; ++i)
#pragma unroll
                    for (int eight = 0; eight < EIGHTS; ++eight)
                        loaded[i][eight] =
                            load_shared(tile + eight * (Units<KIND>::chunk / BYTES) + M::place(own.warp, i) * TILE);
                if (chunk == CHUNKS - 1) own.next_phase = block.headers[own.stage].next_phase;
                // A copy into a place that is given away may overtake reads that are on their way, which no barrier waits
                // for: so who gives it away depends on what was read, as far as the compiler knows.
                u32 read = 0;
#pragma unroll
                for (int eight = 0; eight < EIGHTS; ++eight) {
                    if (!chunk) read ^= __float_as_uint(unit.row_scale[eight].x);
#pragma unroll
                    for (int i = 0; i < HAND; ++i) read ^= witness(loaded[i][eight]);
                }
                __syncwarp();
                if (own.lane == (int)(read & nothing)) arrive(&block.empty[own.stage]);
#pragma unroll
                for (int i = 0; i < HAND; ++i) {
                    Pack b[EIGHTS];
#pragma unroll
                    for (int eight = 0; eight < EIGHTS; ++eight) b[eight] = widened(loaded[i][eight]);
                    multiply_tile(sum, a[ahead * HAND + i], b);
                }
                if constexpr (!kept)
#pragma unroll
                    for (int i = 0; i < HAND; ++i)
                        if (chunk + AHEAD < CHUNKS)
                            a[ahead * HAND + i] = load_input<KIND, TOKENS>(input, own, (chunk + AHEAD) * HAND + i);
                if (++own.stage == own.places) own.stage = 0, own.parity ^= 1;
            }
        if (!scaled) {  // in the shadow of the first unit
            const float scale = norm_scale(squares);
            if (own.lane == 0) block.scale[KIND == GATE_UP][own.warp] = scale;
            scaled = true;
        }
        hand_over(block, own, phase, unit, own.next_phase != phase, sum);
    } while (own.next_phase == phase);
}

// The residual stream begins: each token in one block.
template <int TOKENS> __device__ __forceinline__ void embed_tokens(Workspace<TOKENS>& block) {
    const Memory& memory = block.memory;
    for (int token = blockIdx.x; token < TOKENS; token += gridDim.x) {
        const int row = block.rows[token], id = row < 0 ? 0 : memory.drawn[2 * row];
        begin_residual(memory.table, id, token, memory.input_norm, memory.x, memory.input, memory.squares);
        meet();
        if (threadIdx.x == 0) add_release(counter(memory, EMBEDDED), 1);
    }
}

template <int TOKENS> __device__ __forceinline__ void consume(Workspace<TOKENS>& block) {
    const Memory& memory = block.memory;
    Consumer own = {};
    own.lane = threadIdx.x & 31;
    own.warp = threadIdx.x >> 5;
    own.group = own.lane >> 2;
    own.quad = own.lane & 3;
    own.places = block.places();
    if (threadIdx.x == 0) look_at_clock(memory, BEGUN);
    embed_tokens(block);
    wait(block.begun, 0, memory.last_words, 6);
    own.next_phase = block.first_phase;
    const int all = block.shares(), sharing = min(all, (int)gridDim.x);
    for (int layer = 0; layer < LAYERS; ++layer) {
        const int phase = 4 * layer;
        const bf16* cache = memory.cache + (i64)layer * 2 * KV_HEADS * HEAD_STRIDE;
        if (own.next_phase == phase + QKV)
            multiply_units<QKV>(
                block, own, counter(memory, layer ? phase - 1 : EMBEDDED), layer ? Units<DOWN>::count : TOKENS, memory.input, layer);
        if (blockIdx.x < all) {
            const Attention attention = {memory.qkv, cache, memory.attended, memory.partials, memory.arrivals};
            // The next share is on its way to L2 while one is attended to.
            auto attend = [&](const Share& share, Stream& stream, int next) {
                if (next < all && threadIdx.x == 0) prefetch(cache, share_of(block.rows, block.positions, next));
                attend_share(block.attending(), attention, share, stream, threadIdx.x, [] { meet(); });
            };
            // What earlier steps have left is asked for before all of this one's is there.
            const Share first = share_of(block.rows, block.positions, blockIdx.x);
            Stream stream = stream_of(cache, first, 1, threadIdx.x);
            stream.ask();
            enter(block, counter(memory, phase + QKV), Units<QKV>::count, phase + QKV, FIRST_PHASE + layer * PHASES + 1);
            stream.ask_for_newest(1);
            attend(first, stream, blockIdx.x + gridDim.x);
            for (int index = blockIdx.x + gridDim.x; index < all; index += gridDim.x) {
                const Share share = share_of(block.rows, block.positions, index);
                Stream stream = stream_of(cache, share, 0, threadIdx.x);
                stream.ask();
                meet();  // what is shared is read
                attend(share, stream, index + gridDim.x);
            }
            meet();  // what was attended to is written
            if (threadIdx.x == 0) add_release(counter(memory, NO_PHASE + layer), 1);
        }
        if (own.next_phase == phase + OUTPUT)
            multiply_units<OUTPUT>(block, own, counter(memory, NO_PHASE + layer), sharing, memory.attended, layer);
        if (own.next_phase == phase + GATE_UP)
            multiply_units<GATE_UP>(block, own, counter(memory, phase + OUTPUT), Units<OUTPUT>::count, memory.input, layer);
        if (own.next_phase == phase + DOWN)
            multiply_units<DOWN>(block, own, counter(memory, phase + GATE_UP), Units<GATE_UP>::count, memory.inner, layer);
    }
    if (own.next_phase == LAST)
        multiply_units<HEAD>(block, own, counter(memory, LAST - 1), Units<DOWN>::count, memory.input, LAYERS);
    for (int i = 0; i < FINISHERS; ++i) hand_over(block, own, NO_PHASE, {}, false, {0, 0, 0, 0});
}
