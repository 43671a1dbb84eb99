// What the CUDA kernels share. No torch, no Python: raw device pointers.
//
// Launchers take `launch(kernel, blocks, threads, arguments...)`, as the CPU kernels take `parallel_for`: the caller
// knows the stream and checks for errors, and the kernels can be run by something other than a GPU.
//
// Nothing on the device is trusted: offsets and indices are clamped to the memory they address, because reading them on
// the host to check them would stall the stream (the Python functions do check them outside of compiled graphs).
// Offsets that are wrong give wrong rows, or rows of -1, never a stray access.
#pragma once

#include <cstdint>

#include "kernels/common.h"

namespace pc3d {
namespace cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr uint32_t kNone = 0xffffffffu;  // no point; clouds are counted in 32 bits and hold fewer than this

// Rounded one by one, never fused: the compiler may not contract intrinsics.
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }

// Rounded once.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// floor(value), held within int; not a number gives 0 or the least int.
__device__ __forceinline__ int rounded_down(float value) { return __float2int_rd(value); }
__device__ __forceinline__ int rounded_down(double value) { return __double2int_rd(value); }

template <class T>
__device__ __forceinline__ T squared_norm(T x, T y, T z) {
  return add(add(multiply(x, x), multiply(y, y)), multiply(z, z));
}

template <class T>
__device__ __forceinline__ T infinity();
template <>
__device__ __forceinline__ float infinity<float>() {
  return __int_as_float(0x7f800000);
}
template <>
__device__ __forceinline__ double infinity<double>() {
  return __longlong_as_double(0x7ff0000000000000LL);
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

// Rows [begin, end) of one cloud, always within [0, num_rows).
struct Rows {
  int64_t begin;
  int64_t end;
  __device__ __forceinline__ int64_t size() const { return end - begin; }
};

__device__ __forceinline__ Rows rows_of_cloud(const int64_t* offsets, int64_t cloud, int64_t num_rows) {
  const int64_t begin = clamp(offsets[cloud], 0, num_rows);
  return {begin, clamp(offsets[cloud + 1], begin, num_rows)};
}

// The cloud of a packed row: the largest one that begins at or before it (empty clouds are passed over).
__device__ __forceinline__ int64_t cloud_of_row_device(const int64_t* offsets, int64_t num_clouds, int64_t row) {
  int64_t low = 0;
  int64_t high = num_clouds - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (offsets[middle] <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// What a search for neighbours reads.
template <class T>
struct Search {
  const T* xyz;
  int64_t num_rows;
  const int64_t* offsets;
  const T* query;
  int64_t num_queries;
  const int64_t* query_offsets;
  int64_t num_clouds;
};

}  // namespace cuda
}  // namespace pc3d
