"""The command ``pc3d``: a file per verb, each a thin layer over the library."""
