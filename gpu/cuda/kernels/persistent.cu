// A decode step of up to 8 tokens in one kernel, for compute capability 9.0: one block a multiprocessor, all at once.
//
// Weights are read in units of 8 rows, or 16 of codes, in the order in which they are needed: a layer's QKV, OUTPUT,
// GATE_UP and DOWN, then the next layer's, at last the HEAD. Of each phase most units are given to the blocks in turns; the rest, which
// evens out that some read faster than others, is drawn from one global counter. In each block one thread, the producer,
// has its units copied into a ring in shared memory. It waits for nothing that is computed, so that it runs ahead into
// later phases until the ring is full: memory is read on and on.
//
// Eight warps, the consumers, multiply: each has its hands of every unit, as in products.cu. Their sums go to three more
// warps, which add them up in the order of the warps and finish them, so that consumers never wait for one another
// between two units. A phase begins when all units of the one before are finished: each phase has a counter of them, to
// which a block adds its own once, for it takes long until what was written can be seen by others.
// Attention is no phase of weights: the blocks share the heads and splits of the rows, see attention.cu.
//
// Which block computes what is chance; no bit depends on it, and every bit is that of the kernels one by one.

template <int TOKENS> __device__ __forceinline__ void decode(const Memory* memory) {
    static_assert(sizeof(Workspace<TOKENS>) <= SHARED_OF_BLOCK, "a block has so much shared memory");
    Workspace<TOKENS>& block = *(Workspace<TOKENS>*)block_memory();
    for (int i = threadIdx.x; i < (int)(sizeof(Memory) / 8); i += THREADS) ((u64*)&block.memory)[i] = ((const u64*)memory)[i];
    if (threadIdx.x < TOKENS) {
        block.rows[threadIdx.x] = memory->rows[threadIdx.x];
        block.positions[threadIdx.x] = memory->positions[threadIdx.x];
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < block.stages; ++i) prepare(&block.full[i], 1), prepare(&block.empty[i], WARPS);
        for (int i = 0; i < SUMS; ++i) prepare(&block.summed[i], WARPS), prepare(&block.taken[i], 1);
        prepare(&block.begun, 1);
        block.phase = 0;
        show_signals();
    }
    __syncthreads();
    const int warp = threadIdx.x / 32;
    if (warp < WARPS) {
        more_registers<224>();
        consume(block);
    } else {
        fewer_registers<56>();
        if (warp > WARPS) finish_units(block);
        else if (threadIdx.x % 32 == 0) produce(block);
    }
}

#ifdef CLOCKED
#define KERNEL clocked
#else
#define KERNEL decode
#endif
#define NAMED(name, tokens) name##_##tokens
#define DECODE(name, tokens)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAMED(name, tokens)(const Memory* memory) {                \
        decode<tokens>(memory);                                                                                        \
    }
DECODE(KERNEL, TOKENS_OF_STEP)
