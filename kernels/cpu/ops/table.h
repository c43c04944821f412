// The kernels of ops/ that each instruction set supplies, and the arguments they share with the drivers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace layerlift {

// How a cache row's values are stored; the numbers are part of the C ABI.
enum Storage : int { kCellF16 = 0, kCellBF16 = 1, kCellF32 = 2 };
enum ActivationKind : int { kActSilu = 0, kActGelu = 1, kActGeluQuick = 2, kActRelu2 = 3 };

static inline size_t storage_nbytes(int storage) { return storage == kCellF32 ? 4 : 2; }

// What is the same for a whole call: queries q [T, n_heads * head_dim], cache rows [n_kv_heads, head_dim] of k and v.
struct Attention {
  const float* q;
  float* out;
  const void *k, *v;
  int storage, n_heads, n_kv_heads, head_dim;
  float scale, softcap;
  int window;
};

// One piece of the work: some queries of one span, with some kv heads, over cache positions [begin, end).
struct AttentionPiece {
  const int32_t* rows;  // of the span, in position order
  int n_rows, length;   // the span's; its token t sees rows [0, n_rows - length + t]
  int start;            // the span's first token in q
  int token, tokens;
  int kv_head, kv_heads;
  int begin, end;
  // Null: the output is finished here. Otherwise one record of head_dim + 2 floats for each query, ordered by kv head,
  // token, head of the group: the highest score, the sum of weights, the unnormalised output.
  float* partial;
};

// Turns pairs of the first n_dims values of each head; cos and sin [n_dims/2] belong to one token.
struct Rotation {
  const float *cos, *sin;
  int n_dims, neox;
};

struct OpsTable {
  // attend_few reads each cache row straight into registers: for a handful of queries. attend_block turns a tile of
  // rows to float once and uses it for up to block_queries of them. Scratch sizes are in floats.
  void (*attend_few)(const Attention&, const AttentionPiece&, float* scratch);
  void (*attend_block)(const Attention&, const AttentionPiece&, float* scratch);
  size_t (*few_scratch)(int queries, int head_dim);
  size_t (*block_scratch)(int queries, int head_dim);
  void (*merge)(const float* partial, int parts, size_t stride, int head_dim, float* out);

  void (*rms_norm)(const float* x, const float* weight, float eps, int width, float* y);
  void (*rotate)(const float* x, int heads, int head_dim, const Rotation&, float* y);  // y may be x
  void (*narrow)(const float* x, int64_t n, int storage, void* y);
  void (*widen)(const void* x, int64_t n, int storage, float* y);
  void (*gate)(const float* a, const float* b, int64_t n, int activation, float* y);
  void (*add)(const float* a, const float* b, int64_t n, float* y);
  int64_t (*argmax)(const float* x, int64_t n);  // the lowest index of the highest value; NaN counts as the lowest
  // The indices of the k highest of x, in falling order, ties by rising index. `heap` holds k indices.
  void (*top_k)(const float* x, int64_t n, int k, int32_t* heap);

  int32_t (*probe_read)(const void* p, int64_t nbytes);
  int64_t (*probe_floats)(int64_t loops, float* out);  // both return the operations done
  int64_t (*probe_bytes)(int64_t loops, float* out);
};

}  // namespace layerlift
