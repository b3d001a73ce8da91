// How the numbers of a checkpoint come to where the other kernels read them. They arrive as they lie in their file, in
// pinned memory of the host, which a kernel reads once and in order, about as fast as it could be copied.
namespace loading {
enum Type { F32, F16, BF16 };

struct Piece {
    const void* numbers;
    Type type;
    int count, row, column, columns;  // where in the tensor its first number is
};
struct Rows {              // where a row of the tensor goes
    int first, step, half;  // with `half`, rows i and i + half of every 2 half are put next to each other
    __device__ i64 of(int row) const {
        if (!half) return first + row * step;
        return first + row / (2 * half) * (2 * half) + row % half * 2 + row / half % 2;
    }
};

__device__ __forceinline__ float from_half(u32 half) {
    const u32 rest = (half & 0x7fffu) << 13;  // infinity and NaN are larger than any number
    const float size = rest < 0x0f800000u ? __fmul_rn(__uint_as_float(rest), 0x1p112f) : __uint_as_float(rest | 0x7f800000u);
    return __uint_as_float(__float_as_uint(size) | (half & 0x8000u) << 16);
}
__device__ __forceinline__ float number(const Piece& piece, int i) {
    if (piece.type == F32) return ((const float*)piece.numbers)[i];
    const u32 bits = ((const unsigned short*)piece.numbers)[i];
    return piece.type == F16 ? from_half(bits) : low(bits);
}
// Calls `put` for all numbers of a piece, each with its place in the tensor.
template <class Put> __device__ __forceinline__ void each(const Piece& piece, Put put) {
    let_next_start();
    wait_for_previous();
    for (int i = blockIdx.x * 256 + threadIdx.x; i < piece.count; i += gridDim.x * 256) {
        const int behind = piece.column + i;  // the first number of the row that the piece begins in
        put(piece.row + behind / piece.columns, behind % piece.columns, number(piece, i));
    }
}
}  // namespace loading

#if CODES
// The numbers are whole rows, on the device: a warp looks twice at each. The largest becomes the largest code; so that a row
// of zeros has a scale that divides, there is a least one. Numbers that are none make the scale none, and so all sums.
extern "C" __global__ void __launch_bounds__(256) load_codes(
    const void* numbers, i64 type, i64 count, i64 row, i64 columns, i64 first, i64 step, i64 half, u32* codes, float* scales) {
    using namespace loading;
    let_next_start();
    wait_for_previous();
    const Rows rows = {(int)first, (int)step, (int)half};
    const int tiles = ceil_div((int)columns, 32), warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (int at = blockIdx.x * 8 + warp; at < (int)(count / columns); at += gridDim.x * 8) {
        const Piece piece = {(const char*)numbers + at * columns * (type == F32 ? 4 : 2), (Type)type};
        u32 most = 0;  // as bits; more than those of infinity are no number
        for (int column = lane; column < columns; column += 32)
            most = max(most, __float_as_uint(number(piece, column)) & 0x7fffffffu);
        for (int step = 16; step; step >>= 1) most = max(most, __shfl_xor_sync(ALL_LANES, most, step));
        const bool finite = most < 0x7f800000u;
        const float scale = max((finite ? __uint_as_float(most) : 0) / LARGEST_CODE, 0x1p-126f);
        const i64 to = rows.of((int)row + at);
        if (lane == 0) scales[to] = finite ? scale : __uint_as_float(0x7fc00000u);
        for (int column = lane * 4; column < columns; column += 128) {
            float v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = column + i < columns ? number(piece, column + i) : 0.0f;
            codes[word_at(to, column, tiles)] = codes_of(v, scale);
        }
    }
}
#else
extern "C" __global__ void __launch_bounds__(256) load_matrix(
    const void* numbers, i64 type, i64 count, i64 row, i64 column, i64 columns, i64 first, i64 step, i64 half, bf16* matrix) {
    using namespace loading;
    const Rows rows = {(int)first, (int)step, (int)half};
    const int tiles = ceil_div((int)columns, 32);
    each({numbers, (Type)type, (int)count, (int)row, (int)column, (int)columns}, [&](int row, int column, float value) {
        matrix[in_tiles(rows.of(row), column, tiles)] = to_bf16(value);
    });
}
#endif
extern "C" __global__ void __launch_bounds__(256) load_vector(
    const void* numbers, i64 type, i64 count, i64 row, i64 column, i64 columns, i64 first, i64 step, i64 half, float* vector) {
    using namespace loading;
    const Rows rows = {(int)first, (int)step, (int)half};
    each({numbers, (Type)type, (int)count, (int)row, (int)column, (int)columns}, [&](int row, int, float value) {
        vector[rows.of(row)] = value;
    });
}

// For who measures: each number from the seed and its place alone, 0.02 wide, the sum of four that are equally likely.
constexpr float RANDOM = 0.02f / 37837.2f;
__device__ __forceinline__ float random_number(i64 seed, i64 place) {
    const u64 bits = random_bits(seed, (u32)place);
    const int sum = (int)(bits & 0xffff) + (int)(bits >> 16 & 0xffff) + (int)(bits >> 32 & 0xffff) + (int)(bits >> 48);
    return __fmul_rn((float)(sum - 2 * 0xffff), RANDOM);
}
extern "C" __global__ void __launch_bounds__(256) random_matrix(i64 seed, i64 rows, i64 columns, Weight* matrix) {
    let_next_start();
    wait_for_previous();
    const int tiles = ceil_div((int)columns, 32);
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
#if CODES
        constexpr float SCALE = 2 * 0xffff * RANDOM / LARGEST_CODE;
        if (threadIdx.x == 0) ((float*)scales_of(matrix, (int)rows, tiles))[row] = SCALE;
        for (int column = threadIdx.x * 4; column < columns; column += 1024) {
            float v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = column + i < columns ? random_number(seed, row * columns + column + i) : 0.0f;
            ((u32*)matrix)[word_at(row, column, tiles)] = codes_of(v, SCALE);
        }
#else
        for (int column = threadIdx.x; column < columns; column += 256)
            matrix[in_tiles(row, column, tiles)] = to_bf16(random_number(seed, row * columns + column));
#endif
    }
}

#if CODES
// Turns codes back into what the kernels for many tokens read: a thread the eight of a lane.
extern "C" __global__ void __launch_bounds__(256) unpack_codes(i64 rows, i64 columns, const Weight* codes, bf16* matrix) {
    let_next_start();
    wait_for_previous();
    const int tiles = ceil_div((int)columns, 32), all = round_up((int)rows, 16) / 8 * tiles;
    const float* scales = scales_of(codes, (int)rows, tiles);
    for (int row = blockIdx.x * 256 + threadIdx.x; row < (int)rows; row += gridDim.x * 256)
        ((float*)scales_of(matrix, (int)rows, tiles))[row] = scales[row];
    const int lane = threadIdx.x & 31;
    bf16* to = matrix + in_tiles(lane / 4, lane % 4 * 4, 1);
    for (i64 tile = blockIdx.x * 8 + threadIdx.x / 32; tile < all; tile += gridDim.x * 8) {
        const Pack found = widened(load_weights(codes + tile * TILE + lane * 8));
        *(uint2*)(to + tile * TILE) = make_uint2(found.x, found.y);
        *(uint2*)other_half(to + tile * TILE) = make_uint2(found.z, found.w);
    }
}
#endif
