// The backward pass of attention in windows on CUDA. With S the scores, P the shares and go the gradient of the result:
//
//   dP_ij = go_i . v_j + sum_a G[i, t_a]     G = go Tv'         dS_ij = P_ij (dP_ij - go_i . o_i)
//   dq_i  = sum_j dS_ij k_j + HS[i] Tq       dk_j = sum_i dS_ij q_i + HC[j] Tk       dv_j = sum_i P_ij go_i
//   dTq   = HS' q     dTk = HC' k     dTv = HP' go              HS, HC, HP: dS and P summed over pairs, by table row
//
// A block takes a tile of a window and one head as in the forward pass: keys leave their part of the scores, queries
// complete them and leave dS and P in their place, and keys read these. Blocks keep sums of table gradients each, added
// up in order at the end.
#pragma once

#include "kernels/window_attention.cuh"

namespace pc3d {
namespace cuda {

constexpr int64_t kPartialBytes = 64 << 20;  // of all partial sums of table gradients, if they can be that few

template <class T, class A>
struct AttentionResult {
  const T* grad;
  const T* out;
  const A* log_sum;
};

// Gradients of features are summed in the type of the sums, and are zero before. `partial_*`: of each block.
template <class A>
struct AttentionSums {
  A* query;
  A* key;
  A* value;
  A* query_table;
  A* key_table;
  A* value_table;
};

// The part of a score's gradient that all scores of a query share: go . o.
template <class T, class A>
__device__ __forceinline__ A level_of(const WindowAttention<T, A>& w, const AttentionResult<T, A>& r, int64_t row,
                                      int head) {
  const int64_t first = w.features_at(row, head);
  A level = A(0);
  for (int c = 0; c < w.head_dim; ++c) level += static_cast<A>(r.grad[first + c]) * static_cast<A>(r.out[first + c]);
  return level;
}

// One query and a chunk of keys: its gradient, and dS and P in place of its scores.
template <int kDim, class T, class A>
__device__ __forceinline__ void gradient_of_query(const WindowAttention<T, A>& w, const AttentionResult<T, A>& r,
                                                  const AttentionShared<A>& shared, int64_t i, int head,
                                                  const Rows& keys, A* scores, A* shares, A* for_query) {
  const int lane = lane_index();
  const int warp = warp_index();
  const int rows = w.table_rows();
  const A* push = shared.vectors(1) + warp * kMostHeadDim;
  const A* projected = shared.projected(0) + warp * rows;
  const A* pushed = shared.projected(1) + warp * rows;
  const A level = level_of(w, r, i, head);
  const A log_sum = r.log_sum[i * w.num_heads + head];
  const int histogram_size = shared.copies * rows;
  Histogram<T, A> histogram(w, shared.copies, i, true, shared.counts(0) + warp * histogram_size,
                            shared.counts(1) + warp * histogram_size);
  A sum[kDim] = {};
  for (int64_t base = keys.begin; base < keys.end; base += kWarp) {
    const int64_t left = keys.end - base;
    const int active = static_cast<int>(left < kWarp ? left : kWarp);
    const int64_t number = base - keys.begin + lane;
    const int64_t j = w.row_at(base + (lane < active ? lane : 0));
    A share = A(0);
    A for_score = A(0);
    if (lane < active) {
      share = exponential(scores[number] + looked_up(w, projected, i, j) - log_sum);
      const A for_share = dot(w, w.value, j, head, push) + looked_up(w, pushed, i, j);
      for_score = share * (for_share - level);
      scores[number] = for_score;
      shares[number] = share;
      add_scaled<kDim>(w, for_score, w.key, j, head, sum);
    }
    histogram.add(for_score, share, j, active);
  }
  histogram.finish();
  A* row = for_query + w.features_at(i, head);
  finish<kDim>(w, sum, histogram.counts(), w.query_table, head, [&](int c, A value) { row[c] += value; });
}

// One key and a tile of queries: its gradient and its value's. `stride`: from one query's scores to the next.
template <int kDim, class T, class A>
__device__ __forceinline__ void gradient_of_key(const WindowAttention<T, A>& w, const AttentionResult<T, A>& r,
                                                const AttentionShared<A>& shared, int64_t j, int head,
                                                const Rows& queries, int64_t stride, const A* for_scores,
                                                const A* shares, A* for_key, A* for_value) {
  const int lane = lane_index();
  Histogram<T, A> histogram(w, shared.copies, j, false,
                            shared.counts(0) + warp_index() * shared.copies * w.table_rows(), nullptr);
  A key_sum[kDim] = {};
  A value_sum[kDim] = {};
  for (int64_t base = queries.begin; base < queries.end; base += kWarp) {
    const int64_t left = queries.end - base;
    const int active = static_cast<int>(left < kWarp ? left : kWarp);
    const int64_t number = base - queries.begin + lane;
    const int64_t i = w.row_at(base + (lane < active ? lane : 0));
    A for_score = A(0);
    if (lane < active) {
      for_score = for_scores[number * stride];
      add_scaled<kDim>(w, for_score, w.query, i, head, key_sum);
      add_scaled<kDim>(w, shares[number * stride], r.grad, i, head, value_sum);
    }
    histogram.add(for_score, A(0), i, active);
  }
  histogram.finish();
  const A* none = nullptr;
  A* key_row = for_key + w.features_at(j, head);
  A* value_row = for_value + w.features_at(j, head);
  finish<kDim>(w, key_sum, histogram.counts(), w.key_table, head, [&](int c, A value) { key_row[c] += value; });
  finish<kDim>(w, value_sum, none, none, head, [&](int c, A value) { value_row[c] += value; });
}

// How many of a group's warps have a voxel.
__device__ __forceinline__ int group_size(const Rows& rows, int64_t first) {
  const int64_t left = rows.end - first;
  return static_cast<int>(left < kAttentionWarps ? left : kAttentionWarps);
}

template <int kDim, class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    attend_backward(const WindowAttention<T, A> w, const AttentionResult<T, A> r, const AttentionShared<A> shared,
                    const AttentionScratch<A> scratch, const AttentionSums<A> sums) {
  const int head = static_cast<int>(blockIdx.x % w.num_heads);
  const int warp = warp_index();
  const int rows = w.table_rows();
  const int histogram_size = shared.copies * rows;
  const int64_t own = int64_t(blockIdx.x) * rows * w.head_dim;
  A* scores = scratch.scores();
  A* shares = scratch.after_scores();
  A* first_vector = shared.vectors(0) + warp * kMostHeadDim;
  A* second_vector = shared.vectors(1) + warp * kMostHeadDim;
  for_each_tile(w, scratch.room, [&](const Rows& queries, const Tiling& tiling, const Rows& window) {
    for (int64_t begin = window.begin; begin < window.end; begin += tiling.keys) {
      const Rows keys = chunk_of(window, begin, tiling);
      score_keys(w, shared, queries, keys, tiling.keys, head, scores);
      for (int64_t first = queries.begin; first < queries.end; first += kAttentionWarps) {
        const int group = group_size(queries, first);
        const int64_t position = first + (warp < group ? warp : 0);
        const int64_t i = w.row_at(position);
        stage(w, w.query, i, head, warp < group, first_vector);
        stage(w, r.grad, i, head, warp < group, second_vector);
        __syncthreads();
        project(w, shared.vectors(0), w.query_table, head, shared.projected(0));
        project(w, shared.vectors(1), w.value_table, head, shared.projected(1));
        __syncthreads();
        if (warp < group) {
          const int64_t at = (position - queries.begin) * tiling.keys;
          gradient_of_query<kDim>(w, r, shared, i, head, keys, scores + at, shares + at, sums.query);
        }
        __syncthreads();
        add_outer(w, shared.counts(0), histogram_size, shared.vectors(0), group, sums.query_table + own);
        add_outer(w, shared.counts(1), histogram_size, shared.vectors(1), group, sums.value_table + own);
        __syncthreads();
      }
      for (int64_t first = keys.begin; first < keys.end; first += kAttentionWarps) {
        const int group = group_size(keys, first);
        const int64_t position = first + (warp < group ? warp : 0);
        const int64_t j = w.row_at(position);
        stage(w, w.key, j, head, warp < group, first_vector);
        if (warp < group) {
          const int64_t at = position - keys.begin;
          gradient_of_key<kDim>(w, r, shared, j, head, queries, tiling.keys, scores + at, shares + at, sums.key,
                                sums.value);
        }
        __syncthreads();
        add_outer(w, shared.counts(0), histogram_size, shared.vectors(0), group, sums.key_table + own);
        __syncthreads();
      }
    }
  });
}

// table[l][head][c] = the sum of partial[run][head][c][l] over runs, in order.
template <class A>
__global__ void __launch_bounds__(kAttentionThreads)
    sum_partial(const A* __restrict__ partial, int64_t num_runs, int rows, int num_heads, int head_dim,
                A* __restrict__ table) {
  const int64_t size = int64_t(rows) * num_heads * head_dim;
  const int64_t step = int64_t(gridDim.x) * kAttentionThreads;
  for (int64_t item = int64_t(blockIdx.x) * kAttentionThreads + threadIdx.x; item < size; item += step) {
    A sum = A(0);
    for (int64_t run = 0; run < num_runs; ++run) sum += partial[run * size + item];
    const int64_t l = item % rows;
    const int64_t c = item / rows % head_dim;
    const int64_t head = item / rows / head_dim;
    table[(l * num_heads + head) * head_dim + c] = sum;
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    round_sums(const A* __restrict__ sums, int64_t count, T* __restrict__ rounded) {
  const int64_t step = int64_t(gridDim.x) * kAttentionThreads;
  for (int64_t at = int64_t(blockIdx.x) * kAttentionThreads + threadIdx.x; at < count; at += step) {
    rounded[at] = static_cast<T>(sums[at]);
  }
}

// Runs of the backward pass, given the bytes of one set of table gradients: each run keeps a set.
inline int64_t backward_runs(int64_t num_voxels, int64_t num_windows, int64_t num_heads, int64_t bytes) {
  const int64_t runs = attention_runs(num_voxels, num_windows, num_heads);
  const int64_t most = kPartialBytes / (bytes > 0 ? bytes : 1);
  return runs < most ? runs : (most > 0 ? most : 1);
}

// Values of a block's scratch: scores, and shares.
inline int64_t backward_scratch(int64_t num_voxels) { return 2 * attention_room(num_voxels); }

// Blocks of a kernel whose threads stride over items.
inline int64_t striding_blocks(int64_t items) {
  const int64_t blocks = ceil_div(items, kAttentionThreads);
  return blocks < (1 << 20) ? blocks : (1 << 20);
}

// `values`: blocks times backward_scratch(), blocks = num_runs * num_heads. `sums`: features (num_voxels, num_heads,
// head_dim) and num_runs sets of each table's gradient, all zero before. The sets are added up into `tables`.
template <int kDim, class T, class A, class Launch>
void window_attention_backward(const WindowAttention<T, A>& w, const AttentionResult<T, A>& r, int64_t num_runs,
                               A* values, const AttentionSums<A>& sums, A* const* tables, const Launch& launch) {
  if (w.num_voxels > 0 && w.num_heads > 0) {
    const AttentionShared<A> shared = attention_shared<A>(w.axes, 2, 2);
    const AttentionScratch<A> scratch = {values, attention_room(w.num_voxels), backward_scratch(w.num_voxels)};
    launch.with_shared(attend_backward<kDim, T, A>, num_runs * w.num_heads, kAttentionThreads, shared.bytes(), w, r,
                       shared, scratch, sums);
  }
  const int rows = w.table_rows();
  const int64_t size = int64_t(rows) * w.num_heads * w.head_dim;
  if (size == 0) return;
  const A* const partial[3] = {sums.query_table, sums.key_table, sums.value_table};
  for (int t = 0; t < 3; ++t) {
    launch(sum_partial<A>, striding_blocks(size), kAttentionThreads, partial[t], num_runs, rows, w.num_heads,
           w.head_dim, tables[t]);
  }
}

}  // namespace cuda
}  // namespace pc3d
