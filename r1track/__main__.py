"""`python -m r1track`: the same as the command `r1track`."""

from r1track.cli import app

app(prog_name="r1track")
