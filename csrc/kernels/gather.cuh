// Row gathering with its gradient, plain and weighted, on CUDA.
//
// `A` is the type sums are held in: float for half precision, T otherwise. An index outside of [0, number of rows)
// reads a zero row and receives no gradient: -1 is meant to, others can only come from unchecked input.
//
// The gradient adds atomically, in an order that varies, or (deterministic) walks the sorted index, which gives every
// row one order: that of the positions, the same as on the CPU.
#pragma once

#include "kernels/common.cuh"

namespace pc3d {
namespace cuda {

constexpr int kGatherThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // the loops stride over the rest

inline int64_t gather_blocks(int64_t work) {
  const int64_t blocks = ceil_div(work, kGatherThreads);
  return blocks < kMostBlocks ? blocks : kMostBlocks;
}

__device__ __forceinline__ int64_t first_item() { return int64_t(blockIdx.x) * kGatherThreads + threadIdx.x; }
__device__ __forceinline__ int64_t item_stride() { return int64_t(gridDim.x) * kGatherThreads; }

// Quotient and remainder; 32-bit division, several times faster, where it will do.
struct Place {
  int64_t row;
  int64_t column;
};
__device__ __forceinline__ Place place_of(int64_t item, int64_t columns) {
  if ((static_cast<uint64_t>(item) | static_cast<uint64_t>(columns)) >> 32 == 0) {
    const uint32_t i = static_cast<uint32_t>(item);
    const uint32_t c = static_cast<uint32_t>(columns);
    return {static_cast<int64_t>(i / c), static_cast<int64_t>(i % c)};
  }
  return {item / columns, item % columns};
}

__device__ __forceinline__ bool in_range(int64_t row, int64_t num_rows) { return row >= 0 && row < num_rows; }

__device__ __forceinline__ void add_atomically(float* target, float value) { atomicAdd(target, value); }
__device__ __forceinline__ void add_atomically(double* target, double value) { atomicAdd(target, value); }

// Rows copied as words of type V; `width` words a row.
template <class V>
__global__ void __launch_bounds__(kGatherThreads)
    copy_rows(const V* __restrict__ features, int64_t num_rows, int64_t width, const int64_t* __restrict__ index,
              int64_t num_out, V* __restrict__ out) {
  for (int64_t item = first_item(); item < num_out * width; item += item_stride()) {
    const Place p = place_of(item, width);
    const int64_t source = index[p.row];
    out[item] = in_range(source, num_rows) ? features[source * width + p.column] : V{};
  }
}

template <class Launch>
void gather(const void* features, int64_t num_rows, int64_t row_bytes, const int64_t* index, int64_t num_out, void* out,
            const Launch& launch) {
  if (num_out == 0 || row_bytes == 0) return;
  // The widest word that rows and pointers are multiples of.
  const uint64_t together =
      static_cast<uint64_t>(row_bytes) | reinterpret_cast<uintptr_t>(features) | reinterpret_cast<uintptr_t>(out);
  const auto copy = [&](auto word) {
    using V = decltype(word);
    const int64_t width = row_bytes / static_cast<int64_t>(sizeof(V));
    launch(copy_rows<V>, gather_blocks(num_out * width), kGatherThreads, static_cast<const V*>(features), num_rows,
           width, index, num_out, static_cast<V*>(out));
  };
  if (together % 16 == 0) {
    copy(uint4{});
  } else if (together % 8 == 0) {
    copy(uint2{});
  } else if (together % 4 == 0) {
    copy(uint32_t{});
  } else {
    copy(uint16_t{});
  }
}

// sum[index[m]] += weight[m] * grad[m / repeat]; `weight` may be null (all ones). `sum` is zero before.
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    scatter_atomically(const T* __restrict__ grad, int64_t channels, const int64_t* __restrict__ index, int64_t count,
                       const T* __restrict__ weight, int64_t repeat, int64_t num_rows, A* __restrict__ sum) {
  for (int64_t item = first_item(); item < count * channels; item += item_stride()) {
    const Place p = place_of(item, channels);
    const int64_t target = index[p.row];
    if (!in_range(target, num_rows)) continue;
    const int64_t source = repeat == 1 ? p.row : place_of(p.row, repeat).row;
    A value = static_cast<A>(grad[source * channels + p.column]);
    if (weight != nullptr) value = multiply(static_cast<A>(weight[p.row]), value);
    add_atomically(sum + target * channels + p.column, value);
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    convert_sums(const A* __restrict__ sum, int64_t count, T* __restrict__ out) {
  for (int64_t item = first_item(); item < count; item += item_stride()) out[item] = static_cast<T>(sum[item]);
}

// The first position in ascending `values` that is not below `bound`.
__device__ __forceinline__ int64_t lower_bound(const int64_t* __restrict__ values, int64_t count, int64_t bound) {
  int64_t low = 0;
  int64_t high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (values[middle] < bound) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The same sum out of the sorted index: `row_of` ascends, `position` says where in the index each entry stood. One
// thread a target element; every row of `out` is written.
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    scatter_sorted(const T* __restrict__ grad, int64_t channels, const int64_t* __restrict__ row_of,
                   const int64_t* __restrict__ position, int64_t count, const T* __restrict__ weight, int64_t repeat,
                   int64_t num_rows, T* __restrict__ out) {
  for (int64_t item = first_item(); item < num_rows * channels; item += item_stride()) {
    const Place p = place_of(item, channels);
    A sum = A(0);
    for (int64_t s = lower_bound(row_of, count, p.row); s < count && row_of[s] == p.row; ++s) {
      const int64_t m = position[s];
      const A value = static_cast<A>(grad[(repeat == 1 ? m : m / repeat) * channels + p.column]);
      sum = add(sum, weight == nullptr ? value : multiply(static_cast<A>(weight[m]), value));
    }
    out[item] = static_cast<T>(sum);
  }
}

// out[m] = sum_j weight[m, j] * features[index[m, j]]
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    gather_weighted(const T* __restrict__ features, int64_t num_rows, int64_t channels,
                    const int64_t* __restrict__ index, const T* __restrict__ weight, int64_t num_out, int64_t k,
                    T* __restrict__ out) {
  for (int64_t item = first_item(); item < num_out * channels; item += item_stride()) {
    const Place p = place_of(item, channels);
    A sum = A(0);
    for (int64_t j = 0; j < k; ++j) {
      const int64_t source = index[p.row * k + j];
      if (!in_range(source, num_rows)) continue;
      const A value = static_cast<A>(features[source * channels + p.column]);
      sum = add(sum, multiply(static_cast<A>(weight[p.row * k + j]), value));
    }
    out[item] = static_cast<T>(sum);
  }
}

// grad_weight[m, j] = grad[m] . features[index[m, j]]; a warp each, which adds in a fixed order.
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    weight_gradient(const T* __restrict__ grad, const T* __restrict__ features, int64_t num_rows, int64_t channels,
                    const int64_t* __restrict__ index, int64_t num_out, int64_t k, T* __restrict__ grad_weight) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t pair = first_item() / kWarp; pair < num_out * k; pair += item_stride() / kWarp) {
    const int64_t source = index[pair];
    const int64_t m = place_of(pair, k).row;
    A sum = A(0);
    if (in_range(source, num_rows)) {
      for (int64_t c = lane; c < channels; c += kWarp) {
        const A product =
            multiply(static_cast<A>(grad[m * channels + c]), static_cast<A>(features[source * channels + c]));
        sum = add(sum, product);
      }
    }
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) sum = add(sum, __shfl_xor_sync(kAllLanes, sum, step));
    if (lane == 0) grad_weight[pair] = static_cast<T>(sum);
  }
}

// What a sum over the reverse of an index reads; see scatter_atomically.
template <class T>
struct Scatter {
  const T* grad;
  int64_t channels;
  const int64_t* index;
  int64_t count;
  const T* weight;
  int64_t repeat;
  int64_t num_rows;
};

// `sum` (num_rows, channels) is zero before; where T is not A, `out` gets the converted sums, otherwise sum is out.
template <class T, class A, class Launch>
void scatter_sum_atomic(const Scatter<T>& s, A* sum, T* out, const Launch& launch) {
  if (s.count > 0 && s.channels > 0 && s.num_rows > 0) {
    launch(scatter_atomically<T, A>, gather_blocks(s.count * s.channels), kGatherThreads, s.grad, s.channels, s.index,
           s.count, s.weight, s.repeat, s.num_rows, sum);
  }
  const int64_t size = s.num_rows * s.channels;
  if (static_cast<const void*>(sum) != static_cast<const void*>(out) && size > 0) {
    launch(convert_sums<T, A>, gather_blocks(size), kGatherThreads, sum, size, out);
  }
}

template <class T, class A, class Launch>
void scatter_sum_sorted(const Scatter<T>& s, const int64_t* row_of, const int64_t* position, T* out,
                        const Launch& launch) {
  const int64_t size = s.num_rows * s.channels;
  if (size == 0) return;
  launch(scatter_sorted<T, A>, gather_blocks(size), kGatherThreads, s.grad, s.channels, row_of, position, s.count,
         s.weight, s.repeat, s.num_rows, out);
}

template <class T, class A, class Launch>
void weighted_gather(const T* features, int64_t num_rows, int64_t channels, const int64_t* index, const T* weight,
                     int64_t num_out, int64_t k, T* out, const Launch& launch) {
  if (num_out == 0 || channels == 0) return;
  launch(gather_weighted<T, A>, gather_blocks(num_out * channels), kGatherThreads, features, num_rows, channels, index,
         weight, num_out, k, out);
}

template <class T, class A, class Launch>
void weighted_gather_weight_gradient(const T* grad, const T* features, int64_t num_rows, int64_t channels,
                                     const int64_t* index, int64_t num_out, int64_t k, T* grad_weight,
                                     const Launch& launch) {
  if (num_out == 0 || k == 0) return;
  launch(weight_gradient<T, A>, gather_blocks(num_out * k * kWarp), kGatherThreads, grad, features, num_rows, channels,
         index, num_out, k, grad_weight);
}

}  // namespace cuda
}  // namespace pc3d
