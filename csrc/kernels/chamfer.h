// The two directed nearest-neighbour searches of the chamfer distance on the CPU.
#pragma once

#include <limits>

#include "kernels/common.h"

namespace pc3d {

// For every row of x the nearest row of y in the same cloud, and the other way round (lowest index on a tie).
template <class T, class ParallelFor>
void nearest_both_ways(const T* x, const int64_t* x_offsets, const T* y, const int64_t* y_offsets, int64_t num_clouds,
                       T* x_squared, int64_t* x_index, T* y_squared, int64_t* y_index,
                       const ParallelFor& parallel_for) {
  parallel_for(0, num_clouds, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t j = y_offsets[b]; j < y_offsets[b + 1]; ++j) {
        y_squared[j] = std::numeric_limits<T>::infinity();
        y_index[j] = x_offsets[b];
      }
      for (int64_t i = x_offsets[b]; i < x_offsets[b + 1]; ++i) {
        T best = std::numeric_limits<T>::infinity();
        int64_t best_index = y_offsets[b];
        for (int64_t j = y_offsets[b]; j < y_offsets[b + 1]; ++j) {
          const T d = squared_distance(x + 3 * i, y + 3 * j);
          if (d < best) {
            best = d;
            best_index = j;
          }
          if (d < y_squared[j]) {
            y_squared[j] = d;
            y_index[j] = i;
          }
        }
        x_squared[i] = best;
        x_index[i] = best_index;
      }
    }
  });
}

}  // namespace pc3d
