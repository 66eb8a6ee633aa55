"""Model programs as JAX code, shapes only: what the corpus was compiled from.

Every public function of `vision`, `language`, `recurrent`, `generative`, `science`,
`recommendation` and `systems` without required arguments is a target of `malloc-game extract`: it
returns the function to compile, its arguments' shapes and, where a real user would donate them,
the arguments whose memory the result may take over. Nothing but `extract` imports this package.
"""
