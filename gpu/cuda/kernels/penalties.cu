// What changes logits before a token is drawn, by the letter of gpu/penalties.py: its steps have the same numbers here.
struct Penalties {  // of one row
    float repetition, presence, frequency;
    int ngram;       // 0 is off
    int min_length;  // tokens before which stops are masked
    int stops;       // how many
    int output_from;
    u32 flags;
};
constexpr u32 PENALISED = 1, BIASED = 2;
constexpr int PENALISING = 512;  // threads of a block
constexpr int MOST_STOPS = 64;
constexpr u32 SEEN = 1, ONE_MORE = 2;  // what a prompt's token and an output's add to the count of a token

// How often each token stands in a row's output, times two, and whether it stands in the prompt.
extern "C" __global__ void count_seen(
    i64 tokens, const Penalties* penalties, const int* rows, const int* positions, const int* history, u32* counts) {
    let_next_start();
    wait_for_previous();
    const int of = rows[blockIdx.y];
    if (of < 0 || !(penalties[of].flags & PENALISED)) return;
    const int length = positions[blockIdx.y], output_from = penalties[of].output_from;
    for (int i = blockIdx.x * PENALISING + threadIdx.x; i < length; i += gridDim.x * PENALISING) {
        u32* const seen = counts + (i64)of * VOCAB + history[(i64)of * CAPACITY + i];
        if (i < output_from) atomicOr(seen, SEEN);
        else atomicAdd(seen, ONE_MORE);
    }
}

// Steps 1 to 3. The counts are zero again afterwards.
extern "C" __global__ void penalise(
    i64 tokens, const Penalties* penalties, const int* rows, const float* logits, const float* biases, u32* counts,
    float* penalised) {
    let_next_start();
    wait_for_previous();
    const int of = rows[blockIdx.y];
    if (of < 0 || !(penalties[of].flags & PENALISED)) return;
    const Penalties own = penalties[of];
    const i64 begin = (i64)of * VOCAB;
    for (int i = blockIdx.x * PENALISING + threadIdx.x; i < VOCAB; i += gridDim.x * PENALISING) {
        float x = __ldcg(logits + begin + i);
        if (own.flags & BIASED) x = __fadd_rn(x, biases[begin + i]);
        if (const u32 count = __ldcg(counts + begin + i)) {
            counts[begin + i] = 0;
            x = x < 0 ? __fmul_rn(x, own.repetition) : __fdiv_rn(x, own.repetition);
            if (const u32 of_output = count / ONE_MORE) {
                x = __fsub_rn(x, own.presence);
                x = __fsub_rn(x, __fmul_rn(own.frequency, (float)of_output));
            }
        }
        penalised[begin + i] = x;
    }
}

// Steps 4 and 5.
extern "C" __global__ void mask_tokens(
    i64 tokens, const Penalties* penalties, const int* rows, const int* positions, const int* history, const int* stops,
    float* penalised) {
    let_next_start();
    wait_for_previous();
    const int of = rows[blockIdx.y];
    if (of < 0 || !(penalties[of].flags & PENALISED)) return;
    const Penalties own = penalties[of];
    const int length = positions[blockIdx.y], first = blockIdx.x * PENALISING + threadIdx.x;
    const float masked = __uint_as_float(0xff800000u);  // -inf
    float* const row = penalised + (i64)of * VOCAB;
    if (length < own.min_length && first < own.stops) row[stops[(i64)of * MOST_STOPS + first]] = masked;
    if (own.ngram == 0 || length < own.ngram) return;
    const int* const there = history + (i64)of * CAPACITY;
    const int* const last = there + length - (own.ngram - 1);
    for (int i = first; i <= length - own.ngram; i += gridDim.x * PENALISING) {
        int same = 0;
        while (same < own.ngram - 1 && there[i + same] == last[same]) ++same;
        if (same == own.ngram - 1) row[there[i + same]] = masked;
    }
}
