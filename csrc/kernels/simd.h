// Vectors for the CPU kernels, chosen when the program runs: one portable library uses what the machine has.
//
// A kernel is a struct with a static function template over the width of a vector in bytes:
//
//   template <class T>
//   struct AddOne {
//     template <int Bytes>
//     PC3D_ALWAYS_INLINE static void run(T* a, const T* b, int64_t n) {  // n: a multiple of Lanes<T, Bytes>::count
//       using Vector = typename Lanes<T, Bytes>::Vector;
//       for (int64_t i = 0; i < n; i += Lanes<T, Bytes>::count) {
//         at<Vector>(a + i).value = at<Vector>(b + i).value + T(1);
//       }
//     }
//   };
//   call_widest<AddOne<float>>(a, b, n);
//
// The body is compiled once for each level. Rules, all of which keep the levels bit-identical and both compilers
// content: it takes and returns scalars and pointers only, calls nothing but functions marked PC3D_ALWAYS_INLINE, holds
// no lambda, and adds up floating-point numbers in an order that does not depend on the width. `x < y ? x : y` on
// vectors selects lane by lane and becomes one instruction. There are no fused multiply-adds at any level
// (-ffp-contract=off).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

// The functions that take or return vectors are all inlined, so how a call would pass them does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace pc3d {

#define PC3D_ALWAYS_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define PC3D_X86_LEVELS 1
#define PC3D_TARGET_AVX2 __attribute__((target("avx2")))
#define PC3D_TARGET_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq")))
#else
#define PC3D_X86_LEVELS 0
#endif

// Integers as wide as a coordinate, so that indices share its lanes.
template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <>
struct IntegerOf<int32_t> {
  using type = int32_t;
};
template <>
struct IntegerOf<int64_t> {
  using type = int64_t;
};

template <class T, int Bytes>
struct Lanes {
  static constexpr int count = Bytes / static_cast<int>(sizeof(T));
  using Integer = typename IntegerOf<T>::type;
  typedef T Vector __attribute__((vector_size(Bytes)));
  typedef Integer IntegerVector __attribute__((vector_size(Bytes)));
};

// The vector at an address, which need not be aligned: `v = at<Vector>(p).value`, and the other way round where `p` is
// not const. A struct, since compilers take a reference to a vector for aligned, whatever its typedef, and clang
// refuses a function that returns one wider than the machine it is compiled for.
template <class Vector>
struct __attribute__((packed, may_alias)) Place {
  Vector value;
};
template <class Vector, class T>
PC3D_ALWAYS_INLINE Place<Vector>& at(T* address) {
  return *reinterpret_cast<Place<Vector>*>(address);
}
template <class Vector, class T>
PC3D_ALWAYS_INLINE const Place<Vector>& at(const T* address) {
  return *reinterpret_cast<const Place<Vector>*>(address);
}

// The largest of `count` values (a multiple of the lanes).
template <int Bytes, class T>
PC3D_ALWAYS_INLINE T largest(const T* values, int count) {
  using Vector = typename Lanes<T, Bytes>::Vector;
  constexpr int kLanes = Lanes<T, Bytes>::count;
  Vector best = at<Vector>(values).value;
  for (int i = kLanes; i < count; i += kLanes) {
    const Vector v = at<Vector>(values + i).value;
    best = v > best ? v : best;
  }
  T lanes[kLanes];
  at<Vector>(lanes).value = best;
  if constexpr (Bytes > 16) {
    return largest<Bytes / 2>(lanes, kLanes);
  } else {
    T result = lanes[0];
    for (int i = 1; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
    return result;
  }
}

enum class SimdLevel { kBaseline, kAvx2, kAvx512 };

// The widest level that the machine has. PC3D_SIMD=baseline|avx2 lowers it, for tests and for comparison.
inline SimdLevel simd_level() {
#if PC3D_X86_LEVELS
  static const SimdLevel level = [] {
    const char* wish = std::getenv("PC3D_SIMD");
    const bool baseline = wish != nullptr && std::strcmp(wish, "baseline") == 0;
    const bool avx2 = wish != nullptr && std::strcmp(wish, "avx2") == 0;
    if (baseline || !__builtin_cpu_supports("avx2")) return SimdLevel::kBaseline;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return wide && !avx2 ? SimdLevel::kAvx512 : SimdLevel::kAvx2;
  }();
  return level;
#else
  return SimdLevel::kBaseline;
#endif
}

#if PC3D_X86_LEVELS
template <class Kernel, class... Args>
PC3D_TARGET_AVX2 auto call_avx2(Args... args) {
  return Kernel::template run<32>(args...);
}
template <class Kernel, class... Args>
PC3D_TARGET_AVX512 auto call_avx512(Args... args) {
  return Kernel::template run<64>(args...);
}
#endif

// Runs `Kernel::run<Bytes>(args...)` compiled for the widest level the machine has.
template <class Kernel, class... Args>
auto call_widest(Args... args) {
#if PC3D_X86_LEVELS
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return call_avx512<Kernel>(args...);
    case SimdLevel::kAvx2:
      return call_avx2<Kernel>(args...);
    default:
      break;
  }
#endif
  return Kernel::template run<16>(args...);
}

}  // namespace pc3d
