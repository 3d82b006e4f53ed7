// What every kernel shares: integer names, 16-bit element types, vectors of 16
// bytes, cp.async, ldmatrix, mma.sync, warp and block reductions.
// No system header is included, so NVRTC needs no include path.
// -DDTYPE=0 makes Element bf16, -DDTYPE=1 fp16; arithmetic is always float32.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

#ifndef DTYPE
#define DTYPE 0
#endif

struct Bf16 {
  u16 bits;
};
struct Fp16 {
  u16 bits;
};
#if DTYPE == 0
using Element = Bf16;
#else
using Element = Fp16;
#endif

struct alignas(16) Vec16 {  // 8 elements
  u32 word[4];
};

#define kNegInf (-__int_as_float(0x7f800000))  // no constant expression gives it in device code
constexpr float kLog2e = 1.4426950408889634f;

// ---- conversions ----------------------------------------------------------

__device__ __forceinline__ float to_float(Bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
__device__ __forceinline__ float to_float(Fp16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ float to_float(float x) { return x; }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ Bf16 from_float<Bf16>(float x) {
  Bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
__device__ __forceinline__ Fp16 from_float<Fp16>(float x) {
  Fp16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

// Two floats as two elements in one word, `low` in the low half.
template <class T>
__device__ __forceinline__ u32 pack2(float low, float high);
template <>
__device__ __forceinline__ u32 pack2<Bf16>(float low, float high) {
  u32 y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <>
__device__ __forceinline__ u32 pack2<Fp16>(float low, float high) {
  u32 y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

template <class T>
__device__ __forceinline__ void unpack2(u32 word, float& low, float& high) {
  low = to_float(T{u16(word & 0xffffu)});
  high = to_float(T{u16(word >> 16)});
}

template <class T>
__device__ __forceinline__ void unpack8(const Vec16& vec, float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) unpack2<T>(vec.word[i], out[2 * i], out[2 * i + 1]);
}

template <class T>
__device__ __forceinline__ Vec16 pack8(const float (&in)[8]) {
  Vec16 vec;
#pragma unroll
  for (int i = 0; i < 4; ++i) vec.word[i] = pack2<T>(in[2 * i], in[2 * i + 1]);
  return vec;
}

// ---- memory ---------------------------------------------------------------

__device__ __forceinline__ Vec16 load16(const void* address) {
  Vec16 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(address)
               : "memory");
  return v;
}
// Read once: keep it out of L1.
__device__ __forceinline__ Vec16 load16_stream(const void* address) {
  Vec16 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store16(void* address, const Vec16& v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.word[0]),
               "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
}

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return u32(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, or 16 zero bytes where `valid` is false.
__device__ __forceinline__ void cp_async16(u32 shared, const void* global, bool valid) {
  const u32 bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- tensor cores ---------------------------------------------------------

__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], u32 shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void ldmatrix4_trans(u32 (&r)[4], u32 shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

// c[16x8] += a[16x16] b[16x8]
template <class T>
__device__ __forceinline__ void mma16816(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <>
__device__ __forceinline__ void mma16816<Bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma16816<Fp16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- arithmetic -----------------------------------------------------------

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
  return x;
}

// Sum over the block, the same in every thread; `scratch` holds 32 floats. All threads call.
template <int kThreads>
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if constexpr (kThreads > 32) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < kThreads / 32 ? scratch[lane] : 0.f);
  }
  return x;
}
