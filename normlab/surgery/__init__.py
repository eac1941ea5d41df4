"""Swap the norms of a model: plan first, change it only if every layer can be changed."""

from normlab.surgery.convert import Replacement, SurgeryError, convert, plan

__all__ = ["Replacement", "SurgeryError", "convert", "plan"]
