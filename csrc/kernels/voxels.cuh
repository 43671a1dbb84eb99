// Voxels on CUDA: the distinct cells of points, and which rows of a set of voxels each tap of a convolution reads.
//
// Cells are sorted by torch's stable sort, twice: by (y, z), then by (cloud, x), each pair one 64-bit integer. That
// serves all of int32's range. A kernel map looks its voxels up in a hash table of rows, which holds no coordinates of
// its own.
#pragma once

#include "kernels/gather.cuh"

namespace pc3d {
namespace cuda {

// Two 32-bit integers as one that is ordered alike.
__device__ __forceinline__ int64_t ordered_pair(int64_t high, int32_t low) {
  return (high << 32) | static_cast<int64_t>(static_cast<uint32_t>(low) ^ 0x80000000u);
}

// floor(value / size), held within int32.
__device__ __forceinline__ int32_t floor_divide(float value, float size) {
  const float q = floorf(__fdiv_rn(value, size));
  return q < 2147483648.0f ? (q > -2147483648.0f ? static_cast<int32_t>(q) : INT32_MIN) : INT32_MAX;
}
__device__ __forceinline__ int32_t floor_divide(double value, double size) {
  const double q = floor(__ddiv_rn(value, size));
  return q < 2147483648.0 ? (q > -2147483648.0 ? static_cast<int32_t>(q) : INT32_MIN) : INT32_MAX;
}
__device__ __forceinline__ int32_t floor_divide(int32_t value, int32_t size) {
  const int32_t q = value / size;
  return q - (value % size < 0 ? 1 : 0);
}

// The cell of every row, and its two sort keys.
template <class T>
__global__ void __launch_bounds__(kGatherThreads)
    find_cells(const T* __restrict__ values, int64_t count, T size, const int64_t* __restrict__ offsets,
               int64_t num_clouds, int32_t* __restrict__ cells, int64_t* __restrict__ low, int64_t* __restrict__ high) {
  for (int64_t n = first_item(); n < count; n += item_stride()) {
    int32_t cell[3];
    for (int a = 0; a < 3; ++a) {
      cell[a] = floor_divide(values[3 * n + a], size);
      cells[3 * n + a] = cell[a];
    }
    low[n] = ordered_pair(cell[1], cell[2]);
    high[n] = ordered_pair(cloud_of_row_device(offsets, num_clouds, n), cell[0]);
  }
}

// out[i] = values[index[i]] of a permutation; `index` comes from torch's sort and is trusted.
__global__ void __launch_bounds__(kGatherThreads)
    permute(const int64_t* __restrict__ values, const int64_t* __restrict__ index, int64_t count,
            int64_t* __restrict__ out) {
  for (int64_t i = first_item(); i < count; i += item_stride()) out[i] = values[index[i]];
}

// 1 where a sorted row begins a new voxel; `high` is sorted too.
__global__ void __launch_bounds__(kGatherThreads)
    mark_begins(const int32_t* __restrict__ cells, const int64_t* __restrict__ high, const int64_t* __restrict__ rows,
                int64_t count, int64_t* __restrict__ begins) {
  for (int64_t i = first_item(); i < count; i += item_stride()) {
    bool begin = i == 0 || high[i] != high[i - 1];
    if (!begin) {
      const int32_t* a = cells + 3 * rows[i];
      const int32_t* b = cells + 3 * rows[i - 1];
      begin = a[1] != b[1] || a[2] != b[2];
    }
    begins[i] = begin ? 1 : 0;
  }
}

// `number` (N) counts the voxels begun so far. Also writes where in the sorted rows each voxel begins.
__global__ void __launch_bounds__(kGatherThreads)
    write_voxels(const int32_t* __restrict__ cells, const int64_t* __restrict__ rows,
                 const int64_t* __restrict__ number, int64_t count, int32_t* __restrict__ coords,
                 int64_t* __restrict__ inverse, int64_t* __restrict__ first, int64_t* __restrict__ begin) {
  for (int64_t i = first_item(); i < count; i += item_stride()) {
    const int64_t voxel = number[i] - 1;
    inverse[rows[i]] = voxel;
    if (i == 0 || number[i - 1] != number[i]) {
      first[voxel] = rows[i];
      begin[voxel] = i;
      for (int a = 0; a < 3; ++a) coords[3 * voxel + a] = cells[3 * rows[i] + a];
    }
  }
}

__global__ void __launch_bounds__(kGatherThreads) count_voxels(const int64_t* __restrict__ begin, int64_t num_voxels,
                                                               int64_t num_points, int64_t* __restrict__ count) {
  for (int64_t v = first_item(); v < num_voxels; v += item_stride()) {
    count[v] = (v + 1 < num_voxels ? begin[v + 1] : num_points) - begin[v];
  }
}

// Voxels ascend by cloud, and so does the cloud of their first rows.
__global__ void __launch_bounds__(kGatherThreads)
    cut_voxels(const int64_t* __restrict__ first, int64_t num_voxels, const int64_t* __restrict__ offsets,
               int64_t num_offsets, int64_t* __restrict__ out) {
  for (int64_t b = first_item(); b < num_offsets; b += item_stride()) {
    int64_t low = 0;
    int64_t high = num_voxels;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (first[middle] < offsets[b]) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    out[b] = low;
  }
}

template <class T>
__global__ void __launch_bounds__(kGatherThreads) fill(T* __restrict__ out, int64_t count, T value) {
  for (int64_t i = first_item(); i < count; i += item_stride()) out[i] = value;
}

struct Cell {
  int64_t cloud;
  int64_t axis[3];
};

__device__ __forceinline__ uint64_t hash_of(const Cell& cell) {
  uint64_t h = static_cast<uint64_t>(cell.cloud);
  for (int a = 0; a < 3; ++a) {
    h = (h ^ static_cast<uint64_t>(cell.axis[a])) * 0x9e3779b97f4a7c15ull;
    h ^= h >> 29;
  }
  return h;
}

__device__ __forceinline__ bool is_row(const Cell& cell, int64_t row, const int32_t* coords, const int64_t* offsets,
                                       int64_t num_clouds) {
  const int32_t* v = coords + 3 * row;
  return v[0] == cell.axis[0] && v[1] == cell.axis[1] && v[2] == cell.axis[2] &&
         cloud_of_row_device(offsets, num_clouds, row) == cell.cloud;
}

// `table` holds rows or -1 in 2^k > N slots; of equal voxels the lowest row stays.
__global__ void __launch_bounds__(kGatherThreads)
    insert_voxels(const int32_t* __restrict__ coords, int64_t count, const int64_t* __restrict__ offsets,
                  int64_t num_clouds, int32_t* table, int64_t table_mask) {
  for (int64_t n = first_item(); n < count; n += item_stride()) {
    const Cell cell = {cloud_of_row_device(offsets, num_clouds, n),
                       {coords[3 * n], coords[3 * n + 1], coords[3 * n + 2]}};
    for (uint64_t slot = hash_of(cell);; ++slot) {
      int32_t* place = table + static_cast<int64_t>(slot & static_cast<uint64_t>(table_mask));
      const int32_t found = atomicCAS(place, -1, static_cast<int32_t>(n));
      if (found < 0) break;
      if (is_row(cell, found, coords, offsets, num_clouds)) {
        atomicMin(place, static_cast<int32_t>(n));
        break;
      }
    }
  }
}

struct MapTaps {
  int64_t size;
  int64_t stride;
  int64_t low;
};

// neighbors (M, K^3), one thread an entry; `reverse` (N, K^3) is filled with -1 before.
__global__ void __launch_bounds__(kGatherThreads)
    find_neighbors(const int32_t* __restrict__ coords, const int64_t* __restrict__ offsets, int64_t num_clouds,
                   const int32_t* __restrict__ table, int64_t table_mask, const int32_t* __restrict__ out_coords,
                   int64_t num_out, const int64_t* __restrict__ out_offsets, MapTaps taps,
                   int32_t* __restrict__ neighbors, int32_t* __restrict__ reverse) {
  const int64_t count = taps.size * taps.size * taps.size;
  for (int64_t item = first_item(); item < num_out * count; item += item_stride()) {
    const Place p = place_of(item, count);
    const int64_t tap[3] = {p.column / (taps.size * taps.size), p.column / taps.size % taps.size, p.column % taps.size};
    Cell cell;
    cell.cloud = cloud_of_row_device(out_offsets, num_clouds, p.row);
    for (int a = 0; a < 3; ++a) cell.axis[a] = taps.stride * out_coords[3 * p.row + a] + taps.low + tap[a];
    int32_t found = -1;
    for (uint64_t slot = hash_of(cell);; ++slot) {
      const int32_t row = table[static_cast<int64_t>(slot & static_cast<uint64_t>(table_mask))];
      if (row < 0) break;
      if (is_row(cell, row, coords, offsets, num_clouds)) {
        found = row;
        break;
      }
    }
    neighbors[item] = found;
    if (found >= 0) reverse[found * count + p.column] = static_cast<int32_t>(p.row);
  }
}

template <class T, class Launch>
void fill_with(T* out, int64_t count, T value, const Launch& launch) {
  if (count > 0) launch(fill<T>, gather_blocks(count), kGatherThreads, out, count, value);
}

}  // namespace cuda
}  // namespace pc3d
