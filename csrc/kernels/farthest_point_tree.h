// Farthest point sampling of large clouds: exact, but without looking at every point in every step.
//
// Points lie in buckets along a space-filling curve, and a tree of boxes with 16 children a node stands above them.
// Each child keeps an upper bound on (distance to the nearest sample, lowest index that attains it), ordered like the
// answer: farther first, then the lower index. Two observations make a step cheap:
//   - A sample changes nothing in a box that is at least as far from it as the bound: the distance to a box is computed
//     with the operations of the distance to a point, and rounding is monotone, so it is a lower bound bit for bit.
//   - A bucket that a sample may change only notes it. Distances shrink, so the old bound stays an upper bound, and the
//     noted samples are applied together when the bucket comes to the top, or has no room for another.
// The bucket at the top is the answer once it is up to date.
//
// Floor: about 5 ln(m) n distances (the sample of step s changes some 5 n / s points) and a visit of some dozen nodes a
// step. 1 million points and 10,000 samples are 50 million distances, not 10^10: 10 ms at 16 a vector, and as much
// again to read, sort and write 12, 16 and 20 bytes a point.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>

#include "kernels/sample_tree.h"

namespace pc3d {

// Carries the bound of a child of a node on level 0 up to the root.
template <int Bytes, class T>
PC3D_ALWAYS_INLINE void update_ancestors(SampleTree<T>* tree, int64_t node) {
  for (int level = 0; level + 1 < tree->num_levels; ++level) {
    const TreeNode<T>& from = tree->nodes[level][node];
    TreeNode<T>& to = tree->nodes[level + 1][node / kFanOut];
    const int child = node % kFanOut;
    T bound;
    typename IntegerOf<T>::type first;
    node_bound<Bytes>(from.bound, from.first, kFanOut, &bound, &first);
    if (to.bound[child] == bound && to.first[child] == first) return;
    to.bound[child] = bound;
    to.first[child] = first;
    node /= kFanOut;
  }
}

template <int Bytes, class T>
PC3D_ALWAYS_INLINE void bring_up_to_date(SampleTree<T>* tree, int64_t bucket) {
  tree->num_noted -= tree->states[bucket].num_notes;
  apply_notes<Bytes>(tree, bucket);
  update_ancestors<Bytes>(tree, bucket / kFanOut);
}

// Lists the children of the listed nodes that are nearer to the sample than their bound.
template <int Bytes, class T>
PC3D_ALWAYS_INLINE int64_t list_children(const TreeNode<T>* nodes, const int32_t* from, int64_t count, const T* q,
                                         int32_t* to) {
  using Vector = typename Lanes<T, Bytes>::Vector;
  using Integer = typename Lanes<T, Bytes>::Integer;
  using IntegerVector = typename Lanes<T, Bytes>::IntegerVector;
  constexpr int kLanes = Lanes<T, Bytes>::count;
  const Vector zero = {};
  int64_t found = 0;
  for (int64_t k = 0; k < count; ++k) {
    const TreeNode<T>& node = nodes[from[k]];
    Integer nearer[kFanOut];
    for (int i = 0; i < kFanOut; i += kLanes) {
      Vector d = zero;
      Vector gap[3];
      for (int a = 0; a < 3; ++a) {
        const Vector below = at<Vector>(node.low[a] + i).value - q[a];
        const Vector above = q[a] - at<Vector>(node.high[a] + i).value;
        const Vector outside = below > above ? below : above;
        gap[a] = outside > zero ? outside : zero;
      }
      d = (gap[0] * gap[0] + gap[1] * gap[1]) + gap[2] * gap[2];
      at<IntegerVector>(nearer + i).value = d < at<Vector>(node.bound + i).value;
    }
    for (int c = 0; c < kFanOut; ++c) {
      to[found] = from[k] * kFanOut + c;
      found -= nearer[c];  // true is -1
    }
  }
  return found;
}

// Notes the sample in every bucket that it may change.
template <int Bytes, class T>
PC3D_ALWAYS_INLINE void note_sample(SampleTree<T>* tree, int64_t step) {
  const T* q = tree->samples + 4 * step;
  int32_t* from = tree->visited;
  int32_t* to = tree->visited + tree->num_buckets + kFanOut;
  from[0] = 0;
  int64_t count = 1;
  for (int level = tree->num_levels - 1; level >= 0; --level) {
    count = list_children<Bytes>(tree->nodes[level], from, count, q, to);
    int32_t* swap = from;
    from = to;
    to = swap;
  }
  tree->num_noted += count;
  for (int64_t i = 0; i < count; ++i) {
    BucketState& state = tree->states[from[i]];
    state.notes[state.num_notes++] = static_cast<int32_t>(step);
    if (state.num_notes == kBucketNotes) bring_up_to_date<Bytes>(tree, from[i]);
  }
}

// Whether the bound of a bucket is exact: its farthest point was not taken, and no noted sample is nearer to it.
template <class T>
PC3D_ALWAYS_INLINE bool is_exact(const SampleTree<T>* tree, int64_t bucket, T bound, const T* farthest) {
  const BucketState& state = tree->states[bucket];
  bool exact = state.taken < 0;
  for (int k = 0; k < state.num_notes; ++k) {
    const T* q = tree->samples + 4 * static_cast<int64_t>(state.notes[k]);
    const T dx = farthest[0] - q[0];
    const T dy = farthest[1] - q[1];
    const T dz = farthest[2] - q[2];
    exact &= (dx * dx + dy * dy) + dz * dz >= bound;
  }
  return exact;
}

// Takes samples from `step` on until all are taken or so many notes wait that all are to be applied; returns the step
// it came to.
template <class T>
struct TakeSamples {
  template <int Bytes>
  PC3D_ALWAYS_INLINE static int64_t run(SampleTree<T>* tree, int64_t step, int64_t num_samples, int64_t row_offset,
                                        int64_t* out) {
    using Index = typename IntegerOf<T>::type;
    const TreeNode<T>& root = *tree->nodes[tree->num_levels - 1];
    while (step < num_samples) {
      T bound;
      Index first;
      node_bound<Bytes>(root.bound, root.first, kFanOut, &bound, &first);
      int64_t bucket = 0;
      for (int level = tree->num_levels - 1; level >= 0; --level) {
        const TreeNode<T>& node = tree->nodes[level][bucket];
        int child = 0;
        while (node.first[child] != first) ++child;
        bucket = bucket * kFanOut + child;
      }
      const T* farthest = tree->xyz + 3 * static_cast<int64_t>(first);
      if (!is_exact(tree, bucket, bound, farthest)) {
        bring_up_to_date<Bytes>(tree, bucket);
        continue;
      }
      out[step] = row_offset + first;
      for (int a = 0; a < 3; ++a) tree->samples[4 * step + a] = farthest[a];
      if (tree->remove_taken) tree->states[bucket].taken = static_cast<int32_t>(first);
      if (++step == num_samples) break;
      note_sample<Bytes>(tree, step - 1);
      if (tree->num_noted > tree->note_limit) break;
    }
    return step;
  }
};

// Applies all notes of the buckets below some nodes of level 0.
template <class T>
struct ApplyAllNotes {
  template <int Bytes>
  PC3D_ALWAYS_INLINE static void run(SampleTree<T>* tree, int64_t begin, int64_t end) {
    for (int64_t b = begin * kFanOut; b < std::min(end * kFanOut, tree->num_buckets); ++b) {
      if (tree->states[b].num_notes > 0) apply_notes<Bytes>(tree, b);
    }
  }
};

// Applies all notes with all threads for as long as that pays. A large cloud needs it some 150 times, each well below a
// millisecond, and each ends when the last thread does: where another program has one of the cores, that thread waits
// for its turn, several milliseconds each time. The first pass, with one thread, measures what all of them must beat.
template <class T>
class NoteAppliers {
 public:
  template <class ParallelFor>
  void apply(SampleTree<T>* tree, const ParallelFor& parallel_for) {
    using Clock = std::chrono::steady_clock;
    const auto run = [tree](int64_t begin, int64_t end) { call_widest<ApplyAllNotes<T>>(tree, begin, end); };
    const Clock::time_point start = Clock::now();
    if (share_) {
      parallel_for(0, tree->num_nodes[0], 4, run);
    } else {
      run(0, tree->num_nodes[0]);
    }
    const double per_note = std::chrono::duration<double>(Clock::now() - start).count() / tree->num_noted;
    share_ = alone_ == 0 || (share_ && per_note < alone_);
    if (alone_ == 0) alone_ = per_note;
    tree->num_noted = 0;
  }

 private:
  bool share_ = false;
  double alone_ = 0;  // seconds per note, with one thread
};

// One cloud of n < 2^31 points.
template <class T, class ParallelFor>
void tree_farthest_points(const T* xyz, int64_t n, int64_t num_samples, int64_t start, bool ignore_near_origin,
                          int64_t row_offset, int64_t* out, const ParallelFor& parallel_for) {
  const std::unique_ptr<uint64_t[]> keys = order_along_curve(xyz, n, int64_t{2} * kBucketSize, parallel_for);
  SampleTree<T> tree;
  const SampleTreeMemory<T> memory = allocate(&tree, n, num_samples);
  tree.xyz = xyz;
  tree.remove_taken = !ignore_near_origin;
  tree.num_noted = 0;
  tree.note_limit = n < kWideCloud ? std::numeric_limits<int64_t>::max() : tree.num_buckets / 2;
  out[0] = row_offset + start;
  for (int a = 0; a < 3; ++a) tree.samples[a] = xyz[3 * start + a];
  parallel_for(0, tree.num_nodes[0], 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin * kFanOut; b < std::min(end * kFanOut, tree.num_buckets); ++b) {
      const int64_t count = std::min<int64_t>(kBucketSize, n - b * kBucketSize);
      call_widest<FillBucket<T>>(&tree, b, keys.get() + b * kBucketSize, count, start);
    }
  });
  raise_boxes(&tree);
  call_widest<RefreshBounds<T>>(&tree);
  NoteAppliers<T> appliers;
  for (int64_t step = 1; step < num_samples;) {
    step = call_widest<TakeSamples<T>>(&tree, step, num_samples, row_offset, out);
    if (step < num_samples) {
      appliers.apply(&tree, parallel_for);
      call_widest<RefreshBounds<T>>(&tree);
    }
  }
}

}  // namespace pc3d
