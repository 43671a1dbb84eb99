// How attention in windows on CUDA reads and leaves its data; kernels/window_attention.cuh has the whole.
//
// Features come as (voxels, heads, width), voxels in any order. The kernels want those of a head and a window behind
// one another, in the type of the sums and padded with zeros to one of few widths, so that lanes read whole vectors of
// neighbouring voxels; signals the same way, and the columns of a head's table behind one another.
#pragma once

#include "kernels/gather.cuh"

namespace pc3d {
namespace cuda {

constexpr int kMostAxes = kWarp;
constexpr int kMostHeadDim = 64;

// Where the rows of each signal begin in a table and where the last ends; half the number of its rows.
template <class A>
struct AxisRows {
  int count;
  int first[kMostAxes + 1];
  A half[kMostAxes];

  __host__ __device__ int total() const { return first[count]; }

  // The row that signal `a` selects for a difference; NaN takes the first.
  __device__ __forceinline__ int row_of(int a, A difference) const {
    const int bin = rounded_down(difference + half[a]);
    const int last = first[a + 1] - first[a] - 1;
    return first[a] + (bin < 0 ? 0 : (bin < last ? bin : last));
  }
};

// Positions number voxels in the order of the windows. `width` is a template argument of the kernels.
template <class A>
struct ArrangedAttention {
  const A* query;  // (heads, positions, width)
  const A* key;
  const A* value;
  const A* signals;  // (axes.count, positions)
  const int64_t* offsets;
  const int64_t* runs;   // (runs + 1): which windows each has
  const A* query_table;  // (heads, width, axes.total())
  const A* key_table;
  const A* value_table;
  int64_t num_voxels;
  int num_heads;
  AxisRows<A> axes;

  __device__ __forceinline__ int64_t place(int head, int64_t position) const { return head * num_voxels + position; }
};

// Sizes of features as torch has them, and the width that they are padded to.
struct FeatureSizes {
  int64_t num_voxels;
  int64_t num_heads;
  int64_t head_dim;
  int64_t width;
};

__device__ __forceinline__ int64_t voxel_at(const int64_t* order, int64_t position, int64_t num_voxels) {
  return clamp(order[position], 0, num_voxels - 1);
}

// Arrays of one shape that a kernel takes together.
template <class T>
struct Several {
  T* of[4];
};

// out (count, heads, positions, width) of several features (voxels, heads, head_dim).
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    arrange_features(const Several<const T> features, int count, const int64_t* __restrict__ order, FeatureSizes s,
                     A* __restrict__ out) {
  const int64_t size = s.num_heads * s.num_voxels * s.width;
  for (int64_t item = first_item(); item < size; item += item_stride()) {
    const Place p = place_of(item, s.width);
    const Place voxel = place_of(p.row, s.num_voxels);
    const int64_t row = voxel_at(order, voxel.column, s.num_voxels);
    const int64_t source = (row * s.num_heads + voxel.row) * s.head_dim + p.column;
    for (int t = 0; t < count; ++t) {
      out[t * size + item] = p.column < s.head_dim ? static_cast<A>(features.of[t][source]) : A(0);
    }
  }
}

// Several features (voxels, heads, head_dim) of `arranged`; voxels that no window names keep what they have.
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    restore_features(const A* __restrict__ arranged, int count, const int64_t* __restrict__ order, FeatureSizes s,
                     const Several<T> features) {
  const int64_t size = s.num_heads * s.num_voxels * s.width;
  for (int64_t item = first_item(); item < s.num_voxels * s.num_heads * s.head_dim; item += item_stride()) {
    const Place p = place_of(item, s.head_dim);
    const Place voxel = place_of(p.row, s.num_heads);
    const int64_t row = voxel_at(order, voxel.row, s.num_voxels);
    const int64_t source = (voxel.column * s.num_voxels + voxel.row) * s.width + p.column;
    for (int t = 0; t < count; ++t) {
      features.of[t][(row * s.num_heads + voxel.column) * s.head_dim + p.column] =
          static_cast<T>(arranged[t * size + source]);
    }
  }
}

// out (columns, positions) of values (voxels, columns).
template <class A>
__global__ void __launch_bounds__(kGatherThreads)
    arrange_columns(const A* __restrict__ values, const int64_t* __restrict__ order, int64_t num_voxels,
                    int64_t columns, A* __restrict__ out) {
  for (int64_t item = first_item(); item < columns * num_voxels; item += item_stride()) {
    const Place p = place_of(item, num_voxels);
    out[item] = values[voxel_at(order, p.column, num_voxels) * columns + p.row];
  }
}

// out (3, heads, width, rows) of three tables (rows, heads, head_dim).
template <class A>
__global__ void __launch_bounds__(kGatherThreads)
    arrange_tables(const Several<const A> tables, int64_t rows, FeatureSizes s, A* __restrict__ out) {
  const int64_t size = s.num_heads * s.width * rows;
  for (int64_t item = first_item(); item < size; item += item_stride()) {
    const Place p = place_of(item, rows);
    const Place column = place_of(p.row, s.width);
    const int64_t source = (p.column * s.num_heads + column.row) * s.head_dim + column.column;
    for (int t = 0; t < 3; ++t) out[t * size + item] = column.column < s.head_dim ? tables.of[t][source] : A(0);
  }
}

// About how long a window takes: for each voxel, what it has to do by itself and then by every 32 that it meets.
__global__ void __launch_bounds__(kGatherThreads) find_costs(const int64_t* __restrict__ offsets, int64_t num_windows,
                                                             int64_t num_voxels, int64_t* __restrict__ costs) {
  for (int64_t item = first_item(); item < num_windows; item += item_stride()) {
    const int64_t size = rows_of_cloud(offsets, item, num_voxels).size();
    costs[item] = size * (5 + 2 * ceil_div(size, kWarp));
  }
}

// runs (num_runs + 1): where each begins, so that all cost alike; `costs` (num_windows > 0) are added up.
__global__ void __launch_bounds__(kGatherThreads)
    cut_runs(const int64_t* __restrict__ costs, int64_t num_windows, int64_t num_runs, int64_t* __restrict__ runs) {
  const int64_t total = costs[num_windows - 1];
  for (int64_t run = first_item(); run <= num_runs; run += item_stride()) {
    const int64_t wanted = total / num_runs * run + total % num_runs * run / num_runs;
    int64_t low = 0;
    int64_t high = run < num_runs ? num_windows : 0;
    while (low < high) {  // the first window before which this much has been done
      const int64_t middle = (low + high) / 2;
      if ((middle > 0 ? costs[middle - 1] : 0) >= wanted) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    runs[run] = run < num_runs ? low : num_windows;
  }
}

// levels (heads, positions): grad . out, the part of a score's gradient that all scores of a query share.
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    find_levels(const T* __restrict__ grad, const T* __restrict__ out, const int64_t* __restrict__ order,
                FeatureSizes s, A* __restrict__ levels) {
  for (int64_t item = first_item(); item < s.num_heads * s.num_voxels; item += item_stride()) {
    const Place p = place_of(item, s.num_voxels);
    const int64_t first = (voxel_at(order, p.column, s.num_voxels) * s.num_heads + p.row) * s.head_dim;
    A level = A(0);
    for (int64_t c = 0; c < s.head_dim; ++c) {
      level = multiply_add(static_cast<A>(grad[first + c]), static_cast<A>(out[first + c]), level);
    }
    levels[item] = level;
  }
}

// Three tables (rows, heads, head_dim): each the sum of its partial (runs, heads, width, rows) over runs, in order.
template <class A>
__global__ void __launch_bounds__(kGatherThreads)
    sum_runs(const A* __restrict__ partial, int64_t runs, int64_t rows, FeatureSizes s, const Several<A> tables) {
  const int64_t size = s.num_heads * s.width * rows;
  for (int64_t item = first_item(); item < 3 * size; item += item_stride()) {
    const Place table = place_of(item, size);
    const Place p = place_of(table.column, rows);
    const Place column = place_of(p.row, s.width);
    if (column.column >= s.head_dim) continue;
    const A* source = partial + table.row * runs * size + table.column;
    A sum = A(0);
    for (int64_t run = 0; run < runs; ++run) sum += source[run * size];
    tables.of[table.row][(p.column * s.num_heads + column.row) * s.head_dim + column.column] = sum;
  }
}

}  // namespace cuda
}  // namespace pc3d
