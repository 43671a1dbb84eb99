#include "kernels/gather.h"

#include "cpu/binding.h"

namespace pc3d {

Tensor gather_cpu(const Tensor& features, const Tensor& index) {
  STD_TORCH_CHECK(features.dim() == 2 && index.dim() == 1, "features must be (N, C) and index (M,)");
  check_index(index, features.size(0));
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor positions = torch::stable::contiguous(index);
  Tensor out = torch::stable::new_empty(features, {index.size(0), features.size(1)}, features.scalar_type());
  dispatch_features(features, "gather", [&](auto zero) {
    using scalar_t = decltype(zero);
    gather(rows.const_data_ptr<scalar_t>(), rows.size(1), positions.const_data_ptr<int64_t>(), positions.size(0),
           out.mutable_data_ptr<scalar_t>(), ParallelFor());
  });
  return out;
}

// The sums always run in one order here, whatever `deterministic` asks for; it is the CUDA kernels that have a choice.
Tensor gather_backward_cpu(const Tensor& grad, const Tensor& index, int64_t num_rows, bool /*deterministic*/) {
  STD_TORCH_CHECK(grad.dim() == 2 && index.dim() == 1 && grad.size(0) == index.size(0),
                  "grad must be (M, C) and index (M,)");
  check_index(index, num_rows);
  const Tensor values = torch::stable::contiguous(grad);
  const Tensor positions = torch::stable::contiguous(index);
  Tensor out = torch::stable::new_empty(grad, {num_rows, grad.size(1)}, grad.scalar_type());
  dispatch_features(grad, "gather_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* no_weight = nullptr;
    scatter_sum<scalar_t, Accumulator<scalar_t>>(values.const_data_ptr<scalar_t>(), values.size(1),
                                                 positions.const_data_ptr<int64_t>(), positions.size(0), 1, no_weight,
                                                 num_rows, out.mutable_data_ptr<scalar_t>(), ParallelFor());
  });
  return out;
}

static void check_weighted(const Tensor& features, const Tensor& index, const Tensor& weight) {
  STD_TORCH_CHECK(features.dim() == 2 && index.dim() == 2 && weight.dim() == 2 && index.size(0) == weight.size(0) &&
                      index.size(1) == weight.size(1),
                  "features must be (N, C), index and weight (M, k)");
  STD_TORCH_CHECK(features.scalar_type() == weight.scalar_type(), "features and weight must have one dtype");
  check_index(index, features.size(0));
}

Tensor weighted_gather_cpu(const Tensor& features, const Tensor& index, const Tensor& weight) {
  check_weighted(features, index, weight);
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor positions = torch::stable::contiguous(index);
  const Tensor weights = torch::stable::contiguous(weight);
  Tensor out = torch::stable::new_empty(features, {index.size(0), features.size(1)}, features.scalar_type());
  dispatch_features(features, "weighted_gather", [&](auto zero) {
    using scalar_t = decltype(zero);
    weighted_gather<scalar_t, Accumulator<scalar_t>>(
        rows.const_data_ptr<scalar_t>(), rows.size(1), positions.const_data_ptr<int64_t>(),
        weights.const_data_ptr<scalar_t>(), positions.size(0), positions.size(1), out.mutable_data_ptr<scalar_t>(),
        ParallelFor());
  });
  return out;
}

std::tuple<Tensor, Tensor> weighted_gather_backward_cpu(const Tensor& grad, const Tensor& features, const Tensor& index,
                                                        const Tensor& weight, bool /*deterministic*/) {
  check_weighted(features, index, weight);
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == index.size(0) && grad.size(1) == features.size(1) &&
                      grad.scalar_type() == features.scalar_type(),
                  "grad must be (M, C) and of the features' dtype");
  const Tensor values = torch::stable::contiguous(grad);
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor positions = torch::stable::contiguous(index);
  const Tensor weights = torch::stable::contiguous(weight);
  const int64_t k = index.size(1);
  Tensor grad_features = torch::stable::new_empty(features, {rows.size(0), rows.size(1)}, features.scalar_type());
  Tensor grad_weight = torch::stable::new_empty(weight, {index.size(0), k}, weight.scalar_type());
  dispatch_features(features, "weighted_gather_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    scatter_sum<scalar_t, Accumulator<scalar_t>>(
        values.const_data_ptr<scalar_t>(), values.size(1), positions.const_data_ptr<int64_t>(), positions.size(0), k,
        weights.const_data_ptr<scalar_t>(), rows.size(0), grad_features.mutable_data_ptr<scalar_t>(), ParallelFor());
    weighted_gather_weight_gradient<scalar_t, Accumulator<scalar_t>>(
        values.const_data_ptr<scalar_t>(), rows.const_data_ptr<scalar_t>(), rows.size(1),
        positions.const_data_ptr<int64_t>(), positions.size(0), k, grad_weight.mutable_data_ptr<scalar_t>(),
        ParallelFor());
  });
  return {grad_features, grad_weight};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CPU, m) {
  m.impl("gather", TORCH_BOX(&pc3d::gather_cpu));
  m.impl("gather_backward", TORCH_BOX(&pc3d::gather_backward_cpu));
  m.impl("weighted_gather", TORCH_BOX(&pc3d::weighted_gather_cpu));
  m.impl("weighted_gather_backward", TORCH_BOX(&pc3d::weighted_gather_backward_cpu));
}
