"""The folder that a build writes: planned before, whole after."""
