"""The transforms between pictures and latents, and the exact-integer scale network."""
