"""Distillation: a small student learns to see as a large teacher does, on pictures without labels."""

from edge_ravlm.export.distil.pictures import Batch, ComposedScenes, FolderPictures, Pictures
from edge_ravlm.export.distil.settings import DistilSettings
from edge_ravlm.export.distil.targets import Texts
from edge_ravlm.export.distil.things import CloserViews, Share, ThingScenes, parted
from edge_ravlm.export.distil.training import distil
from edge_ravlm.export.distil.views import whitened

__all__ = [
    "Batch",
    "CloserViews",
    "ComposedScenes",
    "DistilSettings",
    "FolderPictures",
    "Pictures",
    "Share",
    "Texts",
    "ThingScenes",
    "distil",
    "parted",
    "whitened",
]
