"""From a data set to windows that a model reads: SQuAD's form, its rows checked, and questions made by cloze."""
