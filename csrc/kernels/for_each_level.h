// Compiles the file named by PC3D_LEVEL_SOURCE once for each level of kernels/simd.h, in the namespaces pc3d::baseline,
// pc3d::avx2 and pc3d::avx512, and defines by_level() to choose one of three such functions when the program runs.
//
// This is for kernels of several functions that need a level's own instructions (simd.h's call_widest serves one
// self-contained loop). The rule that makes it safe: everything the file includes is included before it, so that inside
// the regions only the file's own functions are compiled for a wider machine, never a shared template of the library.
// No include guard: each inclusion is a new round.
#include "kernels/simd.h"

#ifndef PC3D_FOR_EACH_LEVEL
#define PC3D_FOR_EACH_LEVEL
#if PC3D_X86_LEVELS
#include <immintrin.h>
#endif

#if defined(__clang__)
#define PC3D_BEGIN_AVX2 _Pragma("clang attribute push(__attribute__((target(\"avx2\"))), apply_to=function)")
#define PC3D_BEGIN_AVX512 \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512vl,avx512bw,avx512dq\"))), apply_to=function)")
#define PC3D_END_LEVEL _Pragma("clang attribute pop")
#else
#define PC3D_BEGIN_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2\")")
#define PC3D_BEGIN_AVX512 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512\")")
#define PC3D_END_LEVEL _Pragma("GCC pop_options")
#endif

namespace pc3d {

// The one of three builds of a function that this machine runs best.
template <class Function>
Function by_level(Function baseline, [[maybe_unused]] Function avx2, [[maybe_unused]] Function avx512) {
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return avx512;
    case SimdLevel::kAvx2:
      return avx2;
    default:
      return baseline;
  }
}

}  // namespace pc3d

#if PC3D_X86_LEVELS
#define PC3D_BY_LEVEL(...) \
  ::pc3d::by_level(&::pc3d::baseline::__VA_ARGS__, &::pc3d::avx2::__VA_ARGS__, &::pc3d::avx512::__VA_ARGS__)
#else
#define PC3D_BY_LEVEL(...) (&::pc3d::baseline::__VA_ARGS__)
#endif
#endif  // PC3D_FOR_EACH_LEVEL

#define PC3D_LEVEL baseline
#define PC3D_LEVEL_BYTES 16
#include PC3D_LEVEL_SOURCE
#undef PC3D_LEVEL
#undef PC3D_LEVEL_BYTES

#if PC3D_X86_LEVELS
PC3D_BEGIN_AVX2
#define PC3D_LEVEL avx2
#define PC3D_LEVEL_BYTES 32
#include PC3D_LEVEL_SOURCE
#undef PC3D_LEVEL
#undef PC3D_LEVEL_BYTES
PC3D_END_LEVEL

PC3D_BEGIN_AVX512
#define PC3D_LEVEL avx512
#define PC3D_LEVEL_BYTES 64
#include PC3D_LEVEL_SOURCE
#undef PC3D_LEVEL
#undef PC3D_LEVEL_BYTES
PC3D_END_LEVEL
#endif
#undef PC3D_LEVEL_SOURCE
