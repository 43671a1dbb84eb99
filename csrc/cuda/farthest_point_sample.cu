#include "kernels/farthest_point_sample.cuh"

#include "cuda/binding.cuh"

namespace pc3d {

Tensor farthest_point_sample_cuda(const Tensor& xyz, const Tensor& offsets, const Tensor& sample_offsets,
                                  int64_t num_total, const Tensor& start, bool ignore_near_origin, int64_t largest) {
  check_points(xyz, offsets, "xyz");
  const int64_t num_clouds = offsets.size(0) - 1;
  const int64_t num_rows = xyz.size(0);
  STD_TORCH_CHECK(sample_offsets.scalar_type() == ScalarType::Long && sample_offsets.dim() == 1 &&
                      sample_offsets.size(0) == num_clouds + 1,
                  "sample_offsets must be int64 of shape (B + 1,)");
  STD_TORCH_CHECK(start.scalar_type() == ScalarType::Long && start.dim() == 1 && start.size(0) == num_clouds,
                  "start must be int64 of shape (B,)");
  STD_TORCH_CHECK(num_total >= 0 && num_total < std::numeric_limits<uint32_t>::max(),
                  "num_total must lie in [0, 2^32 - 1)");
  check_same_device(xyz, sample_offsets, "sample_offsets");
  check_same_device(xyz, start, "start");
  if (largest < 0 || largest > num_rows) largest = num_rows;
  const Launch launch(xyz);
  const Tensor points = torch::stable::contiguous(xyz);
  const Tensor cloud_offsets = torch::stable::contiguous(offsets);
  const Tensor out_offsets = torch::stable::contiguous(sample_offsets);
  const Tensor starts = torch::stable::contiguous(start);
  Tensor out = torch::stable::new_empty(xyz, {num_total}, ScalarType::Long);
  dispatch_points(xyz, "farthest_point_sample", [&](auto zero) {
    using scalar_t = decltype(zero);
    cuda::GroupPlan plan = {1, 1};
    Tensor board_memory;
    Tensor nearest_memory;
    unsigned long long* board = nullptr;
    scalar_t* nearest = nullptr;
    if (cuda::may_be_large<scalar_t>(largest)) {
      const auto kernel = cuda::sample_large_clouds<scalar_t, cuda::kMediumThreads>;
      plan = cuda::plan_groups<scalar_t>(num_rows, largest, num_clouds,
                                         launch.resident_blocks(kernel, cuda::kMediumThreads));
      board_memory = torch::stable::new_empty(xyz, {cuda::board_words<scalar_t>(plan)}, ScalarType::Long);
      torch::stable::zero_(board_memory);
      board = reinterpret_cast<unsigned long long*>(board_memory.mutable_data_ptr<int64_t>());
      nearest_memory = torch::stable::new_empty(xyz, {num_rows}, xyz.scalar_type());
      nearest = nearest_memory.mutable_data_ptr<scalar_t>();
    }
    cuda::farthest_point_sample(points.const_data_ptr<scalar_t>(), num_rows, cloud_offsets.const_data_ptr<int64_t>(),
                                num_clouds, largest, out_offsets.const_data_ptr<int64_t>(), num_total,
                                starts.const_data_ptr<int64_t>(), ignore_near_origin, plan, board, nearest,
                                out.mutable_data_ptr<int64_t>(), launch);
  });
  return out;
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&pc3d::farthest_point_sample_cuda));
}
