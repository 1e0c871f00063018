"""What this machine is, which bundles fit it, what is misconfigured, and the mend."""
