"""The folder of engines that a build writes: its manifest and its token embedding."""
