// read_ceiling and copy_ceiling: what a kernel that only reads, or only copies, reaches; the
// ceilings of the bench tables.
//
// Layout   `bytes` a multiple of 32 KiB; eight 16-byte loads in flight a thread.
// Grid     any; block 256.
using u32 = unsigned int;

extern "C" __global__ void __launch_bounds__(256) read_ceiling(const uint4* data, long long bytes, u32* sink) {
  const long long chunks = bytes / (8 * 256 * 16);
  u32 seen = 0;
  for (long long c = blockIdx.x; c < chunks; c += gridDim.x) {
    const uint4* at = data + c * 8 * 256 + threadIdx.x;
    uint4 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = __ldcs(at + i * 256);
#pragma unroll
    for (int i = 0; i < 8; ++i) seen ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (seen == 0x12345678u) *sink = seen;  // never for random data, but the loads must stay
}

extern "C" __global__ void __launch_bounds__(256) copy_ceiling(const uint4* source, long long bytes, uint4* target) {
  const long long chunks = bytes / (8 * 256 * 16);
  for (long long c = blockIdx.x; c < chunks; c += gridDim.x) {
    const long long at = c * 8 * 256 + threadIdx.x;
    uint4 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = __ldcs(source + at + i * 256);
#pragma unroll
    for (int i = 0; i < 8; ++i) __stcs(target + at + i * 256, v[i]);
  }
}
