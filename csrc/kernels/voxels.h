// Voxels on the CPU: the distinct cells of points, and which rows of a set of voxels each tap of a convolution reads.
//
// Both sort the cells by one integer each: cloud, x, y, z and the row, packed into 64 bits relative to the box that
// holds them all. A box too large for that (some 500 metres of 2 cm cells each way) is sorted by comparison instead.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels/common.h"
#include "kernels/spatial_order.h"

namespace pc3d {

constexpr int kMaxRadixBits = 11;  // of one pass over the items
constexpr int64_t kVoxelChunk = 1 << 14;

// floor(value / size), held within int32; a quotient that is not a number gives the lowest.
template <class T>
void floor_divide(const T* values, int64_t count, T size, int32_t* out) {
  constexpr T kLow = static_cast<T>(std::numeric_limits<int32_t>::min());
  constexpr T kHigh = sizeof(T) == 4 ? static_cast<T>(2147483520.0) : static_cast<T>(2147483647.0);
  for (int64_t i = 0; i < count; ++i) {
    T q = values[i] / size;
    q = q < kHigh ? q : kHigh;
    q = q > kLow ? q : kLow;
    const int32_t t = static_cast<int32_t>(q);
    out[i] = t - (q < static_cast<T>(t) ? 1 : 0);
  }
}

// The same for integers. Their quotient in double precision is never rounded onto or across an integer.
inline void floor_divide(const int32_t* values, int64_t count, int32_t factor, int32_t* out) {
  if (factor == 1) {
    std::copy_n(values, count, out);
    return;
  }
  const double size = factor;
  for (int64_t i = 0; i < count; ++i) {
    const double q = values[i] / size;
    const int32_t t = static_cast<int32_t>(q);
    out[i] = t - (q < t ? 1 : 0);
  }
}

inline int bits_for(uint64_t largest) {
  int bits = 0;
  while (bits < 64 && largest >> bits != 0) ++bits;
  return bits;
}

// How cells are packed: cloud, x, y, z, row, from the highest bits to the lowest.
struct CellPacking {
  int32_t low[3] = {0, 0, 0};
  int32_t high[3] = {0, 0, 0};
  int shift[3] = {0, 0, 0};
  int cloud_shift = 0;
  int row_bits = 0;
  int total_bits = 0;

  bool fits() const { return total_bits <= 64; }
  uint64_t row_mask() const { return (uint64_t{1} << row_bits) - 1; }
  uint64_t axis(int a, int64_t value) const { return static_cast<uint64_t>(value - low[a]) << shift[a]; }
  // Of a cell inside of the box, row 0.
  uint64_t pack(uint64_t cloud, int64_t x, int64_t y, int64_t z) const {
    // A shift by all 64 bits, which only 0 could need, is not defined.
    return (cloud == 0 ? 0 : cloud << cloud_shift) | axis(0, x) | axis(1, y) | axis(2, z);
  }
};

template <class ParallelFor>
CellPacking packing_of(const int32_t* cells, int64_t count, int64_t num_clouds, const ParallelFor& parallel_for) {
  CellPacking p;
  const int64_t chunks = (count + kVoxelChunk - 1) / kVoxelChunk;
  std::vector<Box<int32_t>> boxes(chunks);
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int32_t* first = cells + 3 * c * kVoxelChunk;
      Box<int32_t> box = {{first[0], first[1], first[2]}, {first[0], first[1], first[2]}};
      const int32_t* last = cells + 3 * std::min(count, (c + 1) * kVoxelChunk);
      for (const int32_t* v = first; v < last; v += 3) {
        for (int a = 0; a < 3; ++a) {
          box.low[a] = std::min(box.low[a], v[a]);
          box.high[a] = std::max(box.high[a], v[a]);
        }
      }
      boxes[c] = box;
    }
  });
  for (int64_t c = 0; c < chunks; ++c) {
    for (int a = 0; a < 3; ++a) {
      p.low[a] = c == 0 ? boxes[c].low[a] : std::min(p.low[a], boxes[c].low[a]);
      p.high[a] = c == 0 ? boxes[c].high[a] : std::max(p.high[a], boxes[c].high[a]);
    }
  }
  p.row_bits = bits_for(static_cast<uint64_t>(std::max<int64_t>(count - 1, 0)));
  int shift = p.row_bits;
  for (int a = 2; a >= 0; --a) {
    p.shift[a] = std::min(shift, 63);
    shift += bits_for(static_cast<uint64_t>(static_cast<int64_t>(p.high[a]) - p.low[a]));
  }
  p.cloud_shift = shift;
  p.total_bits = shift + bits_for(static_cast<uint64_t>(std::max<int64_t>(num_clouds - 1, 0)));
  return p;
}

// Calls f(cloud, begin, end) for the part of each cloud in rows [begin, end).
template <class F>
void for_clouds_of_rows(const int64_t* offsets, int64_t num_clouds, int64_t begin, int64_t end, const F& f) {
  if (begin >= end) return;
  for (int64_t b = cloud_of_row(offsets, num_clouds, begin); b < num_clouds && offsets[b] < end; ++b) {
    f(b, std::max(begin, offsets[b]), std::min(end, offsets[b + 1]));
  }
}

// The packed cells in ascending order; equal cells ascend by row.
template <class ParallelFor>
std::unique_ptr<uint64_t[]> sort_cells(const int32_t* cells, int64_t count, const int64_t* offsets, int64_t num_clouds,
                                       const CellPacking& p, const ParallelFor& parallel_for) {
  std::unique_ptr<uint64_t[]> items(new uint64_t[count]);
  const int64_t chunks = (count + kVoxelChunk - 1) / kVoxelChunk;
  std::vector<char> ascends(chunks, 1);
  parallel_for(0, chunks, 1, [&](int64_t chunk_begin, int64_t chunk_end) {
    for (int64_t c = chunk_begin; c < chunk_end; ++c) {
      const int64_t first = c * kVoxelChunk;
      const int64_t last = std::min(count, first + kVoxelChunk);
      for_clouds_of_rows(offsets, num_clouds, first, last, [&](int64_t cloud, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int32_t* v = cells + 3 * i;
          items[i] = p.pack(static_cast<uint64_t>(cloud), v[0], v[1], v[2]) | static_cast<uint64_t>(i);
        }
      });
      for (int64_t i = first + 1; i < last; ++i) ascends[c] &= items[i - 1] < items[i] ? 1 : 0;
    }
  });
  bool sorted = true;
  for (int64_t c = 0; c < chunks; ++c) {
    sorted = sorted && ascends[c] != 0 && (c == 0 || items[c * kVoxelChunk - 1] < items[c * kVoxelChunk]);
  }
  if (sorted) return items;
  std::unique_ptr<uint64_t[]> scratch(new uint64_t[count]);
  const int key_bits = p.total_bits - p.row_bits;
  const int passes = (key_bits + kMaxRadixBits - 1) / kMaxRadixBits;
  for (int pass = 0, shift = p.row_bits; pass < passes; ++pass) {
    const int bits = (p.total_bits - shift + passes - pass - 1) / (passes - pass);
    radix_pass(items.get(), scratch.get(), count, shift, bits, parallel_for);
    items.swap(scratch);
    shift += bits;
  }
  return items;
}

// For cells whose packing does not fit: sorted by comparison, the cell's rank in the place of the packed cell.
inline std::unique_ptr<uint64_t[]> sort_cells_by_comparison(const int32_t* cells, int64_t count, const int64_t* offsets,
                                                            int64_t num_clouds, int row_bits) {
  std::vector<int64_t> rows(count);
  for (int64_t i = 0; i < count; ++i) rows[i] = i;
  const auto less = [cells](int64_t a, int64_t b) {
    return std::lexicographical_compare(cells + 3 * a, cells + 3 * a + 3, cells + 3 * b, cells + 3 * b + 3);
  };
  for (int64_t b = 0; b < num_clouds; ++b) {
    std::stable_sort(rows.begin() + offsets[b], rows.begin() + offsets[b + 1], less);
  }
  std::unique_ptr<uint64_t[]> items(new uint64_t[count]);
  uint64_t rank = 0;
  for (int64_t b = 0; b < num_clouds; ++b) {
    for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
      rank += i > 0 && (i == offsets[b] || less(rows[i - 1], rows[i])) ? 1 : 0;
      items[i] = rank << row_bits | static_cast<uint64_t>(rows[i]);
    }
  }
  return items;
}

// The distinct cells of packed clouds; made, asked for their number, then written.
class DistinctCells {
 public:
  template <class ParallelFor>
  DistinctCells(std::unique_ptr<int32_t[]> cells, int64_t count, const int64_t* offsets, int64_t num_clouds,
                const ParallelFor& parallel_for)
      : cells_(std::move(cells)), count_(count), offsets_(offsets), num_clouds_(num_clouds) {
    const CellPacking p = packing_of(cells_.get(), count, num_clouds, parallel_for);
    row_bits_ = p.row_bits;
    items_ = p.fits() ? sort_cells(cells_.get(), count, offsets, num_clouds, p, parallel_for)
                      : sort_cells_by_comparison(cells_.get(), count, offsets, num_clouds, p.row_bits);
    const int64_t chunks = (count + kVoxelChunk - 1) / kVoxelChunk;
    chunk_starts_.resize(chunks + 1);
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        int64_t begun = 0;
        for (int64_t i = c * kVoxelChunk; i < std::min(count, (c + 1) * kVoxelChunk); ++i) begun += begins(i) ? 1 : 0;
        chunk_starts_[c + 1] = begun;
      }
    });
    for (int64_t c = 0; c < chunks; ++c) chunk_starts_[c + 1] += chunk_starts_[c];
  }

  int64_t size() const { return chunk_starts_.back(); }

  template <class ParallelFor>
  void write(int32_t* coords, int64_t* offsets, int64_t* inverse, int64_t* first, int64_t* number,
             const ParallelFor& parallel_for) const {
    const int64_t chunks = static_cast<int64_t>(chunk_starts_.size()) - 1;
    const uint64_t mask = (uint64_t{1} << row_bits_) - 1;
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        int64_t voxel = chunk_starts_[c] - 1;
        const int64_t last = std::min(count_, (c + 1) * kVoxelChunk);
        for (int64_t i = c * kVoxelChunk; i < last; ++i) {
          const int64_t row = static_cast<int64_t>(items_[i] & mask);
          if (begins(i)) {
            ++voxel;
            first[voxel] = row;
            number[voxel] = i;  // where its run begins; lengths follow
            std::copy_n(cells_.get() + 3 * row, 3, coords + 3 * voxel);
          }
          inverse[row] = voxel;
        }
      }
    });
    for (int64_t v = 0; v < size(); ++v) number[v] = (v + 1 < size() ? number[v + 1] : count_) - number[v];
    for (int64_t b = 0; b <= num_clouds_; ++b) {
      offsets[b] = std::partition_point(first, first + size(), [&](int64_t row) { return row < offsets_[b]; }) - first;
    }
  }

 private:
  bool begins(int64_t i) const { return i == 0 || items_[i - 1] >> row_bits_ != items_[i] >> row_bits_; }

  std::unique_ptr<int32_t[]> cells_;
  int64_t count_;
  const int64_t* offsets_;
  int64_t num_clouds_;
  int row_bits_ = 0;
  std::unique_ptr<uint64_t[]> items_;
  std::vector<int64_t> chunk_starts_;
};

template <class T, class ParallelFor>
DistinctCells distinct_cells(const T* values, int64_t count, T size, const int64_t* offsets, int64_t num_clouds,
                             const ParallelFor& parallel_for) {
  std::unique_ptr<int32_t[]> cells(new int32_t[3 * count]);
  parallel_for(0, 3 * count, kVoxelChunk, [&](int64_t begin, int64_t end) {
    floor_divide(values + begin, end - begin, size, cells.get() + begin);
  });
  return DistinctCells(std::move(cells), count, offsets, num_clouds, parallel_for);
}

}  // namespace pc3d
