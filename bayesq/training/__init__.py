"""Training of the codec: pictures, the rate–distortion loss, a data-driven start, and the resumable loop."""
