#include "kernels/sparse_conv.cuh"

#include "cuda/binding.cuh"

namespace pc3d {

template <class T>
constexpr cuda::Numbers kNumbers = std::is_same_v<T, torch::headeronly::Half>       ? cuda::Numbers::kFloat16
                                   : std::is_same_v<T, torch::headeronly::BFloat16> ? cuda::Numbers::kBFloat16
                                                                                    : cuda::Numbers::kPlain;

static void check_conv(const Tensor& features, const Tensor& other, const Tensor& neighbors, const char* name) {
  STD_TORCH_CHECK(features.dim() == 2 && neighbors.dim() == 2, "features must be (N, C_in) and neighbors (M, K)");
  STD_TORCH_CHECK(neighbors.scalar_type() == ScalarType::Int, "neighbors must be int32");
  STD_TORCH_CHECK(other.scalar_type() == features.scalar_type(), "features and ", name, " must have one dtype");
  check_same_device(features, other, name);
  check_same_device(features, neighbors, "neighbors");
}

static cuda::ConvSizes conv_sizes(const Tensor& features, int64_t out_channels, const Tensor& neighbors) {
  const auto narrow = [](int64_t size, const char* name) {
    STD_TORCH_CHECK(size < (int64_t{1} << 24), "more ", name, " than 2^24: ", size);
    return static_cast<int32_t>(size);
  };
  return {features.size(0), narrow(features.size(1), "channels"), narrow(out_channels, "channels"), neighbors.size(0),
          narrow(neighbors.size(1), "taps")};
}

Tensor sparse_conv_cuda(const Tensor& features, const Tensor& weight, const Tensor& neighbors,
                        const Tensor& /*reverse*/) {
  check_conv(features, weight, neighbors, "weight");
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) == neighbors.size(1) && weight.size(1) == features.size(1),
                  "weight must be (K, C_in, C_out)");
  const Launch launch(features);
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor taps = torch::stable::contiguous(weight);
  const Tensor table = torch::stable::contiguous(neighbors);
  Tensor out = torch::stable::new_empty(rows, {neighbors.size(0), weight.size(2)}, rows.scalar_type());
  const cuda::ConvSizes sizes = conv_sizes(rows, weight.size(2), table);
  dispatch_features(rows, "sparse_conv", [&](auto zero) {
    using scalar_t = decltype(zero);
    cuda::sparse_conv<scalar_t, kNumbers<scalar_t>>(rows.const_data_ptr<scalar_t>(), taps.const_data_ptr<scalar_t>(),
                                                    table.const_data_ptr<int32_t>(), sizes,
                                                    out.mutable_data_ptr<scalar_t>(), launch);
  });
  return out;
}

Tensor sparse_conv_weight_gradient_cuda(const Tensor& features, const Tensor& grad, const Tensor& neighbors,
                                        const Tensor& /*reverse*/) {
  check_conv(features, grad, neighbors, "grad");
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == neighbors.size(0), "grad must be (M, C_out)");
  const Launch launch(features);
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor push = torch::stable::contiguous(grad);
  const Tensor table = torch::stable::contiguous(neighbors);
  const cuda::ConvSizes sizes = conv_sizes(rows, grad.size(1), table);
  Tensor out = torch::stable::new_empty(rows, {sizes.taps, sizes.in_channels, sizes.out_channels}, rows.scalar_type());
  const ScalarType wide = rows.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor partials = torch::stable::new_empty(rows, {cuda::conv_chunks(sizes) * out.numel()}, wide);
  dispatch_features(rows, "sparse_conv_weight_gradient", [&](auto zero) {
    using scalar_t = decltype(zero);
    using sum_t = Accumulator<scalar_t>;
    cuda::sparse_conv_weight_gradient<scalar_t, sum_t, kNumbers<scalar_t>>(
        rows.const_data_ptr<scalar_t>(), push.const_data_ptr<scalar_t>(), table.const_data_ptr<int32_t>(), sizes,
        partials.mutable_data_ptr<sum_t>(), out.mutable_data_ptr<scalar_t>(), launch);
  });
  return out;
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("sparse_conv", TORCH_BOX(&pc3d::sparse_conv_cuda));
  m.impl("sparse_conv_weight_gradient", TORCH_BOX(&pc3d::sparse_conv_weight_gradient_cuda));
}
