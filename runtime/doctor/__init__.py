"""What this machine is, which bundles fit it, what is misconfigured, and how to fix it."""
