// Attention within windows of voxels with tables for differences of signals on CUDA: the forward pass.
//
// kernels/window_attention.h has the formulas. A block takes a window and one head, a tile of its queries at a time:
//
//   1. Keys, four at a time, meet the key table in a matrix product (B, in shared memory); then each pair of the tile
//      adds a scalar of B for each signal to q . k and leaves the sum in a scratch that the block owns.
//   2. Queries, four at a time, meet the query table (A, in shared memory); pairs add a scalar of A for each signal,
//      and the soft-max's shares go to a histogram over table rows, which meets the value table in the end.
//
// Floor, in multiply-adds or look-ups per pair and head, d the head's width and D the number of signals: 2d + 3D
// forward and 5d + 6D backward. Gathering vectors from tables would take 3d + 2Dd + 3D and 8d + 3Dd + 6D: for d = 16
// and D = 9, 363 and 614 in place of 59 and 134. Products with tables come on top, 3Ld forward and 8Ld backward for
// each voxel and head (L table rows), those of keys once for each tile.
//
// The scratch does not grow with windows of more than 128 voxels: these are cut into tiles of queries and, past
// kMostKeys, into chunks of keys, which are passed twice, first for the sum of the soft-max. All blocks together have
// at most 70 MB forward and 135 MB backward, twice that in float64 (more only for more than 1,024 heads).
#pragma once

#include "kernels/attention_tables.cuh"

namespace pc3d {
namespace cuda {

constexpr int64_t kMostAttentionBlocks = 1024;
constexpr int64_t kMostScores = 1 << 14;  // of a block, at a time
constexpr int64_t kMostKeys = 1 << 10;
constexpr int64_t kTileOfChunks = kMostScores / kMostKeys;  // queries of a tile whose keys come in chunks
constexpr int64_t kRowsOfBlock = 64;                        // voxels, of a head, that are worth a block

// What a block keeps scores in.
template <class A>
struct AttentionScratch {
  A* values;
  int64_t room;      // scores
  int64_t of_block;  // values in all

  __device__ __forceinline__ A* scores() const { return values + int64_t(blockIdx.x) * of_block; }
  __device__ __forceinline__ A* after_scores() const { return scores() + room; }
};

// Scores that a block needs room for, at most: a window has no more voxels than there are.
inline int64_t attention_room(int64_t num_voxels) {
  const int64_t size = num_voxels < kMostKeys ? num_voxels : kMostKeys;
  return size * size < kMostScores ? size * size : kMostScores;
}

// Values of a block's scratch in the forward pass: the soft-max of queries whose keys come in chunks, too.
inline int64_t forward_scratch(int64_t num_voxels, int head_dim) {
  return attention_room(num_voxels) + kTileOfChunks * (2 + head_dim);
}

// Windows are dealt out to this many runs, a block each for every head. It depends on the sizes alone, so that sums
// over windows are the same on every device.
inline int64_t attention_runs(int64_t num_voxels, int64_t num_windows, int64_t num_heads) {
  const int64_t heads = num_heads > 0 ? num_heads : 1;
  int64_t runs = kMostAttentionBlocks / heads;
  const int64_t useful = ceil_div(num_voxels, kRowsOfBlock);
  runs = runs < useful ? runs : useful;
  runs = runs < num_windows ? runs : num_windows;
  return runs > 0 ? runs : 1;
}

// Queries and keys of a window whose scores are kept at a time.
struct Tiling {
  int64_t queries;
  int64_t keys;
};

__device__ __forceinline__ Tiling tiling_of(int64_t size, int64_t room) {
  const int64_t keys = size < kMostKeys ? size : kMostKeys;
  const int64_t queries = room / keys;
  return {queries < size ? queries : size, keys};
}

// f(the voxels of a tile, the tiling of its window, the window) for all tiles of the block's windows.
template <class T, class A, class F>
__device__ __forceinline__ void for_each_tile(const WindowAttention<T, A>& w, int64_t room, const F& f) {
  const int64_t runs = gridDim.x / w.num_heads;
  for (int64_t index = blockIdx.x / w.num_heads; index < w.num_windows; index += runs) {
    const Rows window = rows_of_cloud(w.offsets, index, w.num_voxels);
    if (window.size() == 0) continue;
    const Tiling tiling = tiling_of(window.size(), room);
    for (int64_t begin = window.begin; begin < window.end; begin += tiling.queries) {
      const int64_t end = begin + tiling.queries;
      f(Rows{begin, end < window.end ? end : window.end}, tiling, window);
    }
  }
}

__device__ __forceinline__ Rows chunk_of(const Rows& window, int64_t begin, const Tiling& tiling) {
  const int64_t end = begin + tiling.keys;
  return {begin, end < window.end ? end : window.end};
}

// scores[query][key] = q . k + sum_a B[key, t_a], for all pairs of a tile and a chunk. The block waits at the end.
template <class T, class A>
__device__ __forceinline__ void score_keys(const WindowAttention<T, A>& w, const AttentionShared<A>& shared,
                                           const Rows& queries, const Rows& keys, int64_t stride, int head, A* scores) {
  const int warp = warp_index();
  A* vector = shared.vectors(0) + warp * kMostHeadDim;
  const A* projected = shared.projected(0) + warp * w.table_rows();
  for (int64_t first = keys.begin; first < keys.end; first += kAttentionWarps) {
    const bool active = first + warp < keys.end;
    const int64_t position = active ? first + warp : first;
    const int64_t j = w.row_at(position);
    stage(w, w.key, j, head, active, vector);
    __syncthreads();
    project(w, shared.vectors(0), w.key_table, head, shared.projected(0));
    __syncthreads();
    if (active) {
      for (int64_t at = queries.begin + lane_index(); at < queries.end; at += kWarp) {
        const int64_t i = w.row_at(at);
        scores[(at - queries.begin) * stride + position - keys.begin] =
            dot(w, w.query, i, head, vector) + looked_up(w, projected, i, j);
      }
    }
    __syncthreads();
  }
}

// Adds what the query's own table products say to its scores, and gives the largest.
template <class T, class A>
__device__ __forceinline__ A complete(const WindowAttention<T, A>& w, const A* projected, int64_t i, const Rows& keys,
                                      A* scores) {
  A top = -infinity<A>();
  for (int64_t at = keys.begin + lane_index(); at < keys.end; at += kWarp) {
    const A e = scores[at - keys.begin] + looked_up(w, projected, i, w.row_at(at));
    scores[at - keys.begin] = e;
    top = e > top ? e : top;
  }
  return warp_largest(top);
}

// The soft-max of a query whose keys come in chunks, between chunks: largest score, sum, result.
template <class A>
struct ChunkState {
  A* values;

  // Takes in the scores of a chunk.
  __device__ __forceinline__ void merge(A largest, const A* scores, int64_t count, bool is_first) {
    const A before = is_first ? -infinity<A>() : values[0];
    const A sum = is_first ? A(0) : values[1];
    const A top = largest > before ? largest : before;
    A total = A(0);
    for (int64_t at = lane_index(); at < count; at += kWarp) total += exponential(scores[at] - top);
    total = warp_sum(total);
    if (!is_first) total += sum * exponential(before - top);
    __syncwarp();
    if (lane_index() == 0) {
      values[0] = top;
      values[1] = total;
    }
    __syncwarp();
  }
};

// The result of one query from its scores of a chunk of keys, the only one or one of several.
template <int kDim, class T, class A>
__device__ __forceinline__ void attend_to(const WindowAttention<T, A>& w, const AttentionShared<A>& shared, int64_t i,
                                          int head, const Rows& keys, const Rows& window, A top, const A* scores,
                                          const ChunkState<A>& state, T* out, A* log_sum) {
  const int lane = lane_index();
  const bool is_whole = keys.size() == window.size();
  Histogram<T, A> histogram(w, shared.copies, i, true, shared.counts(0) + warp_index() * shared.copies * w.table_rows(),
                            nullptr);
  A total = A(0);
  A sum[kDim] = {};
  for (int64_t base = keys.begin; base < keys.end; base += kWarp) {
    const int64_t left = keys.end - base;
    const int active = static_cast<int>(left < kWarp ? left : kWarp);
    const int64_t at = base + (lane < active ? lane : 0);
    const int64_t j = w.row_at(at);
    const A share = lane < active ? exponential(scores[at - keys.begin] - top) : A(0);
    total += share;
    if (lane < active) add_scaled<kDim>(w, share, w.value, j, head, sum);
    histogram.add(share, A(0), j, active);
  }
  histogram.finish();
  total = is_whole ? warp_sum(total) : state.values[1];
  const A scale = A(1) / total;
  T* row = out + w.features_at(i, head);
  finish<kDim>(w, sum, histogram.counts(), w.value_table, head, [&](int c, A value) {
    A* so_far = state.values + 2 + c;
    value = value * scale + (keys.begin == window.begin ? A(0) : *so_far);
    if (keys.end == window.end) {
      row[c] = static_cast<T>(value);
    } else {
      *so_far = value;
    }
  });
  if (lane == 0 && keys.end == window.end) log_sum[i * w.num_heads + head] = top + log(total);
}

template <int kDim, class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    attend(const WindowAttention<T, A> w, const AttentionShared<A> shared, const AttentionScratch<A> scratch,
           T* __restrict__ out, A* __restrict__ log_sum) {
  const int head = static_cast<int>(blockIdx.x % w.num_heads);
  const int warp = warp_index();
  A* scores = scratch.scores();
  for_each_tile(w, scratch.room, [&](const Rows& queries, const Tiling& tiling, const Rows& window) {
    const bool is_whole = tiling.keys == window.size();
    // Sweep 0 finds the soft-max's sums where keys come in chunks; sweep 1 the result.
    for (int sweep = is_whole ? 1 : 0; sweep < 2; ++sweep) {
      for (int64_t begin = window.begin; begin < window.end; begin += tiling.keys) {
        const Rows keys = chunk_of(window, begin, tiling);
        score_keys(w, shared, queries, keys, tiling.keys, head, scores);
        for (int64_t first = queries.begin; first < queries.end; first += kAttentionWarps) {
          const bool active = first + warp < queries.end;
          const int64_t position = active ? first + warp : first;
          const int64_t i = w.row_at(position);
          stage(w, w.query, i, head, active, shared.vectors(0) + warp * kMostHeadDim);
          __syncthreads();
          project(w, shared.vectors(0), w.query_table, head, shared.projected(0));
          __syncthreads();
          if (active) {
            const int64_t number = position - queries.begin;
            A* row = scores + number * tiling.keys;
            // Without chunks there is no state, and nothing of it is read or written.
            ChunkState<A> state = {scratch.after_scores() + (is_whole ? 0 : number * (2 + w.head_dim))};
            const A largest = complete(w, shared.projected(0) + warp * w.table_rows(), i, keys, row);
            __syncwarp();
            if (sweep == 0) {
              state.merge(largest, row, keys.size(), begin == window.begin);
            } else {
              const A top = is_whole ? largest : state.values[0];
              attend_to<kDim>(w, shared, i, head, keys, window, top, row, state, out, log_sum);
            }
          }
          __syncthreads();
        }
      }
    }
  });
}

// `values`: blocks times forward_scratch(), blocks = num_runs * num_heads.
template <int kDim, class T, class A, class Launch>
void window_attention(const WindowAttention<T, A>& w, int64_t num_runs, A* values, T* out, A* log_sum,
                      const Launch& launch) {
  if (w.num_voxels == 0 || w.num_heads == 0) return;
  const AttentionShared<A> shared = attention_shared<A>(w.axes, 1, 1);
  const AttentionScratch<A> scratch = {values, attention_room(w.num_voxels), forward_scratch(w.num_voxels, w.head_dim)};
  launch.with_shared(attend<kDim, T, A>, num_runs * w.num_heads, kAttentionThreads, shared.bytes(), w, shared, scratch,
                     out, log_sum);
}

}  // namespace cuda
}  // namespace pc3d
