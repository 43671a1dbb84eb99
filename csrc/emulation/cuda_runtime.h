// The part of CUDA that the kernels use, on a CPU: so that they are tested where there is no GPU.
//
// Found in place of the toolkit's header of this name when csrc/cuda is compiled by a C++ compiler (make
// test-emulated). It is about what a kernel computes, never about how fast it does.
//
// A block runs on one thread of the system, its threads as fibers that give way only where they wait for each other:
// whatever the order in which they run between two barriers, the result must be the same, so the order is shuffled
// anew every time. A barrier that not all threads of a block or warp reach, which on a GPU hangs or is undefined, is
// an error here. Shared memory is `thread_local`, which is to say of a block; of the dynamic part no byte more than
// was asked for may be touched where the address sanitizer is on, and none holds what another block left there.
#pragma once

// Some systems compile with checks of the C library that take a jump to another stack for an attack, and abort.
#undef _FORTIFY_SOURCE

#include <math.h>
#include <stdint.h>

#include <cstring>

#include "emulation/block.h"

#define __global__
#define __device__
#define __host__
#define __shared__ thread_local
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

using emulation::blockIdx;
using emulation::gridDim;
using emulation::threadIdx;

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

// The dynamic part of shared memory, which kernels declare as `extern`.
namespace pc3d {
namespace cuda {
extern thread_local unsigned char shared_bytes[];
}  // namespace cuda
}  // namespace pc3d

template <class T>
T __ldg(const T* address) {
  return *address;
}

// ---- Waiting for each other.

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp() { emulation::wait_for_warp(); }
inline void __nanosleep(unsigned int) { emulation::give_way(); }

inline int __syncthreads_or(int value) { return emulation::any_of_block(value != 0); }

// ---- Exchange within a warp. Every kernel names all lanes.

template <class T>
T __shfl_sync(uint32_t, T value, int lane) {
  return emulation::exchange(value).of(lane & 31);
}

template <class T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  return emulation::exchange(value).of(emulation::lane() ^ mask);
}

template <class T>
T __shfl_up_sync(uint32_t, T value, int by) {
  const auto all = emulation::exchange(value);
  return emulation::lane() < by ? value : all.of(emulation::lane() - by);
}

inline uint32_t __ballot_sync(uint32_t, bool value) { return emulation::vote(value); }

inline uint32_t __reduce_max_sync(uint32_t, uint32_t value) {
  emulation::exchange(value).each([&](int, uint32_t of_lane) { value = of_lane > value ? of_lane : value; });
  return value;
}

inline uint32_t __reduce_min_sync(uint32_t, uint32_t value) {
  emulation::exchange(value).each([&](int, uint32_t of_lane) { value = of_lane < value ? of_lane : value; });
  return value;
}

// ---- Atomics. Blocks of a cooperative launch run at the same time.

template <class T>
T atomicCAS(T* address, T expected, T value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}

template <class T>
T atomicAdd(T* address, T value) {
  T before;
  __atomic_load(address, &before, __ATOMIC_SEQ_CST);
  T after = before + value;
  while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    after = before + value;
  }
  return before;
}

template <class T>
T atomicMin(T* address, T value) {
  T before = __atomic_load_n(address, __ATOMIC_SEQ_CST);
  while (value < before &&
         !__atomic_compare_exchange_n(address, &before, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return before;
}

// ---- Numbers. The compiler is told not to fuse operations, so every one of them rounds by itself.

namespace emulation {
template <class T>
int rounded_down(T value) {
  const T down = floor(value);
  return down < T(2147483648.0) ? (down >= T(-2147483648.0) ? static_cast<int>(down) : INT32_MIN)
                                : (down != down ? 0 : INT32_MAX);
}
}  // namespace emulation

inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline int __float2int_rd(float value) { return emulation::rounded_down(value); }
inline int __double2int_rd(double value) { return emulation::rounded_down(value); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

namespace emulation {
template <class To, class From>
To same_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To bits;
  std::memcpy(&bits, &value, sizeof(To));
  return bits;
}
}  // namespace emulation

inline uint32_t __float_as_uint(float value) { return emulation::same_bits<uint32_t>(value); }
inline float __uint_as_float(uint32_t bits) { return emulation::same_bits<float>(bits); }
inline float __int_as_float(int32_t bits) { return emulation::same_bits<float>(bits); }
inline long long __double_as_longlong(double value) { return emulation::same_bits<long long>(value); }
inline double __longlong_as_double(long long bits) { return emulation::same_bits<double>(bits); }
