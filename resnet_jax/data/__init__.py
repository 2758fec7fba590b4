"""Sources of images, the order in which a run reads them, and what is done to them on the device."""
