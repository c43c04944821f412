// The k highest of each row, highest first, the lower place first among equals; a NaN counts as the highest.
// A row is cut into segments. The k segments with the highest maxima (of equals, the first) hold all k: each of them
// has a value that beats whatever another segment has. In those, few values reach the k-th maximum; they are ranked.

#define MOST 128      // k at most
#define LISTED 512    // slots for values that reach the bound: one for each, and one for each thread

DEVICE float sort_key(float value) { return value == value ? value : INFINITY; }

DEVICE int comes_before(float a, int place_a, float b, int place_b) { return a > b || (a == b && place_a < place_b); }

// Launch: x = segments of a row, y = rows.
KERNEL(GROUP_SIZE)
segment_maxima(GLOBAL const float *x, GLOBAL float *maxima, int width, int segment) {
  LOCAL_ARRAY(float, values, GROUP_SIZE);
  int thread = THREAD, begin = BLOCK_X * segment, end = begin + segment < width ? begin + segment : width;
  float highest = -INFINITY;
  for (int i = begin + thread; i < end; i += GROUP_SIZE) {
    highest = MAX(highest, sort_key(x[(i64)BLOCK_Y * width + i]));
  }
  values[thread] = highest;
  for (int half_of = GROUP_SIZE / 2; half_of > 0; half_of /= 2) {
    BARRIER;
    if (thread < half_of) values[thread] = MAX(values[thread], values[thread + half_of]);
  }
  BARRIER;
  if (thread == 0) maxima[BLOCK_Y * ((width + segment - 1) / segment) + BLOCK_X] = values[0];
}

// out [rows, 2 k]: places, then the bits of their values. k <= width. Launch: x = rows.
KERNEL(GROUP_SIZE)
top_k(GLOBAL const float *all, GLOBAL const float *all_maxima, GLOBAL int *best_of_all, int width, int segment, int k) {
  LOCAL_ARRAY(int, chosen, MOST);
  LOCAL_ARRAY(int, counts, GROUP_SIZE);
  LOCAL_ARRAY(float, keys, LISTED);
  LOCAL_ARRAY(int, places, LISTED);
  int thread = THREAD, segments = (width + segment - 1) / segment, kept = k < segments ? k : segments;
  GLOBAL const float *x = all + (i64)BLOCK_X * width, *maxima = all_maxima + BLOCK_X * segments;
  GLOBAL int *out = best_of_all + BLOCK_X * 2 * k;
  for (int s = thread; s < segments; s += GROUP_SIZE) {
    int rank = 0;
    for (int other = 0; other < segments; other++) rank += comes_before(maxima[other], other, maxima[s], s);
    if (rank < kept) chosen[rank] = s;
  }
  BARRIER;
  float bound = kept == k ? maxima[chosen[k - 1]] : -INFINITY;
  int count = 0, before = 0, total = 0;
  for (int i = thread; i < kept * segment; i += GROUP_SIZE) {
    int place = chosen[i / segment] * segment + i % segment;
    count += place < width && sort_key(x[place]) >= bound;
  }
  counts[thread] = count + 1;  // a slot of its own behind a thread's values: PoCL stores what is there where none is due
  BARRIER;
  for (int i = 0; i < GROUP_SIZE; i++) {
    before += i < thread ? counts[i] : 0;
    total += counts[i];
  }
  if (total <= LISTED) {
    keys[before + count] = -INFINITY;
    places[before + count] = 0x7FFFFFFF;
    for (int i = thread; i < kept * segment; i += GROUP_SIZE) {
      int place = chosen[i / segment] * segment + i % segment;
      float key = place < width ? sort_key(x[place]) : 0.f;
      if (place < width && key >= bound) {
        keys[before] = key;
        places[before++] = place;
      }
    }
    BARRIER;
    for (int i = thread; i < total; i += GROUP_SIZE) {
      int rank = 0;
      for (int other = 0; other < total; other++) rank += comes_before(keys[other], places[other], keys[i], places[i]);
      if (rank < k) {
        out[rank] = places[i];
        out[k + rank] = (int)AS_UINT(x[places[i]]);
      }
    }
  } else {  // too many equals: one after the other, each the first behind the one before it
    float last = INFINITY;
    int last_place = -1;
    for (int round = 0; round < k; round++) {
      float best = -INFINITY;
      int best_place = 0x7FFFFFFF;
      for (int i = thread; i < kept * segment; i += GROUP_SIZE) {
        int place = chosen[i / segment] * segment + i % segment;
        float key = place < width ? sort_key(x[place]) : -INFINITY;
        if (place < width && comes_before(last, last_place, key, place) &&
            comes_before(key, place, best, best_place)) {
          best = key;
          best_place = place;
        }
      }
      BARRIER;
      keys[thread] = best;
      places[thread] = best_place;
      BARRIER;
      for (int i = 0; i < GROUP_SIZE; i++) {
        if (comes_before(keys[i], places[i], best, best_place)) {
          best = keys[i];
          best_place = places[i];
        }
      }
      last = best;
      last_place = best_place;
      if (thread == 0) {
        out[round] = best_place;
        out[k + round] = (int)AS_UINT(x[best_place]);
      }
    }
  }
}
