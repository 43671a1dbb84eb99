// Neighbours in large clouds on CUDA: a tree of boxes over points, and the searches in it.
//
// Points are sorted by cloud, then along a Hilbert curve. 32 in a row are a leaf, 32 leaves in a row a node, and so on:
// what a node covers follows from its number, so there are no pointers. Of each node the box of its points is kept, and
// the lowest of their rows. A warp serves one query: its lanes measure 32 boxes at a time, and it goes down into the
// best of them that may hold a point better than the worst one kept. The cloud of a query is a range of the sorted
// points; nodes outside of it are passed over.
//
// A point's distance is rounded as that of its box is, each step of which is monotonic, so that no point is nearer than
// the box around it: the result is that of all pairs, to the bit. Points and queries that are no numbers (only
// unchecked input has them) find nothing.
#pragma once

#include "kernels/hilbert.h"
#include "kernels/sorted_list.cuh"

namespace pc3d {
namespace cuda {

constexpr int kWarpBits = 5;
constexpr int kMostLevels = 6;  // 32^7 > 2^32 points
constexpr int kSideValues = 6;  // a box: low x, y, z, high x, y, z

// Nodes of each level, leaves first, up to one of 32 nodes or fewer.
struct TreeShape {
  int levels;
  int64_t nodes[kMostLevels];
  int64_t first_group[kMostLevels];  // of 32 nodes
  int64_t groups;
};

inline TreeShape tree_shape(int64_t num_points) {
  TreeShape shape = {};
  int64_t below = num_points;
  do {
    below = ceil_div(below, kWarp);
    shape.nodes[shape.levels] = below;
    shape.first_group[shape.levels] = shape.groups;
    shape.groups += ceil_div(below, kWarp);
    ++shape.levels;
  } while (below > kWarp);
  return shape;
}

// The tree as it is searched. A group's values lie side by side: sides[group][value][node in group].
template <class T>
struct Tree {
  T* xyz;           // (N, 3), sorted
  uint32_t* rows;   // (N,), where each stood
  T* sides;         // (groups, 6, 32)
  uint32_t* first;  // (groups, 32), lowest row of each node
  int64_t num_points;
  TreeShape shape;
};

// ---- Building

template <class T>
struct PointBox {
  T side[kSideValues];
  uint32_t first;

  // Holds nothing; growing by a NaN leaves a box as it is.
  __device__ __forceinline__ void clear() {
    for (int a = 0; a < kSideValues; ++a) side[a] = a < 3 ? infinity<T>() : -infinity<T>();
    first = kNone;
  }
  __device__ __forceinline__ void grow(const T* low, const T* high, uint32_t row) {
    for (int a = 0; a < 3; ++a) {
      side[a] = low[a] < side[a] ? low[a] : side[a];
      side[a + 3] = high[a] > side[a + 3] ? high[a] : side[a + 3];
    }
    first = row < first ? row : first;
  }
  // The box around those of all lanes, known to every lane.
  __device__ __forceinline__ void join_warp() {
    for (int mask = 1; mask < kWarp; mask *= 2) {
      T other[kSideValues];
      for (int a = 0; a < kSideValues; ++a) other[a] = __shfl_xor_sync(kAllLanes, side[a], mask);
      grow(other, other + 3, __shfl_xor_sync(kAllLanes, first, mask));
    }
  }
};

inline int64_t box_blocks(int64_t count) {
  const int64_t blocks = ceil_div(count, kNeighborThreads);
  return blocks < 256 ? blocks : 256;
}
inline int64_t box_rows(int64_t count) { return 1 + box_blocks(count) * kNeighborWarps; }

// A box for each of `threads` / 32 warps, boxes (warps, 6), which together hold all of `low` and `high` (count,
// stride).
template <class T>
__global__ void __launch_bounds__(kNeighborThreads)
    bound_points(const T* __restrict__ low, const T* __restrict__ high, int64_t stride, int64_t count, int64_t threads,
                 T* __restrict__ boxes) {
  PointBox<T> box;
  box.clear();
  const int64_t first = int64_t(blockIdx.x) * kNeighborThreads + threadIdx.x;
  for (int64_t n = first; n < count; n += threads) box.grow(low + stride * n, high + stride * n, 0u);
  box.join_warp();
  if (threadIdx.x % kWarp != 0) return;
  for (int a = 0; a < kSideValues; ++a) boxes[kSideValues * (first / kWarp) + a] = box.side[a];
}

constexpr int kCurveBits = 16;  // per axis

// The last bits of a place on the curve that a key has no room for, beside the cloud and the sign.
inline int dropped_bits(int64_t num_clouds) {
  int room = 63;
  while (num_clouds > int64_t{1} << (63 - room)) --room;
  return room < 3 * kCurveBits ? 3 * kCurveBits - room : 0;
}

// Sort keys: the cloud of a row, then its place on the curve through the one box around all clouds.
template <class T>
__global__ void __launch_bounds__(kNeighborThreads)
    find_curve_keys(const T* __restrict__ xyz, int64_t count, const int64_t* __restrict__ offsets, int64_t num_clouds,
                    const T* __restrict__ box, int dropped, int64_t* __restrict__ keys) {
  const int64_t n = int64_t(blockIdx.x) * kNeighborThreads + threadIdx.x;
  if (n >= count) return;
  T longest = T(0);
  for (int a = 0; a < 3; ++a) longest = box[a + 3] - box[a] > longest ? box[a + 3] - box[a] : longest;
  const T last = static_cast<T>((1 << kCurveBits) - 1);
  uint32_t cell[3];
  for (int a = 0; a < 3; ++a) {
    // Of size 0, or beyond the range of T, a box is one cell; the order is about speed alone.
    const T place = multiply((xyz[3 * n + a] - box[a]) / longest, last);
    cell[a] = static_cast<uint32_t>(place > T(0) ? (place < last ? place : last) : T(0));
  }
  const uint64_t place = hilbert_position<kCurveBits, uint64_t>(cell[0], cell[1], cell[2]) >> dropped;
  const uint64_t cloud = static_cast<uint64_t>(cloud_of_row_device(offsets, num_clouds, n));
  keys[n] = static_cast<int64_t>(cloud << (3 * kCurveBits - dropped) | place);
}

// `order` is torch's sort of the keys, and trusted.
template <class T>
__global__ void __launch_bounds__(kNeighborThreads)
    arrange_points(const T* __restrict__ xyz, const int64_t* __restrict__ order, Tree<T> tree) {
  const int64_t i = int64_t(blockIdx.x) * kNeighborThreads + threadIdx.x;
  if (i >= tree.num_points) return;
  const int64_t row = order[i];
  tree.rows[i] = static_cast<uint32_t>(row);
  for (int a = 0; a < 3; ++a) tree.xyz[3 * i + a] = xyz[3 * row + a];
}

template <class T>
__device__ __forceinline__ const T* sides_of(const Tree<T>& tree, int level, int64_t node) {
  const int64_t group = tree.shape.first_group[level] + node / kWarp;
  return tree.sides + group * (kSideValues * kWarp) + node % kWarp;
}

template <class T>
__device__ __forceinline__ const uint32_t* first_of(const Tree<T>& tree, int level, int64_t node) {
  return tree.first + (tree.shape.first_group[level] + node / kWarp) * kWarp + node % kWarp;
}

// A warp a node, whose points (level 0) or nodes below were written by the launch before.
template <class T>
__global__ void __launch_bounds__(kNeighborThreads) bound_nodes(Tree<T> tree, int level) {
  const int64_t node = int64_t(blockIdx.x) * kNeighborWarps + threadIdx.x / kWarp;
  if (node >= tree.shape.nodes[level]) return;
  const int64_t child = node * kWarp + threadIdx.x % kWarp;
  PointBox<T> box;
  box.clear();
  if (level == 0 && child < tree.num_points) {
    box.grow(tree.xyz + 3 * child, tree.xyz + 3 * child, tree.rows[child]);
  } else if (level > 0 && child < tree.shape.nodes[level - 1]) {
    const T* sides = sides_of(tree, level - 1, child);
    T value[kSideValues];
    for (int a = 0; a < kSideValues; ++a) value[a] = sides[a * kWarp];
    box.grow(value, value + 3, *first_of(tree, level - 1, child));
  }
  box.join_warp();
  if (threadIdx.x % kWarp != 0) return;
  T* sides = const_cast<T*>(sides_of(tree, level, node));
  for (int a = 0; a < kSideValues; ++a) sides[a * kWarp] = box.side[a];
  *const_cast<uint32_t*>(first_of(tree, level, node)) = box.first;
}

// Writes the box around all points into the first row of `boxes`, which has one for each of box_rows(count).
template <class T, class Launch>
void find_box(const T* xyz, int64_t count, T* boxes, const Launch& launch) {
  const int64_t blocks = box_blocks(count);
  const int64_t warps = blocks * kNeighborWarps;
  T* parts = boxes + kSideValues;
  launch(bound_points<T>, blocks, kNeighborThreads, xyz, xyz, 3, count, blocks * kNeighborThreads, parts);
  launch(bound_points<T>, 1, kWarp, parts, parts + 3, kSideValues, warps, kWarp, boxes);
}

// Keys to sort the points by, in `keys` (count,).
template <class T, class Launch>
void find_keys(const Search<T>& s, const T* box, int64_t* keys, const Launch& launch) {
  launch(find_curve_keys<T>, ceil_div(s.num_rows, kNeighborThreads), kNeighborThreads, s.xyz, s.num_rows, s.offsets,
         s.num_clouds, box, dropped_bits(s.num_clouds), keys);
}

// Fills the tree with points in the order of their keys.
template <class T, class Launch>
void fill_tree(const T* xyz, const int64_t* order, const Tree<T>& tree, const Launch& launch) {
  launch(arrange_points<T>, ceil_div(tree.num_points, kNeighborThreads), kNeighborThreads, xyz, order, tree);
  for (int level = 0; level < tree.shape.levels; ++level) {
    launch(bound_nodes<T>, ceil_div(tree.shape.nodes[level], kNeighborWarps), kNeighborThreads, tree, level);
  }
}

// ---- Searching

enum class Wanted { kNearest, kNearestWithin, kFirstWithin };

__device__ __forceinline__ float least_of_warp(float value) {
  return __uint_as_float(__reduce_min_sync(kAllLanes, __float_as_uint(value)));
}
__device__ __forceinline__ double least_of_warp(double value) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value));
  const uint32_t high = __reduce_min_sync(kAllLanes, static_cast<uint32_t>(bits >> 32));
  const uint32_t low = (bits >> 32) == high ? static_cast<uint32_t>(bits) : kNone;
  return __longlong_as_double(static_cast<long long>(uint64_t{high} << 32 | __reduce_min_sync(kAllLanes, low)));
}

// A point, or the best that a node can hold: none of its points is better by (distance, row).
template <class T>
struct Offer {
  T distance;
  uint32_t row;
};

// One search, the same for all lanes of a warp. Lists of kFirstWithin hold rows alone, all at distance 0.
template <class T, Wanted kWanted>
struct TreeSearch {
  T x, y, z;
  T limit;  // of kNearest: none
  Rows rows;

  // What no list accepts.
  __device__ __forceinline__ static Offer<T> nothing() { return {infinity<T>(), kNone}; }

  __device__ __forceinline__ Offer<T> offer(T dx, T dy, T dz, uint32_t row) const {
    const T d = squared_norm(dx, dy, dz);
    if (kWanted != Wanted::kNearest && !(d < limit)) return nothing();
    return {kWanted == Wanted::kFirstWithin ? T(0) : d, row};
  }

  __device__ __forceinline__ Offer<T> point(const Tree<T>& tree, int64_t i) const {
    if (i < rows.begin || i >= rows.end) return nothing();
    const T* p = tree.xyz + 3 * i;
    return offer(x - p[0], y - p[1], z - p[2], tree.rows[i]);
  }

  __device__ __forceinline__ Offer<T> node(const Tree<T>& tree, int level, int64_t number) const {
    const int shift = kWarpBits * (level + 1);
    if (number >= tree.shape.nodes[level] || number << shift >= rows.end || (number + 1) << shift <= rows.begin) {
      return nothing();
    }
    const T* side = sides_of(tree, level, number);
    return offer(outside(x, side[0], side[3 * kWarp]), outside(y, side[kWarp], side[4 * kWarp]),
                 outside(z, side[2 * kWarp], side[5 * kWarp]), *first_of(tree, level, number));
  }

 private:
  __device__ __forceinline__ static T outside(T q, T low, T high) {
    return q < low ? low - q : (q > high ? q - high : T(0));
  }
};

// The lane with the best of those offers that the list accepts, or -1.
template <class T, int kEntries>
__device__ __forceinline__ int best_lane(const SortedList<T, kEntries>& list, Offer<T> offer) {
  const bool open = list.accepts(offer.distance, offer.row);
  if (__ballot_sync(kAllLanes, open) == 0u) return -1;
  const T nearest = least_of_warp(open ? offer.distance : infinity<T>());
  const bool at_nearest = open && offer.distance == nearest;
  const uint32_t first = __reduce_min_sync(kAllLanes, at_nearest ? offer.row : kNone);
  return __ffs(static_cast<int>(__ballot_sync(kAllLanes, at_nearest && offer.row == first))) - 1;
}

template <class T, int kEntries>
__device__ __forceinline__ void insert_accepted(SortedList<T, kEntries>& list, Offer<T> offer, int wanted) {
  uint32_t candidates = __ballot_sync(kAllLanes, list.accepts(offer.distance, offer.row));
  while (candidates != 0u) {
    const int source = __ffs(static_cast<int>(candidates)) - 1;
    candidates &= candidates - 1u;
    const T d = __shfl_sync(kAllLanes, offer.distance, source);
    const uint32_t row = __shfl_sync(kAllLanes, offer.row, source);
    if (list.accepts(d, row)) list.insert(d, row, wanted);
  }
}

template <class T, int kEntries, Wanted kWanted>
__global__ void __launch_bounds__(kNeighborThreads)
    search_tree(Search<T> s, Tree<T> tree, int64_t k, T limit, int64_t* __restrict__ out_index,
                T* __restrict__ out_squared, int64_t* __restrict__ out_count) {
  __shared__ T distance[kNeighborWarps][kMostLevels][kWarp];  // the offers of the groups on the way down
  __shared__ uint32_t first[kNeighborWarps][kMostLevels][kWarp];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t m = int64_t(blockIdx.x) * kNeighborWarps + warp;
  if (m >= s.num_queries) return;
  const int64_t cloud = cloud_of_row_device(s.query_offsets, s.num_clouds, m);
  const TreeSearch<T, kWanted> search = {s.query[3 * m], s.query[3 * m + 1], s.query[3 * m + 2], limit,
                                         rows_of_cloud(s.offsets, cloud, s.num_rows)};
  const int wanted = static_cast<int>(k);
  SortedList<T, kEntries> list;
  list.clear(kWanted == Wanted::kNearestWithin ? limit : infinity<T>());

  int level = tree.shape.levels - 1;
  int64_t group = 0;
  bool entered = true;
  while (true) {
    if (entered) {
      const Offer<T> offer = search.node(tree, level, group * kWarp + lane);
      distance[warp][level][lane] = offer.distance;  // read by this lane alone
      first[warp][level][lane] = offer.row;
    }
    const int best = best_lane(list, Offer<T>{distance[warp][level][lane], first[warp][level][lane]});
    entered = best >= 0 && level > 0;
    if (best < 0) {
      if (++level == tree.shape.levels) break;
      group /= kWarp;
      continue;
    }
    if (lane == best) first[warp][level][lane] = kNone;
    if (lane == best) distance[warp][level][lane] = infinity<T>();
    const int64_t node = group * kWarp + best;
    if (level == 0) {
      insert_accepted(list, search.point(tree, node * kWarp + lane), wanted);
    } else {
      --level;
      group = node;
    }
  }

  const uint32_t nearest = list.at(0).index;
  const int64_t in_empty = kWanted == Wanted::kNearest || nearest == kNone ? -1 : int64_t(nearest);
#pragma unroll
  for (int e = 0; e < kEntries; ++e) {
    const int position = e * kWarp + lane;
    if (position >= wanted) continue;
    out_index[m * k + position] = list.index[e] == kNone ? in_empty : int64_t(list.index[e]);
    if (kWanted == Wanted::kNearest) out_squared[m * k + position] = list.distance[e];
  }
  if (kWanted != Wanted::kNearest && lane == 0) out_count[m] = list.filled;
}

// As knn and ball_query (kernels/neighbors.cuh), with k of 128 at most.
template <class T, Wanted kWanted, class Launch>
void search_by_size(const Search<T>& s, const Tree<T>& tree, int64_t k, T limit, int64_t* index, T* squared,
                    int64_t* count, const Launch& launch) {
  const int64_t blocks = ceil_div(s.num_queries, kNeighborWarps);
  const auto kernel = k <= 32   ? search_tree<T, 1, kWanted>
                      : k <= 64 ? search_tree<T, 2, kWanted>
                                : search_tree<T, 4, kWanted>;
  launch(kernel, blocks, kNeighborThreads, s, tree, k, limit, index, squared, count);
}

template <class T, class Launch>
void knn_in_tree(const Search<T>& search, const Tree<T>& tree, int64_t k, int64_t* index, T* squared,
                 const Launch& launch) {
  search_by_size<T, Wanted::kNearest>(search, tree, k, T(0), index, squared, nullptr, launch);
}

// The nearest alone.
template <class T, class Launch>
void nearest_in_tree(const Search<T>& s, const Tree<T>& tree, int64_t* index, T* squared, const Launch& launch) {
  launch(search_tree<T, 1, Wanted::kNearest>, ceil_div(s.num_queries, kNeighborWarps), kNeighborThreads, s, tree, 1,
         T(0), index, squared, static_cast<int64_t*>(nullptr));
}

template <class T, class Launch>
void ball_query_in_tree(const Search<T>& search, const Tree<T>& tree, T squared_radius, int64_t max_neighbors,
                        bool nearest_first, int64_t* index, int64_t* count, const Launch& launch) {
  if (nearest_first) {
    search_by_size<T, Wanted::kNearestWithin>(search, tree, max_neighbors, squared_radius, index, nullptr, count,
                                              launch);
  } else {
    search_by_size<T, Wanted::kFirstWithin>(search, tree, max_neighbors, squared_radius, index, nullptr, count, launch);
  }
}

}  // namespace cuda
}  // namespace pc3d
