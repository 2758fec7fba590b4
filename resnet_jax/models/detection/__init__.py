"""Object detectors on a ResNet and its feature pyramid: networks, and pure functions of what they return."""
