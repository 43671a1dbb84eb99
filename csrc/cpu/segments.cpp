#include "kernels/segments.h"

#include "cpu/binding.h"

namespace pc3d {

std::tuple<Tensor, Tensor> gather_max_cpu(const Tensor& features, const Tensor& index) {
  STD_TORCH_CHECK(features.dim() == 2 && index.dim() == 2, "features must be (N, C) and index (M, k)");
  STD_TORCH_CHECK(index.size(1) < (int64_t{1} << 31), "index must have fewer than 2^31 columns");
  check_index(index, features.size(0));
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor positions = torch::stable::contiguous(index);
  Tensor out = torch::stable::new_empty(features, {index.size(0), features.size(1)}, features.scalar_type());
  Tensor source = torch::stable::new_empty(features, {index.size(0), features.size(1)}, ScalarType::Long);
  dispatch_features(features, "gather_max", [&](auto zero) {
    using scalar_t = decltype(zero);
    gather_max<scalar_t, Accumulator<scalar_t>>(
        rows.const_data_ptr<scalar_t>(), rows.size(1), positions.const_data_ptr<int64_t>(), index.size(0),
        index.size(1), out.mutable_data_ptr<scalar_t>(), source.mutable_data_ptr<int64_t>(), ParallelFor());
  });
  return {out, source};
}

std::tuple<Tensor, Tensor> segment_max_cpu(const Tensor& values, const Tensor& index, int64_t num_segments) {
  STD_TORCH_CHECK(values.dim() == 2 && index.dim() == 1 && index.size(0) == values.size(0),
                  "values must be (N, C) and index (N,)");
  STD_TORCH_CHECK(num_segments >= 0, "num_segments must not be negative");
  check_index(index, num_segments);
  const Tensor rows = torch::stable::contiguous(values);
  const Tensor positions = torch::stable::contiguous(index);
  Tensor out = torch::stable::new_empty(values, {num_segments, values.size(1)}, values.scalar_type());
  Tensor source = torch::stable::new_empty(values, {num_segments, values.size(1)}, ScalarType::Long);
  dispatch_features(values, "segment_max", [&](auto zero) {
    using scalar_t = decltype(zero);
    segment_max<scalar_t, Accumulator<scalar_t>>(
        rows.const_data_ptr<scalar_t>(), rows.size(1), positions.const_data_ptr<int64_t>(), index.size(0), num_segments,
        out.mutable_data_ptr<scalar_t>(), source.mutable_data_ptr<int64_t>(), ParallelFor());
  });
  return {out, source};
}

// The sums always run in one order here, whatever `deterministic` asks for; it is the CUDA kernels that have a choice.
Tensor max_gradient_cpu(const Tensor& grad, const Tensor& source, int64_t num_rows, bool /*deterministic*/) {
  STD_TORCH_CHECK(
      grad.dim() == 2 && source.dim() == 2 && grad.size(0) == source.size(0) && grad.size(1) == source.size(1),
      "grad and source must be (M, C)");
  STD_TORCH_CHECK(num_rows >= 0, "num_rows must not be negative");
  check_index(source, num_rows);
  const Tensor values = torch::stable::contiguous(grad);
  const Tensor positions = torch::stable::contiguous(source);
  Tensor out = torch::stable::new_empty(grad, {num_rows, grad.size(1)}, grad.scalar_type());
  dispatch_features(grad, "max_gradient", [&](auto zero) {
    using scalar_t = decltype(zero);
    max_gradient<scalar_t, Accumulator<scalar_t>>(values.const_data_ptr<scalar_t>(),
                                                  positions.const_data_ptr<int64_t>(), grad.size(0), grad.size(1),
                                                  num_rows, out.mutable_data_ptr<scalar_t>(), ParallelFor());
  });
  return out;
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CPU, m) {
  m.impl("gather_max", TORCH_BOX(&pc3d::gather_max_cpu));
  m.impl("segment_max", TORCH_BOX(&pc3d::segment_max_cpu));
  m.impl("max_gradient", TORCH_BOX(&pc3d::max_gradient_cpu));
}
