// Where heads are normalised: that, rotary embedding and the cache's write, before attention.
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
