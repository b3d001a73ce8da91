// The one order in which a token attends, whoever computes it. Positions are cut into blocks of 64, always at the same
// places. A block leaves, for each query head, the largest score m, the sum l of exp2(score - m), and the sum o of the
// values weighed so: the state of the block. States of the blocks of a split are merged from the first to the last,
// then states of splits. To merge with the state of nothing changes no bit, so what is wholly masked may be left out.
//
// Tensor cores do the sums of a block. A dot product is the same whichever operand holds the queries: a step has the
// few query heads of a key head as 8 columns, a prompt has 16 pairs of token and head as rows. Where the numbers of a
// key, or the positions of a block, lie in an instruction is the same in both.
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int BLOCK_POSITIONS = 64, SPLIT_BLOCKS = SPLIT / BLOCK_POSITIONS;
constexpr int MAX_SPLITS = ceil_div(CAPACITY, SPLIT);
constexpr int STRETCHES = ceil_div(HEAD_DIM, 32);  // of a key: two instructions each, a lane has 8 numbers of them
constexpr int SPANS = ceil_div(HEAD_DIM, 64);      // of a value
#define NOTHING __uint_as_float(0xff800000u)

struct State { float m, l, o; };

// What scores are told from: with no score at all every weight is exp2(-inf).
__device__ __forceinline__ float base(float largest) { return largest == NOTHING ? 0.0f : largest; }
__device__ __forceinline__ float weighed(float score, float base) { return exp2_fast(__fsub_rn(score, base)); }
__device__ __forceinline__ float merged(float into, float keep, float other, float take) {
    return __fmaf_rn(other, take, __fmul_rn(into, keep));
}
__device__ __forceinline__ void merge(State& into, State other) {
    const float m = fmaxf(into.m, other.m), keep = weighed(into.m, base(m)), take = weighed(other.m, base(m));
    into.m = m;
    into.l = merged(into.l, keep, other.l, take);
    into.o = merged(into.o, keep, other.o, take);
}
// A zero has no sign here: it depends on how many states of nothing were merged.
__device__ __forceinline__ float attended_to(float o, float share) { return __fmul_rn(__fadd_rn(o, 0.0f), share); }

__device__ __forceinline__ Pack packed(const float* v) {
    const float4 a = __ldcg((const float4*)v), b = __ldcg((const float4*)v + 1);
    return {pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w)};
}
