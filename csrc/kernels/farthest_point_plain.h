// Farthest point sampling that looks at every point in every step: the fastest way for small clouds and few samples.
//
// Floor: n points times m steps at 5 additions, 3 multiplications, a minimum and a maximum each. 128 clouds of 1,024
// points and 64 samples are 8.4 million points; at 16 a vector and about 6 cycles a vector, 1 ms on one core.
#pragma once

#include <limits>

#include "kernels/common.h"
#include "kernels/simd.h"

namespace pc3d {

// The distance of each point to the nearest taken one starts at infinity, and at -1 for a point that is never taken.
template <class T>
PC3D_ALWAYS_INLINE T initial_distance(const T* p, bool ignore_near_origin) {
  const T norm = (p[0] * p[0] + p[1] * p[1]) + p[2] * p[2];
  return ignore_near_origin && norm <= static_cast<T>(kNearOriginSquaredNorm) ? T(-1)
                                                                              : std::numeric_limits<T>::infinity();
}

// Vectors of a block share one comparison with the best so far.
constexpr int kPlainUnroll = 4;
constexpr int64_t kPlainPadding = 64 / sizeof(float) * kPlainUnroll;  // at the widest level, in points

// The scratch, 4 * padded elements, holds x, y, z and the distance to the nearest taken point.
constexpr int64_t plain_padded(int64_t n) { return (n + kPlainPadding - 1) / kPlainPadding * kPlainPadding; }

template <class T>
struct PlainFarthestPoints {
  template <int Bytes>
  PC3D_ALWAYS_INLINE static void run(const T* xyz, int64_t n, int64_t num_samples, int64_t start,
                                     bool ignore_near_origin, int64_t row_offset, T* scratch, int64_t* out) {
    using Vector = typename Lanes<T, Bytes>::Vector;
    using Integer = typename Lanes<T, Bytes>::Integer;
    using IntegerVector = typename Lanes<T, Bytes>::IntegerVector;
    constexpr int kLanes = Lanes<T, Bytes>::count;
    constexpr int kBlock = kLanes * kPlainUnroll;
    const int64_t padded = plain_padded(n);
    T* x = scratch;
    T* y = x + padded;
    T* z = y + padded;
    T* nearest = z + padded;
    for (int64_t i = 0; i < n; ++i) {
      x[i] = xyz[3 * i];
      y[i] = xyz[3 * i + 1];
      z[i] = xyz[3 * i + 2];
      nearest[i] = initial_distance(xyz + 3 * i, ignore_near_origin);
    }
    for (int64_t i = n; i < padded; ++i) {
      x[i] = y[i] = z[i] = T(0);
      nearest[i] = T(-1);
    }
    int64_t current = start;
    out[0] = row_offset + current;
    for (int64_t s = 1; s < num_samples; ++s) {
      if (!ignore_near_origin) nearest[current] = T(-1);
      const T qx = x[current];
      const T qy = y[current];
      const T qz = z[current];
      Vector best = Vector{} - T(2);
      IntegerVector best_block = {};
      Integer block = 0;
      for (int64_t i = 0; i < n; i += kBlock, ++block) {
        Vector block_best = Vector{} - T(2);
        for (int u = 0; u < kPlainUnroll; ++u) {
          const int64_t j = i + u * kLanes;
          Vector dx = at<Vector>(x + j).value;
          Vector dy = at<Vector>(y + j).value;
          Vector dz = at<Vector>(z + j).value;
          dx -= qx;
          dy -= qy;
          dz -= qz;
          const Vector d = (dx * dx + dy * dy) + dz * dz;
          const Vector old = at<Vector>(nearest + j).value;
          const Vector now = d < old ? d : old;
          at<Vector>(nearest + j).value = now;
          block_best = now > block_best ? now : block_best;
        }
        const IntegerVector farther = block_best > best;
        best = farther ? block_best : best;
        best_block = farther ? IntegerVector{} + block : best_block;
      }
      // The lowest index that attains the maximum lies in the first block that does.
      T lane_best[kLanes];
      Integer lane_block[kLanes];
      at<Vector>(lane_best).value = best;
      at<IntegerVector>(lane_block).value = best_block;
      const T farthest = largest<Bytes>(lane_best, kLanes);
      const IntegerVector attains = best == (Vector{} + farthest);
      at<IntegerVector>(lane_block).value = attains ? -best_block : IntegerVector{} - block;
      current = -static_cast<int64_t>(largest<Bytes>(lane_block, kLanes)) * kBlock;
      while (nearest[current] != farthest) ++current;
      out[s] = row_offset + current;
    }
  }
};

}  // namespace pc3d
