// Attention within windows of voxels with tables for differences of signals, forward and backward, on CUDA.
//
// kernels/window_attention.h has the formulas. Here a warp takes a query (or, for the gradients of keys, a key) and one
// head; its lanes take the other voxels of the window, 32 at a time. What the warp's own row meets in a table is formed
// once, for all table rows, in shared memory; for what the other side meets the lanes gather vectors. Histograms are
// added to by one lane for each signal, whose parts of a row do not overlap: no atomics, and one order of all sums.
//
// Table gradients: warps of the backward pass take runs of voxels and keep a sum each, added up in order at the end.
#pragma once

#include "kernels/common.cuh"

namespace pc3d {
namespace cuda {

constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = kAttentionWarps * kWarp;
constexpr int kMostAxes = kWarp;
constexpr int kMostHeadDim = 64;
// Sums of up to this width stay in registers; wider ones, which no published model has, in local memory.
constexpr int kRegisterDim = 16;
constexpr int64_t kMostAttentionBlocks = 1 << 20;  // the loops stride over the rest
constexpr int64_t kPartialBytes = 64 << 20;        // of all partial sums of table gradients, if they can be that few
constexpr int64_t kLeastRun = 32;                  // voxels that share a partial sum

// Where the rows of each signal begin in a table, and where the last ends.
struct AxisRows {
  int count;
  int first[kMostAxes + 1];
};

// Features are (num_voxels, num_heads, head_dim), tables (axes.first[axes.count], num_heads, head_dim).
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
  __device__ __forceinline__ Rows window_of(int64_t position) const {
    return rows_of_cloud(offsets, cloud_of_row_device(offsets, num_windows, position), num_voxels);
  }
  // The table row that signal `a` of a pair selects.
  __device__ __forceinline__ int selected(int64_t query_row, int64_t key_row, int a) const {
    const int size = axes.first[a + 1] - axes.first[a];
    const A difference = signals[query_row * axes.count + a] - signals[key_row * axes.count + a];
    const A bin = floor(difference + static_cast<A>(size) / 2);
    const A last = static_cast<A>(size - 1);
    return axes.first[a] + static_cast<int>(bin > A(0) ? (bin < last ? bin : last) : A(0));  // NaN: the first
  }
};

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

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

// One voxel's row of one head into shared memory, in the type of the sums.
template <class T, class A>
__device__ __forceinline__ void stage(const WindowAttention<T, A>& w, const T* rows, int64_t row, int head, A* out) {
  for (int c = threadIdx.x % kWarp; c < w.head_dim; c += kWarp) {
    out[c] = static_cast<A>(rows[(row * w.num_heads + head) * w.head_dim + c]);
  }
}

// out[l] = row . table[l] for all table rows; with `counts`, these are zeroed too.
template <class T, class A>
__device__ __forceinline__ void project(const WindowAttention<T, A>& w, const A* row, const A* table, int head, A* out,
                                        A* counts) {
  for (int l = threadIdx.x % kWarp; l < w.table_rows(); l += kWarp) {
    const A* entry = table + (int64_t(l) * w.num_heads + head) * w.head_dim;
    A sum = A(0);
    for (int c = 0; c < w.head_dim; ++c) sum += row[c] * entry[c];
    out[l] = sum;
    if (counts != nullptr) counts[l] = A(0);
  }
}

// row . (own + sum of the table rows that the pair selects), row in global memory, the other vector shared.
template <class T, class A>
__device__ __forceinline__ A meet(const WindowAttention<T, A>& w, const T* rows, int64_t row, const A* own,
                                  const A* table, int head, int64_t query_row, int64_t key_row) {
  const T* r = rows + (row * w.num_heads + head) * w.head_dim;
  A sum = A(0);
  for (int c = 0; c < w.head_dim; ++c) sum += static_cast<A>(r[c]) * own[c];
  for (int a = 0; a < w.axes.count; ++a) {
    const A* entry = table + (int64_t(w.selected(query_row, key_row, a)) * w.num_heads + head) * w.head_dim;
    for (int c = 0; c < w.head_dim; ++c) sum += static_cast<A>(r[c]) * entry[c];
  }
  return sum;
}

template <class T, class A>
__device__ __forceinline__ A looked_up(const WindowAttention<T, A>& w, const A* projected, int64_t query_row,
                                       int64_t key_row) {
  A sum = A(0);
  for (int a = 0; a < w.axes.count; ++a) sum += projected[w.selected(query_row, key_row, a)];
  return sum;
}

// The lanes' values added at the table rows that their pairs select: a lane for each signal, the pairs in order.
template <class T, class A>
__device__ __forceinline__ void count_in(const WindowAttention<T, A>& w, A value, int64_t own_row, int64_t other_row,
                                         bool own_is_query, int active, A* counts) {
  const int lane = threadIdx.x % kWarp;
  for (int source = 0; source < active; ++source) {
    const A from = __shfl_sync(kAllLanes, value, source);
    const int64_t other = __shfl_sync(kAllLanes, static_cast<long long>(other_row), source);
    if (lane < w.axes.count) {
      counts[own_is_query ? w.selected(own_row, other, lane) : w.selected(other, own_row, lane)] += from;
    }
  }
}

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
  const T* r = rows + (row * w.num_heads + head) * w.head_dim;
  each_column<kDim>([&](int c) {
    if (c < w.head_dim) sum[c] += scale * static_cast<A>(r[c]);
  });
}

// The sum over lanes of sum[c], plus counts . table[:, c]; scaled, into a row of features.
template <int kDim, class T, class A>
__device__ __forceinline__ void finish(const WindowAttention<T, A>& w, const A* sum, const A* counts, const A* table,
                                       int head, A scale, int64_t row, T* out) {
  const int lane = threadIdx.x % kWarp;
  each_column<kDim>([&](int c) {
    if (c >= w.head_dim) return;  // all lanes alike
    A total = sum[c];
    if (counts != nullptr) {
      for (int l = lane; l < w.table_rows(); l += kWarp) {
        total += counts[l] * table[(int64_t(l) * w.num_heads + head) * w.head_dim + c];
      }
    }
    total = warp_sum(total);
    if (lane == 0) out[(row * w.num_heads + head) * w.head_dim + c] = static_cast<T>(total * scale);
  });
}

// partial[l][c] += counts[l] * row[c]; only this warp has this partial sum.
template <class T, class A>
__device__ __forceinline__ void add_outer(const WindowAttention<T, A>& w, const A* counts, const A* row, A* partial) {
  const int64_t size = int64_t(w.table_rows()) * w.head_dim;
  for (int64_t at = threadIdx.x % kWarp; at < size; at += kWarp) {
    const A count = counts[at / w.head_dim];
    if (count != A(0)) partial[at] += count * row[at % w.head_dim];
  }
}

template <class A>
__device__ __forceinline__ A* shared_of_warp(int values) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return reinterpret_cast<A*>(shared_bytes) + int64_t(threadIdx.x / kWarp) * values;
}

template <int kDim, class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    attend(const WindowAttention<T, A> w, T* __restrict__ out, A* __restrict__ log_sum) {
  const int lane = threadIdx.x % kWarp;
  A* query = shared_of_warp<A>(2 * w.table_rows() + kMostHeadDim);
  A* projected = query + kMostHeadDim;
  A* counts = projected + w.table_rows();
  const int64_t step = int64_t(gridDim.x) * kAttentionWarps;
  for (int64_t item = int64_t(blockIdx.x) * kAttentionWarps + threadIdx.x / kWarp; item < w.num_voxels * w.num_heads;
       item += step) {
    const int64_t position = item / w.num_heads;
    const int head = static_cast<int>(item % w.num_heads);
    const int64_t i = w.row_at(position);
    const Rows keys = w.window_of(position);
    __syncwarp();
    stage(w, w.query, i, head, query);
    __syncwarp();
    project(w, query, w.query_table, head, projected, counts);
    __syncwarp();
    const auto score = [&](int64_t j) {
      return meet(w, w.key, j, query, w.key_table, head, i, j) + looked_up(w, projected, i, j);
    };
    A top = -infinity<A>();
    for (int64_t at = keys.begin + lane; at < keys.end; at += kWarp) {
      const A e = score(w.row_at(at));
      top = e > top ? e : top;
    }
    top = warp_largest(top);
    A total = A(0);
    A sum[kDim] = {};
    for (int64_t base = keys.begin; base < keys.end; base += kWarp) {
      const int64_t left = keys.end - base;
      const int active = static_cast<int>(left < kWarp ? left : kWarp);
      const int64_t j = w.row_at(base + (lane < active ? lane : 0));
      const A share = lane < active ? exponential(score(j) - top) : A(0);
      total += share;
      if (lane < active) add_scaled<kDim>(w, share, w.value, j, head, sum);
      count_in(w, share, i, j, true, active, counts);
    }
    __syncwarp();
    total = warp_sum(total);
    finish<kDim>(w, sum, counts, w.value_table, head, A(1) / total, i, out);
    if (lane == 0) log_sum[i * w.num_heads + head] = top + log(total);
  }
}

template <class T, class A>
struct AttentionResult {
  const T* grad;
  const T* out;
  const A* log_sum;
};

// The part of a logit's gradient that all logits of a query share.
template <class T, class A>
__device__ __forceinline__ A level_of(const WindowAttention<T, A>& w, const AttentionResult<T, A>& r, int64_t row,
                                      int head) {
  const int64_t first = (row * w.num_heads + head) * w.head_dim;
  A level = A(0);
  for (int c = 0; c < w.head_dim; ++c) level += static_cast<A>(r.grad[first + c]) * static_cast<A>(r.out[first + c]);
  return level;
}

// Gradients of queries, and partial sums of those of the query's and the value's table.
template <int kDim, class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    query_gradients(const WindowAttention<T, A> w, const AttentionResult<T, A> r, int64_t num_runs, int64_t run,
                    T* __restrict__ for_query, A* __restrict__ partial_query, A* __restrict__ partial_value) {
  const int lane = threadIdx.x % kWarp;
  const int rows = w.table_rows();
  A* query = shared_of_warp<A>(4 * rows + 2 * kMostHeadDim);
  A* push = query + kMostHeadDim;
  A* projected = push + kMostHeadDim;
  A* pushed = projected + rows;
  A* by_row = pushed + rows;
  A* shares_by_row = by_row + rows;
  const int64_t warp = int64_t(blockIdx.x) * kAttentionWarps + threadIdx.x / kWarp;
  if (warp >= num_runs * w.num_heads) return;
  const int head = static_cast<int>(warp % w.num_heads);
  const int64_t begin = warp / w.num_heads * run;
  const int64_t end = begin + run < w.num_voxels ? begin + run : w.num_voxels;
  A* own_query_sum = partial_query + warp * rows * w.head_dim;
  A* own_value_sum = partial_value + warp * rows * w.head_dim;
  for (int64_t position = begin; position < end; ++position) {
    const int64_t i = w.row_at(position);
    const Rows keys = w.window_of(position);
    __syncwarp();
    stage(w, w.query, i, head, query);
    stage(w, r.grad, i, head, push);
    __syncwarp();
    project(w, query, w.query_table, head, projected, by_row);
    project(w, push, w.value_table, head, pushed, shares_by_row);
    __syncwarp();
    const A level = level_of(w, r, i, head);
    const A log_sum = r.log_sum[i * w.num_heads + head];
    A sum[kDim] = {};
    for (int64_t base = keys.begin; base < keys.end; base += kWarp) {
      const int64_t left = keys.end - base;
      const int active = static_cast<int>(left < kWarp ? left : kWarp);
      const int64_t j = w.row_at(base + (lane < active ? lane : 0));
      A share = A(0);
      A for_score = A(0);
      if (lane < active) {
        const A score = meet(w, w.key, j, query, w.key_table, head, i, j) + looked_up(w, projected, i, j);
        share = exponential(score - log_sum);
        A for_share = looked_up(w, pushed, i, j);
        const T* value = w.value + (j * w.num_heads + head) * w.head_dim;
        for (int c = 0; c < w.head_dim; ++c) for_share += push[c] * static_cast<A>(value[c]);
        for_score = share * (for_share - level);
        add_scaled<kDim>(w, for_score, w.key, j, head, sum);
      }
      count_in(w, for_score, i, j, true, active, by_row);
      count_in(w, share, i, j, true, active, shares_by_row);
    }
    __syncwarp();
    finish<kDim>(w, sum, by_row, w.query_table, head, A(1), i, for_query);
    add_outer(w, by_row, query, own_query_sum);
    add_outer(w, shares_by_row, push, own_value_sum);
  }
}

// Gradients of keys and values, and partial sums of that of the key's table.
template <int kDim, class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    key_gradients(const WindowAttention<T, A> w, const AttentionResult<T, A> r, int64_t num_runs, int64_t run,
                  T* __restrict__ for_key, T* __restrict__ for_value, A* __restrict__ partial_key) {
  const int lane = threadIdx.x % kWarp;
  const int rows = w.table_rows();
  A* key = shared_of_warp<A>(2 * rows + 2 * kMostHeadDim);
  A* value = key + kMostHeadDim;
  A* projected = value + kMostHeadDim;
  A* by_row = projected + rows;
  const int64_t warp = int64_t(blockIdx.x) * kAttentionWarps + threadIdx.x / kWarp;
  if (warp >= num_runs * w.num_heads) return;
  const int head = static_cast<int>(warp % w.num_heads);
  const int64_t begin = warp / w.num_heads * run;
  const int64_t end = begin + run < w.num_voxels ? begin + run : w.num_voxels;
  A* own_key_sum = partial_key + warp * rows * w.head_dim;
  for (int64_t position = begin; position < end; ++position) {
    const int64_t j = w.row_at(position);
    const Rows queries = w.window_of(position);
    __syncwarp();
    stage(w, w.key, j, head, key);
    stage(w, w.value, j, head, value);
    __syncwarp();
    project(w, key, w.key_table, head, projected, by_row);
    __syncwarp();
    A for_key_sum[kDim] = {};
    A for_value_sum[kDim] = {};
    for (int64_t base = queries.begin; base < queries.end; base += kWarp) {
      const int64_t left = queries.end - base;
      const int active = static_cast<int>(left < kWarp ? left : kWarp);
      const int64_t i = w.row_at(base + (lane < active ? lane : 0));
      A for_score = A(0);
      if (lane < active) {
        const A score = meet(w, w.query, i, key, w.query_table, head, i, j) + looked_up(w, projected, i, j);
        const A share = exponential(score - r.log_sum[i * w.num_heads + head]);
        const A for_share = meet(w, r.grad, i, value, w.value_table, head, i, j);
        for_score = share * (for_share - level_of(w, r, i, head));
        add_scaled<kDim>(w, for_score, w.query, i, head, for_key_sum);
        add_scaled<kDim>(w, share, r.grad, i, head, for_value_sum);
      }
      count_in(w, for_score, j, i, false, active, by_row);
    }
    __syncwarp();
    const A* none = nullptr;
    finish<kDim>(w, for_key_sum, by_row, w.key_table, head, A(1), j, for_key);
    finish<kDim>(w, for_value_sum, none, none, head, A(1), j, for_value);
    add_outer(w, by_row, key, own_key_sum);
  }
}

// table[l][head][c] = the sum of partial[run][head][l][c] over runs, in order.
template <class A>
__global__ void __launch_bounds__(kAttentionThreads)
    sum_partial(const A* __restrict__ partial, int64_t num_runs, int rows, int num_heads, int head_dim,
                A* __restrict__ table) {
  const int64_t size = int64_t(rows) * num_heads * head_dim;
  const int64_t step = int64_t(gridDim.x) * kAttentionThreads;
  for (int64_t item = int64_t(blockIdx.x) * kAttentionThreads + threadIdx.x; item < size; item += step) {
    const int64_t c = item % head_dim;
    const int64_t head = item / head_dim % num_heads;
    const int64_t l = item / head_dim / num_heads;
    A sum = A(0);
    for (int64_t run = 0; run < num_runs; ++run) {
      sum += partial[((run * num_heads + head) * rows + l) * head_dim + c];
    }
    table[item] = sum;
  }
}

// How many runs of voxels have a partial sum of their own, given the bytes of one set of table gradients.
inline int64_t attention_runs(int64_t num_voxels, int64_t bytes) {
  const int64_t most = kPartialBytes / (bytes > 0 ? bytes : 1);
  const int64_t useful = ceil_div(num_voxels, kLeastRun);
  const int64_t runs = most < useful ? most : useful;
  return runs > 0 ? runs : 1;
}

template <int kDim, class T, class A, class Launch>
void window_attention(const WindowAttention<T, A>& w, T* out, A* log_sum, const Launch& launch) {
  const int64_t blocks = ceil_div(w.num_voxels * w.num_heads, kAttentionWarps);
  if (blocks == 0) return;
  const size_t bytes = sizeof(A) * kAttentionWarps * (2 * w.table_rows() + kMostHeadDim);
  launch.with_shared(attend<kDim, T, A>, blocks < kMostAttentionBlocks ? blocks : kMostAttentionBlocks,
                     kAttentionThreads, bytes, w, out, log_sum);
}

template <class T, class A>
struct WindowAttentionGradients {
  T* query;
  T* key;
  T* value;
  A* query_table;
  A* key_table;
  A* value_table;
};

// `partial`: three times num_runs sets of table gradients, zero before.
template <int kDim, class T, class A, class Launch>
void window_attention_backward(const WindowAttention<T, A>& w, const AttentionResult<T, A>& r, int64_t num_runs,
                               A* partial, const WindowAttentionGradients<T, A>& result, const Launch& launch) {
  const int rows = w.table_rows();
  const int64_t size = int64_t(rows) * w.num_heads * w.head_dim;
  if (w.num_voxels > 0 && w.num_heads > 0) {
    const int64_t run = ceil_div(w.num_voxels, num_runs);
    const int64_t blocks = ceil_div(num_runs * w.num_heads, kAttentionWarps);
    const size_t query_bytes = sizeof(A) * kAttentionWarps * (4 * rows + 2 * kMostHeadDim);
    const size_t key_bytes = sizeof(A) * kAttentionWarps * (2 * rows + 2 * kMostHeadDim);
    launch.with_shared(query_gradients<kDim, T, A>, blocks, kAttentionThreads, query_bytes, w, r, num_runs, run,
                       result.query, partial, partial + 2 * num_runs * size);
    launch.with_shared(key_gradients<kDim, T, A>, blocks, kAttentionThreads, key_bytes, w, r, num_runs, run, result.key,
                       result.value, partial + num_runs * size);
  }
  if (size == 0) return;
  const int64_t blocks = ceil_div(size, kAttentionThreads);
  A* const tables[3] = {result.query_table, result.key_table, result.value_table};
  for (int t = 0; t < 3; ++t) {
    launch(sum_partial<A>, blocks < kMostAttentionBlocks ? blocks : kMostAttentionBlocks, kAttentionThreads,
           partial + t * num_runs * size, num_runs, rows, w.num_heads, w.head_dim, tables[t]);
  }
}

}  // namespace cuda
}  // namespace pc3d
