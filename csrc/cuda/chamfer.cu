#include "kernels/chamfer.cuh"

#include "cuda/neighbor_tree.cuh"

namespace pc3d {

template <class T>
static void nearest_one_way(const SearchTensors& tensors, Tensor& squared, Tensor& index, const Launch& launch) {
  int64_t* rows = index.mutable_data_ptr<int64_t>();
  T* distances = squared.mutable_data_ptr<T>();
  if (worth_a_tree(tensors, 1)) {
    const TreeTensors<T> built(tensors, launch);
    cuda::nearest_in_tree(tensors.search<T>(), built.tree, rows, distances, launch);
  } else {
    cuda::nearest_one_way(tensors.search<T>(), rows, distances, launch);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> nearest_both_ways_cuda(const Tensor& x, const Tensor& x_offsets,
                                                                  const Tensor& y, const Tensor& y_offsets) {
  check_pair(x, x_offsets, y, y_offsets, "x", "y");
  const Launch launch(x);
  const SearchTensors of_x(y, y_offsets, x, x_offsets);
  const SearchTensors of_y(x, x_offsets, y, y_offsets);
  Tensor x_squared = torch::stable::new_empty(x, {x.size(0)}, x.scalar_type());
  Tensor x_index = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  Tensor y_squared = torch::stable::new_empty(y, {y.size(0)}, y.scalar_type());
  Tensor y_index = torch::stable::new_empty(y, {y.size(0)}, ScalarType::Long);
  dispatch_points(x, "nearest_both_ways", [&](auto zero) {
    using scalar_t = decltype(zero);
    nearest_one_way<scalar_t>(of_x, x_squared, x_index, launch);
    nearest_one_way<scalar_t>(of_y, y_squared, y_index, launch);
  });
  return {x_squared, x_index, y_squared, y_index};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) { m.impl("nearest_both_ways", TORCH_BOX(&pc3d::nearest_both_ways_cuda)); }
