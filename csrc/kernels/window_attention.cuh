// Attention within windows of voxels with tables for differences of signals on CUDA: the forward pass.
//
// kernels/window_attention.h has the formulas. A block takes one head and tiles of its windows, one after another:
//
//   1. Each key meets the key table in a matrix product (B, in its warp's shared memory); then each pair adds a scalar
//      of B for each signal to q . k and leaves the sum in a scratch that the block owns.
//   2. Each query meets the query table (A, in shared memory); pairs add a scalar of A for each signal, and the shares
//      of the soft-max go to a histogram over table rows, which meets the value table in the end.
//
// Warps wait for each other between these two only, however many windows a tile has.
//
// Floor, in multiply-adds or look-ups per pair and head, d the head's width and D the number of signals: 2d + 3D
// forward and 5d + 6D backward. Gathering vectors from tables would take 3d + 2Dd + 3D and 8d + 3Dd + 6D: for d = 16
// and D = 9, 363 and 614 in place of 59 and 134. Products with tables come on top, 3Ld forward and 8Ld backward for
// each voxel and head (L table rows), those of keys once for each tile.
//
// The scratch does not grow with windows of more than kMostSide voxels: these are cut into tiles of queries and, past
// kMostKeys, into chunks of keys, with a soft-max that goes on from chunk to chunk. All blocks together have at most
// 36 MB forward and 67 MB backward, twice that in float64 (more only for more than 512 heads). What is arranged anew
// takes as much as queries, keys, values and results once more, padded and in the type of the sums.
#pragma once

#include "kernels/attention_block.cuh"

namespace pc3d {
namespace cuda {

// Most warps of a block: as registers allow.
template <int kDim, class A>
constexpr int kForwardWarps = sizeof(A) == 8 || kDim > 16 ? 8 : (kDim > 8 ? 24 : 16);

// Values of a block's scratch: scores, and the soft-max of queries whose keys come in chunks.
inline int64_t forward_scratch(int64_t num_voxels, int width) {
  return attention_room(num_voxels) + kMostQueriesOfChunks * (2 + width);
}

// exp(score - top), `top` the largest of all so far: 0 for -infinity, even if there is nothing else so far.
template <class A>
__device__ __forceinline__ A share_of(A score, A top) {
  return score == -infinity<A>() ? A(0) : exponential(score - top);
}

// The soft-max of a query so far: the largest score, the sum of exponentials, and each lane's part of the result.
template <int kDim, class A>
struct SoftMax {
  A top;
  A total;  // of this lane
  A sum[kDim];

  // Takes the lanes' scores in, -infinity for none; gives each lane's share.
  __device__ __forceinline__ A take(A score, const AttentionPlan& plan) {
    const A largest = warp_largest(score);
    if (largest > top) {  // all lanes alike
      rescale(exponential(top - largest), plan);
      top = largest;
    }
    const A share = share_of(score, top);
    total += share;
    return share;
  }

 private:
  __device__ __forceinline__ void rescale(A scale, const AttentionPlan& plan) {
    if (top == -infinity<A>()) return;  // nothing yet
    total *= scale;
#pragma unroll
    for (int c = 0; c < kDim; ++c) sum[c] *= scale;
    A* histograms = AttentionMemory<A>{plan}.histogram(warp_index(), 0);
    for (int l = lane_index(); l < plan.histograms * plan.rows; l += kWarp) histograms[l] *= scale;
  }
};

// The result of one query from a chunk of keys, the only one or one of several. `state`: where it waits between chunks.
template <int kDim, class A>
__device__ __forceinline__ void attend_to(const ArrangedAttention<A>& w, const AttentionPlan& plan,
                                          const HeadTables<A>& tables, const HistogramLane& histogram,
                                          const Member& query, int head, const A* scores, A* state, A* out,
                                          A* log_sum) {
  const AttentionMemory<A> memory = {plan};
  const int lane = lane_index();
  const int warp = warp_index();
  const Part& part = query.part;
  const int64_t i = part.query_begin + query.number;
  A* products = memory.product(warp, 0);
  const Pairs<1, A> pairs(w, {i}, true);
  {
    A vector[1][kDim];
    load_vector(w.query + w.place(head, i) * kDim, vector[0]);
    __syncwarp();  // the voxel before is done with this memory
    multiply_table(vector, tables.query, plan.rows, products);
    clear_histograms<A>(plan);
  }
  __syncwarp();
  SoftMax<kDim, A> soft_max = {-infinity<A>(), A(0), {}};
  const A* own = scores + part.scores + query.number;
  for_each_32(part.num_keys, [&](int number, bool there, int count) {
    const int64_t j = part.key_begin + number;
    A score = own[int64_t(number) * part.num_queries];
    pairs.each(j, [&](int a, int, int row) {
      score += products[row];
      memory.select(warp, a, row);
    });
    const A share = soft_max.take(there ? score : -infinity<A>(), plan);
    memory.weights(warp, 0)[lane] = share;
    if (there) add_scaled(share, w.value + w.place(head, j) * kDim, soft_max.sum);
    histogram.count<A>(plan, count, plan.histograms);
  });
  add_copies<A>(plan);
  add_histogram(memory.histogram(warp, 0), tables.value, plan.rows, soft_max.sum);
  // Chunks before this one weigh less where it has a larger score, and the other way round.
  const A before = part.is_first ? -infinity<A>() : state[0];
  const A top = soft_max.top > before ? soft_max.top : before;
  const A old_scale = part.is_first ? A(0) : share_of(before, top);
  const A new_scale = part.is_first ? A(1) : share_of(soft_max.top, top);
  A total = warp_sum(soft_max.total) * new_scale;
  if (!part.is_first) total += state[1] * old_scale;
  __syncwarp();
  A* row = out + w.place(head, i) * kDim;
  write_sums(soft_max.sum, [&](int c, A value) {
    value *= new_scale;
    if (!part.is_first) value += state[2 + c] * old_scale;
    if (part.is_last) {
      row[c] = value / total;
    } else {
      state[2 + c] = value;
    }
  });
  if (lane != 0) return;
  if (part.is_last) {
    log_sum[w.place(head, i)] = top + logarithm(total);
  } else {
    state[0] = top;
    state[1] = total;
  }
}

// `out` (heads, positions, width), `log_sum` (heads, positions).
template <int kDim, bool kShared, class A>
__global__ void __launch_bounds__(kForwardWarps<kDim, A>* kWarp, kSideBySide<kDim, A>)
    attend(const ArrangedAttention<A> w, const AttentionPlan plan, int64_t room, int64_t of_block,
           A* __restrict__ scratch, A* __restrict__ out, A* __restrict__ log_sum) {
  const int head = static_cast<int>(blockIdx.x % w.num_heads);
  const HeadTables<A> tables = tables_of_head<kDim, kShared>(w, plan, head);
  const HistogramLane histogram(plan);
  A* scores = scratch + blockIdx.x * of_block;
  for_each_tile(w, room, [&](const Tile& tile) {
    score_keys<kDim>(w, plan, tables, tile, head, scores);
    __syncthreads();
    for (int number = warp_index(); number < tile.num_queries; number += plan.warps) {
      const Member query = member_of(tile, tile.first_query, number);
      const bool is_whole = query.part.is_first && query.part.is_last;
      A* state = scores + room + (is_whole ? 0 : number) * (2 + kDim);
      attend_to<kDim>(w, plan, tables, histogram, query, head, scores, state, out, log_sum);
    }
  });
}

template <int kDim, class A>
AttentionPlan forward_plan(const ArrangedAttention<A>& w, int shared_tables, size_t most_bytes) {
  const AttentionPlan plan = {0, w.axes.total(), kDim, 0, 1, w.axes.count, 1, 1, shared_tables};
  const int side_by_side = w.axes.count > 0 ? kWarp / w.axes.count : 1;
  return fit<A>(plan, kForwardWarps<kDim, A>, side_by_side < 4 ? side_by_side : 4, most_bytes);
}

// `scratch`: blocks times forward_scratch(), blocks = num_runs * num_heads.
template <int kDim, class A, class Launch>
void window_attention(const ArrangedAttention<A>& w, int64_t num_runs, A* scratch, A* out, A* log_sum,
                      const Launch& launch) {
  if (w.num_voxels == 0 || w.num_heads == 0) return;
  const size_t bytes = launch.shared_bytes(kSideBySide<kDim, A>);
  const int64_t room = attention_room(w.num_voxels);
  const auto run = [&](const auto kernel, const AttentionPlan& plan) {
    launch.with_shared(kernel, num_runs * w.num_heads, plan.warps * kWarp, sizeof(A) * plan.values(), w, plan, room,
                       forward_scratch(w.num_voxels, kDim), scratch, out, log_sum);
  };
  if constexpr (kDim <= kSharedDim<A>) {
    const AttentionPlan plan = forward_plan<kDim>(w, 3, bytes);
    if (plan.warps == kForwardWarps<kDim, A>) return run(attend<kDim, true, A>, plan);
  }
  run(attend<kDim, false, A>, forward_plan<kDim>(w, 0, bytes));
}

}  // namespace cuda
}  // namespace pc3d
