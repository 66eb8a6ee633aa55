"""Reports: what an evaluation found, as one offline HTML page and as Markdown."""
