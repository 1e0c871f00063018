"""Draw: one HTML page of profiles, with its charts."""
