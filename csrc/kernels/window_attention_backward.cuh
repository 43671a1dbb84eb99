// The backward pass of attention in windows on CUDA. With S the scores, P the shares and go the gradient of the result:
//
//   dP_ij = go_i . v_j + sum_a G[i, t_a]     G = go Tv'         dS_ij = P_ij (dP_ij - go_i . o_i)
//   dq_i  = sum_j dS_ij k_j + HS[i] Tq       dk_j = sum_i dS_ij q_i + HC[j] Tk       dv_j = sum_i P_ij go_i
//   dTq   = HS' q     dTk = HC' k     dTv = HP' go              HS, HC, HP: dS and P summed over pairs, by table row
//
// A block takes tiles of windows and one head as in the forward pass: keys leave their part of the scores, queries
// complete them and leave dS and P in their place, and keys read these. As many voxels as the block has warps then add
// to the gradients of the tables, which a thread keeps for a row, in registers where the head is narrow.
#pragma once

#include "kernels/window_attention.cuh"

namespace pc3d {
namespace cuda {

constexpr int64_t kPartialBytes = 64 << 20;  // of all partial sums of table gradients, if they can be that few

template <int kDim, class A>
constexpr int kBackwardWarps = sizeof(A) == 8 || kDim > 16 ? 8 : (kDim > 8 ? 16 : 12);
// Whether a thread keeps a row of each table's gradient in registers.
template <int kDim, class A>
constexpr bool kRowInRegisters = sizeof(A) == 4 && kDim <= 16;

// What the backward pass reads besides: arranged as the features, and (heads, positions).
template <class A>
struct ArrangedGradient {
  const A* grad;
  const A* log_sum;
  const A* level;
};

// Sums: features (heads, positions, width), zero before; tables (runs, heads, width, rows).
template <class A>
struct AttentionSums {
  A* query;
  A* key;
  A* value;
  A* query_table;
  A* key_table;
  A* value_table;
};

// The gradient of a table within a block: the sum of outer products of histograms and vectors.
template <int kDim, class A>
class TableGradient {
 public:
  __device__ __forceinline__ TableGradient(A* partial, const AttentionPlan& plan) : partial_(partial), row_{} {
    for (int row = first_in_memory(plan) + threadIdx.x; row < plan.rows; row += plan.warps * kWarp) {
      for (int c = 0; c < kDim; ++c) partial_[c * plan.rows + row] = A(0);
    }
  }

  // Adds histogram `which_histogram` times vector `which_vector` of the block's first `count` warps.
  __device__ __forceinline__ void add(const AttentionPlan& plan, int which_histogram, int which_vector, int count) {
    if constexpr (kRowInRegisters<kDim, A>) {
      if (static_cast<int>(threadIdx.x) < plan.rows)
        add_row(plan, which_histogram, which_vector, count, threadIdx.x, row_);
    }
    for (int row = first_in_memory(plan) + threadIdx.x; row < plan.rows; row += plan.warps * kWarp) {
      A sum[kDim];
#pragma unroll
      for (int c = 0; c < kDim; ++c) sum[c] = partial_[c * plan.rows + row];
      add_row(plan, which_histogram, which_vector, count, row, sum);
#pragma unroll
      for (int c = 0; c < kDim; ++c) partial_[c * plan.rows + row] = sum[c];
    }
  }

  // Leaves what registers hold.
  __device__ __forceinline__ void write(const AttentionPlan& plan) const {
    if constexpr (kRowInRegisters<kDim, A>) {
      if (static_cast<int>(threadIdx.x) >= plan.rows) return;
#pragma unroll
      for (int c = 0; c < kDim; ++c) partial_[c * plan.rows + threadIdx.x] = row_[c];
    }
  }

 private:
  // A thread adds to the rows from here on in `partial`, where only it comes.
  __device__ __forceinline__ static int first_in_memory(const AttentionPlan& plan) {
    return kRowInRegisters<kDim, A> ? plan.warps * kWarp : 0;
  }

  template <class Sum>
  __device__ __forceinline__ static void add_row(const AttentionPlan& plan, int which_histogram, int which_vector,
                                                 int count, int row, Sum& sum) {
    const AttentionMemory<A> memory = {plan};
    for (int warp = 0; warp < count; ++warp) {
      const A weight = memory.histogram(warp, which_histogram)[row];
      if (weight == A(0)) continue;
      const A* vector = memory.vector(warp, which_vector);
#pragma unroll
      for (int c = 0; c < kDim; c += 4) {
        const Four<A> four = *reinterpret_cast<const Four<A>*>(vector + c);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[c + e] = multiply_add(weight, four.values[e], sum[c + e]);
      }
    }
  }

  A* partial_;
  A row_[kRowInRegisters<kDim, A> ? kDim : 1];
};

// One query and a chunk of keys: its gradient, and dS and P in place of its scores.
template <int kDim, class A>
__device__ __forceinline__ void gradient_of_query(const ArrangedAttention<A>& w, const ArrangedGradient<A>& r,
                                                  const AttentionPlan& plan, const HeadTables<A>& tables,
                                                  const HistogramLane& histogram, const Member& query, int head,
                                                  A* scores, A* shares, A* for_query) {
  const AttentionMemory<A> memory = {plan};
  const int lane = lane_index();
  const int warp = warp_index();
  const Part& part = query.part;
  const int64_t i = part.query_begin + query.number;
  const int64_t place = w.place(head, i);
  A* products = memory.product(warp, 0);
  A* pushed = memory.product(warp, 1);
  A push[1][kDim];
  load_and_keep(r.grad + place * kDim, push[0], memory.vector(warp, 1));
  {
    A vector[1][kDim];
    load_and_keep(w.query + place * kDim, vector[0], memory.vector(warp, 0));
    multiply_table(vector, tables.query, plan.rows, products);
  }
  multiply_table(push, tables.value, plan.rows, pushed);
  clear_histograms<A>(plan);
  __syncwarp();
  const Pairs<1, A> pairs(w, {i}, true);
  const A level = r.level[place];
  const A log_sum = r.log_sum[place];
  A sum[kDim] = {};
  const int64_t first = part.scores + query.number;
  for_each_32(part.num_keys, [&](int number, bool there, int count) {
    const int64_t j = part.key_begin + number;
    const int64_t at = first + int64_t(number) * part.num_queries;
    A score = scores[at];
    A value[kDim];
    load_vector(w.value + w.place(head, j) * kDim, value);
    A for_share = dot(value, push[0]);
    pairs.each(j, [&](int a, int, int row) {
      score += products[row];
      for_share += pushed[row];
      memory.select(warp, a, row);
    });
    __syncwarp();  // the first lane's score, which idle lanes read too, is about to change
    const A share = there ? exponential(score - log_sum) : A(0);
    const A for_score = there ? share * (for_share - level) : A(0);
    memory.weights(warp, 0)[lane] = for_score;
    memory.weights(warp, 1)[lane] = share;
    if (there) {
      scores[at] = for_score;
      shares[at] = share;
      add_scaled(for_score, w.key + w.place(head, j) * kDim, sum);
    }
    histogram.count<A>(plan, count, 1);
  });
  add_histogram(memory.histogram(warp, 0), tables.query, plan.rows, sum);
  A* row = for_query + place * kDim;
  write_sums(sum, [&](int c, A value) { row[c] += value; });
}

// One key and a tile of queries: its gradient and its value's.
template <int kDim, class A>
__device__ __forceinline__ void gradient_of_key(const ArrangedAttention<A>& w, const ArrangedGradient<A>& r,
                                                const AttentionPlan& plan, const HeadTables<A>& tables,
                                                const HistogramLane& histogram, const Member& key, int head,
                                                const A* for_scores, const A* shares, A* for_key, A* for_value) {
  const AttentionMemory<A> memory = {plan};
  const int lane = lane_index();
  const int warp = warp_index();
  const Part& part = key.part;
  const int64_t j = part.key_begin + key.number;
  const int64_t place = w.place(head, j);
  for (int c = lane; c < kDim; c += kWarp) memory.vector(warp, 0)[c] = w.key[place * kDim + c];
  clear_histograms<A>(plan);
  const Pairs<1, A> pairs(w, {j}, false);
  A key_sum[kDim] = {};
  A value_sum[kDim] = {};
  const int64_t first = part.scores + int64_t(key.number) * part.num_queries;
  for_each_32(part.num_queries, [&](int number, bool there, int count) {
    const int64_t i = part.query_begin + number;
    A for_score = A(0);
    if (there) {
      for_score = for_scores[first + number];
      add_scaled(for_score, w.query + w.place(head, i) * kDim, key_sum);
      add_scaled(shares[first + number], r.grad + w.place(head, i) * kDim, value_sum);
    }
    memory.weights(warp, 0)[lane] = for_score;
    pairs.each(i, [&](int a, int, int row) { memory.select(warp, a, row); });
    histogram.count<A>(plan, count, plan.histograms);  // all are copies of one
  });
  add_copies<A>(plan);
  add_histogram(memory.histogram(warp, 0), tables.key, plan.rows, key_sum);
  A* key_row = for_key + place * kDim;
  A* value_row = for_value + place * kDim;
  write_sums(key_sum, [&](int c, A value) { key_row[c] += value; });
  write_sums(value_sum, [&](int c, A value) { value_row[c] += value; });
}

// f(number of the warp's voxel, whether there is one, how many the block has) for groups of one voxel a warp.
template <class F>
__device__ __forceinline__ void for_each_group(int count, int warps, const F& f) {
  for (int first = 0; first < count; first += warps) {
    const int left = count - first;
    f(first + warp_index(), first + warp_index() < count, left < warps ? left : warps);
  }
}

template <int kDim, bool kShared, class A>
__global__ void __launch_bounds__(kBackwardWarps<kDim, A>* kWarp, kSideBySide<kDim, A>)
    attend_backward(const ArrangedAttention<A> w, const ArrangedGradient<A> r, const AttentionPlan plan, int64_t room,
                    A* __restrict__ scratch, const AttentionSums<A> sums) {
  const int head = static_cast<int>(blockIdx.x % w.num_heads);
  const HeadTables<A> tables = tables_of_head<kDim, kShared>(w, plan, head);
  const HistogramLane histogram(plan);
  A* scores = scratch + blockIdx.x * 2 * room;
  A* shares = scores + room;
  const int64_t own = int64_t(blockIdx.x) * kDim * plan.rows;
  TableGradient<kDim, A> for_query(sums.query_table + own, plan);
  TableGradient<kDim, A> for_key(sums.key_table + own, plan);
  TableGradient<kDim, A> for_value(sums.value_table + own, plan);
  for_each_tile(w, room, [&](const Tile& tile) {
    score_keys<kDim>(w, plan, tables, tile, head, scores);
    __syncthreads();
    for_each_group(tile.num_queries, plan.warps, [&](int number, bool there, int count) {
      if (there) {
        gradient_of_query<kDim>(w, r, plan, tables, histogram, member_of(tile, tile.first_query, number), head, scores,
                                shares, sums.query);
      }
      __syncthreads();
      for_query.add(plan, 0, 0, count);
      for_value.add(plan, 1, 1, count);
      __syncthreads();
    });
    for_each_group(tile.num_keys, plan.warps, [&](int number, bool there, int count) {
      if (there) {
        gradient_of_key<kDim>(w, r, plan, tables, histogram, member_of(tile, tile.first_key, number), head, scores,
                              shares, sums.key, sums.value);
      }
      __syncthreads();
      for_key.add(plan, 0, 0, count);
      __syncthreads();
    });
  });
  for_query.write(plan);
  for_key.write(plan);
  for_value.write(plan);
}

// Runs of the backward pass, given the bytes of one set of table gradients: each run keeps a set.
inline int64_t backward_runs(int64_t num_voxels, int64_t num_windows, int64_t num_heads, int64_t bytes) {
  const int64_t runs = attention_runs(num_voxels, num_windows, num_heads);
  const int64_t most = kPartialBytes / (bytes > 0 ? bytes : 1);
  return runs < most ? runs : (most > 0 ? most : 1);
}

template <int kDim, class A>
AttentionPlan backward_plan(const ArrangedAttention<A>& w, int shared_tables, size_t most_bytes) {
  const AttentionPlan plan = {0, w.axes.total(), kDim, 2, 2, w.axes.count, 2, 2, shared_tables};
  return fit<A>(plan, kBackwardWarps<kDim, A>, plan.histograms, most_bytes);
}

// `scratch`: blocks times two times attention_room(), blocks = num_runs * num_heads.
template <int kDim, class A, class Launch>
void window_attention_backward(const ArrangedAttention<A>& w, const ArrangedGradient<A>& r, int64_t num_runs,
                               A* scratch, const AttentionSums<A>& sums, const Launch& launch) {
  if (w.num_voxels == 0 || w.num_heads == 0) return;
  const size_t bytes = launch.shared_bytes(kSideBySide<kDim, A>);
  const auto run = [&](const auto kernel, const AttentionPlan& plan) {
    launch.with_shared(kernel, num_runs * w.num_heads, plan.warps * kWarp, sizeof(A) * plan.values(), w, r, plan,
                       attention_room(w.num_voxels), scratch, sums);
  };
  if constexpr (kDim <= kSharedDim<A>) {
    const AttentionPlan plan = backward_plan<kDim>(w, 3, bytes);
    if (plan.warps == kBackwardWarps<kDim, A>) return run(attend_backward<kDim, true, A>, plan);
  }
  run(attend_backward<kDim, false, A>, backward_plan<kDim>(w, 0, bytes));
}

}  // namespace cuda
}  // namespace pc3d
