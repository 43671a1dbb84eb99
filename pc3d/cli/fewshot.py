"""``pc3d fewshot``: score frozen features with few labels."""

from __future__ import annotations

from collections.abc import Sequence

from pc3d.cli._inputs import Variant, features_of, print_result
from pc3d.cli._parser import run_verb


def fewshot(
    encoder: str,
    data: str = "household",
    variant: Variant | None = None,
    way: int = 5,
    shot: int = 10,
    num_queries: int | None = None,
    num_draws: int = 10,
    C: float = 1.0,
    standardize: bool = True,
    pooling: str = "max+mean",
    num_points: int | None = 1024,
    batch_size: int = 32,
    untrained: bool = False,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Few-shot classification with a linear SVM on frozen features: mean and sample standard deviation over the draws.

    Args:
        encoder: Folder or Hub id of an exported encoder; or 'descriptor' or 'pca', the handcrafted baselines.
        data: 'household' (embedded), or a folder: pc3d's shards, a published data set, or files in class sub-folders.
        variant: Variant of ScanObjectNN (obj_bg, the default, obj_only, pb_t50_rs, ...) or of ModelNet's text files
            (modelnet40, the default, or modelnet10).
        way: Classes per draw.
        shot: Training items per class.
        num_queries: Test items per class. By default 20, as in the literature, or where the test split is too small for
            that, as many as it allows, which the output states.
        num_draws: Independent draws.
        C: Inverse regularisation of the SVM, the same for every draw.
        standardize: Scale features by the training items of the draw.
        pooling: How the encoder pools its patch tokens: max, mean, max+mean, concat(max,mean), concat(cls,max,mean).
        num_points: Points per cloud, the first so many; null takes all.
        batch_size: Clouds per forward pass.
        untrained: Keep the architecture, draw fresh weights from the seed.
        seed: Seed of the draws and of untrained weights.
        json: Print the result as JSON.
    """
    from pc3d.evaluation import few_shot

    train, test = features_of(
        encoder,
        data,
        num_points=num_points,
        pooling=pooling,
        batch_size=batch_size,
        untrained=untrained,
        seed=seed,
        variant=variant,
    )
    result = few_shot(
        train,
        test,
        way=way,
        shot=shot,
        num_queries=num_queries,
        num_draws=num_draws,
        C=C,
        standardize=standardize,
        seed=seed,
    )
    print_result(result, json)


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("fewshot", fewshot, argv)
