"""The console: a page at `/` of the HTTP door for people who want to see a picture go in and a report come out."""
