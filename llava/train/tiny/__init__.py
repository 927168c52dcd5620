"""How the small model is trained: modules, data, optimizer, stages, evaluation and export."""
