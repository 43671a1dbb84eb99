// The best points of a query, sorted by (distance, index) in the registers of a warp: position p in lane p % 32.
#pragma once

#include "kernels/common.cuh"

namespace pc3d {
namespace cuda {

constexpr int kNeighborThreads = 256;
constexpr int kNeighborWarps = kNeighborThreads / kWarp;

// The `wanted` best of one query, spread over a warp; room for 32 * kEntries.
template <class T, int kEntries>
struct SortedList {
  struct Entry {
    T distance;
    uint32_t index;
  };

  T distance[kEntries];
  uint32_t index[kEntries];
  int filled;
  T worst;               // the distance to beat once the list is full
  uint32_t worst_index;  // and at that distance the index

  // Nothing at `limit` or beyond will be accepted; at a limit of infinity anything will.
  __device__ __forceinline__ void clear(T limit) {
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      distance[e] = infinity<T>();
      index[e] = kNone;
    }
    filled = 0;
    worst = limit;
    worst_index = limit < infinity<T>() ? 0u : kNone;
  }

  __device__ __forceinline__ bool accepts(T d, uint32_t i) const {
    return d < worst || (d == worst && i < worst_index);
  }

  // Puts a point where it belongs by (distance, index). Called by the whole warp with the same arguments.
  __device__ __forceinline__ void insert(T d, uint32_t i, int wanted) {
    const int lane = threadIdx.x % kWarp;
    int position = 0;
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      const bool before = distance[e] < d || (distance[e] == d && index[e] < i);
      position += __popc(__ballot_sync(kAllLanes, before));
    }
#pragma unroll
    for (int e = kEntries - 1; e >= 0; --e) {
      T left_distance = __shfl_up_sync(kAllLanes, distance[e], 1);
      uint32_t left_index = __shfl_up_sync(kAllLanes, index[e], 1);
      if (e > 0) {
        const T carried_distance = __shfl_sync(kAllLanes, distance[e > 0 ? e - 1 : 0], kWarp - 1);
        const uint32_t carried_index = __shfl_sync(kAllLanes, index[e > 0 ? e - 1 : 0], kWarp - 1);
        left_distance = lane == 0 ? carried_distance : left_distance;
        left_index = lane == 0 ? carried_index : left_index;
      }
      const int here = e * kWarp + lane;
      distance[e] = here < position ? distance[e] : here == position ? d : left_distance;
      index[e] = here < position ? index[e] : here == position ? i : left_index;
    }
    filled = filled < wanted ? filled + 1 : wanted;
    if (filled == wanted) {
      const Entry last = at(wanted - 1);
      worst = last.distance;
      worst_index = last.index;
    }
  }

  // The entry at a position, known to every lane.
  __device__ __forceinline__ Entry at(int position) const {
    T d = distance[0];
    uint32_t i = index[0];
#pragma unroll
    for (int e = 1; e < kEntries; ++e) {
      d = position / kWarp == e ? distance[e] : d;
      i = position / kWarp == e ? index[e] : i;
    }
    return {__shfl_sync(kAllLanes, d, position % kWarp), __shfl_sync(kAllLanes, i, position % kWarp)};
  }
};

}  // namespace cuda
}  // namespace pc3d
