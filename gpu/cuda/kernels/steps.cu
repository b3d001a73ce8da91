// The kernels of a pass through the layers, one an operation, but for the products and the attention of prompts.

// The first kernel of a forward pass: it lets no other start before all that came earlier is done. So the others may read
// rows and positions, which nothing in the pass writes but its very end, before they wait.
extern "C" __global__ void __launch_bounds__(256) embed(
    i64 tokens, const Weight* table, const int* ids, const int* drawn, const int* rows, const float* next_norm, float* x,
    bf16* next_input, float* next_squares) {
    wait_for_previous();
    let_next_start();
    const int token = blockIdx.x, row = rows[token], id = row < 0 ? 0 : ids ? ids[token] : drawn[2 * row];
    begin_residual(table, id, token, next_norm, x, next_input, next_squares);
}

#if defined(EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What the numbers of each token are scaled by, see `norm_scale`; for wide.cu.
extern "C" __global__ void __launch_bounds__(256) scales(i64 tokens, const float* squares, float* scales) {
    let_next_start();
    wait_for_previous();
    const int token = blockIdx.x * 8 + (threadIdx.x >> 5);
    if (token >= tokens) return;
    const float scale = norm_scale(load_squares(squares + (i64)token * HIDDEN_UNITS));
    if ((threadIdx.x & 31) == 0) scales[token] = scale;
}
#endif

#if QK_NORM
// Where heads are normalised, before attention. One warp a head: normalise it, turn it by its position, and put keys and
// values into the cache.
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

// Grid: heads of keys times PARTS, as many splits as the longest row may have, tokens.
extern "C" __global__ void __launch_bounds__(ATTENDING, RESIDENT) attention_step(
    i64 tokens, const float* qkv, const bf16* cache, const int* rows, const int* positions, bf16* attended,
    float* partials, u32* arrivals) {
    __shared__ Attending shared;
    let_next_start();
    const int token = blockIdx.z, row = rows[token];
    const Share share = {token, row, __ldcg(positions + token) + 1, (int)blockIdx.x, (int)blockIdx.y};
    const bool there = row >= 0 && share.split * SPLIT < share.length;
    if (!there && share.split > 0) return;  // makes room; the first ones wait for all that is before this kernel
    // Tokens of a row lie together, and ascend: all of them up to this one are written while this kernel starts.
    int unwritten = 1;
    while (unwritten <= token && rows[token - unwritten] == row) ++unwritten;
    Stream stream = stream_of(cache, share, unwritten, threadIdx.x);
    if (there && threadIdx.x == 0) prefetch(cache, share);
    if (there) stream.ask();
    wait_for_previous();
    if (!there) return;
    stream.ask_for_newest(unwritten);
    attend_share(
        shared, {qkv, cache, attended, partials, arrivals}, share, stream, threadIdx.x, [] { __syncthreads(); });
}
