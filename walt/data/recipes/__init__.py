"""Recipes turn a source of footage into a record folder (see `walt.data.records`), one module per source."""
