"""Protocols on frozen features, the baselines to beat, and the scores of a segmentation."""

from pc3d.evaluation.baselines import PointPCA, ShapeDescriptor, settle_batch_norm
from pc3d.evaluation.classification import ClassificationResult, Votes, content_hash, predict_logits, vote_logits
from pc3d.evaluation.cross_modal import CrossModalRecall, cross_modal_recall
from pc3d.evaluation.features import Encoder, Features, extract_features, save_features
from pc3d.evaluation.fewshot import Episode, FewShotResult, draw_episodes, few_shot
from pc3d.evaluation.fewshot_training import FewShotTrainingResult
from pc3d.evaluation.kept import Kept
from pc3d.evaluation.knn import K_GRID, knn_probe
from pc3d.evaluation.logistic import logistic_regression
from pc3d.evaluation.metrics import Scores, scores, wilson_interval
from pc3d.evaluation.mlp import ALPHA_GRID, mlp_probe
from pc3d.evaluation.part_segmentation import PartResult, PartScores, PartTally, predict_parts, shape_iou
from pc3d.evaluation.probe import C_GRID
from pc3d.evaluation.result import FrozenResult, ProbeResult
from pc3d.evaluation.retrieval import RetrievalResult, average_precision, retrieval
from pc3d.evaluation.robustness import RelativeErrors, RobustnessResult, relative_errors, robustness
from pc3d.evaluation.rows import Row, read_row, read_rows, write_rows
from pc3d.evaluation.segmentation import ConfusionMatrix, SegmentationScores, segmentation_scores, sum_folds
from pc3d.evaluation.shape_index import Hit, ShapeIndex
from pc3d.evaluation.svm import linear_svm
from pc3d.evaluation.zero_shot import ZeroShotResult, rank_classes, zero_shot

__all__ = [
    "ALPHA_GRID",
    "C_GRID",
    "K_GRID",
    "ClassificationResult",
    "ConfusionMatrix",
    "CrossModalRecall",
    "Encoder",
    "Episode",
    "Features",
    "FewShotResult",
    "FewShotTrainingResult",
    "FrozenResult",
    "Hit",
    "Kept",
    "PartResult",
    "PartScores",
    "PartTally",
    "PointPCA",
    "ProbeResult",
    "RelativeErrors",
    "RetrievalResult",
    "RobustnessResult",
    "Row",
    "Scores",
    "SegmentationScores",
    "ShapeDescriptor",
    "ShapeIndex",
    "Votes",
    "ZeroShotResult",
    "average_precision",
    "content_hash",
    "cross_modal_recall",
    "draw_episodes",
    "extract_features",
    "few_shot",
    "knn_probe",
    "linear_svm",
    "logistic_regression",
    "mlp_probe",
    "predict_logits",
    "predict_parts",
    "rank_classes",
    "read_row",
    "read_rows",
    "relative_errors",
    "retrieval",
    "robustness",
    "save_features",
    "scores",
    "segmentation_scores",
    "settle_batch_norm",
    "shape_iou",
    "sum_folds",
    "vote_logits",
    "wilson_interval",
    "write_rows",
    "zero_shot",
]
