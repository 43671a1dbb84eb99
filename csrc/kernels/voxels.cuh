// Voxels on CUDA: the distinct cells of points, and which rows of a set of voxels each tap of a convolution reads.
//
// Cells are sorted by torch's stable sort: once, by their places in the box around all of them, where those can be
// counted in 32 or 64 bits; otherwise twice, by (y, z), then by (cloud, x), each pair one 64-bit integer, which serves
// all of int32's range. A kernel map looks its voxels up in a hash table of rows, which holds no coordinates of its
// own.
#pragma once

#include <initializer_list>
#include <limits>

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

// Six numbers that are largest (all bits set) before anything is known: of each axis the lowest cell, and the highest
// one with its bits turned, so that the least of all counts there too; both ordered as numbers without a sign are.
struct Extent {
  uint32_t bound[6];
};
constexpr int kExtentBlocks = 512;  // few, as each ends at the same six numbers

__device__ __forceinline__ uint32_t ordered(int32_t value) { return static_cast<uint32_t>(value) ^ 0x80000000u; }

// The cell of every row, and their extent.
template <class T>
__global__ void __launch_bounds__(kGatherThreads)
    find_cells(const T* __restrict__ values, int64_t count, T size, int32_t* __restrict__ cells, uint32_t* extent) {
  __shared__ Extent of_block;
  if (threadIdx.x < 6) of_block.bound[threadIdx.x] = 0xffffffffu;
  __syncthreads();
  Extent own = {{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}};
  for (int64_t n = first_item(); n < count; n += item_stride()) {
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int32_t cell = floor_divide(values[3 * n + a], size);
      cells[3 * n + a] = cell;
      const uint32_t place = ordered(cell);
      own.bound[a] = place < own.bound[a] ? place : own.bound[a];
      own.bound[3 + a] = ~place < own.bound[3 + a] ? ~place : own.bound[3 + a];
    }
  }
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    const uint32_t least = __reduce_min_sync(kAllLanes, own.bound[i]);
    if (threadIdx.x % kWarp == 0) atomicMin(&of_block.bound[i], least);
  }
  __syncthreads();
  if (threadIdx.x < 6) atomicMin(extent + threadIdx.x, of_block.bound[threadIdx.x]);
}

// The box around all cells: where it begins and how many cells it has along each axis.
struct Box {
  int64_t low[3];
  uint64_t side[3];
};

inline Box box_of(const uint32_t (&extent)[6]) {
  Box box = {};
  for (int a = 0; a < 3; ++a) {
    box.low[a] = int64_t(extent[a]) + std::numeric_limits<int32_t>::min();
    box.side[a] = uint64_t(~extent[3 + a]) - extent[a] + 1;
  }
  return box;
}

// Whether every cell of so many boxes has a number of its own that Key holds.
template <class Key>
bool fits(const Box& box, int64_t num_clouds) {
  uint64_t room = static_cast<uint64_t>(std::numeric_limits<Key>::max());
  for (const uint64_t side : {static_cast<uint64_t>(num_clouds), box.side[0], box.side[1], box.side[2]}) room /= side;
  return room > 0;
}

// The number of a row's cell among those of all boxes, one a cloud: ordered by (cloud, x, y, z).
template <class Key>
__global__ void __launch_bounds__(kGatherThreads)
    number_cells(const int32_t* __restrict__ cells, int64_t count, const int64_t* __restrict__ offsets,
                 int64_t num_clouds, Box box, Key* __restrict__ keys) {
  for (int64_t n = first_item(); n < count; n += item_stride()) {
    uint64_t key = static_cast<uint64_t>(cloud_of_row_device(offsets, num_clouds, n));
#pragma unroll
    for (int a = 0; a < 3; ++a) key = key * box.side[a] + static_cast<uint64_t>(cells[3 * n + a] - box.low[a]);
    keys[n] = static_cast<Key>(key);
  }
}

// The two keys of every row's cell where one is not enough.
__global__ void __launch_bounds__(kGatherThreads)
    pair_cells(const int32_t* __restrict__ cells, int64_t count, const int64_t* __restrict__ offsets,
               int64_t num_clouds, int64_t* __restrict__ low, int64_t* __restrict__ high) {
  for (int64_t n = first_item(); n < count; n += item_stride()) {
    low[n] = ordered_pair(cells[3 * n + 1], cells[3 * n + 2]);
    high[n] = ordered_pair(cloud_of_row_device(offsets, num_clouds, n), cells[3 * n]);
  }
}

// out[i] = values[index[i]] of a permutation; `index` comes from torch's sort and is trusted.
__global__ void __launch_bounds__(kGatherThreads)
    permute(const int64_t* __restrict__ values, const int64_t* __restrict__ index, int64_t count,
            int64_t* __restrict__ out) {
  for (int64_t i = first_item(); i < count; i += item_stride()) out[i] = values[index[i]];
}

// 1 where a sorted row begins a new voxel.
template <class Key>
__global__ void __launch_bounds__(kGatherThreads)
    mark_changes(const Key* __restrict__ keys, int64_t count, int64_t* __restrict__ begins) {
  for (int64_t i = first_item(); i < count; i += item_stride()) begins[i] = i == 0 || keys[i] != keys[i - 1] ? 1 : 0;
}

// The same of rows sorted by two keys; `high` is sorted too.
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

// How many points each voxel holds, and where the voxels of each cloud begin: they ascend by cloud, and so does the
// cloud of their first rows.
__global__ void __launch_bounds__(kGatherThreads)
    count_voxels(const int64_t* __restrict__ begin, const int64_t* __restrict__ first, int64_t num_voxels,
                 int64_t num_points, const int64_t* __restrict__ offsets, int64_t num_offsets,
                 int64_t* __restrict__ count, int64_t* __restrict__ cuts) {
  for (int64_t i = first_item(); i < num_voxels + num_offsets; i += item_stride()) {
    if (i < num_voxels) {
      count[i] = (i + 1 < num_voxels ? begin[i + 1] : num_points) - begin[i];
    } else {
      cuts[i - num_voxels] = lower_bound(first, num_voxels, offsets[i - num_voxels]);
    }
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
