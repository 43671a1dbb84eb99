#include "kernels/chamfer.h"

#include "cpu/binding.h"

namespace pc3d {

std::tuple<Tensor, Tensor, Tensor, Tensor> nearest_both_ways_cpu(const Tensor& x, const Tensor& x_offsets,
                                                                 const Tensor& y, const Tensor& y_offsets) {
  check_points(x, x_offsets, "x");
  check_points(y, y_offsets, "y");
  STD_TORCH_CHECK(x_offsets.size(0) == y_offsets.size(0), "x and y must hold the same number of clouds");
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), "x and y must have one dtype");
  const Tensor xs = torch::stable::contiguous(x);
  const Tensor ys = torch::stable::contiguous(y);
  const Tensor x_off = torch::stable::contiguous(x_offsets);
  const Tensor y_off = torch::stable::contiguous(y_offsets);
  const int64_t* xo = x_off.const_data_ptr<int64_t>();
  const int64_t* yo = y_off.const_data_ptr<int64_t>();
  const int64_t num_clouds = x_offsets.size(0) - 1;
  for (int64_t b = 0; b < num_clouds; ++b) {
    STD_TORCH_CHECK((xo[b] == xo[b + 1]) == (yo[b] == yo[b + 1]), "cloud ", b, " is empty on one side only");
  }
  Tensor x_squared = torch::stable::new_empty(x, {x.size(0)}, x.scalar_type());
  Tensor x_index = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  Tensor y_squared = torch::stable::new_empty(y, {y.size(0)}, y.scalar_type());
  Tensor y_index = torch::stable::new_empty(y, {y.size(0)}, ScalarType::Long);
  dispatch_points(x, "nearest_both_ways", [&](auto zero) {
    using scalar_t = decltype(zero);
    nearest_both_ways(xs.const_data_ptr<scalar_t>(), xo, ys.const_data_ptr<scalar_t>(), yo, num_clouds,
                      x_squared.mutable_data_ptr<scalar_t>(), x_index.mutable_data_ptr<int64_t>(),
                      y_squared.mutable_data_ptr<scalar_t>(), y_index.mutable_data_ptr<int64_t>(), ParallelFor());
  });
  return {x_squared, x_index, y_squared, y_index};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CPU, m) { m.impl("nearest_both_ways", TORCH_BOX(&pc3d::nearest_both_ways_cpu)); }
