// Launches on a CPU, in place of csrc/cuda/launch.cuh; cuda_runtime.h beside this has the whole.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "emulation/block.h"

// What the bindings register for CUDA takes the place of the CPU's own kernels.
#define CUDA CPU

namespace pc3d {

class Launch {
 public:
  explicit Launch(const torch::stable::Tensor&) {}

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), int64_t blocks, int threads, A... arguments) const {
    with_shared(kernel, blocks, threads, 0, arguments...);
  }

  template <class... P, class... A>
  void with_shared(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, A... arguments) const {
    emulation::run_blocks(blocks, threads, cuda::shared_bytes, shared_bytes,
                          [&] { kernel(static_cast<P>(arguments)...); });
  }

  template <class... P, class... A>
  void cooperative(void (*kernel)(P...), int64_t blocks, int threads, A... arguments) const {
    STD_TORCH_CHECK(blocks <= kResidentBlocks, "emulated CUDA: ", blocks, " blocks do not run at once");
    emulation::run_blocks_together(blocks, threads, [&] { kernel(static_cast<P>(arguments)...); });
  }

  size_t shared_bytes(int side_by_side) const { return emulation::kMostSharedBytes / side_by_side; }

  template <class T, size_t kCount>
  void read(const T* address, T (&values)[kCount]) const {
    std::copy_n(address, kCount, values);
  }
  int64_t read(const int64_t* address) const { return *address; }

  template <class... P>
  int64_t resident_blocks(void (*)(P...), int) const {
    return kResidentBlocks;
  }

 private:
  static constexpr int64_t kResidentBlocks = 6;
};

}  // namespace pc3d
