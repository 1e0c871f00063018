"""`/v1/reports` and `/v1/pictures`: files in; reports, documents and what the model sees out."""
