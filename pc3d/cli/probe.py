"""``pc3d probe``: score frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pc3d.cli import _output
from pc3d.cli._inputs import OnError, Points, UpAxis, Variant
from pc3d.cli._judging import Frozen, judge_frozen
from pc3d.cli._parser import check_used, run_verb

if TYPE_CHECKING:
    from pc3d.evaluation import ProbeResult


def probe(
    encoder: str,
    data: str = "household",
    variant: Variant | None = None,
    classifier: Literal["svm", "logistic", "knn", "mlp3"] = "svm",
    svm: Literal["svc_linear", "linearsvc_l2"] = "svc_linear",
    protocol: Literal["fixed", "tuned", "validation", "legacy"] = "fixed",
    C: float | None = None,
    k: int = 5,
    alpha: float = 0.01,
    validation_fraction: float = 0.2,
    standardize: bool | None = None,
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
    """Score frozen features on the test split of a data set and print the whole protocol.

    Args:
        encoder: Folder or Hub id of an exported encoder, or an official .pth file of Point-MAE's family or POS-BERT; or
            'descriptor' or 'pca', the handcrafted baselines.
        data: 'household' (embedded), or a folder: pc3d's shards, a published data set, or files in class sub-folders.
        variant: Variant of ScanObjectNN (obj_bg, the default, obj_only, pb_t50_rs, ...) or of ModelNet's text files
            (modelnet40, the default, or modelnet10).
        classifier: Linear support vector machine, logistic regression, k nearest neighbours, or a three-layer
            perceptron.
        svm: 'svc_linear' is one-vs-one on unscaled features; 'linearsvc_l2' is one-vs-rest with squared hinge loss on
            features of length 1.
        protocol: How C, k or alpha is chosen. 'fixed' takes the given value; 'tuned' cross-validates on the training
            features; 'validation' holds out a part of them; 'legacy' takes the best on the test split, as much of the
            literature does, labels the result as such, and prints that of 'validation' next to it.
        C: Inverse regularisation for 'fixed'; the default is 0.012 (svc_linear) or 1 (linearsvc_l2, logistic).
        k: Neighbours for 'fixed'.
        alpha: L2 penalty of the perceptron for 'fixed'.
        validation_fraction: Share of the training split that 'validation' holds out, near-identical objects together.
        standardize: Scale features by the training split; the default is no (svm) or yes (logistic, mlp3).
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
        untrained: Keep the architecture, but draw fresh weights from the seed, as a baseline for the encoder.
        seed: Seed of folds or validation part, of the perceptron, the bootstrap and untrained weights.
        seeds: Several seeds: one result for each, and their mean, standard deviation and 95 % interval.
        results: Folder for rows of pc3d results, one for each seed.
        method: Name in the table of results; the encoder's by default.
    """
    from pc3d.evaluation import knn_probe, linear_svm, logistic_regression, mlp_probe

    values = {"svm": svm, "C": C, "k": k, "alpha": alpha, "standardize": standardize}
    check_used(probe, values | {"validation_fraction": validation_fraction}, _needs(classifier, protocol))

    def judge(frozen: Frozen, seed: int) -> ProbeResult:
        choice: dict[str, Any] = {
            "protocol": protocol,
            "validation_fraction": validation_fraction,
            "seed": seed,
            "progress": True,
        }
        train, test = frozen.train, frozen.test
        if classifier == "knn":
            return knn_probe(train, test, k=k, **choice)
        choice["standardize"] = classifier != "svm" if standardize is None else standardize
        if classifier == "mlp3":
            return mlp_probe(train, test, alpha=alpha, **choice)
        if classifier == "logistic":
            return logistic_regression(train, test, C=1.0 if C is None else C, **choice)
        return linear_svm(train, test, C=C, form=svm, **choice)

    if (classifier, svm, protocol, C) == ("svm", "svc_linear", "fixed", None) and not standardize:
        _output.say(
            "note: C = 0.012 is the published value for ModelNet40 and 384 dimensions, and may be far too small for "
            "other data: --protocol tuned chooses one by cross-validation on the training features"
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
        options=(classifier, svm, protocol, C, k, alpha, validation_fraction, standardize),
    )


def _needs(classifier: str, protocol: str) -> dict[str, str | None]:
    """What an option is for that is not for all of them; None where it is for these."""
    fixed, held_out = protocol == "fixed", protocol in ("validation", "legacy")
    return {
        "svm": None if classifier == "svm" else "classifier svm",
        "C": None if classifier in ("svm", "logistic") and fixed else "classifiers svm and logistic, protocol fixed",
        "k": None if classifier == "knn" and fixed else "classifier knn, protocol fixed",
        "alpha": None if classifier == "mlp3" and fixed else "classifier mlp3, protocol fixed",
        "standardize": None if classifier != "knn" else "classifiers svm, logistic and mlp3",
        "validation_fraction": None if held_out else "protocols validation and legacy",
    }


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("probe", probe, argv)
