"""Views: layers, joint colours, level of detail."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pc3d.data import Household, Rooms
from pc3d.viz import (
    Layer,
    Scale,
    View,
    ViewCloud,
    arrange,
    class_colors,
    class_layer,
    error_layer,
    feature_colors,
    feature_layers,
    gradient,
    height_layers,
    normal_layer,
    rgb_layer,
    scalar_colors,
    scalar_layers,
    similarity,
    similarity_to,
)


def household(*items: int) -> list[ViewCloud]:
    """Real objects with their height and colour; the points themselves as features."""
    clouds = [Household("test")[item] for item in items]
    heights = height_layers([cloud.xyz.numpy() for cloud in clouds])
    found = []
    for cloud, height in zip(clouds, heights, strict=True):
        assert cloud.rgb is not None
        xyz = cloud.xyz.numpy()
        found.append(ViewCloud(str(cloud.text), xyz, {"height": height, "rgb": rgb_layer(cloud.rgb.numpy())}, xyz))
    return found


def test_layers_refuse_what_does_not_fit() -> None:
    grey = np.full((4, 3), 7, np.uint8)
    with pytest.raises(ValueError, match=r"colors must be \(N, 3\) uint8, got \(4, 3\) float32"):
        Layer("rgb", grey.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"values must be \(4,\)"):
        Layer("height", grey, values=np.zeros(3))
    xyz = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"layers\['label'\] is called 'rgb'"):
        ViewCloud("a", xyz, {"label": Layer("rgb", grey)})
    with pytest.raises(ValueError, match="layer 'rgb' has 3 points, a has 4"):
        ViewCloud("a", xyz, {"rgb": Layer("rgb", grey[:3])})
    with pytest.raises(ValueError, match=r"embedding must be \(4, C\), got \(3, 2\)"):
        ViewCloud("a", xyz, {}, np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"xyz must be \(N, 3\) float32, got \(4, 3\) float64"):
        ViewCloud("a", xyz.astype(np.float64), {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"offset must be \(3,\)"):
        ViewCloud("a", xyz, {}, offset=np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="clouds is empty"):
        View([])
    with pytest.raises(ValueError, match="of one shape"):
        error_layer(np.zeros(3, np.int64), np.zeros(4, np.int64))


def test_what_a_layer_says_of_a_point() -> None:
    label = class_layer("label", np.array([1, -1, 5]), ["wall", "floor"])
    assert [label.text(row) for row in range(3)] == ["label: floor", "label: unlabelled", "label: class 5"]
    assert [name for name, _ in label.legend] == ["unlabelled", "floor", "class 5"]
    np.testing.assert_array_equal(label.colors[0], np.round(255 * class_colors(2)[1]))
    heights = height_layers([np.array([[0, 0, 1.25], [0, 0, 0.0]])], "m")
    assert heights[0].text(0) == "height: 1.25 m"
    assert rgb_layer(np.array([[0, 0.5, 1.0]])).text(0) == "rgb: 0, 128, 255"


def test_classes_keep_their_colour_from_cloud_to_cloud() -> None:
    few, many = class_layer("label", np.array([3, 0])), class_layer("label", np.array([11, 3]))
    np.testing.assert_array_equal(few.colors[0], many.colors[1])


def test_numbers_of_classes_may_be_large() -> None:
    """They cost what the points cost, not a colour for every number below."""
    tracemalloc.start()
    layer = class_layer("label", np.array([2_000_000_000, -100, 3]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [name for name, _ in layer.legend] == ["unlabelled", "class 3", "class 2000000000"]
    assert peak < 1_000_000
    np.testing.assert_array_equal(layer.colors[2], class_layer("label", np.array([3])).colors[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    """One such number would take its scale, and with it the colours, from all others."""
    numbers, colors = np.array([0.0, bad, 1.0], np.float32), np.full((3, 3), 0.5)
    colors[2, 1] = bad
    with pytest.raises(ValueError, match="values of 1 of 3 points are not finite"):
        scalar_layers("intensity", [np.zeros(4, np.float32), numbers])
    for layer in (rgb_layer, normal_layer):
        with pytest.raises(ValueError, match="colors of 1 of 3 points are not finite"):
            layer(colors)
    with pytest.raises(ValueError, match=r"embeddings\[1\] has features that are not finite"):
        feature_layers([np.zeros((2, 3)), colors])
    with pytest.raises(ValueError, match="values of layer 'error' are not all finite"):
        Layer("error", np.zeros((3, 3), np.uint8), values=numbers)


def test_errors_by_hand() -> None:
    layer = error_layer(np.array([1, 2, 0]), np.array([1, 0, -1]))
    assert layer.values is not None
    assert layer.values.tolist() == [0, 1, 2]
    assert [layer.text(row) for row in range(3)] == ["error: right", "error: wrong", "error: unlabelled"]
    assert dict(layer.legend)["wrong"] == tuple(layer.colors[1].tolist())
    assert [name for name, _ in error_layer(np.array([1]), np.array([1])).legend] == ["right"]


def test_scalars_and_their_bar() -> None:
    table = gradient("viridis")
    values = np.array([-5.0, 0.0, 1.0, 2.0, 9.0])
    colors = scalar_colors(values, 0.0, 2.0)
    np.testing.assert_array_equal(colors, table[[0, 0, 128, 255, 255]])
    np.testing.assert_array_equal(scalar_colors(values, 1.0, 1.0), table[[128] * 5])
    first, second = scalar_layers("attention 0", [np.array([0.0, 0.2]), np.array([0.4])])
    assert first.scale == second.scale == Scale(0.0, pytest.approx(0.4), "", "magma")  # type: ignore[arg-type]
    np.testing.assert_array_equal(second.colors[0], gradient("magma")[255])
    with pytest.raises(ValueError, match="matplotlib has none called 'rainbows'"):
        gradient("rainbows")
    np.testing.assert_array_equal(normal_layer(np.array([[0.0, 0, 1], [-1, 0, 0]])).colors[0], [128, 128, 255])


def test_a_view_of_real_objects() -> None:
    view = View(household(0, 7), "objects")
    assert view.modes == ("height", "rgb")
    assert view.num_points == sum(len(cloud) for cloud in view.clouds)
    scale = view.scale("height")
    assert scale is not None
    z = np.concatenate([cloud.xyz[:, 2] for cloud in view.clouds])
    assert z.min() <= scale.minimum < scale.maximum <= z.max()
    assert view.scale("rgb") is None
    assert view.legend("rgb") == ()
    np.testing.assert_array_equal(view.clouds[0].colors("label"), np.full((len(view.clouds[0]), 3), 190))


def test_legend_is_that_of_all_clouds() -> None:
    names = ["wall", "floor", "chair"]
    xyz = np.zeros((2, 3), np.float32)
    labels = [np.array([2, 0]), np.array([1, -1])]
    view = View([ViewCloud("", xyz, {"label": class_layer("label", label, names)}) for label in labels])
    assert [name for name, _ in view.legend("label")] == ["wall", "floor", "chair", "unlabelled"]


def test_level_of_detail_keeps_points_and_what_belongs_to_them_together() -> None:
    cloud = Rooms("test")[0]
    assert cloud.segment is not None
    xyz, segment = cloud.xyz.numpy(), cloud.segment.numpy()
    layers = {"label": class_layer("label", segment), "height": height_layers([xyz])[0]}
    view = View([ViewCloud("room", xyz, layers, xyz.astype(np.float16)), *household(3)])
    thin, thinner = view.thin(5000), view.thin(2000)
    assert 4990 <= thin.num_points <= 5000
    share = len(thin.clouds[0]) / len(view.clouds[0])
    assert share == pytest.approx(len(thin.clouds[1]) / len(view.clouds[1]), rel=0.01)
    room = thin.clouds[0]
    assert room.rows is not None
    np.testing.assert_array_equal(view.clouds[0].xyz[room.rows], room.xyz)
    again = room.select(np.array([3, 1]))
    np.testing.assert_array_equal(again.rows, room.rows[[3, 1]])
    assert room.layers["height"].values is not None
    assert room.embedding is not None
    np.testing.assert_array_equal(room.layers["height"].values, room.xyz[:, 2])
    np.testing.assert_array_equal(room.embedding, room.xyz.astype(np.float16))
    where = {tuple(point): label for point, label in zip(xyz.tolist(), segment.tolist(), strict=True)}
    assert room.layers["label"].values is not None
    assert room.layers["label"].values.tolist() == [where[tuple(point)] for point in room.xyz.tolist()]
    assert {tuple(p) for p in thinner.clouds[0].xyz.tolist()} < {tuple(p) for p in room.xyz.tolist()}
    assert view.thin(view.num_points) is view
    assert thin.thin(2) is not thin
    np.testing.assert_array_equal(view.thin(5000).clouds[0].xyz, room.xyz)
    with pytest.raises(ValueError, match="max_points must be at least 2, one for each cloud, got 1"):
        view.thin(1)


def test_similarity_to_a_point() -> None:
    features = np.array([[1, 0], [2, 0], [0, 3], [-1, 0], [1, 1], [0, 0]], np.float16)
    np.testing.assert_allclose(similarity(features, 1), [1, 1, 0, -1, 0.5**0.5, 0], atol=1e-6)
    assert similarity(features, 1).dtype == np.float32
    view = View([*household(0, 1), ViewCloud("plain", np.zeros((1, 3), np.float32), {})])
    coloured = view.similar_to(1, 5)
    assert coloured.modes == ("height", "rgb", "similarity")
    assert view.modes == ("height", "rgb")  # the view itself is as it was
    chosen, other = coloured.clouds[1].layers["similarity"], coloured.clouds[0].layers["similarity"]
    assert chosen.values is not None
    assert chosen.values[5] == pytest.approx(1.0)
    assert chosen.scale == other.scale
    assert "similarity" not in coloured.clouds[2].layers
    expected = view.clouds[0].xyz @ view.clouds[1].xyz[5].astype(np.float64)
    expected /= np.linalg.norm(view.clouds[0].xyz, axis=1) * np.linalg.norm(view.clouds[1].xyz[5])
    np.testing.assert_allclose(other.values, expected, atol=1e-5)
    with pytest.raises(ValueError, match="plain has no features of points"):
        view.similar_to(2, 0)
    with pytest.raises(ValueError, match="vector must be"):
        similarity_to(features, features[:, 0])


def test_principal_components_are_joint_over_clouds() -> None:
    first, second = (cloud.xyz for cloud in household(0, 7))
    apart = feature_colors([first, second])
    together = feature_colors([np.concatenate([first, second])])[0]
    np.testing.assert_array_equal(np.concatenate(apart), together)
    # Against scikit-learn's components, up to the sign of each.
    from sklearn.decomposition import PCA

    both = np.concatenate([first, second]).astype(np.float64)
    scores = PCA(3, svd_solver="full").fit_transform(both)
    for channel in range(3):
        low, high = np.percentile(scores[:, channel], [1, 99])
        level = np.clip((scores[:, channel] - low) / (high - low), 0, 1)
        found = together[:, channel] / 255
        assert min(np.abs(found - level).max(), np.abs(found - (1 - level)).max()) < 0.004
    # An equal feature has an equal colour, whatever cloud it is in.
    mixed = feature_colors([first, np.concatenate([second, first[:5]])])
    np.testing.assert_array_equal(mixed[1][-5:], mixed[0][:5])


def test_components_that_say_nothing_are_grey() -> None:
    line = np.linspace(0, 1, 50, dtype=np.float32)[:, None] * np.array([[1, 2, 2, 0]], np.float32)
    colors = feature_colors([line])[0]
    assert (colors[:, 1:] == 128).all()
    assert colors[0, 0] == 0
    assert colors[-1, 0] == 255
    assert feature_colors([np.ones((3, 1), np.float32)])[0].tolist() == [[128] * 3] * 3
    layers = feature_layers([None, line])
    assert layers[0] is None
    assert layers[1] is not None
    with pytest.raises(ValueError, match="all with the same channels; got \\[2, 4\\]"):
        feature_colors([line, line[:, :2]])
    with pytest.raises(ValueError, match="must hold points"):
        feature_colors([])


def test_clouds_stand_beside_each_other_as_on_shelves() -> None:
    clouds = household(0, 3, 7)
    placed = arrange(clouds, columns=2, azimuth=-90.0)
    boxes = [(cloud.placed.min(0), cloud.placed.max(0)) for cloud in placed]
    for a in range(3):
        for b in range(a):
            assert ((boxes[a][0] > boxes[b][1]) | (boxes[b][0] > boxes[a][1])).any()
    np.testing.assert_allclose([low[2] for low, _ in boxes[:2]], 0, atol=1e-6)
    assert boxes[0][1][0] < boxes[1][0][0]  # read from left to right
    assert boxes[2][1][2] < 0  # and downwards
    np.testing.assert_array_equal(placed[0].xyz, clouds[0].xyz)
    # Seen from the x axis, right is along y.
    turned = arrange(clouds, azimuth=0.0)
    np.testing.assert_allclose([cloud.placed[:, 0].min() + cloud.placed[:, 0].max() for cloud in turned], 0, atol=1e-5)
    assert turned[0].placed[:, 1].max() < turned[1].placed[:, 1].min()
    assert arrange([]) == []


def test_a_stray_moves_no_clouds_apart() -> None:
    """The places are those of the clouds without it, but for a quarter of the extent to each side, and a gap."""
    clouds = household(0, 3, 7)
    far = np.array([[500, -800, 900]], np.float32)
    strays = [ViewCloud(cloud.name, np.concatenate([cloud.xyz, far]), {}) for cloud in clouds]
    steps = [np.diff([cloud.offset[0] for cloud in arrange(some)]) for some in (clouds, strays)]
    assert (steps[1] > 0.8 * steps[0]).all()
    assert (steps[1] < 1.3 * steps[0]).all()
