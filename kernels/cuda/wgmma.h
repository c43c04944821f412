// The multiplications of a warp group, four warps, from tiles in shared memory: only code for sm_90a has them.
// tests/emulator/matrices.h says the same in plain C++.

typedef unsigned long long u64;

// What this thread wrote to shared memory may be read by wgmma behind the next barrier.
DEVICE void show_to_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define WGMMA(type)                                                                                                   \
  asm volatile(                                                                                                       \
      "{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"          \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                        \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                              \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                              \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0; }"   \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]),                                                               \
        "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),                                                               \
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]),                                                             \
        "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),                                                           \
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),                                                           \
        "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),                                                           \
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),                                                           \
        "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),                                                           \
        "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]),                                                           \
        "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),                                                           \
        "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]),                                                           \
        "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),                                                           \
        "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]),                                                           \
        "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),                                                           \
        "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]),                                                           \
        "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])                                                            \
      : "l"(a), "l"(b))

// c [64, 128] += a [64, 16] @ b [128, 16].T, halves (BF16S: bf16) summed in f32; a and b are descriptors of shared memory.
// Warp w of the group has rows 16 w … 16 w + 15 of c: c[4 j + 2 i + k] is of row LANE / 4 + 8 i of them, column 8 j +
// LANE % 4 * 2 + k (PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16").
template <bool BF16S>
DEVICE void start_64x128x16(float (&c)[64], u64 a, u64 b) {
  if (BF16S) {
    WGMMA("bf16");
  } else {
    WGMMA("f16");
  }
}

// Before the first of some multiplications: nobody else writes their sums' registers any more.
DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all that were committed; from here on c may be read.
DEVICE void wgmma_wait(float (&c)[64]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
UNROLL
  for (int i = 0; i < 64; i++) asm volatile("" : "+f"(c[i])::"memory");
}
