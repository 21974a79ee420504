"""Synthetic volumes with exact labels: organs and vessels, or sheets of known thickness."""

from vnet.data.phantoms.kinds import PhantomKind, SheetKind
from vnet.data.phantoms.writing import write_phantoms

__all__ = ["PhantomKind", "SheetKind", "write_phantoms"]
