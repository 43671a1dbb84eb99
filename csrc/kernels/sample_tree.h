// The tree of boxes over buckets of points that farthest_point_tree.h samples from: its parts, and how it is built.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>

#include "kernels/farthest_point_plain.h"
#include "kernels/spatial_order.h"

namespace pc3d {

constexpr int kFanOut = 16;
constexpr int kBucketSize = 128;
constexpr int kBucketNotes = 6;  // the state of a bucket fills half a cache line

// From here on the points leave the cache. Then going through all of them in order, by several threads, beats waiting
// until a bucket is needed: at 1 million points two thirds of the sampling is done that way.
constexpr int64_t kWideCloud = 1 << 17;

// Aligned to cache lines: vectors that straddle two cost 8% of the time at 30,000 points.
template <class T>
struct alignas(64) TreeNode {
  using Index = typename IntegerOf<T>::type;
  T low[3][kFanOut];
  T high[3][kFanOut];
  T bound[kFanOut];
  Index first[kFanOut];
};

template <class T>
struct alignas(64) BucketPoints {
  using Index = typename IntegerOf<T>::type;
  T x[kBucketSize];
  T y[kBucketSize];
  T z[kBucketSize];
  T nearest[kBucketSize];
  Index index[kBucketSize];
};

struct alignas(32) BucketState {
  int32_t taken;  // the index of the point just taken from here, or -1
  int32_t num_notes;
  int32_t notes[kBucketNotes];  // steps of the samples not yet applied
};

template <class T>
struct SampleTree {
  using Index = typename IntegerOf<T>::type;
  static constexpr int kMaxLevels = 8;  // 16^8 buckets
  const T* xyz;
  int64_t num_buckets;
  int num_levels;
  int64_t num_nodes[kMaxLevels];  // level 0 holds the buckets, the last level one node
  TreeNode<T>* nodes[kMaxLevels];
  BucketPoints<T>* points;
  BucketState* states;
  int32_t* visited;  // room for two lists of the nodes or buckets of one level
  T* samples;        // 4 a sample: x, y, z, unused
  bool remove_taken;
  int64_t num_noted;   // notes not yet applied, over all buckets
  int64_t note_limit;  // beyond it, all are applied at once
};

// The bound of all children: the farthest, and the lowest index among those that attain it.
template <int Bytes, class T, class Index>
PC3D_ALWAYS_INLINE void node_bound(const T* bound, const Index* first, int count, T* node_bound, Index* node_first) {
  using Vector = typename Lanes<T, Bytes>::Vector;
  using IntegerVector = typename Lanes<T, Bytes>::IntegerVector;
  constexpr int kLanes = Lanes<T, Bytes>::count;
  const T farthest = largest<Bytes>(bound, count);
  IntegerVector negated = IntegerVector{} - std::numeric_limits<Index>::max();
  for (int i = 0; i < count; i += kLanes) {
    const IntegerVector attains = at<Vector>(bound + i).value == (Vector{} + farthest);
    const IntegerVector candidate = attains ? -at<IntegerVector>(first + i).value : negated;
    negated = candidate > negated ? candidate : negated;
  }
  Index lanes[kLanes];
  at<IntegerVector>(lanes).value = negated;
  *node_bound = farthest;
  *node_first = -largest<Bytes>(lanes, kLanes);
}

// Applies the noted samples to a bucket and sets its exact bound.
template <int Bytes, class T>
PC3D_ALWAYS_INLINE void apply_notes(SampleTree<T>* tree, int64_t bucket) {
  using Index = typename IntegerOf<T>::type;
  using Vector = typename Lanes<T, Bytes>::Vector;
  using IntegerVector = typename Lanes<T, Bytes>::IntegerVector;
  BucketPoints<T>& points = tree->points[bucket];
  BucketState& state = tree->states[bucket];
  const IntegerVector taken = IntegerVector{} + static_cast<Index>(state.taken);
  for (int i = 0; i < kBucketSize; i += Lanes<T, Bytes>::count) {
    const Vector x = at<Vector>(points.x + i).value;
    const Vector y = at<Vector>(points.y + i).value;
    const Vector z = at<Vector>(points.z + i).value;
    Vector nearest = at<Vector>(points.nearest + i).value;
    const IntegerVector index = at<IntegerVector>(points.index + i).value;
    nearest = index == taken ? Vector{} - T(1) : nearest;
    for (int k = 0; k < state.num_notes; ++k) {
      const T* q = tree->samples + 4 * static_cast<int64_t>(state.notes[k]);
      const Vector dx = x - q[0];
      const Vector dy = y - q[1];
      const Vector dz = z - q[2];
      const Vector d = (dx * dx + dy * dy) + dz * dz;
      nearest = d < nearest ? d : nearest;
    }
    at<Vector>(points.nearest + i).value = nearest;
  }
  state.num_notes = 0;
  state.taken = -1;
  TreeNode<T>& node = tree->nodes[0][bucket / kFanOut];
  const int child = bucket % kFanOut;
  node_bound<Bytes>(points.nearest, points.index, kBucketSize, &node.bound[child], &node.first[child]);
}

template <class T>
struct RefreshBounds {
  template <int Bytes>
  PC3D_ALWAYS_INLINE static void run(SampleTree<T>* tree) {
    for (int level = 0; level + 1 < tree->num_levels; ++level) {
      for (int64_t j = 0; j < tree->num_nodes[level]; ++j) {
        TreeNode<T>& to = tree->nodes[level + 1][j / kFanOut];
        const TreeNode<T>& from = tree->nodes[level][j];
        node_bound<Bytes>(from.bound, from.first, kFanOut, &to.bound[j % kFanOut], &to.first[j % kFanOut]);
      }
    }
  }
};

// Fills a bucket with its points, which all know the first sample, and its box in the node above.
template <class T>
struct FillBucket {
  template <int Bytes>
  PC3D_ALWAYS_INLINE static void run(SampleTree<T>* tree, int64_t bucket, const uint64_t* keys, int64_t count,
                                     int64_t start) {
    using Index = typename IntegerOf<T>::type;
    BucketPoints<T>& points = tree->points[bucket];
    for (int i = 0; i < kBucketSize; ++i) {
      // The last bucket repeats a point that can never be taken.
      const int64_t row = row_of(keys[i < count ? i : 0]);
      const T* p = tree->xyz + 3 * row;
      points.x[i] = p[0];
      points.y[i] = p[1];
      points.z[i] = p[2];
      points.nearest[i] = i < count ? initial_distance(p, !tree->remove_taken) : T(-2);
      if (tree->remove_taken && row == start && i < count) points.nearest[i] = T(-1);
      points.index[i] = i < count ? static_cast<Index>(row) : std::numeric_limits<Index>::max();
    }
    TreeNode<T>& node = tree->nodes[0][bucket / kFanOut];
    const int child = bucket % kFanOut;
    const T* coordinates[3] = {points.x, points.y, points.z};
    for (int a = 0; a < 3; ++a) {
      node.high[a][child] = largest<Bytes>(coordinates[a], kBucketSize);
      T negated[kBucketSize];
      for (int i = 0; i < kBucketSize; ++i) negated[i] = -coordinates[a][i];
      node.low[a][child] = -largest<Bytes>(negated, kBucketSize);
    }
    BucketState& state = tree->states[bucket];
    state.taken = -1;
    state.num_notes = 1;
    state.notes[0] = 0;
    apply_notes<Bytes>(tree, bucket);
  }
};

template <class T>
void clear_node(TreeNode<T>* node) {
  using Index = typename IntegerOf<T>::type;
  for (int c = 0; c < kFanOut; ++c) {
    for (int a = 0; a < 3; ++a) {
      node->low[a][c] = std::numeric_limits<T>::infinity();
      node->high[a][c] = -std::numeric_limits<T>::infinity();
    }
    node->bound[c] = T(-2);  // never at the top: a point has at least -1
    node->first[c] = std::numeric_limits<Index>::max();
  }
}

template <class T>
void raise_boxes(SampleTree<T>* tree) {
  for (int level = 0; level + 1 < tree->num_levels; ++level) {
    for (int64_t j = 0; j < tree->num_nodes[level]; ++j) {
      const TreeNode<T>& from = tree->nodes[level][j];
      TreeNode<T>& to = tree->nodes[level + 1][j / kFanOut];
      for (int a = 0; a < 3; ++a) {
        to.low[a][j % kFanOut] = *std::min_element(from.low[a], from.low[a] + kFanOut);
        to.high[a][j % kFanOut] = *std::max_element(from.high[a], from.high[a] + kFanOut);
      }
    }
  }
}

// What a tree's pointers point to.
template <class T>
struct SampleTreeMemory {
  std::unique_ptr<TreeNode<T>[]> nodes;
  std::unique_ptr<BucketPoints<T>[]> points;
  std::unique_ptr<BucketState[]> states;
  std::unique_ptr<int32_t[]> visited;
  std::unique_ptr<T[]> samples;
};

template <class T>
SampleTreeMemory<T> allocate(SampleTree<T>* tree, int64_t n, int64_t num_samples) {
  tree->num_buckets = (n + kBucketSize - 1) / kBucketSize;
  tree->num_levels = 0;
  int64_t total_nodes = 0;
  for (int64_t children = tree->num_buckets; tree->num_levels == 0 || children > 1; ++tree->num_levels) {
    children = (children + kFanOut - 1) / kFanOut;
    tree->num_nodes[tree->num_levels] = children;
    total_nodes += children;
  }
  SampleTreeMemory<T> memory;
  memory.nodes.reset(new TreeNode<T>[total_nodes]);
  memory.points.reset(new BucketPoints<T>[tree->num_buckets]);
  memory.states.reset(new BucketState[tree->num_buckets]);
  memory.visited.reset(new int32_t[2 * (tree->num_buckets + kFanOut)]);
  memory.samples.reset(new T[4 * num_samples]);
  for (int64_t j = 0; j < total_nodes; ++j) clear_node(&memory.nodes[j]);
  tree->nodes[0] = memory.nodes.get();
  for (int level = 1; level < tree->num_levels; ++level) {
    tree->nodes[level] = tree->nodes[level - 1] + tree->num_nodes[level - 1];
  }
  tree->points = memory.points.get();
  tree->states = memory.states.get();
  tree->visited = memory.visited.get();
  tree->samples = memory.samples.get();
  return memory;
}

}  // namespace pc3d
