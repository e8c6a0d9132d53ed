"""One plain PyTorch loop for all deep models. Importing this package loads neither torch nor pydantic."""
