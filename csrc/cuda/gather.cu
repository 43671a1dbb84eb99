#include "kernels/gather.cuh"

#include "cuda/binding.cuh"
#include "cuda/scatter.cuh"

namespace pc3d {

static void check_index(const Tensor& rows, const Tensor& index) {
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long, "index must be int64");
  check_same_device(rows, index, "index");
}

Tensor gather_cuda(const Tensor& features, const Tensor& index) {
  STD_TORCH_CHECK(features.dim() == 2 && index.dim() == 1, "features must be (N, C) and index (M,)");
  check_index(features, index);
  const Launch launch(features);
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor positions = torch::stable::contiguous(index);
  Tensor out = torch::stable::new_empty(features, {index.size(0), features.size(1)}, features.scalar_type());
  dispatch_features(features, "gather", [&](auto zero) {
    using scalar_t = decltype(zero);
    cuda::gather(rows.const_data_ptr<scalar_t>(), rows.size(0), rows.size(1) * static_cast<int64_t>(sizeof(scalar_t)),
                 positions.const_data_ptr<int64_t>(), positions.size(0), out.mutable_data_ptr<scalar_t>(), launch);
  });
  return out;
}

Tensor gather_backward_cuda(const Tensor& grad, const Tensor& index, int64_t num_rows, bool deterministic) {
  STD_TORCH_CHECK(grad.dim() == 2 && index.dim() == 1 && grad.size(0) == index.size(0),
                  "grad must be (M, C) and index (M,)");
  STD_TORCH_CHECK(num_rows >= 0, "num_rows must not be negative");
  check_index(grad, index);
  const Launch launch(grad);
  const Tensor values = torch::stable::contiguous(grad);
  const Tensor positions = torch::stable::contiguous(index);
  Tensor out = torch::stable::new_empty(grad, {num_rows, grad.size(1)}, grad.scalar_type());
  dispatch_features(grad, "gather_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    const cuda::Scatter<scalar_t> scatter = {values.const_data_ptr<scalar_t>(),
                                             grad.size(1),
                                             positions.const_data_ptr<int64_t>(),
                                             index.size(0),
                                             nullptr,
                                             1,
                                             num_rows};
    scatter_sum(scatter, positions, deterministic, out, launch);
  });
  return out;
}

static void check_weighted(const Tensor& features, const Tensor& index, const Tensor& weight) {
  STD_TORCH_CHECK(features.dim() == 2 && index.dim() == 2 && weight.dim() == 2 && index.size(0) == weight.size(0) &&
                      index.size(1) == weight.size(1),
                  "features must be (N, C), index and weight (M, k)");
  STD_TORCH_CHECK(features.scalar_type() == weight.scalar_type(), "features and weight must have one dtype");
  check_index(features, index);
  check_same_device(features, weight, "weight");
}

Tensor weighted_gather_cuda(const Tensor& features, const Tensor& index, const Tensor& weight) {
  check_weighted(features, index, weight);
  const Launch launch(features);
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor positions = torch::stable::contiguous(index);
  const Tensor weights = torch::stable::contiguous(weight);
  Tensor out = torch::stable::new_empty(features, {index.size(0), features.size(1)}, features.scalar_type());
  dispatch_features(features, "weighted_gather", [&](auto zero) {
    using scalar_t = decltype(zero);
    cuda::weighted_gather<scalar_t, Accumulator<scalar_t>>(rows.const_data_ptr<scalar_t>(), rows.size(0), rows.size(1),
                                                           positions.const_data_ptr<int64_t>(),
                                                           weights.const_data_ptr<scalar_t>(), positions.size(0),
                                                           positions.size(1), out.mutable_data_ptr<scalar_t>(), launch);
  });
  return out;
}

std::tuple<Tensor, Tensor> weighted_gather_backward_cuda(const Tensor& grad, const Tensor& features,
                                                         const Tensor& index, const Tensor& weight,
                                                         bool deterministic) {
  check_weighted(features, index, weight);
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == index.size(0) && grad.size(1) == features.size(1) &&
                      grad.scalar_type() == features.scalar_type(),
                  "grad must be (M, C) and of the features' dtype");
  check_same_device(features, grad, "grad");
  const Launch launch(features);
  const Tensor values = torch::stable::contiguous(grad);
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor positions = torch::stable::contiguous(index);
  const Tensor weights = torch::stable::contiguous(weight);
  const int64_t k = index.size(1);
  Tensor grad_features = torch::stable::new_empty(features, {rows.size(0), rows.size(1)}, features.scalar_type());
  Tensor grad_weight = torch::stable::new_empty(weight, {index.size(0), k}, weight.scalar_type());
  const Tensor flat = torch::stable::view(positions, {positions.numel()});
  dispatch_features(features, "weighted_gather_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* g = values.const_data_ptr<scalar_t>();
    const int64_t* i = positions.const_data_ptr<int64_t>();
    const cuda::Scatter<scalar_t> scatter = {g, rows.size(1), i, positions.numel(), weights.const_data_ptr<scalar_t>(),
                                             k, rows.size(0)};
    scatter_sum(scatter, flat, deterministic, grad_features, launch);
    cuda::weighted_gather_weight_gradient<scalar_t, Accumulator<scalar_t>>(
        g, rows.const_data_ptr<scalar_t>(), rows.size(0), rows.size(1), i, index.size(0), k,
        grad_weight.mutable_data_ptr<scalar_t>(), launch);
  });
  return {grad_features, grad_weight};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("gather", TORCH_BOX(&pc3d::gather_cuda));
  m.impl("gather_backward", TORCH_BOX(&pc3d::gather_backward_cuda));
  m.impl("weighted_gather", TORCH_BOX(&pc3d::weighted_gather_cuda));
  m.impl("weighted_gather_backward", TORCH_BOX(&pc3d::weighted_gather_backward_cuda));
}
