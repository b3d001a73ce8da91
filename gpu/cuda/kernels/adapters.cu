// What LoRA adapters add to the products of a layer: two kernels before each of them, which leave for every token what is
// added to its sums in place of the bias. Which adapter a row has, or none, stands in memory that they read: one graph is
// for all rows, whatever they have. A sum's order depends on nothing but the matrix.

// x Aᵀ, RANK numbers for each part of a matrix: the queries, keys and values of QKV, gate and up of GATE_UP. A warp a number.
extern "C" __global__ void __launch_bounds__(256) adapter_between(
    i64 tokens, i64 numbers, i64 k, const bf16* input, const float* squares, const float* a, const int* rows,
    const int* adapters, float* between) {
    let_next_start();
    const int token = blockIdx.y, number = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    const int row = rows[token], tiles = ceil_div((int)k, 32);
    wait_for_previous();
    const int adapter = row < 0 ? -1 : adapters[row];
    if (adapter < 0 || number >= numbers) return;
    const float* mine = a + ((i64)adapter * numbers + number) * k;
    float sum = 0;
    for (int column = lane; column < k; column += 32)
        sum = __fadd_rn(sum, __fmul_rn(mine[column], low(__ldcg(input + in_tiles(token, column, tiles)))));
    sum = warp_sum(sum);
    if (squares) sum = __fmul_rn(sum, norm_scale(load_squares(squares + (i64)token * HIDDEN_UNITS)));
    if (lane == 0) between[token * numbers + number] = sum;
}

// The bias and, of a token whose row has an adapter, (x Aᵀ) Bᵀ. A thread a number.
extern "C" __global__ void __launch_bounds__(256) adapter_added(
    i64 tokens, i64 numbers, i64 n, i64 kind, const float* bias, const float* between, const float* b, const int* rows,
    const int* adapters, float* added) {
    let_next_start();
    const int token = blockIdx.y, column = blockIdx.x * 256 + threadIdx.x, row = rows[token];
    wait_for_previous();
    if (column >= n) return;
    const int adapter = row < 0 ? -1 : adapters[row];
    float sum = bias ? bias[column] : 0.0f;
    if (adapter >= 0) {
        constexpr int QUERIES = HEADS * HEAD_DIM, KEYS = KV_HEADS * HEAD_DIM;
        const int part = kind == QKV ? (column >= QUERIES) + (column >= QUERIES + KEYS) : kind == GATE_UP ? column % 2 : 0;
        const float *from = between + token * numbers + part * RANK, *mine = b + (i64)adapter * RANK * n + column;
        float change = 0;
        for (int i = 0; i < RANK; ++i) change = __fadd_rn(change, __fmul_rn(__ldcg(from + i), mine[i * n]));
        sum = __fadd_rn(sum, change);
    }
    added[token * n + column] = sum;
}
