// Farthest point sampling on CUDA.
//
// Each step depends on the one before, so what counts is the time of one step. Running distances live in registers:
//  * clouds of up to 8,192 points (4,096 in double) take one block each, with the points in shared memory and one
//    barrier a step;
//  * larger clouds take a group of blocks each, all resident at once, which post their farthest point on a board in
//    global memory at every step. A group is no larger than it needs to be: a meeting of few takes less than the points
//    that the others would take over. A whole H100 holds 1M points in its registers; beyond that the running distances
//    spill to global memory.
// Which clouds are large only the device knows (reading offsets on the host would stall the stream), so every kernel
// that may be needed is launched and passes over the clouds that are not its own. The host may know a size that none
// exceeds.
#pragma once

#include "kernels/common.cuh"

namespace pc3d {
namespace cuda {

constexpr int kSmallThreads = 256;
constexpr int64_t kSmallCloud = 1024;
constexpr int kMediumThreads = 512;
template <class T>
constexpr int kMostPerThread = sizeof(T) == 4 ? 16 : 8;  // points a thread can hold in registers
template <class T>
constexpr int64_t kMediumCloud = int64_t(kMediumThreads) * kMostPerThread<T>;

template <class T>
struct Farthest {
  T distance;      // -1: no candidate
  uint32_t index;  // 0 then, so that exhausted clouds repeat their first point
};

template <class T>
__device__ __forceinline__ Farthest<T> farther(Farthest<T> a, Farthest<T> b) {
  const bool take_b = b.distance > a.distance || (b.distance == a.distance && b.index < a.index);
  return take_b ? b : a;
}

// The farthest of a warp, known to every lane; the lowest index wins a tie.
__device__ __forceinline__ Farthest<double> warp_farthest(Farthest<double> mine) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Farthest<double> other = {__shfl_xor_sync(kAllLanes, mine.distance, step),
                                    __shfl_xor_sync(kAllLanes, mine.index, step)};
    mine = farther(mine, other);
  }
  return mine;
}

// Floats that are not negative sort like their bits, which the hardware reduces in one instruction.
__device__ __forceinline__ Farthest<float> warp_farthest(Farthest<float> mine) {
  const uint32_t key = mine.distance < 0.0f ? 0u : __float_as_uint(mine.distance) + 1u;
  const uint32_t most = __reduce_max_sync(kAllLanes, key);
  const uint32_t index = __reduce_min_sync(kAllLanes, key == most ? mine.index : kNone);
  return {most == 0u ? -1.0f : __uint_as_float(most - 1u), index};
}

// The points of one thread: index begin + j * kThreads for j in [0, kPoints), with their running distances.
template <class T, int kThreads, int kPoints>
struct HeldPoints {
  T x[kPoints], y[kPoints], z[kPoints], nearest[kPoints];
  uint32_t begin;

  __device__ __forceinline__ void load(const T* xyz, uint32_t first, uint32_t end, bool ignore_near_origin) {
    begin = first;
#pragma unroll
    for (int j = 0; j < kPoints; ++j) {
      const uint32_t i = first + j * kThreads;
      const bool exists = i < end;
      x[j] = exists ? xyz[3 * int64_t(i)] : T(0);
      y[j] = exists ? xyz[3 * int64_t(i) + 1] : T(0);
      z[j] = exists ? xyz[3 * int64_t(i) + 2] : T(0);
      const bool never = ignore_near_origin && squared_norm(x[j], y[j], z[j]) <= static_cast<T>(kNearOriginSquaredNorm);
      nearest[j] = exists && !never ? infinity<T>() : T(-1);
    }
  }

  // Takes the point at (cx, cy, cz) into account and finds this thread's farthest; `taken` is never found again.
  __device__ __forceinline__ Farthest<T> step(T cx, T cy, T cz, uint32_t taken) {
    Farthest<T> best = {T(-1), 0u};
#pragma unroll
    for (int j = 0; j < kPoints; ++j) {
      const T d = squared_norm(x[j] - cx, y[j] - cy, z[j] - cz);
      const uint32_t i = begin + j * kThreads;
      nearest[j] = d < nearest[j] ? d : nearest[j];
      nearest[j] = i == taken ? T(-1) : nearest[j];
      if (nearest[j] > best.distance) best = {nearest[j], i};
    }
    return best;
  }
};

// The farthest of a block, known to every thread. `slots` holds two entries a warp, used in turn, so that one barrier
// is enough: nobody can write an entry again before everybody has read it.
template <class T, int kThreads>
__device__ __forceinline__ Farthest<T> block_farthest(Farthest<T> mine, Farthest<T>* slots, uint32_t turn) {
  constexpr int kWarps = kThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  mine = warp_farthest(mine);
  Farthest<T>* row = slots + (turn & 1u) * kWarps;
  if (lane == 0) row[threadIdx.x / kWarp] = mine;
  __syncthreads();
  const Farthest<T> other = lane < kWarps ? row[lane] : Farthest<T>{T(-1), 0u};
  return warp_farthest(other);
}

struct Job {
  Rows points;
  Rows samples;
  uint32_t start;
};

__device__ __forceinline__ Job job_of_cloud(int64_t cloud, const int64_t* offsets, int64_t num_rows,
                                            const int64_t* sample_offsets, int64_t num_total, const int64_t* start) {
  Job job;
  job.points = rows_of_cloud(offsets, cloud, num_rows);
  job.samples = rows_of_cloud(sample_offsets, cloud, num_total);
  const int64_t last = job.points.size() > 0 ? job.points.size() - 1 : 0;
  job.start = static_cast<uint32_t>(clamp(start[cloud], 0, last));
  return job;
}

// One cloud by one block, its points in shared memory and, kPoints a thread, in registers.
template <class T, int kThreads, int kPoints>
__device__ void sample_in_block(const T* cloud, const Job& job, bool ignore_near_origin, T* shared_xyz,
                                Farthest<T>* slots, int64_t* out) {
  const uint32_t n = static_cast<uint32_t>(job.points.size());
  for (uint32_t i = threadIdx.x; i < 3 * n; i += kThreads) shared_xyz[i] = cloud[i];
  __syncthreads();
  HeldPoints<T, kThreads, kPoints> held;
  held.load(shared_xyz, threadIdx.x, n, ignore_near_origin);
  uint32_t current = job.start;
  if (threadIdx.x == 0) out[job.samples.begin] = job.points.begin + current;
  const uint32_t wanted = static_cast<uint32_t>(job.samples.size());
  for (uint32_t s = 1; s < wanted; ++s) {
    const T* c = shared_xyz + 3 * current;
    const Farthest<T> best = held.step(c[0], c[1], c[2], ignore_near_origin ? kNone : current);
    current = block_farthest<T, kThreads>(best, slots, s).index;
    if (threadIdx.x == 0) out[job.samples.begin + s] = job.points.begin + current;
  }
}

// Block b samples cloud b, if it has more than `above` and at most kThreads * kMost points. The first of these kernels
// (`above` is negative) also sees to clouds that none samples: those of no points, and of more than `served`.
template <class T, int kThreads, int kMost>
__global__ void __launch_bounds__(kThreads)
    sample_clouds(const T* __restrict__ xyz, int64_t num_rows, const int64_t* __restrict__ offsets,
                  const int64_t* __restrict__ sample_offsets, int64_t num_total, const int64_t* __restrict__ start,
                  bool ignore_near_origin, int64_t above, int64_t served, int64_t* __restrict__ out) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ Farthest<T> slots[2 * kThreads / kWarp];
  const Job job = job_of_cloud(blockIdx.x, offsets, num_rows, sample_offsets, num_total, start);
  const int64_t n = job.points.size();
  if (job.samples.size() == 0 || n == 0 || n <= above || n > served || n > int64_t(kThreads) * kMost) {
    // Samples asked of an empty cloud (only unchecked offsets can do that) have no row.
    if ((n == 0 || n > served) && above < 0) {
      for (int64_t s = job.samples.begin + threadIdx.x; s < job.samples.end; s += kThreads) out[s] = -1;
    }
    return;
  }
  T* shared_xyz = reinterpret_cast<T*>(shared_bytes);
  const T* cloud = xyz + 3 * job.points.begin;
  if (n <= kThreads * (kMost / 4)) {
    sample_in_block<T, kThreads, kMost / 4>(cloud, job, ignore_near_origin, shared_xyz, slots, out);
  } else if (n <= kThreads * (kMost / 2)) {
    sample_in_block<T, kThreads, kMost / 2>(cloud, job, ignore_near_origin, shared_xyz, slots, out);
  } else {
    sample_in_block<T, kThreads, kMost>(cloud, job, ignore_near_origin, shared_xyz, slots, out);
  }
}

// ---- Large clouds: a group of blocks each.

// Where the blocks of a group meet. Every entry is split into pieces of 32 bits, each written in one 64-bit word
// together with the number of the step. A word that bears the right number is complete by itself, so neither fences nor
// atomics are needed: blocks write their own words and read everyone's until all bear the number. Odd and even steps
// use different words; a block writes those of step s + 2 only after it has seen all of step s + 1, whose writers have
// read all of step s.
template <class T>
constexpr int kWords = sizeof(T) / 4 + 1;

__device__ __forceinline__ uint32_t piece(Farthest<float> entry, int word) {
  return word == 0 ? __float_as_uint(entry.distance) : entry.index;
}
__device__ __forceinline__ uint32_t piece(Farthest<double> entry, int word) {
  const unsigned long long bits = static_cast<unsigned long long>(__double_as_longlong(entry.distance));
  return word == 0 ? static_cast<uint32_t>(bits >> 32) : word == 1 ? static_cast<uint32_t>(bits) : entry.index;
}
__device__ __forceinline__ Farthest<float> assemble(const uint32_t (&pieces)[2]) {
  return {__uint_as_float(pieces[0]), pieces[1]};
}
__device__ __forceinline__ Farthest<double> assemble(const uint32_t (&pieces)[3]) {
  const unsigned long long bits = static_cast<unsigned long long>(pieces[0]) << 32 | pieces[1];
  return {__longlong_as_double(static_cast<long long>(bits)), pieces[2]};
}

template <class T>
struct Group {
  volatile unsigned long long* board;  // [2][size][kWords], zero at first
  int size;
  int member;
  uint32_t step;  // counts over all clouds of the group; its members always agree

  // Called by one whole warp: posts this block's entry and returns the farthest of all blocks. A lane asks for the
  // words of several blocks at once: each takes its time to come, but not one after the other.
  __device__ __forceinline__ Farthest<T> meet(Farthest<T> mine) {
    constexpr int kAtOnce = 4;
    const int lane = threadIdx.x % kWarp;
    volatile unsigned long long* row = board + int64_t(step & 1u) * size * kWords<T>;
    if (lane < kWords<T>) {
      row[member * kWords<T> + lane] = static_cast<unsigned long long>(piece(mine, lane)) << 32 | step;
    }
    Farthest<T> best = {T(-1), 0u};
    for (int first = lane; first < size; first += kAtOnce * kWarp) {
      unsigned long long words[kAtOnce][kWords<T>];
      for (;;) {
        bool all = true;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int other = first + i * kWarp;
#pragma unroll
          for (int word = 0; word < kWords<T>; ++word) {
            words[i][word] = other < size ? row[other * kWords<T> + word] : step;
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
          for (int word = 0; word < kWords<T>; ++word) all = all && static_cast<uint32_t>(words[i][word]) == step;
        }
        if (all) break;
        __nanosleep(20);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        uint32_t pieces[kWords<T>];
#pragma unroll
        for (int word = 0; word < kWords<T>; ++word) pieces[word] = static_cast<uint32_t>(words[i][word] >> 32);
        if (first + i * kWarp < size) best = farther(best, assemble(pieces));
      }
    }
    __syncwarp();
    return warp_farthest(best);
  }
};

// The farthest of a group, known to every thread of every block.
template <class T, int kThreads>
__device__ __forceinline__ uint32_t group_farthest(Farthest<T> mine, Farthest<T>* slots, Group<T>& group) {
  constexpr int kWarps = kThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  ++group.step;
  mine = warp_farthest(mine);
  if (lane == 0) slots[warp] = mine;
  __syncthreads();
  if (warp == 0) {
    Farthest<T> best = lane < kWarps ? slots[lane] : Farthest<T>{T(-1), 0u};
    best = group.meet(warp_farthest(best));
    if (lane == 0) slots[kWarps] = best;
  }
  __syncthreads();
  return slots[kWarps].index;
}

// This block's share in registers.
template <class T, int kThreads, int kPoints>
__device__ void sample_in_group(const T* __restrict__ cloud, const Job& job, bool ignore_near_origin,
                                Farthest<T>* slots, Group<T>& group, int64_t* out) {
  const uint32_t n = static_cast<uint32_t>(job.points.size());
  const int64_t share = int64_t(group.member) * kThreads * kPoints;
  const uint32_t first = static_cast<uint32_t>(share < n ? share : n) + threadIdx.x;
  const uint32_t end = static_cast<uint32_t>(share + kThreads * kPoints < n ? share + kThreads * kPoints : n);
  HeldPoints<T, kThreads, kPoints> held;
  held.load(cloud, first, end, ignore_near_origin);
  uint32_t current = job.start;
  for (int64_t s = job.samples.begin + 1; s < job.samples.end; ++s) {
    const T* c = cloud + 3 * int64_t(current);
    const Farthest<T> best = held.step(c[0], c[1], c[2], ignore_near_origin ? kNone : current);
    current = group_farthest<T, kThreads>(best, slots, group);
    if (group.member == 0 && threadIdx.x == 0) out[s] = job.points.begin + current;
  }
}

// This block's share in global memory (`nearest`), for clouds that the registers of the group cannot hold.
template <class T, int kThreads>
__device__ void sample_in_group_memory(const T* __restrict__ cloud, const Job& job, bool ignore_near_origin,
                                       Farthest<T>* slots, Group<T>& group, T* __restrict__ nearest, int64_t* out) {
  const int64_t n = job.points.size();
  const int64_t share = ceil_div(n, group.size);
  const int64_t begin = share * group.member < n ? share * group.member : n;
  const int64_t end = begin + share < n ? begin + share : n;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const bool never = ignore_near_origin && squared_norm(cloud[3 * i], cloud[3 * i + 1], cloud[3 * i + 2]) <=
                                                 static_cast<T>(kNearOriginSquaredNorm);
    nearest[i] = never ? T(-1) : infinity<T>();
  }
  uint32_t current = job.start;
  for (int64_t s = job.samples.begin + 1; s < job.samples.end; ++s) {
    const T cx = cloud[3 * int64_t(current)];
    const T cy = cloud[3 * int64_t(current) + 1];
    const T cz = cloud[3 * int64_t(current) + 2];
    Farthest<T> best = {T(-1), 0u};
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const T d = squared_norm(cloud[3 * i] - cx, cloud[3 * i + 1] - cy, cloud[3 * i + 2] - cz);
      const T held = nearest[i];
      T value = d < held ? d : held;
      if (!ignore_near_origin && i == current) value = T(-1);
      if (value < held) nearest[i] = value;
      if (value > best.distance) best = {value, static_cast<uint32_t>(i)};
    }
    current = group_farthest<T, kThreads>(best, slots, group);
    if (group.member == 0 && threadIdx.x == 0) out[s] = job.points.begin + current;
  }
}

// Group g of `group_size` blocks samples clouds g, g + number of groups, ... of more than `above` points. All blocks
// must be resident at once where group_size > 1 (a cooperative launch sees to that).
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    sample_large_clouds(const T* __restrict__ xyz, int64_t num_rows, const int64_t* __restrict__ offsets,
                        int64_t num_clouds, const int64_t* __restrict__ sample_offsets, int64_t num_total,
                        const int64_t* __restrict__ start, bool ignore_near_origin, int64_t above, int group_size,
                        unsigned long long* board, T* __restrict__ nearest, int64_t* __restrict__ out) {
  __shared__ Farthest<T> slots[kThreads / kWarp + 1];
  const int num_groups = gridDim.x / group_size;
  const int group_index = blockIdx.x / group_size;
  Group<T> group;
  group.board = board + int64_t(group_index) * 2 * group_size * kWords<T>;
  group.size = group_size;
  group.member = blockIdx.x % group_size;
  group.step = 0;
  for (int64_t b = group_index; b < num_clouds; b += num_groups) {
    const Job job = job_of_cloud(b, offsets, num_rows, sample_offsets, num_total, start);
    const int64_t n = job.points.size();
    if (n <= above || job.samples.size() == 0) continue;
    if (group.member == 0 && threadIdx.x == 0) out[job.samples.begin] = job.points.begin + job.start;
    const T* cloud = xyz + 3 * job.points.begin;
    const int64_t per_thread = ceil_div(n, int64_t(group_size) * kThreads);
    constexpr int kMost = kMostPerThread<T>;
    if (per_thread <= kMost / 8) {
      sample_in_group<T, kThreads, kMost / 8>(cloud, job, ignore_near_origin, slots, group, out);
    } else if (per_thread <= kMost / 4) {
      sample_in_group<T, kThreads, kMost / 4>(cloud, job, ignore_near_origin, slots, group, out);
    } else if (per_thread <= kMost / 2) {
      sample_in_group<T, kThreads, kMost / 2>(cloud, job, ignore_near_origin, slots, group, out);
    } else if (per_thread <= kMost) {
      sample_in_group<T, kThreads, kMost>(cloud, job, ignore_near_origin, slots, group, out);
    } else {
      sample_in_group_memory<T, kThreads>(cloud, job, ignore_near_origin, slots, group, nearest + job.points.begin,
                                          out);
    }
  }
}

// How large clouds are shared out; decided from what the host knows.
struct GroupPlan {
  int num_groups;
  int group_size;
};

// Points a thread had best hold: their work is then as long as a fraction of a meeting.
template <class T>
constexpr int kFewPerThread = sizeof(T) == 4 ? 4 : 2;
// Blocks that meet as fast as a few do: two for each lane.
constexpr int64_t kEasyGroup = 2 * kWarp;

// `largest`: points that no cloud exceeds. `resident_blocks`: how many blocks of sample_large_clouds run at once; 0
// where the device cannot promise any number.
template <class T>
GroupPlan plan_groups(int64_t num_rows, int64_t largest, int64_t num_clouds, int64_t resident_blocks) {
  const int64_t most_large = num_rows / (kMediumCloud<T> + 1);
  const int64_t large = num_clouds < most_large ? num_clouds : most_large;
  if (resident_blocks <= 0) return {static_cast<int>(large < 1024 ? large : 1024), 1};
  const int64_t groups = large < resident_blocks ? large : resident_blocks;
  int64_t size = ceil_div(largest, kMediumThreads * kFewPerThread<T>);
  if (size > kEasyGroup) size = kEasyGroup;
  const int64_t least = ceil_div(largest, kMediumCloud<T>);  // that hold it in their registers
  if (size < least) size = least;
  const int64_t share = resident_blocks / groups;
  return {static_cast<int>(groups), static_cast<int>(size < share ? size : share)};
}

template <class T>
int64_t board_words(GroupPlan plan) {
  return int64_t(2) * plan.num_groups * plan.group_size * kWords<T>;
}

template <class T>
bool may_be_large(int64_t largest) {
  return largest > kMediumCloud<T>;
}

// `largest`: points that no cloud exceeds; samples of one that does (only unchecked sizes can do that) have no row.
// `board` (board_words, zero) and `nearest` (num_rows) are scratch, needed only if may_be_large(largest).
template <class T, class Launch>
void farthest_point_sample(const T* xyz, int64_t num_rows, const int64_t* offsets, int64_t num_clouds, int64_t largest,
                           const int64_t* sample_offsets, int64_t num_total, const int64_t* start,
                           bool ignore_near_origin, GroupPlan plan, unsigned long long* board, T* nearest, int64_t* out,
                           const Launch& launch) {
  if (num_clouds == 0 || num_total == 0) return;
  constexpr int kSmallMost = int(kSmallCloud / kSmallThreads);
  constexpr int kMediumMost = kMostPerThread<T>;
  const bool one = num_clouds == 1;  // then its size is known here
  const bool large = may_be_large<T>(largest);
  const int64_t served = large ? num_rows : largest <= kSmallCloud ? kSmallCloud : largest;
  if (!one || large || largest <= kSmallCloud) {
    launch.with_shared(sample_clouds<T, kSmallThreads, kSmallMost>, num_clouds, kSmallThreads,
                       3 * kSmallCloud * sizeof(T), xyz, num_rows, offsets, sample_offsets, num_total, start,
                       ignore_near_origin, int64_t(-1), served, out);
  }
  if (largest > kSmallCloud && (!one || !large)) {
    const int64_t most = served < kMediumCloud<T> ? served : kMediumCloud<T>;
    launch.with_shared(sample_clouds<T, kMediumThreads, kMediumMost>, num_clouds, kMediumThreads, 3 * most * sizeof(T),
                       xyz, num_rows, offsets, sample_offsets, num_total, start, ignore_near_origin,
                       one ? int64_t(-1) : kSmallCloud, served, out);
  }
  if (large) {
    const int64_t blocks = int64_t(plan.num_groups) * plan.group_size;
    const auto kernel = sample_large_clouds<T, kMediumThreads>;
    const int64_t above = one ? kSmallCloud : kMediumCloud<T>;
    if (plan.group_size > 1) {
      launch.cooperative(kernel, blocks, kMediumThreads, xyz, num_rows, offsets, num_clouds, sample_offsets, num_total,
                         start, ignore_near_origin, above, plan.group_size, board, nearest, out);
    } else {
      launch(kernel, blocks, kMediumThreads, xyz, num_rows, offsets, num_clouds, sample_offsets, num_total, start,
             ignore_near_origin, above, plan.group_size, board, nearest, out);
    }
  }
}

}  // namespace cuda
}  // namespace pc3d
