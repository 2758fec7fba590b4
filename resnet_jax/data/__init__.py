"""Image sources, the order in which a run reads them, and augmentation on the device."""
