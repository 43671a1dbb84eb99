// Copies from global into shared memory that go on while the thread does something else. Without a GPU,
// emulation/kernels/async_copy.cuh takes its place.
#pragma once

#include <cstdint>

namespace pc3d {
namespace cuda {

// Copies kBytes (4, 8 or 16, of which both addresses are multiples), or zeros where there is nothing.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
  const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = there ? kBytes : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(global), "n"(kBytes), "r"(bytes)
               : "memory");
}

// Until all copies of this thread have arrived.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace cuda
}  // namespace pc3d
