// Maxima over gathered rows and over segments of rows, with their gradient, on CUDA.
//
// Half precision is compared in float. Of equal values the first wins; a NaN wins over every number, as in torch.
#pragma once

#include "kernels/gather.cuh"

namespace pc3d {
namespace cuda {

// The largest value so far, and its row; none at first.
template <class A>
struct Largest {
  A value = A(0);
  int64_t row = -1;
  __device__ __forceinline__ void take(A other, int64_t other_row) {
    if (row < 0 || (!(other <= value) && value == value)) {
      value = other;
      row = other_row;
    }
  }
};

// out[m, c] = max_j features[index[m, j], c]; a thread an element.
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    largest_of_rows(const T* __restrict__ features, int64_t num_rows, int64_t channels,
                    const int64_t* __restrict__ index, int64_t num_out, int64_t k, T* __restrict__ out,
                    int64_t* __restrict__ source) {
  for (int64_t item = first_item(); item < num_out * channels; item += item_stride()) {
    const Place p = place_of(item, channels);
    Largest<A> best;
    for (int64_t j = 0; j < k; ++j) {
      const int64_t n = index[p.row * k + j];
      if (in_range(n, num_rows)) best.take(static_cast<A>(features[n * channels + p.column]), n);
    }
    out[item] = static_cast<T>(best.value);
    source[item] = best.row;
  }
}

// out[s, c] = max over the rows of segment s; `segment` ascends, `position` says which row each entry is.
template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    largest_of_segment(const T* __restrict__ values, int64_t channels, const int64_t* __restrict__ segment,
                       const int64_t* __restrict__ position, int64_t count, int64_t num_segments, T* __restrict__ out,
                       int64_t* __restrict__ source) {
  for (int64_t item = first_item(); item < num_segments * channels; item += item_stride()) {
    const Place p = place_of(item, channels);
    Largest<A> best;
    for (int64_t i = lower_bound(segment, count, p.row); i < count && segment[i] == p.row; ++i) {
      best.take(static_cast<A>(values[position[i] * channels + p.column]), position[i]);
    }
    out[item] = static_cast<T>(best.value);
    source[item] = best.row;
  }
}

// The element of a (num_rows, channels) tensor that each source names, or -1.
__global__ void __launch_bounds__(kGatherThreads)
    elements_of_sources(const int64_t* __restrict__ source, int64_t count, int64_t channels, int64_t num_rows,
                        int64_t* __restrict__ out) {
  for (int64_t item = first_item(); item < count * channels; item += item_stride()) {
    const int64_t n = source[item];
    out[item] = in_range(n, num_rows) ? n * channels + place_of(item, channels).column : -1;
  }
}

}  // namespace cuda
}  // namespace pc3d
