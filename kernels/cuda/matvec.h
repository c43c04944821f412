// Products of a few tokens with a matrix that is read once: the parts that project.h, gated.h, qkv.h and head.h share.
//
// A warp takes ROWS_AT_ONCE rows and one of `SPLIT` interleaved parts of their chunks; the warps of a block that take the
// other parts are its neighbours. A thread starts the loads of its first chunks before it waits for the kernel before
// this one, whose output x is: the weights are on their way while that kernel ends (programmatic dependent launch, and
// loads before the wait, after github.com/msaroufim/megakernels-vs-cuda-graphs, kernels/projection.cu). Then the block
// brings x into shared memory, where the four columns of a load lie so that lanes, a chunk apart, meet different banks.
//
// Numerics: f32 throughout, no rounding of x; the norm's factor is taken out of the sum. Codes of 8 bits enter the
// products as subnormal floats (a byte's integer n, read as float bits, is n * 2^-149), which multiplication takes
// exactly; x is held times 2^100, so that no product is subnormal for |x| from 2^-77 to 2^27. value = scale * code -
// minimum is summed as scale * sum(code * x) - minimum * sum(x), with sum(x) over the same 16 or 32 columns.
//
// Macros: COLUMNS (a multiple of 32), TOKENS (1 to 8), WARPS, TILE (columns of x in shared memory at a time: all, or a
// multiple of every format's stride below). x and y are rows of f32.

#define ROWS_AT_ONCE 4
#define THREADS (32 * WARPS)
#define X_FLOATS (TOKENS * (TILE + 288))  // room for x with its gaps
#define X_SUMS (TOKENS * (TILE / 16))
#define OUTCOMES (ROWS_AT_ONCE * TOKENS)

constexpr int ceil_power_of_two(int n) { return n <= 1 ? 1 : 2 * ceil_power_of_two((n + 1) / 2); }

// Chunks of a row that a thread has under way: about 100 bytes of weights for each of its rows' loads.
template <class F>
struct Flow {
  static constexpr int AHEAD = F::CHUNK == 32 ? 1 : 2;
  static constexpr int ROW_CHUNKS = COLUMNS / F::CHUNK, TILE_CHUNKS = TILE / F::CHUNK;
  // Eight lanes that store neighbouring vectors meet eight different groups of banks.
  static constexpr int VECTORS = F::CHUNK / 4, STRIDE = (TILE_CHUNKS + 7) / 8 * 8 + 8 / VECTORS;
};

// What a block shares while it computes.
struct Shared {
  float4 *x;       // [TOKENS][VECTORS][STRIDE]: vector v of chunk c, times the norm's weight
  float *sums;     // [TOKENS][TILE / SHARED_SCALE]: of x
  float *outcome;  // [WARPS][OUTCOMES]
  float *squares;  // [WARPS][TOKENS]: of x before the norm's weight
};
#define SHARED_FOR_MATVEC(name)                                                 \
  LOCAL_ARRAY(float4, name##_x, X_FLOATS / 4);                                  \
  LOCAL_ARRAY(float, name##_sums, X_SUMS);                                      \
  LOCAL_ARRAY(float, name##_outcome, WARPS *OUTCOMES);                          \
  LOCAL_ARRAY(float, name##_squares, WARPS *TOKENS);                            \
  Shared name = {name##_x, name##_sums, name##_outcome, name##_squares}

// v[i] summed over the warp, where i is the number that a lane's first bits spell backwards; N is a power of two.
template <int N>
DEVICE float warp_sums(float (&v)[N]) {
  int bit = 1;
UNROLL
  for (int half_of = N / 2; half_of > 0; half_of /= 2, bit *= 2) {
    bool upper = LANE & bit;
UNROLL
    for (int i = 0; i < half_of; i++) {
      float sent = upper ? v[i] : v[i + half_of], kept = upper ? v[i + half_of] : v[i];
      v[i] = kept + SHUFFLE_XOR(sent, bit);
    }
  }
UNROLL
  for (; bit < 32; bit *= 2) v[0] += SHUFFLE_XOR(v[0], bit);
  return v[0];
}

template <int N>
DEVICE int sum_held() {
  int index = 0, bit = 1;
UNROLL
  for (int half_of = N / 2; half_of > 0; half_of /= 2, bit *= 2) index += LANE & bit ? half_of : 0;
  return index;
}

// Columns [first, first + TILE) of x, and their sums; squares[t] grows by theirs.
template <class F>
DEVICE void fill(const float *x, const float *norm, int first, const Shared &shared, float *squares) {
  constexpr int STRIDE = Flow<F>::STRIDE, VECTORS = Flow<F>::VECTORS, PER_SUM = F::SHARED_SCALE / 4;
  int end = COLUMNS - first < TILE ? COLUMNS - first : TILE;
  for (int base = 4 * (THREAD - LANE); base < end; base += 4 * THREADS) {
    int column = base + 4 * LANE, vector = column / 4;
    bool inside = column < end;
    float4 factor = make_float4(1.f, 1.f, 1.f, 1.f);
    if (norm && inside) factor = *(const float4 *)(norm + first + column);
UNROLL
    for (int t = 0; t < TOKENS; t++) {
      float4 value = make_float4(0.f, 0.f, 0.f, 0.f);
      if (inside) value = *(const float4 *)(x + (i64)t * COLUMNS + first + column);
      squares[t] += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
      value = make_float4(value.x * factor.x, value.y * factor.y, value.z * factor.z, value.w * factor.w);
      if (F::CODED) {
        float sum = value.x + value.y + (value.z + value.w);
UNROLL
        for (int bit = 1; bit < PER_SUM; bit *= 2) sum += SHUFFLE_XOR(sum, bit);
        if (inside && LANE % PER_SUM == 0) shared.sums[t * (TILE / F::SHARED_SCALE) + vector / PER_SUM] = sum;
        const float up = 0x1p100f;
        value = make_float4(value.x * up, value.y * up, value.z * up, value.w * up);
      }
      if (inside) shared.x[(t * VECTORS + vector % VECTORS) * STRIDE + vector / VECTORS] = value;
    }
  }
}

// total[r][t] += row r of a chunk times token t; `chunk` counts from the tile's first.
template <class F>
DEVICE void multiply(const typename F::Raw (&raw)[ROWS_AT_ONCE], const Shared &shared, int chunk,
                     float (&total)[ROWS_AT_ONCE][TOKENS]) {
  constexpr int STRIDE = Flow<F>::STRIDE, VECTORS = Flow<F>::VECTORS, PER_SCALE = F::SHARED_SCALE / 4;
  float part[ROWS_AT_ONCE][TOKENS];
UNROLL
  for (int v = 0; v < VECTORS; v++) {
    float w[ROWS_AT_ONCE][4];
UNROLL
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
      if constexpr (F::CODED) {
        u32 codes = F::codes(raw[r], v);
UNROLL
        for (int i = 0; i < 4; i++) w[r][i] = FLOAT_BITS(BYTES(codes, 0, 0x4440 + i));
      } else {
        F::values(raw[r], v, w[r]);
      }
    }
UNROLL
    for (int t = 0; t < TOKENS; t++) {
      float4 x = shared.x[(t * VECTORS + v) * STRIDE + chunk];
UNROLL
      for (int r = 0; r < ROWS_AT_ONCE; r++) {
        float sum = F::CODED ? (v % PER_SCALE ? part[r][t] : 0.f) : total[r][t];
        sum = fma_subnormal(w[r][3], x.w, fma_subnormal(w[r][2], x.z, sum));
        sum = fma_subnormal(w[r][1], x.y, fma_subnormal(w[r][0], x.x, sum));
        (F::CODED ? part : total)[r][t] = sum;
      }
    }
    if constexpr (F::CODED) {
      if (v % PER_SCALE == PER_SCALE - 1) {
UNROLL
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
          float scale, minimum;
          F::scales(raw[r], v / PER_SCALE, scale, minimum);
          scale *= 0x1p49f;
UNROLL
          for (int t = 0; t < TOKENS; t++) {
            float sum = shared.sums[t * (TILE / F::SHARED_SCALE) + (chunk * VECTORS + v) / PER_SCALE];
            total[r][t] += scale * part[r][t] - minimum * sum;
          }
        }
      }
    }
  }
}

// The block's products. Afterwards outcome_of() has them, for the threads of the block that finish rows.
// w[r], row[r]: the matrix and the row in it of this warp's r-th row; `units` is the size of each such matrix.
template <class F, int SPLIT>
DEVICE void products(const u8 *const (&w)[ROWS_AT_ONCE], const i64 (&row)[ROWS_AT_ONCE], i64 units, const float *x,
                     const float *norm, const Shared &shared) {
  constexpr int AHEAD = Flow<F>::AHEAD, ROW_CHUNKS = Flow<F>::ROW_CHUNKS, TILE_CHUNKS = Flow<F>::TILE_CHUNKS;
  constexpr int STEP = 32 * SPLIT, ALL = ceil_power_of_two(OUTCOMES), TOKENS_UP = ceil_power_of_two(TOKENS);
  static_assert(TILE >= COLUMNS || TILE_CHUNKS % (STEP * AHEAD) == 0, "tiles end where a thread's turns do");
  int chunk = WARP % SPLIT * 32 + LANE;
  typename F::Raw raw[AHEAD][ROWS_AT_ONCE];
UNROLL
  for (int a = 0; a < AHEAD; a++) {
    if (chunk + a * STEP < ROW_CHUNKS) {
UNROLL
      for (int r = 0; r < ROWS_AT_ONCE; r++) F::load(raw[a][r], w[r], units, row[r] * ROW_CHUNKS + chunk + a * STEP);
    }
  }
  wait_for_predecessors();
  float total[ROWS_AT_ONCE][TOKENS], squares[TOKENS_UP], sums[ALL];
UNROLL
  for (int t = 0; t < TOKENS_UP; t++) squares[t] = 0.f;
UNROLL
  for (int r = 0; r < ROWS_AT_ONCE; r++) {
UNROLL
    for (int t = 0; t < TOKENS; t++) total[r][t] = 0.f;
  }
  for (int first = 0; first < COLUMNS; first += TILE) {
    if (first) BARRIER;  // the tile before this one is done with
    fill<F>(x, norm, first, shared, squares);
    BARRIER;
    int tile = first / F::CHUNK, end = ROW_CHUNKS - tile < TILE_CHUNKS ? ROW_CHUNKS : tile + TILE_CHUNKS;
    for (; chunk < end; chunk += STEP * AHEAD) {
UNROLL
      for (int a = 0; a < AHEAD; a++) {
        int at = chunk + a * STEP, next = at + STEP * AHEAD;
        if (at < end) multiply<F>(raw[a], shared, at - tile, total);
        if (next < ROW_CHUNKS) {
UNROLL
          for (int r = 0; r < ROWS_AT_ONCE; r++) F::load(raw[a][r], w[r], units, row[r] * ROW_CHUNKS + next);
        }
      }
    }
  }
UNROLL
  for (int i = 0; i < ALL; i++) sums[i] = i < OUTCOMES ? total[i / TOKENS % ROWS_AT_ONCE][i % TOKENS] : 0.f;
  float sum = warp_sums<ALL>(sums);
  int index = sum_held<ALL>();
  if (LANE < ALL && index < OUTCOMES) shared.outcome[WARP * OUTCOMES + index] = sum;
  if (norm) {
    sum = warp_sums<TOKENS_UP>(squares);
    index = sum_held<TOKENS_UP>();
    if (LANE < TOKENS_UP && index < TOKENS) shared.squares[WARP * TOKENS + index] = sum;
  }
  BARRIER;
}

// The factor of a token's norm. Every block has seen all of x.
DEVICE float norm_factor(const Shared &shared, int token, float eps) {
  float sum = 0.f;
UNROLL
  for (int i = 0; i < WARPS; i++) sum += shared.squares[i * TOKENS + token];
  return RSQRT(sum / (float)COLUMNS + eps);
}

// Row r of the block's group of rows `group`, times a token.
template <int SPLIT>
DEVICE float outcome_of(const Shared &shared, int group, int r, int token) {
  float sum = 0.f;
UNROLL
  for (int i = 0; i < SPLIT; i++) sum += shared.outcome[(group * SPLIT + i) * OUTCOMES + r * TOKENS + token];
  return sum;
}
