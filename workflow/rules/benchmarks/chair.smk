rule benchmark_chair:
    input:
        unpack(object_files),
    output:
        table=R / "benchmarks/CHAIR.tsv",
        synonyms=R / "benchmarks/CHAIR.synonyms.txt",
    log:
        R / "logs/benchmarks/CHAIR.log",
    resources:
        **asks("small"),
    params:
        settings=digest({"corpus": corpus_settings(), "benchmark": preset.benchmarks.get("CHAIR")}),
        val=lambda w, input: f"--val {input.val}" if "val" in input.keys() else "",
    shell:
        'python -m eval chair --preset "$PRESET" {params.val} --out {output.table} --synonyms {output.synonyms} '
        "> {log} 2>&1"
