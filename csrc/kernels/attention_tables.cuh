// Parts of attention in windows that both directions share on CUDA; kernels/window_attention.cuh has the whole.
//
// A warp takes one voxel of a group of four; its lanes take the voxels that it meets in its window, 32 at a time.
#pragma once

#include "kernels/common.cuh"

namespace pc3d {
namespace cuda {

constexpr int kAttentionWarps = 4;  // and voxels of a group
constexpr int kAttentionThreads = kAttentionWarps * kWarp;
constexpr int kMostAxes = kWarp;
constexpr int kMostHeadDim = 64;
// Sums of up to this width stay in registers; wider ones, which no published model has, in local memory.
constexpr int kRegisterDim = 16;
constexpr size_t kSharedBytes = 48 << 10;  // of a block, as far as the tables allow; four blocks then run side by side

// Where the rows of each signal begin in a table, and where the last ends.
struct AxisRows {
  int count;
  int first[kMostAxes + 1];
};

// Features are (num_voxels, num_heads, head_dim), tables (head_dim, num_heads, axes.first[axes.count]): neighbouring
// lanes read neighbouring rows.
template <class T, class A>
struct WindowAttention {
  const T* query;
  const T* key;
  const T* value;
  const A* signals;
  const int64_t* order;
  const int64_t* offsets;
  const A* query_table;
  const A* key_table;
  const A* value_table;
  int64_t num_voxels;
  int64_t num_windows;
  int num_heads;
  int head_dim;
  AxisRows axes;

  __host__ __device__ int table_rows() const { return axes.first[axes.count]; }
  __device__ __forceinline__ int64_t row_at(int64_t position) const {
    return clamp(order[position], 0, num_voxels - 1);
  }
  __device__ __forceinline__ int64_t features_at(int64_t row, int head) const {
    return (row * num_heads + head) * head_dim;
  }
  __device__ __forceinline__ int64_t column_at(int column, int head) const {
    return (int64_t(column) * num_heads + head) * table_rows();
  }
  // The table row that signal `a` of a pair selects.
  __device__ __forceinline__ int selected(int64_t query_row, int64_t key_row, int a) const {
    const A difference = signals[query_row * axes.count + a] - signals[key_row * axes.count + a];
    return row_of(difference, axes.first[a], axes.first[a + 1] - axes.first[a]);
  }
  __device__ __forceinline__ static int row_of(A difference, int first, int size) {
    const A bin = floor(difference + static_cast<A>(size) / 2);
    const A last = static_cast<A>(size - 1);
    return first + static_cast<int>(bin > A(0) ? (bin < last ? bin : last) : A(0));  // NaN: the first
  }
};

// Shared memory of a block: for each warp `features` rows of features and, as often, table products and histograms
// (`tables` times). A histogram has several copies, so that as many pairs are counted at a time.
template <class A>
struct AttentionShared {
  int rows;
  int copies;
  int features;
  int tables;

  __host__ __device__ int values() const {
    return kAttentionWarps * (features * kMostHeadDim + tables * (1 + copies) * rows);
  }
  __host__ size_t bytes() const { return sizeof(A) * values(); }

  __device__ __forceinline__ A* base() const {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    return reinterpret_cast<A*>(shared_bytes);
  }
  // Of the first warp; that of the next is kMostHeadDim, or `rows`, or `copies * rows` further.
  __device__ __forceinline__ A* vectors(int which) const { return base() + which * kAttentionWarps * kMostHeadDim; }
  __device__ __forceinline__ A* projected(int which) const {
    return vectors(features) + which * kAttentionWarps * rows;
  }
  __device__ __forceinline__ A* counts(int which) const {
    return projected(tables) + which * kAttentionWarps * copies * rows;
  }
};

// As many copies of histograms as lanes can fill and shared memory holds.
template <class A>
AttentionShared<A> attention_shared(const AxisRows& axes, int features, int tables) {
  AttentionShared<A> shared = {axes.first[axes.count], axes.count > 0 ? kWarp / axes.count : 1, features, tables};
  while (shared.copies > 1 && shared.bytes() > kSharedBytes) --shared.copies;
  return shared;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / kWarp; }

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <class A>
__device__ __forceinline__ A warp_largest(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Entries of a vector in shared memory that are read at once.
template <class A>
struct alignas(16) Four {
  A values[4];
};

// The warp's voxel of one head into shared memory, in the type of the sums; zeros for a warp without a voxel, and up to
// the next four.
template <class T, class A>
__device__ __forceinline__ void stage(const WindowAttention<T, A>& w, const T* rows, int64_t row, int head, bool active,
                                      A* out) {
  const T* source = rows + w.features_at(row, head);
  for (int c = lane_index(); c < (w.head_dim + 3) / 4 * 4; c += kWarp) {
    out[c] = active && c < w.head_dim ? static_cast<A>(source[c]) : A(0);
  }
}

// The product of a group's vectors with a head's table: projected[warp][l] = vectors[warp] . table[l]. An entry of the
// table is read once for the whole group.
template <class T, class A>
__device__ __forceinline__ void project(const WindowAttention<T, A>& w, const A* vectors, const A* table, int head,
                                        A* projected) {
  const int rows = w.table_rows();
  for (int l = threadIdx.x; l < rows; l += kAttentionThreads) {
    A sum[kAttentionWarps] = {};
    for (int begin = 0; begin < w.head_dim; begin += 4) {
      A entries[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        entries[c] = begin + c < w.head_dim ? table[w.column_at(begin + c, head) + l] : A(0);
      }
#pragma unroll
      for (int k = 0; k < kAttentionWarps; ++k) {
        const Four<A> vector = *reinterpret_cast<const Four<A>*>(vectors + k * kMostHeadDim + begin);
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[k] += vector.values[c] * entries[c];
      }
    }
#pragma unroll
    for (int k = 0; k < kAttentionWarps; ++k) projected[k * rows + l] = sum[k];
  }
}

template <class T, class A>
__device__ __forceinline__ A dot(const WindowAttention<T, A>& w, const T* rows, int64_t row, int head,
                                 const A* vector) {
  const T* r = rows + w.features_at(row, head);
  A sum = A(0);
  for (int c = 0; c < w.head_dim; ++c) sum += static_cast<A>(r[c]) * vector[c];
  return sum;
}

template <class T, class A>
__device__ __forceinline__ A looked_up(const WindowAttention<T, A>& w, const A* projected, int64_t query_row,
                                       int64_t key_row) {
  A sum = A(0);
  for (int a = 0; a < w.axes.count; ++a) sum += projected[w.selected(query_row, key_row, a)];
  return sum;
}

// The warp's histograms of values over the table rows that pairs select. A lane has one signal and every `copies`-th
// pair, and no two lanes add to one number: no atomics, and one order of all sums.
template <class T, class A>
class Histogram {
 public:
  // `second` may be null; both are zeroed here. `own_row` is the warp's voxel.
  __device__ __forceinline__ Histogram(const WindowAttention<T, A>& w, int copies, int64_t own_row, bool own_is_query,
                                       A* first, A* second)
      : w_(w), copies_(copies), own_is_query_(own_is_query), first_(first), second_(second) {
    const int lane = lane_index();
    const int axes = w.axes.count;
    active_ = lane < axes * copies;
    copy_ = axes > 0 && active_ ? lane / axes : 0;
    axis_ = axes > 0 ? lane % axes : 0;
    begin_ = w.axes.first[axis_];
    size_ = axes > 0 ? w.axes.first[axis_ + 1] - begin_ : 0;
    own_ = axes > 0 ? w.signals[own_row * axes + axis_] : A(0);
    for (int l = lane; l < copies * w.table_rows(); l += kWarp) {
      first_[l] = A(0);
      if (second_ != nullptr) second_[l] = A(0);
    }
    __syncwarp();
  }

  // Adds the values of the first `pairs` lanes, each with the row of the voxel that it meets.
  __device__ __forceinline__ void add(A value, A other_value, int64_t row, int pairs) {
    if (w_.axes.count == 0) return;
    const int rows = w_.table_rows();
    for (int base = 0; base < pairs; base += copies_) {
      const int source = base + copy_;
      const A one = __shfl_sync(kAllLanes, value, source);
      const A two = second_ != nullptr ? __shfl_sync(kAllLanes, other_value, source) : A(0);  // all lanes alike
      const int64_t other = __shfl_sync(kAllLanes, static_cast<long long>(row), source);
      if (!active_ || source >= pairs) continue;
      const A theirs = w_.signals[other * w_.axes.count + axis_];
      const A difference = own_is_query_ ? own_ - theirs : theirs - own_;
      const int at = copy_ * rows + WindowAttention<T, A>::row_of(difference, begin_, size_);
      first_[at] += one;
      if (second_ != nullptr) second_[at] += two;
    }
  }

  __device__ __forceinline__ const A* counts() const { return first_; }
  __device__ __forceinline__ const A* other_counts() const { return second_; }

  // Copies added up, in order, into the first.
  __device__ __forceinline__ void finish() {
    __syncwarp();
    const int rows = w_.table_rows();
    for (int l = lane_index(); l < rows; l += kWarp) {
      for (int copy = 1; copy < copies_; ++copy) {
        first_[l] += first_[copy * rows + l];
        if (second_ != nullptr) second_[l] += second_[copy * rows + l];
      }
    }
    __syncwarp();
  }

 private:
  const WindowAttention<T, A>& w_;
  int copies_;
  bool own_is_query_;
  A* first_;
  A* second_;
  bool active_;
  int copy_;
  int axis_;
  int begin_;
  int size_;
  A own_;
};

// f(c) for c = 0 ... kDim - 1.
template <int kDim, class F>
__device__ __forceinline__ void each_column(const F& f) {
  if constexpr (kDim <= kRegisterDim) {
#pragma unroll
    for (int c = 0; c < kDim; ++c) f(c);
  } else {
#pragma unroll 1
    for (int c = 0; c < kDim; ++c) f(c);
  }
}

template <int kDim, class T, class A>
__device__ __forceinline__ void add_scaled(const WindowAttention<T, A>& w, A scale, const T* rows, int64_t row,
                                           int head, A* sum) {
  const T* r = rows + w.features_at(row, head);
  each_column<kDim>([&](int c) {
    if (c < w.head_dim) sum[c] += scale * static_cast<A>(r[c]);
  });
}

// write(c, the sum over lanes of sum[c], plus counts . table[c]), by one lane; `counts` may be null. Changes `sum`.
template <int kDim, class T, class A, class F>
__device__ __forceinline__ void finish(const WindowAttention<T, A>& w, A* sum, const A* counts, const A* table,
                                       int head, const F& write) {
  const int lane = lane_index();
  if (counts != nullptr) {
    for (int l = lane; l < w.table_rows(); l += kWarp) {
      const A count = counts[l];
      if (count == A(0)) continue;
      each_column<kDim>([&](int c) {
        if (c < w.head_dim) sum[c] += count * table[w.column_at(c, head) + l];
      });
    }
    __syncwarp();
  }
  each_column<kDim>([&](int c) {
    if (c >= w.head_dim) return;  // all lanes alike
    const A total = warp_sum(sum[c]);
    if (lane == 0) write(c, total);
  });
}

// partial[c][l] += the sum over a group's `active` warps of counts[warp][l] * vectors[warp][c]; the block owns it.
template <class T, class A>
__device__ __forceinline__ void add_outer(const WindowAttention<T, A>& w, const A* counts, int stride, const A* vectors,
                                          int active, A* partial) {
  const int rows = w.table_rows();
  for (int l = threadIdx.x; l < rows; l += kAttentionThreads) {
    A count[kAttentionWarps];
    bool any = false;
#pragma unroll
    for (int k = 0; k < kAttentionWarps; ++k) {
      count[k] = k < active ? counts[k * stride + l] : A(0);
      any = any || count[k] != A(0);
    }
    if (!any) continue;  // most rows: a voxel's pairs select few
    for (int c = 0; c < w.head_dim; ++c) {
      A sum = partial[c * rows + l];
#pragma unroll
      for (int k = 0; k < kAttentionWarps; ++k) {
        if (count[k] != A(0)) sum += count[k] * vectors[k * kMostHeadDim + c];
      }
      partial[c * rows + l] = sum;
    }
  }
}

}  // namespace cuda
}  // namespace pc3d
