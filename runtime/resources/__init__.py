"""The machine's processors, memory and files, and how clients share them."""
