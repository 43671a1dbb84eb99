"""``pc3d fewshot``: score frozen features with few labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pc3d.cli._inputs import OnError, Points, UpAxis, Variant
from pc3d.cli._judging import Frozen, judge_frozen
from pc3d.cli._parser import check_used, run_verb

if TYPE_CHECKING:
    from pc3d.evaluation import FewShotResult
    from pc3d.evaluation.fewshot import Episode


def fewshot(
    encoder: str,
    data: str = "household",
    variant: Variant | None = None,
    way: int = 5,
    shot: int = 10,
    num_queries: int | None = None,
    num_episodes: int = 10,
    C: float = 1.0,
    standardize: bool = True,
    pooling: str | None = None,
    num_points: Points = "default",
    up: UpAxis | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
    untrained: bool = False,
    seed: int = 0,
    seeds: list[int] | None = None,
    results: str | None = None,
    method: str | None = None,
) -> None:
    """Few-shot classification with a linear SVM on frozen features: mean and sample standard deviation over episodes.

    Args:
        encoder: Folder or Hub id of an exported encoder, or an official .pth file of Point-MAE's family or POS-BERT; or
            'descriptor' or 'pca', the handcrafted baselines.
        data: 'household' (embedded), or a folder: pc3d's shards, a published data set, or files in class sub-folders.
            Of ModelNetFewshot, the episodes of --way and --shot are those of its files, and none are drawn; seeds
            are then for untrained weights and the descriptor alone.
        variant: Variant of ScanObjectNN (obj_bg, the default, obj_only, pb_t50_rs, ...) or of ModelNet's text files
            (modelnet40, the default, or modelnet10).
        way: Classes per episode.
        shot: Training items per class.
        num_queries: Test items per class. By default 20, as in the literature. If the test split is too small for that,
            as many as it allows; the output states the number.
        num_episodes: Episodes, each drawn independently.
        C: Inverse regularisation of the SVM, the same for every episode.
        standardize: Scale features by the training items of the episode.
        pooling: Name of the encoder's pooling; by default the encoder's own. For PointViT: max, mean, max+mean (its
            default), concat(max,mean), concat(cls,max,mean), cls.
        num_points: Points per cloud: the first 1024 by default. For an encoder aligned with texts and pictures, by
            default a random subset of at most as many as it was made for. null takes all.
        up: For an encoder aligned with texts and pictures, the axis that points up in the data; by default that of the
            data set, y in GLB files, else z.
        batch_size: Clouds per forward pass.
        device: Where the encoder computes, such as cpu or cuda.
        on_error: What to do with a file that cannot be used: 'refuse' stops; 'report' leaves the file out and lists it
            with the reason (with --json, as left_out).
        drop_invalid: Leave out points of files that are not finite numbers.
        untrained: Keep the architecture, but draw fresh weights from the seed.
        seed: Seed of the episodes and of untrained weights.
        seeds: Several seeds: one result for each, and their mean, standard deviation and 95 % interval.
        results: Folder for rows of pc3d results, one for each seed.
        method: Name in the table of results; the encoder's by default.
    """
    from pc3d.evaluation import few_shot

    data, episodes = _published(data, way, shot, num_queries, num_episodes, on_error)
    if episodes is not None and not untrained and encoder != "descriptor":
        for_what = "drawn episodes, untrained weights and the descriptor; the episodes of files are always the same"
        check_used(fewshot, {"seed": seed, "seeds": seeds}, {"seed": for_what, "seeds": for_what})
        seed, seeds = 0, None  # of a configuration

    def judge(frozen: Frozen, seed: int) -> FewShotResult:
        return few_shot(
            frozen.train,
            frozen.test,
            way=way,
            shot=shot,
            num_queries=num_queries,
            num_episodes=num_episodes,
            C=C,
            standardize=standardize,
            seed=seed,
            episodes=episodes,
        )

    judge_frozen(
        judge,
        encoder,
        data,
        variant=variant,
        pooling=pooling,
        num_points=num_points,
        up=up,
        batch_size=batch_size,
        device=device,
        on_error=on_error,
        drop_invalid=drop_invalid,
        untrained=untrained,
        seed=seed,
        seeds=seeds,
        results=results,
        method=method,
        options=(way, shot, num_queries, num_episodes, C, standardize),
        episodes=episodes is not None,
    )


def _published(
    data: str, way: int, shot: int, num_queries: int | None, num_episodes: int, on_error: OnError
) -> tuple[str, list[Episode] | None]:
    """The folder to read and the episodes in it, where ``data`` is a folder of published ones; else None of them."""
    from pc3d.data.fewshot import FewShotFiles, few_shot_folders
    from pc3d.evaluation.fewshot import Episode

    found = [] if data == "household" else few_shot_folders(data)
    if not found:
        return data, None
    names = (f"{way}way_{shot}shot", f"{way}way{shot}shot")
    folder = next((folder for folder in found if folder.absolute().name in names), None)
    if folder is None:
        known = ", ".join(folder.absolute().name for folder in found)
        raise ValueError(f"way, shot: {data} has no {names[0]}, it has {known}: give the --way and --shot of one")
    if on_error != "refuse":
        raise ValueError(
            f"on_error: an episode of {folder} without some of its objects is another one: leave the option out"
        )
    train, test = FewShotFiles(folder), FewShotFiles(folder, "test")
    folds = train.folds.unique().tolist()
    if len(folds) < 2:
        raise ValueError(f"data: {folder} has one episode: two or more are needed for a standard deviation")
    if not 2 <= num_episodes <= len(folds):
        raise ValueError(f"num_episodes: {folder} has {len(folds)}, got {num_episodes}: ask for 2 to {len(folds)}")
    queries = int((test.folds == folds[0]).sum()) // way
    if num_queries not in (None, queries):
        raise ValueError(f"num_queries: the episodes of {folder} have {queries}, got {num_queries}: leave it out")
    rows = [[(side.folds == fold).nonzero()[:, 0].numpy() for side in (train, test)] for fold in folds[:num_episodes]]
    return str(folder), [Episode(train.labels[support].unique().numpy(), support, query) for support, query in rows]


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("fewshot", fewshot, argv)
