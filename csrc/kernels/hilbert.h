// The Hilbert curve, for CPU and CUDA: in its order neighbours in the list are neighbours in space.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PC3D_CURVE_INLINE __host__ __device__ __forceinline__
#else
#define PC3D_CURVE_INLINE inline __attribute__((always_inline))
#endif

namespace pc3d {

// Position along the curve (Skilling, Programming the Hilbert curve, 2004) of a cell among 2^bits a side, free of
// branches. The number of bits is a constant, so that the compiler unrolls the loops and works on many points at once;
// a coarser curve drops the last bits.
template <int kBits, class Position>
PC3D_CURVE_INLINE Position hilbert_position(uint32_t x, uint32_t y, uint32_t z) {
  for (int k = kBits - 1; k > 0; --k) {
    const uint32_t low = (1u << k) - 1;
    const uint32_t x_set = 0u - (x >> k & 1);
    x ^= low & x_set;
    const uint32_t y_set = 0u - (y >> k & 1);
    const uint32_t xy = (x ^ y) & low & ~y_set;
    x ^= xy | (low & y_set);
    y ^= xy;
    const uint32_t z_set = 0u - (z >> k & 1);
    const uint32_t xz = (x ^ z) & low & ~z_set;
    x ^= xz | (low & z_set);
    z ^= xz;
  }
  y ^= x;
  z ^= y;
  uint32_t turn = 0;
  for (int k = kBits - 1; k > 0; --k) turn ^= ((1u << k) - 1) & (0u - (z >> k & 1));
  x ^= turn;
  y ^= turn;
  z ^= turn;
  Position position = 0;
  for (int k = kBits - 1; k >= 0; --k) {
    position = position << 3 | (x >> k & 1) << 2 | (y >> k & 1) << 1 | (z >> k & 1);
  }
  return position;
}

}  // namespace pc3d
