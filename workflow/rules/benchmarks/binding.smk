rule benchmark_binding:
    output:
        R / "benchmarks/Binding.tsv",
    log:
        R / "logs/benchmarks/Binding.log",
    resources:
        **asks("small"),
    params:
        settings=digest({"corpus": corpus_settings(), "benchmark": preset.benchmarks.get("Binding")}),
    shell:
        'python -m eval benchmark Binding --preset "$PRESET" --out {output} > {log} 2>&1'
