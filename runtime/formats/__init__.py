"""What kind a file is and where its frames are; nothing is decoded."""
