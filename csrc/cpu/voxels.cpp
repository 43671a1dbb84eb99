#include "kernels/voxels.h"

#include "cpu/binding.h"
#include "kernels/kernel_map.h"

namespace pc3d {

using Voxels = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

static Voxels write_voxels(const DistinctCells& cells, const Tensor& offsets, int64_t num_points) {
  const auto rows = [&](int64_t n) { return torch::stable::new_empty(offsets, {n}, ScalarType::Long); };
  Tensor coords = torch::stable::new_empty(offsets, {cells.size(), 3}, ScalarType::Int);
  Tensor cuts = rows(offsets.size(0));
  Tensor inverse = rows(num_points);
  Tensor first = rows(cells.size());
  Tensor count = rows(cells.size());
  cells.write(coords.mutable_data_ptr<int32_t>(), cuts.mutable_data_ptr<int64_t>(), inverse.mutable_data_ptr<int64_t>(),
              first.mutable_data_ptr<int64_t>(), count.mutable_data_ptr<int64_t>(), ParallelFor());
  return {coords, cuts, inverse, first, count};
}

Voxels voxelize_cpu(const Tensor& xyz, const Tensor& offsets, double voxel_size) {
  check_points(xyz, offsets, "xyz");
  STD_TORCH_CHECK(xyz.size(0) < std::numeric_limits<int32_t>::max(), "xyz must have fewer than 2^31 - 1 rows");
  const Tensor points = torch::stable::contiguous(xyz);
  const Tensor cuts = torch::stable::contiguous(offsets);
  Voxels voxels;
  dispatch_points(xyz, "voxelize", [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto cells = distinct_cells(points.const_data_ptr<scalar_t>(), xyz.size(0), static_cast<scalar_t>(voxel_size),
                                      cuts.const_data_ptr<int64_t>(), cuts.size(0) - 1, ParallelFor());
    voxels = write_voxels(cells, cuts, xyz.size(0));
  });
  return voxels;
}

static void check_coords(const Tensor& coords, const Tensor& offsets, const char* name) {
  check_points(coords, offsets, name);
  STD_TORCH_CHECK(coords.scalar_type() == ScalarType::Int, name, " must be int32");
  STD_TORCH_CHECK(coords.size(0) < std::numeric_limits<int32_t>::max(), name, " must have fewer than 2^31 - 1 rows");
}

Voxels unique_voxels_cpu(const Tensor& coords, const Tensor& offsets, int64_t factor) {
  check_coords(coords, offsets, "coords");
  STD_TORCH_CHECK(factor >= 1 && factor <= std::numeric_limits<int32_t>::max(), "factor must be a positive int32");
  const Tensor values = torch::stable::contiguous(coords);
  const Tensor cuts = torch::stable::contiguous(offsets);
  const auto cells = distinct_cells(values.const_data_ptr<int32_t>(), coords.size(0), static_cast<int32_t>(factor),
                                    cuts.const_data_ptr<int64_t>(), cuts.size(0) - 1, ParallelFor());
  return write_voxels(cells, cuts, coords.size(0));
}

std::tuple<Tensor, Tensor> kernel_map_cpu(const Tensor& coords, const Tensor& offsets, const Tensor& out_coords,
                                          const Tensor& out_offsets, int64_t kernel_size, int64_t stride, int64_t low) {
  check_coords(coords, offsets, "coords");
  check_coords(out_coords, out_offsets, "out_coords");
  STD_TORCH_CHECK(offsets.size(0) == out_offsets.size(0), "coords and out_coords must hold the same number of clouds");
  STD_TORCH_CHECK(
      kernel_size >= 1 && kernel_size < 1024 && stride >= 1 && stride < (int64_t{1} << 31) && low > -1024 && low < 1024,
      "kernel_size and stride must be positive, kernel_size and low below 1024");
  const Tensor values = torch::stable::contiguous(coords);
  const Tensor out_values = torch::stable::contiguous(out_coords);
  const Tensor cuts = torch::stable::contiguous(offsets);
  const Tensor out_cuts = torch::stable::contiguous(out_offsets);
  const Taps taps = {kernel_size, stride, low};
  Tensor neighbors = torch::stable::new_empty(values, {out_coords.size(0), taps.count()}, ScalarType::Int);
  Tensor reverse = torch::stable::new_empty(values, {coords.size(0), taps.count()}, ScalarType::Int);
  const VoxelSet in = {values.const_data_ptr<int32_t>(), cuts.const_data_ptr<int64_t>(), cuts.size(0) - 1};
  const VoxelSet out = {out_values.const_data_ptr<int32_t>(), out_cuts.const_data_ptr<int64_t>(), cuts.size(0) - 1};
  kernel_map(in, out, taps, neighbors.mutable_data_ptr<int32_t>(), reverse.mutable_data_ptr<int32_t>(), ParallelFor());
  return {neighbors, reverse};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CPU, m) {
  m.impl("voxelize", TORCH_BOX(&pc3d::voxelize_cpu));
  m.impl("unique_voxels", TORCH_BOX(&pc3d::unique_voxels_cpu));
  m.impl("kernel_map", TORCH_BOX(&pc3d::kernel_map_cpu));
}
