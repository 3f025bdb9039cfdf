"""What corpora, models and trainings are made from, by the preset's settings."""


def corpus_settings(*splits):
    """The settings of the corpus that some of its splits depend on, without those of the other splits."""
    others = {"train", "val", "text_only"} - set(splits)
    return preset.corpus.model_dump(mode="json", exclude=others | (set() if "train" in splits else {"shards"}))


def captions_files(wildcards):
    """The files that a shard is read from, beside the pictures of a folder."""
    if isinstance(preset.corpus, WebDatasetCorpus):
        return [tar_folder() / name for name in tar_files(preset.corpus, wildcards.split, int(wildcards.shard))]
    paths = corpus_paths(preset.corpus)
    return [paths[name] for name in ("corpus.captions", f"corpus.{wildcards.split}") if name in paths]


def tar_folder():
    """Where the tar files of a WebDataset are, or are fetched to."""
    return Path(preset.corpus.source) if is_local(preset.corpus.source) else R / "downloads/files"


def files_option():
    """Where the tar files of a shard are."""
    return f"--files {tar_folder()}" if isinstance(preset.corpus, WebDatasetCorpus) else ""


def hub_source(model):
    """The hub id of what is fetched."""
    if model == "tokenizer":
        return preset.tokenizer
    return preset.backbones.hub_llm if model == "llm" else preset.backbones.hub_vision


def hub_files():
    """The files of a dataset that are fetched from a hub."""
    corpus = preset.corpus
    if not isinstance(corpus, WebDatasetCorpus) or is_local(corpus.source):
        return []
    return [
        *sum((tar_files(corpus, "train", number) for number in range(corpus.shards)), []),
        *tar_files(corpus, "val", 0),
    ]


def from_hub(model):
    """What is fetched of a backbone, as an input; nothing where it is made here or lies in a folder."""
    entry = preset.tokenizer if model == "tokenizer" else getattr(preset.backbones, model)
    source = hub_source(model)
    made_here = isinstance(entry, LLM | Vision | Tokenizer)
    return {} if made_here or is_local(source) else {"hub": R / f"downloads/models/{model}"}


@cache
def pictures_state():
    """SHA-256 over names, sizes and times of a folder corpus's pictures: as inputs they would be thousands."""
    state = hashlib.sha256()
    for folder, folders, names in os.walk(corpus_paths(preset.corpus).get("corpus.images", ""), followlinks=True):
        folders.sort()
        for path in (os.path.join(folder, name) for name in sorted(names)):
            if os.path.exists(path):
                status = os.stat(path)
                state.update(f"{path}\n{status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def captions():
    """The inputs of what reads the captions of both splits, but for their pictures."""
    return {
        "train_tokens": shards("tokens/train/{shard}.arrow"),
        "val_tokens": R / f"tokens/val/{WHOLE}.arrow",
    }


def tokenizer_inputs(wildcards):
    """What a tokenizer is trained on, or where it was fetched to."""
    if not isinstance(preset.tokenizer, Tokenizer):
        return from_hub("tokenizer")
    return {"train": shards("corpus/train/{shard}"), "text_only": R / f"corpus/text_only/{WHOLE}"}


def llm_inputs(wildcards):
    """What the base LLM is trained on, or where it was fetched to."""
    if not isinstance(preset.backbones.llm, LLM):
        return from_hub("llm")
    return {"text_only": R / f"corpus/text_only/{WHOLE}"}


def vision_inputs(wildcards):
    """What the vision tower is trained on, or where it was fetched to."""
    if not isinstance(preset.backbones.vision, Vision):
        return from_hub("vision")
    return {
        "train": shards("corpus/train/{shard}"),
        "tokens": shards("tokens/train/{shard}.arrow"),
        "tokenizer": R / "tokenizer",
    }


def reference_inputs(wildcards):
    """The captions, and those without pictures if the reference LLM learns from them, too."""
    return captions() | ({"text_only": R / f"corpus/text_only/{WHOLE}"} if preset.reference.text_only else {})


def pretrain_inputs(wildcards):
    """A run waits for what its architecture and its objective read, and for nothing else."""
    inputs = captions() | {
        "train": shards("corpus/train/{shard}"),
        "val": R / f"corpus/val/{WHOLE}",
        "tokenizer": R / "tokenizer",
        "llm": R / "backbones/llm",
    }
    if wildcards.arch == "hlvlm":
        inputs["vision"] = R / "backbones/vision"
    if REGISTRY[preset.objectives[wildcards.objective].kind].needs_scores:
        inputs["scores"] = shards("scores/base/{shard}.arrow")
    return inputs


def tune_inputs(wildcards):
    """The pictures that questions are about; conversations come with their own."""
    return {} if preset.tune.conversations else {"corpus": shards("corpus/train/{shard}")}
