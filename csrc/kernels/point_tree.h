// A tree over the points of one cloud for neighbour searches: a balanced k-d order, cut into leaves of kLeaf points,
// with a box around every leaf, around every kFan leaves, every kFan of those, and so on. No node is stored but its
// box: the children of box i are boxes kFan * i to kFan * i + kFan - 1 of the level below, so that one vector loop
// tests them all.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "kernels/common.h"
#include "kernels/simd.h"

namespace pc3d {

template <class T>
using Integer = typename IntegerOf<T>::type;

constexpr int64_t kPadding = 16;  // arrays end at a multiple of this, so that vector loops have no remainder
constexpr int64_t kLeaf = 32;     // points of a leaf
constexpr int64_t kFan = 16;      // children of a box

// An array at the start of a cache line, so that no vector of a whole line straddles two.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* address, size_t) { ::operator delete(address, std::align_val_t(64)); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <class T>
using Array = std::vector<T, LineAllocator<T>>;

inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// Calls f(i) for every i below `count`; whoever is free takes the next one.
template <class ParallelFor, class F>
void for_each_dynamic(int64_t count, const ParallelFor& parallel_for, const F& make_worker) {
  std::atomic<int64_t> next(0);
  parallel_for(0, std::min<int64_t>(count, 1024), 1, [&](int64_t, int64_t) {
    int64_t i = next.fetch_add(1);
    if (i >= count) return;
    auto worker = make_worker();
    for (; i < count; i = next.fetch_add(1)) worker(i);
  });
}

template <class T>
struct IndexedPoint {
  std::array<T, 3> at;
  Integer<T> index;  // row within the cloud
};

// Puts points into the order of a balanced k-d tree whose leaves are runs of `leaf` points. Every split is at a
// multiple of leaf * kFan^j of the largest fitting j, so that runs of that length are subtrees.
template <class T>
class TreeOrder {
 public:
  TreeOrder(IndexedPoint<T>* points, int64_t count, int64_t leaf) : points_(points), count_(count), leaf_(leaf) {}

  template <class ParallelFor>
  void run(const ParallelFor& parallel_for) {
    // The top of a large tree breadth first, until there are subtrees enough to share out. Not more often than needed:
    // all threads meet after every level, and on a busy machine wait for the last of them.
    std::vector<Range> ranges = {{0, count_}};
    while (ranges.size() < 16 && count_ > (1 << 14)) {
      std::vector<Range> halves(2 * ranges.size());
      for_each_dynamic(ranges.size(), parallel_for, [&] {
        return [&](int64_t i) {
          const int64_t middle = split(ranges[i]);
          halves[2 * i] = {ranges[i].begin, middle};
          halves[2 * i + 1] = {middle, ranges[i].end};
        };
      });
      ranges.swap(halves);
    }
    for_each_dynamic(ranges.size(), parallel_for, [&] { return [&](int64_t i) { split_all(ranges[i]); }; });
  }

 private:
  struct Range {
    int64_t begin;
    int64_t end;
    int64_t size() const { return end - begin; }
  };

  void split_all(Range range) {
    while (range.size() > leaf_) {
      const int64_t middle = split(range);
      split_all({range.begin, middle});
      range.begin = middle;
    }
  }

  int64_t split(Range range) {
    if (range.size() <= leaf_) return range.end;
    int64_t unit = leaf_;
    while (unit * kFan < range.size()) unit *= kFan;
    const int64_t units = (range.size() + unit - 1) / unit;
    const int64_t middle = range.begin + (units + 1) / 2 * unit;
    if (middle >= range.end) return range.end;
    const int axis = longest_axis(range);
    select(points_ + range.begin, points_ + middle, points_ + range.end, Before{axis});
    return middle;
  }

  // Equal coordinates are told apart by the other axes and at last by the index: coinciding points end up side by side,
  // and among them the lowest indices in one leaf, which lets a search drop the rest.
  struct Before {
    int axis;
    bool operator()(const IndexedPoint<T>& a, const IndexedPoint<T>& b) const {
      if (__builtin_expect(a.at[axis] != b.at[axis], 1)) return a.at[axis] < b.at[axis];
      for (int c = 1; c < 3; ++c) {
        const int other = (axis + c) % 3;
        if (a.at[other] != b.at[other]) return a.at[other] < b.at[other];
      }
      return a.index < b.index;
    }
  };

  // As std::nth_element, three times as fast while the range is long: the partition has no branch to mispredict.
  static void select(IndexedPoint<T>* begin, IndexedPoint<T>* middle, IndexedPoint<T>* end, Before before) {
    for (int round = 0; round < 40 && end - begin > 48; ++round) {
      // The pivot: a sample's element of the rank that is wanted.
      std::array<IndexedPoint<T>*, 9> sample;
      const int64_t step = (end - begin) / 9;
      for (int i = 0; i < 9; ++i) sample[i] = begin + step / 2 + i * step;
      const int64_t rank = std::min<int64_t>(7, std::max<int64_t>(1, 9 * (middle - begin) / (end - begin)));
      std::nth_element(sample.begin(), sample.begin() + rank, sample.end(),
                       [&](const IndexedPoint<T>* a, const IndexedPoint<T>* b) { return before(*a, *b); });
      std::swap(*sample[rank], end[-1]);
      const IndexedPoint<T> pivot = end[-1];
      IndexedPoint<T>* store = begin;
      for (IndexedPoint<T>* next = begin; next < end - 1; ++next) {
        const IndexedPoint<T> point = *next;
        *next = *store;
        *store = point;
        store += before(point, pivot);
      }
      std::swap(*store, end[-1]);
      if (store == middle) return;
      if (store < middle) {
        begin = store + 1;
      } else {
        end = store;
      }
    }
    std::nth_element(begin, middle, end, before);
  }

  // Of a sample: which axis is cut decides only how fast a search is.
  int longest_axis(Range range) const {
    std::array<T, 3> low = points_[range.begin].at;
    std::array<T, 3> high = low;
    const int64_t step = std::max<int64_t>(1, range.size() / 512);
    for (int64_t i = range.begin; i < range.end; i += step) {
      for (int c = 0; c < 3; ++c) {
        low[c] = std::min(low[c], points_[i].at[c]);
        high[c] = std::max(high[c], points_[i].at[c]);
      }
    }
    int axis = 0;
    for (int c = 1; c < 3; ++c) {
      if (high[c] - low[c] > high[axis] - low[axis]) axis = c;
    }
    return axis;
  }

  IndexedPoint<T>* points_;
  int64_t count_;
  int64_t leaf_;
};

// Coordinates an array an axis, with NaN (which no comparison passes) up to the padding.
template <class T>
struct PointArrays {
  std::array<Array<T>, 3> at;
  Array<Integer<T>> index;
  int64_t size = 0;

  void resize(int64_t n) {
    size = n;
    for (auto& axis : at) {
      axis.resize(padded(n));
      std::fill(axis.begin() + n, axis.end(), std::numeric_limits<T>::quiet_NaN());
    }
    index.resize(padded(n));
    std::fill(index.begin() + n, index.end(), 0);
  }
  // The rows of a whole cloud, in their order.
  void take(const T* xyz, int64_t n) {
    if (n != size) resize(n);
    T* const x = at[0].data();
    T* const y = at[1].data();
    T* const z = at[2].data();
    Integer<T>* const row = index.data();
    for (int64_t i = 0; i < n; ++i) {
      x[i] = xyz[3 * i];
      y[i] = xyz[3 * i + 1];
      z[i] = xyz[3 * i + 2];
    }
    for (int64_t i = 0; i < n; ++i) row[i] = static_cast<Integer<T>>(i);
  }
  void set(int64_t i, const T* point, Integer<T> row) {
    for (int c = 0; c < 3; ++c) at[c][i] = point[c];
    index[i] = row;
  }
};

// The points of a cloud in tree order.
template <class T, class ParallelFor>
void arrange(const T* xyz, int64_t count, int64_t leaf, PointArrays<T>& out, const ParallelFor& parallel_for) {
  std::vector<IndexedPoint<T>> points(count);
  parallel_for(0, count, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      points[i] = {{xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2]}, static_cast<Integer<T>>(i)};
    }
  });
  TreeOrder<T>(points.data(), count, leaf).run(parallel_for);
  out.resize(count);
  parallel_for(0, count, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out.set(i, points[i].at.data(), points[i].index);
  });
}

// The boxes of one level. Boxes past the last are NaN: no distance to them passes a bound.
template <class T>
struct BoxLevel {
  std::array<Array<T>, 3> low;
  std::array<Array<T>, 3> high;
  Array<Integer<T>> first_index;  // the lowest row within
  int64_t size = 0;

  explicit BoxLevel(int64_t n) : size(n) {
    for (int c = 0; c < 3; ++c) {
      low[c].assign(padded(n), std::numeric_limits<T>::quiet_NaN());
      high[c].assign(padded(n), std::numeric_limits<T>::quiet_NaN());
    }
    first_index.assign(padded(n), std::numeric_limits<Integer<T>>::max());
  }
};

template <class T>
struct PointTree {
  PointArrays<T> points;
  std::vector<BoxLevel<T>> levels;  // of the leaves first; the last has at most kFan boxes

  template <class ParallelFor>
  PointTree(const T* xyz, int64_t count, const ParallelFor& parallel_for) {
    arrange(xyz, count, kLeaf, points, parallel_for);
    levels.emplace_back((count + kLeaf - 1) / kLeaf);
    BoxLevel<T>& leaves = levels.back();
    parallel_for(0, leaves.size, 512, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t last = std::min(count, (i + 1) * kLeaf);
        for (int c = 0; c < 3; ++c) {
          const auto [low, high] = std::minmax_element(points.at[c].begin() + i * kLeaf, points.at[c].begin() + last);
          leaves.low[c][i] = *low;
          leaves.high[c][i] = *high;
        }
        leaves.first_index[i] = *std::min_element(points.index.begin() + i * kLeaf, points.index.begin() + last);
      }
    });
    while (levels.back().size > kFan) {
      BoxLevel<T> above((levels.back().size + kFan - 1) / kFan);
      const BoxLevel<T>& below = levels.back();
      for (int64_t i = 0; i < above.size; ++i) {
        const int64_t first = i * kFan;
        const int64_t last = std::min(below.size, first + kFan);
        for (int c = 0; c < 3; ++c) {
          above.low[c][i] = *std::min_element(below.low[c].begin() + first, below.low[c].begin() + last);
          above.high[c][i] = *std::max_element(below.high[c].begin() + first, below.high[c].begin() + last);
        }
        above.first_index[i] = *std::min_element(below.first_index.begin() + first, below.first_index.begin() + last);
      }
      levels.push_back(std::move(above));
    }
  }
};

}  // namespace pc3d
