"""Quantised networks: number formats, ranges, shapes, reconstruction and allocation, put together by recipes."""
