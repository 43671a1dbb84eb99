"""``pc3d probe``: score frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pc3d.cli._inputs import Variant, features_of, print_result
from pc3d.cli._parser import run_verb


def probe(
    encoder: str,
    data: str = "household",
    variant: Variant | None = None,
    classifier: Literal["svm", "logistic", "knn"] = "svm",
    protocol: Literal["fixed", "tuned", "legacy"] = "fixed",
    C: float | None = None,
    k: int = 5,
    standardize: bool | None = None,
    pooling: str = "max+mean",
    num_points: int | None = 1024,
    batch_size: int = 32,
    untrained: bool = False,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Score frozen features on the test split of a data set and print the whole protocol.

    Args:
        encoder: Folder or Hub id of an exported encoder; or 'descriptor' or 'pca', the handcrafted baselines.
        data: 'household' (embedded), or a folder: pc3d's shards, a published data set, or files in class sub-folders.
        variant: Variant of ScanObjectNN (obj_bg, the default, obj_only, pb_t50_rs, ...) or of ModelNet's text files
            (modelnet40, the default, or modelnet10).
        classifier: Linear support vector machine, logistic regression, or k nearest neighbours.
        protocol: How C or k is chosen. 'fixed' takes the given value; 'tuned' cross-validates on the training features;
            'legacy' takes the best on the test split, as much of the literature does, and labels the result so.
        C: Inverse regularisation for 'fixed'; the default is 0.012 (svm) or 1 (logistic).
        k: Neighbours for 'fixed'.
        standardize: Scale features by the training split; the default is no (svm) or yes (logistic).
        pooling: How the encoder pools its patch tokens: max, mean, max+mean, concat(max,mean), concat(cls,max,mean).
        num_points: Points per cloud, the first so many; null takes all.
        batch_size: Clouds per forward pass.
        untrained: Keep the architecture, draw fresh weights from the seed: the baseline of the encoder itself.
        seed: Seed of the folds, the bootstrap and of untrained weights.
        json: Print the result as JSON.
    """
    from pc3d.evaluation import knn_probe, linear_svm, logistic_regression

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
    if classifier == "knn":
        result = knn_probe(train, test, k=k, protocol=protocol, seed=seed)
    elif classifier == "logistic":
        scaled = True if standardize is None else standardize
        strength = 1.0 if C is None else C
        result = logistic_regression(train, test, C=strength, protocol=protocol, standardize=scaled, seed=seed)
    else:
        scaled, strength = bool(standardize), 0.012 if C is None else C
        result = linear_svm(train, test, C=strength, protocol=protocol, standardize=scaled, seed=seed)
    print_result(result, json)


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("probe", probe, argv)
