"""One file per family of metrics; each metric is one function of arrays that knows no file and no model."""
