"""Bridges to other libraries: one module a library, which alone knows its odd corners."""
