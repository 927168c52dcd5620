"""InternVL2.5 and InternVL3 in the layout that they were published in, without remote code."""
