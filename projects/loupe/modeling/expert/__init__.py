"""IFDL-VLM's first stage (arXiv 2603.12930): a tower's evidence prompts a mask decoder."""
