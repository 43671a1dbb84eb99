#include "kernels/voxels.cuh"

#include "cuda/binding.cuh"
#include "cuda/scatter.cuh"

namespace pc3d {

using Voxels = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

static Tensor new_rows(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, ScalarType::Long);
}

static void launch_permute(const Tensor& values, const Tensor& index, Tensor& out, const Launch& launch) {
  launch(cuda::permute, cuda::gather_blocks(values.size(0)), cuda::kGatherThreads, values.const_data_ptr<int64_t>(),
         index.const_data_ptr<int64_t>(), values.size(0), out.mutable_data_ptr<int64_t>());
}

// The rows of points in the order of their cells, and 1 where a new one begins.
struct SortedRows {
  Tensor rows;
  Tensor begins;
};

template <class Key>
static SortedRows sort_by_number(const Tensor& cells, const cuda::Box& box, const Tensor& offsets, Tensor begins,
                                 const Launch& launch) {
  const int64_t count = cells.size(0);
  const int64_t blocks = cuda::gather_blocks(count);
  Tensor keys = torch::stable::new_empty(offsets, {count}, sizeof(Key) == 4 ? ScalarType::Int : ScalarType::Long);
  launch(cuda::number_cells<Key>, blocks, cuda::kGatherThreads, cells.const_data_ptr<int32_t>(), count,
         offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, box, keys.mutable_data_ptr<Key>());
  const auto [sorted, rows] = sort_index(keys);
  launch(cuda::mark_changes<Key>, blocks, cuda::kGatherThreads, sorted.const_data_ptr<Key>(), count,
         begins.mutable_data_ptr<int64_t>());
  return {rows, begins};
}

static SortedRows sort_by_pairs(const Tensor& cells, const Tensor& offsets, Tensor begins, const Launch& launch) {
  const int64_t count = cells.size(0);
  const int64_t blocks = cuda::gather_blocks(count);
  Tensor low = new_rows(offsets, count);
  Tensor high = new_rows(offsets, count);
  launch(cuda::pair_cells, blocks, cuda::kGatherThreads, cells.const_data_ptr<int32_t>(), count,
         offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, low.mutable_data_ptr<int64_t>(),
         high.mutable_data_ptr<int64_t>());
  const auto [_low, by_low] = sort_index(low);
  Tensor rearranged = new_rows(offsets, count);
  launch_permute(high, by_low, rearranged, launch);
  const auto [sorted_high, by_high] = sort_index(rearranged);
  Tensor rows = new_rows(offsets, count);
  launch_permute(by_low, by_high, rows, launch);
  launch(cuda::mark_begins, blocks, cuda::kGatherThreads, cells.const_data_ptr<int32_t>(),
         sorted_high.const_data_ptr<int64_t>(), rows.const_data_ptr<int64_t>(), count,
         begins.mutable_data_ptr<int64_t>());
  return {rows, begins};
}

template <class T>
static Voxels voxels_of(const Tensor& values, T size, const Tensor& offsets, const Launch& launch) {
  const int64_t count = values.size(0);
  Tensor cuts = new_rows(offsets, offsets.size(0));
  if (count == 0) {
    torch::stable::zero_(cuts);
    const auto none = [&] { return new_rows(offsets, 0); };
    return {torch::stable::new_empty(offsets, {0, 3}, ScalarType::Int), cuts, none(), none(), none()};
  }
  const int64_t num_clouds = offsets.size(0) - 1;
  const int64_t blocks = cuda::gather_blocks(count);
  Tensor cells = torch::stable::new_empty(offsets, {count, 3}, ScalarType::Int);
  Tensor bounds = torch::stable::new_empty(offsets, {6}, ScalarType::Int);
  cuda::fill_with(bounds.mutable_data_ptr<int32_t>(), 6, int32_t{-1}, launch);
  launch(cuda::find_cells<T>, blocks < cuda::kExtentBlocks ? blocks : cuda::kExtentBlocks, cuda::kGatherThreads,
         values.const_data_ptr<T>(), count, size, cells.mutable_data_ptr<int32_t>(),
         reinterpret_cast<uint32_t*>(bounds.mutable_data_ptr<int32_t>()));
  // What does not depend on what is read is asked for before the wait.
  Tensor begins = new_rows(offsets, count);
  Tensor inverse = new_rows(offsets, count);
  uint32_t extent[6];
  launch.read(reinterpret_cast<const uint32_t*>(bounds.const_data_ptr<int32_t>()), extent);
  const cuda::Box box = cuda::box_of(extent);
  const SortedRows sorted =
      cuda::fits<int32_t>(box, num_clouds)   ? sort_by_number<int32_t>(cells, box, offsets, begins, launch)
      : cuda::fits<int64_t>(box, num_clouds) ? sort_by_number<int64_t>(cells, box, offsets, begins, launch)
                                             : sort_by_pairs(cells, offsets, begins, launch);
  const Tensor number = cumulative_sum(sorted.begins);
  const int64_t num_voxels = launch.read(number.const_data_ptr<int64_t>() + count - 1);

  Tensor coords = torch::stable::new_empty(offsets, {num_voxels, 3}, ScalarType::Int);
  Tensor first = new_rows(offsets, num_voxels);
  Tensor begin = new_rows(offsets, num_voxels);
  Tensor held = new_rows(offsets, num_voxels);
  launch(cuda::write_voxels, blocks, cuda::kGatherThreads, cells.const_data_ptr<int32_t>(),
         sorted.rows.const_data_ptr<int64_t>(), number.const_data_ptr<int64_t>(), count,
         coords.mutable_data_ptr<int32_t>(), inverse.mutable_data_ptr<int64_t>(), first.mutable_data_ptr<int64_t>(),
         begin.mutable_data_ptr<int64_t>());
  launch(cuda::count_voxels, cuda::gather_blocks(num_voxels + offsets.size(0)), cuda::kGatherThreads,
         begin.const_data_ptr<int64_t>(), first.const_data_ptr<int64_t>(), num_voxels, count,
         offsets.const_data_ptr<int64_t>(), offsets.size(0), held.mutable_data_ptr<int64_t>(),
         cuts.mutable_data_ptr<int64_t>());
  return {coords, cuts, inverse, first, held};
}

Voxels voxelize_cuda(const Tensor& xyz, const Tensor& offsets, double voxel_size) {
  check_points(xyz, offsets, "xyz");
  const Launch launch(xyz);
  const Tensor points = torch::stable::contiguous(xyz);
  const Tensor cuts = torch::stable::contiguous(offsets);
  Voxels voxels;
  dispatch_points(xyz, "voxelize", [&](auto zero) {
    using scalar_t = decltype(zero);
    voxels = voxels_of<scalar_t>(points, static_cast<scalar_t>(voxel_size), cuts, launch);
  });
  return voxels;
}

static void check_coords(const Tensor& coords, const Tensor& offsets, const char* name) {
  check_points(coords, offsets, name);
  STD_TORCH_CHECK(coords.scalar_type() == ScalarType::Int, name, " must be int32");
  STD_TORCH_CHECK(coords.size(0) < std::numeric_limits<int32_t>::max(), name, " must have fewer than 2^31 - 1 rows");
}

Voxels unique_voxels_cuda(const Tensor& coords, const Tensor& offsets, int64_t factor) {
  check_coords(coords, offsets, "coords");
  STD_TORCH_CHECK(factor >= 1 && factor <= std::numeric_limits<int32_t>::max(), "factor must be a positive int32");
  const Launch launch(coords);
  return voxels_of<int32_t>(torch::stable::contiguous(coords), static_cast<int32_t>(factor),
                            torch::stable::contiguous(offsets), launch);
}

std::tuple<Tensor, Tensor> kernel_map_cuda(const Tensor& coords, const Tensor& offsets, const Tensor& out_coords,
                                           const Tensor& out_offsets, int64_t kernel_size, int64_t stride,
                                           int64_t low) {
  check_coords(coords, offsets, "coords");
  check_coords(out_coords, out_offsets, "out_coords");
  check_same_device(coords, out_coords, "out_coords");
  STD_TORCH_CHECK(offsets.size(0) == out_offsets.size(0), "coords and out_coords must hold the same number of clouds");
  STD_TORCH_CHECK(
      kernel_size >= 1 && kernel_size < 1024 && stride >= 1 && stride < (int64_t{1} << 31) && low > -1024 && low < 1024,
      "kernel_size and stride must be positive, kernel_size and low below 1024");
  const Launch launch(coords);
  const Tensor values = torch::stable::contiguous(coords);
  const Tensor out_values = torch::stable::contiguous(out_coords);
  const Tensor cuts = torch::stable::contiguous(offsets);
  const Tensor out_cuts = torch::stable::contiguous(out_offsets);
  const int64_t count = coords.size(0);
  const int64_t num_out = out_coords.size(0);
  const int64_t taps = kernel_size * kernel_size * kernel_size;
  Tensor neighbors = torch::stable::new_empty(values, {num_out, taps}, ScalarType::Int);
  Tensor reverse = torch::stable::new_empty(values, {count, taps}, ScalarType::Int);
  cuda::fill_with(reverse.mutable_data_ptr<int32_t>(), count * taps, int32_t{-1}, launch);
  if (num_out == 0) return {neighbors, reverse};
  int64_t slots = 2;
  while (slots < 2 * count) slots *= 2;
  Tensor table = torch::stable::new_empty(values, {slots}, ScalarType::Int);
  cuda::fill_with(table.mutable_data_ptr<int32_t>(), slots, int32_t{-1}, launch);
  if (count > 0) {
    launch(cuda::insert_voxels, cuda::gather_blocks(count), cuda::kGatherThreads, values.const_data_ptr<int32_t>(),
           count, cuts.const_data_ptr<int64_t>(), cuts.size(0) - 1, table.mutable_data_ptr<int32_t>(), slots - 1);
  }
  launch(cuda::find_neighbors, cuda::gather_blocks(num_out * taps), cuda::kGatherThreads,
         values.const_data_ptr<int32_t>(), cuts.const_data_ptr<int64_t>(), cuts.size(0) - 1,
         table.const_data_ptr<int32_t>(), slots - 1, out_values.const_data_ptr<int32_t>(), num_out,
         out_cuts.const_data_ptr<int64_t>(), cuda::MapTaps{kernel_size, stride, low},
         neighbors.mutable_data_ptr<int32_t>(), reverse.mutable_data_ptr<int32_t>());
  return {neighbors, reverse};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("voxelize", TORCH_BOX(&pc3d::voxelize_cuda));
  m.impl("unique_voxels", TORCH_BOX(&pc3d::unique_voxels_cuda));
  m.impl("kernel_map", TORCH_BOX(&pc3d::kernel_map_cuda));
}
