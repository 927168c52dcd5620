"""The former name of `llava.model.formats`."""

from llava.model.formats import Layout as Layout
from llava.model.formats import read_layout as read_layout
