// Bytes and floats, four side by side, as kernels/opencl/prelude.h has them in OpenCL C.

DEVICE float4 BYTES_UNSIGNED(u32 word) {
  return make_float4((float)(u8)word, (float)(u8)(word >> 8), (float)(u8)(word >> 16), (float)(u8)(word >> 24));
}

DEVICE float4 BYTES_SIGNED(u32 word) {
  return make_float4((float)(i8)word, (float)(i8)(word >> 8), (float)(i8)(word >> 16), (float)(i8)(word >> 24));
}

// Four floats side by side, and what the tiles of long products hold.
#define FOUR(value) make_float4(value, value, value, value)
#define FOUR_OF(a, b, c, d) make_float4(a, b, c, d)
#define STORE_FOUR(four, out) ((out)[0] = (four).x, (out)[1] = (four).y, (out)[2] = (four).z, (out)[3] = (four).w)
typedef float tile;
typedef float4 tile4;
#define TO_TILE(value) (value)
#define FROM_TILE4(four) (four)
#define TILE_SCALE 1.f

DEVICE float4 operator*(float a, float4 b) { return make_float4(a * b.x, a * b.y, a * b.z, a * b.w); }
DEVICE float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
DEVICE float4 operator-(float4 a, float4 b) { return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w); }
DEVICE void operator+=(float4 &a, float4 b) { a = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
