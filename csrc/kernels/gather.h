// Row gathering with its gradient, plain and weighted, on the CPU.
//
// `A` is the type sums are held in: float for half precision, T otherwise. An index of -1 reads a zero row.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/common.h"

namespace pc3d {

constexpr int64_t kGatherGrainBytes = 1 << 16;

inline int64_t gather_grain(int64_t row_bytes) {
  return std::max<int64_t>(1, kGatherGrainBytes / std::max<int64_t>(1, row_bytes));
}

template <class T, class ParallelFor>
void gather(const T* features, int64_t channels, const int64_t* index, int64_t num_out, T* out,
            const ParallelFor& parallel_for) {
  const int64_t row_bytes = channels * static_cast<int64_t>(sizeof(T));
  parallel_for(0, num_out, gather_grain(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      if (index[m] < 0) {
        std::memset(static_cast<void*>(out + m * channels), 0, row_bytes);
      } else {
        std::memcpy(static_cast<void*>(out + m * channels), features + index[m] * channels, row_bytes);
      }
    }
  });
}

// The reverse of an index list: for every target row the positions that name it, ascending, so that a sum over them
// always runs in one order, whatever the number of threads.
struct ReverseIndex {
  std::vector<int64_t> begin;     // (num_rows + 1,)
  std::vector<int64_t> position;  // (number of non-negative indices,)

  ReverseIndex(const int64_t* index, int64_t count, int64_t num_rows) : begin(num_rows + 1, 0) {
    for (int64_t m = 0; m < count; ++m) {
      if (index[m] >= 0) ++begin[index[m] + 1];
    }
    for (int64_t r = 0; r < num_rows; ++r) begin[r + 1] += begin[r];
    position.resize(begin[num_rows]);
    std::vector<int64_t> cursor(begin.begin(), begin.end() - 1);
    for (int64_t m = 0; m < count; ++m) {
      if (index[m] >= 0) position[cursor[index[m]]++] = m;
    }
  }
};

// out[r] = sum over positions m with index[m] == r of weight[m] * grad[m / repeat]; `weight` may be null (all ones).
template <class T, class A, class ParallelFor>
void scatter_sum(const T* grad, int64_t channels, const int64_t* index, int64_t count, const T* weight, int64_t repeat,
                 int64_t num_rows, T* out, const ParallelFor& parallel_for) {
  const ReverseIndex reverse(index, count, num_rows);
  parallel_for(0, num_rows, gather_grain(channels * sizeof(A)), [&](int64_t begin, int64_t end) {
    std::unique_ptr<A[]> sum(new A[std::max<int64_t>(channels, 1)]);
    for (int64_t r = begin; r < end; ++r) {
      std::fill_n(sum.get(), channels, A(0));
      for (int64_t p = reverse.begin[r]; p < reverse.begin[r + 1]; ++p) {
        const int64_t m = reverse.position[p];
        const T* row = grad + (m / repeat) * channels;
        const A w = weight == nullptr ? A(1) : static_cast<A>(weight[m]);
        for (int64_t c = 0; c < channels; ++c) sum[c] += w * static_cast<A>(row[c]);
      }
      for (int64_t c = 0; c < channels; ++c) out[r * channels + c] = static_cast<T>(sum[c]);
    }
  });
}

// out[m] = sum_j weight[m, j] * features[index[m, j]]
template <class T, class A, class ParallelFor>
void weighted_gather(const T* features, int64_t channels, const int64_t* index, const T* weight, int64_t num_out,
                     int64_t k, T* out, const ParallelFor& parallel_for) {
  parallel_for(0, num_out, gather_grain(k * channels * sizeof(A)), [&](int64_t begin, int64_t end) {
    std::unique_ptr<A[]> sum(new A[std::max<int64_t>(channels, 1)]);
    for (int64_t m = begin; m < end; ++m) {
      std::fill_n(sum.get(), channels, A(0));
      for (int64_t j = 0; j < k; ++j) {
        const int64_t source = index[m * k + j];
        if (source < 0) continue;
        const A w = static_cast<A>(weight[m * k + j]);
        const T* row = features + source * channels;
        for (int64_t c = 0; c < channels; ++c) sum[c] += w * static_cast<A>(row[c]);
      }
      for (int64_t c = 0; c < channels; ++c) out[m * channels + c] = static_cast<T>(sum[c]);
    }
  });
}

// grad_weight[m, j] = grad[m] . features[index[m, j]]
template <class T, class A, class ParallelFor>
void weighted_gather_weight_gradient(const T* grad, const T* features, int64_t channels, const int64_t* index,
                                     int64_t num_out, int64_t k, T* grad_weight, const ParallelFor& parallel_for) {
  parallel_for(0, num_out, gather_grain(k * channels * sizeof(A)), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t j = 0; j < k; ++j) {
        const int64_t source = index[m * k + j];
        A sum = A(0);
        if (source >= 0) {
          for (int64_t c = 0; c < channels; ++c) {
            sum += static_cast<A>(grad[m * channels + c]) * static_cast<A>(features[source * channels + c]);
          }
        }
        grad_weight[m * k + j] = static_cast<T>(sum);
      }
    }
  });
}

}  // namespace pc3d
