// Small kernels that say whether an optional part of OpenCL works here; backends/opencl_proofs.py knows the answers.

#if HALVES
// y = x as a tile holds it, by way of local memory and another thread.
KERNEL(GROUP_SIZE)
prove_halves(GLOBAL const float *x, GLOBAL float *y) {
  LOCAL_ARRAY(tile4, tiles, GROUP_SIZE / 4);
  LOCAL tile *all = (LOCAL tile *)tiles;
  float four[4];
  all[THREAD] = TO_TILE(x[THREAD] * TILE_SCALE);
  BARRIER;
  STORE_FOUR(2.f * FROM_TILE4(tiles[(GROUP_SIZE - 1 - THREAD) / 4]), four);
  y[THREAD] = four[(GROUP_SIZE - 1 - THREAD) % 4] / TILE_SCALE;
}
#endif

#if SUBGROUPS
// y [3, GROUP_SIZE]: the sums of each thread's team; two of them are of x times 2 and 3.
KERNEL(GROUP_SIZE)
prove_subgroups(GLOBAL const float *x, GLOBAL float *y, int lanes) {
  LOCAL_ARRAY(float, sums, 3 * GROUP_SIZE);
  team_sums(sums, lanes, x[THREAD], 2.f * x[THREAD], 3.f * x[THREAD]);
  int first = THREAD / lanes * lanes;
  for (int i = 0; i < 3; i++) y[i * GROUP_SIZE + THREAD] = sums[i * GROUP_SIZE + first];
}
#endif

#if DOT
// y = the products of the signed bytes of a and b, and y.
KERNEL(GROUP_SIZE)
prove_dot(GLOBAL const int *a, GLOBAL const int *b, GLOBAL int *y) { y[THREAD] = DOT4(a[THREAD], b[THREAD], y[THREAD]); }
#endif
