// Farthest point sampling on the CPU: the way for each cloud, and the threads.
//
// Each step takes the point farthest from all taken so far; the lowest index wins a tie; a point is taken at most once.
// With `ignore_near_origin` (the rule of the MAE family's kernel), points near the origin are never candidates and
// exhausted candidates repeat, lowest index first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>

#include "kernels/farthest_point_plain.h"
#include "kernels/farthest_point_tree.h"

namespace pc3d {

// Whether the tree is faster than looking at every point in every step. It costs as much as 200 distances a point to
// build and 1,800 a step (measured at each level of vectors: the crossing moves little).
constexpr bool tree_is_faster(int64_t n, int64_t num_samples) {
  return n >= 2048 && n < std::numeric_limits<int32_t>::max() && num_samples > 200 + 1800 * num_samples / n;
}

// Fewer distances than this (0.2 ms) are not worth a second thread.
constexpr int64_t kDistancesPerThread = 1 << 21;

template <class T, class ParallelFor>
void farthest_point_sample(const T* xyz, const int64_t* offsets, int64_t num_clouds, const int64_t* sample_offsets,
                           const int64_t* start, bool ignore_near_origin, int64_t* out,
                           const ParallelFor& parallel_for) {
  if (num_clouds == 0) return;
  const auto length = [&](int64_t b) { return offsets[b + 1] - offsets[b]; };
  const auto wanted = [&](int64_t b) { return sample_offsets[b + 1] - sample_offsets[b]; };
  const auto use_tree = [&](int64_t b, const auto& some_parallel_for) {
    tree_farthest_points(xyz + 3 * offsets[b], length(b), wanted(b), start[b], ignore_near_origin, offsets[b],
                         out + sample_offsets[b], some_parallel_for);
  };
  // Threads share a cloud that is most of the work; of the others, each takes some.
  int64_t longest = 0;
  for (int64_t b = 1; b < num_clouds; ++b) longest = length(b) > length(longest) ? b : longest;
  const bool share = length(longest) >= kWideCloud && 2 * length(longest) > offsets[num_clouds] &&
                     tree_is_faster(length(longest), wanted(longest));
  if (share) use_tree(longest, parallel_for);

  const int64_t mean_distances = 1 + offsets[num_clouds] / num_clouds * (sample_offsets[num_clouds] / num_clouds);
  parallel_for(0, num_clouds, 1 + kDistancesPerThread / mean_distances, [&](int64_t begin, int64_t end) {
    const auto serial = [](int64_t from, int64_t to, int64_t, const auto& f) {
      if (from < to) f(from, to);
    };
    std::unique_ptr<T[]> scratch;
    int64_t scratch_size = 0;
    for (int64_t b = begin; b < end; ++b) {
      if (wanted(b) == 0 || (share && b == longest)) continue;
      if (tree_is_faster(length(b), wanted(b))) {
        use_tree(b, serial);
        continue;
      }
      const int64_t needed = 4 * plain_padded(length(b));
      if (needed > scratch_size) {
        scratch.reset(new T[needed]);
        scratch_size = needed;
      }
      call_widest<PlainFarthestPoints<T>>(xyz + 3 * offsets[b], length(b), wanted(b), start[b], ignore_near_origin,
                                          offsets[b], scratch.get(), out + sample_offsets[b]);
    }
  });
}

}  // namespace pc3d
