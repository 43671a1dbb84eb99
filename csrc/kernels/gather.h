// Row gathering with its gradient, plain and weighted, on the CPU.
//
// `A` is the type sums are held in: float for half precision, T otherwise. An index of -1 reads a zero row.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels/common.h"

namespace pc3d {

constexpr int64_t kGatherGrainBytes = 1 << 16;

inline int64_t gather_grain(int64_t row_bytes) {
  return std::max<int64_t>(1, kGatherGrainBytes / std::max<int64_t>(1, row_bytes));
}

// Copies rows of `bytes` bytes, or of any number where `Bytes` is 0: a copy of known length is one or two instructions
// where a call would cost more than the row.
template <int64_t Bytes>
void copy_rows(const char* source, int64_t bytes, const int64_t* index, int64_t begin, int64_t end, char* out) {
  const int64_t size = Bytes > 0 ? Bytes : bytes;
  for (int64_t m = begin; m < end; ++m) {
    if (index[m] < 0) {
      std::memset(out + m * size, 0, size);
    } else {
      std::memcpy(out + m * size, source + index[m] * size, size);
    }
  }
}

template <class T, class ParallelFor>
void gather(const T* features, int64_t channels, const int64_t* index, int64_t num_out, T* out,
            const ParallelFor& parallel_for) {
  const int64_t bytes = channels * static_cast<int64_t>(sizeof(T));
  if (bytes == 0) return;  // and no array to copy into
  const auto copy = bytes == 12   ? copy_rows<12>
                    : bytes == 24 ? copy_rows<24>
                    : bytes == 6  ? copy_rows<6>
                    : bytes == 4  ? copy_rows<4>
                    : bytes == 8  ? copy_rows<8>
                                  : copy_rows<0>;
  parallel_for(0, num_out, gather_grain(bytes), [&](int64_t begin, int64_t end) {
    copy(reinterpret_cast<const char*>(features), bytes, index, begin, end, reinterpret_cast<char*>(out));
  });
}

// sum[r - begin] += weight[m, j] * grad[m] for every index[m, j] == r in [begin, end), in the order of (m, j).
// `Channels` is the number of channels where it is known beforehand, else 0; `weight` may be null (all ones).
template <int Channels, class T, class A>
void add_rows(const T* grad, int64_t num_channels, const int64_t* index, int64_t count, int64_t k, const T* weight,
              int64_t begin, int64_t end, A* sum) {
  const int64_t channels = Channels > 0 ? Channels : num_channels;
  for (int64_t m = 0; m < count; ++m) {
    const T* row = grad + m * channels;
    for (int64_t j = m * k; j < (m + 1) * k; ++j) {
      const int64_t r = index[j];
      if (r < begin || r >= end) continue;
      A* target = sum + (r - begin) * channels;
      const A w = weight == nullptr ? A(1) : static_cast<A>(weight[j]);
      for (int64_t c = 0; c < channels; ++c) target[c] += w * static_cast<A>(row[c]);
    }
  }
}

// out[r] = sum over (m, j) with index[m, j] == r of weight[m, j] * grad[m], with index and weight (count, k).
//
// Every thread reads the whole list of indices and adds up the rows of its own range of targets: no atomics, and the
// sums run in one order, whatever the number of threads. Reading an index costs far less than the sort that would spare
// it.
template <class T, class A, class ParallelFor>
void scatter_sum(const T* grad, int64_t channels, const int64_t* index, int64_t count, int64_t k, const T* weight,
                 int64_t num_rows, T* out, const ParallelFor& parallel_for) {
  const auto add = channels == 3 ? add_rows<3, T, A> : add_rows<0, T, A>;
  const int64_t shares = 1 + (count * k + num_rows) * std::max<int64_t>(channels, 4) * 4 / kGatherGrainBytes;
  parallel_for(0, num_rows, (num_rows + shares - 1) / shares, [&](int64_t begin, int64_t end) {
    const int64_t size = (end - begin) * channels;
    if constexpr (std::is_same_v<T, A>) {
      std::fill_n(out + begin * channels, size, T(0));
      add(grad, channels, index, count, k, weight, begin, end, out + begin * channels);
    } else {
      std::vector<A> sum(size);
      add(grad, channels, index, count, k, weight, begin, end, sum.data());
      for (int64_t i = 0; i < size; ++i) out[begin * channels + i] = static_cast<T>(sum[i]);
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
