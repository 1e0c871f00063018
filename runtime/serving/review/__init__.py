"""Rules that read a finished text and say what a person should check about it; they block nothing and change nothing."""
