// A work group is split into teams of `lanes` threads (a power of two); a team sums what its threads hold.
// Layout: sums[3][GROUP_SIZE], the team's result at its first thread. With the macro SUBGROUPS, the threads of a subgroup
// that fits into a team sum without local memory.

DEVICE void team_sums(LOCAL float *sums, int lanes, float a, float b, float c) {
  int thread = THREAD, summed = 1;  // neighbours that hold the same sum already
#if SUBGROUPS
  if (SUBGROUP_SIZE <= lanes) {
    summed = SUBGROUP_SIZE;
    a = SUBGROUP_SUM(a);
    b = SUBGROUP_SUM(b);
    c = SUBGROUP_SUM(c);
  }
#endif
  sums[thread] = a;
  sums[GROUP_SIZE + thread] = b;
  sums[2 * GROUP_SIZE + thread] = c;
  for (int half_of = lanes / 2; half_of >= summed; half_of /= 2) {
    BARRIER;
    if (thread % lanes < half_of) {
      sums[thread] += sums[thread + half_of];
      sums[GROUP_SIZE + thread] += sums[GROUP_SIZE + thread + half_of];
      sums[2 * GROUP_SIZE + thread] += sums[2 * GROUP_SIZE + thread + half_of];
    }
  }
  BARRIER;
}

DEVICE float activate(int kind, float x) {
  if (kind == 0) return x / (1.f + EXP(-x));                                                   // silu
  if (kind == 1) return .5f * x * (1.f + TANH(.7978845608028654f * (x + .044715f * x * x * x)));  // gelu, tanh form
  if (kind == 2) return x / (1.f + EXP(-1.702f * x));                                          // gelu_quick
  x = MAX(x, 0.f);                                                                             // relu2
  return x * x;
}

// What a cache stores: 0 f16, 1 bf16 (nearest even), 2 f32.
DEVICE void cache_store(GLOBAL u8 *cache, i64 at, float value, int dtype) {
  if (dtype == 0) {
    STORE_HALF((GLOBAL f16 *)cache, at, value);
  } else if (dtype == 1) {
    u32 bits = AS_UINT(value);
    ((GLOBAL u16 *)cache)[at] = (u16)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
  } else {
    ((GLOBAL float *)cache)[at] = value;
  }
}

DEVICE float cache_load(GLOBAL const u8 *cache, i64 at, int dtype) {
  if (dtype == 0) return LOAD_HALF((GLOBAL const f16 *)cache, at);
  if (dtype == 1) return AS_FLOAT((u32)((GLOBAL const u16 *)cache)[at] << 16);
  return ((GLOBAL const float *)cache)[at];
}

// The two dimensions of a head that pair number `pair` rotates; *angle is the pair's place in the rope table, or -1.
DEVICE void rope_pair(int pair, int n_dims, int neox, int *first, int *second, int *angle) {
  int half_dims = n_dims / 2;
  int rotates = pair < half_dims;
  *angle = rotates ? pair : -1;
  *first = rotates && neox ? pair : 2 * pair;
  *second = rotates && neox ? pair + half_dims : 2 * pair + 1;
}
