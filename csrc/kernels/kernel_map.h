// Which input row each tap of a sparse convolution reads, on the CPU.
//
// The windows of output voxels in ascending order ascend too, tap by tap. So for each of the K * K columns of taps
// along z, one pointer walks the sorted input once: no hash table, and every access is next to the last one.
#pragma once

#include "kernels/voxels.h"

namespace pc3d {

struct Taps {
  int64_t size;    // K, the edge of the window
  int64_t stride;  // window v begins at stride * v + low
  int64_t low;
  int64_t count() const { return size * size * size; }
};

// One of several sets of voxels, cloud by cloud.
struct VoxelSet {
  const int32_t* coords;
  const int64_t* offsets;
  int64_t num_clouds;
  int64_t size() const { return offsets[num_clouds]; }
};

class SortedVoxels {
 public:
  SortedVoxels(const uint64_t* items, int64_t count, const CellPacking& packing)
      : items_(items), count_(count), p_(packing) {
    z_mask_ = (uint64_t{1} << bits_for(static_cast<uint64_t>(static_cast<int64_t>(p_.high[2]) - p_.low[2]))) - 1;
  }

  // Writes the rows of the column of K voxels from (x, y, z) upwards. `position` is a hint that only ascends.
  void read_column(uint64_t cloud, int64_t x, int64_t y, int64_t z, int64_t size, int64_t* position,
                   int32_t* rows) const {
    const int64_t from = std::max<int64_t>(z, p_.low[2]);
    const int64_t to = std::min<int64_t>(z + size - 1, p_.high[2]);
    if (x < p_.low[0] || x > p_.high[0] || y < p_.low[1] || y > p_.high[1] || from > to) return;
    const uint64_t begin = p_.pack(cloud, x, y, from);
    const uint64_t last = p_.pack(cloud, x, y, to) | p_.row_mask();
    int64_t i = *position;
    if (i < 0 || (i > 0 && items_[i - 1] >= begin)) {  // the first window, or windows out of order
      i = std::lower_bound(items_, items_ + count_, begin) - items_;
    } else {
      int64_t steps = 0;
      while (i < count_ && items_[i] < begin && steps < 32) ++i, ++steps;
      if (steps == 32) i = std::lower_bound(items_ + i, items_ + count_, begin) - items_;
    }
    *position = i;
    for (; i < count_ && items_[i] <= last; ++i) {
      const int64_t z_found = p_.low[2] + static_cast<int64_t>(items_[i] >> p_.shift[2] & z_mask_);
      int32_t* row = rows + (z_found - z);
      if (*row < 0) *row = static_cast<int32_t>(items_[i] & p_.row_mask());  // the lowest of equals
    }
  }

  int64_t row(int64_t i) const { return static_cast<int64_t>(items_[i] & p_.row_mask()); }

 private:
  const uint64_t* items_;
  int64_t count_;
  const CellPacking& p_;
  uint64_t z_mask_;
};

struct CellHash {
  struct Cell {
    int64_t cloud, x, y, z;
    bool operator==(const Cell& o) const { return cloud == o.cloud && x == o.x && y == o.y && z == o.z; }
  };
  size_t operator()(const Cell& c) const {
    uint64_t h = 0;
    for (const int64_t v : {c.cloud, c.x, c.y, c.z}) {
      h = (h ^ static_cast<uint64_t>(v)) * 0x9e3779b97f4a7c15ull;
      h ^= h >> 29;
    }
    return h;
  }
};

// For boxes too large to pack: a hash table of the standard library.
inline void hash_neighbors(const VoxelSet& in, const VoxelSet& out, const Taps& taps, int32_t* neighbors) {
  std::unordered_map<CellHash::Cell, int32_t, CellHash> row_of;
  for (int64_t b = 0; b < in.num_clouds; ++b) {
    for (int64_t n = in.offsets[b]; n < in.offsets[b + 1]; ++n) {
      const int32_t* v = in.coords + 3 * n;
      row_of.emplace(CellHash::Cell{b, v[0], v[1], v[2]}, static_cast<int32_t>(n));
    }
  }
  for (int64_t b = 0; b < out.num_clouds; ++b) {
    for (int64_t m = out.offsets[b]; m < out.offsets[b + 1]; ++m) {
      const int32_t* v = out.coords + 3 * m;
      for (int64_t k = 0; k < taps.count(); ++k) {
        const int64_t tap[3] = {k / (taps.size * taps.size), k / taps.size % taps.size, k % taps.size};
        CellHash::Cell cell = {b, 0, 0, 0};
        cell.x = taps.stride * v[0] + taps.low + tap[0];
        cell.y = taps.stride * v[1] + taps.low + tap[1];
        cell.z = taps.stride * v[2] + taps.low + tap[2];
        const auto found = row_of.find(cell);
        if (found != row_of.end()) neighbors[m * taps.count() + k] = found->second;
      }
    }
  }
}

// neighbors (M, K^3), filled with -1 before; `same` says that the output voxels are the input voxels.
template <class ParallelFor>
void find_neighbors(const VoxelSet& in, const VoxelSet& out, bool same, const Taps& taps, int32_t* neighbors,
                    const ParallelFor& parallel_for) {
  const CellPacking packing = packing_of(in.coords, in.size(), in.num_clouds, parallel_for);
  if (!packing.fits()) return hash_neighbors(in, out, taps, neighbors);
  const auto items = sort_cells(in.coords, in.size(), in.offsets, in.num_clouds, packing, parallel_for);
  const SortedVoxels sorted(items.get(), in.size(), packing);
  parallel_for(0, out.size(), kVoxelChunk / 8, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> positions(taps.size * taps.size, -1);
    int64_t cloud = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = same ? sorted.row(i) : i;
      if (i == begin || m < out.offsets[cloud] || m >= out.offsets[cloud + 1]) {
        cloud = cloud_of_row(out.offsets, out.num_clouds, m);
      }
      const int32_t* v = out.coords + 3 * m;
      const int64_t z = taps.stride * v[2] + taps.low;
      int32_t* rows = neighbors + m * taps.count();
      for (int64_t ix = 0; ix < taps.size; ++ix) {
        for (int64_t iy = 0; iy < taps.size; ++iy, rows += taps.size) {
          sorted.read_column(static_cast<uint64_t>(cloud), taps.stride * v[0] + taps.low + ix,
                             taps.stride * v[1] + taps.low + iy, z, taps.size, &positions[ix * taps.size + iy], rows);
        }
      }
    }
  });
}

// neighbors (M, K^3) and reverse (N, K^3), every entry written.
template <class ParallelFor>
void kernel_map(const VoxelSet& in, const VoxelSet& out, const Taps& taps, int32_t* neighbors, int32_t* reverse,
                const ParallelFor& parallel_for) {
  const int64_t count = taps.count();
  const auto clear = [&](int32_t* table, int64_t size) {
    parallel_for(0, size, kVoxelChunk,
                 [&](int64_t begin, int64_t end) { std::fill_n(table + begin, end - begin, int32_t{-1}); });
  };
  clear(neighbors, out.size() * count);
  if (in.size() == 0 || out.size() == 0) return clear(reverse, in.size() * count);
  const bool same = in.coords == out.coords && in.offsets == out.offsets;
  find_neighbors(in, out, same, taps, neighbors, parallel_for);
  if (same && taps.stride == 1 && 2 * taps.low + taps.size == 1) {
    // The voxel that reads n through a tap is the one that n reads through the tap opposite.
    parallel_for(0, in.size(), kVoxelChunk / 8, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        std::reverse_copy(neighbors + n * count, neighbors + (n + 1) * count, reverse + n * count);
      }
    });
    return;
  }
  clear(reverse, in.size() * count);
  parallel_for(0, out.size(), kVoxelChunk / 8, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t k = 0; k < count; ++k) {
        const int32_t n = neighbors[m * count + k];
        if (n >= 0) reverse[n * count + k] = static_cast<int32_t>(m);
      }
    }
  });
}

}  // namespace pc3d
