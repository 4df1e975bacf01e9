"""What is shown of records: figures, tables, learning curves, ideas held against each other."""
