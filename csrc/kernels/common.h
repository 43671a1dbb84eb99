// What the CPU kernels share. No torch, no Python: plain arithmetic on raw pointers.
//
// Every kernel takes `parallel_for(begin, end, grain, f)`, which calls `f(b, e)` on disjoint ranges that cover
// [begin, end), side by side where it likes.
#pragma once

#include <cstdint>

namespace pc3d {

// The distance every operator uses. The order of operations is part of the definition (and is compiled without fused
// multiply-adds), so that the CPU, CUDA and the reference round alike and break ties alike.
template <class T>
inline T squared_distance(const T* a, const T* b) {
  const T dx = a[0] - b[0];
  const T dy = a[1] - b[1];
  const T dz = a[2] - b[2];
  return (dx * dx + dy * dy) + dz * dz;
}

// The MAE family's sampling kernel never selects points this close to the origin (squared norm).
constexpr double kNearOriginSquaredNorm = 1e-3;

// The cloud that a packed row belongs to: the largest b with offsets[b] <= row (empty clouds are passed over).
inline int64_t cloud_of_row(const int64_t* offsets, int64_t num_clouds, int64_t row) {
  int64_t low = 0;
  int64_t high = num_clouds - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (offsets[middle] <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace pc3d
