// The next token on the device: top-k, top-p, min-p, temperature and one draw, in the order and with the meaning of
// runtime/samplers.py, where a tie goes to the lower id. Two kernels: blocks cut the vocabulary into slices and keep the
// likeliest MOST of each, sorted; then one block for each sequence chooses among them.
//
// settings [tokens, 4] f32: temperature (0 or below: the likeliest), top_k (1 … MOST, or 0), top_p, min_p. With top_k 0
// neither top_p nor min_p apply, and the token is drawn from all: the highest of logit / temperature + Gumbel noise has
// that distribution (Maddison et al. 2014, arXiv:1411.0030).
// random [tokens, 2] i64: a seed, and the number of draws so far, which a launch adds one to. Random numbers are
// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of (draw, purpose) under the seed.
// Launch: sample_slices x = slices = ceil(vocabulary / SLICE), y = tokens, SLICE / 2 threads; sample_pick x = tokens,
// SLICE / 2 threads. kept [tokens, slices, MOST] i64 passes between them. picked [tokens]: the token, or -1 where a logit
// was NaN or infinite, or all were -inf. Macros: SLICE (a power of two), MOST (at most 64).

#define THREADS (SLICE / 2)
#define ROOM (MOST * MOST)  // see sample_pick

typedef unsigned long long u64;

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

DEVICE u32 random_word(const i64 *random, u32 purpose) {
  u32 counter[4] = {(u32)random[1], (u32)((u64)random[1] >> 32), purpose, 0};
  philox(counter, (u64)random[0]);
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

KERNEL(THREADS)
sample_slices(GLOBAL const float *logits, GLOBAL const float *settings, GLOBAL const i64 *random, GLOBAL i64 *kept,
              int vocabulary) {
  LOCAL_ARRAY(u64, keys, SLICE);
  let_successors_start();
  wait_for_predecessors();
  const float *own = settings + 4 * BLOCK_Y;
  bool from_all = own[1] < 1.f && own[0] > 0.f;
  for (int i = THREAD; i < SLICE; i += THREADS) {
    int id = BLOCK_X * SLICE + i;
    float logit = id < vocabulary ? logits[(i64)BLOCK_Y * vocabulary + id] : -INFINITY;
    if (from_all && logit > -INFINITY && logit < INFINITY) {
      float uniform = ((float)random_word(random + 2 * BLOCK_Y, (u32)id + 1) + .5f) * 0x1p-32f;
      logit = logit / own[0] - logf(-log1pf(-(uniform < 0x1.fffffep-1f ? uniform : 0x1.fffffep-1f)));
    }
    keys[i] = key_of(logit, id);
  }
  sort_keys(keys, SLICE);
  for (int i = THREAD; i < MOST; i += THREADS) kept[((i64)BLOCK_Y * BLOCKS_X + BLOCK_X) * MOST + i] = (i64)keys[i];
}

// The best `top` keys of all slices lie at or above the top-th best of the slices' best, which `top` slices reach with at
// most `top` keys each: MOST * MOST places hold what is left to sort.
KERNEL(THREADS)
sample_pick(GLOBAL const i64 *kept, GLOBAL const float *settings, GLOBAL i64 *random, GLOBAL int *picked, int slices) {
  LOCAL_ARRAY(u64, keys, ROOM);
  LOCAL_ARRAY(u64, bound, 1);
  LOCAL_ARRAY(float, weights, MOST);
  LOCAL_ARRAY(int, count, 1);
  wait_for_predecessors();
  const float *own = settings + 4 * BLOCK_X;
  const u64 *candidates = (const u64 *)kept + (i64)BLOCK_X * slices * MOST;
  float temperature = own[0];
  int top = own[1] < 1.f || temperature <= 0.f ? 1 : (own[1] > (float)MOST ? MOST : (int)own[1]);
  if (THREAD == 0) {
    bound[0] = 1;  // any token
    count[0] = 0;
  }
  BARRIER;
  for (int i = THREAD; i < slices; i += THREADS) {
    u64 best = candidates[(i64)i * MOST];
    int above = 0;
    for (int j = 0; j < slices; j++) above += candidates[(i64)j * MOST] > best;
    if (above == top - 1 && best > 0) bound[0] = best;  // one slice at most: keys differ
  }
  BARRIER;
  for (int i = THREAD; i < slices * top; i += THREADS) {
    u64 key = candidates[(i64)(i / top) * MOST + i % top];
    if (key >= bound[0]) keys[ATOMIC_ADD(count, 1)] = key;
  }
  BARRIER;
  int found = count[0], n = 2;
  while (n < found) n *= 2;
  for (int i = found + THREAD; i < n; i += THREADS) keys[i] = 0;
  sort_keys(keys, n);
  if (found > top) found = top;
  float highest = logit_of(keys[0]);
  for (int i = THREAD; i < found; i += THREADS) weights[i] = EXP(logit_of(keys[i]) - highest);
  BARRIER;
  if (THREAD == 0) {
    int choice = 0;
    if (top > 1) {
      float total = 0.f, sum = 0.f;
      for (int i = 0; i < found; i++) total += weights[i];
      if (own[2] < 1.f) {
        int reached = found;
        for (int i = 0; i < found && reached == found; i++) {
          sum += weights[i];
          if (sum >= own[2] * total) reached = i + 1;
        }
        found = reached;
      }
      if (own[3] > 0.f) {
        float least = highest + logf(own[3]);
        while (found > 1 && logit_of(keys[found - 1]) < least) found--;
      }
      total = sum = 0.f;
      for (int i = 0; i < found; i++) total += EXP((logit_of(keys[i]) - highest) / temperature);
      float uniform = (float)(random_word(random + 2 * BLOCK_X, 0) >> 8) * 0x1p-24f;
      for (; choice < found - 1; choice++) {
        sum += EXP((logit_of(keys[choice]) - highest) / temperature);
        if (sum > uniform * total) break;
      }
    }
    picked[BLOCK_X] = found > 0 && highest < INFINITY ? id_of(keys[choice]) : -1;
    random[2 * BLOCK_X + 1]++;
  }
}
