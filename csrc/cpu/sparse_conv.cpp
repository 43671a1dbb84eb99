#include "kernels/sparse_conv.h"

#include "cpu/binding.h"

namespace pc3d {

static void check_conv(const Tensor& features, const Tensor& other, const Tensor& neighbors, const char* name) {
  STD_TORCH_CHECK(features.dim() == 2 && neighbors.dim() == 2, "features must be (N, C_in) and neighbors (M, K)");
  STD_TORCH_CHECK(neighbors.scalar_type() == ScalarType::Int, "neighbors must be int32");
  STD_TORCH_CHECK(features.size(0) < (int64_t{1} << 31), "features must have fewer than 2^31 rows");
  STD_TORCH_CHECK(other.scalar_type() == features.scalar_type(), "features and ", name, " must have one dtype");
}

// Half precision is computed in float, which sums need anyway.
static bool is_half(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Half || tensor.scalar_type() == ScalarType::BFloat16;
}

static Tensor widened(const Tensor& tensor) {
  return torch::stable::contiguous(is_half(tensor) ? torch::stable::to(tensor, ScalarType::Float) : tensor);
}

template <class T>
static ConvShape<T> shape_of(const Tensor& features, const Tensor& neighbors, int64_t out_channels) {
  return {features.const_data_ptr<T>(),
          features.size(0),
          features.size(1),
          neighbors.const_data_ptr<int32_t>(),
          neighbors.size(0),
          neighbors.size(1),
          out_channels};
}

Tensor sparse_conv_cpu(const Tensor& features, const Tensor& weight, const Tensor& neighbors,
                       const Tensor& /*reverse*/) {
  check_conv(features, weight, neighbors, "weight");
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) == neighbors.size(1) && weight.size(1) == features.size(1),
                  "weight must be (K, C_in, C_out)");
  const Tensor rows = widened(features);
  const Tensor taps = widened(weight);
  const Tensor table = torch::stable::contiguous(neighbors);
  Tensor out = torch::stable::new_empty(rows, {neighbors.size(0), weight.size(2)}, rows.scalar_type());
  dispatch_points(rows, "sparse_conv", [&](auto zero) {
    using scalar_t = decltype(zero);
    sparse_conv(shape_of<scalar_t>(rows, table, weight.size(2)), taps.const_data_ptr<scalar_t>(),
                out.mutable_data_ptr<scalar_t>(), ParallelFor());
  });
  return is_half(features) ? torch::stable::to(out, features.scalar_type()) : out;
}

Tensor sparse_conv_weight_gradient_cpu(const Tensor& features, const Tensor& grad, const Tensor& neighbors,
                                       const Tensor& /*reverse*/) {
  check_conv(features, grad, neighbors, "grad");
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == neighbors.size(0), "grad must be (M, C_out)");
  const Tensor rows = widened(features);
  const Tensor push = widened(grad);
  const Tensor table = torch::stable::contiguous(neighbors);
  Tensor out = torch::stable::new_empty(rows, {neighbors.size(1), features.size(1), grad.size(1)}, rows.scalar_type());
  dispatch_points(rows, "sparse_conv_weight_gradient", [&](auto zero) {
    using scalar_t = decltype(zero);
    sparse_conv_weight_gradient(shape_of<scalar_t>(rows, table, grad.size(1)), push.const_data_ptr<scalar_t>(),
                                out.mutable_data_ptr<scalar_t>(), ParallelFor());
  });
  return is_half(features) ? torch::stable::to(out, features.scalar_type()) : out;
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CPU, m) {
  m.impl("sparse_conv", TORCH_BOX(&pc3d::sparse_conv_cpu));
  m.impl("sparse_conv_weight_gradient", TORCH_BOX(&pc3d::sparse_conv_weight_gradient_cpu));
}
