"""Where the time of a report goes on this machine: measured, drawn, compared and bounded."""
