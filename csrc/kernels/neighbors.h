// k nearest neighbours and ball queries on the CPU.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/common.h"

namespace pc3d {

// For every query row the k nearest points of its own cloud, sorted by (distance, index).
template <class T, class ParallelFor>
void knn(const T* xyz, const int64_t* offsets, const T* query, const int64_t* query_offsets, int64_t num_clouds,
         int64_t k, int64_t* index, T* squared, const ParallelFor& parallel_for) {
  parallel_for(0, query_offsets[num_clouds], 64, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<T, int64_t>> found;
    for (int64_t m = begin; m < end; ++m) {
      const int64_t b = cloud_of_row(query_offsets, num_clouds, m);
      found.clear();
      for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
        found.emplace_back(squared_distance(query + 3 * m, xyz + 3 * i), i);
      }
      std::partial_sort(found.begin(), found.begin() + k, found.end());
      for (int64_t j = 0; j < k; ++j) {
        squared[m * k + j] = found[j].first;
        index[m * k + j] = found[j].second;
      }
    }
  });
}

// For every query row up to `max_neighbors` points of its own cloud with squared distance < squared_radius: the lowest
// indices, or the nearest first. Slots past the count repeat the first neighbour; an empty ball is all -1.
template <class T, class ParallelFor>
void ball_query(const T* xyz, const int64_t* offsets, const T* query, const int64_t* query_offsets, int64_t num_clouds,
                T squared_radius, int64_t max_neighbors, bool nearest_first, int64_t* index, int64_t* count,
                const ParallelFor& parallel_for) {
  parallel_for(0, query_offsets[num_clouds], 64, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<T, int64_t>> found;
    for (int64_t m = begin; m < end; ++m) {
      const int64_t b = cloud_of_row(query_offsets, num_clouds, m);
      found.clear();
      for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
        const T d = squared_distance(query + 3 * m, xyz + 3 * i);
        if (d < squared_radius) found.emplace_back(d, i);
        if (!nearest_first && static_cast<int64_t>(found.size()) == max_neighbors) break;
      }
      if (nearest_first) std::sort(found.begin(), found.end());
      const int64_t kept = std::min<int64_t>(max_neighbors, found.size());
      count[m] = kept;
      for (int64_t j = 0; j < max_neighbors; ++j) {
        index[m * max_neighbors + j] = kept == 0 ? -1 : found[j < kept ? j : 0].second;
      }
    }
  });
}

}  // namespace pc3d
