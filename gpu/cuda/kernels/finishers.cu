// The finishers: three warps of a block, which add up the sums of a unit and do what comes after.

template <int KIND, int TOKENS>
__device__ __forceinline__ void finish_eight(Workspace<TOKENS>& block, const Sums<TOKENS>& sums, int eight, int layer) {
    using M = Matrix<KIND>;
    const Memory& memory = block.memory;
    const int lane = threadIdx.x & 31, token = lane / 4, pair = eight * 4 + lane % 4, column = (sums.unit * PAIRS + pair) * 2;
    const bool here = token < TOKENS && column < M::n;
    const int safe = token < TOKENS ? token : 0;
    float2 sum = sums.partial[0][safe][pair];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) {
        sum.x = __fadd_rn(sum.x, sums.partial[warp][safe][pair].x);
        sum.y = __fadd_rn(sum.y, sums.partial[warp][safe][pair].y);
    }
    const float* bias = KIND == HEAD ? nullptr : memory.bias[KIND];
    if (bias) bias = (const float*)((const char*)bias + layer * memory.layer);
    Given given = {block.scale[KIND == GATE_UP][safe], bias != nullptr, {0, 0}, block.rows[safe], block.positions[safe],
                   {0, 0}, sums.x[safe][pair], sums.next_norm[pair], sums.row_scale[QUANTIZED ? pair : 0]};
    if (bias) given.bias = bias_of<KIND>(bias, column);
    if (KIND == QKV && !QK_NORM) given.turn = turn_of(memory.rope, given.position, column);
    const Target target = {
        KIND == QKV ? (void*)memory.qkv : KIND == GATE_UP ? (void*)memory.inner : KIND == HEAD ? (void*)memory.logits : (void*)memory.x,
        memory.input, memory.squares, memory.cache + (i64)layer * 2 * KV_HEADS * HEAD_STRIDE};
    finish<KIND>(sum, given, target, token, column, here);
}
template <int KIND, int TOKENS>
__device__ __forceinline__ void finish_unit(Workspace<TOKENS>& block, const Sums<TOKENS>& sums, int layer) {
#pragma unroll
    for (int eight = 0; eight < EIGHTS; ++eight) finish_eight<KIND>(block, sums, eight, layer);
}

// The step is whole: each row is a token longer, and all counters begin anew.
template <int TOKENS> __device__ __forceinline__ void end_step(Workspace<TOKENS>& block) {
    const Memory& memory = block.memory;
    look_at_clock(memory, FIRST_PHASE + LAYERS * PHASES + 1);
    for (int token = 0; token < TOKENS; ++token) memory.positions[token] = block.positions[token] + 1;
    wait(counter(memory, ENDED), gridDim.x, memory.last_words, 8);  // nobody draws any more
    for (int which = 0; which < COUNTERS; ++which) *counter(memory, which) = 0;
}

template <int TOKENS> __device__ __forceinline__ void finish_units(Workspace<TOKENS>& block) {
    const Memory& memory = block.memory;
    const int lane = threadIdx.x & 31;
    for (int unit = threadIdx.x / 32 - WARPS - 1;; unit += FINISHERS) {
        const int slot = unit % SUMS;
        const Sums<TOKENS>& sums = block.sums[slot];
        wait(block.summed[slot], unit / SUMS & 1, memory.last_words, 7);
        __syncwarp();
        const int phase = sums.phase, all = sums.all, layer = phase / 4, kind = phase == LAST ? HEAD : phase % 4;
        if (phase == NO_PHASE) break;
        switch (kind) {
            case QKV: finish_unit<QKV>(block, sums, layer); break;
            case OUTPUT: finish_unit<OUTPUT>(block, sums, layer); break;
            case GATE_UP: finish_unit<GATE_UP>(block, sums, layer); break;
            case DOWN: finish_unit<DOWN>(block, sums, layer); break;
            default: finish_unit<HEAD>(block, sums, layer);
        }
        __syncwarp();
        if (lane == 0) {
            arrive(&block.taken[slot]);
            if (all) {  // those of the other finishers are written when their places are given away
                for (int other = unit - 1; other > unit - FINISHERS && other >= 0; --other)
                    wait(block.taken[other % SUMS], other / SUMS & 1, memory.last_words, 9);
                if (kind != HEAD) add_release(counter(memory, phase), all);
                else if (add_acquire_release(counter(memory, LAST), all) == Units<HEAD>::count - all)
                    end_step(block);
            }
        }
        __syncwarp();
    }
}
