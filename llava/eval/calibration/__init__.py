"""What `llava.eval.calibrate` is made of: samples, influence of all layers, the search over candidates, the report."""
