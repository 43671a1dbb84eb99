#include "kernels/segments.cuh"

#include "cuda/binding.cuh"
#include "cuda/scatter.cuh"

namespace pc3d {

static void check_index(const Tensor& rows, const Tensor& index) {
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long, "index must be int64");
  check_same_device(rows, index, "index");
}

template <class T>
static void launch_rows(const Tensor& rows, const Tensor& index, Tensor& out, Tensor& source, const Launch& launch) {
  if (out.numel() == 0) return;
  launch(cuda::largest_of_rows<T, Accumulator<T>>, cuda::gather_blocks(out.numel()), cuda::kGatherThreads,
         rows.const_data_ptr<T>(), rows.size(0), rows.size(1), index.const_data_ptr<int64_t>(), index.size(0),
         index.size(1), out.mutable_data_ptr<T>(), source.mutable_data_ptr<int64_t>());
}

std::tuple<Tensor, Tensor> gather_max_cuda(const Tensor& features, const Tensor& index) {
  STD_TORCH_CHECK(features.dim() == 2 && index.dim() == 2, "features must be (N, C) and index (M, k)");
  check_index(features, index);
  const Launch launch(features);
  const Tensor rows = torch::stable::contiguous(features);
  const Tensor positions = torch::stable::contiguous(index);
  Tensor out = torch::stable::new_empty(features, {index.size(0), features.size(1)}, features.scalar_type());
  Tensor source = torch::stable::new_empty(features, {index.size(0), features.size(1)}, ScalarType::Long);
  dispatch_features(features, "gather_max",
                    [&](auto zero) { launch_rows<decltype(zero)>(rows, positions, out, source, launch); });
  return {out, source};
}

template <class T>
static void launch_segments(const Tensor& values, const Tensor& segment, const Tensor& position, Tensor& out,
                            Tensor& source, const Launch& launch) {
  if (out.numel() == 0) return;
  launch(cuda::largest_of_segment<T, Accumulator<T>>, cuda::gather_blocks(out.numel()), cuda::kGatherThreads,
         values.const_data_ptr<T>(), values.size(1), segment.const_data_ptr<int64_t>(),
         position.const_data_ptr<int64_t>(), segment.size(0), out.size(0), out.mutable_data_ptr<T>(),
         source.mutable_data_ptr<int64_t>());
}

std::tuple<Tensor, Tensor> segment_max_cuda(const Tensor& values, const Tensor& index, int64_t num_segments) {
  STD_TORCH_CHECK(values.dim() == 2 && index.dim() == 1 && index.size(0) == values.size(0),
                  "values must be (N, C) and index (N,)");
  STD_TORCH_CHECK(num_segments >= 0, "num_segments must not be negative");
  check_index(values, index);
  const Launch launch(values);
  const Tensor rows = torch::stable::contiguous(values);
  const auto [segment, position] = sort_index(torch::stable::contiguous(index));
  Tensor out = torch::stable::new_empty(values, {num_segments, values.size(1)}, values.scalar_type());
  Tensor source = torch::stable::new_empty(values, {num_segments, values.size(1)}, ScalarType::Long);
  const Tensor& segments = segment;  // a lambda cannot capture a structured binding
  const Tensor& positions = position;
  dispatch_features(values, "segment_max", [&](auto zero) {
    launch_segments<decltype(zero)>(rows, segments, positions, out, source, launch);
  });
  return {out, source};
}

// The element of `out` that each gradient goes to is an index like any other.
Tensor max_gradient_cuda(const Tensor& grad, const Tensor& source, int64_t num_rows, bool deterministic) {
  STD_TORCH_CHECK(
      grad.dim() == 2 && source.dim() == 2 && grad.size(0) == source.size(0) && grad.size(1) == source.size(1),
      "grad and source must be (M, C)");
  STD_TORCH_CHECK(num_rows >= 0, "num_rows must not be negative");
  check_index(grad, source);
  const Launch launch(grad);
  const Tensor values = torch::stable::contiguous(grad);
  const Tensor positions = torch::stable::contiguous(source);
  const int64_t channels = grad.size(1);
  Tensor elements = torch::stable::new_empty(positions, {positions.numel()}, ScalarType::Long);
  if (elements.numel() > 0) {
    launch(cuda::elements_of_sources, cuda::gather_blocks(elements.numel()), cuda::kGatherThreads,
           positions.const_data_ptr<int64_t>(), grad.size(0), channels, num_rows, elements.mutable_data_ptr<int64_t>());
  }
  Tensor flat = torch::stable::new_empty(grad, {num_rows * channels, 1}, grad.scalar_type());
  dispatch_features(grad, "max_gradient", [&](auto zero) {
    using scalar_t = decltype(zero);
    const cuda::Scatter<scalar_t> scatter = {values.const_data_ptr<scalar_t>(),
                                             1,
                                             elements.const_data_ptr<int64_t>(),
                                             elements.numel(),
                                             nullptr,
                                             1,
                                             num_rows * channels};
    scatter_sum(scatter, elements, deterministic, flat, launch);
  });
  return torch::stable::view(flat, {num_rows, channels});
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("gather_max", TORCH_BOX(&pc3d::gather_max_cuda));
  m.impl("segment_max", TORCH_BOX(&pc3d::segment_max_cuda));
  m.impl("max_gradient", TORCH_BOX(&pc3d::max_gradient_cuda));
}
