// k nearest neighbours and ball queries on CUDA, all pairs measured; kernels/neighbor_tree.cuh is for large clouds.
//
// A warp serves one query (or a few): its lanes measure 32 points at a time out of a tile in shared memory. Points come
// in the order of their index, so one that is as far as the last one kept never replaces it. Memory beyond the result:
// none.
#pragma once

#include "kernels/sorted_list.cuh"

namespace pc3d {
namespace cuda {

constexpr int kTilePoints = 1024;
constexpr int64_t kManyQueries = 65536;  // enough warps to fill a GPU with several queries each

// Copies points [begin, begin + count) of a cloud into shared memory; called by the whole block.
template <class T>
__device__ __forceinline__ void load_tile(const T* __restrict__ cloud, int64_t begin, int count, T* tile) {
  __syncthreads();  // the tile before is no longer read
  for (int i = threadIdx.x; i < 3 * count; i += kNeighborThreads) tile[i] = cloud[3 * begin + i];
  __syncthreads();
}

// The clouds that a block's queries [first, end) lie in, and each query's own.
struct QueryClouds {
  const int64_t* query_offsets;
  int64_t num_clouds;
  int64_t num_queries;

  __device__ __forceinline__ int64_t of(int64_t row) const {
    return cloud_of_row_device(query_offsets, num_clouds, row < num_queries ? row : num_queries - 1);
  }
  __device__ __forceinline__ bool has_queries(int64_t cloud, int64_t first, int64_t end) const {
    const Rows rows = rows_of_cloud(query_offsets, cloud, num_queries);
    return rows.size() > 0 && rows.begin < end && rows.end > first;
  }
};

// kNN (kBall false): the k nearest. Nearest-first ball query (kBall true): the k nearest with distance < limit, and
// their number. Where k exceeds the list, several passes each take the next best (kPasses true).
template <class T, int kEntries, int kQueries, bool kBall, bool kPasses>
__global__ void __launch_bounds__(kNeighborThreads, sizeof(T) * kEntries * kQueries > 8 ? 2 : 4)
    select_nearest(const T* __restrict__ xyz, int64_t num_rows, const int64_t* __restrict__ offsets,
                   const T* __restrict__ query, int64_t num_queries, const int64_t* __restrict__ query_offsets,
                   int64_t num_clouds, int64_t k, T limit, int64_t* __restrict__ out_index, T* __restrict__ out_squared,
                   int64_t* __restrict__ out_count) {
  __shared__ T tile[3 * kTilePoints];
  constexpr int kRoom = kEntries * kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t block_first = int64_t(blockIdx.x) * kNeighborWarps * kQueries;
  const int64_t block_end = block_first + kNeighborWarps * kQueries;
  const int64_t warp_first = block_first + (threadIdx.x / kWarp) * kQueries;
  const QueryClouds clouds = {query_offsets, num_clouds, num_queries};

  int64_t cloud_of[kQueries];
  T qx[kQueries], qy[kQueries], qz[kQueries];
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    const int64_t m = warp_first + q < num_queries ? warp_first + q : num_queries - 1;
    cloud_of[q] = warp_first + q < num_queries ? clouds.of(m) : -1;
    qx[q] = query[3 * m];
    qy[q] = query[3 * m + 1];
    qz[q] = query[3 * m + 2];
  }

  SortedList<T, kEntries> list[kQueries];
  typename SortedList<T, kEntries>::Entry passed = {T(-1), 0u};  // what earlier passes ended with
  int64_t total = 0;                                             // what they found
  int64_t nearest_of_all = -1;
  for (int64_t done = 0; done < k; done += kRoom) {
    const int wanted = static_cast<int>(k - done < kRoom ? k - done : kRoom);
#pragma unroll
    for (int q = 0; q < kQueries; ++q) list[q].clear(kBall ? limit : infinity<T>());

    const int64_t last_cloud = clouds.of(block_end - 1);
    for (int64_t b = clouds.of(block_first); b <= last_cloud; ++b) {
      if (!clouds.has_queries(b, block_first, block_end)) continue;
      const Rows rows = rows_of_cloud(offsets, b, num_rows);
      const T* cloud = xyz + 3 * rows.begin;
      for (int64_t tile_begin = 0; tile_begin < rows.size(); tile_begin += kTilePoints) {
        const int64_t left = rows.size() - tile_begin;
        const int count = static_cast<int>(left < kTilePoints ? left : kTilePoints);
        load_tile(cloud, tile_begin, count, tile);
        for (int base = 0; base < count; base += kWarp) {
          const int p = base + lane;
          const bool exists = p < count;
          const T x = exists ? tile[3 * p] : T(0);
          const T y = exists ? tile[3 * p + 1] : T(0);
          const T z = exists ? tile[3 * p + 2] : T(0);
          const uint32_t i = static_cast<uint32_t>(tile_begin + p);
#pragma unroll
          for (int q = 0; q < kQueries; ++q) {
            if (cloud_of[q] != b) continue;
            const T d = squared_norm(qx[q] - x, qy[q] - y, qz[q] - z);
            // Without a limit the first points are taken at any distance, infinite ones too.
            bool better = exists && (d < list[q].worst || (!kBall && list[q].filled < wanted));
            if (kPasses && done > 0) {
              better = better && (d > passed.distance || (d == passed.distance && i > passed.index));
            }
            uint32_t candidates = __ballot_sync(kAllLanes, better);
            while (candidates != 0u) {
              const int source = __ffs(static_cast<int>(candidates)) - 1;
              candidates &= candidates - 1u;
              const T candidate = __shfl_sync(kAllLanes, d, source);
              if (candidate < list[q].worst || (!kBall && list[q].filled < wanted)) {
                list[q].insert(candidate, static_cast<uint32_t>(tile_begin + base + source), wanted);
              }
            }
          }
        }
      }
    }

#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const int64_t m = warp_first + q;
      if (m >= num_queries) continue;
      const int64_t row = rows_of_cloud(offsets, cloud_of[q], num_rows).begin;
      const uint32_t first = list[q].at(0).index;
      if (done == 0) nearest_of_all = first == kNone ? -1 : row + first;
#pragma unroll
      for (int e = 0; e < kEntries; ++e) {
        const int position = e * kWarp + lane;
        if (position >= wanted) continue;
        const bool found = list[q].index[e] != kNone;
        out_index[m * k + done + position] = found ? row + list[q].index[e] : (kBall ? nearest_of_all : -1);
        if (!kBall) out_squared[m * k + done + position] = list[q].distance[e];
      }
      total = (done == 0 ? 0 : total) + list[q].filled;
      if (kBall && lane == 0) out_count[m] = total;
      if (kPasses) passed = list[q].at(wanted - 1);
    }
  }
}

// Ball query by lowest index: a warp a query, which stops once it has enough.
template <class T>
__global__ void __launch_bounds__(kNeighborThreads)
    select_first_within(const T* __restrict__ xyz, int64_t num_rows, const int64_t* __restrict__ offsets,
                        const T* __restrict__ query, int64_t num_queries, const int64_t* __restrict__ query_offsets,
                        int64_t num_clouds, int64_t max_neighbors, T limit, int64_t* __restrict__ out_index,
                        int64_t* __restrict__ out_count) {
  __shared__ T tile[3 * kTilePoints];
  const int lane = threadIdx.x % kWarp;
  const int64_t block_first = int64_t(blockIdx.x) * kNeighborWarps;
  const int64_t block_end = block_first + kNeighborWarps;
  const int64_t m = block_first + threadIdx.x / kWarp;
  const bool exists = m < num_queries;
  const QueryClouds clouds = {query_offsets, num_clouds, num_queries};
  const int64_t own_cloud = exists ? clouds.of(m) : -1;
  const int64_t row = exists ? m : num_queries - 1;
  const T qx = query[3 * row];
  const T qy = query[3 * row + 1];
  const T qz = query[3 * row + 2];
  int64_t* out = out_index + row * max_neighbors;
  int64_t found = 0;
  int64_t first = -1;

  const int64_t last_cloud = clouds.of(block_end - 1);
  for (int64_t b = clouds.of(block_first); b <= last_cloud; ++b) {
    if (!clouds.has_queries(b, block_first, block_end)) continue;
    const Rows rows = rows_of_cloud(offsets, b, num_rows);
    const T* cloud = xyz + 3 * rows.begin;
    for (int64_t tile_begin = 0; tile_begin < rows.size(); tile_begin += kTilePoints) {
      const bool busy = own_cloud == b && found < max_neighbors;
      if (__syncthreads_or(busy) == 0) break;
      const int64_t left = rows.size() - tile_begin;
      const int count = static_cast<int>(left < kTilePoints ? left : kTilePoints);
      load_tile(cloud, tile_begin, count, tile);
      if (!busy) continue;
      for (int base = 0; base < count && found < max_neighbors; base += kWarp) {
        const int p = base + lane;
        const bool inside =
            p < count && squared_norm(qx - tile[3 * p], qy - tile[3 * p + 1], qz - tile[3 * p + 2]) < limit;
        const uint32_t hits = __ballot_sync(kAllLanes, inside);
        if (hits == 0u) continue;
        const int64_t here = rows.begin + tile_begin + base;
        if (found == 0) first = here + __ffs(static_cast<int>(hits)) - 1;
        const int64_t slot = found + __popc(hits & ((1u << lane) - 1u));
        if (inside && slot < max_neighbors) out[slot] = here + lane;
        found += __popc(hits);
      }
    }
  }
  if (!exists) return;
  found = found < max_neighbors ? found : max_neighbors;
  for (int64_t slot = found + lane; slot < max_neighbors; slot += kWarp) out[slot] = first;
  if (lane == 0) out_count[m] = found;
}

template <class T, int kEntries, int kQueries, bool kBall, bool kPasses, class Launch>
void launch_select(const Search<T>& s, int64_t k, T limit, int64_t* index, T* squared, int64_t* count,
                   const Launch& launch) {
  launch(select_nearest<T, kEntries, kQueries, kBall, kPasses>, ceil_div(s.num_queries, kNeighborWarps * kQueries),
         kNeighborThreads, s.xyz, s.num_rows, s.offsets, s.query, s.num_queries, s.query_offsets, s.num_clouds, k,
         limit, index, squared, count);
}

template <class T, bool kBall, class Launch>
void select_by_size(const Search<T>& s, int64_t k, T limit, int64_t* index, T* squared, int64_t* count,
                    const Launch& launch) {
  if (s.num_queries == 0) return;
  if (k <= 32 && s.num_queries >= kManyQueries) {
    launch_select<T, 1, 4, kBall, false>(s, k, limit, index, squared, count, launch);
  } else if (k <= 32) {
    launch_select<T, 1, 1, kBall, false>(s, k, limit, index, squared, count, launch);
  } else if (k <= 64) {
    launch_select<T, 2, 1, kBall, false>(s, k, limit, index, squared, count, launch);
  } else if (k <= 128) {
    launch_select<T, 4, 1, kBall, false>(s, k, limit, index, squared, count, launch);
  } else {
    launch_select<T, 4, 1, kBall, true>(s, k, limit, index, squared, count, launch);
  }
}

// (num_queries, k) rows of xyz and squared distances, by (distance, index). A cloud of fewer than k points (only
// unchecked input can have one) fills up with -1 and infinity.
template <class T, class Launch>
void knn(const Search<T>& search, int64_t k, int64_t* index, T* squared, const Launch& launch) {
  select_by_size<T, false>(search, k, T(0), index, squared, nullptr, launch);
}

// Up to max_neighbors rows within the radius of each query, and how many; slots past the count repeat the first.
template <class T, class Launch>
void ball_query(const Search<T>& search, T squared_radius, int64_t max_neighbors, bool nearest_first, int64_t* index,
                int64_t* count, const Launch& launch) {
  if (search.num_queries == 0) return;
  if (nearest_first) {
    select_by_size<T, true>(search, max_neighbors, squared_radius, index, nullptr, count, launch);
  } else {
    launch(select_first_within<T>, ceil_div(search.num_queries, kNeighborWarps), kNeighborThreads, search.xyz,
           search.num_rows, search.offsets, search.query, search.num_queries, search.query_offsets, search.num_clouds,
           max_neighbors, squared_radius, index, count);
  }
}

}  // namespace cuda
}  // namespace pc3d
