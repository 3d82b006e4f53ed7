// Asynchronous machinery as thin inline PTX: mbarriers and named barriers everywhere; from sm_90 the tensor
// copy engine (TMA), register hand-over between warpgroups, and launches that overlap.
// Source: PTX ISA 8.0, sections on mbarrier, bar, cp.async.bulk.tensor, createpolicy, setmaxnreg, griddepcontrol.
#pragma once
#include "common.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HAS_TMA 1
#else
#define HAS_TMA 0
#endif

// A CUtensorMap, a __grid_constant__ parameter; declared here because NVRTC has no <cuda.h>.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

// ---- mbarriers ------------------------------------------------------------

__device__ __forceinline__ void barrier_init(u32 bar, u32 arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
// Makes inits seen by the copy engine; then __syncthreads() shows them to the block.
__device__ __forceinline__ void barrier_init_fence() {
#if HAS_TMA
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void barrier_arrive(u32 bar) {
  asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];\n\t}" ::"r"(bar) : "memory");
}
// Arrives once all cp.async of this thread so far have landed; counts as one expected arrival.
__device__ __forceinline__ void barrier_arrive_cp_async(u32 bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(bar) : "memory");
}
// Returns once the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(u32 bar, u32 parity) {
#if HAS_TMA
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "again:\n\t"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n\t"
      "@done bra over;\n\t"
      "bra again;\n\t"
      "over:\n\t}" ::"r"(bar),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "again:\n\t"
      "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n\t"
      "@done bra over;\n\t"
      "bra again;\n\t"
      "over:\n\t}" ::"r"(bar),
      "r"(parity)
      : "memory");
#endif
}

// ---- named barriers -------------------------------------------------------

__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Whether the predicate holds in any of the threads that meet at a named barrier.
__device__ __forceinline__ bool named_any(int id, int threads, bool predicate) {
  u32 any;
  asm volatile(
      "{\n\t.reg .pred mine, any;\n\t"
      "setp.ne.u32 mine, %1, 0;\n\t"
      "barrier.cta.red.or.pred any, %2, %3, mine;\n\t"
      "selp.u32 %0, 1, 0, any;\n\t}"
      : "=r"(any)
      : "r"(u32(predicate)), "r"(id), "r"(threads)
      : "memory");
  return any != 0;
}

// ---- overlapping launches -------------------------------------------------

// Lets the next kernel of the stream start, if it was launched as one that may, once every block is here.
__device__ __forceinline__ void let_next_start() {
#if HAS_TMA
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits for the kernel before, if this one was launched to overlap it; then all it wrote is seen.
__device__ __forceinline__ void wait_for_previous() {
#if HAS_TMA
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if HAS_TMA
// ---- tensor copy engine ---------------------------------------------------

__device__ __forceinline__ void barrier_expect(u32 bar, u32 bytes) {
  asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n\t}" ::"r"(bar),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void tma_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void tma_load_2d(u32 shared, const TensorMap* map, u32 bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared),
      "l"(map), "r"(bar), "r"(x), "r"(y)
      : "memory");
}
// For data that is read once: what else is in the L2 cache stays there.
__device__ __forceinline__ u64 evict_first_policy() {
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void tma_load_2d(u32 shared, const TensorMap* map, u32 bar, int x, int y, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared),
      "l"(map), "r"(bar), "r"(x), "r"(y), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void tma_load_3d(u32 shared, const TensorMap* map, u32 bar, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// Orders this thread's plain shared-memory accesses with later ones by wgmma or the copy engine.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#endif

// ---- registers between warpgroups (sm_90a) --------------------------------

template <int kRegisters>
__device__ __forceinline__ void registers_release() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void registers_acquire() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
