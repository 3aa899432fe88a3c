"""The engine: from requests over the denoising loop to results."""
