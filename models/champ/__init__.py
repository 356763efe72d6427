"""CHAMP (arXiv:2403.14781): denoising UNet, reference attention, weight files."""
