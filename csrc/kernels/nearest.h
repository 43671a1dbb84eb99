// The nearest of a few points, for many queries at once: a lane a query. Compiled once for each level by
// kernels/for_each_level.h (hence no include guard); included by kernels/chamfer.h only.

namespace pc3d {
namespace PC3D_LEVEL {

// For rows [begin, end) of `from` the nearest row of `to` and its squared distance; the lowest row on a tie, and `base`
// (the first row) where no distance is below infinity. Two vectors of queries at a time: while the minimum of one waits
// for its comparison, the other is measured.
template <class T>
void nearest_of_each(const T* from, int64_t begin, int64_t end, const T* to, int64_t to_size, int64_t base, T* squared,
                     int64_t* index) {
  using Vector = typename Lanes<T, PC3D_LEVEL_BYTES>::Vector;
  using IntegerVector = typename Lanes<T, PC3D_LEVEL_BYTES>::IntegerVector;
  constexpr int kLanes = Lanes<T, PC3D_LEVEL_BYTES>::count;
  constexpr int kVectors = 2;
  for (int64_t i = begin; i < end; i += kVectors * kLanes) {
    const int64_t queries = end - i < kVectors * kLanes ? end - i : kVectors * kLanes;
    Vector x[kVectors] = {};
    Vector y[kVectors] = {};
    Vector z[kVectors] = {};
    Vector best[kVectors];
    IntegerVector nearest[kVectors] = {};
    for (int64_t q = 0; q < queries; ++q) {
      x[q / kLanes][q % kLanes] = from[3 * (i + q)];
      y[q / kLanes][q % kLanes] = from[3 * (i + q) + 1];
      z[q / kLanes][q % kLanes] = from[3 * (i + q) + 2];
    }
    for (int v = 0; v < kVectors; ++v) best[v] = std::numeric_limits<T>::infinity() - Vector{};
    const auto measure = [&](int v, int64_t j) {
      const Vector dx = x[v] - to[3 * j];
      const Vector dy = y[v] - to[3 * j + 1];
      const Vector dz = z[v] - to[3 * j + 2];
      const Vector d = (dx * dx + dy * dy) + dz * dz;
      const IntegerVector row = static_cast<Integer<T>>(j) - IntegerVector{};
      nearest[v] = d < best[v] ? row : nearest[v];
      best[v] = d < best[v] ? d : best[v];
    };
    if (queries > kLanes) {
      for (int64_t j = 0; j < to_size; ++j) {
        measure(0, j);
        measure(1, j);
      }
    } else {
      for (int64_t j = 0; j < to_size; ++j) measure(0, j);
    }
    for (int64_t q = 0; q < queries; ++q) {
      squared[i + q] = best[q / kLanes][q % kLanes];
      index[i + q] = base + nearest[q / kLanes][q % kLanes];
    }
  }
}

}  // namespace PC3D_LEVEL
}  // namespace pc3d
