// What the neighbour searches of kernels/search.h and kernels/selection.h take and give.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/point_tree.h"

namespace pc3d {

constexpr int64_t kTile = 1024;      // points whose distances are held at a time
constexpr int64_t kChunk = 128;      // leaves that are put in order at a time
constexpr int64_t kMaxSeed = 256;    // neighbours up to which a first limit is worth its search
constexpr int64_t kFewToSort = 256;  // candidates up to which counting places beats sorting

// The integers of distances' bit patterns, free to alias them.
template <class T>
struct BitsOf {
  typedef Integer<T> type __attribute__((may_alias));
};
template <class T>
using Bits = typename BitsOf<T>::type;

template <class T>
inline Integer<T> bits_of(T value) {
  Integer<T> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
template <class T>
inline T value_of(Integer<T> bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Candidates up to this (distance, index) may still be neighbours.
template <class T>
struct Limit {
  T distance;
  Integer<T> index;
};

// The candidates of one query.
template <class T>
struct Found {
  T* distance;
  Integer<T>* index;
  int64_t count;
  Limit<T> limit;
};

template <class T>
struct Search {
  int64_t k;         // neighbours wanted
  int64_t capacity;  // candidates to gather before they are reduced to k
  T bound;           // the largest squared distance of a neighbour
  bool by_index;     // the k lowest indices within the bound, not the k nearest

  Search(int64_t k, T bound, bool by_index)
      : k(k), capacity(k + std::max<int64_t>(k / 2, 16)), bound(bound), by_index(by_index) {}
};

template <class T>
struct Box {
  T low[3];
  T high[3];
};

// Queries close to one another, which look for candidate leaves together.
template <class T>
struct QueryGroup {
  const PointArrays<T>* points;
  int64_t begin;
  int64_t size;
  Box<T> box;

  QueryGroup(const PointArrays<T>& points, int64_t begin, int64_t end)
      : points(&points), begin(begin), size(end - begin) {
    for (int c = 0; c < 3; ++c) {
      const auto [low, high] = std::minmax_element(points.at[c].begin() + begin, points.at[c].begin() + end);
      box.low[c] = *low;
      box.high[c] = *high;
    }
  }
  std::array<T, 3> at(int64_t q) const {
    return {points->at[0][begin + q], points->at[1][begin + q], points->at[2][begin + q]};
  }
  int64_t row(int64_t q) const { return points->index[begin + q]; }
};

// Boxes of a level that a search has yet to open.
template <class T>
struct Frontier {
  Array<T> distance;
  Array<Integer<T>> node;
  int64_t size = 0;

  void reserve(int64_t n) {
    const size_t needed = padded(n) + kPadding;
    if (node.size() < needed) {
      distance.resize(needed);
      node.resize(needed);
    }
  }
};

// The leaves that a group of queries has to look at, their boxes side by side.
template <class T>
struct Leaves {
  std::array<Array<T>, 3> low;
  std::array<Array<T>, 3> high;
  Array<Integer<T>> first_index;
  Array<Integer<T>> node;
  int64_t size = 0;
};

// The working memory of one thread.
template <class T>
struct Scratch {
  Array<T> distance = Array<T>(kTile + kPadding);
  Array<T> minima = Array<T>(256 + kPadding);
  Array<T> found_distance;
  Array<Integer<T>> found_index;
  Array<T> sorted_distance;
  Array<Integer<T>> sorted_index;
  std::array<Limit<T>, kLeaf> limits;
  std::array<Frontier<T>, 2> frontier;
  Leaves<T> leaves;
  Array<Integer<T>> counting = Array<Integer<T>>(kChunk);  // 0, 1, 2, ...
  std::vector<std::pair<T, Integer<T>>> pairs;

  explicit Scratch(const Search<T>& search)
      : found_distance(search.capacity + kTile + 2 * kPadding),
        found_index(search.capacity + kTile + 2 * kPadding),
        sorted_distance(search.k + 1),
        sorted_index(search.k + 1) {
    std::iota(counting.begin(), counting.end(), 0);
    for (auto& f : frontier) f.reserve(kFan);
  }

  Found<T> found(T bound) {
    return {found_distance.data(), found_index.data(), 0, {bound, std::numeric_limits<Integer<T>>::max()}};
  }

  // Where there are many leaves, those come first that will tighten the limit most.
  void take_leaves(Frontier<T>& from, const BoxLevel<T>& boxes, bool by_index) {
    if (from.size > kChunk) {
      pairs.resize(from.size);
      for (int64_t i = 0; i < from.size; ++i) {
        const Integer<T> node = from.node[i];
        pairs[i] = {by_index ? static_cast<T>(boxes.first_index[node]) : from.distance[i], node};
      }
      std::sort(pairs.begin(), pairs.end());
      for (int64_t i = 0; i < from.size; ++i) from.node[i] = pairs[i].second;
    }
    leaves.size = from.size;
    const size_t room = padded(from.size);
    if (leaves.node.size() < room) {
      for (int c = 0; c < 3; ++c) {
        leaves.low[c].resize(room);
        leaves.high[c].resize(room);
      }
      leaves.first_index.resize(room);
      leaves.node.resize(room);
    }
    for (int64_t i = 0; i < static_cast<int64_t>(room); ++i) {
      const bool real = i < from.size;
      const Integer<T> node = real ? from.node[i] : 0;
      for (int c = 0; c < 3; ++c) {
        leaves.low[c][i] = real ? boxes.low[c][node] : std::numeric_limits<T>::quiet_NaN();
        leaves.high[c][i] = real ? boxes.high[c][node] : std::numeric_limits<T>::quiet_NaN();
      }
      leaves.first_index[i] = boxes.first_index[node];
      leaves.node[i] = node;
    }
  }
};

template <class T>
void sort_many(const Found<T>& found, T* out_d, Integer<T>* out_index) {
  std::vector<std::pair<T, Integer<T>>> pairs(found.count);
  for (int64_t i = 0; i < found.count; ++i) pairs[i] = {found.distance[i], found.index[i]};
  std::sort(pairs.begin(), pairs.end());
  for (int64_t i = 0; i < found.count; ++i) std::tie(out_d[i], out_index[i]) = pairs[i];
}

// Where the rows of a cloud's queries go.
template <class T>
struct Results {
  int64_t* index;  // (queries, k)
  T* squared;      // (queries, k), of a search for the nearest only
  int64_t* count;  // (queries,), of a ball query only
  int64_t base;    // the cloud's first row
};

// Slots past the last neighbour repeat the first; an empty ball is all -1. A search for the nearest fills its rows
// unless there is NaN among the coordinates, which only a compiled graph lets pass: then it names the cloud's first
// row.
template <class T>
void write_row(int64_t found, const Search<T>& search, const Scratch<T>& scratch, const Results<T>& results,
               int64_t row) {
  int64_t* const index = results.index + row * search.k;
  for (int64_t j = 0; j < found; ++j) index[j] = results.base + scratch.sorted_index[j];
  int64_t filler = found > 0 ? index[0] : -1;
  if (results.squared != nullptr) {
    T* const squared = results.squared + row * search.k;
    std::copy_n(scratch.sorted_distance.data(), found, squared);
    std::fill(squared + found, squared + search.k, std::numeric_limits<T>::quiet_NaN());
    filler = results.base;
  }
  if (results.count != nullptr) results.count[row] = found;
  std::fill(index + found, index + search.k, filler);
}

}  // namespace pc3d
