// The two directed nearest-neighbour searches of the chamfer distance on the CPU.
#pragma once

#include "kernels/neighbors.h"

#define PC3D_LEVEL_SOURCE "kernels/nearest.h"
#include "kernels/for_each_level.h"

namespace pc3d {

// One direction of a pair of clouds: where its rows are and where their nearest go.
template <class T>
struct Direction {
  Rows<T> from;
  Rows<T> to;
  int64_t base;  // the first row of `to`
  T* squared;
  int64_t* index;
};

// For every row of x the nearest row of y in the same cloud, and the other way round (lowest index on a tie).
//
// Small sets compare all with all, once for each direction: with a query a lane there is nothing to reduce, which costs
// less than one pass that keeps the minima of rows and of columns. Large ones get a tree.
template <class T, class ParallelFor>
void nearest_both_ways(const T* x, const int64_t* x_offsets, const T* y, const int64_t* y_offsets, int64_t num_clouds,
                       T* x_squared, int64_t* x_index, T* y_squared, int64_t* y_index,
                       const ParallelFor& parallel_for) {
  constexpr int64_t kShare = 1 << 16;  // distances that are worth a thread's while
  constexpr double kLook = 0.1;        // nanoseconds, see tree_pays()
  const auto direction = [&](int64_t b, bool back) {
    const Rows<T> in_x = {x + 3 * x_offsets[b], x_offsets[b + 1] - x_offsets[b]};
    const Rows<T> in_y = {y + 3 * y_offsets[b], y_offsets[b + 1] - y_offsets[b]};
    return back ? Direction<T>{in_y, in_x, x_offsets[b], y_squared + y_offsets[b], y_index + y_offsets[b]}
                : Direction<T>{in_x, in_y, y_offsets[b], x_squared + x_offsets[b], x_index + x_offsets[b]};
  };
  // Several small pairs of clouds, or some rows of one direction of a large one.
  struct Share {
    int64_t first_cloud, last_cloud, begin, end;
    bool back;
  };
  std::vector<Share> shares;
  std::vector<Direction<T>> large;
  int64_t gathered = kShare;  // distances in the last share
  for (int64_t b = 0; b < num_clouds; ++b) {
    const Direction<T> there = direction(b, false);
    const int64_t distances = there.from.size * there.to.size;
    if (distances <= kShare) {
      if (gathered + distances > kShare || shares.empty() || shares.back().last_cloud != b) {
        shares.push_back({b, b, 0, -1, false});
        gathered = 0;
      }
      shares.back().last_cloud = b + 1;
      gathered += distances;
      continue;
    }
    gathered = kShare;
    for (const bool back : {false, true}) {
      const Direction<T> way = direction(b, back);
      if (tree_pays(way.to.size, way.from.size, 1, kLook) && all_finite(way.to.xyz, 3 * way.to.size) &&
          all_finite(way.from.xyz, 3 * way.from.size)) {
        large.push_back(way);
        continue;
      }
      const int64_t rows = padded(std::max<int64_t>(kShare / way.to.size, 1));
      for (int64_t begin = 0; begin < way.from.size; begin += rows) {
        shares.push_back({b, b + 1, begin, std::min(way.from.size, begin + rows), back});
      }
    }
  }
  const auto nearest = PC3D_BY_LEVEL(nearest_of_each<T>);
  const auto search = [&](const Direction<T>& way, int64_t begin, int64_t end) {
    nearest(way.from.xyz, begin, end, way.to.xyz, way.to.size, way.base, way.squared, way.index);
  };
  for_each_dynamic(shares.size(), parallel_for, [&] {
    return [&](int64_t s) {
      const Share& share = shares[s];
      if (share.end >= 0) return search(direction(share.first_cloud, share.back), share.begin, share.end);
      for (int64_t b = share.first_cloud; b < share.last_cloud; ++b) {
        search(direction(b, false), 0, direction(b, false).from.size);
        search(direction(b, true), 0, direction(b, true).from.size);
      }
    };
  });
  const Search<T> one(1, std::numeric_limits<T>::infinity(), false);
  for_large_clouds(large.size(), parallel_for, [&](int64_t i) {
    const Direction<T>& way = large[i];
    search_with_tree(way.to, way.from, one, {way.index, way.squared, nullptr, way.base}, parallel_for);
  });
}

}  // namespace pc3d
