// Neighbour searches over all points of a small cloud, and over the tree of a large one. Compiled once for each level
// by kernels/for_each_level.h (hence no include guard); included by kernels/neighbors.h only.

namespace pc3d {
namespace PC3D_LEVEL {

template <class T>
inline void distances(const PointArrays<T>& points, int64_t begin, int64_t n, const T* query, T* out) {
  const T* x = points.at[0].data() + begin;
  const T* y = points.at[1].data() + begin;
  const T* z = points.at[2].data() + begin;
  const T qx = query[0];
  const T qy = query[1];
  const T qz = query[2];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T dx = x[i] - qx;
    const T dy = y[i] - qy;
    const T dz = z[i] - qz;
    out[i] = (dx * dx + dy * dy) + dz * dz;
  }
}

// Where only the order of indices counts, every point within reach is at distance 0, every other at NaN.
template <class T>
inline void flatten(T* d, int64_t n, T bound) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) d[i] = d[i] <= bound ? T(0) : std::numeric_limits<T>::quiet_NaN();
}

// A bound that at least k of n distances pass: the k-th smallest of the minima of Groups strided groups.
template <class T, int Groups>
inline T bound_of_groups(const T* d, int64_t n, int64_t k, T* minima, const Integer<T>* index) {
  using Vector = typename Lanes<T, PC3D_LEVEL_BYTES>::Vector;
  constexpr int kLanes = Lanes<T, PC3D_LEVEL_BYTES>::count;
  for (int g = 0; g < Groups; g += kLanes) {
    Vector smallest = std::numeric_limits<T>::infinity() - Vector{};
    for (int64_t i = g; i < n; i += Groups) {
      const Vector value = at<Vector>(d + i).value;
      smallest = value < smallest ? value : smallest;
    }
    at<Vector>(minima + g).value = smallest;
  }
  return kth(minima, index, Groups, k).distance;
}

// Sorts what was found and writes it; `Ascending`: it was found in the order of the indices.
template <bool Ascending, class T>
inline void finish(Found<T>& found, const Search<T>& search, Scratch<T>& scratch, const Results<T>& results,
                   int64_t row) {
  if (found.count > search.k) keep_best(found, search.k);
  if (found.count <= kFewToSort) {
    sort_found<Ascending>(found, scratch.sorted_distance.data(), scratch.sorted_index.data());
  } else {
    sort_many(found, scratch.sorted_distance.data(), scratch.sorted_index.data());
  }
  write_row(found.count, search, scratch, results, row);
}

// The neighbours of queries [begin, end) among all points.
template <class T>
void search_all(const PointArrays<T>& points, const T* query, int64_t begin, int64_t end, const Search<T>& search,
                Scratch<T>& scratch, const Results<T>& results) {
  const int64_t k = search.k;
  // Lowest indices first, the search is over as soon as k are found: look more often.
  const int64_t tile = search.by_index ? kTile / 4 : kTile;
  T* const d = scratch.distance.data();
  for (int64_t m = begin; m < end; ++m) {
    Found<T> found = scratch.found(search.bound);
    for (int64_t first = 0; first < points.size; first += tile) {
      const int64_t n = padded(std::min(tile, points.size - first));
      const Integer<T>* index = points.index.data() + first;
      distances(points, first, n, query + 3 * m, d);
      if (search.by_index) {
        flatten(d, n, search.bound);
        found.count += append(d, index, n, T(0), found.distance + found.count, found.index + found.count);
        if (found.count >= k) {
          found.count = k;
          break;
        }
        continue;
      }
      T bound = found.limit.distance;
      if (k <= 32 && n >= 128) {
        bound = std::min(bound, bound_of_groups<T, 64>(d, n & ~63, k, scratch.minima.data(), index));
      } else if (n >= 512) {
        bound = std::min(bound, bound_of_groups<T, 256>(d, n & ~255, k, scratch.minima.data(), index));
      }
      found.limit.distance = bound;
      found.count += append(d, index, n, bound, found.distance + found.count, found.index + found.count);
      if (found.count > search.capacity) keep_best(found, k);
    }
    finish<true>(found, search, scratch, results, m);
  }
}

// A lower bound of the distance, as the kernels compute it, between any point of a box and any point of `region`.
// Rounding is monotonic, so the same operations on what the boxes are apart along each axis never exceed it.
template <class T>
inline void box_distances(const T* const* low, const T* const* high, int64_t begin, int64_t n, const Box<T>& region,
                          T* out) {
  const T* lx = low[0] + begin;
  const T* ly = low[1] + begin;
  const T* lz = low[2] + begin;
  const T* hx = high[0] + begin;
  const T* hy = high[1] + begin;
  const T* hz = high[2] + begin;
  const Box<T> r = region;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    // Written so that the NaN of a missing box survives.
    T ex = lx[i] - r.high[0];
    T ey = ly[i] - r.high[1];
    T ez = lz[i] - r.high[2];
    const T fx = r.low[0] - hx[i];
    const T fy = r.low[1] - hy[i];
    const T fz = r.low[2] - hz[i];
    ex = fx > ex ? fx : ex;
    ey = fy > ey ? fy : ey;
    ez = fz > ez ? fz : ez;
    ex = T(0) > ex ? T(0) : ex;
    ey = T(0) > ey ? T(0) : ey;
    ez = T(0) > ez ? T(0) : ez;
    out[i] = (ex * ex + ey * ey) + ez * ez;
  }
}

template <class T>
inline void box_distances(const BoxLevel<T>& level, int64_t begin, int64_t n, const Box<T>& region, T* out) {
  const T* const low[3] = {level.low[0].data(), level.low[1].data(), level.low[2].data()};
  const T* const high[3] = {level.high[0].data(), level.high[1].data(), level.high[2].data()};
  box_distances(low, high, begin, n, region, out);
}

// The leaf nearest to the middle of a region, walking down greedily.
template <class T>
inline int64_t nearest_leaf(const PointTree<T>& tree, const Box<T>& region) {
  Box<T> middle;
  for (int c = 0; c < 3; ++c) middle.low[c] = middle.high[c] = region.low[c] / 2 + region.high[c] / 2;
  int64_t node = 0;
  T d[kFan];
  for (int64_t level = static_cast<int64_t>(tree.levels.size()) - 1; level >= 0; --level) {
    const int64_t begin = node * kFan;
    box_distances(tree.levels[level], begin, kFan, middle, d);
    int64_t best = 0;
    for (int64_t i = 1; i < kFan; ++i) best = d[i] < d[best] ? i : best;
    node = begin + best;
  }
  return node;
}

// For each query a first limit, from the points of the leaves around the nearest one.
template <class T>
inline void first_limits(const PointTree<T>& tree, const QueryGroup<T>& queries, const Search<T>& search,
                         Scratch<T>& scratch) {
  constexpr Integer<T> kLargest = std::numeric_limits<Integer<T>>::max();
  for (int64_t q = 0; q < queries.size; ++q) scratch.limits[q] = {search.bound, kLargest};
  const int64_t size = tree.points.size;
  const int64_t wanted = 2 * search.k;
  if (search.by_index || search.k > kMaxSeed || size < search.k) return;
  const int64_t leaves = tree.levels[0].size;
  int64_t first = nearest_leaf(tree, queries.box);
  int64_t last = first + 1;
  while (std::min(size, last * kLeaf) - first * kLeaf < std::min(size, wanted)) {
    if (last < leaves) ++last;
    if (first > 0) --first;
  }
  const int64_t count = std::min(size, last * kLeaf) - first * kLeaf;
  T* const d = scratch.distance.data();
  for (int64_t q = 0; q < queries.size; ++q) {
    distances(tree.points, first * kLeaf, padded(count), queries.at(q).data(), d);
    const Limit<T> limit = kth(d, tree.points.index.data() + first * kLeaf, count, search.k);
    if (limit.distance <= search.bound) scratch.limits[q] = limit;
  }
}

// Collects the leaves that may hold a neighbour of any query of the group in scratch.leaves.
template <class T>
inline void collect_leaves(const PointTree<T>& tree, const QueryGroup<T>& queries, const Search<T>& search,
                           Scratch<T>& scratch) {
  Limit<T> reach = scratch.limits[0];
  for (int64_t q = 1; q < queries.size; ++q) {
    const Limit<T> limit = scratch.limits[q];
    const bool farther =
        limit.distance > reach.distance || (limit.distance == reach.distance && limit.index > reach.index);
    if (farther) reach = limit;
  }
  Frontier<T>* current = &scratch.frontier[0];
  Frontier<T>* next = &scratch.frontier[1];
  current->node[0] = 0;
  current->size = 1;
  T d[kFan];
  for (int64_t level = static_cast<int64_t>(tree.levels.size()) - 1; level >= 0; --level) {
    const BoxLevel<T>& boxes = tree.levels[level];
    next->size = 0;
    next->reserve(std::min(boxes.size, current->size * kFan));
    for (int64_t f = 0; f < current->size; ++f) {
      const int64_t begin = current->node[f] * kFan;
      box_distances(boxes, begin, kFan, queries.box, d);
      const Integer<T>* first_index = boxes.first_index.data() + begin;
      Integer<T> child[kFan];
#pragma omp simd
      for (int64_t i = 0; i < kFan; ++i) {
        const bool out = (d[i] == reach.distance) & (first_index[i] > reach.index);
        d[i] = out ? std::numeric_limits<T>::quiet_NaN() : d[i];
        child[i] = static_cast<Integer<T>>(begin + i);
      }
      next->size +=
          append(d, child, kFan, reach.distance, next->distance.data() + next->size, next->node.data() + next->size);
    }
    std::swap(current, next);
  }
  scratch.take_leaves(*current, tree.levels[0], search.by_index);
}

// The neighbours of one query among the collected leaves.
template <class T>
inline void search_leaves(const PointTree<T>& tree, const T* query, const Limit<T>& limit, const Search<T>& search,
                          Scratch<T>& scratch, Found<T>& found) {
  found.limit = limit;
  const Leaves<T>& leaves = scratch.leaves;
  const T* const low[3] = {leaves.low[0].data(), leaves.low[1].data(), leaves.low[2].data()};
  const T* const high[3] = {leaves.high[0].data(), leaves.high[1].data(), leaves.high[2].data()};
  const Box<T> point = {{query[0], query[1], query[2]}, {query[0], query[1], query[2]}};
  T* const d = scratch.distance.data();
  T order_d[kChunk + kPadding];
  Integer<T> order[kChunk + kPadding];
  T sorted_d[kChunk + kPadding];
  Integer<T> sorted[kChunk + kPadding];
  for (int64_t first = 0; first < leaves.size; first += kChunk) {
    const int64_t n = padded(std::min(kChunk, leaves.size - first));
    const Integer<T>* first_index = leaves.first_index.data() + first;
    // Many leaves come sorted: lowest indices first, none of the rest can tell.
    const bool is_sorted = leaves.size > kChunk;
    if (search.by_index && is_sorted && static_cast<T>(first_index[0]) > static_cast<T>(found.limit.index)) break;
    box_distances(low, high, first, n, point, d);
    const T reach = search.by_index ? search.bound : found.limit.distance;
    const Integer<T> last_index = found.limit.index;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const bool out = (search.by_index | (d[i] == reach)) & (first_index[i] > last_index);
      d[i] = out ? std::numeric_limits<T>::quiet_NaN() : d[i];
    }
    Found<T> near = {order_d, order, 0, {}};
    near.count = append(d, scratch.counting.data(), n, reach, order_d, order);
    if (search.by_index) {
      for (int64_t i = 0; i < near.count; ++i) order_d[i] = static_cast<T>(first_index[order[i]]);
    }
    sort_found<true>(near, sorted_d, sorted);
    for (int64_t i = 0; i < near.count; ++i) {
      const int64_t leaf = first + sorted[i];
      const bool too_late = first_index[sorted[i]] > found.limit.index;
      if (!search.by_index && sorted_d[i] > found.limit.distance) break;
      if (too_late && (search.by_index || sorted_d[i] == found.limit.distance)) continue;
      const int64_t begin = leaves.node[leaf] * kLeaf;
      const int64_t count = std::min(kLeaf, padded(tree.points.size - begin));
      distances(tree.points, begin, count, query, d);
      if (search.by_index) flatten(d, count, search.bound);
      found.count += append(d, tree.points.index.data() + begin, count, search.by_index ? T(0) : found.limit.distance,
                            found.distance + found.count, found.index + found.count);
      if (found.count >= search.capacity) keep_best(found, search.k);
    }
  }
}

template <class T>
void search_tree(const PointTree<T>& tree, const QueryGroup<T>& queries, const Search<T>& search, Scratch<T>& scratch,
                 const Results<T>& results) {
  first_limits(tree, queries, search, scratch);
  collect_leaves(tree, queries, search, scratch);
  for (int64_t q = 0; q < queries.size; ++q) {
    Found<T> found = scratch.found(search.bound);
    search_leaves(tree, queries.at(q).data(), scratch.limits[q], search, scratch, found);
    finish<false>(found, search, scratch, results, queries.row(q));
  }
}

}  // namespace PC3D_LEVEL
}  // namespace pc3d
