"""Photos and results that lie in an object store or on a web server: listed, fetched, put; through fsspec.

Only `urls` may be imported for local files: it needs the standard library alone. No other room knows fsspec.
"""
