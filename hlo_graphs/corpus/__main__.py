"""`python -m hlo_graphs.corpus` prints the table of the corpus that `docs/corpus.md` shows."""

from hlo_graphs.corpus.table import headroom_rows, markdown_table

print(markdown_table(headroom_rows()))
