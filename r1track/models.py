"""Models: loading a base, its processor and an adapter, and asking it many things at once."""

from transformers import ProcessorMixin, Qwen2_5_VLProcessor


class ImageProcessorOnly(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video half, which cannot be built where torchvision is missing."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):  # type: ignore[no-untyped-def]
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
