// Sparse convolution on CUDA: tiles of output rows and columns, the rows of every tap gathered into shared memory.
//
// Every output element adds up its taps in order and within them its channels in order, one rounding after every
// operation, as on the CPU; a missing neighbour adds zeros. No atomics: the gradient of the features is a convolution
// over the reverse table, that of the weight is summed over chunks of rows, and the chunks in order.
#pragma once

#include "kernels/gather.cuh"

namespace pc3d {
namespace cuda {

constexpr int kConvThreads = 256;
constexpr int kConvTile = 64;   // rows and columns of a tile
constexpr int kConvDepth = 16;  // channels, or rows of the weight's gradient, held at a time
constexpr int kConvEach = 4;    // rows and columns of a thread
constexpr int kConvSide = kConvTile / kConvEach;
constexpr int64_t kConvChunk = 8192;  // output rows of one partial sum of the weight's gradient
constexpr int64_t kConvMaxChunks = 64;
constexpr int64_t kConvMaxPartials = 1 << 26;  // elements

struct ConvSizes {
  int64_t num_rows;  // of the features
  int64_t in_channels;
  int64_t out_channels;
  int64_t num_out;
  int64_t taps;
};

// sum[i][j] += left[d][...] * right[d][...] over what is in shared memory.
template <class A>
__device__ __forceinline__ void multiply_tiles(const A (*left)[kConvTile + 1], const A (*right)[kConvTile + 1],
                                               A (*sum)[kConvEach]) {
  const int x = threadIdx.x % kConvSide;
  const int y = threadIdx.x / kConvSide;
#pragma unroll
  for (int d = 0; d < kConvDepth; ++d) {
    A a[kConvEach];
    A b[kConvEach];
#pragma unroll
    for (int i = 0; i < kConvEach; ++i) {
      a[i] = left[d][y + i * kConvSide];
      b[i] = right[d][x + i * kConvSide];
    }
#pragma unroll
    for (int i = 0; i < kConvEach; ++i) {
#pragma unroll
      for (int j = 0; j < kConvEach; ++j) sum[i][j] = add(sum[i][j], multiply(a[i], b[j]));
    }
  }
}

// out[m] = sum_k features[neighbors[m, k]] @ weight[k]; a block a tile.
template <class T, class A>
__global__ void __launch_bounds__(kConvThreads)
    convolve(const T* __restrict__ features, const T* __restrict__ weight, const int32_t* __restrict__ neighbors,
             ConvSizes s, T* __restrict__ out) {
  __shared__ A left[kConvDepth][kConvTile + 1];
  __shared__ A right[kConvDepth][kConvTile + 1];
  __shared__ int64_t source[kConvTile];
  const int thread = threadIdx.x;
  const int64_t column_tiles = ceil_div(s.out_channels, kConvTile);
  const int64_t tiles = ceil_div(s.num_out, kConvTile) * column_tiles;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_row = tile / column_tiles * kConvTile;
    const int64_t first_column = tile % column_tiles * kConvTile;
    A sum[kConvEach][kConvEach] = {};
    for (int64_t k = 0; k < s.taps; ++k) {
      int64_t n = -1;
      if (thread < kConvTile && first_row + thread < s.num_out) {
        n = neighbors[(first_row + thread) * s.taps + k];
        if (!in_range(n, s.num_rows)) n = -1;
      }
      if (thread < kConvTile) source[thread] = n;
      if (__syncthreads_or(n >= 0) == 0) continue;
      for (int64_t c = 0; c < s.in_channels; c += kConvDepth) {
        for (int e = thread; e < kConvDepth * kConvTile; e += kConvThreads) {
          const int d = e % kConvDepth;
          const int64_t row = source[e / kConvDepth];
          const bool there = row >= 0 && c + d < s.in_channels;
          left[d][e / kConvDepth] = there ? static_cast<A>(features[row * s.in_channels + c + d]) : A(0);
        }
        for (int e = thread; e < kConvDepth * kConvTile; e += kConvThreads) {
          const int d = e / kConvTile;
          const int64_t column = first_column + e % kConvTile;
          const bool there = c + d < s.in_channels && column < s.out_channels;
          const int64_t place = (k * s.in_channels + c + d) * s.out_channels + column;
          right[d][e % kConvTile] = there ? static_cast<A>(weight[place]) : A(0);
        }
        __syncthreads();
        multiply_tiles(left, right, sum);
        __syncthreads();
      }
    }
    for (int i = 0; i < kConvEach; ++i) {
      const int64_t row = first_row + thread / kConvSide + i * kConvSide;
      for (int j = 0; j < kConvEach; ++j) {
        const int64_t column = first_column + thread % kConvSide + j * kConvSide;
        if (row < s.num_out && column < s.out_channels) {
          out[row * s.out_channels + column] = static_cast<T>(sum[i][j]);
        }
      }
    }
    __syncthreads();  // before the next tile writes `source`
  }
}

// partials[chunk, k] = sum over the chunk's rows m of outer(features[neighbors[m, k]], grad[m]).
template <class T, class A>
__global__ void __launch_bounds__(kConvThreads)
    convolve_weight(const T* __restrict__ features, const T* __restrict__ grad, const int32_t* __restrict__ neighbors,
                    ConvSizes s, int64_t chunks, A* __restrict__ partials) {
  __shared__ A left[kConvDepth][kConvTile + 1];
  __shared__ A right[kConvDepth][kConvTile + 1];
  __shared__ int64_t source[kConvDepth];
  const int thread = threadIdx.x;
  const int64_t row_tiles = ceil_div(s.in_channels, kConvTile);
  const int64_t column_tiles = ceil_div(s.out_channels, kConvTile);
  const int64_t jobs = chunks * s.taps * row_tiles * column_tiles;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t first_column = job % column_tiles * kConvTile;
    const int64_t first_row = job / column_tiles % row_tiles * kConvTile;
    const int64_t k = job / (column_tiles * row_tiles) % s.taps;
    const int64_t chunk = job / (column_tiles * row_tiles * s.taps);
    const int64_t rows_each = ceil_div(s.num_out, chunks);
    const int64_t begin = chunk * rows_each;
    const int64_t end = begin + rows_each < s.num_out ? begin + rows_each : s.num_out;
    A sum[kConvEach][kConvEach] = {};
    for (int64_t m = begin; m < end; m += kConvDepth) {
      int64_t n = -1;
      if (thread < kConvDepth && m + thread < end) {
        n = neighbors[(m + thread) * s.taps + k];
        if (!in_range(n, s.num_rows)) n = -1;
      }
      if (thread < kConvDepth) source[thread] = n;
      if (__syncthreads_or(n >= 0) == 0) continue;
      for (int e = thread; e < kConvDepth * kConvTile; e += kConvThreads) {
        const int d = e / kConvTile;
        const int64_t row = first_row + e % kConvTile;
        const int64_t column = first_column + e % kConvTile;
        const bool there = source[d] >= 0;
        left[d][e % kConvTile] =
            there && row < s.in_channels ? static_cast<A>(features[source[d] * s.in_channels + row]) : A(0);
        right[d][e % kConvTile] =
            there && column < s.out_channels ? static_cast<A>(grad[(m + d) * s.out_channels + column]) : A(0);
      }
      __syncthreads();
      multiply_tiles(left, right, sum);
      __syncthreads();
    }
    for (int i = 0; i < kConvEach; ++i) {
      const int64_t row = first_row + thread / kConvSide + i * kConvSide;
      for (int j = 0; j < kConvEach; ++j) {
        const int64_t column = first_column + thread % kConvSide + j * kConvSide;
        if (row < s.in_channels && column < s.out_channels) {
          partials[((chunk * s.taps + k) * s.in_channels + row) * s.out_channels + column] = sum[i][j];
        }
      }
    }
    __syncthreads();
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    add_partials(const A* __restrict__ partials, int64_t chunks, int64_t size, T* __restrict__ out) {
  for (int64_t i = first_item(); i < size; i += item_stride()) {
    A sum = partials[i];
    for (int64_t c = 1; c < chunks; ++c) sum = add(sum, partials[c * size + i]);
    out[i] = static_cast<T>(sum);
  }
}

inline int64_t conv_blocks(int64_t work) { return work < kMostBlocks ? work : kMostBlocks; }

template <class T, class A, class Launch>
void sparse_conv(const T* features, const T* weight, const int32_t* neighbors, const ConvSizes& s, T* out,
                 const Launch& launch) {
  const int64_t tiles = ceil_div(s.num_out, kConvTile) * ceil_div(s.out_channels, kConvTile);
  if (tiles > 0) launch(convolve<T, A>, conv_blocks(tiles), kConvThreads, features, weight, neighbors, s, out);
}

// A number that depends on the sizes only, so that the sums do too.
inline int64_t conv_chunks(const ConvSizes& s) {
  const int64_t size = s.taps * s.in_channels * s.out_channels;
  int64_t chunks = ceil_div(s.num_out, kConvChunk);
  if (chunks > kConvMaxChunks) chunks = kConvMaxChunks;
  if (size > 0 && chunks > kConvMaxPartials / size) chunks = kConvMaxPartials / size;
  return chunks < 1 ? 1 : chunks;
}

// `partials` (chunks, K, C_in, C_out)
template <class T, class A, class Launch>
void sparse_conv_weight_gradient(const T* features, const T* grad, const int32_t* neighbors, const ConvSizes& s,
                                 A* partials, T* out, const Launch& launch) {
  const int64_t size = s.taps * s.in_channels * s.out_channels;
  if (size == 0) return;
  const int64_t chunks = conv_chunks(s);
  const int64_t jobs = chunks * s.taps * ceil_div(s.in_channels, kConvTile) * ceil_div(s.out_channels, kConvTile);
  launch(convolve_weight<T, A>, conv_blocks(jobs), kConvThreads, features, grad, neighbors, s, chunks, partials);
  launch(add_partials<T, A>, gather_blocks(size), kGatherThreads, partials, chunks, size, out);
}

}  // namespace cuda
}  // namespace pc3d
