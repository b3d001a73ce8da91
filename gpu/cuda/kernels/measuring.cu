// What a device is measured with: a kernel that does nothing, and one that reads as fast as the device can.
extern "C" __global__ void __launch_bounds__(32) nothing(const float* unused) {
    let_next_start();
    wait_for_previous();
}

constexpr int READERS = 512, AT_ONCE = 8;  // packs of 16 bytes of a thread in flight

extern "C" __global__ void __launch_bounds__(READERS) read_all(const bf16* from, i64 packs, u32* to) {
    let_next_start();
    wait_for_previous();
    u32 sum = 0;
    const i64 step = (i64)gridDim.x * READERS * AT_ONCE;
    for (i64 first = (i64)blockIdx.x * READERS * AT_ONCE + threadIdx.x; first < packs; first += step) {
        Pack v[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            v[i] = {0, 0, 0, 0};
            if (first + i * READERS < packs) v[i] = load_pack(from + (first + i * READERS) * 8);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    if (sum == 0x12345678u) *to = sum;  // never: the memory is zero; but the compiler does not know
}
