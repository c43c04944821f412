// Bytes and floats, four side by side, as kernels/opencl/prelude.h has them in OpenCL C.

DEVICE void BYTES_UNSIGNED(u32 word, float *out) {
  for (int i = 0; i < 4; i++) out[i] = (float)(u8)(word >> (8 * i));
}

DEVICE void BYTES_SIGNED(u32 word, float *out) {
  for (int i = 0; i < 4; i++) out[i] = (float)(i8)(word >> (8 * i));
}

// Four floats side by side, and what the tiles of long products hold.
#define FOUR(value) make_float4(value, value, value, value)
#define STORE_FOUR(four, out) ((out)[0] = (four).x, (out)[1] = (four).y, (out)[2] = (four).z, (out)[3] = (four).w)
typedef float tile;
typedef float4 tile4;
#define TO_TILE(value) (value)
#define FROM_TILE4(four) (four)
#define TILE_SCALE 1.f

DEVICE float4 operator*(float a, float4 b) { return make_float4(a * b.x, a * b.y, a * b.z, a * b.w); }
DEVICE void operator+=(float4 &a, float4 b) { a = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
