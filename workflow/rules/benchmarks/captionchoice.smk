rule benchmark_captionchoice:
    input:
        val=R / f"corpus/val/{WHOLE}",
    output:
        R / "benchmarks/CaptionChoice.tsv",
    log:
        R / "logs/benchmarks/CaptionChoice.log",
    resources:
        **asks("small"),
    params:
        settings=digest(preset.benchmarks.get("CaptionChoice")),
    shell:
        'python -m eval benchmark CaptionChoice --preset "$PRESET" --val {input.val} --out {output} > {log} 2>&1'
