#include "kernels/neighbors.cuh"

#include "cuda/binding.cuh"

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
    cuda::knn(tensors.search<scalar_t>(), k, index.mutable_data_ptr<int64_t>(), squared.mutable_data_ptr<scalar_t>(),
              launch);
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
    cuda::ball_query(tensors.search<scalar_t>(), static_cast<scalar_t>(r * r), max_neighbors, nearest_first,
                     index.mutable_data_ptr<int64_t>(), count.mutable_data_ptr<int64_t>(), launch);
  });
  return {index, count};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("knn", TORCH_BOX(&pc3d::knn_cuda));
  m.impl("ball_query", TORCH_BOX(&pc3d::ball_query_cuda));
}
