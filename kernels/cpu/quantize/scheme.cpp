#include "scheme.h"

#include <cstring>

namespace layerlift {

namespace {

constexpr int kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ2_K = 10, kQ3_K = 11, kQ4_K = 12, kQ5_K = 13,
              kQ6_K = 14, kIQ4_NL = 20;
constexpr float kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

constexpr Scheme kSchemes[] = {
    {kQ4_0, 32, 18, 32, -8, 7, false, 0, 0, {1, 0, 0}, nullptr},
    {kQ4_1, 32, 20, 32, 0, 15, true, 0, 0, {1, 0, 0}, nullptr},
    {kQ5_0, 32, 22, 32, -16, 15, false, 0, 0, {1, 0, 0}, nullptr},
    {kQ5_1, 32, 24, 32, 0, 31, true, 0, 0, {1, 0, 0}, nullptr},
    {kQ8_0, 32, 34, 32, -127, 127, false, 0, 0, {1, 0, 0}, nullptr},
    {kIQ4_NL, 32, 18, 32, -127, 113, false, 0, 0, {1, 0, 0}, kTable},
    {kQ2_K, 256, 84, 16, 0, 3, true, 0, 15, {1, 0.92f, 0.84f}, nullptr},
    {kQ3_K, 256, 110, 16, -4, 3, false, -32, 31, {1, 0.95f, 0.9f}, nullptr},
    {kQ4_K, 256, 144, 32, 0, 15, true, 0, 63, {1, 0, 0}, nullptr},
    {kQ5_K, 256, 176, 32, 0, 31, true, 0, 63, {1, 0, 0}, nullptr},
    {kQ6_K, 256, 210, 16, -32, 31, false, -128, 127, {1, 0, 0}, nullptr},
};

// Each `run` weights in half as many bytes: the first half in the low nibbles, the second in the high ones.
uint8_t* put_nibbles(const uint8_t* q, int n, int run, uint8_t* out) {
  for (int at = 0; at < n; at += run)
    for (int i = 0; i < run / 2; i++) *out++ = uint8_t((q[at + i] & 15) | q[at + run / 2 + i] << 4);
  return out;
}

// Bits shift and shift + 1 of 256 weights: those 32 apart share a byte.
uint8_t* put_pairs(const uint8_t* q, int shift, uint8_t* out) {
  for (int at = 0; at < 256; at += 128)
    for (int i = 0; i < 32; i++) {
      int byte = 0;
      for (int j = 0; j < 4; j++) byte |= (q[at + 32 * j + i] >> shift & 3) << 2 * j;
      *out++ = uint8_t(byte);
    }
  return out;
}

// One bit of 256 weights: byte i has it of weight 32 * j + i at j.
uint8_t* put_bits(const uint8_t* q, int shift, uint8_t* out) {
  for (int i = 0; i < 32; i++) {
    int byte = 0;
    for (int j = 0; j < 8; j++) byte |= (q[32 * j + i] >> shift & 1) << j;
    *out++ = uint8_t(byte);
  }
  return out;
}

// One bit of 32 weights, in their order.
uint8_t* put_high(const uint8_t* q, uint8_t* out) {
  for (int at = 0; at < 32; at += 8) {
    int byte = 0;
    for (int j = 0; j < 8; j++) byte |= (q[at + j] >> 4 & 1) << j;
    *out++ = uint8_t(byte);
  }
  return out;
}

uint8_t* put_half(uint16_t h, uint8_t* out) {
  out[0] = uint8_t(h);
  out[1] = uint8_t(h >> 8);
  return out + 2;
}

// Eight scales and eight lows of six bits (Q4_K, Q5_K).
uint8_t* put_scales(const Block& b, uint8_t* out) {
  for (int j = 0; j < 4; j++) {
    out[j] = uint8_t(b.scales[j] | b.scales[j + 4] >> 4 << 6);
    out[j + 4] = uint8_t(b.lows[j] | b.lows[j + 4] >> 4 << 6);
    out[j + 8] = uint8_t((b.scales[j + 4] & 15) | (b.lows[j + 4] & 15) << 4);
  }
  return out + 12;
}

// Sixteen scales of six bits (Q3_K).
uint8_t* put_scales_3(const Block& b, uint8_t* out) {
  memset(out, 0, 12);
  for (int j = 0; j < 16; j++) {
    int scale = b.scales[j] + 32;
    out[j % 8] |= uint8_t((scale & 15) << (j < 8 ? 0 : 4));
    out[8 + j % 4] |= uint8_t((scale >> 4) << 2 * (j / 4));
  }
  return out + 12;
}

}  // namespace

const Scheme* find_scheme(int type) {
  for (const Scheme& scheme : kSchemes)
    if (scheme.type == type) return &scheme;
  return nullptr;
}

void pack(const Scheme& scheme, const Block& b, uint8_t* out) {
  switch (scheme.type) {
    case kQ4_0:
    case kIQ4_NL:
      put_nibbles(b.q, 32, 32, put_half(b.d, out));
      break;
    case kQ4_1:
      put_nibbles(b.q, 32, 32, put_half(b.low, put_half(b.d, out)));
      break;
    case kQ5_0:
      put_nibbles(b.q, 32, 32, put_high(b.q, put_half(b.d, out)));
      break;
    case kQ5_1:
      put_nibbles(b.q, 32, 32, put_high(b.q, put_half(b.low, put_half(b.d, out))));
      break;
    case kQ8_0:
      out = put_half(b.d, out);
      for (int i = 0; i < 32; i++) out[i] = uint8_t(b.q[i] - 127);
      break;
    case kQ2_K:
      for (int j = 0; j < 16; j++) *out++ = uint8_t(b.scales[j] | b.lows[j] << 4);
      put_half(b.low, put_half(b.d, put_pairs(b.q, 0, out)));
      break;
    case kQ3_K:
      put_half(b.d, put_scales_3(b, put_pairs(b.q, 0, put_bits(b.q, 2, out))));
      break;
    case kQ4_K:
      put_nibbles(b.q, 256, 64, put_scales(b, put_half(b.low, put_half(b.d, out))));
      break;
    case kQ5_K:
      out = put_scales(b, put_half(b.low, put_half(b.d, out)));
      put_nibbles(b.q, 256, 64, put_bits(b.q, 4, out));
      break;
    case kQ6_K:
      out = put_pairs(b.q, 4, put_nibbles(b.q, 256, 128, out));
      for (int j = 0; j < 16; j++) *out++ = uint8_t(b.scales[j]);
      put_half(b.d, out);
      break;
  }
}

}  // namespace layerlift
