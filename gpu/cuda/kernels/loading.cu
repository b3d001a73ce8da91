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

extern "C" __global__ void __launch_bounds__(256) load_matrix(
    const void* numbers, i64 type, i64 count, i64 row, i64 column, i64 columns, i64 first, i64 step, i64 half, bf16* matrix) {
    using namespace loading;
    const Rows rows = {(int)first, (int)step, (int)half};
    const int tiles = ceil_div((int)columns, 32);
    each({numbers, (Type)type, (int)count, (int)row, (int)column, (int)columns}, [&](int row, int column, float value) {
        matrix[in_tiles(rows.of(row), column, tiles)] = to_bf16(value);
    });
}
extern "C" __global__ void __launch_bounds__(256) load_vector(
    const void* numbers, i64 type, i64 count, i64 row, i64 column, i64 columns, i64 first, i64 step, i64 half, float* vector) {
    using namespace loading;
    const Rows rows = {(int)first, (int)step, (int)half};
    each({numbers, (Type)type, (int)count, (int)row, (int)column, (int)columns}, [&](int row, int, float value) {
        vector[rows.of(row)] = value;
    });
}

// For who measures: each number from the seed and its place alone, 0.02 wide, the sum of four that are equally likely.
extern "C" __global__ void __launch_bounds__(256) random_matrix(i64 seed, i64 rows, i64 columns, bf16* matrix) {
    let_next_start();
    wait_for_previous();
    const int tiles = ceil_div((int)columns, 32);
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x)
        for (int column = threadIdx.x; column < columns; column += 256) {
            const u64 bits = random_bits(seed, (u32)(row * columns + column));
            const int sum = (int)(bits & 0xffff) + (int)(bits >> 16 & 0xffff) + (int)(bits >> 32 & 0xffff) + (int)(bits >> 48);
            matrix[in_tiles(row, column, tiles)] = to_bf16(__fmul_rn((float)(sum - 2 * 0xffff), 0.02f / 37837.2f));
        }
}
