"""The mean field as an unknown: moments, fixed points, Newton's method on moments."""
