// Repacks GGUF rows into the layout of layout.h. Block formats after ggml's ggml-common.h and ggml-quants.c.

#include <cstring>
#include <new>

#include "../memory.h"
#include "matrix.h"

namespace layerlift {
namespace {

// One row's slab in a plain form, before it is interleaved with 15 others.
struct Plain {
  uint16_t scale = 0, minimum = 0;  // f16
  int8_t sub_scale[16] = {};
  uint8_t sub_minimum[16] = {};
  uint8_t q[256] = {};
};

uint16_t half_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return h;
}

void read_nibbles(const uint8_t* p, uint8_t* q) {  // 32 values: low nibbles, then high
  for (int i = 0; i < 16; i++) {
    q[i] = p[i] & 15;
    q[i + 16] = p[i] >> 4;
  }
}

void add_fifth_bits(const uint8_t* p, uint8_t* q) {
  uint32_t bits;
  memcpy(&bits, p, 4);
  for (int i = 0; i < 32; i++) q[i] |= uint8_t((bits >> i & 1) << 4);
}

// Q4_K's and Q5_K's eight pairs of 6-bit scale and minimum in 12 bytes.
void read_scales_k(const uint8_t* p, Plain& to) {
  for (int i = 0; i < 4; i++) {
    to.sub_scale[i] = int8_t(p[i] & 63);
    to.sub_minimum[i] = p[i + 4] & 63;
    to.sub_scale[i + 4] = int8_t((p[i + 8] & 15) | p[i] >> 6 << 4);
    to.sub_minimum[i + 4] = uint8_t(p[i + 8] >> 4 | p[i + 4] >> 6 << 4);
  }
}

void read_nibbles_k(const uint8_t* p, uint8_t* q) {  // 256 values: per 32 bytes 32 low nibbles, then 32 high
  for (int j = 0; j < 4; j++, p += 32, q += 64)
    for (int i = 0; i < 32; i++) {
      q[i] = p[i] & 15;
      q[i + 32] = p[i] >> 4;
    }
}

void read_pairs_k(const uint8_t* p, uint8_t* q) {  // 256 values: per 32 bytes four runs of 32, two bits each
  for (int j = 0; j < 2; j++, p += 32)
    for (int shift = 0; shift < 8; shift += 2, q += 32)
      for (int i = 0; i < 32; i++) q[i] = p[i] >> shift & 3;
}

void read_q3_k(const uint8_t* p, Plain& to) {
  const uint8_t *high = p, *pairs = p + 32, *s = p + 96;
  to.scale = half_at(p + 108);
  read_pairs_k(pairs, to.q);
  for (int b = 0; b < 8; b++)
    for (int i = 0; i < 32; i++) to.q[32 * b + i] |= uint8_t((high[i] >> b & 1) << 2);
  for (int i = 0; i < 16; i++) {
    int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
    int top = s[8 + i % 4] >> (2 * (i / 4)) & 3;
    to.sub_scale[i] = int8_t((low | top << 4) - 32);
  }
}

void read_q6_k(const uint8_t* p, Plain& to) {
  const uint8_t *low = p, *high = p + 128;
  uint8_t* q = to.q;
  for (int half = 0; half < 2; half++, low += 64, high += 32, q += 128)
    for (int i = 0; i < 32; i++) {
      q[i] = uint8_t((low[i] & 15) | (high[i] & 3) << 4);
      q[i + 32] = uint8_t((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
      q[i + 64] = uint8_t(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
      q[i + 96] = uint8_t(low[i + 32] >> 4 | (high[i] >> 6) << 4);
    }
  memcpy(to.sub_scale, p + 192, 16);
  to.scale = half_at(p + 208);
}

void read_iq4_xs(const uint8_t* p, Plain& to) {
  to.scale = half_at(p);
  int high = half_at(p + 2);
  for (int i = 0; i < 8; i++) {
    int low = p[4 + i / 2] >> (4 * (i % 2)) & 15;
    to.sub_scale[i] = int8_t((low | (high >> (2 * i) & 3) << 4) - 32);
    read_nibbles(p + 8 + 16 * i, to.q + 32 * i);
  }
}

void read_block(Format format, const uint8_t* p, Plain& to) {
  switch (format) {
    case Format::Q4_0:
    case Format::IQ4_NL:
      to.scale = half_at(p);
      return read_nibbles(p + 2, to.q);
    case Format::Q4_1:
      to.scale = half_at(p), to.minimum = half_at(p + 2);
      return read_nibbles(p + 4, to.q);
    case Format::Q5_0:
      to.scale = half_at(p);
      read_nibbles(p + 6, to.q);
      return add_fifth_bits(p + 2, to.q);
    case Format::Q5_1:
      to.scale = half_at(p), to.minimum = half_at(p + 2);
      read_nibbles(p + 8, to.q);
      return add_fifth_bits(p + 4, to.q);
    case Format::Q8_0:
      to.scale = half_at(p);
      memcpy(to.q, p + 2, 32);
      return;
    case Format::Q2_K:
      memcpy(to.sub_scale, p, 16);  // the minima are in the high nibbles
      read_pairs_k(p + 16, to.q);
      to.scale = half_at(p + 80), to.minimum = half_at(p + 82);
      return;
    case Format::Q3_K:
      return read_q3_k(p, to);
    case Format::Q4_K:
    case Format::Q5_K:
      to.scale = half_at(p), to.minimum = half_at(p + 2);
      read_scales_k(p + 4, to);
      read_nibbles_k(p + (format == Format::Q4_K ? 16 : 48), to.q);
      if (format == Format::Q5_K)
        for (int b = 0; b < 8; b++)
          for (int i = 0; i < 32; i++) to.q[32 * b + i] |= uint8_t((p[16 + i] >> b & 1) << 4);
      return;
    case Format::Q6_K:
      return read_q6_k(p, to);
    case Format::IQ4_XS:
      return read_iq4_xs(p, to);
    default:
      return;
  }
}

// Block `b` of 16 rows into planes, four bytes of a row at a time: quants have no bits beyond theirs, so none cross over.
template <class L> void write_quants(const Plain* rows, int b, uint8_t* to) {
  constexpr int kPlanes = L::kBits == 8 ? 8 : L::kBits == 6 ? 6 : L::kBits >= 4 ? 4 : 2;
  constexpr uint32_t kOne = 0x01010101;  // a bit in each byte
  for (int row = 0; row < kGroup; row++, to += 4) {
    uint32_t q[8], planes[kPlanes], bits = 0;
    memcpy(q, rows[row].q + kBlock * b, sizeof q);
    for (int j = 0; j < kPlanes; j++) {
      if constexpr (L::kBits == 8) planes[j] = q[j];
      else if constexpr (L::kBits == 6) planes[j] = q[j / 3 * 4 + j % 3] | (q[j / 3 * 4 + 3] >> j % 3 * 2 & 3 * kOne) << 6;
      else if constexpr (L::kBits >= 4) planes[j] = (q[j] & 15 * kOne) | (q[j + 4] & 15 * kOne) << 4;
      else planes[j] = (q[j] & 3 * kOne) | (q[2 + j] & 3 * kOne) << 2 | (q[4 + j] & 3 * kOne) << 4 | (q[6 + j] & 3 * kOne) << 6;
    }
    for (int j = 0; j < kPlanes; j++) memcpy(to + 64 * j, &planes[j], 4);
    if constexpr (L::kBits == 5 || L::kBits == 3) {
      for (int g = 0; g < 8; g++) bits |= (q[g] >> (L::kBits - 1) & kOne) << g;
      memcpy(to + 64 * kPlanes, &bits, 4);
    }
  }
}

template <class L> void pack_group(const Matrix& m, const uint8_t* raw, int64_t row_nbytes, int64_t group) {
  constexpr int kGgufBlocks = L::kColumns == 256 ? 1 : L::kColumns / kBlock;
  static_assert(kGgufBlocks == 1, "a slab is one block of the file");
  int64_t slabs = m.padded_columns / L::kColumns, block_nbytes = row_nbytes / slabs;
  uint8_t* to = m.data + group * m.group_nbytes;
  for (int64_t s = 0; s < slabs; s++, to += L::kSlab) {
    Plain rows[kGroup];
    for (int i = 0; i < kGroup; i++) {
      int64_t row = group * kGroup + i;
      if (row < m.rows) read_block(m.format, raw + row * row_nbytes + s * block_nbytes, rows[i]);
      memcpy(to + 2 * i, &rows[i].scale, 2);
      if (L::kMin) memcpy(to + 2 * kGroup + 2 * i, &rows[i].minimum, 2);
      if (L::kSuper)
        for (int k = 0; k < L::kBlocks * L::kSubs; k++) {
          to[L::kSubScales + k * kGroup + i] = uint8_t(rows[i].sub_scale[k]);
          if (L::kMin && !L::kNibbleScales) to[L::kSubScales + L::kScaleBytes + k * kGroup + i] = rows[i].sub_minimum[k];
        }
    }
    for (int b = 0; b < L::kBlocks; b++) write_quants<L>(rows, b, to + L::kQuants + b * L::kQuantBytes);
  }
}

// F32 and F16: 16 rows of each column; BF16: 16 rows of each two columns.
template <class T, int pair> void pack_floats(const Matrix& m, const uint8_t* raw, int64_t row_nbytes, int64_t group) {
  T* to = reinterpret_cast<T*>(m.data + group * m.group_nbytes);
  for (int i = 0; i < kGroup; i++) {
    int64_t row = group * kGroup + i;
    if (row >= m.rows) break;
    const uint8_t* from = raw + row * row_nbytes;
    for (int64_t k = 0; k < m.columns; k++)
      memcpy(&to[k / pair * (pair * kGroup) + i * pair + k % pair], from + k * sizeof(T), sizeof(T));
  }
}

struct Packing {
  int block, nbytes;  // of GGUF
  int columns, slab;  // of ours
  void (*pack)(const Matrix&, const uint8_t*, int64_t, int64_t);
};

template <class L> constexpr Packing quants(int nbytes) { return {L::kColumns, nbytes, L::kColumns, L::kSlab, pack_group<L>}; }

constexpr Packing kPackings[kFormats] = {
    {1, 4, 32, 32 * 64, pack_floats<uint32_t, 1>}, {1, 2, 32, 32 * 32, pack_floats<uint16_t, 1>},
    {1, 2, 32, 32 * 32, pack_floats<uint16_t, 2>}, quants<Q4_0>(18),
    quants<Q4_1>(20),                              quants<Q5_0>(22),
    quants<Q5_1>(24),                              quants<Q8_0>(34),
    quants<IQ4_NL>(18),                            quants<Q2_K>(84),
    quants<Q3_K>(110),                             quants<Q4_K>(144),
    quants<Q5_K>(176),                             quants<Q6_K>(210),
    quants<IQ4_XS>(136),
};

}  // namespace

Matrix* new_matrix(int gguf_id, int64_t rows, int64_t columns) {
  int format = 0;
  while (format < kFormats && kGgufId[format] != gguf_id) format++;
  if (format == kFormats || rows < 1 || columns < 1 || columns % kPackings[format].block) return nullptr;
  const Packing& packing = kPackings[format];
  int64_t slabs = (columns + packing.columns - 1) / packing.columns, groups = (rows + kBand - 1) / kBand * 2;
  int64_t group_nbytes = slabs * packing.slab, nbytes = groups * group_nbytes;
  // Readers prefetch beyond the end, which is harmless, but load nothing there.
  uint8_t* data = static_cast<uint8_t*>(map_pages(size_t(nbytes)));
  if (!data) throw std::bad_alloc();
  return new Matrix{Format(format), rows, columns, slabs * packing.columns, group_nbytes, groups, data, nbytes};
}

void delete_matrix(Matrix* m) {
  if (m) unmap_pages(m->data, size_t(m->nbytes));
  delete m;
}

int64_t row_nbytes(const Matrix& m) {
  const Packing& packing = kPackings[int(m.format)];
  return m.columns / packing.block * packing.nbytes;
}

void pack_groups(const Matrix& m, const uint8_t* raw, int64_t begin, int64_t end) {
  int64_t stride = row_nbytes(m);
  for (int64_t group = begin; group < end; group++) kPackings[int(m.format)].pack(m, raw, stride, group);
}

}  // namespace layerlift
