// What compute capability 9.0 has besides: signals in shared memory, copies that give one, and registers that move.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(EMULATED)
__device__ __forceinline__ u32 in_shared(const void* address) { return (u32)__cvta_generic_to_shared(address); }
// Shared memory that a block is launched with.
__device__ __forceinline__ void* block_memory() {
    extern __shared__ __align__(1024) unsigned char bytes[];
    return bytes;
}

// A signal is given when all have arrived, and all bytes that were expected; then it waits for the next time.
struct alignas(8) Signal { u64 state; };
__device__ __forceinline__ void prepare(Signal* signal, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(in_shared(signal)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void show_signals() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void arrive(Signal* signal) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(in_shared(signal)) : "memory");
}
__device__ __forceinline__ void arrive_expecting(Signal* signal, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(in_shared(signal)), "r"(bytes) : "memory");
}
__device__ __forceinline__ bool is_given(const Signal* signal, u32 parity) {  // an even or odd time
    u32 given;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(given) : "r"(in_shared(signal)), "r"(parity) : "memory");
    return given;
}

// Copies to shared memory in the background.
__device__ __forceinline__ void copy_to_shared(void* to, const void* from, int bytes, Signal* signal) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(in_shared(to)), "l"(from), "r"(bytes), "r"(in_shared(signal)) : "memory");
}
__device__ __forceinline__ u64 read_once() {  // a policy of the L2 cache
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ __forceinline__ void copy_to_shared(void* to, const void* from, int bytes, Signal* signal, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                 ::"r"(in_shared(to)), "l"(from), "r"(bytes), "r"(in_shared(signal)), "l"(policy) : "memory");
}

template <int N> __device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(EMULATED)
__device__ __forceinline__ void wait_for(const Signal* signal, u32 parity) {
    while (!is_given(signal, parity)) {}
}
#endif
