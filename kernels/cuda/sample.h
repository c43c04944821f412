// The next token on the device: top-k, top-p, min-p, temperature and one draw, in the order and with the meaning of
// runtime/samplers.py, where a tie goes to the lower id. Two kernels: blocks cut the vocabulary into slices and keep the
// likeliest MOST of each, sorted; then one block for each sequence chooses among them.
//
// draws [tokens]: see Draw. With top_k 0 neither top_p nor min_p apply, and the token is drawn from all: the highest of
// logit / temperature + Gumbel noise has that distribution (Maddison et al. 2014, arXiv:1411.0030). Random numbers are
// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of (number, purpose) under the seed:
// a launch has no state, so that a draw made again is the same.
// Launch: sample_slices x = slices = ceil(vocabulary / SLICE), y = tokens, SLICE / 2 threads; sample_pick x = tokens,
// SLICE / 2 threads. kept [tokens, slices, MOST] i64 passes between them. picked [tokens]: the token, or -1 where a logit
// was NaN or infinite, or all were -inf. Macros: SLICE (a power of two), MOST (at most 64).

#define THREADS (SLICE / 2)
#define ROOM (MOST * MOST)  // see sample_pick

typedef unsigned long long u64;

// backends/draw.py
struct Draw {
  float temperature;  // 0 or below: the likeliest
  int top_k;          // 1 … MOST, or 0
  float top_p, min_p;
  i64 seed, number;  // how many draws of the seed came before
};

// Whether the highest key decides: it is the likeliest, or it has the draw in it.
DEVICE bool one_decides(const Draw &own) { return own.temperature <= 0.f || own.top_k < 1; }

// Orders by logit, then by lower id. 0 is no token: it is below every one, and so is a logit of -inf.
DEVICE u64 key_of(float logit, int id) {
  if (logit == -INFINITY) return 0;
  u32 bits = AS_UINT(logit == logit ? logit + 0.f : AS_FLOAT(0x7FC00000u));  // a NaN is above all; -0 is 0
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return (u64)bits << 32 | (0xFFFFFFFFu - (u32)id);
}

DEVICE float logit_of(u64 key) {
  u32 bits = (u32)(key >> 32);
  return AS_FLOAT(bits >> 31 ? bits & 0x7FFFFFFFu : ~bits);
}

DEVICE int id_of(u64 key) { return (int)(0xFFFFFFFFu - (u32)key); }

// Four random words of a counter under a key.
DEVICE void philox(u32 (&counter)[4], u64 seed) {
  u32 key_0 = (u32)seed, key_1 = (u32)(seed >> 32);
UNROLL
  for (int round = 0; round < 10; round++) {
    u64 a = (u64)0xD2511F53u * counter[0], b = (u64)0xCD9E8D57u * counter[2];
    u32 second = counter[1], fourth = counter[3];
    counter[0] = (u32)(b >> 32) ^ second ^ key_0;
    counter[1] = (u32)b;
    counter[2] = (u32)(a >> 32) ^ fourth ^ key_1;
    counter[3] = (u32)a;
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
}

DEVICE u32 random_word(const Draw &own, u32 purpose) {
  u32 counter[4] = {(u32)own.number, (u32)((u64)own.number >> 32), purpose, 0};
  philox(counter, (u64)own.seed);
  return counter[0];
}

// Sorts n (a power of two) keys in shared memory, highest first: bitonic (Batcher 1968).
DEVICE void sort_keys(u64 *keys, int n) {
  for (int size = 2; size <= n; size *= 2) {
    for (int gap = size / 2; gap > 0; gap /= 2) {
      BARRIER;
      for (int i = THREAD; i < n / 2; i += THREADS) {
        int low = 2 * i - (i & (gap - 1)), high = low + gap;
        u64 a = keys[low], b = keys[high];
        if ((a < b) == ((low & size) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  BARRIER;
}

// Brings the highest of n (a power of two) keys in shared memory to the first place.
DEVICE void raise_highest(u64 *keys, int n) {
  for (int half_of = n / 2; half_of > 0; half_of /= 2) {
    BARRIER;
    for (int i = THREAD; i < half_of; i += THREADS) {
      if (keys[i + half_of] > keys[i]) keys[i] = keys[i + half_of];
    }
  }
  BARRIER;
}

KERNEL(THREADS)
sample_slices(GLOBAL const float *logits, GLOBAL const u8 *draws, GLOBAL i64 *kept, int vocabulary) {
  LOCAL_ARRAY(u64, keys, SLICE);
  let_successors_start();
  wait_for_predecessors();
  const Draw &own = ((const Draw *)draws)[BLOCK_Y];
  bool from_all = own.top_k < 1 && own.temperature > 0.f;
  for (int i = THREAD; i < SLICE; i += THREADS) {
    int id = BLOCK_X * SLICE + i;
    float logit = id < vocabulary ? logits[(i64)BLOCK_Y * vocabulary + id] : -INFINITY;
    if (from_all && logit > -INFINITY && logit < INFINITY) {
      float uniform = ((float)random_word(own, (u32)id + 1) + .5f) * 0x1p-32f;
      logit = logit / own.temperature - logf(-log1pf(-(uniform < 0x1.fffffep-1f ? uniform : 0x1.fffffep-1f)));
    }
    keys[i] = key_of(logit, id);
  }
  int wanted = one_decides(own) ? 1 : MOST;
  if (wanted == 1) {
    raise_highest(keys, SLICE);
  } else {
    sort_keys(keys, SLICE);
  }
  for (int i = THREAD; i < wanted; i += THREADS) kept[((i64)BLOCK_Y * BLOCKS_X + BLOCK_X) * MOST + i] = (i64)keys[i];
}

// The best `top` keys of all slices, sorted, and how many there are. They lie at or above the top-th best of the slices'
// best, which `top` slices reach with at most `top` keys each: MOST * MOST places hold what is left to sort.
DEVICE int gather(const u64 *candidates, int slices, int top, u64 *keys, u64 *bound, int *count) {
  if (THREAD == 0) {
    *bound = 1;  // any token
    *count = 0;
  }
  BARRIER;
  for (int i = THREAD; i < slices; i += THREADS) {
    u64 best = candidates[(i64)i * MOST];
    int above = 0;
    for (int j = 0; j < slices; j++) above += candidates[(i64)j * MOST] > best;
    if (above == top - 1 && best > 0) *bound = best;  // one slice at most: keys differ
  }
  BARRIER;
  for (int i = THREAD; i < slices * top; i += THREADS) {
    u64 key = candidates[(i64)(i / top) * MOST + i % top];
    if (key >= *bound) keys[ATOMIC_ADD(count, 1)] = key;
  }
  BARRIER;
  int found = *count, n = 2;
  while (n < found) n *= 2;
  for (int i = found + THREAD; i < n; i += THREADS) keys[i] = 0;
  sort_keys(keys, n);
  return found > top ? top : found;
}

// The place of the drawn token among `found` sorted keys; weights[i] is exp(logit - the highest).
DEVICE int drawn_place(const Draw &own, const u64 *keys, const float *weights, int found) {
  float highest = logit_of(keys[0]), total = 0.f, sum = 0.f;
  for (int i = 0; i < found; i++) total += weights[i];
  if (own.top_p < 1.f) {
    int reached = found;
    for (int i = 0; i < found && reached == found; i++) {
      sum += weights[i];
      if (sum >= own.top_p * total) reached = i + 1;
    }
    found = reached;
  }
  if (own.min_p > 0.f) {
    float least = highest + logf(own.min_p);
    while (found > 1 && logit_of(keys[found - 1]) < least) found--;
  }
  total = sum = 0.f;
  for (int i = 0; i < found; i++) total += EXP((logit_of(keys[i]) - highest) / own.temperature);
  float uniform = (float)(random_word(own, 0) >> 8) * 0x1p-24f;
  int place = 0;
  for (; place < found - 1; place++) {
    sum += EXP((logit_of(keys[place]) - highest) / own.temperature);
    if (sum > uniform * total) break;
  }
  return place;
}

KERNEL(THREADS)
sample_pick(GLOBAL const i64 *kept, GLOBAL const u8 *draws, GLOBAL int *picked, int slices) {
  LOCAL_ARRAY(u64, keys, ROOM);
  LOCAL_ARRAY(u64, bound, 1);
  LOCAL_ARRAY(float, weights, MOST);
  LOCAL_ARRAY(int, count, 1);
  let_successors_start();
  wait_for_predecessors();
  const Draw &own = ((const Draw *)draws)[BLOCK_X];
  const u64 *candidates = (const u64 *)kept + (i64)BLOCK_X * slices * MOST;
  int found = 1;
  if (one_decides(own)) {
    u64 best = 0;
    for (int i = THREAD; i < slices; i += THREADS) best = candidates[(i64)i * MOST] > best ? candidates[(i64)i * MOST] : best;
    keys[THREAD] = best;
    raise_highest(keys, THREADS);
  } else {
    found = gather(candidates, slices, own.top_k > MOST ? MOST : own.top_k, keys, bound, count);
  }
  float highest = logit_of(keys[0]);
  for (int i = THREAD; i < found; i += THREADS) weights[i] = EXP(logit_of(keys[i]) - highest);
  BARRIER;
  if (THREAD == 0) {
    bool sound = keys[0] > 0 && highest < INFINITY;
    int place = found > 1 ? drawn_place(own, keys, weights, found) : 0;
    picked[BLOCK_X] = sound ? id_of(keys[place]) : -1;
  }
}
