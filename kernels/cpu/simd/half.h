// f16 and bf16 bits to float and back, without instructions for it.
#pragma once

#include <cstdint>
#include <cstring>

namespace layerlift::LL_ISA {

static inline float as_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint32_t as_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

static inline float bf16_to_f32(uint16_t h) { return as_float(uint32_t(h) << 16); }

static inline uint16_t f32_to_bf16(float f) {
  uint32_t u = as_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t(u >> 16 | 64);  // a quiet NaN stays one
  return uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000u) << 16, rest = uint32_t(h & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return as_float(sign | 0x70000000u | rest);  // infinity, NaN
  return as_float(sign | as_bits(as_float(rest) * as_float(0x77800000u)));  // times 2^112: subnormals come right too
}

static inline uint16_t f32_to_f16(float f) {
  uint32_t u = as_bits(f), sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (u >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to infinity
  if (u < 0x38800000u) {                                  // subnormal: let the adder round at 2^-24
    return uint16_t(sign | (as_bits(as_float(u) + 0.5f) - 0x3f000000u));
  }
  return uint16_t(sign | ((u - 0x38000000u + 0xfffu + (u >> 13 & 1)) >> 13));
}

}  // namespace layerlift::LL_ISA
