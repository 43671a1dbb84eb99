// k nearest neighbours and ball queries on the CPU.
//
// A small cloud, or one with few queries, is searched whole: distances to a tile of points at a time, a bound from
// minima of groups of them, and the few candidates below it. A large cloud gets a tree (kernels/point_tree.h); its
// queries are taken in tree order, and those of one leaf collect the leaves they may need together. Both are exact,
// ties included.
#pragma once

#include "kernels/search_types.h"

#define PC3D_LEVEL_SOURCE "kernels/selection_and_search.h"
#include "kernels/for_each_level.h"

namespace pc3d {

constexpr int64_t kQueriesAtATime = 64;  // of one cloud, the share of work that a thread takes

constexpr double kLookOfSearch = 0.3;

// Whether building a tree pays. In nanoseconds, as measured with AVX-512: `look` at a point in a search of all, a query
// of the tree beyond what any query costs, and a point's way down one of the tree's log2(points / kLeaf) halvings.
inline bool tree_pays(int64_t points, int64_t queries, int64_t k, double look = kLookOfSearch) {
  if (points < 8 * kLeaf) return false;
  const double whole = look * static_cast<double>(points);
  const double tree = k == 1 ? 80.0 : 250.0 + 4.0 * static_cast<double>(std::min<int64_t>(k, 256));
  const double build = 8.0 * std::log2(static_cast<double>(points) / kLeaf);
  return static_cast<double>(queries) * (whole - tree) > build * static_cast<double>(points);
}

template <class T>
bool all_finite(const T* values, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += values[i] - values[i];  // 0, or NaN
  return sum == 0;
}

// The rows of one side of a cloud.
template <class T>
struct Rows {
  const T* xyz;
  int64_t size;
};

template <class T, class ParallelFor>
void search_with_tree(Rows<T> points, Rows<T> queries, const Search<T>& search, const Results<T>& results,
                      const ParallelFor& parallel_for) {
  const PointTree<T> tree(points.xyz, points.size, parallel_for);
  const bool same = points.xyz == queries.xyz && points.size == queries.size;
  // As many queries share a walk through the tree as lie in the space of one leaf.
  int64_t group = kLeaf;
  while (group > 1 && group * points.size > kLeaf * queries.size * 2) group /= 2;
  PointArrays<T> arranged;
  if (!same) arrange(queries.xyz, queries.size, group, arranged, parallel_for);
  const PointArrays<T>& order = same ? tree.points : arranged;
  const auto search_group = PC3D_BY_LEVEL(search_tree<T>);
  // Some groups at a time: neighbouring ones share what is in the cache.
  const int64_t share = 8 * group;
  for_each_dynamic((queries.size + share - 1) / share, parallel_for, [&] {
    return [&, scratch = Scratch<T>(search)](int64_t s) mutable {
      for (int64_t begin = s * share; begin < std::min(queries.size, (s + 1) * share); begin += group) {
        const int64_t end = std::min(queries.size, begin + group);
        search_group(tree, QueryGroup<T>(order, begin, end), search, scratch, results);
      }
    };
  });
}

// Many large clouds: one a thread (what is parallel within runs in line). Few: one after the other, all threads on
// each.
template <class ParallelFor, class F>
void for_large_clouds(int64_t count, const ParallelFor& parallel_for, const F& f) {
  if (count >= 4 * parallel_for.num_threads()) {
    for_each_dynamic(count, parallel_for, [&] { return f; });
  } else {
    for (int64_t i = 0; i < count; ++i) f(i);
  }
}

// Searches every cloud, each in the way that suits its size.
template <class T, class ParallelFor>
void search_clouds(const T* xyz, const int64_t* offsets, const T* query, const int64_t* query_offsets,
                   int64_t num_clouds, const Search<T>& search, const Results<T>& all,
                   const ParallelFor& parallel_for) {
  struct Share {
    int64_t cloud, begin, end;
  };
  std::vector<Share> shares;  // of clouds searched whole
  std::vector<int64_t> large;
  const auto points_of = [&](int64_t b) { return Rows<T>{xyz + 3 * offsets[b], offsets[b + 1] - offsets[b]}; };
  const auto queries_of = [&](int64_t b) {
    return Rows<T>{query + 3 * query_offsets[b], query_offsets[b + 1] - query_offsets[b]};
  };
  const auto results_of = [&](int64_t b) {
    const int64_t row = query_offsets[b];
    return Results<T>{all.index + row * search.k, all.squared ? all.squared + row * search.k : nullptr,
                      all.count ? all.count + row : nullptr, offsets[b]};
  };
  for (int64_t b = 0; b < num_clouds; ++b) {
    const Rows<T> points = points_of(b);
    const Rows<T> queries = queries_of(b);
    if (tree_pays(points.size, queries.size, search.k) && all_finite(points.xyz, 3 * points.size) &&
        all_finite(queries.xyz, 3 * queries.size)) {
      large.push_back(b);
      continue;
    }
    for (int64_t begin = 0; begin < queries.size; begin += kQueriesAtATime) {
      shares.push_back({b, begin, std::min(queries.size, begin + kQueriesAtATime)});
    }
  }
  const auto search_share = PC3D_BY_LEVEL(search_all<T>);
  for_each_dynamic(shares.size(), parallel_for, [&] {
    return [&, scratch = Scratch<T>(search), points = PointArrays<T>(), cloud = int64_t(-1)](int64_t s) mutable {
      const Share& share = shares[s];
      if (cloud != share.cloud) {
        cloud = share.cloud;
        const Rows<T> rows = points_of(cloud);
        points.take(rows.xyz, rows.size);
      }
      search_share(points, queries_of(cloud).xyz, share.begin, share.end, search, scratch, results_of(cloud));
    };
  });
  for_large_clouds(large.size(), parallel_for, [&](int64_t i) {
    const int64_t b = large[i];
    search_with_tree(points_of(b), queries_of(b), search, results_of(b), parallel_for);
  });
}

// For every query row the k nearest points of its own cloud, sorted by (distance, index).
template <class T, class ParallelFor>
void knn(const T* xyz, const int64_t* offsets, const T* query, const int64_t* query_offsets, int64_t num_clouds,
         int64_t k, int64_t* index, T* squared, const ParallelFor& parallel_for) {
  const Search<T> search(k, std::numeric_limits<T>::infinity(), false);
  search_clouds(xyz, offsets, query, query_offsets, num_clouds, search, {index, squared, nullptr, 0}, parallel_for);
}

// For every query row up to `max_neighbors` points of its own cloud with squared distance < squared_radius: the lowest
// indices, or the nearest first. Slots past the count repeat the first neighbour; an empty ball is all -1.
template <class T, class ParallelFor>
void ball_query(const T* xyz, const int64_t* offsets, const T* query, const int64_t* query_offsets, int64_t num_clouds,
                T squared_radius, int64_t max_neighbors, bool nearest_first, int64_t* index, int64_t* count,
                const ParallelFor& parallel_for) {
  // d < r^2 is d <= the number before r^2; no distance is below a square that vanished.
  const T bound = squared_radius > 0 ? std::nextafter(squared_radius, T(0)) : T(-1);
  const Search<T> search(max_neighbors, bound, !nearest_first);
  search_clouds(xyz, offsets, query, query_offsets, num_clouds, search, {index, nullptr, count, 0}, parallel_for);
}

}  // namespace pc3d
