#include "kernels/window_attention_backward.cuh"

#include <numeric>
#include <vector>

#include "cuda/binding.cuh"
#include "cuda/scatter.cuh"

namespace pc3d {

using cuda::FeatureSizes;

// A new tensor of the type and device of another.
static Tensor like(const Tensor& t, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(t, std::vector<int64_t>(sizes), t.scalar_type());
}

static Tensor zeros(const Tensor& t, std::initializer_list<int64_t> sizes) {
  Tensor out = like(t, sizes);
  torch::stable::zero_(out);
  return out;
}

// The arguments that both directions share, contiguous and checked; values are not looked at, the kernels clamp.
struct WindowArguments {
  Tensor query, key, value, signals, order, offsets, query_table, key_table, value_table;
  const std::vector<int64_t>& axis_rows;

  WindowArguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& s, const Tensor& o, const Tensor& w,
                  const Tensor& tq, const Tensor& tk, const Tensor& tv, const std::vector<int64_t>& rows)
      : query(torch::stable::contiguous(q)),
        key(torch::stable::contiguous(k)),
        value(torch::stable::contiguous(v)),
        signals(torch::stable::contiguous(s)),
        order(torch::stable::contiguous(o)),
        offsets(torch::stable::contiguous(w)),
        query_table(torch::stable::contiguous(tq)),
        key_table(torch::stable::contiguous(tk)),
        value_table(torch::stable::contiguous(tv)),
        axis_rows(rows) {
    STD_TORCH_CHECK(q.dim() == 3 && q.size(2) >= 1 && q.size(2) <= cuda::kMostHeadDim,
                    "query must be (N, H, d), d 1 to ", cuda::kMostHeadDim);
    STD_TORCH_CHECK(q.size(1) <= std::numeric_limits<int32_t>::max(), "query has too many heads: ", q.size(1));
    for (const Tensor* t : {&key, &value}) check_like(*t, query, "key and value");
    const ScalarType sums = query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(signals.dim() == 2 && signals.size(0) == query.size(0) &&
                        signals.size(1) == static_cast<int64_t>(rows.size()) && signals.scalar_type() == sums,
                    "signals must be (N, D), D the length of axis_rows, in the type of the sums");
    check_rows();
    for (const Tensor* t : {&query_table, &key_table, &value_table}) {
      STD_TORCH_CHECK(t->dim() == 3 && t->size(0) == table_rows() && t->size(1) == query.size(1) &&
                          t->size(2) == query.size(2) && t->scalar_type() == sums,
                      "tables must be (sum(axis_rows), H, d), in the type of the sums");
      check_same_device(query, *t, "tables");
    }
    STD_TORCH_CHECK(order.dim() == 1 && order.size(0) == query.size(0) && order.scalar_type() == ScalarType::Long,
                    "order must be int64 of shape (N,)");
    STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == ScalarType::Long,
                    "window_offsets must be int64 of shape (Nw + 1,)");
    STD_TORCH_CHECK(offsets.size(0) > 1 || query.size(0) == 0, "query has rows, but window_offsets name no window");
    for (const Tensor* t : {&signals, &order, &offsets}) check_same_device(query, *t, "signals and windows");
  }

  // A warp keeps four values for a table row in shared memory.
  void check_rows() const {
    STD_TORCH_CHECK(axis_rows.size() <= cuda::kMostAxes, "on CUDA axis_rows must have at most ", cuda::kMostAxes,
                    " entries, got ", axis_rows.size());
    const int64_t most = query.scalar_type() == ScalarType::Double ? 700 : 1400;
    int64_t total = 0;
    for (const int64_t r : axis_rows) {
      STD_TORCH_CHECK(r >= 1 && (total += r) <= most,
                      "on CUDA axis_rows must be positive and sum to at most 1,400 (700 for float64)");
    }
  }

  static void check_like(const Tensor& t, const Tensor& other, const char* name) {
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == other.size(0) && t.size(1) == other.size(1) &&
                        t.size(2) == other.size(2) && t.scalar_type() == other.scalar_type(),
                    name, " must have the shape and dtype of query");
    check_same_device(other, t, name);
  }

  int64_t table_rows() const { return std::accumulate(axis_rows.begin(), axis_rows.end(), int64_t(0)); }
  int64_t num_voxels() const { return query.size(0); }
  int64_t num_heads() const { return query.size(1); }
  int64_t num_windows() const { return offsets.size(0) - 1; }
  FeatureSizes sizes(int64_t width) const { return {num_voxels(), num_heads(), query.size(2), width}; }
};

// Blocks for a kernel whose threads stride over items.
template <class... P, class... Q>
static void stride_over(const Launch& launch, int64_t items, void (*kernel)(P...), Q... arguments) {
  if (items > 0) launch(kernel, cuda::gather_blocks(items), cuda::kGatherThreads, arguments...);
}

// The arguments as the kernels read them: T the type of the features, A that of the sums.
template <class T, class A>
class Arranged {
 public:
  // `more`: other features that are arranged beside queries, keys and values; null for none.
  Arranged(const WindowArguments& arguments, const Tensor* more, int64_t width, int64_t num_runs, const Launch& launch)
      : arguments_(arguments), launch_(launch), sizes_(arguments.sizes(width)) {
    const int64_t rows = arguments.table_rows();
    const int64_t axes = arguments.signals.size(1);
    const int count = more == nullptr ? 3 : 4;
    features_ = like(arguments.signals, {count, sizes_.num_heads, sizes_.num_voxels, width});
    stride_over(launch, features_.numel() / count, cuda::arrange_features<T, A>,
                cuda::Several<const T>{{arguments.query.template const_data_ptr<T>(),
                                        arguments.key.template const_data_ptr<T>(),
                                        arguments.value.template const_data_ptr<T>(),
                                        more == nullptr ? nullptr : more->template const_data_ptr<T>()}},
                count, order(), sizes_, features_.template mutable_data_ptr<A>());
    signals_ = like(arguments.signals, {axes, sizes_.num_voxels});
    stride_over(launch, signals_.numel(), cuda::arrange_columns<A>, arguments.signals.template const_data_ptr<A>(),
                order(), sizes_.num_voxels, axes, signals_.template mutable_data_ptr<A>());
    tables_ = like(arguments.signals, {3, sizes_.num_heads, width, rows});
    stride_over(launch, tables_.numel() / 3, cuda::arrange_tables<A>,
                cuda::Several<const A>{{arguments.query_table.template const_data_ptr<A>(),
                                        arguments.key_table.template const_data_ptr<A>(),
                                        arguments.value_table.template const_data_ptr<A>()}},
                rows, sizes_, tables_.template mutable_data_ptr<A>());
    cut_runs(num_runs);
  }

  // Results of the kernels, zero at first.
  Tensor results(int64_t count) const {
    return zeros(arguments_.signals, {count, sizes_.num_heads, sizes_.num_voxels, sizes_.width});
  }

  // Results as features. A row that no window names (only unchecked input leaves one) is zero.
  std::vector<Tensor> restored(const Tensor& results) const {
    const int count = static_cast<int>(results.size(0));
    std::vector<Tensor> out;
    cuda::Several<T> places = {};
    for (int t = 0; t < count; ++t) {
      out.push_back(zeros(arguments_.query, {sizes_.num_voxels, sizes_.num_heads, sizes_.head_dim}));
      places.of[t] = out.back().template mutable_data_ptr<T>();
    }
    stride_over(launch_, out[0].numel(), cuda::restore_features<T, A>, results.const_data_ptr<A>(), count, order(),
                sizes_, places);
    return out;
  }

  // What is launched from now on may use their memory; the kernels that read them came before.
  void drop_features() { features_ = Tensor(); }

  const int64_t* order() const { return arguments_.order.template const_data_ptr<int64_t>(); }
  const FeatureSizes& sizes() const { return sizes_; }
  // Queries, keys, values and others, in this order.
  const A* features(int64_t which) const {
    return features_.template const_data_ptr<A>() + which * sizes_.num_heads * sizes_.num_voxels * sizes_.width;
  }

  cuda::ArrangedAttention<A> task() const {
    const A* tables = tables_.template const_data_ptr<A>();
    const int64_t size = tables_.numel() / 3;
    cuda::ArrangedAttention<A> task = {features(0),
                                       features(1),
                                       features(2),
                                       signals_.template const_data_ptr<A>(),
                                       arguments_.offsets.template const_data_ptr<int64_t>(),
                                       runs_.template const_data_ptr<int64_t>(),
                                       tables,
                                       tables + size,
                                       tables + 2 * size,
                                       sizes_.num_voxels,
                                       static_cast<int>(sizes_.num_heads),
                                       {}};
    for (const int64_t r : arguments_.axis_rows) {
      auto& axes = task.axes;
      axes.half[axes.count] = static_cast<A>(r) / 2;
      axes.first[axes.count + 1] = axes.first[axes.count] + static_cast<int>(r);
      ++axes.count;
    }
    return task;
  }

 private:
  void cut_runs(int64_t num_runs) {
    const int64_t windows = arguments_.num_windows();
    const Tensor& offsets = arguments_.offsets;
    Tensor costs = like(offsets, {windows});
    runs_ = like(offsets, {num_runs + 1});
    if (windows == 0) return torch::stable::zero_(runs_), void();
    stride_over(launch_, windows, cuda::find_costs, offsets.template const_data_ptr<int64_t>(), windows,
                sizes_.num_voxels, costs.template mutable_data_ptr<int64_t>());
    const Tensor sums = cumulative_sum(costs);
    stride_over(launch_, num_runs + 1, cuda::cut_runs, sums.template const_data_ptr<int64_t>(), windows, num_runs,
                runs_.template mutable_data_ptr<int64_t>());
  }

  const WindowArguments& arguments_;
  const Launch& launch_;
  FeatureSizes sizes_;
  Tensor features_, tables_, signals_, runs_;
};

// Calls `f` with the smallest compiled width that holds a head.
template <class A, class F>
static void dispatch_width(int64_t dim, const F& f) {
  if constexpr (sizeof(A) == 4) {
    if (dim <= 8) return f(std::integral_constant<int, 8>());
  }
  if (dim <= 16) return f(std::integral_constant<int, 16>());
  f(std::integral_constant<int, cuda::kMostHeadDim>());
}

std::tuple<Tensor, Tensor> window_attention_cuda(const Tensor& query, const Tensor& key, const Tensor& value,
                                                 const Tensor& signals, const Tensor& order,
                                                 const Tensor& window_offsets, const Tensor& query_table,
                                                 const Tensor& key_table, const Tensor& value_table,
                                                 std::vector<int64_t> axis_rows) {
  const WindowArguments arguments(query, key, value, signals, order, window_offsets, query_table, key_table,
                                  value_table, axis_rows);
  const Launch launch(query);
  const int64_t voxels = arguments.num_voxels();
  const int64_t heads = arguments.num_heads();
  const int64_t runs = cuda::attention_runs(voxels, arguments.num_windows(), heads);
  Tensor out;
  Tensor log_sum = zeros(signals, {voxels, heads});
  dispatch_features(query, "window_attention", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    dispatch_width<A>(query.size(2), [&](auto width) {
      constexpr int kDim = decltype(width)::value;
      Arranged<T, A> arranged(arguments, nullptr, kDim, runs, launch);
      Tensor result = arranged.results(1);
      Tensor sums = zeros(signals, {heads, voxels});
      Tensor scratch = like(signals, {runs * heads * cuda::forward_scratch(voxels, kDim)});
      cuda::window_attention<kDim>(arranged.task(), runs, scratch.mutable_data_ptr<A>(), result.mutable_data_ptr<A>(),
                                   sums.mutable_data_ptr<A>(), launch);
      arranged.drop_features();
      out = arranged.restored(result)[0];
      stride_over(launch, sums.numel(), cuda::restore_features<A, A>, sums.const_data_ptr<A>(), 1, arranged.order(),
                  FeatureSizes{voxels, heads, 1, 1}, cuda::Several<A>{{log_sum.mutable_data_ptr<A>()}});
    });
  });
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_attention_backward_cuda(
    const Tensor& grad, const Tensor& out, const Tensor& log_sum, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& signals, const Tensor& order, const Tensor& window_offsets,
    const Tensor& query_table, const Tensor& key_table, const Tensor& value_table, std::vector<int64_t> axis_rows) {
  const WindowArguments arguments(query, key, value, signals, order, window_offsets, query_table, key_table,
                                  value_table, axis_rows);
  WindowArguments::check_like(grad, query, "grad");
  WindowArguments::check_like(out, query, "out");
  STD_TORCH_CHECK(log_sum.dim() == 2 && log_sum.size(0) == query.size(0) && log_sum.size(1) == query.size(1) &&
                      log_sum.scalar_type() == signals.scalar_type(),
                  "log_sum must be (N, H), in the type of the sums");
  check_same_device(query, log_sum, "log_sum");
  const Launch launch(query);
  const Tensor pushes = torch::stable::contiguous(grad);
  const Tensor outs = torch::stable::contiguous(out);
  const Tensor log_sums = torch::stable::contiguous(log_sum);
  const int64_t voxels = arguments.num_voxels();
  const int64_t heads = arguments.num_heads();
  const int64_t rows = arguments.table_rows();
  std::vector<Tensor> for_features;
  Tensor for_tables[3];
  dispatch_features(query, "window_attention_backward", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    dispatch_width<A>(query.size(2), [&](auto width) {
      constexpr int kDim = decltype(width)::value;
      const int64_t size = heads * kDim * rows;
      const int64_t runs = cuda::backward_runs(voxels, arguments.num_windows(), heads, 3 * size * sizeof(A));
      Arranged<T, A> arranged(arguments, &pushes, kDim, runs, launch);
      const FeatureSizes& sizes = arranged.sizes();
      Tensor level = like(signals, {heads, voxels});
      stride_over(launch, level.numel(), cuda::find_levels<T, A>, pushes.const_data_ptr<T>(), outs.const_data_ptr<T>(),
                  arranged.order(), sizes, level.mutable_data_ptr<A>());
      Tensor sums = like(signals, {heads, voxels});
      stride_over(launch, sums.numel(), cuda::arrange_columns<A>, log_sums.const_data_ptr<A>(), arranged.order(),
                  voxels, heads, sums.mutable_data_ptr<A>());
      Tensor partial = like(signals, {3, runs * size});
      if (voxels == 0) torch::stable::zero_(partial);
      Tensor scratch = like(signals, {runs * heads * 2 * cuda::attention_room(voxels)});
      Tensor gradients = arranged.results(3);
      A* const sets = partial.mutable_data_ptr<A>();
      A* const first = gradients.mutable_data_ptr<A>();
      const int64_t each = gradients.numel() / 3;
      cuda::window_attention_backward<kDim>(
          arranged.task(), {arranged.features(3), sums.const_data_ptr<A>(), level.const_data_ptr<A>()}, runs,
          scratch.mutable_data_ptr<A>(),
          {first, first + each, first + 2 * each, sets, sets + runs * size, sets + 2 * runs * size}, launch);
      arranged.drop_features();
      for_features = arranged.restored(gradients);
      cuda::Several<A> places = {};
      for (int t = 0; t < 3; ++t) {
        for_tables[t] = like(query_table, {rows, heads, query.size(2)});
        places.of[t] = for_tables[t].mutable_data_ptr<A>();
      }
      stride_over(launch, 3 * size, cuda::sum_runs<A>, sets, runs, rows, sizes, places);
    });
  });
  return {for_features[0], for_features[1], for_features[2], for_tables[0], for_tables[1], for_tables[2]};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("window_attention", TORCH_BOX(&pc3d::window_attention_cuda));
  m.impl("window_attention_backward", TORCH_BOX(&pc3d::window_attention_backward_cuda));
}
