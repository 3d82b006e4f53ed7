// Reads `bytes` (a multiple of 32 KiB) with eight 16-byte loads in flight a thread and keeps
// nothing. Grid: any; block 256. What it reaches is the read ceiling of a bench table.
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
