"""From a data set to batches on the devices."""
