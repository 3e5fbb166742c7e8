"""rollforce: endless video, one small engine. Public names are imported lazily, so that `import rollforce` costs nothing."""
