// The nearest neighbour alone on the CPU, in one direction or, for the chamfer distance, in both.
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

// The nearest row for every row of some directions (lowest index on a tie); `direction(b, way)` gives `ways` of each
// cloud.
//
// Small sets compare all with all, once for each direction: with a query a lane there is nothing to reduce, which costs
// less than one pass that keeps the minima of rows and of columns. Large ones get a tree.
template <class T, class GetDirection, class ParallelFor>
void nearest_of_clouds(int64_t num_clouds, int ways, const GetDirection& direction, const ParallelFor& parallel_for) {
  constexpr int64_t kShare = 1 << 16;  // distances that are worth a thread's while
  constexpr double kLook = 0.1;        // nanoseconds, see tree_pays()
  // Several small clouds, or some rows of one direction of a large one.
  struct Share {
    int64_t first_cloud, last_cloud, begin, end;
    int way;
  };
  std::vector<Share> shares;
  std::vector<Direction<T>> large;
  int64_t gathered = kShare;  // distances in the last share
  for (int64_t b = 0; b < num_clouds; ++b) {
    const Direction<T> first = direction(b, 0);
    const int64_t distances = first.from.size * first.to.size;
    if (distances <= kShare) {
      if (gathered + distances > kShare || shares.empty() || shares.back().last_cloud != b) {
        shares.push_back({b, b, 0, -1, 0});
        gathered = 0;
      }
      shares.back().last_cloud = b + 1;
      gathered += distances;
      continue;
    }
    gathered = kShare;
    for (int way = 0; way < ways; ++way) {
      const Direction<T> d = direction(b, way);
      if (tree_pays(d.to.size, d.from.size, 1, kLook) && all_finite(d.to.xyz, 3 * d.to.size) &&
          all_finite(d.from.xyz, 3 * d.from.size)) {
        large.push_back(d);
        continue;
      }
      const int64_t rows = padded(std::max<int64_t>(kShare / d.to.size, 1));
      for (int64_t begin = 0; begin < d.from.size; begin += rows) {
        shares.push_back({b, b + 1, begin, std::min(d.from.size, begin + rows), way});
      }
    }
  }
  const auto nearest = PC3D_BY_LEVEL(nearest_of_each<T>);
  const auto search = [&](const Direction<T>& d, int64_t begin, int64_t end) {
    nearest(d.from.xyz, begin, end, d.to.xyz, d.to.size, d.base, d.squared, d.index);
  };
  for_each_dynamic(shares.size(), parallel_for, [&] {
    return [&](int64_t s) {
      const Share& share = shares[s];
      if (share.end >= 0) return search(direction(share.first_cloud, share.way), share.begin, share.end);
      for (int64_t b = share.first_cloud; b < share.last_cloud; ++b) {
        for (int way = 0; way < ways; ++way) search(direction(b, way), 0, direction(b, way).from.size);
      }
    };
  });
  const Search<T> one(1, std::numeric_limits<T>::infinity(), false);
  for_large_clouds(large.size(), parallel_for, [&](int64_t i) {
    const Direction<T>& d = large[i];
    search_with_tree(d.to, d.from, one, {d.index, d.squared, nullptr, d.base}, parallel_for);
  });
}

// For every row of `from` the nearest row of `to` in the same cloud.
template <class T>
Direction<T> direction_of_cloud(const T* from, const int64_t* from_offsets, const T* to, const int64_t* to_offsets,
                                int64_t cloud, T* squared, int64_t* index) {
  const int64_t begin = from_offsets[cloud];
  const int64_t base = to_offsets[cloud];
  return {{from + 3 * begin, from_offsets[cloud + 1] - begin},
          {to + 3 * base, to_offsets[cloud + 1] - base},
          base,
          squared + begin,
          index + begin};
}

template <class T, class ParallelFor>
void nearest_one_way(const T* from, const int64_t* from_offsets, const T* to, const int64_t* to_offsets,
                     int64_t num_clouds, T* squared, int64_t* index, const ParallelFor& parallel_for) {
  const auto direction = [&](int64_t b, int) {
    return direction_of_cloud(from, from_offsets, to, to_offsets, b, squared, index);
  };
  nearest_of_clouds<T>(num_clouds, 1, direction, parallel_for);
}

template <class T, class ParallelFor>
void nearest_both_ways(const T* x, const int64_t* x_offsets, const T* y, const int64_t* y_offsets, int64_t num_clouds,
                       T* x_squared, int64_t* x_index, T* y_squared, int64_t* y_index,
                       const ParallelFor& parallel_for) {
  const auto direction = [&](int64_t b, int way) {
    return way == 0 ? direction_of_cloud(x, x_offsets, y, y_offsets, b, x_squared, x_index)
                    : direction_of_cloud(y, y_offsets, x, x_offsets, b, y_squared, y_index);
  };
  nearest_of_clouds<T>(num_clouds, 2, direction, parallel_for);
}

}  // namespace pc3d
