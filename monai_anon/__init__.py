"""monai-anon: share a medical image with the person taken out and the finding kept.

Glossary: *identity*, *medical* and *residual* are the three latents of an image; a *finding* is the medical label; an
*anonymizer* maps an image to an image of nobody; a *judge* is a network used only to measure; an *identity source*
makes a new identity latent.
"""

__version__ = "0.1.0"
