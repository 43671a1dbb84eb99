"""Self-supervised pre-training: a file per method, each a ``LightningModule`` that owns its networks and its loss."""

from pc3d._extras import require

require("pytorch_lightning", extra="train", purpose="pre-training")

from pc3d.methods.barlow_twins import BarlowTwins  # noqa: E402
from pc3d.methods.checkpoint import AtomicCheckpointIO, RunCheckpoint  # noqa: E402
from pc3d.methods.collapse import CollapseWatch  # noqa: E402
from pc3d.methods.dcglr import DCGLR, Distillation, InstanceContrast  # noqa: E402
from pc3d.methods.distillation import DenseDistillation  # noqa: E402
from pc3d.methods.masked_autoencoder import MaskedAutoencoder, PointCMAE, PointMAE, Reconstruction  # noqa: E402
from pc3d.methods.masked_scene import MaskedScene  # noqa: E402
from pc3d.methods.method import Method, Optimisation  # noqa: E402
from pc3d.methods.metrics import CsvMetrics  # noqa: E402
from pc3d.methods.mining import Mining  # noqa: E402
from pc3d.methods.moco_v3 import MoCoV3  # noqa: E402
from pc3d.methods.multi_crop import MultiCrop  # noqa: E402
from pc3d.methods.openshape import OpenShape, StepDecay  # noqa: E402
from pc3d.methods.pcp_mae import PCPMAE  # noqa: E402
from pc3d.methods.run import is_first_process, pretrain  # noqa: E402
from pc3d.methods.run_folder import RunFolder  # noqa: E402
from pc3d.methods.scene_vicreg import SceneVICReg  # noqa: E402
from pc3d.methods.simclr import SimCLR  # noqa: E402
from pc3d.methods.step_optimisation import StepOptimisation  # noqa: E402
from pc3d.methods.two_views import TwoViews  # noqa: E402
from pc3d.methods.vicreg import VICReg  # noqa: E402

__all__ = [
    "DCGLR",
    "PCPMAE",
    "AtomicCheckpointIO",
    "BarlowTwins",
    "CollapseWatch",
    "CsvMetrics",
    "DenseDistillation",
    "Distillation",
    "InstanceContrast",
    "MaskedAutoencoder",
    "MaskedScene",
    "Method",
    "Mining",
    "MoCoV3",
    "MultiCrop",
    "OpenShape",
    "Optimisation",
    "PointCMAE",
    "PointMAE",
    "Reconstruction",
    "RunCheckpoint",
    "RunFolder",
    "SceneVICReg",
    "SimCLR",
    "StepDecay",
    "StepOptimisation",
    "TwoViews",
    "VICReg",
    "is_first_process",
    "pretrain",
]
