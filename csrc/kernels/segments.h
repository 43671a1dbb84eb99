// Maxima over gathered rows and over segments of rows, with their gradient, on the CPU.
//
// Half precision is compared in float. Of equal values the first wins; a NaN wins over every number, as in torch.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>

#include "kernels/common.h"
#include "kernels/gather.h"

namespace pc3d {

// Takes the values of one more row. No branches: the compiler works on many channels at once.
template <class T, class A>
void take_larger(const T* row, int32_t position, int64_t channels, A* best, int32_t* where) {
  for (int64_t c = 0; c < channels; ++c) {
    const A value = static_cast<A>(row[c]);
    const bool larger = !(value <= best[c]) && best[c] == best[c];
    best[c] = larger ? value : best[c];
    where[c] = larger ? position : where[c];
  }
}

template <class T, class A>
void take_first(const T* row, int32_t position, int64_t channels, A* best, int32_t* where) {
  for (int64_t c = 0; c < channels; ++c) best[c] = static_cast<A>(row[c]);
  std::fill_n(where, channels, position);
}

// out[m, c] = max_j features[index[m, j], c] and source[m, c] the row it comes from; 0 and -1 where every slot is -1.
template <class T, class A, class ParallelFor>
void gather_max(const T* features, int64_t channels, const int64_t* index, int64_t num_out, int64_t k, T* out,
                int64_t* source, const ParallelFor& parallel_for) {
  parallel_for(0, num_out, gather_grain(k * channels * sizeof(T)), [&](int64_t begin, int64_t end) {
    std::unique_ptr<A[]> best(new A[std::max<int64_t>(channels, 1)]);
    std::unique_ptr<int32_t[]> where(new int32_t[std::max<int64_t>(channels, 1)]);
    for (int64_t m = begin; m < end; ++m) {
      const int64_t* slots = index + m * k;
      bool found = false;
      for (int64_t j = 0; j < k; ++j) {
        if (slots[j] < 0) continue;
        const T* row = features + slots[j] * channels;
        if (found) {
          take_larger<T, A>(row, static_cast<int32_t>(j), channels, best.get(), where.get());
        } else {
          take_first<T, A>(row, static_cast<int32_t>(j), channels, best.get(), where.get());
        }
        found = true;
      }
      for (int64_t c = 0; c < channels; ++c) {
        out[m * channels + c] = found ? static_cast<T>(best[c]) : static_cast<T>(0.0f);
        source[m * channels + c] = found ? slots[where[c]] : -1;
      }
    }
  });
}

// out[s, c] = max over rows n with index[n] == s of values[n, c], and source[s, c] the lowest such row.
//
// Every thread reads the whole index and looks at the rows of its own segments, as scatter_sum does.
template <class T, class A, class ParallelFor>
void segment_max(const T* values, int64_t channels, const int64_t* index, int64_t count, int64_t num_segments, T* out,
                 int64_t* source, const ParallelFor& parallel_for) {
  const int64_t shares = 1 + (count + num_segments) * std::max<int64_t>(channels, 4) * 4 / kGatherGrainBytes;
  parallel_for(0, num_segments, (num_segments + shares - 1) / shares, [&](int64_t begin, int64_t end) {
    std::fill(out + begin * channels, out + end * channels, static_cast<T>(0.0f));
    std::fill(source + begin * channels, source + end * channels, int64_t{-1});
    for (int64_t n = 0; n < count; ++n) {
      const int64_t s = index[n];
      if (s < begin || s >= end) continue;
      for (int64_t c = 0; c < channels; ++c) {
        const A value = static_cast<A>(values[n * channels + c]);
        const int64_t at = s * channels + c;
        const A best = static_cast<A>(out[at]);
        const bool larger = source[at] < 0 || (!(value <= best) && best == best);
        out[at] = larger ? values[n * channels + c] : out[at];
        source[at] = larger ? n : source[at];
      }
    }
  });
}

// out[source[m, c], c] += grad[m, c], in the order of m; a source of -1 gives nothing.
//
// Threads share the channels, so that no two of them write the same element.
template <class T, class A, class ParallelFor>
void max_gradient(const T* grad, const int64_t* source, int64_t count, int64_t channels, int64_t num_rows, T* out,
                  const ParallelFor& parallel_for) {
  std::unique_ptr<A[]> wide;
  if constexpr (!std::is_same_v<T, A>) wide.reset(new A[num_rows * channels]);
  parallel_for(0, channels, 16, [&](int64_t begin, int64_t end) {
    A* sum;
    if constexpr (std::is_same_v<T, A>) {
      sum = out;
    } else {
      sum = wide.get();
    }
    for (int64_t n = 0; n < num_rows; ++n) std::fill(sum + n * channels + begin, sum + n * channels + end, A(0));
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t n = source[m * channels + c];
        if (n >= 0) sum[n * channels + c] += static_cast<A>(grad[m * channels + c]);
      }
    }
    if constexpr (!std::is_same_v<T, A>) {
      for (int64_t n = 0; n < num_rows; ++n) {
        for (int64_t c = begin; c < end; ++c) out[n * channels + c] = static_cast<T>(sum[n * channels + c]);
      }
    }
  });
}

}  // namespace pc3d
