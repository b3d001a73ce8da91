// What stands around a graph of somebody else's that takes a step of all rows of the engine, whether they decode or rest.

// Before it: the tokens of the rows that decode, and where they go. A row that rests has a token put aside, behind all
// that anybody looks at.
extern "C" __global__ void __launch_bounds__(256) into_batch(
    i64 all_rows, i64 slots, i64 aside, const int* rows, const int* positions, const int* drawn, int* ids, i64* write_index) {
    let_next_start();
    wait_for_previous();
    for (int row = threadIdx.x; row < all_rows; row += 256) {
        int id = 0;
        i64 index = aside;
        for (int slot = 0; slot < slots; ++slot)
            if (rows[slot] == row) {
                id = drawn[2 * row];
                index = positions[slot];
            }
        ids[row] = id;
        write_index[row] = index;
    }
}

// Behind it: the logits of the rows that decode, each of which is counted on.
extern "C" __global__ void __launch_bounds__(256) out_of_batch(
    i64 slots, const int* rows, int* positions, const float* batch_logits, float* logits) {
    let_next_start();
    wait_for_previous();
    const int slot = blockIdx.y, row = rows[slot];
    if (row < 0) return;
    const i64 first = (i64)row * VOCAB;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < VOCAB; i += gridDim.x * 256) logits[first + i] = batch_logits[first + i];
    if (blockIdx.x == 0 && threadIdx.x == 0) ++positions[slot];
}
