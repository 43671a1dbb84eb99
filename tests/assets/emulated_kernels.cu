// Kernels that tests/test_emulation.py runs, most of them wrong on purpose.
#include <exception>
#include <string>

#include "emulation/block.h"

namespace pc3d {
namespace cuda {

// out[i] = in[threads - 1 - i] through shared memory; `waits`: with the barrier that this needs.
__global__ void turn_round(const int* in, int* out, int threads, bool waits) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  int* shared = reinterpret_cast<int*>(shared_bytes);
  shared[threadIdx.x] = in[blockIdx.x * threads + threadIdx.x];
  if (waits) __syncthreads();
  out[blockIdx.x * threads + threadIdx.x] = shared[threads - 1 - threadIdx.x];
}

__global__ void exchange_in_warps(int* out) {
  __shared__ int total[2];
  const int lane = threadIdx.x % 32;
  const int value = static_cast<int>(threadIdx.x) * 3 + 1;
  int* row = out + 8 * threadIdx.x;
  row[0] = __shfl_sync(0xffffffffu, value, 35);
  row[1] = __shfl_xor_sync(0xffffffffu, value, 5);
  row[2] = __shfl_up_sync(0xffffffffu, value, 1);
  row[3] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  row[4] = static_cast<int>(__reduce_max_sync(0xffffffffu, static_cast<uint32_t>(value)));
  row[5] = static_cast<int>(__reduce_min_sync(0xffffffffu, static_cast<uint32_t>(value)));
  if (lane == 0) total[threadIdx.x / 32] = 0;
  __syncwarp();
  atomicAdd(&total[threadIdx.x / 32], value);
  row[6] = __syncthreads_or(threadIdx.x == 40);
  row[7] = total[0] + total[1];
}

__global__ void waits_in_a_branch() {
  if (threadIdx.x < 7) __syncthreads();
  if (threadIdx.x == 9) __syncwarp();
}

__global__ void reads_a_lane_that_ended(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 3);
}

// Threads that have ended are not waited for.
__global__ void ends_early(int* out) {
  if (threadIdx.x % 2 == 1) return;
  __syncthreads();
  out[threadIdx.x] = __ballot_sync(0xffffffffu, true) == 0x55555555u;
}

__global__ void leaves_shared_memory_behind(int* out) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  int* shared = reinterpret_cast<int*>(shared_bytes);
  if (threadIdx.x > 0) return;
  out[blockIdx.x] = shared[0];
  shared[0] = 5;
}

// Blocks that wait for each other: they must all run.
__global__ void meets(volatile int* arrived, int* out) {
  if (threadIdx.x == 0) {
    atomicAdd(const_cast<int*>(arrived), 1);
    while (*arrived < static_cast<int>(gridDim.x)) __nanosleep(20);
  }
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = *arrived;
}

}  // namespace cuda
}  // namespace pc3d

using namespace pc3d::cuda;

template <class F>
const char* said_by(const F& run) {
  static std::string text;
  text.clear();
  try {
    run();
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}

template <class F>
const char* launch(int blocks, int threads, size_t bytes, const F& thread) {
  return said_by([&] { emulation::run_blocks(blocks, threads, shared_bytes, bytes, thread); });
}

extern "C" {
const char* run_turn_round(const int* in, int* out, int blocks, int threads, int shared, bool waits) {
  return launch(blocks, threads, shared, [=] { turn_round(in, out, threads, waits); });
}
const char* run_exchange_in_warps(int* out) {
  return launch(1, 64, 0, [=] { exchange_in_warps(out); });
}
const char* run_waits_in_a_branch() {
  return launch(1, 32, 0, [] { waits_in_a_branch(); });
}
const char* run_reads_a_lane_that_ended(int* out) {
  return launch(1, 32, 0, [=] { reads_a_lane_that_ended(out); });
}
const char* run_ends_early(int* out, int threads) {
  return launch(1, threads, 0, [=] { ends_early(out); });
}
const char* run_leaves_shared_memory_behind(int* out, int blocks) {
  return launch(blocks, 32, 16, [=] { leaves_shared_memory_behind(out); });
}
const char* run_meets(int* arrived, int* out, int blocks) {
  return said_by([&] { emulation::run_blocks_together(blocks, 64, [=] { meets(arrived, out); }); });
}
}
