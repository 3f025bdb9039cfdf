rule benchmark_mme:
    output:
        R / "benchmarks/MME.tsv",
    log:
        R / "logs/benchmarks/MME.log",
    params:
        preset=PRESET,
        settings=digest({"corpus": preset.corpus, "benchmark": preset.benchmarks.get("MME")}),
    shell:
        "python -m eval benchmark MME --preset {params.preset} --out {output} > {log} 2>&1"
