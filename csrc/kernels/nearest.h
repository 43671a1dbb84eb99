// The nearest of a few points, for many queries at once: a lane a query. Compiled once for each level by
// kernels/for_each_level.h (hence no include guard); included by kernels/chamfer.h only.

namespace pc3d {
namespace PC3D_LEVEL {

// For rows [begin, end) of `from` the nearest row of `to` and its squared distance; the lowest row on a tie, and `base`
// (the first row) where no distance is below infinity.
template <class T>
void nearest_of_each(const T* from, int64_t begin, int64_t end, const T* to, int64_t to_size, int64_t base, T* squared,
                     int64_t* index) {
  using Vector = typename Lanes<T, PC3D_LEVEL_BYTES>::Vector;
  using IntegerVector = typename Lanes<T, PC3D_LEVEL_BYTES>::IntegerVector;
  constexpr int kLanes = Lanes<T, PC3D_LEVEL_BYTES>::count;
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t lanes = end - i < kLanes ? end - i : kLanes;
    Vector x = {};
    Vector y = {};
    Vector z = {};
    for (int64_t lane = 0; lane < lanes; ++lane) {
      x[lane] = from[3 * (i + lane)];
      y[lane] = from[3 * (i + lane) + 1];
      z[lane] = from[3 * (i + lane) + 2];
    }
    Vector best = std::numeric_limits<T>::infinity() - Vector{};
    IntegerVector nearest = {};
    for (int64_t j = 0; j < to_size; ++j) {
      const Vector dx = x - to[3 * j];
      const Vector dy = y - to[3 * j + 1];
      const Vector dz = z - to[3 * j + 2];
      const Vector d = (dx * dx + dy * dy) + dz * dz;
      const IntegerVector row = static_cast<Integer<T>>(j) - IntegerVector{};
      nearest = d < best ? row : nearest;
      best = d < best ? d : best;
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      squared[i + lane] = best[lane];
      index[i + lane] = base + nearest[lane];
    }
  }
}

}  // namespace PC3D_LEVEL
}  // namespace pc3d
