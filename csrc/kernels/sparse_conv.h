// Sparse convolution on the CPU: rows gathered, multiplied and summed in registers, in tiles of output rows.
//
// A tile lists, tap by tap, the pairs (input row, output row) that exist. A block of pairs times a block of output
// columns is held in registers while the input channels run by; nothing is copied on the way in. Every output element
// adds up its taps in order and within them its channels in order, one rounding after every operation, so that neither
// the number of threads nor the width of the vectors changes a bit.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/common.h"
#include "kernels/simd.h"

namespace pc3d {

constexpr int64_t kConvTile = 256;    // output rows
constexpr int kConvBlock = 8;         // at most so many pairs, or input channels, in registers
constexpr int kConvVectors = 3;       // at most so many vectors of columns in registers
constexpr int64_t kConvPadding = 64;  // bytes that rows of weights are padded to: the widest vector
constexpr int64_t kConvChunk = 4096;  // output rows of one partial sum of the weight gradient
constexpr int64_t kConvMaxChunks = 32;
constexpr int64_t kConvMaxPartials = 1 << 25;  // elements

template <class T>
constexpr int64_t padded_columns(int64_t columns) {
  constexpr int64_t kStep = kConvPadding / static_cast<int64_t>(sizeof(T));
  return (columns + kStep - 1) / kStep * kStep;
}

// The pairs of one tile: for tap k, `count[k]` of them from k * (kConvTile + kConvBlock).
struct ConvPairs {
  static constexpr int64_t kStride = kConvTile + kConvBlock;
  std::vector<int32_t> source;
  std::vector<int32_t> local;
  std::vector<int32_t> count;

  explicit ConvPairs(int64_t taps) : source(taps * kStride), local(taps * kStride), count(taps) {}

  // Rows outside of [0, num_rows) are passed over.
  void fill(const int32_t* neighbors, int64_t rows, int64_t taps, int64_t num_rows) {
    std::fill(count.begin(), count.end(), 0);
    int32_t* const counts = count.data();
    int32_t* const sources = source.data();
    int32_t* const locals = local.data();
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t k = 0; k < taps; ++k) {
        const int32_t n = neighbors[m * taps + k];
        sources[k * kStride + counts[k]] = n;
        locals[k * kStride + counts[k]] = static_cast<int32_t>(m);
        counts[k] += static_cast<uint64_t>(static_cast<int64_t>(n)) < static_cast<uint64_t>(num_rows) ? 1 : 0;
      }
    }
    // Up to a whole block of pairs that read row 0 and write the spare row behind the tile.
    for (int64_t k = 0; k < taps; ++k) {
      std::fill_n(sources + k * kStride + counts[k], kConvBlock, 0);
      std::fill_n(locals + k * kStride + counts[k], kConvBlock, static_cast<int32_t>(kConvTile));
    }
  }
};

// One tile, for the code below that is compiled for each width of vectors.
template <class T>
struct ConvTile {
  const T* features;
  int64_t in_channels;
  int64_t taps;
  const int32_t* source;
  const int32_t* local;
  const int32_t* count;
  int64_t rows;
  int64_t columns;  // output channels
  int64_t padded;   // columns with their padding
  const T* weight;  // (taps, in_channels, padded)
  T* out;           // (rows, columns)
  const T* grad;    // (rows, columns)
  T* partial;       // (taps, in_channels, padded), added to
  T* buffer;        // (kConvTile + 1) rows of a block of columns
};

// How many vectors of columns to take next: blocks of three and two, never a lone one where there were more.
PC3D_ALWAYS_INLINE int next_vectors(int64_t left) { return left == 1 ? 1 : (left == 2 || left == 4 ? 2 : 3); }

// Calls Kernel::block for all columns, a few vectors at a time.
template <class Kernel, int Bytes, class T>
PC3D_ALWAYS_INLINE void for_column_blocks(const ConvTile<T>& t) {
  constexpr int64_t kLanes = Lanes<T, Bytes>::count;
  for (int64_t v = 0, vectors = (t.columns + kLanes - 1) / kLanes; v < vectors;) {
    const int some = next_vectors(vectors - v);
    if (some == 1) Kernel::template block<Bytes, 1>(t, v * kLanes);
    if (some == 2) Kernel::template block<Bytes, 2>(t, v * kLanes);
    if (some == 3) Kernel::template block<Bytes, 3>(t, v * kLanes);
    v += some;
  }
}

// buffer[local] += features[source] @ weight for `Pairs` pairs and `Vectors` vectors of columns.
template <class T, int Bytes, int Pairs, int Vectors>
PC3D_ALWAYS_INLINE void multiply_pairs(const ConvTile<T>& t, const int32_t* source, const int32_t* local,
                                       const T* weight) {
  using Vector = typename Lanes<T, Bytes>::Vector;
  constexpr int kLanes = Lanes<T, Bytes>::count;
  const T* row[Pairs];
  T* target[Pairs];
  Vector sum[Pairs][Vectors];
#pragma GCC unroll 8
  for (int p = 0; p < Pairs; ++p) {
    row[p] = t.features + source[p] * t.in_channels;
    target[p] = t.buffer + local[p] * (Vectors * kLanes);
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) sum[p][v] = at<Vector>(target[p] + v * kLanes).value;
  }
  for (int64_t i = 0; i < t.in_channels; ++i, weight += t.padded) {
    Vector w[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) w[v] = at<Vector>(weight + v * kLanes).value;
#pragma GCC unroll 8
    for (int p = 0; p < Pairs; ++p) {
      const T x = row[p][i];
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) sum[p][v] += w[v] * x;
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < Pairs; ++p) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) at<Vector>(target[p] + v * kLanes).value = sum[p][v];
  }
}

// out = sum over the taps, for one tile.
template <class T>
struct ConvForward {
  template <int Bytes, int Vectors>
  PC3D_ALWAYS_INLINE static void block(const ConvTile<T>& t, int64_t column) {
    constexpr int kPairs = Bytes == 64 ? kConvBlock : kConvBlock / 2;
    constexpr int64_t kWidth = Vectors * Lanes<T, Bytes>::count;
    std::memset(t.buffer, 0, static_cast<size_t>(t.rows * kWidth) * sizeof(T));
    for (int64_t k = 0; k < t.taps; ++k) {
      const T* weight = t.weight + k * t.in_channels * t.padded + column;
      const int32_t* source = t.source + k * ConvPairs::kStride;
      const int32_t* local = t.local + k * ConvPairs::kStride;
      for (int32_t p = 0; p < t.count[k]; p += kPairs) {
        multiply_pairs<T, Bytes, kPairs, Vectors>(t, source + p, local + p, weight);
      }
    }
    const int64_t width = t.columns - column < kWidth ? t.columns - column : kWidth;
    for (int64_t r = 0; r < t.rows; ++r) {
      std::memcpy(t.out + r * t.columns + column, t.buffer + r * kWidth, static_cast<size_t>(width) * sizeof(T));
    }
  }

  template <int Bytes>
  PC3D_ALWAYS_INLINE static void run(const ConvTile<T>* t) {
    for_column_blocks<ConvForward<T>, Bytes>(*t);
  }
};

// partial[i + 0 ... Channels - 1] += sum over the pairs of features[source, i + ...] times buffer[local].
template <class T, int Bytes, int Channels, int Vectors>
PC3D_ALWAYS_INLINE void add_outer_products(const ConvTile<T>& t, const int32_t* source, const int32_t* local,
                                           int32_t count, const T* features, T* partial) {
  using Vector = typename Lanes<T, Bytes>::Vector;
  constexpr int kLanes = Lanes<T, Bytes>::count;
  Vector sum[Channels][Vectors];
#pragma GCC unroll 8
  for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      sum[c][v] = at<Vector>(partial + c * t.padded + v * kLanes).value;
    }
  }
  for (int32_t p = 0; p < count; ++p) {
    const T* x = features + source[p] * t.in_channels;
    const T* g = t.buffer + local[p] * (Vectors * kLanes);
    Vector w[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) w[v] = at<Vector>(g + v * kLanes).value;
#pragma GCC unroll 8
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) sum[c][v] += w[v] * x[c];
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) at<Vector>(partial + c * t.padded + v * kLanes).value = sum[c][v];
  }
}

// partial[k] += sum over the pairs of outer(features, grad), for one tile.
template <class T>
struct ConvWeightGradient {
  template <int Bytes, int Vectors>
  PC3D_ALWAYS_INLINE static void block(const ConvTile<T>& t, int64_t column) {
    constexpr int64_t kWidth = Vectors * Lanes<T, Bytes>::count;
    constexpr int64_t kChannels = Bytes == 64 ? kConvBlock : kConvBlock / 2;
    const int64_t width = t.columns - column < kWidth ? t.columns - column : kWidth;
    if (width < kWidth) std::memset(t.buffer, 0, static_cast<size_t>(t.rows * kWidth) * sizeof(T));
    for (int64_t r = 0; r < t.rows; ++r) {
      std::memcpy(t.buffer + r * kWidth, t.grad + r * t.columns + column, static_cast<size_t>(width) * sizeof(T));
    }
    for (int64_t k = 0; k < t.taps; ++k) {
      if (t.count[k] == 0) continue;
      T* partial = t.partial + k * t.in_channels * t.padded + column;
      const int32_t* source = t.source + k * ConvPairs::kStride;
      const int32_t* local = t.local + k * ConvPairs::kStride;
      int64_t i = 0;
      for (; i + kChannels <= t.in_channels; i += kChannels) {
        add_outer_products<T, Bytes, kChannels, Vectors>(t, source, local, t.count[k], t.features + i,
                                                         partial + i * t.padded);
      }
      for (; i < t.in_channels; ++i) {
        add_outer_products<T, Bytes, 1, Vectors>(t, source, local, t.count[k], t.features + i, partial + i * t.padded);
      }
    }
  }

  template <int Bytes>
  PC3D_ALWAYS_INLINE static void run(const ConvTile<T>* t) {
    for_column_blocks<ConvWeightGradient<T>, Bytes>(*t);
  }
};

// What both directions share: N rows of features, tables of M rows and K taps.
template <class T>
struct ConvShape {
  const T* features;
  int64_t num_rows;
  int64_t in_channels;
  const int32_t* neighbors;
  int64_t num_out;
  int64_t taps;
  int64_t out_channels;
};

template <class T>
std::unique_ptr<T[]> conv_buffer() {
  return std::unique_ptr<T[]>(new T[(kConvTile + 1) * kConvVectors * (kConvPadding / sizeof(T))]());
}

template <class T>
ConvTile<T> tile_of(const ConvShape<T>& s, int64_t first_row, ConvPairs* pairs, T* buffer) {
  ConvTile<T> t = {};
  t.features = s.features;
  t.in_channels = s.in_channels;
  t.taps = s.taps;
  t.rows = std::min(kConvTile, s.num_out - first_row);
  t.columns = s.out_channels;
  t.padded = padded_columns<T>(s.out_channels);
  pairs->fill(s.neighbors + first_row * s.taps, t.rows, s.taps, s.num_rows);
  t.source = pairs->source.data();
  t.local = pairs->local.data();
  t.count = pairs->count.data();
  t.buffer = buffer;
  return t;
}

// out[m] = sum_k features[neighbors[m, k]] @ weight[k], with weight (K, C_in, C_out) and out (M, C_out).
template <class T, class ParallelFor>
void sparse_conv(const ConvShape<T>& s, const T* weight, T* out, const ParallelFor& parallel_for) {
  const int64_t padded = padded_columns<T>(s.out_channels);
  std::unique_ptr<T[]> copy;
  if (padded != s.out_channels) {
    const int64_t rows = s.taps * s.in_channels;
    copy.reset(new T[rows * padded]());
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(weight + r * s.out_channels, s.out_channels, copy.get() + r * padded);
    weight = copy.get();
  }
  parallel_for(0, (s.num_out + kConvTile - 1) / kConvTile, 1, [&](int64_t begin, int64_t end) {
    ConvPairs pairs(s.taps);
    const auto buffer = conv_buffer<T>();
    for (int64_t tile = begin; tile < end; ++tile) {
      ConvTile<T> t = tile_of(s, tile * kConvTile, &pairs, buffer.get());
      t.weight = weight;
      t.out = out + tile * kConvTile * s.out_channels;
      call_widest<ConvForward<T>>(static_cast<const ConvTile<T>*>(&t));
    }
  });
}

// out[k] = sum_m outer(features[neighbors[m, k]], grad[m]), with grad (M, C_out) and out (K, C_in, C_out).
//
// Rows are cut into chunks, of a number that depends on the sizes only. Each is summed by one thread, and the partial
// sums are added up in order.
template <class T, class ParallelFor>
void sparse_conv_weight_gradient(const ConvShape<T>& s, const T* grad, T* out, const ParallelFor& parallel_for) {
  const int64_t padded = padded_columns<T>(s.out_channels);
  const int64_t size = s.taps * s.in_channels * padded;
  const int64_t tiles = (s.num_out + kConvTile - 1) / kConvTile;
  int64_t chunks = std::min((s.num_out + kConvChunk - 1) / kConvChunk, kConvMaxChunks);
  chunks = std::max<int64_t>(1, std::min(chunks, kConvMaxPartials / std::max<int64_t>(size, 1)));
  std::unique_ptr<T[]> partials(new T[chunks * size]);
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    ConvPairs pairs(s.taps);
    const auto buffer = conv_buffer<T>();
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      T* partial = partials.get() + chunk * size;
      std::fill_n(partial, size, T(0));
      for (int64_t tile = tiles * chunk / chunks; tile < tiles * (chunk + 1) / chunks; ++tile) {
        ConvTile<T> t = tile_of(s, tile * kConvTile, &pairs, buffer.get());
        t.grad = grad + tile * kConvTile * s.out_channels;
        t.partial = partial;
        call_widest<ConvWeightGradient<T>>(static_cast<const ConvTile<T>*>(&t));
      }
    }
  });
  parallel_for(0, s.taps * s.in_channels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < s.out_channels; ++c) {
        T sum = partials[r * padded + c];
        for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += partials[chunk * size + r * padded + c];
        out[r * s.out_channels + c] = sum;
      }
    }
  });
}

}  // namespace pc3d
