#include "kernels/neighbors.cuh"

#include "cuda/neighbor_tree.cuh"

namespace pc3d {

std::tuple<Tensor, Tensor> knn_cuda(const Tensor& xyz, const Tensor& offsets, const Tensor& query,
                                    const Tensor& query_offsets, int64_t k) {
  check_pair(xyz, offsets, query, query_offsets, "xyz", "query");
  STD_TORCH_CHECK(k >= 1, "k must be at least 1");
  const Launch launch(xyz);
  const SearchTensors tensors(xyz, offsets, query, query_offsets);
  Tensor index = torch::stable::new_empty(query, {query.size(0), k}, ScalarType::Long);
  Tensor squared = torch::stable::new_empty(query, {query.size(0), k}, query.scalar_type());
  dispatch_points(xyz, "knn", [&](auto zero) {
    using scalar_t = decltype(zero);
    int64_t* rows = index.mutable_data_ptr<int64_t>();
    scalar_t* distances = squared.mutable_data_ptr<scalar_t>();
    if (worth_a_tree(tensors, k)) {
      const TreeTensors<scalar_t> built(tensors, launch);
      cuda::knn_in_tree(tensors.search<scalar_t>(), built.tree, k, rows, distances, launch);
    } else {
      cuda::knn(tensors.search<scalar_t>(), k, rows, distances, launch);
    }
  });
  return {index, squared};
}

std::tuple<Tensor, Tensor> ball_query_cuda(const Tensor& xyz, const Tensor& offsets, const Tensor& query,
                                           const Tensor& query_offsets, double radius, int64_t max_neighbors,
                                           bool nearest_first) {
  check_pair(xyz, offsets, query, query_offsets, "xyz", "query");
  STD_TORCH_CHECK(max_neighbors >= 1, "max_neighbors must be at least 1");
  const Launch launch(xyz);
  const SearchTensors tensors(xyz, offsets, query, query_offsets);
  Tensor index = torch::stable::new_empty(query, {query.size(0), max_neighbors}, ScalarType::Long);
  Tensor count = torch::stable::new_empty(query, {query.size(0)}, ScalarType::Long);
  dispatch_points(xyz, "ball_query", [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t r = static_cast<scalar_t>(radius);
    const scalar_t limit = static_cast<scalar_t>(r * r);
    int64_t* rows = index.mutable_data_ptr<int64_t>();
    int64_t* found = count.mutable_data_ptr<int64_t>();
    if (worth_a_tree(tensors, max_neighbors)) {
      const TreeTensors<scalar_t> built(tensors, launch);
      cuda::ball_query_in_tree(tensors.search<scalar_t>(), built.tree, limit, max_neighbors, nearest_first, rows, found,
                               launch);
    } else {
      cuda::ball_query(tensors.search<scalar_t>(), limit, max_neighbors, nearest_first, rows, found, launch);
    }
  });
  return {index, count};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("knn", TORCH_BOX(&pc3d::knn_cuda));
  m.impl("ball_query", TORCH_BOX(&pc3d::ball_query_cuda));
}
