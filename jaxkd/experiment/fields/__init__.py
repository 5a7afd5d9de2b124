"""Parts of the experiments of single fields: configurations, floors, teachers, tables."""
