"""Rows like those of docs/habits.md that few readers ask about: what is typed, and the check of what comes out."""

MORE_HABITS = [
    # ------ loading
    ("transformers.AutoModel.from_pretrained(checkpoint)", 'type(_).__name__ == "DetrPanopticModel"'),
    ("transformers.AutoConfig.from_pretrained(checkpoint)", "type(_) is DetrPanopticConfig"),
    ("transformers.AutoImageProcessor.from_pretrained(checkpoint)", "type(_) is DetrPanopticImageProcessor"),
    ("load(checkpoint, config=model.config)", "_.config is not model.config and _.config.num_queries == 5"),
    (
        'load(checkpoint, id2label={0: "sky", 2: "van"})',
        "raises ValueError: `id2label` must map the numbers 0, 1, 2",
    ),
    ('DetrPanopticConfig(activation_function="gelu")', '"have no effect: activation_function" in log'),
    (  # timm runs it at one size only
        'load(checkpoint, backbone="hiera_tiny_224", ignore_mismatched_sizes=True)',
        "raises ValueError: hiera_tiny_224",
    ),
    # ------ images and results
    (
        'list(pipeline("image-segmentation", checkpoint)(transformers.pipelines.pt_utils.KeyDataset(data, "image")))',
        "len(_) == len(data)",
    ),
    ('processor(torch.rand(3, 64, 96), return_tensors="pt")', '"do_rescale=False" in log'),
    ("processor(image, do_center_crop=True)", "raises ValueError: `do_center_crop` must be False"),
    ("processor(image, do_resise=False)", "raises ValueError: did you mean `do_resize`"),
    (
        "DetrPanopticImageProcessor.for_model(DetrPanopticConfig(num_channels=1))",
        "raises ValueError: `num_channels` must be 3",
    ),
    ("model(**inputs, return_dict=False)", "type(_) is tuple"),
    ("model.half()(**inputs)", "_.logits.dtype == torch.float16"),
    (
        "model(**inputs, output_hidden_states=True).decoder_hidden_states",
        "len(_) == model.config.decoder_layers + 1",
    ),
    (
        "processor.post_process_semantic_segmentation(model(**inputs))",
        'raises ValueError: call the model with mask_queries="all"',
    ),
    # ------ training
    (
        'model(**inputs, labels=[{"class_labels": torch.tensor([99]), "boxes": torch.rand(1, 4)}])',
        "raises ValueError: must lie between 0 and 13 in a model with 14 labels, got [99]",
    ),
    (
        'model(**inputs, labels=[{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[9, 9, 40, 30]])}])',
        "raises ValueError: `boxes` must be (center x",
    ),
    (
        'model(**inputs, labels=[{**labels[0], "class_labels": labels[0]["class_labels"].int()}]).loss',
        "_ == model(**inputs, labels=labels).loss",
    ),
    (
        'model(**inputs, labels=[{**labels[0], "masks": labels[0]["masks"][:, ::2, ::2]}])',
        "raises ValueError: `masks` of an image must have the shape",
    ),
    (
        "model.train()(**inputs, labels=labels).loss.backward(create_graph=True)",
        "raises RuntimeError: no second derivative",
    ),
    # ------ tools
    ("torch.nn.DataParallel(model)(**inputs)", "_.logits.shape == (1, 5, 15)"),
    (
        "torch.export.export(model.eval(), (), dict(inputs), strict=False)",
        '_.module()(**inputs)["logits"].shape == (1, 5, 15)',
    ),
    (
        "with accelerate.init_empty_weights(): empty = DetrPanopticForSegmentation(model.config)",
        'empty.device.type == "meta"',
    ),
    ('accelerate.cpu_offload(model, "cpu")(**inputs)', "_.logits.shape == (1, 5, 15)"),
    (
        "with torch.no_grad(), FlopCounterMode(display=False) as counter: model(**inputs)",
        "counter.get_total_flops() > 0",
    ),
]
