"""What ``pc3d report`` draws of a run of masked scene reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pc3d.cli._report_run import NotApplicableError, Run, spread

if TYPE_CHECKING:
    from pc3d.viz.report import Image

_WIDTH, _HEIGHT, _AZIMUTH, _ELEVATION = 860, 280, -55.0, 50.0
_MOST, _ROOF = 3, 0.15


def masked_scenes(run: Run, count: int, seed: int) -> Iterator[Image]:
    """Scenes of the run's data, at most three, under a mask and with what is predicted there, as pc3d view draws them.

    The upper part is left out, to see into rooms.

    Raises:
        NotApplicableError: the configuration names data that cannot be opened here, or a scene cannot be shown.
        FileNotFoundError: the data are not there.
    """
    import io

    from PIL import Image as pillow

    from pc3d.cli._view_inputs import items_of
    from pc3d.cli._view_layers import Request, build, choose_modes, cut_top
    from pc3d.cli._view_runs import data_of
    from pc3d.viz.camera import fit
    from pc3d.viz.pictures import panels
    from pc3d.viz.report import Image

    path = run.folder.path
    ratio = 100 * float(run.config["model"].get("init_args", {}).get("mask_ratio", 0))
    hidden = f"{ratio:.0f} % of the cubes hidden, " if ratio else ""
    try:
        dataset, split, _ = data_of(path)
        for shown in items_of(dataset, str(path), spread(len(dataset), min(count, _MOST)), split):
            view = cut_top(build([shown], path, Request(seed=seed), _AZIMUTH), _ROOF)
            camera = fit(view, azimuth=_AZIMUTH, elevation=_ELEVATION, aspect=_WIDTH / _HEIGHT, margin=0.12)
            picture = panels(view, choose_modes(view, None), camera, _WIDTH, _HEIGHT, columns=1)
            file = io.BytesIO()
            pillow.fromarray(picture).save(file, format="jpeg", quality=85)
            yield Image(file.getvalue(), "image/jpeg", f"{shown.name}, {split} split; {hidden}masks by seed {seed}")
    except ValueError as error:  # a class of the user's own that is not here, or a bad file
        raise NotApplicableError(f"the run's data cannot be shown ({' '.join(str(error).split()):.300})") from error
