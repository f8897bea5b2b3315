from checkpoint.small_hub import empty_hub

__all__ = ["empty_hub"]
