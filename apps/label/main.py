"""MONAI Label finds its app in this file; what it does is in the package."""

from monai_anon.integrations.label_server import LabelApp

__all__ = ["LabelApp"]
