// A matrix as backends/gpu_repack.py lays it out, seen in chunks: what one 16-byte load brings of a row, with its scales.
// Neighbouring lanes take neighbouring chunks, so a warp's loads are whole lines. Each format says
//   CHUNK          weights of a chunk
//   SHARED_SCALE   weights of it that have one scale
//   CODED          whether value = scale * code - minimum with codes of 8 bits or fewer, or the weights are floats
//   Raw, load()    a chunk as it lies in registers; `units` is how many units of 32 weights the matrix has
//   codes(raw, v)  coded: the codes of weights 4 v … 4 v + 3, a byte each, unsigned
//   scales(raw, i, …)  coded: scale and minimum of the i-th SHARED_SCALE weights
//   values(raw, v, …)  floats: weights 4 v … 4 v + 3

// Four bits of each of 32 weights: byte j of 16 holds weight j low and weight 16 + j high.
DEVICE u32 low_codes(uint4 quad, int v) {
  return v < 4 ? word_of(quad, v) & 0x0F0F0F0Fu : (word_of(quad, v - 4) >> 4) & 0x0F0F0F0Fu;
}

// Bit `place` of weights 4 v … 4 v + 3, from a mask whose bit 8 i + v is of weight 4 v + i.
DEVICE u32 high_codes(u32 mask, int v, int place) {
  return (v <= place ? mask << (place - v) : mask >> (v - place)) & (0x01010101u << place);
}

struct Coded32 {
  static constexpr int CHUNK = 32, SHARED_SCALE = 32;
  static constexpr bool CODED = true;
};

struct Q4_0 : Coded32 {
  struct Raw {
    uint4 quad;
    u32 scale;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.scale = load_weights_2(w + 16 * units + 2 * chunk);
  }
  DEVICE u32 codes(const Raw &raw, int v) { return low_codes(raw.quad, v); }
  DEVICE void scales(const Raw &raw, int, float &scale, float &minimum) {
    scale = half_to_float(raw.scale);
    minimum = 8.f * scale;
  }
};

struct Q4_1 : Coded32 {
  struct Raw {
    uint4 quad;
    u32 mains;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.mains = load_weights_4(w + 16 * units + 4 * chunk);
  }
  DEVICE u32 codes(const Raw &raw, int v) { return low_codes(raw.quad, v); }
  DEVICE void scales(const Raw &raw, int, float &scale, float &minimum) {
    scale = half_to_float(raw.mains & 0xFFFF);
    minimum = -half_to_float(raw.mains >> 16);
  }
};

struct Q5_0 : Coded32 {
  struct Raw {
    uint4 quad;
    u32 mask, scale;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.mask = load_weights_4(w + 16 * units + 4 * chunk);
    raw.scale = load_weights_2(w + 20 * units + 2 * chunk);
  }
  DEVICE u32 codes(const Raw &raw, int v) { return low_codes(raw.quad, v) | high_codes(raw.mask, v, 4); }
  DEVICE void scales(const Raw &raw, int, float &scale, float &minimum) {
    scale = half_to_float(raw.scale);
    minimum = 16.f * scale;
  }
};

struct Q5_1 : Coded32 {
  struct Raw {
    uint4 quad;
    u32 mask, mains;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.mask = load_weights_4(w + 16 * units + 4 * chunk);
    raw.mains = load_weights_4(w + 20 * units + 4 * chunk);
  }
  DEVICE u32 codes(const Raw &raw, int v) { return low_codes(raw.quad, v) | high_codes(raw.mask, v, 4); }
  DEVICE void scales(const Raw &raw, int, float &scale, float &minimum) {
    scale = half_to_float(raw.mains & 0xFFFF);
    minimum = -half_to_float(raw.mains >> 16);
  }
};

// Main scale and minimum of 256 weights, and a byte of each for every 32: their product is exact in f32.
DEVICE void scales_k(u32 mains, u32 subs, float &scale, float &minimum) {
  scale = half_to_float(mains & 0xFFFF) * (float)(subs & 255);
  minimum = half_to_float(mains >> 16) * (float)(subs >> 8);
}

struct Q4_K : Coded32 {
  struct Raw {
    uint4 quad;
    u32 mains, subs;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.mains = load_weights_4(w + 16 * units + chunk / 8 * 4);
    raw.subs = load_weights_2(w + 16 * units + units / 2 + 2 * chunk);
  }
  DEVICE u32 codes(const Raw &raw, int v) { return low_codes(raw.quad, v); }
  DEVICE void scales(const Raw &raw, int, float &scale, float &minimum) {
    scales_k(raw.mains, raw.subs, scale, minimum);
  }
};

struct Q5_K : Coded32 {
  struct Raw {
    uint4 quad;
    u32 mask, mains, subs;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.mask = load_weights_4(w + 16 * units + 4 * chunk);
    raw.mains = load_weights_4(w + 20 * units + chunk / 8 * 4);
    raw.subs = load_weights_2(w + 20 * units + units / 2 + 2 * chunk);
  }
  DEVICE u32 codes(const Raw &raw, int v) { return low_codes(raw.quad, v) | high_codes(raw.mask, v, 4); }
  DEVICE void scales(const Raw &raw, int, float &scale, float &minimum) {
    scales_k(raw.mains, raw.subs, scale, minimum);
  }
};

struct Q6_K {
  static constexpr int CHUNK = 32, SHARED_SCALE = 16;
  static constexpr bool CODED = true;
  struct Raw {
    uint4 quad;
    uint2 masks;
    u32 subs, main;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.masks = load_weights_8(w + 16 * units + 8 * chunk);
    raw.subs = load_weights_2(w + 24 * units + 2 * chunk);
    raw.main = load_weights_2(w + 26 * units + chunk / 8 * 2);
  }
  DEVICE u32 codes(const Raw &raw, int v) {
    return low_codes(raw.quad, v) | high_codes(raw.masks.x, v, 4) | high_codes(raw.masks.y, v, 5);
  }
  DEVICE void scales(const Raw &raw, int i, float &scale, float &minimum) {
    scale = half_to_float(raw.main) * (float)(i8)(raw.subs >> (8 * i));
    minimum = 32.f * scale;
  }
};

// Half a block of 32 weights: its scale is loaded by two lanes.
struct Q8_0 {
  static constexpr int CHUNK = 16, SHARED_SCALE = 16;
  static constexpr bool CODED = true;
  struct Raw {
    uint4 quad;
    u32 scale;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.scale = load_weights_2(w + 32 * units + chunk / 2 * 2);
  }
  DEVICE u32 codes(const Raw &raw, int v) { return word_of(raw.quad, v) ^ 0x80808080u; }
  DEVICE void scales(const Raw &raw, int, float &scale, float &minimum) {
    scale = half_to_float(raw.scale);
    minimum = 128.f * scale;
  }
};

// Codes stand for the 16 values of a table, here with 128 added.
struct IQ4_NL : Coded32 {
  struct Raw {
    uint4 quad;
    u32 scale;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64 units, i64 chunk) {
    raw.quad = load_weights_16(w + 16 * chunk);
    raw.scale = load_weights_2(w + 16 * units + 2 * chunk);
  }
  // The values of the four codes in the low half of `nibbles`.
  DEVICE u32 values_of(u32 nibbles) {
    u32 places = nibbles & 0x7777u, low = BYTES(0x3F2D1801u, 0x766A5D4Fu, places);
    u32 high = BYTES(0xA6998D81u, 0xF1D9C5B5u, places);
    return BYTES(low, high, 0x3210u | (nibbles & 0x8888u) >> 1);
  }
  DEVICE u32 codes(const Raw &raw, int v) {
    u32 word = word_of(raw.quad, v & 3);
    return BYTES(values_of(word), values_of(word >> 16), v < 4 ? 0x6420u : 0x7531u);
  }
  DEVICE void scales(const Raw &raw, int, float &scale, float &minimum) {
    scale = half_to_float(raw.scale);
    minimum = 128.f * scale;
  }
};

struct F16 {
  static constexpr int CHUNK = 8, SHARED_SCALE = 8;
  static constexpr bool CODED = false;
  struct Raw {
    uint4 quad;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64, i64 chunk) { raw.quad = load_weights_16(w + 16 * chunk); }
  DEVICE void values(const Raw &raw, int v, float *out) {
    for (int i = 0; i < 2; i++) {
      u32 pair = word_of(raw.quad, 2 * v + i);
      out[2 * i] = half_to_float(pair & 0xFFFF);
      out[2 * i + 1] = half_to_float(pair >> 16);
    }
  }
};

struct BF16 {
  static constexpr int CHUNK = 8, SHARED_SCALE = 8;
  static constexpr bool CODED = false;
  struct Raw {
    uint4 quad;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64, i64 chunk) { raw.quad = load_weights_16(w + 16 * chunk); }
  DEVICE void values(const Raw &raw, int v, float *out) {
    for (int i = 0; i < 2; i++) {
      u32 pair = word_of(raw.quad, 2 * v + i);
      out[2 * i] = FLOAT_BITS(pair << 16);
      out[2 * i + 1] = FLOAT_BITS(pair & 0xFFFF0000u);
    }
  }
};

struct F32 {
  static constexpr int CHUNK = 4, SHARED_SCALE = 4;
  static constexpr bool CODED = false;
  struct Raw {
    uint4 quad;
  };
  DEVICE void load(Raw &raw, const u8 *w, i64, i64 chunk) { raw.quad = load_weights_16(w + 16 * chunk); }
  DEVICE void values(const Raw &raw, int, float *out) {
    for (int i = 0; i < 4; i++) out[i] = FLOAT_BITS(word_of(raw.quad, i));
  }
};
