// Launches of CUDA kernels, handed to the launchers in kernels/. Without a GPU, emulation/cuda/launch.cuh takes its
// place.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>

namespace pc3d {

// The stream torch is working on, and launches on it. Holds the device for as long as it lives.
class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), int64_t blocks, int threads, A... arguments) const {
    with_shared(kernel, blocks, threads, 0, arguments...);
  }

  // `dynamic_bytes` of shared memory for each block.
  template <class... P, class... A>
  void with_shared(void (*kernel)(P...), int64_t blocks, int threads, size_t dynamic_bytes, A... arguments) const {
    if (dynamic_bytes + kStaticBytes > kBytesUnasked) {
      // All that a block can have, not what this one needs: another thread may be launching the kernel with more.
      STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes(1))));
    }
    kernel<<<grid(blocks), threads, dynamic_bytes, stream_>>>(static_cast<P>(arguments)...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // All blocks run at once, or the launch fails.
  template <class... P, class... A>
  void cooperative(void (*kernel)(P...), int64_t blocks, int threads, A... arguments) const {
    cooperative_launch(kernel, blocks, threads, static_cast<P>(arguments)...);
  }

  // The values behind a device pointer. Waits for the stream: for results whose size is data.
  template <class T, size_t kCount>
  void read(const T* address, T (&values)[kCount]) const {
    STD_CUDA_CHECK(cudaMemcpyAsync(values, address, sizeof(values), cudaMemcpyDeviceToHost, stream_));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream_));
  }
  int64_t read(const int64_t* address) const {
    int64_t value[1];
    read(address, value);
    return value[0];
  }

  // Dynamic shared memory of each of so many blocks side by side on a multiprocessor, beside what is static and what
  // the device keeps for itself.
  size_t shared_bytes(int side_by_side) const {
    int in_all = 0;
    int of_block = 0;
    int kept = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&in_all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device_));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&kept, cudaDevAttrReservedSharedMemoryPerBlock, device_));
    const int share = in_all / side_by_side - kept;
    return static_cast<size_t>(share < of_block ? share : of_block) - kStaticBytes;
  }

  // How many blocks a cooperative launch can have; 0 where the device has no such launches.
  template <class... P>
  int64_t resident_blocks(void (*kernel)(P...), int threads) const {
    int supported = 0;
    int processors = 0;
    int blocks_each = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&supported, cudaDevAttrCooperativeLaunch, device_));
    if (supported == 0) return 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device_));
    STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, kernel, threads, 0));
    return int64_t(processors) * blocks_each;
  }

 private:
  // Shared memory of a block, static and dynamic together, that need not be asked for.
  static constexpr size_t kBytesUnasked = 48 << 10;
  // The most that is static where there is dynamic shared memory too.
  static constexpr size_t kStaticBytes = 2 << 10;

  static unsigned int grid(int64_t blocks) {
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "more blocks than a CUDA grid can have: ", blocks);
    return static_cast<unsigned int>(blocks);
  }

  template <class... P>
  void cooperative_launch(void (*kernel)(P...), int64_t blocks, int threads, P... arguments) const {
    void* addresses[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    STD_CUDA_CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(grid(blocks)), dim3(threads),
                                               addresses, 0, stream_));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace pc3d
