#include "scheme.h"

#include <cstring>

namespace layerlift {

namespace {

constexpr int kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ2_K = 10, kQ3_K = 11, kQ4_K = 12, kQ5_K = 13,
              kQ6_K = 14, kIQ4_NL = 20;
constexpr float kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

constexpr Effort kOnce = {1, 0};
constexpr Scheme kSchemes[] = {
    {kQ4_0, 32, 18, 32, -8, 7, -8, false, 0, 0, 0, 0, {{-8, 0.85f, 1.05f, 10}, {7, 0.92f, 1.08f, 5}},
     kOnce, {2, 1}, false, nullptr},
    {kQ4_1, 32, 20, 32, 0, 15, 0, true, 0, 0, 0, 0,
     {{0, 0.94f, 1.064f, 8}, {0.5f, 0.88f, 1.04f, 4}, {1, 0.94f, 1.06f, 3}}, kOnce, {3, 3}, false, nullptr},
    {kQ5_0, 32, 22, 32, -16, 15, -16, false, 0, 0, 0, 0, {{-16, 0.88f, 1.04f, 10}, {15, 0.94f, 1.06f, 5}},
     kOnce, {2, 1}, false, nullptr},
    {kQ5_1, 32, 24, 32, 0, 31, 0, true, 0, 0, 0, 0,
     {{0, 0.965f, 1.035f, 7}, {0.5f, 0.94f, 1.02f, 4}, {1, 0.97f, 1.03f, 4}}, kOnce, {3, 3}, false, nullptr},
    {kQ8_0, 32, 34, 32, -127, 127, 0, false, 0, 0, 0, 0, {}, kOnce, kOnce, false, nullptr},
    {kIQ4_NL, 32, 18, 32, -127, 113, -127, false, 0, 0, 0, 0, {{-127, 0.85f, 1.08f, 15}, {113, 0.85f, 1.08f, 16}},
     {1, 1}, {1, 2}, true, kTable},
    {kQ2_K, 256, 84, 16, 0, 3, 0, true, 0, 15, 0.95f, 1.08f,
     {{0, 0.75f, 1.05f, 5}, {0.5f, 0.65f, 1, 5}, {1, 0.75f, 1.05f, 5}}, kOnce, {2, 1}, false, nullptr},
    {kQ3_K, 256, 110, 16, -4, 3, -4, false, -32, 31, 0.85f, 1.15f, {{-4, 0.7f, 1.1f, 8}, {3, 0.7f, 1.1f, 7}},
     kOnce, {2, 0}, false, nullptr},
    {kQ4_K, 256, 144, 32, 0, 15, 0, true, 0, 63, 1, 1.06f,
     {{0, 0.93f, 1.07f, 15}, {0.5f, 0.84f, 1.04f, 16}, {1, 0.93f, 1.07f, 16}}, kOnce, {1, 1}, false, nullptr},
    {kQ5_K, 256, 176, 32, 0, 31, 0, true, 0, 63, 1, 1.06f,
     {{0, 0.965f, 1.035f, 15}, {0.5f, 0.92f, 1.02f, 16}, {1, 0.965f, 1.035f, 16}}, kOnce, {1, 1}, false, nullptr},
    {kQ6_K, 256, 210, 16, -32, 31, -32, false, -128, 127, 1, 1.1f, {{-32, 0.91f, 1.03f, 15}}, kOnce, kOnce, false, nullptr},
};

// Each `run` weights in half as many bytes: the first half in the low nibbles, the second in the high ones.
uint8_t* put_nibbles(const int8_t* q, int n, int run, uint8_t* out) {
  for (int at = 0; at < n; at += run)
    for (int i = 0; i < run / 2; i++) *out++ = uint8_t((q[at + i] & 15) | q[at + run / 2 + i] << 4);
  return out;
}

// Bits shift and shift + 1 of 256 weights: those 32 apart share a byte.
uint8_t* put_pairs(const int8_t* q, int shift, uint8_t* out) {
  for (int at = 0; at < 256; at += 128)
    for (int i = 0; i < 32; i++) {
      int byte = 0;
      for (int j = 0; j < 4; j++) byte |= (q[at + 32 * j + i] >> shift & 3) << 2 * j;
      *out++ = uint8_t(byte);
    }
  return out;
}

// One bit of 256 weights: byte i has it of weight 32 * j + i at j.
uint8_t* put_bits(const int8_t* q, int shift, uint8_t* out) {
  for (int i = 0; i < 32; i++) {
    int byte = 0;
    for (int j = 0; j < 8; j++) byte |= (q[32 * j + i] >> shift & 1) << j;
    *out++ = uint8_t(byte);
  }
  return out;
}

// One bit of 32 weights, in their order.
uint8_t* put_high(const int8_t* q, uint8_t* out) {
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
      memcpy(out, b.q, 32);
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
