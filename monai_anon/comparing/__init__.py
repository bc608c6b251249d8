"""Every compared system on the same images, with the same budget and the same attacks: `monai-anon compare`."""
