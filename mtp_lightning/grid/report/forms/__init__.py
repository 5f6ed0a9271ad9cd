"""A report as people and programs have it: tables, a page, pictures, JSON, in MLflow."""
