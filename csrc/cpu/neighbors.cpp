#include "kernels/neighbors.h"

#include "cpu/binding.h"
#include "kernels/chamfer.h"

namespace pc3d {

static void check_pair(const Tensor& xyz, const Tensor& offsets, const Tensor& query, const Tensor& query_offsets) {
  check_points(xyz, offsets, "xyz");
  check_points(query, query_offsets, "query");
  STD_TORCH_CHECK(offsets.size(0) == query_offsets.size(0), "xyz and query must hold the same number of clouds");
  STD_TORCH_CHECK(xyz.scalar_type() == query.scalar_type(), "xyz and query must have one dtype");
}

std::tuple<Tensor, Tensor> knn_cpu(const Tensor& xyz, const Tensor& offsets, const Tensor& query,
                                   const Tensor& query_offsets, int64_t k) {
  check_pair(xyz, offsets, query, query_offsets);
  const Tensor points = torch::stable::contiguous(xyz);
  const Tensor queries = torch::stable::contiguous(query);
  const Tensor point_offsets = torch::stable::contiguous(offsets);
  const Tensor out_offsets = torch::stable::contiguous(query_offsets);
  const int64_t* o = point_offsets.const_data_ptr<int64_t>();
  const int64_t* qo = out_offsets.const_data_ptr<int64_t>();
  const int64_t num_clouds = offsets.size(0) - 1;
  STD_TORCH_CHECK(k >= 1, "k must be at least 1");
  for (int64_t b = 0; b < num_clouds; ++b) {
    STD_TORCH_CHECK(qo[b] == qo[b + 1] || o[b + 1] - o[b] >= k, "k is ", k, ", but cloud ", b, " has only ",
                    o[b + 1] - o[b], " points");
  }
  Tensor index = torch::stable::new_empty(query, {query.size(0), k}, ScalarType::Long);
  Tensor squared = torch::stable::new_empty(query, {query.size(0), k}, query.scalar_type());
  dispatch_points(xyz, "knn", [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* p = points.const_data_ptr<scalar_t>();
    const scalar_t* q = queries.const_data_ptr<scalar_t>();
    int64_t* rows = index.mutable_data_ptr<int64_t>();
    scalar_t* distances = squared.mutable_data_ptr<scalar_t>();
    if (k == 1) {
      nearest_one_way(q, qo, p, o, num_clouds, distances, rows, ParallelFor());
    } else {
      knn(p, o, q, qo, num_clouds, k, rows, distances, ParallelFor());
    }
  });
  return {index, squared};
}

std::tuple<Tensor, Tensor> ball_query_cpu(const Tensor& xyz, const Tensor& offsets, const Tensor& query,
                                          const Tensor& query_offsets, double radius, int64_t max_neighbors,
                                          bool nearest_first) {
  check_pair(xyz, offsets, query, query_offsets);
  STD_TORCH_CHECK(max_neighbors >= 1, "max_neighbors must be at least 1");
  const Tensor points = torch::stable::contiguous(xyz);
  const Tensor queries = torch::stable::contiguous(query);
  const Tensor point_offsets = torch::stable::contiguous(offsets);
  const Tensor out_offsets = torch::stable::contiguous(query_offsets);
  Tensor index = torch::stable::new_empty(query, {query.size(0), max_neighbors}, ScalarType::Long);
  Tensor count = torch::stable::new_empty(query, {query.size(0)}, ScalarType::Long);
  dispatch_points(xyz, "ball_query", [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t r = static_cast<scalar_t>(radius);
    ball_query(points.const_data_ptr<scalar_t>(), point_offsets.const_data_ptr<int64_t>(),
               queries.const_data_ptr<scalar_t>(), out_offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1,
               static_cast<scalar_t>(r * r), max_neighbors, nearest_first, index.mutable_data_ptr<int64_t>(),
               count.mutable_data_ptr<int64_t>(), ParallelFor());
  });
  return {index, count};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CPU, m) {
  m.impl("knn", TORCH_BOX(&pc3d::knn_cpu));
  m.impl("ball_query", TORCH_BOX(&pc3d::ball_query_cpu));
}
