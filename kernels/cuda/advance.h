// Between two steps of one token for each sequence, on the device: the step's data (backends/gpu_step.py) goes one row on,
// so that the next replay of a graph needs nothing from the host. The lists of rows must have room: a sequence's rows to
// come stand behind those it sees. Macros: WARPS.

#define THREADS (32 * WARPS)

// Launch: x = 1; threads = 32 * WARPS. positions [tokens] int32.
KERNEL(THREADS)
advance(GLOBAL int *step, GLOBAL int *positions, int rows_at, int first_at, int seen_at, int tokens) {
  let_successors_start();
  wait_for_predecessors();
  for (int t = THREAD; t < tokens; t += THREADS) {
    int seen = step[seen_at + t] + 1;
    positions[t]++;
    step[seen_at + t] = seen;
    step[rows_at + t] = step[step[first_at + t] + seen - 1];
  }
}

// The rope's cosines and sines of each token's position, the angle taken in f64 as RopeSpec.table takes it.
// Launch: x = tokens. inv_freq [half_dims] f64.
KERNEL(THREADS)
turn(GLOBAL int *step, GLOBAL const int *positions, GLOBAL const double *inv_freq, float magnitude, int half_dims,
     int cos_at, int sin_at) {
  let_successors_start();
  wait_for_predecessors();
  for (int i = THREAD; i < half_dims; i += THREADS) {
    double angle = (double)positions[BLOCK_X] * inv_freq[i];
    ((float *)step)[cos_at + BLOCK_X * half_dims + i] = (float)(cos(angle) * (double)magnitude);
    ((float *)step)[sin_at + BLOCK_X * half_dims + i] = (float)(sin(angle) * (double)magnitude);
  }
}
