// Farthest point sampling on the CPU.
#pragma once

#include <limits>
#include <memory>

#include "kernels/common.h"

namespace pc3d {

// One cloud. Each step takes the point farthest from all taken so far; the lowest index wins a tie; a point is taken at
// most once. With `ignore_near_origin` (the rule of the MAE family's kernel), points near the origin are never
// candidates and exhausted candidates repeat, lowest index first.
template <class T>
void farthest_point_sample_cloud(const T* xyz, int64_t n, int64_t num_samples, int64_t start, bool ignore_near_origin,
                                 int64_t row_offset, int64_t* out) {
  if (num_samples == 0) return;
  std::unique_ptr<T[]> nearest(new T[n]);
  for (int64_t i = 0; i < n; ++i) {
    const T* p = xyz + 3 * i;
    const T norm = (p[0] * p[0] + p[1] * p[1]) + p[2] * p[2];
    const bool never = ignore_near_origin && norm <= static_cast<T>(kNearOriginSquaredNorm);
    nearest[i] = never ? T(-1) : std::numeric_limits<T>::infinity();
  }
  int64_t current = start;
  out[0] = row_offset + current;
  for (int64_t s = 1; s < num_samples; ++s) {
    if (!ignore_near_origin) nearest[current] = T(-1);
    T best = T(-1);
    int64_t best_index = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (nearest[i] < T(0)) continue;
      const T d = squared_distance(xyz + 3 * i, xyz + 3 * current);
      if (d < nearest[i]) nearest[i] = d;
      if (nearest[i] > best) {
        best = nearest[i];
        best_index = i;
      }
    }
    current = best_index;
    out[s] = row_offset + current;
  }
}

template <class T, class ParallelFor>
void farthest_point_sample(const T* xyz, const int64_t* offsets, int64_t num_clouds, const int64_t* sample_offsets,
                           const int64_t* start, bool ignore_near_origin, int64_t* out,
                           const ParallelFor& parallel_for) {
  parallel_for(0, num_clouds, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      farthest_point_sample_cloud(xyz + 3 * offsets[b], offsets[b + 1] - offsets[b],
                                  sample_offsets[b + 1] - sample_offsets[b], start[b], ignore_near_origin, offsets[b],
                                  out + sample_offsets[b]);
    }
  });
}

}  // namespace pc3d
