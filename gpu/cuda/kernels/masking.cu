// Masking logits: of a row, all tokens get -inf whose bit is not set; token t has bit t % 32 of word t / 32.
extern "C" __global__ void __launch_bounds__(256) mask(float* logits, const u32* allowed) {
    let_next_start();
    wait_for_previous();
    const int token = blockIdx.x * 256 + threadIdx.x;
    if (token < VOCAB && !(allowed[token >> 5] >> (token & 31) & 1)) logits[token] = __uint_as_float(0xff800000u);
}
