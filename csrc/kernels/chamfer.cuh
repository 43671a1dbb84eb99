// The two directed nearest-neighbour searches of the chamfer distance on CUDA.
//
// A warp serves 32 queries, one a lane. It stages 32 points at a time in shared memory, where all lanes read the same
// point at once. Groups of 32 points (what pre-training compares) are one warp a pair; where queries are few, several
// warps share them and each takes a part of the points.
#pragma once

#include "kernels/common.cuh"

namespace pc3d {
namespace cuda {

constexpr int kNearestThreads = 256;
constexpr int kNearestWarps = kNearestThreads / kWarp;
constexpr int64_t kEnoughNearestQueries = 65536;  // as many lanes fill a GPU without sharing

template <class T>
struct alignas(16) StagedPoint {
  T x, y, z, unused;
};

// For every row of `query` the nearest row of `xyz` in the same cloud (lowest index on a tie); kShare warps share the
// queries of one. In an empty cloud (only unchecked input can ask for that) the row is -1, the distance infinite.
template <class T, int kShare>
__global__ void __launch_bounds__(kNearestThreads, 4)
    find_nearest(const T* __restrict__ xyz, int64_t num_rows, const int64_t* __restrict__ offsets,
                 const T* __restrict__ query, int64_t num_queries, const int64_t* __restrict__ query_offsets,
                 int64_t num_clouds, T* __restrict__ out_squared, int64_t* __restrict__ out_index) {
  __shared__ StagedPoint<T> staged[kNearestWarps * kWarp];
  __shared__ T shared_distance[kNearestThreads];
  __shared__ uint32_t shared_index[kNearestThreads];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int part = warp % kShare;
  const int64_t first = (int64_t(blockIdx.x) * (kNearestWarps / kShare) + warp / kShare) * kWarp;
  const int64_t m = first + lane;
  const bool exists = m < num_queries;
  const int64_t row = exists ? m : num_queries - 1;
  const int64_t own_cloud = cloud_of_row_device(query_offsets, num_clouds, row);
  const T qx = query[3 * row];
  const T qy = query[3 * row + 1];
  const T qz = query[3 * row + 2];
  StagedPoint<T>* stage = staged + warp * kWarp;
  T best = infinity<T>();
  uint32_t best_index = kNone;

  const int64_t first_cloud = __shfl_sync(kAllLanes, static_cast<long long>(own_cloud), 0);
  const int64_t last_cloud = __shfl_sync(kAllLanes, static_cast<long long>(own_cloud), kWarp - 1);
  for (int64_t b = first_cloud; b <= last_cloud && first < num_queries; ++b) {
    const bool mine = own_cloud == b;
    if (__ballot_sync(kAllLanes, mine) == 0u) continue;
    const Rows rows = rows_of_cloud(offsets, b, num_rows);
    const T* cloud = xyz + 3 * rows.begin;
    for (int64_t base = int64_t(part) * kWarp; base < rows.size(); base += kShare * kWarp) {
      const int64_t left = rows.size() - base;
      const int count = static_cast<int>(left < kWarp ? left : kWarp);
      __syncwarp();
      if (lane < count) {
        const T* p = cloud + 3 * (base + lane);
        stage[lane] = {p[0], p[1], p[2], T(0)};
      }
      __syncwarp();
      if (mine) {
#pragma unroll 8
        for (int j = 0; j < count; ++j) {
          const StagedPoint<T> p = stage[j];
          const T d = squared_norm(qx - p.x, qy - p.y, qz - p.z);
          if (d < best) {
            best = d;
            best_index = static_cast<uint32_t>(base) + j;
          }
        }
      }
    }
  }

  if (kShare > 1) {
    shared_distance[threadIdx.x] = best;
    shared_index[threadIdx.x] = best_index;
    __syncthreads();
    if (part != 0) return;
    for (int other = 1; other < kShare; ++other) {
      const T d = shared_distance[threadIdx.x + other * kWarp];
      const uint32_t i = shared_index[threadIdx.x + other * kWarp];
      if (d < best || (d == best && i < best_index)) {
        best = d;
        best_index = i;
      }
    }
  }
  if (!exists) return;
  const Rows rows = rows_of_cloud(offsets, own_cloud, num_rows);
  // Nothing is nearer than infinity where all distances overflow: then it is the first point.
  if (best_index == kNone) best_index = 0u;
  out_squared[m] = best;
  out_index[m] = rows.size() > 0 ? rows.begin + best_index : -1;
}

template <class T, class Launch>
void nearest_one_way(const Search<T>& s, int64_t* index, T* squared, const Launch& launch) {
  if (s.num_queries == 0) return;
  const bool enough = s.num_queries >= kEnoughNearestQueries;
  launch(enough ? find_nearest<T, 1> : find_nearest<T, kNearestWarps>,
         ceil_div(s.num_queries, enough ? kNearestThreads : kWarp), kNearestThreads, s.xyz, s.num_rows, s.offsets,
         s.query, s.num_queries, s.query_offsets, s.num_clouds, squared, index);
}

}  // namespace cuda
}  // namespace pc3d
