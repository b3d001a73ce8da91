// The producer: one thread of a block, which has the block's units copied into the ring.

struct Work {  // of the blocks in a phase
    const char* matrix;
    u32 eight, chunk;  // bytes, of 8 rows and of a chunk of them
    int chunks;
    u32 scales;        // bytes from the matrix on
    int given, drawn;  // units: given to each block, drawn by all together
};

// The units of a block: in each phase those that are given to it, then those it draws.
struct Schedule {
    const Memory& memory;
    u32* const tickets;
    int phase = 0, unit = 0, left = 0;  // which is next, and how many more are given
    Work work = {};
    u32 number, passed = 0;  // of all units that are drawn: this block's next one, and how many earlier phases had

    __device__ __forceinline__ Schedule(const Memory& memory)
        : memory(memory), tickets(counter(memory, TICKETS)), number(draw(tickets)) { begin_phase(); }
    // Goes on to the next unit, and to the next phase in which there is one.
    __device__ __forceinline__ void step() {
        if (left) --left, unit += gridDim.x;
        else if (!take_drawn()) passed += work.drawn, ++phase, begin_phase();
    }
    // A number is drawn when the one before is needed, and needed when it must have come. Drawn earlier, it might be one too
    // many for this block when all wait for the last.
    __device__ __forceinline__ bool take_drawn() {
        if (number - passed >= (u32)work.drawn) return false;
        unit = work.given * (int)gridDim.x + (int)(number - passed);
        number = draw(tickets);
        return true;
    }
    __device__ __forceinline__ void begin_phase() {
        for (; phase < NO_PHASE; passed += work.drawn, ++phase) {
            const int layer = phase / 4;
            if (phase == LAST) work = work_of<HEAD>(0);
            else switch (phase % 4) {
                case QKV: work = work_of<QKV>(layer); break;
                case OUTPUT: work = work_of<OUTPUT>(layer); break;
                case GATE_UP: work = work_of<GATE_UP>(layer); break;
                default: work = work_of<DOWN>(layer);
            }
            unit = blockIdx.x, left = work.given - 1;
            if (work.given || take_drawn()) break;
        }
        if (!work.given) left = 0;
    }
    template <int KIND> __device__ __forceinline__ Work work_of(int layer) const {
        using U = Units<KIND>;
        using M = Matrix<KIND>;
        const int given = U::count * GIVEN / 8 / (int)gridDim.x;
        return {(const char*)memory.matrix[KIND] + layer * memory.layer, M::tiles * TILE * BYTES, U::chunk, U::chunks,
                (u32)((const char*)scales_of((const Weight*)0, M::n, M::tiles) - (const char*)0), given,
                U::count - given * (int)gridDim.x};
    }
};

template <int TOKENS> __device__ __forceinline__ void produce(Workspace<TOKENS>& block) {
    u32* words = block.memory.last_words;
    const u64 policy = read_once();
    Schedule schedule(block.memory);
    block.first_phase = schedule.phase;
    arrive(&block.begun);
    const int places = block.places();
    int stage = 0, landed = 0, flying = 0;
    u32 parity = 0, landed_parity = 0;
    while (schedule.phase != NO_PHASE) {
        const Work work = schedule.work;
        const int unit = schedule.unit, most = schedule.phase == *(volatile int*)&block.phase ? URGENT : EARLY;
        const char* from = work.matrix + (i64)unit * EIGHTS * work.eight;
        for (int chunk = 0; chunk < work.chunks; ++chunk, from += work.chunk) {
            for (; flying >= most; --flying) {
                wait(block.full[landed], landed_parity, words, 1);
                if (++landed == places) landed = 0, landed_parity ^= 1;
            }
            ++flying;
            wait(block.empty[stage], parity ^ 1, words, 2);
            const bool begins = chunk == 0, ends = chunk == work.chunks - 1;
#pragma unroll
            for (int i = 0; i < EIGHTS; ++i)
                copy_to_shared(
                    block.ring[stage].bytes + i * work.chunk, from + i * work.eight, work.chunk, &block.full[stage], policy);
            if (QUANTIZED && begins)
                copy_to_shared(
                    block.ring[stage].bytes + SLOT, work.matrix + work.scales + unit * SCALES, SCALES, &block.full[stage],
                    policy);
            if (begins) block.headers[stage].unit = unit;
            if (ends) {
                schedule.step();
                block.headers[stage].next_phase = schedule.phase;
            }
            arrive_expecting(&block.full[stage], EIGHTS * work.chunk + (begins ? SCALES : 0));
            if (++stage == places) stage = 0, parity ^= 1;
        }
    }
    add_release(counter(block.memory, ENDED), 1);
}
