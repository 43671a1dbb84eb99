#include "kernels/chamfer.cuh"

#include "cuda/binding.cuh"

namespace pc3d {

std::tuple<Tensor, Tensor, Tensor, Tensor> nearest_both_ways_cuda(const Tensor& x, const Tensor& x_offsets,
                                                                  const Tensor& y, const Tensor& y_offsets) {
  check_pair(x, x_offsets, y, y_offsets, "x", "y");
  const Launch launch(x);
  const Tensor xs = torch::stable::contiguous(x);
  const Tensor ys = torch::stable::contiguous(y);
  const Tensor x_off = torch::stable::contiguous(x_offsets);
  const Tensor y_off = torch::stable::contiguous(y_offsets);
  Tensor x_squared = torch::stable::new_empty(x, {x.size(0)}, x.scalar_type());
  Tensor x_index = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  Tensor y_squared = torch::stable::new_empty(y, {y.size(0)}, y.scalar_type());
  Tensor y_index = torch::stable::new_empty(y, {y.size(0)}, ScalarType::Long);
  dispatch_points(x, "nearest_both_ways", [&](auto zero) {
    using scalar_t = decltype(zero);
    cuda::nearest_both_ways(xs.const_data_ptr<scalar_t>(), x.size(0), x_off.const_data_ptr<int64_t>(),
                            ys.const_data_ptr<scalar_t>(), y.size(0), y_off.const_data_ptr<int64_t>(),
                            x_offsets.size(0) - 1, x_squared.mutable_data_ptr<scalar_t>(),
                            x_index.mutable_data_ptr<int64_t>(), y_squared.mutable_data_ptr<scalar_t>(),
                            y_index.mutable_data_ptr<int64_t>(), launch);
  });
  return {x_squared, x_index, y_squared, y_index};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) { m.impl("nearest_both_ways", TORCH_BOX(&pc3d::nearest_both_ways_cuda)); }
