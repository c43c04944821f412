// Row by row: norm, activation and gate, sums, moves, the highest logit.

// y = x / sqrt(mean(x²) + eps) * weight over runs of `width`. Launch: x = runs.
KERNEL(GROUP_SIZE)
rms_norm(GLOBAL const float *x, GLOBAL const float *weight, float eps, GLOBAL float *y, int width) {
  LOCAL_ARRAY(float, sums, 3 * GROUP_SIZE);
  i64 base = (i64)BLOCK_X * width;
  float squares = 0.f;
  for (int i = THREAD; i < width; i += GROUP_SIZE) squares += x[base + i] * x[base + i];
  team_sums(sums, GROUP_SIZE, squares, 0.f, 0.f);
  float scale = RSQRT(sums[0] / (float)width + eps);
  for (int i = THREAD; i < width; i += GROUP_SIZE) y[base + i] = x[base + i] * scale * weight[i];
}

// y = activation(a) * b. Launch: a thread for each element.
KERNEL(GROUP_SIZE)
gate(GLOBAL const float *a, GLOBAL const float *b, GLOBAL float *y, int activation, i64 size) {
  i64 i = (i64)BLOCK_X * GROUP_SIZE + THREAD;
  if (i < size) y[i] = activate(activation, a[i]) * b[i];
}

// y = a + b, b repeated every `period` elements. Launch: a thread for each element.
KERNEL(GROUP_SIZE)
add(GLOBAL const float *a, GLOBAL const float *b, GLOBAL float *y, i64 size, i64 period) {
  i64 i = (i64)BLOCK_X * GROUP_SIZE + THREAD;
  if (i < size) y[i] = a[i] + b[i % period];
}

// Row from[i] of `source` to row to[i] of `target`, i itself where a list is missing; rows of 32-bit words.
// Launch: x = words, y = rows.
KERNEL(GROUP_SIZE)
move_rows(GLOBAL const u32 *source, GLOBAL const int *from, GLOBAL u32 *target, GLOBAL const int *to, int words) {
  int word = BLOCK_X * GROUP_SIZE + THREAD, i = BLOCK_Y;
  i64 source_row = from ? from[i] : i, target_row = to ? to[i] : i;
  if (word < words) target[target_row * words + word] = source[source_row * words + word];
}

// The place of each row's highest value, the lower one of equals. Launch: x = rows.
KERNEL(GROUP_SIZE)
argmax(GLOBAL const float *x, GLOBAL int *best, int width) {
  LOCAL_ARRAY(float, values, GROUP_SIZE);
  LOCAL_ARRAY(int, places, GROUP_SIZE);
  int thread = THREAD, place = 0x7FFFFFFF;
  float highest = -INFINITY;
  for (int i = thread; i < width; i += GROUP_SIZE) {
    float value = x[(i64)BLOCK_X * width + i];
    if (value > highest || place == 0x7FFFFFFF) {
      highest = value;
      place = i;
    }
  }
  values[thread] = highest;
  places[thread] = place;
  for (int half_of = GROUP_SIZE / 2; half_of > 0; half_of /= 2) {
    BARRIER;
    if (thread < half_of) {
      float other = values[thread + half_of];
      int other_place = places[thread + half_of];
      if (other > values[thread] || (other == values[thread] && other_place < places[thread])) {
        values[thread] = other;
        places[thread] = other_place;
      }
    }
  }
  BARRIER;
  if (thread == 0) best[BLOCK_X] = places[0];
}
