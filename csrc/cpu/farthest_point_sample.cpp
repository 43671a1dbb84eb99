#include "kernels/farthest_point_sample.h"

#include "cpu/binding.h"

namespace pc3d {

Tensor farthest_point_sample_cpu(const Tensor& xyz, const Tensor& offsets, const Tensor& sample_offsets,
                                 int64_t num_total, const Tensor& start, bool ignore_near_origin, int64_t /*largest*/) {
  check_points(xyz, offsets, "xyz");
  const int64_t num_clouds = offsets.size(0) - 1;
  STD_TORCH_CHECK(sample_offsets.scalar_type() == ScalarType::Long && sample_offsets.dim() == 1 &&
                      sample_offsets.size(0) == num_clouds + 1,
                  "sample_offsets must be int64 of shape (B + 1,)");
  STD_TORCH_CHECK(start.scalar_type() == ScalarType::Long && start.dim() == 1 && start.size(0) == num_clouds,
                  "start must be int64 of shape (B,)");
  const Tensor points = torch::stable::contiguous(xyz);
  const Tensor cloud_offsets = torch::stable::contiguous(offsets);
  const Tensor out_offsets = torch::stable::contiguous(sample_offsets);
  const Tensor starts = torch::stable::contiguous(start);
  const int64_t* o = cloud_offsets.const_data_ptr<int64_t>();
  const int64_t* so = out_offsets.const_data_ptr<int64_t>();
  const int64_t* s = starts.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(so[0] == 0 && so[num_clouds] == num_total, "sample_offsets must run from 0 to num_total");
  for (int64_t b = 0; b < num_clouds; ++b) {
    const int64_t wanted = so[b + 1] - so[b];
    STD_TORCH_CHECK(wanted >= 0 && wanted <= o[b + 1] - o[b], "cloud ", b, " has ", o[b + 1] - o[b],
                    " points, not the ", wanted, " samples asked for");
    STD_TORCH_CHECK(wanted == 0 || (s[b] >= 0 && s[b] < o[b + 1] - o[b]), "start[", b, "] lies outside of its cloud");
  }
  Tensor out = torch::stable::new_empty(xyz, {num_total}, ScalarType::Long);
  dispatch_points(xyz, "farthest_point_sample", [&](auto zero) {
    using scalar_t = decltype(zero);
    farthest_point_sample(points.const_data_ptr<scalar_t>(), o, num_clouds, so, s, ignore_near_origin,
                          out.mutable_data_ptr<int64_t>(), ParallelFor());
  });
  return out;
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CPU, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&pc3d::farthest_point_sample_cpu));
}
