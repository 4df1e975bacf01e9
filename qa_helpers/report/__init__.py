"""What is shown of records: tables, figures, documents, learning curves, ideas held against each other."""
