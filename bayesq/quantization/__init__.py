"""Quantised networks: number formats, ranges, shapes, reconstruction and allocation, put together by recipes.

A quantised codec is a model like any other. Its scale path is the integers that it always was. What a file needs of a
model is this path, which decodes the symbols, and the mean network, which places them; so a codec whose g_a, g_s and
h_a alone were quantised keeps the model id of the one that it was made of. Either reads the files of the other.
"""

from bayesq.quantization.pipeline import Calibration, Quantized, quantize
from bayesq.quantization.recipes import RECIPES, Recipe, Tuning, recipe_called

__all__ = ["RECIPES", "Calibration", "Quantized", "Recipe", "Tuning", "quantize", "recipe_called"]
