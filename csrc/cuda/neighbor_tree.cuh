// When a search is worth a tree, and the memory of one; shared by what looks for neighbours.
#pragma once

#include "cuda/scatter.cuh"
#include "kernels/neighbor_tree.cuh"

// Pairs from which on a tree is built: where, by the number of operations, measuring them all takes several times as
// long as sorting the points. No GPU has timed it yet.
#ifndef PC3D_PAIRS_FOR_TREE
#define PC3D_PAIRS_FOR_TREE 4294967296.0
#endif

namespace pc3d {

// Contiguous copies, where needed, that live as long as the kernels' arguments.
struct SearchTensors {
  Tensor xyz, offsets, query, query_offsets;

  SearchTensors(const Tensor& points, const Tensor& point_offsets, const Tensor& queries, const Tensor& of_queries)
      : xyz(torch::stable::contiguous(points)),
        offsets(torch::stable::contiguous(point_offsets)),
        query(torch::stable::contiguous(queries)),
        query_offsets(torch::stable::contiguous(of_queries)) {}

  template <class T>
  cuda::Search<T> search() const {
    return {xyz.const_data_ptr<T>(),   xyz.size(0),   offsets.const_data_ptr<int64_t>(),
            query.const_data_ptr<T>(), query.size(0), query_offsets.const_data_ptr<int64_t>(),
            offsets.size(0) - 1};
  }
};

// How many clouds hold how many rows is known on the device alone: this goes by their mean. A few queries pass over all
// points sooner than a sort does, and torch sorts no more than 32 bits count.
inline bool worth_a_tree(const SearchTensors& s, int64_t k) {
  constexpr int64_t kFewQueries = 32;
  if (k > 128 || s.query.size(0) < kFewQueries || s.xyz.size(0) > std::numeric_limits<int32_t>::max()) return false;
  const double clouds = static_cast<double>(s.offsets.size(0) - 1);
  const double pairs =
      static_cast<double>(s.xyz.size(0)) * static_cast<double>(s.query.size(0)) / (clouds > 1 ? clouds : 1);
  return pairs > 0 && pairs >= PC3D_PAIRS_FOR_TREE;
}

// The memory of a tree, as long as it is searched.
template <class T>
struct TreeTensors {
  Tensor xyz, rows, sides, first;
  cuda::Tree<T> tree;

  TreeTensors(const SearchTensors& tensors, const Launch& launch) {
    const auto search = tensors.search<T>();
    const int64_t count = search.num_rows;
    const int64_t values = cuda::kSideValues;
    const int64_t nodes = cuda::kWarp;
    tree.num_points = count;
    tree.shape = cuda::tree_shape(count);
    const int64_t groups = tree.shape.groups;
    xyz = torch::stable::new_empty(tensors.xyz, {count, 3});
    rows = torch::stable::new_empty(tensors.xyz, {count}, ScalarType::Int);
    sides = torch::stable::new_empty(tensors.xyz, {groups, values, nodes});
    first = torch::stable::new_empty(tensors.xyz, {groups, nodes}, ScalarType::Int);
    tree.xyz = xyz.mutable_data_ptr<T>();
    tree.rows = reinterpret_cast<uint32_t*>(rows.mutable_data_ptr<int32_t>());
    tree.sides = sides.mutable_data_ptr<T>();
    tree.first = reinterpret_cast<uint32_t*>(first.mutable_data_ptr<int32_t>());

    Tensor boxes = torch::stable::new_empty(tensors.xyz, {cuda::box_rows(count), values});
    cuda::find_box(search.xyz, count, boxes.mutable_data_ptr<T>(), launch);
    Tensor keys = torch::stable::new_empty(tensors.offsets, {count});
    cuda::find_keys(search, boxes.const_data_ptr<T>(), keys.mutable_data_ptr<int64_t>(), launch);
    const Tensor order = std::get<1>(sort_index(keys));
    cuda::fill_tree(search.xyz, order.const_data_ptr<int64_t>(), tree, launch);
  }
};

}  // namespace pc3d
