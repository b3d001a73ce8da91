// What all kernels share: types, bfloat16, sums over a warp, and the few instructions that C++ has no words for.
//
// The shape of the model comes in as macros: HIDDEN HEADS KV_HEADS HEAD_DIM INTERMEDIATE VOCAB LAYERS CAPACITY EPS
// QK_NORM CODES, ADAPTED (1 where there is room for adapters) and their RANK. All parameters of a kernel are 8 bytes wide.
//
// The unit of all work is a token: its row of the cache and its position there. Prefill and decode run the same
// kernels on more or fewer tokens, and what is computed for one depends on no other in the call, nor on how many there
// are: every sum has one order, given by the shape and the token's position alone. A token of row -1 is nobody's.
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef unsigned short bf16;

constexpr u32 ALL_LANES = 0xffffffffu;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// Weights and what they are multiplied with lie in tiles of 8 rows (tokens) and 32 columns: [rows / 8, columns / 32, 8, 32].
// The four chunks of 8 numbers of a row are turned by the row, as tensor cores and shared memory like to read them. Lane
// (group, quad) of a warp multiplies, of row `group`, the numbers 4 quad to 4 quad + 3 of either half of the columns.
constexpr int TILE = 256;
__host__ __device__ constexpr i64 in_tiles(i64 row, int column, int tiles) {
    const int chunk = (column / 8 % 4) ^ (int)(row / 2 % 4);
    return (row / 8 * tiles + column / 32) * TILE + row % 8 * 32 + chunk * 8 + column % 8;
}
__device__ __forceinline__ const bf16* other_half(const bf16* address) { return (const bf16*)((u64)address ^ 32); }

// Weights may be codes of 8 bits instead, and a row of them the codes times a scale. Every code is a number of bfloat16,
// so that products are computed as ever, and a sum is multiplied by the scale of its row in the end. In a tile of codes
// the eight of a lane lie together, two words of four, as `widened` likes to read them. The scales lie behind the tiles.
enum { PLAIN, INT8, FP8 };  // CODES is one of them
constexpr bool QUANTIZED = CODES != PLAIN;
constexpr float LARGEST_CODE = CODES == FP8 ? 448 : 127 / 64.0f;  // code
template <bool> struct WeightOf { typedef bf16 type; };
template <> struct WeightOf<true> { typedef unsigned char type; };
typedef WeightOf<QUANTIZED>::type Weight;

// Where a lane's weights begin in a tile.
__host__ __device__ constexpr i64 in_tile(int group, int quad) {
    return QUANTIZED ? (group * 4 + quad) * 8 : in_tiles(group, quad * 4, 1);
}
// The word of the four codes from a column on, of all words.
__host__ __device__ constexpr i64 word_at(i64 row, int column, int tiles) {
    return (row / 8 * tiles + column / 32) * (TILE / 4) + row % 8 * 8 + column % 16 / 4 * 2 + column % 32 / 16;
}
template <class W> __device__ __forceinline__ const float* scales_of(const W* matrix, int rows, int tiles) {
    return (const float*)(matrix + (i64)(round_up(rows, 16) / 8) * tiles * TILE);
}

#ifndef EMULATED
struct alignas(16) Pack { u32 x, y, z, w; };  // 16 bytes: eight bfloat16
struct alignas(8) Octet { u32 x, y; };        // 8 bytes: eight codes

// A lane's numbers of a tile, see below. Weights are read once: they take no place in L1.
__device__ __forceinline__ Pack load_weights(const bf16* address) {
    Pack v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.z), "=r"(v.w) : "l"(other_half(address)));
    return v;
}
__device__ __forceinline__ Octet load_weights(const unsigned char* address) {
    Octet v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}
__device__ __forceinline__ Pack load_tokens(const bf16* address) {
    const uint2 first = __ldcg((const uint2*)address), second = __ldcg((const uint2*)other_half(address));
    return {first.x, first.y, second.x, second.y};
}
__device__ __forceinline__ Pack load_pack(const bf16* address) {
    const uint4 v = __ldcg(reinterpret_cast<const uint4*>(address));
    return {v.x, v.y, v.z, v.w};
}
// Zeros where there is nothing to read.
__device__ __forceinline__ Pack load_pack_if(bool there, const bf16* address) {
    Pack v;
    asm volatile("{\n.reg .pred there;\nsetp.ne.u32 there, %5, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\n"
                 "mov.u32 %3, 0;\n@there ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w) : "l"(address), "r"((u32)there));
    return v;
}
// As before where there is nothing to read.
__device__ __forceinline__ void load_pack_instead(Pack& v, bool there, const bf16* address) {
    asm volatile("{\n.reg .pred there;\nsetp.ne.u32 there, %5, 0;\n@there ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "l"(address), "r"((u32)there));
}
// d += a b for a 16 x 16 tile of tokens and a 16 x 8 tile of weights, in float32.
__device__ __forceinline__ void multiply(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Two numbers in bfloat16, the first in the low half.
__device__ __forceinline__ u32 pair(float first, float second) {
    u32 v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(second), "f"(first));
    return v;
}
// a b + c, of both numbers of a pair.
__device__ __forceinline__ u32 multiply_add(u32 a, u32 b, u32 c) {
    u32 v;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
    return v;
}
// 2 to the power of a number, near enough; of 0 it is 1, of -inf 0.
__device__ __forceinline__ float exp2_fast(float value) {
    float v;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(value));
    return v;
}
// An 8 x 8 matrix of bfloat16, row `group` and columns 2 quad and 2 quad + 1 in lane (group, quad), the other way round.
__device__ __forceinline__ u32 transposed(u32 value) {
    u32 v;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(v) : "r"(value));
    return v;
}
// Four such matrices from shared memory, the other way round: lane 8 i + j names row j of matrix i.
__device__ __forceinline__ Pack load_transposed(const bf16* row) {
    Pack v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
    return v;
}
// 16 bytes to shared memory, there when `wait_for_copies` has returned; zeros, and nothing is read, if not `there`.
__device__ __forceinline__ void copy_early(bf16* to, const bf16* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Sends numbers on their way to L2, where one thread can ask for many at once (compute capability 9.0).
__device__ __forceinline__ void prefetch(const bf16* from, int numbers) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(numbers * 2) : "memory");
#endif
}
// Shows others what this thread knows to be written, and this thread what is written for whom it finds counted.
__device__ __forceinline__ u32 add_acquire_release(u32* at, u32 count) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(count) : "memory");
    return before;
}
// As much shared memory as a kernel is launched with.
#define SHARED_MEMORY(name) extern __shared__ Pack name[]
// Programmatic dependent launch (compute capability 9.0): the next kernel may start now, and this one may read what
// the kernels before it wrote. Every block of every kernel waits, so that a wait covers all earlier kernels.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ void unpack(Pack pack, float (&v)[8]) {
    v[0] = low(pack.x); v[1] = high(pack.x); v[2] = low(pack.y); v[3] = high(pack.y);
    v[4] = low(pack.z); v[5] = high(pack.z); v[6] = low(pack.w); v[7] = high(pack.w);
}
__device__ __forceinline__ u32 lows(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
__device__ __forceinline__ u32 highs(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }
// To the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ bf16 to_bf16(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A code is a sign and 7 bits: of an integer that counts 64ths, or the exponent and mantissa of fp8. Either is a number of
// bfloat16 when its bits are put where they belong there and the product with a power of two makes up for the exponent.
// Four codes make a word, so mixed that it takes little to put two of them at a time in the halves of another.
constexpr u32 BITS = CODES == FP8 ? 0x87f087f0u : 0x807f807fu;   // 120 is missing in the exponent; an integer has none
constexpr u32 TIMES = CODES == FP8 ? 0x7b807b80u : 0x7f007f00u;  // 2^120; 2^127, that is 2^133 64ths
__device__ __forceinline__ u32 turned_right(u32 word, int bits) { return word >> bits | word << (32 - bits); }
__device__ __forceinline__ u32 first_two(u32 word) {
    if (CODES == FP8) word = (word & 0x87808780u) | (word >> 8 & 0x00700070u);
    return multiply_add(word & BITS, TIMES, 0x80008000u);
}
__device__ __forceinline__ u32 last_two(u32 word) {
    return multiply_add((CODES == FP8 ? word << 4 : turned_right(word, 8)) & BITS, TIMES, 0x80008000u);
}
__device__ __forceinline__ Pack widened(Octet codes) {
    return {first_two(codes.x), last_two(codes.x), first_two(codes.y), last_two(codes.y)};
}
__device__ __forceinline__ Pack widened(Pack numbers) { return numbers; }

// The nearest code, ties to even, of a number that is no larger than the largest: adding rounds the small ones.
__device__ __forceinline__ u32 code_of(float value) {
    const u32 bits = __float_as_uint(value), sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
    auto last_bits = [&](float large) { return __float_as_uint(__fadd_rn(__uint_as_float(size), large)) & 0x7fu; };
    if (CODES == INT8) return sign | last_bits(0x1p17f);
    if (size < 0x3c800000u) return sign | last_bits(0x1p14f);
    return sign | ((((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3)) & 0x7fu);
}
__device__ __forceinline__ u32 codes_of(const float (&v)[4], float scale) {
    u32 c[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = code_of(v[i] / scale);
    if (CODES == FP8) {
        auto first = [](u32 c) { return (c & 0x80u) << 8 | (c & 0x78u) << 4 | (c & 7u) << 12; };
        auto last = [](u32 c) { return (c & 0x80u) << 4 | (c & 0x7fu); };
        return first(c[0]) | first(c[1]) << 16 | last(c[2]) | last(c[3]) << 16;
    }
    auto apart = [](u32 c) { return (c & 0x80u) << 8 | (c & 0x7fu); };
    return apart(c[0]) | apart(c[1]) << 16 | turned_right(apart(c[2]) | apart(c[3]) << 16, 24);
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int step = 16; step; step >>= 1) value = __fadd_rn(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

// The KV cache is [rows, layers, 2 (keys, values), kv_heads, capacity, head_dim]: what a row holds lies together.
constexpr i64 HEAD_STRIDE = (i64)CAPACITY * HEAD_DIM;
constexpr i64 ROW_STRIDE = (i64)LAYERS * 2 * KV_HEADS * HEAD_STRIDE;
constexpr int HALF = HEAD_DIM / 2;

// Turns the numbers i and i + HALF of a head by its position; the table holds half cosines, half sines.
__device__ __forceinline__ float2 turned(float a, float b, float2 turn) {
    return make_float2(
        __fsub_rn(__fmul_rn(a, turn.x), __fmul_rn(b, turn.y)), __fadd_rn(__fmul_rn(b, turn.x), __fmul_rn(a, turn.y)));
}
__device__ __forceinline__ float2 turned(float a, float b, const float* table, int position, int i) {
    return turned(a, b, make_float2(table[(i64)position * HEAD_DIM + i], table[(i64)position * HEAD_DIM + HALF + i]));
}
constexpr int QKV_WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
constexpr int HIDDEN_UNITS = ceil_div(HIDDEN, 8);        // a partial sum of squares each
constexpr int HIDDEN_PADDED = round_up(HIDDEN, 32);      // what pads a row is zero, always
constexpr int HIDDEN_TILES = ceil_div(HIDDEN, 32);
constexpr int ATTENDED_TILES = ceil_div(HEADS * HEAD_DIM, 32);
constexpr int INNER_TILES = ceil_div(INTERMEDIATE, 32);
